"""How reads are spread over the replicas."""

from __future__ import annotations

import itertools
import pickle
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import pytest
from flask import request

from balancers import RoundRobin
from balancers.strategies import BALANCERS
from flask_replicated import ConfigurationError, FlaskReplicated
from tests.support import REPLICAS, Build, build_fixture, sqlite_url

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


def test_weights_in_vain(build: Build, caplog: pytest.LogCaptureFixture) -> None:
    """Weights beside a balancer that reads none are worth a WARNING, in settings."""
    extension = FlaskReplicated()
    site = build(
        extension=extension,
        REPLICATED_BALANCER="round_robin",
        REPLICATED_WEIGHTS={"slave_1": 2},
    )
    with site.app.app_context():
        extension.add("slave_4", sqlite_url(site.folder / "slave_4.db"), weight=3)
    assert len(caplog.records) == 2
    for record in caplog.records:
        assert (record.name, record.levelname) == ("flask_replicated", "WARNING")
        said = record.getMessage()
        for word in ("REPLICATED_BALANCER = 'round_robin'", "REPLICATED_WEIGHTS"):
            assert word in said
        assert "RoundRobin" not in said


@pytest.mark.parametrize("balancer", BALANCERS)
def test_weight_zero_takes_nothing(build: Build, balancer: str) -> None:
    """A replica that weighs 0 serves no read, whatever the balancer."""
    site = build(REPLICATED_BALANCER=balancer, REPLICATED_WEIGHTS={"slave_1": 0})
    others = {"slave_2", "slave_3"}
    assert set(site.count(40)) == (others if balancer != "first" else {"slave_2"})


def test_random_uses_every_replica(build: Build) -> None:
    """The random balancer reaches every replica and nothing else."""
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


class Unmakeable:
    """A class that fails when it is made."""

    def __init__(self) -> None:
        raise RuntimeError("no server is near")


async def awaited(members: Sequence[Member[object]]) -> Member[object]:
    """Be no balancer: it is never awaited."""
    return members[0]


@pytest.mark.parametrize(
    ("balancer", "why"),
    [
        (lambda: 1, "it must take the live members"),
        (lambda members, more: 1, "it must take the live members"),
        (lambda members: None, "it returned None"),
        (lambda members: members[0], "it returned <Member>|Member\\("),
        (lambda members: members[9].name, "IndexError"),
        (lambda members: lambda members: members[0], "pick function takes nothing"),
        (lambda members: lambda: members[0].name, "it picked 'slave_1'"),
        (lambda members: lambda: None, "it picked None"),
        (awaited, "it returned"),
        (lambda members: partial(awaited, members), "it picked"),
        (Unmakeable, "RuntimeError: no server is near"),
        ("tests.test_rotation.Unmakeable", "RuntimeError: no server is near"),
        ("tests..test_rotation", "no module|Empty|No module"),
    ],
)
def test_no_balancer(build: Build, balancer: object, why: str) -> None:
    """What cannot work is refused at the start, with the setting and the reason."""
    with pytest.raises(ConfigurationError, match=why) as caught:
        build(REPLICATED_BALANCER=balancer)
    error = caught.value
    assert error.key == "REPLICATED_BALANCER"
    assert "'round_robin'" in error.remedy
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_balancer_that_needs_a_request(build: Build) -> None:
    """A pick may ask for what is not there at the start."""

    def by_path(members: Sequence[Member[object]]) -> Callable[[], Member[object]]:
        return lambda: members[len(request.path) % len(members)]

    site = build(REPLICATED_BALANCER=by_path)
    assert site.count(3) == {"slave_2": 3}


def test_a_pick_that_fails_later(
    build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    """Reads go on when a balancer's pick function begins to fail."""

    def once(members: Sequence[Member[object]]) -> Callable[[], Member[object]]:
        return iter(members[:1]).__next__

    site = build(REPLICATED_BALANCER=once)
    assert set(site.count(9)) == set(REPLICAS)
    assert len(caplog.records) == 1
    assert "once" in caplog.text


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
