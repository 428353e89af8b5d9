"""Weights that change while others pick, and shares that are lower for a time."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from balancers import NoMemberAvailableError, Pool, UnknownMemberError
from balancers.errors import InvalidSettingError, InvalidWeightError, WeightsUnreadError
from balancers.events import MemberReweighted
from balancers.strategies import BALANCERS, reads_weights
from tests.balancers.support import FakeClock, Log, names, tally, targets

if TYPE_CHECKING:
    from balancers import Member, Pick

READ = [name for name, kind in BALANCERS.items() if reads_weights(kind)]


class TestReweight:
    """Pool.reweight()."""

    @pytest.mark.parametrize("balancer", READ)
    def test_is_a_patch(self, balancer: str) -> None:
        """Those that are named get new weights at once; the others keep theirs."""
        log = Log()
        pool = Pool(
            targets(3), balancer=balancer, weights={"b": 2}, listeners=[log], limit=3
        )
        a = pool.member("a")
        pool.reweight({"a": 5, "c": 1})
        assert pool.member("a") is a
        assert a.weight == 5
        counts = tally(pool.pick, 4096)
        for name, weight in {"a": 5, "b": 2, "c": 1}.items():
            assert abs(counts[name] - 512 * weight) <= 8
        assert [one.weight for one in pool.snapshot().members] == [5, 2, 1]
        assert log == [MemberReweighted("a", 5)]

    def test_zero_and_back(self) -> None:
        """A member of weight 0 is out; when it is back, its start is slow."""
        clock = FakeClock()
        pool = Pool(targets(2), balancer="weighted", slow_start=10.0, clock=clock)
        pool.reweight({"a": 0})
        assert names(pool.live) == ["b"]
        pool.reweight({"b": 0})
        with pytest.raises(NoMemberAvailableError, match="'a': weight 0"):
            pool.pick()
        pool.reweight({"b": 1})
        clock.advance(60.0)
        assert tally(pool.pick, 10) == {"b": 10}
        pool.reweight({"a": 1})
        assert 100 < tally(pool.pick, 4000)["a"] < 300

    @pytest.mark.parametrize("balancer", sorted({*BALANCERS} - {*READ}))
    def test_where_none_are_read(self, balancer: str) -> None:
        """It would be in vain."""
        with pytest.raises(WeightsUnreadError, match=r"RoundRobin\(\)|First\(\)"):
            Pool(targets(2), balancer=balancer).reweight({"a": 2})

    @pytest.mark.parametrize(
        ("weights", "error"),
        [
            ({"b": 2, "x": 3}, UnknownMemberError),
            ({"b": 2, "a": -1}, InvalidWeightError),
            ({"b": 2, "a": 1.5}, InvalidWeightError),
            ({"b": 2, "a": True}, InvalidWeightError),
        ],
    )
    def test_all_or_nothing(
        self, weights: dict[str, Any], error: type[Exception]
    ) -> None:
        """After an error each has the weight that it had."""
        pool = Pool(targets(2), balancer="weighted")
        with pytest.raises(error):
            pool.reweight(weights)
        assert [member.weight for member in pool.members] == [1, 1]

    def test_a_strategy_of_ones_own(self) -> None:
        """It is called again, with the weights there are now; None are too."""

        def heaviest(live: tuple[Member[str], ...]) -> Pick[str]:
            best = max(live, key=lambda member: member.weight)
            return lambda: best

        pool = Pool(targets(3), balancer=heaviest)
        for name in "bca":
            pool.reweight({name: max(one.weight for one in pool.members) + 1})
            assert tally(pool.pick, 3) == {name: 3}


class TestReduce:
    """Pool.reduce()."""

    @pytest.mark.parametrize("balancer", [*BALANCERS])
    def test_a_part(self, balancer: str) -> None:
        """Whatever the balancer, one takes that part of what it would have."""
        full = tally(Pool(targets(4), balancer=balancer).pick, 4096)["a"]
        pool = Pool(targets(4), balancer=balancer)
        pool.reduce(pool.member("a"), 0.5)
        found = tally(pool.pick, 4096)
        assert abs(found["a"] - full / 2) < 200
        assert pool.member("a").weight == 1
        pool.reduce(pool.member("a"), 1)
        assert "pick" not in repr(pool.pick) or balancer not in {"round_robin", "first"}

    def test_relative_to_the_best(self) -> None:
        """Where all are reduced, those that are least take their full share."""
        pool = Pool(targets(3))
        for name, share in {"a": 0.25, "b": 0.5, "c": 0.5}.items():
            pool.reduce(pool.member(name), share)
        found = tally(pool.pick, 6000)
        assert 850 < found["a"] < 1150
        pool.remove("b")
        pool.remove("c")
        assert tally(pool.pick, 10) == {"a": 10}

    @pytest.mark.parametrize("share", [0, -1, 1.5, True, None, float("nan")])
    def test_no_share(self, share: Any) -> None:
        """A share is above 0, so that nobody starves, and 1 at most."""
        pool = Pool(targets(2))
        with pytest.raises(InvalidSettingError, match="share"):
            pool.reduce(pool.member("a"), share)


def test_by_many_threads() -> None:
    """What is published last is what the weights say, and no pick ever fails."""
    pool = Pool(targets(4), balancer="weighted")

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(150):
            if seed < 3:
                pool.reweight({chance.choice("abc"): chance.randrange(4)})
            else:
                assert pool.pick().name in "abcd"
                assert set(names(pool.candidates())) <= set("abcd")

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(work, range(6)))
    weights = {one.name: one.weight for one in pool.members if one.weight}
    assert tally(pool.pick, sum(weights.values())) == weights
