"""A report for people, and what must hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rich import box
from rich.table import Table

from .outcome import calm, percentile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .outcome import Outcome
    from .run import Report

__all__ = ["Check", "checks", "faults_table", "summary_table"]

_IMBALANCE: Final = 1.1


@dataclass(frozen=True)
class Check:
    """Something that must hold, or is only told.

    Attributes:
        what: In a few words.
        observed: What was found.
        ok: Whether it holds; None if it need not.
    """

    what: str
    observed: str
    ok: bool | None


def checks(report: Report) -> Iterator[Check]:
    """Return what must hold, and whether it does."""
    wrongs = [
        f"{one.strike.name} {wrong}" for one in report.outcomes for wrong in one.wrongs
    ]
    yield Check("faults that visitors noticed", ", ".join(wrongs) or "0", not wrongs)
    yield Check("writes lost", str(len(report.lost)), not report.lost)
    yield Check("writes doubled", str(len(report.doubled)), not report.doubled)
    yield Check("writes not acknowledged", str(len(report.unknown)), None)
    held = report.held
    yield Check("connections checked out after the run", str(held), not held)
    grown = {pid: both for pid, both in report.threads.items() if both[0] < both[1]}
    counts = ", ".join(f"{one} -> {two}" for one, two in report.threads.values())
    yield Check("threads of each process, before and after", counts, not grown)
    shares = ", ".join(f"{name} {n}" for name, n in sorted(report.shares.items()))
    even = report.imbalance <= _IMBALANCE
    yield Check(
        f"survivors' shares: max/min at most {_IMBALANCE}",
        f"{report.imbalance:.3f} ({shares})",
        even,
    )
    quiet, busy = percentile(report.quiet), percentile(calm(report.outcomes))
    yield Check(
        "p99, quiet and outside the first second after a fault (ms)",
        f"{quiet * 1000:.1f}, {busy * 1000:.1f}",
        None,
    )


def faults_table(report: Report) -> Table:
    """Return a row for each fault."""
    columns = ("fault", "requests", "failed", "slowest (s)")
    times = ("left out after (s)", "used again after (s)", "p99 later (ms)", "")
    table = Table(*columns, *times, box=box.SIMPLE, padding=(0, 1))
    for one in report.outcomes:
        table.add_row(*_row(one))
    return table


def _row(one: Outcome) -> list[str]:
    later = [record.seconds for record in one.records if record.began > one.began + 1]
    return [
        one.strike.name,
        str(len(one.records)),
        str(one.errors.total()),
        f"{one.slowest:.2f}",
        _seconds(one.left_out),
        _seconds(one.used_again),
        f"{percentile(later) * 1000:.1f}",
        "NOT OK" if one.wrongs else "ok",
    ]


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.2f}"


def summary_table(report: Report) -> Table:
    """Return a row for each thing that must hold."""
    table = Table("what", "observed", "", box=box.SIMPLE, padding=(0, 1))
    words = {True: "ok", False: "NOT OK", None: ""}
    for check in checks(report):
        table.add_row(check.what, check.observed, words[check.ok])
    return table
