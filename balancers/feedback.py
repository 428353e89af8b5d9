"""What a strategy can be told of a member's use: how busy it is, and how slow.

A strategy that wants to know has a method ``feedback(member)``. A pool asks it once for
each member and keeps the answer as ``member.feedback``. Whoever uses the members calls
:meth:`Feedback.started` and :meth:`Feedback.finished` around each use.

Nothing here takes a lock, because a use may end wherever garbage is collected, also
in a thread that has just begun one. To append to a list and to pop from it are atomic.
Of two results in the same moment, one may be lost from the mean.
"""

from __future__ import annotations

import time
from math import exp
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DECAY", "Feedback", "PeakFeedback", "is_feedback"]

DECAY = 10.0
"""Seconds after which a result counts for about a third (1/e) of a new one."""

_FORGOTTEN = 0.25
"""Failures that are left, below which there are none."""
_LEAST = 0.05
"""What part of the mean a result is at least, however many there are in a second: so a
few show that a member has become slow."""
_MOST = 40.0
"""How many times the mean a result counts as at the most: so a single long one does not
make its member slow."""
_MOST_MORE = 0.001
"""So many seconds more, as the mean may be next to nothing."""


class Feedback:
    """How one member fares, in this process.

    Args:
        clock: Returns seconds that never go backwards.

    Attributes:
        flights: One entry for each use in flight.
        seconds: The latency; 0 as long as there is none.
        count: How many results that is the mean of.
        noted: Clock reading of the last result.
        failed: What is left of failures, and a clock reading from which on that fades;
            None where there is nothing.
    """

    # What pick functions read is no property: a call would double their time.
    __slots__ = (
        "__weakref__",
        "_clock",
        "count",
        "failed",
        "flights",
        "noted",
        "seconds",
    )

    _least: ClassVar[float] = _LEAST

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.flights: list[None] = []
        self.renew()

    def renew(self) -> None:
        """Start at zero, as a forked child does: what is known is its parent's."""
        self.flights.clear()
        self.forget()

    def forget(self) -> None:
        """Know as little as of a new member: an outage says nothing of what follows."""
        self.seconds, self.count, self.noted = 0.0, 0, self._clock()
        self.failed: tuple[float, float] | None = None

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} in_flight={self.in_flight} latency={self.latency}>"
        )

    @property
    def in_flight(self) -> int:
        """How many uses have started and not finished."""
        return len(self.flights)

    @property
    def latency(self) -> float | None:
        """Seconds that a use takes: a mean in which the last 10 s count most.

        Each result counts for a twentieth of it at least, and as 40 times the mean and
        1 ms at most. None before the first success.
        """
        return self.seconds if self.count else None

    @property
    def failures(self) -> float:
        """How many uses have failed; each fades, and each success halves the number."""
        failed = self.failed
        return 0.0 if failed is None else failed[0] * self._faded(failed[1])

    @property
    def load(self) -> int:
        """How busy it counts as: its uses in flight, and its recent failures.

        A member that fails is never busy; it must not attract work by that.
        """
        return len(self.flights) + round(self.failures)

    def expected(self) -> float | None:
        """Return the latency to expect, in seconds; None before the first success.

        While a member has nothing to do it falls, so that a slow one is tried again.
        With the first use it is :attr:`latency` again until the result is there: that
        makes it one use at a time.
        """
        if not self.count:
            return None
        return self.seconds if self.load else self.seconds * self._faded(self.noted)

    def started(self) -> None:
        """Note that a use begins: call it before a connection is waited for."""
        self.flights.append(None)

    def finished(self, seconds: float, error: BaseException | None = None) -> None:
        """Note that a use is over; call it once for each :meth:`started`.

        Args:
            seconds: How long the member took to do its work.
            error: Why it failed, or None. A failure never lowers the latency.
        """
        try:
            self.flights.pop()
        except IndexError:  # it was started before renew()
            pass
        now = self._clock()
        if error is not None:
            self.failed = self.failures + 1, now
            if self.count:
                self._note(max(seconds, self.seconds), now)
            return
        if self.failed is not None:
            left = self.failures / 2
            self.failed = (left, now) if left > _FORGOTTEN else None
        self._note(max(0.0, seconds), now)
        self.count += 1

    def _note(self, seconds: float, now: float) -> None:
        """Blend a result into the mean.

        It counts by the time since the last one; the first ones alike, or the very
        first would count for 10 s.
        """
        part = max(1 - self._faded(self.noted), 1 / (self.count + 1), self._least)
        if self.count:
            seconds = min(seconds, _MOST * self.seconds + _MOST_MORE)
        self.seconds += (seconds - self.seconds) * part
        self.noted = now

    def _faded(self, then: float) -> float:
        """Return how much of something is left that was noted then."""
        return exp(min(0.0, then - self._clock()) / DECAY)


class PeakFeedback(Feedback):
    """The same, but any result that is slower than the mean takes its place at once.

    As in Twitter's Finagle ("Peak EWMA"): so a member is left alone as soon as it gets
    slow, and comes back step by step.
    """

    __slots__ = ()

    _least = 0.0  # a peak fades by time alone

    def _note(self, seconds: float, now: float) -> None:
        if seconds >= self.seconds:
            self.seconds, self.noted = seconds, now
        else:
            super()._note(seconds, now)


def is_feedback(value: object) -> bool:
    """Whether a member's use can be told to *value*, of whatever class it is."""
    return all(callable(getattr(value, name, None)) for name in ("started", "finished"))
