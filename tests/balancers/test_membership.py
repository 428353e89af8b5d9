"""Members that come and go while the pool is in use."""

from __future__ import annotations

import gc
import pickle
import weakref
from typing import TYPE_CHECKING

import pytest

from balancers import NoMemberAvailableError, Pool, Random, UnknownMemberError, Weighted
from balancers.errors import DuplicateMemberError, InvalidWeightError
from balancers.events import MemberAdded, MemberRemoved
from tests.balancers.support import (
    REFUSED,
    FakeClock,
    Log,
    fail,
    names,
    tally,
    targets,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from balancers import Member, Pick


class TestAdd:
    """Pool.add()."""

    def test_takes_its_share(self, pool: Pool[str], log: Log) -> None:
        """A new member is picked like the others, and told of."""
        member = pool.add("d", "d-target")
        assert (member.name, member.target, member.weight) == ("d", "d-target", 1)
        assert pool.member("d") is member
        assert names(pool.members) == names(pool.live) == list("abcd")
        assert tally(pool.pick, 40) == dict.fromkeys("abcd", 10)
        assert log == [MemberAdded("d", 1)]

    def test_has_its_weight(self) -> None:
        """A new member's weight counts, and 0 takes no traffic."""
        pool = Pool(targets(2), balancer=Weighted())
        pool.add("c", "", weight=3)
        pool.add("d", "", weight=0)
        assert tally(pool.pick, 50) == {"a": 10, "b": 10, "c": 30}

    def test_has_a_breaker_like_the_others(
        self, pool: Pool[str], clock: FakeClock
    ) -> None:
        """A new member opens, has its trial and recovers by the pool's own numbers."""
        pool.add("d", "")
        fail(pool, "d")
        assert names(pool.live) == list("abc")
        clock.advance(1.0)
        trial = pool.pick()
        assert trial.name == "d"
        pool.succeeded(trial, pool.permit(trial))
        assert pool.live == pool.members

    def test_to_an_empty_pool(self) -> None:
        """A pool may begin without any member."""
        pool: Pool[str] = Pool({})
        pool.add("a", "")
        assert pool.pick().name == "a"

    def test_begins_slowly(self, clock: FakeClock) -> None:
        """Where recovered members start slowly, a new one does too."""
        pool = Pool(targets(3), slow_start=10.0, clock=clock)
        pool.add("d", "")
        assert tally(pool.pick, 4000)["d"] < 250
        clock.advance(10.0)
        assert tally(pool.pick, 4000)["d"] > 900

    def test_a_name_twice_is_an_error(self, pool: Pool[str], log: Log) -> None:
        """A name that is taken is refused, and nothing changes."""
        with pytest.raises(DuplicateMemberError, match="'b' already") as caught:
            pool.add("b", "")
        assert (caught.value.name, caught.value.known) == ("b", ("a", "b", "c"))
        again = pickle.loads(pickle.dumps(caught.value))
        assert (str(again), vars(again)) == (str(caught.value), vars(caught.value))
        assert pool.member("b").target == "b-target"
        assert not log

    def test_a_bad_weight_is_an_error(self, pool: Pool[str]) -> None:
        """A weight that is no whole number from 0 up is refused."""
        with pytest.raises(InvalidWeightError):
            pool.add("d", "", weight=-1)
        assert names(pool.members) == list("abc")

    def test_a_weight_in_vain_is_logged(
        self, pool: Pool[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        """A weight for a balancer that reads none is worth a warning."""
        pool.add("d", "", weight=2)
        assert "reads no weights" in caplog.text


class TestRemove:
    """Pool.remove()."""

    def test_is_picked_no_more(self, pool: Pool[str], log: Log) -> None:
        """The others share its load evenly, and it is unknown by name."""
        gone = pool.remove("b")
        assert gone.name == "b"
        assert names(pool.members) == names(pool.live) == ["a", "c"]
        assert tally(pool.pick, 10) == {"a": 5, "c": 5}
        assert "b" not in pool.causes()
        assert names(pool.candidates()) in (["a", "c"], ["c", "a"])
        with pytest.raises(UnknownMemberError, match="'a', 'c'"):
            pool.remove("b")
        assert log == [MemberRemoved("b")]

    def test_of_the_last(self, pool: Pool[str]) -> None:
        """A pool may be emptied, and filled again."""
        for name in "abc":
            pool.remove(name)
        with pytest.raises(NoMemberAvailableError, match="has none"):
            pool.pick()
        assert pool.first() is None
        pool.add("a", "")
        assert pool.pick().name == "a"

    def test_late_reports_change_nothing(self, pool: Pool[str], log: Log) -> None:
        """A report on a removed member is no error, and has no effect."""
        member = pool.member("b")
        before = pool.permit(member)
        pool.remove("b")
        pool.add("b", "other")
        for permit in (None, before, pool.permit(member)) * 3:
            pool.failed(member, REFUSED, permit)
            pool.pause(member, 1.0, REFUSED, permit)
            pool.succeeded(member, permit)
            assert not pool.trip(member, 1.0, REFUSED)
            pool.recover(member, permit)
        assert pool.live == pool.members
        assert pool.snapshot().members[-1].last_error is None
        assert log == [MemberRemoved("b"), MemberAdded("b", 1)]

    def test_one_that_is_out_owes_no_trial(
        self, pool: Pool[str], clock: FakeClock
    ) -> None:
        """With an open member its trial goes, and the guard on the pick."""
        fail(pool, "b")
        pool.remove("b")
        assert pool.pick != pool._publisher._pick_when_due
        clock.advance(100.0)
        assert "b" not in tally(pool.pick, 10)

    def test_a_trial_that_ends_later_is_not_heard(
        self, pool: Pool[str], clock: FakeClock, log: Log
    ) -> None:
        """A trial of a member that was removed meanwhile closes nothing."""
        fail(pool, "b")
        clock.advance(1.0)
        trial = pool.pick()
        permit = pool.permit(trial)
        pool.remove("b")
        pool.succeeded(trial, permit)
        assert log[-1] == MemberRemoved("b")

    def test_as_a_wish_gives_the_pick(self, pool: Pool[str]) -> None:
        """Who asks for a removed member first gets another one."""
        member = pool.remove("b")
        assert pool.first(member) in pool.live
        assert sorted(names(pool.candidates(member))) == ["a", "c"]
        assert sorted(names(pool.others(member))) == ["a", "c"]

    def test_in_the_middle_of_candidates(self, pool: Pool[str]) -> None:
        """A member that goes between two tries is not tried."""
        found = pool.candidates(pool.member("a"))
        assert next(found).name == "a"
        pool.remove("b")
        assert names(found) == ["c"]

    def test_a_foreign_member_is_still_unknown(self, pool: Pool[str]) -> None:
        """A member that another pool removed is not this one's."""
        other = Pool(targets(3))
        foreign = other.remove("b")
        pool.remove("b")
        with pytest.raises(UnknownMemberError):
            pool.failed(foreign, REFUSED)

    def test_nothing_is_kept(self, pool: Pool[str]) -> None:
        """A removed member that is not referenced any more is garbage."""
        left = []
        for _ in range(50):
            pool.add("d", "")
            pool.pick()
            fail(pool, "d")
            left.append(weakref.ref(pool.remove("d")))
        pool.drain("a")  # a new rotation
        gc.collect()
        assert [one() for one in left] == [None] * 50
        assert not pool._membership._removed

    def test_outlasts_a_change_meanwhile(self) -> None:
        """Also when another change comes between, no pick falls on it afterwards."""

        def busy(live: tuple[Member[str], ...]) -> Pick[str]:
            if changes:
                changes.pop()()
            return Random()(live)

        changes: list[Callable[[], object]] = []
        pool = Pool(targets(4), balancer=busy)
        changes += [lambda: pool.drain("b"), lambda: pool.drain("c")]
        pool.remove("a")
        assert set(tally(pool.pick, 50)) == {"d"}
