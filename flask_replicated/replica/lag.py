"""How far a replica is behind its primary, in seconds, and whether that is too far.

There are two ways to know, besides what the server says itself. Both compare log
positions, so an idle primary causes no lag. :class:`PositionHistory` keeps when the
primary had which position: a replica is as far behind as the time since the primary
passed what it shows. :class:`ReplayHistory` keeps when a replica had received what it
shows now: it cannot be further behind than that.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from .replica_status import Position, covers

if TYPE_CHECKING:
    from .replica_status import ReplicaReport

__all__ = [
    "LagBounds",
    "PositionHistory",
    "ReplayHistory",
    "exceeds",
    "lag_between",
    "share_for_lag",
]

_CONTRADICTS = 1.0
"""Seconds after which a replica that says it has no lag, and shows less, is wrong."""
_MOST = 1000
"""How many positions are kept, of a primary or of a replica."""
_LEAST = 1 / 8
"""The least share: some reads are left, or no one would notice the lag."""


def exceeds(report: ReplicaReport, max_lag: float | None) -> bool:
    """Whether a replica is further behind than ``REPLICATED_MAX_LAG`` allows.

    A server that measures its lag and does not know it is too far behind; one that
    cannot measure it is not.

    Args:
        report: With the lag as judged.
        max_lag: Seconds; None for any.
    """
    if max_lag is None or not report.measured:
        return False
    return report.lag is None or report.lag > max_lag


class ReplayHistory:
    """When a replica had received what it shows now, and so how far it is behind.

    Everything that it had received at one report and shows at a later one is no older
    than the first, whether it still receives or not. The age of its last transaction
    says the same only where the primary is never idle.
    """

    def __init__(self) -> None:
        # Times and positions in bytes; of those not shown yet the oldest matter most.
        self._received: list[tuple[float, int]] = []

    def copy(self) -> ReplayHistory:
        """Return one that knows the same, for a thread of its own."""
        other = ReplayHistory()
        other._received = self._received
        return other

    def lag(self, report: ReplicaReport, now: float) -> float | None:
        """Return the most that a replica can be behind, in seconds.

        Args:
            report: What it has just said.
            now: When, by a monotonic clock.
        """
        if report.replayed is None:
            self._received = []
            return report.lag
        shown = [one for one in self._received if one[1] <= report.replayed]
        kept = [*shown[-1:], *self._received[len(shown) :]][:_MOST]
        if report.received is not None:
            kept.append((now, report.received))
        # Never changed in place: another thread may be reading it.
        self._received = kept
        if not shown:
            return report.lag
        since = now - shown[-1][0]
        return since if report.lag is None else min(report.lag, since)


class _PositionSpan(NamedTuple):
    """A position that the primary was seen to have.

    Attributes:
        position: The position.
        since: When it had got there, at the latest.
        until: When it had got no further, at the latest.
    """

    position: Position
    since: float
    until: float


class LagBounds(NamedTuple):
    """How long ago the primary passed a position that a replica shows.

    Attributes:
        least: Seconds at least, as far as the primary could be asked.
        most: Seconds at most; None if the primary had more whenever it was asked.
        in_step: Whether the primary was not seen to have more.
    """

    least: float
    most: float | None
    in_step: bool


class PositionHistory:
    """When a primary had which position, as far as it was asked."""

    def __init__(self) -> None:
        # Never changed in place: other threads read it.
        self._spans: tuple[_PositionSpan, ...] = ()

    def clear(self) -> None:
        """Forget everything: it was another cluster's."""
        self._spans = ()

    def record(self, position: Position | None, asked: float, answered: float) -> None:
        """Keep a position, with the times of the question and of the answer."""
        if not position:
            self._spans = ()  # the primary does not tell, or no more
            return
        # What is beyond was lost with a former primary.
        spans = [span for span in self._spans if covers(position, span.position)]
        since = answered
        if spans and spans[-1].position == position:
            since = spans.pop().since
        spans.append(_PositionSpan(position, since, asked))
        if len(spans) > _MOST:
            half = _MOST // 2
            spans[:half] = spans[:half:2]
        self._spans = tuple(spans)

    def is_behind(self, position: Position) -> bool:
        """Whether the primary has not written all of a position, when last asked."""
        spans = self._spans
        return bool(spans) and covers(spans[-1].position, position) is False

    def bounds(
        self, shown: Position | None, now: float, until: float
    ) -> LagBounds | None:
        """Return when the primary passed a position; None if it cannot be compared.

        Args:
            shown: The position.
            now: The time up to which *most* counts.
            until: The time up to which *least* counts.
        """
        spans = self._spans
        if not spans or not shown or covers(shown, spans[-1].position) is None:
            return None
        reached, passed = None, None
        for span in reversed(spans):
            if covers(shown, span.position):
                reached = span
                break
            passed = span
        return LagBounds(
            least=0.0 if passed is None else max(0.0, until - passed.since),
            most=None if reached is None else max(0.0, now - reached.until),
            in_step=passed is None,
        )


def lag_between(
    report: ReplicaReport, own: float | None, bounds: LagBounds
) -> float | None:
    """Return the lag of a replica that has more to show: its own, within the bounds.

    Args:
        report: What the replica has said.
        own: The lag by its own account, in seconds; None if it does not know.
        bounds: When the primary passed what it shows.
    """
    if bounds.most is None:
        # It had less than the primary from the start, whatever it says.
        if not own and bounds.least > _CONTRADICTS:
            own = report.age
    elif own is None or report.replayed is not None:
        own = min(bounds.most, math.inf if own is None else own)
    return None if own is None else max(own, bounds.least)


def share_for_lag(share: float, lag: float | None, halved_at: float) -> float:
    """Return the share that a replica is to take.

    Half of it from *halved_at* on, a quarter from twice as much, an eighth from four
    times as much. It falls at once, and rises by one step at a time, once the lag is
    half of what the lower step begins at. So a lag around a limit changes nothing.

    Args:
        share: The share that it takes now.
        lag: Seconds that it is behind; None if unknown, which changes nothing.
        halved_at: Seconds of lag that halve the share.
    """
    if lag is None:
        return share
    due = 1.0
    while due > _LEAST and lag >= halved_at / due:
        due /= 2
    if due <= share:
        return due
    begins_at = halved_at / 2 / share
    return min(1.0, share * 2) if lag <= begins_at / 2 else share
