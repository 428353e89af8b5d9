"""How large a share of a process's reads falls on the primary in place of replicas.

A read that a replica serves costs nothing here: :class:`.ReadCounts` counts it anyway,
and its totals are looked at only when a read has no replica.
"""

from __future__ import annotations

import time
from collections import deque
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from .counts import ReadCounts

__all__ = ["FallbackShare"]

_WINDOW = 10.0
"""Seconds whose reads count."""
_STEP = 0.5
"""Seconds between two samples that are kept, at least."""
_ROUNDING = 1e-9


class _Sample(NamedTuple):
    """Totals at one moment.

    Attributes:
        at: When.
        others: Reads that were no fallback to the primary, with those refused.
        admitted: Reads that were let through to the primary in place of a replica.
        counted: Such reads as they were counted there: later, and with all further
            transactions of their requests.
    """

    at: float
    others: float
    admitted: float
    counted: float

    def moved_to(self, at: float, later: _Sample) -> _Sample:
        """Return the totals between this and a later one, as if reads came evenly."""
        part = (at - self.at) / (later.at - self.at)
        pairs = zip(self[1:], later[1:], strict=True)
        return _Sample(at, *(mine + part * (its - mine) for mine, its in pairs))


class FallbackShare:
    """Bounds the share of the reads that fall on the primary in place of replicas.

    It counts over the last 10 seconds, all binds of an application together. What no
    replica and not the primary has served counts as a read as well, so that a share of
    0.5 means every second read where all replicas are out.

    Args:
        share: From 0 to 1; 1 admits everything, and counts nothing.
        clock: Returns monotonic seconds.

    Attributes:
        share: The bound, from 0 to 1.
    """

    def __init__(
        self, share: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.share = share
        self._clock = clock
        self._counts: tuple[ReadCounts, ...] = ()
        self.renew()

    def renew(self) -> None:
        """Start with nothing, as in a forked child: what was is its parent's."""
        self._lock = Lock()
        self._admitted = self._refused = 0
        self._refused_until: float | None = None
        # What is there already was read before the window.
        self._samples = deque([self._look(self._clock())])

    def watch(self, counts: ReadCounts) -> None:
        """Add the counts of a bind. Call it before their first read."""
        self._counts = (*self._counts, counts)

    def admit(self, *, demanded: bool = False) -> bool:
        """Return whether one more read may go to the primary; if so, it counts.

        Args:
            demanded: Whether the read has a demand that only the primary satisfies. It
                is never refused, and counts.
        """
        if self.share >= 1:
            return True
        with self._lock:
            now = self._clock()
            reads, fallen = self._window(now)
            # This read is one of them, however it ends.
            bound = self.share * (reads + 1) + _ROUNDING
            if demanded or fallen + 1 <= bound:
                self._admitted += 1
                return True
            self._refused_until = now + _WINDOW
            return False

    def count_refused(self) -> None:
        """Count a read that was not admitted, and that nothing else serves."""
        with self._lock:
            self._refused += 1

    def sample(self) -> None:
        """Note the totals of now, so that a later window begins exactly.

        To call it every second or so is enough.
        """
        if self.share < 1:
            with self._lock:
                self._window(self._clock())

    @property
    def binds(self) -> bool:
        """Whether a read was not admitted in the last 10 seconds."""
        until = self._refused_until
        return until is not None and self._clock() < until

    def _look(self, now: float) -> _Sample:
        found = [counts.totals() for counts in self._counts]
        others = sum(one for one, _ in found) + self._refused
        return _Sample(now, others, self._admitted, sum(one for _, one in found))

    def _window(self, now: float) -> tuple[float, float]:
        """Return how many reads there were in the window, and how many fell."""
        samples, latest, start = self._samples, self._look(now), now - _WINDOW
        if now - samples[-1].at >= _STEP:
            samples.append(latest)
        while len(samples) > 1 and samples[1].at <= start:
            samples.popleft()
        first = samples[0]
        if first.at < start:
            first = first.moved_to(start, samples[1] if len(samples) > 1 else latest)
        # A read is admitted first and counted later, and some are counted alone.
        fallen = max(latest.admitted - first.admitted, latest.counted - first.counted)
        return latest.others - first.others + fallen, fallen
