"""How reads are spread over the replicas."""

from __future__ import annotations

import itertools
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from balancers import RoundRobin
from tests.support import REPLICAS, Build, build_fixture

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from balancers import Member

build = build_fixture


def test_round_robin_is_even(build: Build) -> None:
    """Thirty reads by fresh clients are ten for each of three replicas."""
    assert build().count(30) == dict.fromkeys(REPLICAS, 10)


def test_round_robin_takes_turns(build: Build) -> None:
    """Each full turn reads once from every replica, in the same order."""
    site = build()
    turns = [[site.get() for _ in REPLICAS] for _ in range(4)]
    assert set(turns[0]) == set(REPLICAS)
    assert turns == [turns[0]] * 4


def test_weights_are_exact(build: Build) -> None:
    """Weights of 5, 3 and 1 share ninety reads as fifty, thirty and ten."""
    site = build(
        REPLICATED_BALANCER="weighted",
        REPLICATED_WEIGHTS={"slave_1": 5, "slave_2": 3, "slave_3": 1},
    )
    assert site.count(90) == {"slave_1": 50, "slave_2": 30, "slave_3": 10}


def test_weights_choose_their_balancer(build: Build) -> None:
    """Weights without a balancer are honoured all the same."""
    site = build(REPLICATED_WEIGHTS={"slave_1": 2})
    assert site.count(40) == {"slave_1": 20, "slave_2": 10, "slave_3": 10}


@pytest.mark.parametrize("balancer", ["round_robin", "random", "weighted"])
def test_weight_zero_takes_nothing(build: Build, balancer: str) -> None:
    """A replica that weighs 0 serves no read, whatever the balancer."""
    site = build(REPLICATED_BALANCER=balancer, REPLICATED_WEIGHTS={"slave_2": 0})
    assert set(site.count(40)) == {"slave_1", "slave_3"}


def test_random_uses_every_replica(build: Build) -> None:
    """The random balancer reaches every replica and nobody else."""
    assert set(build(REPLICATED_BALANCER="random").count(90)) == set(REPLICAS)


def test_threads_share_the_rotation(build: Build) -> None:
    """Eight threads with sixty reads each leave counts that differ by two at most."""
    site = build()
    with ThreadPoolExecutor(8) as threads:
        counts = threads.map(lambda _: site.count(60), range(8))
        total = sum(counts, Counter[str]())
    assert total.total() == 480
    assert max(total.values()) - min(total.values()) <= 2


def first_only(
    members: Sequence[Member[object]],
) -> Callable[[], Member[object]]:
    """Always pick the first live member: a balancer that a user may write."""
    return itertools.repeat(members[0]).__next__


class Backwards:
    """A balancer with options, as a class."""

    def __call__(
        self, members: Sequence[Member[object]]
    ) -> Callable[[], Member[object]]:
        """Go round from the last to the first."""
        return itertools.cycle(members[::-1]).__next__


@pytest.mark.parametrize(
    ("balancer", "expected"),
    [
        (first_only, {"slave_1": 6}),
        ("tests.test_rotation.first_only", {"slave_1": 6}),
        (RoundRobin, dict.fromkeys(REPLICAS, 2)),
        (RoundRobin(), dict.fromkeys(REPLICAS, 2)),
        (Backwards, dict.fromkeys(REPLICAS, 2)),
        (Backwards(), dict.fromkeys(REPLICAS, 2)),
        ("balancers.RoundRobin", dict.fromkeys(REPLICAS, 2)),
    ],
)
def test_own_balancer(build: Build, balancer: object, expected: dict[str, int]) -> None:
    """A balancer may be a callable, a class, an object or a dotted path."""
    assert build(REPLICATED_BALANCER=balancer).count(6) == expected


def test_each_pool_rotates_alone(build: Build) -> None:
    """Two applications with the same balancer do not share a turn."""
    first, second = build(), build()
    for _ in range(9):
        first.get()
        second.get()
    assert Counter(first.seen) == Counter(second.seen) == dict.fromkeys(REPLICAS, 3)


def test_asking_for_sql_takes_no_turn(build: Build) -> None:
    """A query that is only printed leaves the rotation where it is."""
    site = build()

    def printing() -> str:
        str(site.db.session.query(site.marker))
        str(site.marker.query)
        return site.who()

    site.app.add_url_rule("/print", "print", printing)
    assert site.count(30, "/print") == dict.fromkeys(REPLICAS, 10)


def test_a_request_without_reads_takes_no_turn(build: Build) -> None:
    """A request that reads nothing leaves the rotation where it is."""
    site = build()
    site.app.add_url_rule("/static-page", "page", lambda: "hello")
    for _ in range(30):
        site.get("/static-page")
        site.get()
    assert Counter(site.seen) == dict.fromkeys(REPLICAS, 10)
