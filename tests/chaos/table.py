"""A report for people, and what must hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rich import box
from rich.table import Table

from .comparison import compare, percentile, seconds_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .comparison import Comparison
    from .load import Record
    from .outcome import Outcome
    from .run import Report

__all__ = ["Check", "checks", "faults_table", "summary_table"]

_IMBALANCE: Final = 1.1
_SLOWER: Final = 1.2
_ENOUGH: Final = 2000
"""Requests; of fewer, a 99th percentile is made by some twenty."""


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
    failed = f"{report.failed} of {report.requests}"
    yield Check("requests that failed, from first to last", failed, not report.failed)
    yield Check(
        "requests that went on from a standby to a primary that showed a commit a "
        "moment later than that",
        str(report.ahead),
        None,
    )
    yield Check(
        "requests that needed the primary while a fault had struck it",
        str(report.excused),
        None,
    )
    yield Check("writes lost", str(len(report.lost)), not report.lost)
    yield Check("writes doubled", str(len(report.doubled)), not report.doubled)
    yield Check("writes not acknowledged", str(len(report.unknown)), None)
    yield from _times(report)
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
    yield _slower(report)
    told = _in_words(_against_quiet(report, lambda one: one.repair))
    yield Check("the same (ms) of repairs and the first second after each", told, None)


def _times(report: Report) -> Iterator[Check]:
    limit = report.limits
    yield Check(
        f"slowest request (s): at most {limit.slowest:g}, which is connect timeout + "
        "probe interval + 1",
        f"{report.slowest:.2f}",
        report.slowest <= limit.slowest,
    )
    again = [one.used_again for one in report.outcomes]
    known = [seconds for seconds in again if seconds is not None]
    yield Check(
        f"used again after (s): at most {limit.back:g}, which is longest back-off + "
        "probe interval, a fifth more by chance",
        f"{max(known, default=0.0):.2f}" if len(known) == len(again) else "never",
        len(known) == len(again) and max(known, default=0.0) <= limit.back,
    )


def _against_quiet(
    report: Report, which: Callable[[Outcome], Iterable[Record]]
) -> Comparison:
    """Compare some requests of each fault with the quiet times.

    Faults that are made of slow answers are left out.
    """
    quiet = [second for time in report.quiet for second in seconds_of(time)]
    plain = [one for one in report.outcomes if not one.strike.fault.slows]
    return compare(quiet, [s for one in plain for s in seconds_of(which(one))])


def _slower(report: Report) -> Check:
    found = _against_quiet(report, lambda one: one.calm)
    enough = found.requests >= _ENOUGH
    chance = ", which may be chance" if found.least <= _SLOWER < found.ratio else ""
    if not enough:
        chance = f", and {found.requests} requests are too few to tell"
    slow = sorted({o.strike.name for o in report.outcomes if o.strike.fault.slows})
    return Check(
        "p99 (ms) while faults last, outside the first second after each strike and "
        f"after each repair, except {', '.join(slow) or 'no fault'}: at most {_SLOWER} "
        "times that of the quiet times between; not ok if it is more with 95% "
        "confidence",
        _in_words(found) + chance,
        found.least <= _SLOWER if enough else None,
    )


def _in_words(found: Comparison) -> str:
    return (
        f"{found.busy * 1000:.1f} / {found.quiet * 1000:.1f} = {found.ratio:.2f} "
        f"({found.least:.2f} to {found.most:.2f})"
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
    later = [record.seconds for record in one.calm]
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
