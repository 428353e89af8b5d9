"""What a run must hold to, worked out from requests that are made up."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("psutil")
pytest.importorskip("rich")

from tests.chaos.comparison import compare, percentile, seconds_of
from tests.chaos.databases import POSTGRESQL
from tests.chaos.load import Record
from tests.chaos.outcome import Limits, Outcome
from tests.chaos.run import Report
from tests.chaos.schedule import Strike
from tests.chaos.table import checks

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
    strike = Strike(name, POSTGRESQL.faults[name], 0, 3.0)
    span = (99.0, 100.0, 103.0, 104.0)
    return Outcome.of(strike, span, records, {"slave_1"}, LIMITS, back=back)


def test_seconds() -> None:
    """Requests of one second of the clock belong together."""
    times = [(1.2, 0.1), (1.9, 0.2), (2.0, 0.4)]
    assert seconds_of([record(*time) for time in times]) == [
        pytest.approx([0.1, 0.2]),
        pytest.approx([0.4]),
    ]


def test_calm() -> None:
    """The repair does not count, nor the first second after it and after the strike."""
    times = [(100.5, 0.1), (102, 0.1), (102.9, 0.2), (103.5, 0.1), (104.5, 0.1)]
    records = [record(*time) for time in [*times, (105.5, 0.1)]]
    found = outcome("kill", records, 104.5)
    assert found.calm == [records[1], records[5]]
    assert found.repair == set(records[2:5])


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


def report(took: float = 0.01, **changes: Any) -> Report:
    """Return what a run found in which all is well, but for what is changed."""
    quiet = [record(at / 100, 0.01) for at in range(2000)]
    busy = [record(106 + at / 100, took) for at in range(2000)]
    fields = {
        "quiet": [quiet],
        "outcomes": [outcome("terminate", busy, 104.5)],
        "shares": Counter(standby_2=500, standby_3=500),
    }
    return Report(LIMITS, **{**fields, **changes})


@pytest.mark.parametrize(
    ("found", "failing"),
    [
        (report(), ""),
        (report(failed=1), "requests that failed"),
        (report(slowest=2.6), "slowest request"),
        (report(lost={"a"}), "writes lost"),
        (report(doubled={"a"}), "writes doubled"),
        (report(held=1), "connections checked out"),
        (report(threads={7: (2, 3)}), "threads of each process"),
        (report(shares=Counter(standby_2=525, standby_3=475)), "survivors' shares"),
        (report(took=0.013), "p99"),
        (report(took=0.0115), ""),
    ],
)
def test_checks(found: Report, failing: str) -> None:
    """One figure that does not hold fails the run, and is named."""
    wrong = [check.what for check in checks(found) if check.ok is False]
    assert [what for what in wrong if not what.startswith(failing)] == []
    assert len(wrong) == bool(failing)


@pytest.mark.parametrize("back", [None, 106.7])
def test_not_used_again(back: float | None) -> None:
    """A replica that does not return in time fails the run."""
    late = report(outcomes=[outcome("terminate", [record(102, 0.1)], back)])
    wrong = [check.what for check in checks(late) if check.ok is False]
    assert any(what.startswith("used again") for what in wrong)


def test_too_few() -> None:
    """Of some few requests a 99th percentile says nothing."""
    few = report(took=9.0, quiet=[[record(1, 0.01)] * 100], outcomes=[])
    (figure,) = [check for check in checks(few) if check.what.startswith("p99")]
    assert figure.ok is None
