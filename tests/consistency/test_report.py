"""What is told of a run, worked out from histories that are made up."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("psutil")
pytest.importorskip("rich")

from tests.consistency.checker import Kind
from tests.consistency.history import Look, Operation
from tests.consistency.plan import Plan
from tests.consistency.report import Report, report_of
from tests.consistency.run import Result

WROTE = Operation(1, 0.0, 1.0, wrote=(0, 1))


def read(began: float, version: int, *servers: str, **fields: Any) -> Operation:
    """Return a read of one register."""
    looks = tuple(Look(server, (version,)) for server in servers)
    return Operation(1, began, began + 0.5, looks, **fields)


def reported(*history: Operation, shown: float | None = None, **plan: Any) -> Report:
    """Return the report of a run in which ``primary`` took the writes until 10 s.

    Args:
        history: Of the run.
        shown: When a replica showed version 1; None for never.
        plan: What the run was to do.
    """
    result = Result(Plan(**plan), history)
    result.primaries += [(0.0, "primary"), (10.0, "standby_1")]
    result.away = (10.0, 11.0)
    if shown is not None:
        result.watch.add("standby_2", shown, (1,))
    return report_of(result)


def test_shares() -> None:
    """Reads are counted by who served, and those after a write once more."""
    found = reported(
        read(2.0, 1, "primary"), read(3.0, 1, "standby_1"), read(7.0, 1, "standby_2"),
        WROTE, shown=1.05,
    )  # fmt: skip

    assert (found.reads.replicas, found.reads.all) == (2, 3)
    assert (found.after_write.replicas, found.after_write.all) == (1, 2)
    assert (found.caught_up.replicas, found.caught_up.all) == (1, 2)


@pytest.mark.parametrize("shown", [None, 1.2, 1.09])
def test_caught_up(shown: float | None) -> None:
    """A read counts where a replica showed the write within 100 ms, and before it."""
    found = reported(WROTE, read(1.08, 1, "primary"), shown=shown)
    assert found.caught_up.all == 0
    found = reported(WROTE, read(1.1, 1, "primary"), shown=shown)
    assert found.caught_up.all == (shown == 1.09)


def test_the_primary_does_not_catch_up() -> None:
    """A replica that was promoted shows a write at once, and counts as no replica."""
    wrote = Operation(1, 12.0, 13.0, wrote=(0, 1))
    result = Result(Plan(), [wrote, read(13.5, 1, "standby_1")])
    result.primaries += [(0.0, "primary"), (10.0, "standby_1")]
    result.watch.add("standby_1", 13.01, (1,))

    assert report_of(result).caught_up.all == 0
    result.watch.add("standby_2", 13.01, (1,))
    assert report_of(result).caught_up.all == 1


def test_a_promoted_replica() -> None:
    """A replica that was promoted counts as the primary from then on."""
    found = reported(read(9.0, 1, "standby_1"), read(12.0, 1, "standby_1"))
    assert (found.reads.replicas, found.reads.all) == (1, 2)


def test_moved() -> None:
    """A read that went on elsewhere is counted."""
    one, two = read(1, 1, "standby_1", "standby_2"), read(2, 1, "primary", "primary")
    assert reported(one, two).moved == 1


def test_failures() -> None:
    """Failures are told apart: those for want of a primary, and the others."""
    found = reported(read(2.0, 0, error="GET: x"), read(10.5, 0, error="GET: y"))
    assert dict(found.failed) == {"GET: x": 1}
    assert found.away == 1


@pytest.mark.parametrize(
    ("plan", "broken"),
    [
        ({"guarantee": "none"}, False),
        ({"guarantee": "read_your_writes", "pin": "time", "lag": 1.0}, True),
        ({"guarantee": "read_your_writes", "pin": "time", "lag": 6.0}, False),
    ],
)
def test_promised(plan: dict[str, Any], broken: bool) -> None:
    """An anomaly is an error where the settings promise that there is none."""
    found = reported(WROTE, read(2.0, 0, "standby_1"), **plan)

    assert [one.kind for one in found.anomalies] == [Kind.READ_YOUR_WRITES]
    assert bool(found.broken()) is broken


CROSSED = (
    WROTE._replace(carried="a", stored="b"),
    read(0.5, 0, "standby_1", worker=2, carried="a", stored="c"),
    read(2.0, 0, "standby_1", carried="c"),
)


@pytest.mark.parametrize(
    ("workers", "store", "broken"),
    [
        (2, "cookie", False),
        (2, "session", False),
        (1, "cookie", True),
        (2, "header", True),
        (2, "redis", True),
    ],
)
def test_crossed(workers: int, store: str, broken: bool) -> None:
    """Answers that crossed excuse two workers whose store is a cookie, no other."""
    found = reported(*CROSSED, workers=workers, store=store)

    assert found.count(Kind.READ_YOUR_WRITES) == 1
    assert bool(found.broken()) is broken


@pytest.mark.parametrize(
    ("plan", "server", "enough"),
    [
        ({}, "primary", False),
        ({}, "standby_2", True),
        ({"guarantee": "none"}, "primary", False),
        ({"pin": "time"}, "primary", None),
    ],
)
def test_replicas_are_used(
    plan: dict[str, Any], server: str, enough: bool | None
) -> None:
    """With positions, replicas must serve half of what they could have shown."""
    found = reported(WROTE, read(1.2, 1, server), shown=1.05, **plan)

    assert found.uses_replicas is enough


def test_the_order_of_writes_is_always_promised() -> None:
    """Writes in a wrong order are an error under any guarantee, and never excused."""
    again = Operation(1, 2.0, 3.0, wrote=(0, 1), carried="c")
    found = reported(*CROSSED[:2], again, guarantee="none")

    kinds = {one.kind for one in found.broken()}
    assert kinds == {Kind.MONOTONIC_WRITES, Kind.LOST_WRITES}
