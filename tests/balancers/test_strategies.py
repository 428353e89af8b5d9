"""What every balancer promises, and what each one adds."""

from __future__ import annotations

import sys
from functools import partial
from itertools import cycle
from random import randrange
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from balancers import (
    First,
    LatencyWindow,
    LeastOutstanding,
    Member,
    NoMemberAvailableError,
    PeakEwma,
    Pick,
    Pool,
    Random,
    RoundRobin,
    Strategy,
    Weighted,
    Zoned,
)
from balancers._sequences import shared_rotation, spread
from balancers.errors import InvalidSettingError, UnknownBalancerError
from balancers.strategies import BALANCERS, MAX_STEPS, resolve_balancer
from tests.balancers.support import members, names, tally

if TYPE_CHECKING:
    from collections.abc import Sequence


def by_hand(live: tuple[Member[str], ...]) -> Pick[str]:
    """Return a pick function as a user would write it."""
    return cycle(live).__next__


def by_counter(live: tuple[Member[str], ...]) -> Pick[str]:
    """Rotate as on an interpreter without a lock."""
    return shared_rotation(live, randrange(len(live)))


class NeedsArgument:
    """A class that cannot be made without arguments."""

    def __init__(self, number: int) -> None:
        self.number = number


class BalancerContract:
    """The tests that hold for every balancer; a subclass says which one."""

    def balancer(self) -> Strategy[str]:
        """Return the balancer under test."""
        raise NotImplementedError

    @pytest.mark.parametrize("count", [1, 2, 3, 17])
    def test_picks_only_what_it_was_given(self, count: int) -> None:
        """Every pick is one of the members handed in, the same object."""
        live = members([1] * count)
        pick = self.balancer()(live)
        assert all(pick() in live for _ in range(100))

    @pytest.mark.parametrize("count", [1, 2, 3, 9, 17])
    def test_reaches_everybody(self, count: int) -> None:
        """No live member is left out for good."""
        pick = self.balancer()(members([1] * count))
        assert len(tally(pick, 100 * count)) == count

    def test_a_single_member_takes_all(self) -> None:
        """With one member every pick is that one, whatever its weight."""
        pick = self.balancer()(members([7]))
        assert tally(pick, 20) == {"m0": 20}

    def test_starts_at_a_random_place(self) -> None:
        """Fresh pick functions do not all begin with the same member."""
        live, balancer = members([1, 1, 1]), self.balancer()
        assert len({balancer(live)().name for _ in range(100)}) == 3

    def test_pick_functions_are_independent(self) -> None:
        """One instance serves several pools without mixing them up."""
        balancer = self.balancer()
        one, other = balancer(members([1, 1])), balancer(members([1, 1, 1]))
        assert set(tally(other, 60)) == {"m0", "m1", "m2"}
        assert set(tally(one, 60)) == {"m0", "m1"}

    def test_leaves_its_argument_alone(self) -> None:
        """The tuple of members is only read."""
        live = members([2, 1])
        self.balancer()(live)()
        assert names(live) == ["m0", "m1"]


class ShippedContract(BalancerContract):
    """The tests for the balancers of this package."""

    @pytest.mark.parametrize("weights", [[], [0], [0, 0]])
    def test_refuses_to_pick_from_nobody(self, weights: list[int]) -> None:
        """Without a member that takes traffic it says so at once."""
        with pytest.raises(NoMemberAvailableError):
            self.balancer()(members(weights))

    def test_weight_zero_is_never_picked(self) -> None:
        """A member of weight 0 takes no traffic."""
        pick = self.balancer()(members([1, 0, 1]))
        assert set(tally(pick, 60)) == {"m0", "m2"}

    def test_repr_is_short(self) -> None:
        """The repr is the way to write it."""
        balancer = self.balancer()
        assert repr(balancer) == f"{type(balancer).__name__}()"

    def test_tells_where_it_reads_no_weights(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A pool warns of weights exactly where they make no difference."""
        balancer = self.balancer()
        pool = Pool({"a": "1", "b": "2"}, balancer=balancer, weights={"a": 3})
        counts = tally(pool.pick, MAX_STEPS)
        warnings = [one for one in caplog.records if one.levelname == "WARNING"]
        assert bool(warnings) == (counts["a"] == counts["b"])
        assert all(repr(balancer) in one.getMessage() for one in warnings)


class TestRoundRobin(ShippedContract):
    """Each in turn."""

    def balancer(self) -> Strategy[str]:
        """Return the balancer under test."""
        return RoundRobin()

    @given(st.integers(1, 20), st.integers(0, 50), st.integers(0, 100))
    def test_any_window_is_even(self, count: int, skip: int, picks: int) -> None:
        """Over any run of picks, counts differ by at most one."""
        pick = self.balancer()(members([1] * count))
        tally(pick, skip)
        counts = tally(pick, picks)
        shares = [counts[f"m{i}"] for i in range(count)]
        assert max(shares) - min(shares) <= 1

    def test_is_the_cycle_itself(self) -> None:
        """With an interpreter lock the pick is a C function, without a check."""
        pick = self.balancer()(members([1, 1]))
        assert isinstance(getattr(pick, "__self__", None), cycle)


class TestSharedRotation(BalancerContract):
    """Each in turn, by a counter."""

    def balancer(self) -> Strategy[str]:
        """Return the balancer under test."""
        return by_counter

    def test_is_used_without_an_interpreter_lock(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """On a free-threaded interpreter no cycle is shared, and the order is kept."""
        monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
        pick = RoundRobin()(members([1, 1, 1]))
        assert not isinstance(getattr(pick, "__self__", None), cycle)
        assert tally(pick, 30) == {"m0": 10, "m1": 10, "m2": 10}


class TestRandom(ShippedContract):
    """By chance."""

    def balancer(self) -> Strategy[str]:
        """Return the balancer under test."""
        return Random()

    def test_follows_weights(self) -> None:
        """Over one sequence every member is picked exactly in proportion to weight."""
        counts = tally(self.balancer()(members([7, 1])), MAX_STEPS)
        assert counts == {"m0": MAX_STEPS * 7 // 8, "m1": MAX_STEPS // 8}

    def test_order_is_by_chance(self) -> None:
        """Picks do not alternate: the same member comes several times in a row."""
        pick = self.balancer()(members([1, 1]))
        assert longest_run([pick().name for _ in range(1000)]) > 3


WEIGHTS = st.lists(st.integers(1, 60), min_size=1, max_size=8)


class TestWeighted(ShippedContract):
    """In turn and by weight."""

    def balancer(self) -> Strategy[str]:
        """Return the balancer under test."""
        return Weighted()

    @given(WEIGHTS, st.integers(0, 500))
    @example([10, 20, 30], 0)
    def test_is_exact_over_a_cycle(self, weights: list[int], skip: int) -> None:
        """Any window as long as the sum of weights gives every member its weight."""
        pick = self.balancer()(members(weights))
        tally(pick, skip)
        counts = tally(pick, sum(weights))
        assert [counts[f"m{i}"] for i in range(len(weights))] == weights

    def test_spreads_a_heavy_member(self) -> None:
        """A member with more than half the weight comes in short runs, not bursts."""
        pick = self.balancer()(members([100, 50, 25, 1]))
        assert longest_run([pick().name for _ in range(352)]) <= 3

    def test_has_no_bursts(self) -> None:
        """Weights 5, 1, 1 keep the light ones apart, as in nginx's own example."""
        pick = self.balancer()(members([5, 1, 1]))
        seen = "".join(pick().name[1] for _ in range(14))
        assert "0010020" in seen + seen

    @given(st.lists(st.integers(1, 40), min_size=1, max_size=60))
    @example([1] * 60)
    @example([*range(1, 61)])
    @example([600, *[1] * 59])
    def test_nobody_is_a_whole_pick_ahead_or_behind(self, weights: list[int]) -> None:
        """At each step of a cycle, counts are within 1 of the exact shares."""
        counts, total = [0] * len(weights), sum(weights)
        for step, index in enumerate(spread(weights), 1):
            counts[index] += 1
            exact = [weight * step for weight in weights]
            assert all(
                abs(count * total - part) < total
                for count, part in zip(counts, exact, strict=True)
            )
        assert counts == weights

    @given(st.lists(st.integers(1, 10**12), min_size=1, max_size=5))
    @example([10_000_019, 1])
    def test_large_weights_are_bounded(self, weights: list[int]) -> None:
        """However large the weights, a short cycle comes near, and leaves none out."""
        steps = MAX_STEPS + len(weights)
        counts = tally(self.balancer()(members(weights)), steps)
        for i, weight in enumerate(weights):
            ideal = weight / sum(weights) * steps
            assert counts[f"m{i}"] >= 1
            assert abs(counts[f"m{i}"] - ideal) <= 2 * len(weights) + 1


class TestLeastOutstanding(ShippedContract):
    """Who has the fewest uses; see test_feedback.py for what it makes of those."""

    def balancer(self) -> Strategy[str]:
        """Return the balancer under test."""
        return LeastOutstanding()

    @given(WEIGHTS)
    def test_ties_take_turns(self, weights: list[int]) -> None:
        """Where nobody is in use, it is the weighted round robin."""
        counts = tally(self.balancer()(members(weights)), sum(weights))
        assert [counts[f"m{i}"] for i in range(len(weights))] == weights


class TestPeakEwma(ShippedContract):
    """The better of two."""

    def balancer(self) -> Strategy[str]:
        """Return the balancer under test."""
        return PeakEwma()


class TestLatencyWindow(ShippedContract):
    """Who is about as fast as the fastest."""

    def balancer(self) -> Strategy[str]:
        """Return the balancer under test."""
        return LatencyWindow()

    def test_repr_is_short(self) -> None:
        """The repr is the way to write it."""
        assert repr(self.balancer()) == "LatencyWindow(milliseconds=10)"

    @pytest.mark.parametrize("wrong", [0, -1, True, "10", float("inf"), float("nan")])
    def test_a_wrong_window(self, wrong: Any) -> None:
        """It is a number above 0."""
        with pytest.raises(InvalidSettingError, match="milliseconds"):
            LatencyWindow(milliseconds=wrong)


class TestFirst(ShippedContract):
    """One after the other, in their order."""

    def balancer(self) -> Strategy[str]:
        """Return the balancer under test."""
        return First()

    @pytest.mark.parametrize("count", [1, 3])
    def test_reaches_everybody(self, count: int) -> None:
        """The second takes all once the first is out, and so on."""
        pool = Pool(dict.fromkeys("abc", ""), balancer="first")
        found = []
        for name in "abc"[:count]:
            found.append(tally(pool.pick, 10))
            pool.drain(name)
        assert found == [{"a": 10}, {"b": 10}, {"c": 10}][:count]

    def test_starts_at_a_random_place(self) -> None:
        """It does not."""
        assert {self.balancer()(members([1, 1]))().name for _ in range(20)} == {"m0"}

    def test_pick_functions_are_independent(self) -> None:
        """One instance serves several pools without mixing them up."""
        balancer = self.balancer()
        one, other = balancer(members([1, 1])), balancer(members([0, 1]))
        assert (other().name, one().name) == ("m1", "m0")

    def test_weight_zero_is_never_picked(self) -> None:
        """A member of weight 0 takes no traffic."""
        assert tally(self.balancer()(members([0, 1, 1])), 6) == {"m1": 6}

    def test_tells_where_it_reads_no_weights(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A pool warns of weights."""
        Pool({"a": "1", "b": "2"}, balancer=self.balancer(), weights={"a": 3})
        assert "First() reads no weights" in caplog.text

    def test_the_next_to_try(self) -> None:
        """Where the first fails, the others are tried in their order."""
        pool = Pool(dict.fromkeys("abcdef", ""), balancer=First)
        assert "".join(names(pool.candidates())) == "abcdef"

    def test_a_limit_keeps_the_order(self) -> None:
        """A process that uses a few uses the first ones."""
        pool = Pool(dict.fromkeys("abcdef", ""), balancer=First, limit=2)
        assert names(pool.live) == ["a", "b"]
        assert names(pool.spares) == ["c", "d", "e", "f"]


class TestZoned(ShippedContract):
    """Another one, where all members are local."""

    def balancer(self) -> Strategy[str]:
        """Return the balancer under test."""
        return Zoned(RoundRobin(), "here", {f"m{i}": "here" for i in range(17)})

    def test_repr_is_short(self) -> None:
        """The repr is the way to write it."""
        text = repr(Zoned(First(), "a", {"b": "a"}))
        assert text == "Zoned(First(), 'a', {'b': 'a'})"


ZONES = {"a": "east", "b": "east", "c": "west"}


class TestZones:
    """The local zone first."""

    def pool(self, zone: str = "east", **options: Any) -> Pool[str]:
        """Return a pool of two, one, and one without a zone."""
        balancer = Zoned("weighted", zone, ZONES)
        return Pool(dict.fromkeys("abcd", ""), balancer=balancer, **options)

    def test_local_ones(self) -> None:
        """Only they are picked, while one of them is live."""
        pool = self.pool(weights={"a": 3})
        assert tally(pool.pick, 40) == {"a": 30, "b": 10}
        pool.drain("a")
        assert tally(pool.pick, 40) == {"b": 40}

    def test_all_others(self) -> None:
        """With no local one live, all others are, and one without a zone is another."""
        pool = self.pool("west")
        pool.drain("c")
        assert tally(pool.pick, 30) == {"a": 10, "b": 10, "d": 10}
        pool.restore("c")
        assert tally(pool.pick, 30) == {"c": 30}
        assert tally(self.pool("north").pick, 40) == dict.fromkeys("abcd", 10)

    def test_a_local_one_of_weight_zero(self) -> None:
        """It takes nothing, and so leaves all to the others."""
        pick = Zoned(RoundRobin, "east", {"m0": "east"})(members([0, 1, 1]))
        assert set(tally(pick, 20)) == {"m1", "m2"}

    def test_the_next_to_try(self) -> None:
        """Where one fails, the other local one comes before all others."""
        for _ in range(20):
            found = names(self.pool().candidates())
            assert set(found[:2]) == {"a", "b"}
            assert set(found[2:]) == {"c", "d"}

    def test_with_a_limit(self) -> None:
        """A process that uses a few uses local ones."""
        for _ in range(20):
            pool = self.pool(limit=2)
            assert names(pool.live) == ["a", "b"]
            pool.drain("a")
            assert "b" in names(pool.live)

    def test_over_an_order(self) -> None:
        """Local ones in their order, then the others in theirs."""
        balancer = Zoned(First(), "west", {"c": "west", "e": "west"})
        pool = Pool(dict.fromkeys("abcdef", ""), balancer=balancer, limit=4)
        assert names(pool.live) == ["a", "b", "c", "e"]
        assert "".join(names(pool.candidates())) == "ceabdf"

    @pytest.mark.parametrize("wrong", [None, "", 3])
    def test_a_wrong_zone(self, wrong: Any) -> None:
        """A zone has a name: a member without a zone is in none."""
        with pytest.raises(InvalidSettingError, match="zone"):
            Zoned(RoundRobin(), wrong, {})

    def test_no_more_than_the_strategy(self) -> None:
        """It reads weights and asks for feedback where the strategy does."""
        for inner in (RoundRobin(), Weighted(), PeakEwma()):
            zoned = Zoned(inner, "east", ZONES)
            assert zoned.reads_weights == inner.reads_weights
            assert hasattr(zoned, "feedback") == hasattr(inner, "feedback")


class TestByHand(BalancerContract):
    """A user's own callable."""

    def balancer(self) -> Strategy[str]:
        """Return the balancer under test."""
        return partial(shuffled, RoundRobin())


def shuffled(inner: Strategy[str], live: tuple[Member[str], ...]) -> Pick[str]:
    """Apply a balancer to the members in another order."""
    return inner(live[::-1])


def longest_run(seen: Sequence[str]) -> int:
    """Return how often something came in a row, at most."""
    best = run = 0
    before = None
    for one in seen:
        run = run + 1 if one == before else 1
        best, before = max(best, run), one
    return best


class TestMember:
    """What can be picked."""

    def test_repr_hides_the_target(self) -> None:
        """A target may hold a password, so the repr leaves it out."""
        text = repr(Member("a", "postgresql://u:secret@h/db", 2))
        assert text == "Member(name='a', weight=2)"

    def test_is_frozen_and_slim(self) -> None:
        """A member cannot be changed and has no dict."""
        member = Member[str]("a", "t", 1)
        with pytest.raises(AttributeError):
            member.weight = 2
        assert not hasattr(member, "__dict__")

    def test_is_equal_to_itself_alone(self) -> None:
        """Two members that look alike are two members."""
        assert Member("a", "t", 1) != Member("a", "t", 1)
        assert len({Member("a", [], 1), Member("a", [], 1)}) == 2


class TestResolveBalancer:
    """From configuration to a balancer."""

    @pytest.mark.parametrize("name", sorted(BALANCERS))
    def test_a_name(self, name: str) -> None:
        """A short name stands for a new instance of its class."""
        assert type(resolve_balancer(name)) is BALANCERS[name]

    @pytest.mark.parametrize(
        "path",
        ["balancers.Weighted", "balancers:Weighted", "balancers.strategies:Weighted"],
    )
    def test_a_dotted_path(self, path: str) -> None:
        """A dotted path to a class gives an instance of it."""
        assert isinstance(resolve_balancer(path), Weighted)

    def test_a_class_an_instance_a_function(self) -> None:
        """A class is instantiated; any other callable is taken as it is."""
        instance = Weighted()
        assert isinstance(resolve_balancer(Random), Random)
        assert resolve_balancer(instance) is instance
        assert resolve_balancer(by_hand) is by_hand
        assert resolve_balancer(f"{__name__}:by_hand") is by_hand

    @pytest.mark.parametrize(
        "value",
        [
            *("", ".", ":", "x", "roundrobin", "balancers.", "no.such.module"),
            *("math.pi", "balancers:Nothing", "balancers.MAX_STEPS", ".relative.path"),
        ],
    )
    def test_an_unknown_name(self, value: str) -> None:
        """A name that leads nowhere is an error with the name and the known ones."""
        with pytest.raises(UnknownBalancerError) as caught:
            resolve_balancer(value)
        assert caught.value.value == value
        assert caught.value.known == tuple(BALANCERS)
        assert repr(value) in str(caught.value)
        assert "'round_robin'" in str(caught.value)

    @pytest.mark.parametrize("value", [None, 3, [], NeedsArgument])
    def test_no_balancer_at_all(self, value: object) -> None:
        """A value that cannot be called, or a class that needs arguments, fails."""
        with pytest.raises(UnknownBalancerError):
            resolve_balancer(value)

    def test_the_names_are_fixed(self) -> None:
        """The table of names cannot be changed by its users."""
        with pytest.raises(TypeError):
            BALANCERS["mine"] = RoundRobin  # type: ignore[index]  # that is the point
        assert " ".join(BALANCERS) == (
            "round_robin random weighted least_outstanding peak_ewma latency_window "
            "first"
        )
