"""The pool: who is in rotation, who is tried next, who is told."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from itertools import cycle
from typing import TYPE_CHECKING

import pytest

from balancers import (
    InvalidPick,
    InvalidSetting,
    InvalidWeight,
    Member,
    MemberClosed,
    MemberDrained,
    MemberOpened,
    MemberProbed,
    MemberRestored,
    NoMemberAvailable,
    Pool,
    Random,
    RoundRobin,
    UnknownMember,
    Weighted,
)
from tests.balancers.support import (
    REFUSED,
    FakeClock,
    Log,
    fail,
    longest,
    names,
    tally,
    targets,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from balancers import Event, Pick


@pytest.fixture
def clock() -> FakeClock:
    """Give a clock that stands still."""
    return FakeClock()


@pytest.fixture
def log() -> Log:
    """Give a listener that keeps events."""
    return Log()


@pytest.fixture
def pool(clock: FakeClock, log: Log) -> Pool[str]:
    """Give a pool of three whose waits are as long as they can be."""
    return Pool(targets(3), clock=clock, listeners=[log], jitter=longest)


def recover(pool: Pool[str], clock: FakeClock, name: str) -> None:
    """Let a member fail, wait, and let its probe succeed."""
    fail(pool, name)
    clock.advance(
        pool.snapshot().members[names(pool.members).index(name)].retry_in or 0
    )
    probe = pool.pick()
    assert probe.name == name
    pool.succeeded(probe, pool.permit(probe))


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
            with pytest.raises(UnknownMember, match="'a', 'b', 'c'") as caught:
                call("x")
            assert isinstance(caught.value, KeyError)
            assert caught.value.name == "x"

    def test_foreign_members_are_errors(self, pool: Pool[str]) -> None:
        """A member of another pool is refused by every method that takes one."""
        foreign = Pool(targets(3)).member("a")
        calls: list[Callable[[], object]] = [
            lambda: pool.failed(foreign, REFUSED),
            lambda: pool.succeeded(foreign),
            lambda: pool.rest(foreign, 1.0, REFUSED),
            lambda: pool.permit(foreign),
            lambda: pool.candidates(foreign),
            lambda: pool.succeeded("a"),  # type: ignore[arg-type]  # that is the point
        ]
        for call in calls:
            with pytest.raises(UnknownMember, match="another pool"):
                call()

    @pytest.mark.parametrize("weight", [-1, 1.5, "2", True, None])
    def test_bad_weights_are_errors(self, weight: object) -> None:
        """A weight must be a whole number from 0 up."""
        with pytest.raises(InvalidWeight) as caught:
            Pool(targets(1), weights={"a": weight})  # type: ignore[dict-item]  # the point
        assert (caught.value.name, caught.value.weight) == ("a", weight)

    def test_a_weight_for_nobody_is_an_error(self) -> None:
        """A weight for a name that is no target is refused."""
        with pytest.raises(UnknownMember):
            Pool(targets(1), weights={"b": 1})

    def test_weight_zero_takes_no_traffic(self) -> None:
        """A member of weight 0 is never picked, but may be asked for first."""
        pool = Pool(targets(3), weights={"b": 0})
        assert tally(pool.pick, 10) == {"a": 5, "c": 5}
        assert next(pool.candidates(pool.member("b"))).name == "b"

    @pytest.mark.parametrize("number", ["threshold", "reset", "max_reset", "lease"])
    def test_bad_numbers_are_errors(self, number: str) -> None:
        """A number out of range is refused, also by a pool without members."""
        with pytest.raises(InvalidSetting, match=number):
            Pool({}, **{number: -1})  # type: ignore[arg-type]  # mypy sees no name
        with pytest.raises(InvalidSetting, match="slow_start"):
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
        """Once everybody is back, nothing is left of the outage on the hot path."""
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
        """With nobody left, the error lists every member and why."""
        fail(pool, "a")
        pool.drain("b")
        pool.rest(pool.member("c"), 7.0, OSError("x://u:secret@h: too many clients"))
        with pytest.raises(NoMemberAvailable) as caught:
            pool.pick()
        assert caught.value.causes == {
            "a": "open for 1.0 s more: ConnectionRefusedError: connection refused",
            "b": "drained",
            "c": "open for 7.0 s more: OSError: x://u:***@h: too many clients",
        }

    def test_of_an_empty_pool(self) -> None:
        """A pool without members says that it has none."""
        pool: Pool[str] = Pool({})
        with pytest.raises(NoMemberAvailable, match="has none"):
            pool.pick()
        assert list(pool.candidates()) == []

    def test_of_weight_zero_alone(self) -> None:
        """A pool in which everybody weighs 0 says so."""
        pool = Pool(targets(1), weights={"a": 0})
        with pytest.raises(NoMemberAvailable, match="'a': weight 0"):
            pool.pick()

    def test_hands_out_one_probe_when_due(
        self, pool: Pool[str], clock: FakeClock
    ) -> None:
        """After the wait one caller gets the open member, the others do not."""
        fail(pool, "a")
        assert "a" not in tally(pool.pick, 10)
        clock.advance(1.0)
        assert tally(pool.pick, 10)["a"] == 1

    def test_hands_out_a_probe_when_all_are_out(
        self, pool: Pool[str], clock: FakeClock
    ) -> None:
        """Due members are probed, longest due first, even if nobody is live."""
        for name in "bca":
            fail(pool, name)
            clock.advance(0.1)
        clock.advance(1.0)
        assert [pool.pick().name for _ in range(3)] == ["b", "c", "a"]
        with pytest.raises(NoMemberAvailable, match="half-open"):
            pool.pick()

    def test_a_lost_probe_is_handed_out_again(
        self, pool: Pool[str], clock: FakeClock
    ) -> None:
        """A probe whose outcome nobody reports does not keep the member out."""
        fail(pool, "a")
        clock.advance(1.0)
        assert pool.pick().name == "a"
        clock.advance(9.9)
        assert pool.pick().name != "a"
        clock.advance(0.1)
        assert pool.pick().name == "a"

    def test_a_drained_member_is_not_probed(
        self, pool: Pool[str], clock: FakeClock
    ) -> None:
        """Draining outranks the breaker; after restore the probe is due."""
        fail(pool, "a")
        pool.drain("a")
        clock.advance(100.0)
        assert "a" not in tally(pool.pick, 10)
        pool.restore("a")
        assert pool.pick().name == "a"

    def test_a_lonely_restored_member_is_probed(self, clock: FakeClock) -> None:
        """A restore that makes nobody live still lets a probe happen."""
        pool = Pool(targets(1), clock=clock)
        pool.drain("a")
        fail(pool, "a")
        pool.restore("a")
        clock.advance(1.0)
        assert pool.pick().name == "a"

    def test_no_member_starves_while_another_flaps(self, clock: FakeClock) -> None:
        """Rebuilding the rotation again and again still reaches everybody."""
        pool = Pool(targets(4), clock=clock)
        seen: Counter[str] = Counter()
        for _ in range(200):
            pool.drain("a")
            seen[pool.pick().name] += 1
            pool.restore("a")
        assert min(seen[name] for name in "bcd") > 30


class TestCandidates:
    """Whom one caller may try."""

    def test_each_member_once(self, pool: Pool[str]) -> None:
        """Everybody live is tried, nobody twice."""
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
        """The same holds if everybody asked for the dead member."""
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

    def test_nobody_is_probed_before_it_is_asked_for(
        self, pool: Pool[str], clock: FakeClock
    ) -> None:
        """A caller content with its first candidate takes one probe at the most."""
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


class TestReports:
    """What outcomes do."""

    def test_one_outage_counts_once(self, pool: Pool[str]) -> None:
        """Failures of connects that began together do not open a member."""
        member = pool.member("a")
        permits = [pool.permit(member) for _ in range(20)]
        for permit in permits:
            pool.failed(member, REFUSED, permit)
        assert member in pool.live

    def test_rest_counts_no_failure(
        self, pool: Pool[str], clock: FakeClock, log: Log
    ) -> None:
        """A member that turns callers away is out for the time, and then probed."""
        member = pool.member("a")
        pool.rest(member, 3.0, REFUSED, pool.permit(member))
        assert names(pool.live) == ["b", "c"]
        assert pool.snapshot().members[0].failures == 0
        clock.advance(3.0)
        assert pool.pick() is member
        pool.succeeded(member)
        assert log[0] == MemberOpened("a", 0, 3.0, f"ConnectionRefusedError: {REFUSED}")
        assert pool.live == pool.members

    def test_a_bad_rest_changes_nothing(self, pool: Pool[str]) -> None:
        """A rest of no length is an error and leaves the pool in order."""
        with pytest.raises(InvalidSetting):
            pool.rest(pool.member("a"), 0, REFUSED)
        assert pool.live == pool.members
        pool.drain("a")

    def test_a_success_of_a_healthy_member_takes_no_lock(self, pool: Pool[str]) -> None:
        """Reporting success while all is well cannot wait for anybody."""
        with pool._lock:
            pool.succeeded(pool.member("a"))


class TestEvents:
    """What listeners are told."""

    def test_tell_the_whole_story(
        self, pool: Pool[str], clock: FakeClock, log: Log
    ) -> None:
        """Each change is told once, with its figures, in order."""
        fail(pool, "a")
        clock.advance(1.0)
        pool.failed(pool.pick(), OSError("password=x"))
        clock.advance(2.0)
        pool.succeeded(pool.pick())
        pool.drain("b")
        pool.restore("b")
        assert log == [
            MemberOpened("a", 2, 1.0, "ConnectionRefusedError: connection refused"),
            MemberProbed("a", 10.0),
            MemberOpened("a", 3, 2.0, "OSError: password=***"),
            MemberProbed("a", 10.0),
            MemberClosed("a", 3.0),
            MemberDrained("b"),
            MemberRestored("b"),
        ]

    def test_are_silent_about_what_changes_nothing(
        self, pool: Pool[str], log: Log
    ) -> None:
        """A lone failure, a success, a second drain: nothing is told."""
        pool.failed(pool.member("a"), REFUSED)
        pool.succeeded(pool.member("a"))
        pool.restore("a")
        pool.drain("a")
        pool.drain("a")
        assert log == [MemberDrained("a")]

    def test_are_frozen(self) -> None:
        """A listener cannot change what the next one sees."""
        with pytest.raises(dataclasses.FrozenInstanceError):
            MemberDrained("a").name = "b"  # type: ignore[misc]  # that is the point

    def test_a_listener_may_use_the_pool(self) -> None:
        """Listeners run outside the lock and see the change already made."""
        seen: list[tuple[str, ...]] = []

        def look(event: Event) -> None:
            seen.append(pools[0].snapshot().live)
            if isinstance(event, MemberOpened):
                pools[0].drain(event.name)

        pools = [Pool(targets(2), listeners=[look])]
        fail(pools[0], "a")
        assert seen == [("b",), ("b",)]

    def test_a_broken_listener_hurts_nobody(
        self, log: Log, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What a listener raises is logged, and the others are still told."""

        def broken(event: Event) -> None:
            raise RuntimeError(event.name)

        pool = Pool(targets(2), listeners=[broken, log])
        pool.drain("a")
        assert log == [MemberDrained("a")]
        assert "broken" in caplog.text


class TestBrokenBalancer:
    """Balancers that fail or misbehave."""

    def test_at_the_start_is_an_error(self) -> None:
        """A balancer that fails or returns garbage is refused at construction."""

        def fails(live: tuple[Member[str], ...]) -> Pick[str]:
            raise RuntimeError(len(live))

        with pytest.raises(RuntimeError):
            Pool(targets(1), balancer=fails)
        with pytest.raises(InvalidPick, match="not 3"):
            Pool(targets(1), balancer=lambda _: 3)  # type: ignore[arg-type,return-value]  # the point

    @pytest.mark.parametrize("garbage", [True, False])
    def test_later_gives_way_to_round_robin(
        self, garbage: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A balancer that breaks on a change is replaced until the next one."""

        def moody(live: tuple[Member[str], ...]) -> Pick[str]:
            if len(live) == 2 and garbage:
                return None  # type: ignore[return-value]  # that is the point
            if len(live) == 2:
                raise RuntimeError
            return lambda: live[0]

        pool = Pool(targets(3), balancer=moody)
        pool.drain("a")
        assert tally(pool.pick, 10) == {"b": 5, "c": 5}
        assert "round robin takes its place" in caplog.text
        pool.drain("b")
        assert pool.pick().name == "c"

    def test_runs_outside_the_lock(self) -> None:
        """A balancer may look at its pool while it is asked for a rotation."""
        seen: list[tuple[str, ...]] = []

        def curious(live: tuple[Member[str], ...]) -> Pick[str]:
            if pools:
                seen.append(pools[0].snapshot().live)
            return RoundRobin()(live)

        pools: list[Pool[str]] = []
        pools.append(Pool(targets(2), balancer=curious))
        pools[0].drain("a")
        assert seen == [("b",)]

    def test_a_change_meanwhile_wins(self) -> None:
        """A rotation that is outdated when it is ready is thrown away."""

        def slow(live: tuple[Member[str], ...]) -> Pick[str]:
            if pools and len(live) == 2:
                pools[0].drain("b")
            return RoundRobin()(live)

        pools: list[Pool[str]] = []
        pools.append(Pool(targets(3), balancer=slow))
        pools[0].drain("a")
        assert names(pools[0].live) == ["c"]
        assert pools[0].pick().name == "c"

    def test_weights_in_vain_are_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        """Weights given to a balancer that reads none are worth a warning."""
        with caplog.at_level(logging.WARNING):
            Pool(targets(2), weights={"a": 1, "b": 0})
            Pool(targets(2), balancer="weighted", weights={"a": 2})
            assert not caplog.records
            Pool(targets(2), weights={"a": 2})
        assert "reads no weights" in caplog.text


class TestSlowStart:
    """A share that grows after recovery."""

    @pytest.fixture(params=[RoundRobin, Weighted, Random])
    def slow(self, request: pytest.FixtureRequest, clock: FakeClock) -> Pool[str]:
        """Give a pool of four with a slow start of ten seconds."""
        return Pool(
            targets(4),
            balancer=request.param,
            slow_start=10.0,
            clock=clock,
            jitter=longest,
        )

    def test_not_at_process_start(self, slow: Pool[str]) -> None:
        """A new pool gives everybody a whole share."""
        assert tally(slow.pick, 4000)["a"] > 800

    def test_ramps_up(self, slow: Pool[str], clock: FakeClock) -> None:
        """A recovered member's share grows with time from a tenth to the whole."""
        recover(slow, clock, "a")
        for seconds, share in [(0.0, 0.1), (2.5, 0.25), (2.5, 0.5), (2.5, 0.75)]:
            clock.advance(seconds)
            part = tally(slow.pick, 4000)["a"] / 1000
            assert share - 0.13 < part < share + 0.13
        clock.advance(2.5)
        slow.pick()
        assert tally(slow.pick, 4000)["a"] > 850
        assert slow._due == float("inf")

    def test_what_it_leaves_is_spread(self, slow: Pool[str], clock: FakeClock) -> None:
        """The others take over in equal parts."""
        recover(slow, clock, "a")
        counts = tally(slow.pick, 6000)
        parts = [counts[name] for name in "bcd"]
        assert max(parts) - min(parts) < 400

    def test_after_restore_too(self, slow: Pool[str]) -> None:
        """A member restored after draining is as cold as one that was lost."""
        slow.drain("a")
        slow.restore("a")
        assert tally(slow.pick, 4000)["a"] < 250

    def test_a_new_outage_ends_it(self, slow: Pool[str], clock: FakeClock) -> None:
        """A member lost in its slow start starts again from the bottom."""
        recover(slow, clock, "a")
        clock.advance(9.0)
        recover(slow, clock, "a")
        assert tally(slow.pick, 4000)["a"] < 250

    def test_nobody_else_no_ramp(self, clock: FakeClock) -> None:
        """If all are recovering, or there is only one, all take what comes."""
        pool = Pool(targets(1), slow_start=10.0, clock=clock)
        pool.drain("a")
        pool.restore("a")
        assert tally(pool.pick, 10) == {"a": 10}


class TestSnapshot:
    """What operators see."""

    def test_shows_every_member(self, pool: Pool[str], clock: FakeClock) -> None:
        """State, times and the last error of each member, as plain data."""
        fail(pool, "a")
        pool.drain("b")
        clock.advance(0.25)
        plain = dataclasses.asdict(pool.snapshot())
        assert plain["live"] == ("c",)
        assert plain["members"][0] == {
            "name": "a",
            "weight": 1,
            "state": "open",
            "drained": False,
            "live": False,
            "failures": 2,
            "last_error": "ConnectionRefusedError: connection refused",
            "opened_for": 0.25,
            "retry_in": 0.75,
        }
        assert plain["members"][1]["drained"]
        assert plain["members"][2]["opened_for"] is None

    def test_causes_name_a_probe_that_is_due(
        self, pool: Pool[str], clock: FakeClock
    ) -> None:
        """A wait that is over is not shown as zero seconds."""
        fail(pool, "a")
        clock.advance(1.0)
        assert pool.causes()["a"].startswith("open, a probe is due: ")
        assert pool.causes()["b"] == "in rotation"
