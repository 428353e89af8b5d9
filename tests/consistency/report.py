"""What a run found: anomalies by kind, and who served."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rich import box
from rich.table import Table

from .checker import Kind, check

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .checker import Anomaly
    from .history import Operation
    from .run import Result

__all__ = ["Report", "Share", "report_of"]

_AFTER: Final = 5.0
"""Seconds after its write for which a read of the same client is one after a write."""

_SOON: Final = 0.1
"""Seconds within which a replica has caught up soon."""

_RECOVERS: Final = 2.0
"""Seconds for which a request may still fail once there is a primary again."""


@dataclass
class Share:
    """How many of some reads replicas have served.

    Attributes:
        replicas: So many.
        all: Of so many.
    """

    replicas: int = 0
    all: int = 0

    def count(self, by_replica: bool) -> None:
        """Count one more."""
        self.all += 1
        self.replicas += by_replica

    def __str__(self) -> str:
        share = 100 * self.replicas / self.all if self.all else 0.0
        return f"{share:.1f} % ({self.replicas} of {self.all})"


@dataclass
class Report:
    """What a run found.

    Attributes:
        result: The run.
        anomalies: What the checker found.
        reads: All that were answered.
        after_write: Those within five seconds of the same client's last write.
        caught_up: Those of them that were sent when a replica already showed that
            write, which it had done within 100 ms of its answer.
        moved: Reads that went on with another server in mid-request.
        failed: Causes of the requests that failed.
        away: How many failed while there was no primary, and just after.
    """

    result: Result
    anomalies: list[Anomaly]
    reads: Share
    after_write: Share
    caught_up: Share
    moved: int
    failed: Counter[str]
    away: int

    def broken(self) -> list[Anomaly]:
        """Return the anomalies that must not be.

        Of two workers' answers the later one may overwrite the other one's cookie.
        """
        plan = self.result.plan
        return [
            one
            for one in self.anomalies
            if one.kind in plan.promised and not (one.crossed and plan.overwrites)
        ]

    def count(self, kind: Kind) -> int:
        """Return how many anomalies of a kind there are."""
        return sum(1 for one in self.anomalies if one.kind is kind)

    @property
    def uses_replicas(self) -> bool | None:
        """Whether replicas serve half of what one of them could serve, at least.

        None if they need not: a pin by time leads to the primary.
        """
        plan, found = self.result.plan, self.caught_up
        if plan.guarantee != "none" and not plan.has_positions:
            return None
        return 2 * found.replicas >= found.all

    def table(self) -> Table:
        """Return the report for people."""
        table = Table("what", "observed", "", box=box.SIMPLE, padding=(0, 1))
        for row in self._rows():
            table.add_row(*row)
        return table

    def _rows(self) -> Iterator[tuple[str, str, str]]:
        result = self.result
        writes = sum(1 for one in result.history if one.wrote)
        happened = ", ".join(f"{n} x {what}" for what, n in result.events.most_common())
        number = f"{len(result.history)} ({writes} writes)"
        yield "operations", f"{number} in {result.seconds:.0f} s", ""
        yield "what happened to replicas", happened, ""
        broken = Counter(one.kind for one in self.broken())
        for kind in Kind:
            is_promised = kind in result.plan.promised
            verdict = ("NOT OK" if broken[kind] else "ok") if is_promised else ""
            crossed = self.count(kind) - broken[kind] if is_promised else 0
            told = f"{self.count(kind)}" + (f" ({crossed} crossed)" if crossed else "")
            promised = "" if is_promised else ", not promised"
            yield f"anomalies: {kind.value}{promised}", told, verdict
        yield "reads served by replicas", str(self.reads), ""
        yield f"... within {_AFTER:g} s of a write", str(self.after_write), ""
        soon = f"... where a replica had caught up within {_SOON * 1000:.0f} ms"
        verdict = "" if self.uses_replicas is None else "NOT OK"
        verdict = "ok" if self.uses_replicas else verdict
        yield f"{soon}: at least half", str(self.caught_up), verdict
        yield "reads that moved to another server midway", str(self.moved), ""
        yield "requests failed", str(self.failed.total()), ""
        yield "... for want of a primary", str(self.away), ""


def report_of(result: Result) -> Report:
    """Check a history, and count who served."""
    report = Report(
        result, check(result.history), Share(), Share(), Share(), 0, Counter(), 0
    )
    writes: dict[int, list[Operation]] = defaultdict(list)
    for operation in sorted(result.history, key=lambda one: one.ended):
        if operation.wrote:
            writes[operation.client].append(operation)
    for operation in result.history:
        if operation.error:
            _count_failure(report, operation)
        elif operation.looks:
            _count_read(report, operation, writes[operation.client])
    return report


def _count_failure(report: Report, operation: Operation) -> None:
    began, ended = report.result.away
    if began <= operation.ended and operation.began <= ended + _RECOVERS:
        report.away += 1
    else:
        report.failed[operation.error[:120]] += 1


def _count_read(report: Report, read: Operation, writes: list[Operation]) -> None:
    first, last = read.looks[0].server, read.looks[-1].server
    report.moved += first != last
    by_replica = not report.result.is_primary(first, read.began)
    report.reads.count(by_replica)
    index = bisect_left(writes, read.began, key=lambda one: one.ended) - 1
    if index < 0 or writes[index].ended < read.began - _AFTER:
        return
    report.after_write.count(by_replica)
    wrote = writes[index].wrote
    if wrote is None:
        return
    primary = report.result.primary(read.began)
    shown = report.result.watch.first(*wrote, but=primary)
    if shown <= min(writes[index].ended + _SOON, read.began):
        report.caught_up.count(by_replica)
