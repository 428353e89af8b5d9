"""What strategies make of how busy members are, and how slow."""

from __future__ import annotations

import os
from math import exp
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancers import (
    Feedback,
    LatencyWindow,
    LeastOutstanding,
    Member,
    PeakEwma,
    Pool,
    Zoned,
)
from balancers.errors import InvalidSettingError
from balancers.feedback import PeakFeedback
from tests.balancers.support import REFUSED, FakeClock, names, tally, targets

if TYPE_CHECKING:
    from collections.abc import Callable

    from balancers import Pick, Strategy

MEASURED = [LeastOutstanding, PeakEwma, LatencyWindow]


def told(pool: Pool[str], name: str) -> Feedback:
    """Return what a pool knows of a member."""
    found = pool.member(name).feedback
    assert found is not None
    return found


def use(found: Feedback, seconds: float, error: Exception | None = None) -> None:
    """Use a member once."""
    found.started()
    found.finished(seconds, error)


class TestFeedback:
    """What is kept of one member."""

    @pytest.mark.parametrize("kind", [Feedback, PeakFeedback])
    def test_uses(self, kind: type[Feedback]) -> None:
        """Uses are counted, and their latency is known once one has ended well."""
        found = kind()
        assert (found.in_flight, found.latency, found.expected()) == (0, None, None)
        found.started()
        found.started()
        assert (found.in_flight, found.latency) == (2, None)
        found.finished(0.25)
        assert (found.in_flight, found.latency) == (1, 0.25)
        found.finished(0.25)
        assert (found.in_flight, found.latency) == (0, 0.25)

    @pytest.mark.parametrize("kind", [Feedback, PeakFeedback])
    @given(
        st.lists(
            st.tuples(st.floats(0, 100), st.booleans(), st.floats(-1, 60)), max_size=30
        )
    )
    def test_a_failure_never_lowers_the_latency(
        self, kind: type[Feedback], uses: list[tuple[float, bool, float]]
    ) -> None:
        """Whatever else has happened; and the latency is one that there was."""
        clock = FakeClock()
        found = kind(clock=clock)
        for seconds, fails, wait in uses:
            clock.advance(wait)  # also back
            before = found.latency
            use(found, seconds, REFUSED if fails else None)
            if fails:
                assert (found.latency or 0.0) >= (before or 0.0)
            if before is None:
                assert found.latency == (None if fails else seconds)
        longest = max((one[0] for one in uses), default=0.0)
        assert 0 <= (found.latency or 0.0) <= longest * (1 + 1e-9)
        assert found.in_flight == 0

    def test_the_mean(self) -> None:
        """The first results count alike; later ones by the time that has passed."""
        clock = FakeClock()
        found = Feedback(clock=clock)
        for seconds in (0.1, 0.2, 0.3):
            use(found, seconds)
        assert found.latency == pytest.approx(0.2)
        clock.advance(10.0)
        use(found, 1.2)
        assert found.latency == pytest.approx(0.2 / 2.71828 + 1.2 * (1 - 1 / 2.71828))

    @pytest.mark.parametrize("pause", [0.001, 0.5])
    def test_a_few_slow_results(self, pause: float) -> None:
        """A single one makes no member slow, however long; a few in a row do."""
        clock = FakeClock()
        found = Feedback(clock=clock)

        def latency(seconds: float, times: int) -> float:
            for _ in range(times):
                clock.advance(pause)
                use(found, seconds)
            return found.seconds

        assert latency(0.005, 1000) == pytest.approx(0.005)
        assert latency(60.0, 1) < 3 * 0.005
        assert latency(0.005, 100) < 0.006
        assert latency(0.05, 8) > 3 * 0.005

    def test_a_peak(self) -> None:
        """Where peaks count, a slow result counts at once, and fades."""
        clock = FakeClock()
        found = PeakFeedback(clock=clock)
        for seconds in (0.1, 0.1, 2.0):
            use(found, seconds)
        assert found.latency == 2.0
        clock.advance(10.0)
        use(found, 0.0)
        assert found.latency == pytest.approx(2.0 * exp(-1))

    def test_nothing_to_do(self) -> None:
        """The latency to expect falls while there is nothing to do, and only then."""
        clock = FakeClock()
        found = Feedback(clock=clock)
        use(found, 1.0)
        clock.advance(10.0)
        assert found.expected() == pytest.approx(exp(-1))
        found.started()
        assert found.expected() == found.latency == 1.0

    def test_failures_count_as_uses(self) -> None:
        """Each for some seconds; a success halves them."""
        clock = FakeClock()
        found = Feedback(clock=clock)
        for _ in range(8):
            use(found, 0.001, REFUSED)
        assert (found.in_flight, found.load, found.failures) == (0, 8, 8)
        use(found, 0.001)
        assert found.load == 4
        clock.advance(30.0)
        assert found.load == 0
        use(found, 0.001)
        assert found.failures == 0

    def test_more_ends_than_beginnings(self) -> None:
        """A use that began before a fork ends in no child's count."""
        found = Feedback()
        found.started()
        found.renew()
        found.finished(0.1)
        assert (found.in_flight, found.count) == (0, 1)


class TestAsked:
    """Who is asked for feedback, and when."""

    def test_once_for_each_member(self) -> None:
        """For the pool's life, whatever becomes of the member; again for a new one."""
        asked = []

        class Curious(LeastOutstanding):
            def feedback(self, member: Member[Any]) -> Feedback:
                asked.append(member.name)
                return super().feedback(member)

        pool = Pool(targets(2), balancer=Curious())
        before = told(pool, "a")
        pool.drain("a")
        pool.restore("a")
        pool.reweight({"a": 3})
        assert told(pool, "a") is before
        pool.add("x", "")
        pool.remove("a")
        pool.add("a", "")
        assert asked == ["a", "b", "x", "a"]
        assert told(pool, "a") is not before

    def test_nobody_who_does_not_ask(self) -> None:
        """Without the method nothing is measured; nor where it returns None."""

        class Choosy(LeastOutstanding):
            def feedback(self, member: Member[Any]) -> Any:
                return super().feedback(member) if member.name == "a" else None

        assert Pool(targets(1)).member("a").feedback is None
        pool = Pool(targets(2), balancer=Choosy())
        assert told(pool, "a").in_flight == 0
        assert pool.member("b").feedback is None
        assert set(tally(pool.pick, 4)) == {"a", "b"}

    @pytest.mark.parametrize("strategy", MEASURED)
    def test_through_zones(self, strategy: Any) -> None:
        """Zoned hands on what its strategy wants to know."""
        pool = Pool(targets(3), balancer=Zoned(strategy, "here", {"a": "here"}))
        assert tally(pool.pick, 5) == {"a": 5}
        assert all(isinstance(one.feedback, Feedback) for one in pool.members)

    def test_by_a_strategy_of_ones_own(self) -> None:
        """It may ask, and go by what it is told."""

        class Idle:
            def feedback(self, _member: Member[str]) -> Feedback:
                return Feedback()

            def __call__(self, members: tuple[Member[str], ...]) -> Pick[str]:
                return lambda: min(members, key=lambda m: (m.feedback or 0).in_flight)  # type: ignore[union-attr]  # it is there

        pool = Pool(targets(2), balancer=Idle())
        told(pool, "a").started()
        assert pool.pick().name == "b"

    def test_what_cannot_be_told(self) -> None:
        """A wrong answer is an error at the start, and later it is logged."""

        class Wrong(LeastOutstanding):
            answer: Any = Feedback()

            def feedback(self, _member: Member[Any]) -> Any:
                return self.answer

        strategy = Wrong()
        pool = Pool(targets(1), balancer=strategy)
        strategy.answer = "nonsense"
        with pytest.raises(InvalidSettingError, match=r"Wrong\.feedback"):
            Pool(targets(1), balancer=strategy)
        assert pool.add("x", "").feedback is None

    def test_what_cannot_forget(self, caplog: pytest.LogCaptureFixture) -> None:
        """A member is back all the same, and an error is logged."""

        class Told(Feedback):
            def forget(self) -> None:
                if hasattr(self, "noted"):
                    raise ValueError(self.in_flight)
                super().forget()

        class Curious(LeastOutstanding):
            feedback_class = Told

        pool = Pool(targets(2), balancer=Curious())
        pool.trip(pool.member("a"), 10.0, REFUSED)
        pool.recover(pool.member("a"))
        assert names(pool.live) == ["a", "b"]
        assert "forget" in caplog.text

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
    def test_a_child_starts_at_zero(self) -> None:
        """What its parent has in flight, and knows, is its parent's."""
        pool = Pool(targets(1), balancer="peak_ewma")
        found = told(pool, "a")
        found.finished(0.5)
        found.started()
        child = os.fork()
        if child == 0:
            pool.reshuffle()
            os._exit(found.in_flight + (found.latency is not None))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert (found.in_flight, found.latency) == (1, 0.5)


class Rig:
    """A pool whose members take as long as is said, one use after the other.

    Attributes:
        clock: Its clock.
        pool: The pool.
        seconds: How long each member takes.
        fails: Those that fail, in no time.
    """

    def __init__(self, strategy: Callable[..., Any], count: int = 3) -> None:
        self.clock = FakeClock()
        self.pool = Pool(targets(count), balancer=strategy(clock=self.clock))
        self.seconds = dict.fromkeys(targets(count), 0.005)
        self.fails: set[str] = set()
        self._running: list[tuple[float, Member[str]]] = []

    def run(self, users: int, seconds: float) -> tuple[dict[str, int], list[float]]:
        """Let users work without a break; return who served, and their waits."""
        served, waits = dict.fromkeys(self.seconds, 0), []
        until = self.clock.now + seconds
        while self.clock.now < until:
            while len(self._running) < users:
                member = self.pool.pick()
                told(self.pool, member.name).started()
                takes = (
                    0.001 if member.name in self.fails else self.seconds[member.name]
                )
                self._running.append((self.clock.now + takes, member))
                served[member.name] += 1
                waits.append(takes)
            self._running.sort(key=lambda one: one[0])
            ends, member = self._running.pop(0)
            self.clock.now = ends
            error = REFUSED if member.name in self.fails else None
            takes = 0.001 if error else self.seconds[member.name]
            told(self.pool, member.name).finished(takes, error)
        return served, sorted(waits)


@pytest.mark.parametrize("strategy", MEASURED)
class TestMeasured:
    """What all strategies with feedback have in common."""

    @pytest.mark.parametrize("slow", [0.05, 0.5])
    @pytest.mark.parametrize("users", [1, 8])
    def test_a_slow_member(
        self, strategy: Callable[..., Any], users: int, slow: float
    ) -> None:
        """Nearly nobody waits for it, as many are served, and it is not forgotten."""
        rig = Rig(strategy)
        before, _ = rig.run(users, 5.0)
        rig.seconds["b"] = slow
        served, _ = rig.run(users, 2.0)  # finds that out
        assert served["b"] <= 8 + users
        served, waits = rig.run(users, 60.0)
        assert waits[int(len(waits) * 0.99)] == 0.005
        assert sum(served.values()) / 60 > 0.8 * sum(before.values()) / 5
        assert served["b"] > 0
        rig.seconds["b"] = 0.005
        rig.run(users, 60.0)
        served, _ = rig.run(users, 60.0)
        assert served["b"] > 0.1 * sum(served.values())

    @pytest.mark.parametrize("users", [1, 8])
    def test_one_that_fails_fast(
        self, strategy: Callable[..., Any], users: int
    ) -> None:
        """It attracts nothing, from the start or later, and may come back."""
        rig = Rig(strategy)
        rig.fails.add("b")
        served, _ = rig.run(users, 20.0)
        assert served["b"] < 0.02 * sum(served.values())
        rig.fails = {"c"}
        rig.run(users, 60.0)
        served, _ = rig.run(users, 20.0)
        assert served["c"] < 0.02 * sum(served.values())
        assert served["b"] > 0.1 * sum(served.values())

    @pytest.mark.parametrize("users", [1, 8])
    def test_one_that_is_back(self, strategy: Callable[..., Any], users: int) -> None:
        """Once its breaker has closed, what its outage took is forgotten."""
        rig = Rig(strategy)
        rig.run(users, 5.0)
        for _ in range(3):
            use(told(rig.pool, "b"), 5.0)
            use(told(rig.pool, "b"), 5.0, REFUSED)
        member = rig.pool.member("b")
        rig.pool.trip(member, 10.0, REFUSED)
        rig.run(users, 10.0)
        rig.pool.recover(member)
        served, _ = rig.run(users, 2.0)
        assert served["b"] > 0.2 * sum(served.values())

    def test_all_fail(self, strategy: Callable[..., Any]) -> None:
        """Then somebody is picked all the same, and each in turn."""
        rig = Rig(strategy)
        rig.fails = set("abc")
        served, _ = rig.run(3, 5.0)
        assert min(served.values()) > 0.2 * sum(served.values())

    def test_an_untried_member(self, strategy: Callable[..., Any]) -> None:
        """A new one is tried soon, but by one use at a time."""
        rig = Rig(strategy)
        rig.run(2, 1.0)
        new = rig.pool.add("d", "")
        picked = []
        for _ in range(40):
            member = rig.pool.pick()
            told(rig.pool, member.name).started()
            picked.append(member)
        assert 1 <= picked.count(new) <= 11  # least_outstanding: as many as others


class TestLeastOutstanding:
    """The fewest uses."""

    @given(st.lists(st.integers(0, 5), min_size=2, max_size=8))
    def test_the_fewest(self, flights: list[int]) -> None:
        """One with the fewest is picked; those take turns."""
        pool = Pool(targets(len(flights)), balancer=LeastOutstanding)
        for member, many in zip(pool.members, flights, strict=True):
            for _ in range(many):
                told(pool, member.name).started()
        fewest = [
            member.name
            for member, many in zip(pool.members, flights, strict=True)
            if many == min(flights)
        ]
        assert tally(pool.pick, 10 * len(fewest)) == dict.fromkeys(fewest, 10)

    def test_by_weight(self) -> None:
        """One that weighs twice as much may have twice as many."""
        pool = Pool(targets(2), balancer=LeastOutstanding(), weights={"a": 2})
        for _ in range(300):
            told(pool, pool.pick().name).started()
        assert told(pool, "a").in_flight == 200

    def test_of_many(self) -> None:
        """Of more than eight, two random ones are compared."""
        pool = Pool({f"m{i}": "" for i in range(20)}, balancer=LeastOutstanding)
        for member in pool.members[:19]:
            told(pool, member.name).started()
        found = tally(pool.pick, 4000)
        assert 300 < found["m19"] < 500  # in a tenth of all pairs
        assert len(found) == 20
        for _ in range(2000):
            told(pool, pool.pick().name).started()
        shares = [told(pool, member.name).in_flight for member in pool.members]
        assert max(shares) - min(shares) <= 6


class TestPeakEwma:
    """Latency and uses in flight."""

    def test_the_cheaper_of_two(self) -> None:
        """Twice as slow is as good as one more in flight."""
        clock = FakeClock()
        pool = Pool(targets(2), balancer=PeakEwma(clock=clock))
        use(told(pool, "a"), 0.010)
        use(told(pool, "b"), 0.019)
        assert tally(pool.pick, 20) == {"a": 20}
        told(pool, "a").started()
        assert tally(pool.pick, 20) == {"b": 20}

    def test_gently(self) -> None:
        """One that was slow is tried again after a while, once at a time."""
        clock = FakeClock()
        pool = Pool(targets(2), balancer=PeakEwma(clock=clock))
        use(told(pool, "a"), 0.010)
        use(told(pool, "b"), 0.5)
        clock.advance(50.0)
        use(told(pool, "a"), 0.010)
        assert pool.pick().name == "b"
        told(pool, "b").started()
        told(pool, "a").started()
        assert tally(pool.pick, 20) == {"a": 20}


class TestLatencyWindow:
    """About as fast as the fastest."""

    @pytest.mark.parametrize("count", [3, 8])
    def test_those_within(self, count: int) -> None:
        """All within the window take their parts; others nothing."""
        clock = FakeClock()
        pool = Pool(targets(count), balancer=LatencyWindow(20, clock=clock))
        for number, member in enumerate(pool.members):
            use(told(pool, member.name), 0.030 + 0.012 * number)
        assert names(pool.live)[:2] == ["a", "b"]
        found = tally(pool.pick, 4096)
        assert set(found) == {"a", "b"}
        assert abs(found["a"] - found["b"]) < 600

    def test_of_many(self) -> None:
        """So it is for any number, within a tenth of a second."""
        clock = FakeClock()
        pool = Pool(
            {f"m{i}": "" for i in range(20)}, balancer=LatencyWindow(clock=clock)
        )
        assert len(tally(pool.pick, 4096)) == 20
        for member in pool.members:
            use(told(pool, member.name), 0.001 if member.name == "m7" else 0.1)
        clock.advance(0.1)
        assert tally(pool.pick, 50) == {"m7": 50}


def zoned(**options: Any) -> Strategy[str]:
    """Return a strategy over a zone that all members are in."""
    return Zoned(LeastOutstanding(**options), "here", dict.fromkeys("abcd", "here"))


@pytest.mark.parametrize("strategy", [*MEASURED, zoned])
def test_with_slow_start_and_limit(strategy: Callable[..., Any]) -> None:
    """What a pool does besides works with each of them."""
    clock = FakeClock()
    pool = Pool(
        targets(4),
        balancer=strategy(clock=clock),
        slow_start=10.0,
        limit=3,
        clock=clock,
    )
    (spare,) = names(pool.spares)
    pool.drain(pool.live[0].name)
    assert spare in names(pool.live)
    assert tally(pool.pick, 3000)[spare] > 600
    clock.advance(20.0)
    back = next(name for name in "abcd" if name not in names(pool.live))
    pool.drain(spare)
    pool.restore(back)
    assert 50 < tally(pool.pick, 3000)[back] < 200
