"""What the records of a load say about one fault."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from .load import Record
    from .schedule import Strike

__all__ = ["Outcome", "calm", "is_back", "percentile"]

_FIRST: Final = 1.0
"""Seconds after a strike whose requests may be slow."""


@dataclass(frozen=True)
class Outcome:
    """What one fault did.

    Attributes:
        strike: The fault.
        began: When it struck, by the monotonic clock.
        over: When its cause began to be repaired.
        repaired: When that was done.
        records: The requests from one to the next.
        left_out: Seconds until no process read from the victim; None if one did.
        used_again: Seconds from the repair until all processes did; None if one
            did not in time.
    """

    strike: Strike
    began: float
    over: float
    repaired: float
    records: Sequence[Record]
    left_out: float | None
    used_again: float | None

    @property
    def errors(self) -> Counter[str]:
        """What failed, and how often."""
        return Counter(record.error for record in self.records if record.error)

    @property
    def slowest(self) -> float:
        """Seconds that the slowest request took."""
        return max((record.seconds for record in self.records), default=0.0)

    @property
    def wrongs(self) -> list[str]:
        """What must not have been."""
        fault, found = self.strike.fault, []
        lasted = self.over - self.began
        if failed := self.errors.total():
            found.append(f"{failed} failed")
        # Later proves nothing: a repair may be a restart.
        if fault.leaves and (self.left_out is None or self.left_out > lasted):
            found.append("was not left out")
        if self.used_again is None:
            found.append("was not used again")
        if fault.hangs and self.slowest > 0.9 * lasted:
            found.append(f"somebody waited until it was over, {self.slowest:.1f} s")
        return found

    @classmethod
    def of(
        cls,
        strike: Strike,
        span: tuple[float, float, float],
        records: Sequence[Record],
        binds: Collection[str],
        *,
        back: float | None,
    ) -> Outcome:
        """Work out what a fault did.

        Args:
            strike: The fault.
            span: When it struck, when its repair began, and when that was done.
            records: The requests since it struck.
            binds: Of its victims.
            back: When all processes read from them again.
        """
        began, over, repaired = span
        gone: dict[int, float] = {}
        workers = {record.worker for record in records if record.worker}
        for record in records:
            if record.worker and record.live.isdisjoint(binds):
                gone.setdefault(record.worker, record.ended)
        left = max(gone.values()) - began if workers == set(gone) and gone else None
        return cls(
            strike=strike,
            began=began,
            over=over,
            repaired=repaired,
            records=records,
            left_out=left,
            used_again=None if back is None else back - repaired,
        )


def is_back(
    records: Iterable[Record], servers: Collection[str], binds: Collection[str]
) -> set[int]:
    """Return the processes that read from all these servers, and go on to."""
    served: dict[int, set[str]] = {}
    live: dict[int, frozenset[str]] = {}
    for record in records:
        if record.worker:
            served.setdefault(record.worker, set()).add(record.server)
            live[record.worker] = record.live
    return {
        worker
        for worker, seen in served.items()
        if seen.issuperset(servers) and live[worker].issuperset(binds)
    }


def calm(outcomes: Iterable[Outcome]) -> list[float]:
    """Return how long requests took that were not under way just after a strike.

    Those of a fault that is made of slow answers are left out altogether.
    """
    return [
        record.seconds
        for outcome in outcomes
        if not outcome.strike.fault.slows
        for record in outcome.records
        if record.began > outcome.began + _FIRST
    ]


def percentile(seconds: Collection[float], share: float = 0.99) -> float:
    """Return what so large a share of some durations does not exceed."""
    ordered = sorted(seconds)
    return ordered[int(share * (len(ordered) - 1))] if ordered else 0.0
