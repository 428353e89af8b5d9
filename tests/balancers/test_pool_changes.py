"""The pool: outcomes, events, balancers that break, slow starts."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any

import pytest

from balancers import Member, Pool, RoundRobin
from balancers.errors import InvalidPickError, InvalidSettingError
from balancers.events import (
    MemberClosed,
    MemberDrained,
    MemberOnTrial,
    MemberOpened,
    MemberRestored,
)
from balancers.strategies import BALANCERS
from tests.balancers.support import (
    REFUSED,
    FakeClock,
    Log,
    fail,
    longest,
    names,
    recover,
    tally,
    targets,
)

if TYPE_CHECKING:
    from balancers import Event, Pick


class TestReports:
    """What outcomes do."""

    def test_one_outage_counts_once(self, pool: Pool[str]) -> None:
        """Failures of connects that began together do not open a member."""
        member = pool.member("a")
        permits = [pool.permit(member) for _ in range(20)]
        for permit in permits:
            pool.failed(member, REFUSED, permit)
        assert member in pool.live

    def test_a_pause_counts_no_failure(
        self, pool: Pool[str], clock: FakeClock, log: Log
    ) -> None:
        """A member that turns callers away is out for the time, and then on trial."""
        member = pool.member("a")
        pool.pause(member, 3.0, REFUSED, pool.permit(member))
        assert names(pool.live) == ["b", "c"]
        assert pool.snapshot().members[0].failures == 0
        clock.advance(3.0)
        assert pool.pick() is member
        pool.succeeded(member)
        assert log[0] == MemberOpened("a", 0, 3.0, f"ConnectionRefusedError: {REFUSED}")
        assert pool.live == pool.members

    def test_a_bad_pause_changes_nothing(self, pool: Pool[str]) -> None:
        """A pause of no length is an error and leaves the pool in order."""
        with pytest.raises(InvalidSettingError):
            pool.pause(pool.member("a"), 0, REFUSED)
        assert pool.live == pool.members
        pool.drain("a")

    def test_a_success_of_a_healthy_member_takes_no_lock(self, pool: Pool[str]) -> None:
        """Reporting success while all is well waits for no lock."""
        with pool._publisher._lock:
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
            MemberOnTrial("a", 10.0),
            MemberOpened("a", 3, 2.0, "OSError: password=***"),
            MemberOnTrial("a", 10.0),
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
        with pytest.raises(InvalidPickError, match="not 3"):
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
        """A balancer may read its pool while it is asked for a rotation."""
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

    @pytest.mark.parametrize("picks", [StopIteration, KeyError, None, "a", [1], "twin"])
    def test_at_a_pick_gives_way_to_turns(
        self, picks: object, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A pick of no live member falls back to round robin, and is logged once."""

        def broken(live: tuple[Member[str], ...]) -> Pick[str]:
            def pick() -> Any:
                if isinstance(picks, type):
                    raise picks
                return Member("a", "a", 1) if picks == "twin" else picks

            return pick

        pool = Pool(targets(3), balancer=broken)
        assert tally(pool.pick, 30) == {"a": 10, "b": 10, "c": 10}
        pool.drain("a")
        assert tally(pool.pick, 30) == {"b": 15, "c": 15}
        assert [member.name for member in pool.candidates()] in (["b", "c"], ["c", "b"])
        assert len(caplog.records) == 2
        assert "broken" in caplog.text

    def test_a_pick_that_fails_for_a_while(self) -> None:
        """A balancer has its say again as soon as it can."""
        wants: list[Member[str]] = []
        pool = Pool(targets(2), balancer=lambda _: lambda: wants[0])
        assert tally(pool.pick, 10) == {"a": 5, "b": 5}
        wants.append(pool.member("b"))
        assert tally(pool.pick, 10) == {"b": 10}
        pool.drain("b")
        assert tally(pool.pick, 10) == {"a": 10}

    @pytest.mark.parametrize("balancer", [*BALANCERS, *BALANCERS.values()])
    def test_a_balancer_of_this_package_has_no_guard(self, balancer: Any) -> None:
        """A pick by one that cannot fail costs no check."""
        pick = Pool(targets(2), balancer=balancer).pick
        assert "guarded" not in repr(pick)


class TestSlowStart:
    """A share that grows after recovery."""

    @pytest.fixture(params=[name for name in BALANCERS if name != "first"])
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
        """A new pool gives every member its full share."""
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
        assert slow._publisher._due == float("inf")

    def test_of_the_first(self, clock: FakeClock) -> None:
        """The whole share of the first one is everything; the second stands in."""
        pool = Pool(
            targets(3), balancer="first", slow_start=10.0, clock=clock, jitter=longest
        )
        recover(pool, clock, "a")
        counts = tally(pool.pick, 4000)
        assert 250 < counts["a"] < 550
        assert counts["a"] + counts["b"] == 4000

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

    def test_causes_name_a_trial_that_is_due(
        self, pool: Pool[str], clock: FakeClock
    ) -> None:
        """A wait that is over is not shown as zero seconds."""
        fail(pool, "a")
        clock.advance(1.0)
        assert pool.causes()["a"].startswith("open, a trial is due: ")
        assert pool.causes()["b"] == "in rotation"
