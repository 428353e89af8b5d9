"""The pool: members, picks and candidates."""

from __future__ import annotations

from collections import Counter
from itertools import cycle
from typing import TYPE_CHECKING

import pytest

from balancers import NoMemberAvailableError, Pool, Random, UnknownMemberError, Weighted
from balancers.errors import InvalidSettingError, InvalidWeightError
from tests.balancers.support import (
    REFUSED,
    FakeClock,
    fail,
    names,
    recover,
    tally,
    targets,
)

if TYPE_CHECKING:
    from collections.abc import Callable


class TestMembers:
    """Names, targets and weights."""

    def test_are_kept_in_order(self) -> None:
        """Members have the name, target and weight given, in the order given."""
        pool = Pool({"b": 1, "a": 2}, weights={"a": 3}, balancer=Weighted())
        found = [(one.name, one.target, one.weight) for one in pool.members]
        assert found == [("b", 1, 1), ("a", 2, 3)]
        assert pool.live == pool.members
        assert pool.member("a") is pool.members[1]

    def test_unknown_names_are_errors(self, pool: Pool[str]) -> None:
        """A name that the pool lacks is a KeyError that lists those it has."""
        calls: list[Callable[[str], object]] = [pool.member, pool.drain, pool.restore]
        for call in calls:
            with pytest.raises(UnknownMemberError, match="'a', 'b', 'c'") as caught:
                call("x")
            assert isinstance(caught.value, KeyError)
            assert caught.value.name == "x"

    def test_foreign_members_are_errors(self, pool: Pool[str]) -> None:
        """A member of another pool is refused by every method that takes one."""
        foreign = Pool(targets(3)).member("a")
        calls: list[Callable[[], object]] = [
            lambda: pool.failed(foreign, REFUSED),
            lambda: pool.succeeded(foreign),
            lambda: pool.pause(foreign, 1.0, REFUSED),
            lambda: pool.permit(foreign),
            lambda: pool.candidates(foreign),
            lambda: pool.succeeded("a"),  # type: ignore[arg-type]  # that is the point
        ]
        for call in calls:
            with pytest.raises(UnknownMemberError, match="another pool"):
                call()

    @pytest.mark.parametrize("weight", [-1, 1.5, "2", True, None])
    def test_bad_weights_are_errors(self, weight: object) -> None:
        """A weight must be a whole number from 0 up."""
        with pytest.raises(InvalidWeightError) as caught:
            Pool(targets(1), weights={"a": weight})  # type: ignore[dict-item]  # the point
        assert (caught.value.name, caught.value.weight) == ("a", weight)

    def test_a_weight_for_nobody_is_an_error(self) -> None:
        """A weight for a name that is no target is refused."""
        with pytest.raises(UnknownMemberError):
            Pool(targets(1), weights={"b": 1})

    def test_weight_zero_takes_no_traffic(self) -> None:
        """A member of weight 0 is never picked, but may be asked for first."""
        pool = Pool(targets(3), weights={"b": 0})
        assert tally(pool.pick, 10) == {"a": 5, "c": 5}
        assert next(pool.candidates(pool.member("b"))).name == "b"

    @pytest.mark.parametrize("number", ["threshold", "reset", "max_reset", "lease"])
    def test_bad_numbers_are_errors(self, number: str) -> None:
        """A number out of range is refused, also by a pool without members."""
        with pytest.raises(InvalidSettingError, match=number):
            Pool({}, **{number: -1})  # type: ignore[arg-type]  # mypy sees no name
        with pytest.raises(InvalidSettingError, match="slow_start"):
            Pool({}, slow_start=-1)

    def test_repr_shows_no_target(self) -> None:
        """The repr names the live members and nothing else of them."""
        assert repr(Pool({"a": "x://u:pw@h"})) == "<Pool live=['a']>"


class TestPick:
    """The published pick function."""

    def test_is_the_strategys_own_function(self) -> None:
        """While all is well the pool adds nothing to a pick."""
        assert isinstance(getattr(Pool(targets(3)).pick, "__self__", None), cycle)

    def test_is_so_again_after_recovery(
        self, pool: Pool[str], clock: FakeClock
    ) -> None:
        """Once every member is back, nothing is left of the outage on the hot path."""
        recover(pool, clock, "a")
        pool.drain("b")
        pool.restore("b")
        assert isinstance(getattr(pool.pick, "__self__", None), cycle)
        assert pool.live == pool.members

    def test_goes_evenly_over_the_survivors(self, pool: Pool[str]) -> None:
        """A member that is out leaves the others equal shares."""
        fail(pool, "b")
        assert names(pool.live) == ["a", "c"]
        assert tally(pool.pick, 100) == {"a": 50, "c": 50}

    def test_rests_in_pieces(self, pool: Pool[str]) -> None:
        """With no member left, the error lists every member and why."""
        fail(pool, "a")
        pool.drain("b")
        pool.pause(pool.member("c"), 7.0, OSError("x://u:secret@h: too many clients"))
        with pytest.raises(NoMemberAvailableError) as caught:
            pool.pick()
        assert caught.value.causes == {
            "a": "open for 1.0 s more: ConnectionRefusedError: connection refused",
            "b": "drained",
            "c": "open for 7.0 s more: OSError: x://u:***@h: too many clients",
        }

    def test_of_an_empty_pool(self) -> None:
        """A pool without members says that it has none."""
        pool: Pool[str] = Pool({})
        with pytest.raises(NoMemberAvailableError, match="has none"):
            pool.pick()
        assert list(pool.candidates()) == []

    def test_of_weight_zero_alone(self) -> None:
        """A pool in which every member weighs 0 says so."""
        pool = Pool(targets(1), weights={"a": 0})
        with pytest.raises(NoMemberAvailableError, match="'a': weight 0"):
            pool.pick()

    def test_hands_out_one_trial_when_due(
        self, pool: Pool[str], clock: FakeClock
    ) -> None:
        """After the wait one caller gets the open member, the others do not."""
        fail(pool, "a")
        assert "a" not in tally(pool.pick, 10)
        clock.advance(1.0)
        assert tally(pool.pick, 10)["a"] == 1

    def test_hands_out_a_trial_when_all_are_out(
        self, pool: Pool[str], clock: FakeClock
    ) -> None:
        """Due members get their trial, longest due first, even if none is live."""
        for name in "bca":
            fail(pool, name)
            clock.advance(0.1)
        clock.advance(1.0)
        assert [pool.pick().name for _ in range(3)] == ["b", "c", "a"]
        with pytest.raises(NoMemberAvailableError, match="half-open"):
            pool.pick()

    def test_a_lost_trial_is_handed_out_again(
        self, pool: Pool[str], clock: FakeClock
    ) -> None:
        """A trial whose outcome is not reported does not keep the member out."""
        fail(pool, "a")
        clock.advance(1.0)
        assert pool.pick().name == "a"
        clock.advance(9.9)
        assert pool.pick().name != "a"
        clock.advance(0.1)
        assert pool.pick().name == "a"

    def test_a_drained_member_gets_no_trial(
        self, pool: Pool[str], clock: FakeClock
    ) -> None:
        """Draining outranks the breaker; after restore the trial is due."""
        fail(pool, "a")
        pool.drain("a")
        clock.advance(100.0)
        assert "a" not in tally(pool.pick, 10)
        pool.restore("a")
        assert pool.pick().name == "a"

    def test_a_lonely_restored_member_gets_a_trial(self, clock: FakeClock) -> None:
        """A restore that makes no member live still lets a trial happen."""
        pool = Pool(targets(1), clock=clock)
        pool.drain("a")
        fail(pool, "a")
        pool.restore("a")
        clock.advance(1.0)
        assert pool.pick().name == "a"

    def test_no_member_starves_while_another_flaps(self, clock: FakeClock) -> None:
        """Rebuilding the rotation again and again still reaches every member."""
        pool = Pool(targets(4), clock=clock)
        seen: Counter[str] = Counter()
        for _ in range(200):
            pool.drain("a")
            seen[pool.pick().name] += 1
            pool.restore("a")
        assert min(seen[name] for name in "bcd") > 30


def test_who_tries_again_at_once() -> None:
    """A caller whose attempts fail one right after the other runs out of members."""
    pool = Pool(targets(3), clock=FakeClock())
    for _ in range(3 * 2):
        pool.failed(pool.pick(), REFUSED)
    with pytest.raises(NoMemberAvailableError) as caught:
        pool.pick()
    assert str(caught.value).count("connection refused") == 3


class TestCandidates:
    """Whom one caller may try."""

    def test_each_member_once(self, pool: Pool[str]) -> None:
        """Every live member is tried, none twice."""
        for _ in range(5):
            assert sorted(names(pool.candidates())) == ["a", "b", "c"]

    def test_the_first_is_the_pick(self, pool: Pool[str]) -> None:
        """Without a wish, first candidates follow the rotation evenly."""
        first = Counter(next(pool.candidates()).name for _ in range(30))
        assert first == {"a": 10, "b": 10, "c": 10}

    def test_a_wish_comes_first(self, pool: Pool[str]) -> None:
        """The member asked for is tried first, also while it drains."""
        assert next(pool.candidates(pool.member("b"))).name == "b"
        pool.drain("b")
        assert names(pool.candidates(pool.member("b")))[0] == "b"
        assert "b" not in names(pool.candidates())

    def test_a_wish_that_is_out_is_passed_over(
        self, pool: Pool[str], clock: FakeClock
    ) -> None:
        """An open member is not tried because it is asked for, nor a half-open one."""
        fail(pool, "b")
        assert sorted(names(pool.candidates(pool.member("b")))) == ["a", "c"]
        clock.advance(1.0)
        assert pool.pick().name == "b"
        assert sorted(names(pool.candidates(pool.member("b")))) == ["a", "c"]

    def test_a_dead_members_load_falls_on_all(self) -> None:
        """Substitutes of a member that fails are spread evenly over the others."""
        pool = Pool(targets(4), threshold=10**6)
        served: Counter[str] = Counter()
        for _ in range(300):
            served[next(one.name for one in pool.candidates() if one.name != "b")] += 1
        assert max(served.values()) - min(served.values()) <= 1

    def test_a_dead_wishs_load_falls_on_all(self) -> None:
        """The same holds if every caller asked for the dead member."""
        pool = Pool(targets(4))
        served: Counter[str] = Counter()
        for _ in range(300):
            found = pool.candidates(pool.member("b"))
            assert next(found).name == "b"
            served[next(found).name] += 1
        assert set(served) == {"a", "c", "d"}
        assert max(served.values()) - min(served.values()) <= 1

    def test_light_members_are_reached_behind_a_heavy_one(self) -> None:
        """However heavy the member that fails, the light ones are tried."""
        pool = Pool(targets(3), balancer=Weighted(), weights={"a": 1000})
        for _ in range(20):
            assert sorted(names(pool.candidates())) == ["a", "b", "c"]

    def test_random_reaches_everybody_too(self) -> None:
        """A balancer that repeats itself does not hide a member."""
        pool = Pool(targets(5), balancer=Random())
        for _ in range(50):
            assert sorted(names(pool.candidates())) == list("abcde")

    def test_due_members_are_the_last_resort(
        self, pool: Pool[str], clock: FakeClock
    ) -> None:
        """When all live ones fail, open members whose wait is over are tried."""
        for name in "abc":
            fail(pool, name)
        assert list(pool.candidates()) == []
        clock.advance(1.0)
        tried = []
        for one in pool.candidates():
            tried.append(one.name)
            pool.failed(one, REFUSED, pool.permit(one))
        assert sorted(tried) == ["a", "b", "c"]

    def test_no_trial_starts_before_it_is_asked_for(
        self, pool: Pool[str], clock: FakeClock
    ) -> None:
        """A caller content with its first candidate takes one trial at the most."""
        fail(pool, "a")
        fail(pool, "b")
        clock.advance(1.0)
        next(pool.candidates())
        states = [one.state for one in pool.snapshot().members]
        assert sorted(states) == ["closed", "half_open", "open"]

    def test_one_that_opens_meanwhile_is_left_out(self, pool: Pool[str]) -> None:
        """A member that goes out between two tries is not tried."""
        found = pool.candidates(pool.member("a"))
        assert next(found).name == "a"
        fail(pool, "b")
        assert names(found) == ["c"]
