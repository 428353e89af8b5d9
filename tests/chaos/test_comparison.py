"""Slower than in quiet times, or only on a machine that has its moods."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("psutil")
pytest.importorskip("rich")

from tests.chaos.comparison import compare, percentile, seconds_of
from tests.chaos.load import Record
from tests.chaos.outcome import Limits, Outcome
from tests.chaos.schedule import Strike

if TYPE_CHECKING:
    from collections.abc import Sequence

LIMITS = Limits(slowest=2.5, back=2.6)


def moods(seed: int, seconds: int, slower: float = 1.0) -> list[list[float]]:
    """Return some seconds of requests; in each fifth one or so, all are slow."""
    chance = random.Random(seed)
    return [
        [slower * mood * chance.uniform(0.005, 0.03) for _ in range(50)]
        for mood in (chance.choice((1, 1, 1, 1, 3)) for _ in range(seconds))
    ]


@pytest.mark.parametrize("seed", range(5))
def test_moods(seed: int) -> None:
    """Two times of the same kind do not surely differ."""
    found = compare(moods(seed, 40), moods(100 + seed, 40))
    assert found.least <= 1.2
    assert found.least <= found.ratio <= found.most


@pytest.mark.parametrize("seed", range(5))
def test_slower(seed: int) -> None:
    """Twice as slow is seen through all moods."""
    assert compare(moods(seed, 40), moods(100 + seed, 40, slower=2)).least > 1.2


def test_nothing() -> None:
    """Without any request there is nothing to say."""
    assert compare([], [[0.1]]).ratio == 0.0
    assert percentile([]) == 0.0


def record(began: float, took: float) -> Record:
    """Return a request."""
    return Record(began, began + took, True, "", False, "standby_1", 1, frozenset())


def outcome(name: str, records: Sequence[Record], back: float | None) -> Outcome:
    """Return what a fault did that struck at 100, and was repaired from 103 to 104."""
    strike = Strike(name, 0, 3.0)
    span = (100.0, 103.0, 104.0)
    return Outcome.of(strike, span, records, {"slave_1"}, LIMITS, back=back)


def test_seconds() -> None:
    """Requests of one second of the clock belong together."""
    times = [(1.2, 0.1), (1.9, 0.2), (2.0, 0.4)]
    assert seconds_of([record(*time) for time in times]) == [
        pytest.approx([0.1, 0.2]),
        pytest.approx([0.4]),
    ]


def test_calm() -> None:
    """The first second does not count, nor the time of a new copy."""
    times = [(100.5, 0.1), (102.0, 0.1), (102.9, 0.2), (103.5, 0.1), (104.5, 0.1)]
    records = [record(*time) for time in times]
    assert outcome("kill", records, 104.5).calm == records[1:]
    assert outcome("promotion", records, 104.5).calm == [records[1], records[4]]


def test_limits() -> None:
    """Settings say how long a request and a return may take."""
    config = {
        "REPLICATED_CONNECT_TIMEOUT": 1,
        "REPLICATED_PROBE_INTERVAL": 0.5,
        "REPLICATED_BREAKER_MAX_RESET": 2,
    }
    assert Limits.of(config) == LIMITS


def test_wrongs() -> None:
    """What takes longer is told."""
    well = [record(101.0, 2.4)]
    assert outcome("terminate", well, 106.5).wrongs == []
    slow = [record(101.0, 2.6)]
    assert outcome("terminate", slow, 106.7).wrongs == [
        "was used again after 2.7 s only",
        "somebody waited for 2.6 s",
    ]
    assert outcome("terminate", well, None).wrongs == ["was not used again"]
