"""What the records of a load say about one fault."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from .load import Record
    from .schedule import Strike

__all__ = ["Limits", "Outcome", "is_back"]

_FIRST: Final = 1.0
"""Seconds after a strike, or a repair, whose requests may be slow."""
_JITTER: Final = 1.2
"""How many times as long as asked for an interval may be, by chance."""


class Limits(NamedTuple):
    """What must not take longer, by the settings of a run.

    Attributes:
        slowest: Seconds for a request.
        back: Seconds from a repair until a replica is used again.
    """

    slowest: float
    back: float

    @classmethod
    def of(cls, config: Mapping[str, Any], spare: float = 0.0) -> Limits:
        """Work out the limits, by the extension's defaults where none is set.

        Args:
            config: The application's settings.
            spare: Seconds more for each, on a machine that is busy with other work.
        """
        interval = config.get("REPLICATED_PROBE_INTERVAL", 5)
        return cls(
            slowest=config.get("REPLICATED_CONNECT_TIMEOUT", 2) + interval + 1 + spare,
            back=config.get("REPLICATED_BREAKER_MAX_RESET", 30)
            + _JITTER * interval
            + spare,
        )


@dataclass(frozen=True)
class Outcome:
    """What one fault did.

    Attributes:
        strike: The fault.
        began: When it began to strike, by the monotonic clock.
        struck: When that was done.
        over: When its cause began to be repaired.
        repaired: When that was done.
        records: The requests from one to the next.
        left_out: Seconds until no process read from the victim; None if one did.
        used_again: Seconds from the repair until all processes did; None if one
            did not in time.
        limits: What must not take longer.
    """

    strike: Strike
    began: float
    struck: float
    over: float
    repaired: float
    records: Sequence[Record]
    left_out: float | None
    used_again: float | None
    limits: Limits

    @property
    def errors(self) -> Counter[str]:
        """What failed, and how often."""
        return Counter(record.error for record in self.records if record.error)

    @property
    def slowest(self) -> float:
        """Seconds that the slowest request took."""
        return max((record.seconds for record in self.records), default=0.0)

    @property
    def calm(self) -> list[Record]:
        """The requests outside repair, and outside a second after it or a strike."""
        repair = self.repair
        return [
            one
            for one in self.records
            if one.began > self.struck + _FIRST and one not in repair
        ]

    @property
    def repair(self) -> set[Record]:
        """The requests that met the repair, or began in the first second after it.

        It starts servers, or copies one, on the machine that also serves.
        """
        end = self.repaired + _FIRST
        return {
            one for one in self.records if one.ended > self.over and one.began < end
        }

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
        elif self.used_again > self.limits.back:
            found.append(f"was used again after {self.used_again:.1f} s only")
        if self.slowest > self.limits.slowest:
            found.append(f"somebody waited for {self.slowest:.1f} s")
        if fault.hangs and self.slowest > 0.9 * lasted:
            found.append(f"somebody waited until it was over, {self.slowest:.1f} s")
        return found

    @classmethod
    def of(
        cls,
        strike: Strike,
        span: tuple[float, float, float, float],
        records: Sequence[Record],
        binds: Collection[str],
        limits: Limits,
        *,
        back: float | None,
    ) -> Outcome:
        """Work out what a fault did.

        Args:
            strike: The fault.
            span: When it began to strike, when that was done, when its repair began,
                and when that was done.
            records: The requests since it struck.
            binds: Of its victims.
            limits: What must not take longer.
            back: When all processes read from them again.
        """
        began, struck, over, repaired = span
        gone: dict[int, float] = {}
        workers = {record.worker for record in records if record.worker}
        for record in records:
            if record.worker and record.live.isdisjoint(binds):
                gone.setdefault(record.worker, record.ended)
        left = max(gone.values()) - began if workers == set(gone) and gone else None
        return cls(
            strike=strike,
            began=began,
            struck=struck,
            over=over,
            repaired=repaired,
            records=records,
            left_out=left,
            used_again=None if back is None else back - repaired,
            limits=limits,
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
