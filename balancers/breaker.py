"""A circuit breaker that counts connect failures: closed, open, half-open.

The whole status of a breaker is one immutable value. A transition replaces it under a
lock; reading it takes no lock and never shows half a change.
"""

from __future__ import annotations

import math
import random
import time
from operator import attrgetter
from threading import Lock, get_ident
from typing import TYPE_CHECKING, NamedTuple

from ._checks import check_count, check_seconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from .events import State

__all__ = ["CircuitBreaker", "Permit", "Status"]


class Permit(NamedTuple):
    """What was known of the breaker when an attempt began.

    Attributes:
        generation: Grows with every counted failure and every change of state; an
            outcome with an older generation is late.
        trial: Whether this attempt is the one trial of a half-open breaker.
        quiet: Whether the breaker was closed without any counted failure, so that a
            success changes nothing.
    """

    generation: int
    trial: bool = False
    quiet: bool = False


class Status(NamedTuple):
    """The whole status of a breaker, replaced at each transition."""

    state: State = "closed"
    permit: Permit = Permit(0, quiet=True)
    failures: int = 0
    level: int = 0  # how often the next wait is doubled
    changed_at: float = -math.inf  # last counted failure or change of state
    healthy_at: float = -math.inf  # last closing; unless closed, when that ended
    due: float = math.inf  # when the next trial is due
    reporter: int | None = None  # the thread that has reported a failure last


# One for each read, so it is no function of Python's.
latest_permit: Callable[[CircuitBreaker], Permit] = attrgetter("_status.permit")


class CircuitBreaker:
    """Opens after failures in a row, lets one trial through, closes if that succeeds.

    Back-off: the n-th opening lasts between half and all of ``reset * 2**n`` seconds,
    at most *max_reset*. The random half keeps processes from trying at the same moment
    ("equal jitter": M. Brooker, "Exponential Backoff And Jitter", 2015). Each
    *max_reset* seconds in the closed state undo one doubling: a flapping server is
    tried ever more rarely, a stable one starts again from *reset*.

    One outage counts once: a failure counts only if its attempt began after the last
    counted failure and the last change of state. A :class:`Permit` tells this
    exactly. Without one, failures of a closed breaker within *instant* seconds after
    the last counted one are taken for the same outage, unless the same thread reports
    them: it has tried again since.

    Trials: exactly one at a time. If its outcome is not reported within *lease*
    seconds, the next caller gets a new trial, and the permit of the lost one is void.
    A success that is reported while the breaker is open changes nothing.

    Args:
        threshold: Failures in a row that open it, 1 or more.
        reset: First wait in seconds, above 0.
        max_reset: Longest wait in seconds, *reset* or more.
        lease: Seconds that a trial may take, above 0; longer than a connect timeout.
        instant: Seconds; see above. 0 counts every failure.
        clock: Returns seconds that never go backwards.
        jitter: Returns a number from 0 to 1.

    Raises:
        InvalidSettingError: A number is out of its range.
    """

    def __init__(
        self,
        *,
        threshold: int = 2,
        reset: float = 1.0,
        max_reset: float = 60.0,
        lease: float = 10.0,
        instant: float = 0.05,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        check_count("threshold", threshold)
        check_seconds("reset", reset, above=0.0)
        check_seconds("max_reset", max_reset, least=reset)
        check_seconds("lease", lease, above=0.0)
        check_seconds("instant", instant)
        self.threshold = threshold
        self.reset = reset
        self.max_reset = max_reset
        self.lease = lease
        self.instant = instant
        self.clock = clock
        self._jitter = jitter
        self._lock = Lock()
        self._status = Status()

    def __repr__(self) -> str:
        status = self._status
        return f"<{type(self).__name__} {status.state}, failures={status.failures}>"

    @property
    def state(self) -> State:
        """``'closed'``, ``'open'``, or ``'half_open'`` during a trial."""
        return self._status.state

    @property
    def failures(self) -> int:
        """Counted failures in a row, those of trials included."""
        return self._status.failures

    @property
    def quiet(self) -> bool:
        """Whether it is closed without any counted failure."""
        return self._status.permit.quiet

    @property
    def usable(self) -> bool:
        """Whether it is closed, or was only paused: it has counted no failure."""
        status = self._status
        return status.state == "closed" or not status.failures

    @property
    def due(self) -> float:
        """Clock reading at which the next trial is due; infinity if closed."""
        return self._status.due

    @property
    def retry_in(self) -> float | None:
        """Seconds until the next trial is due, 0.0 for now; None if closed."""
        status = self._status
        if status.state == "closed":
            return None
        return max(0.0, status.due - self.clock())

    @property
    def opened_for(self) -> float | None:
        """Seconds since it was last closed; None if it is."""
        status = self._status
        if status.state == "closed":
            return None
        return max(0.0, self.clock() - status.healthy_at)

    def permit(self) -> Permit:
        """Return a permit to hand in with an attempt's outcome. Takes no lock."""
        return latest_permit(self)

    def acquire(self) -> Permit | None:
        """Return a permit to try, or None while the breaker is open.

        A closed breaker always gives one. An open breaker whose wait is over, or a
        half-open one whose trial's lease is over, gives a trial to one caller.
        """
        if self.quiet:
            return self.permit()
        with self._lock:
            now, status = self.clock(), self._status
            if status.state != "closed":
                if now < status.due:
                    return None
                self._move(now, state="half_open", due=now + self.lease)
            return self.permit()

    def failed(self, permit: Permit | None = None) -> bool:
        """Report that an attempt failed; return whether this opened the breaker."""
        with self._lock:
            now = self.clock()
            if not self._counts(permit, now):
                return False
            failures = self._status.failures + 1
            if self._status.state == "closed" and failures < self.threshold:
                self._move(now, failures=failures, reporter=get_ident())
                return False
            self._open(now, failures)
            return True

    def succeeded(self, permit: Permit | None = None) -> bool:
        """Report that an attempt succeeded; return whether this closed the breaker.

        Takes no lock while the breaker is closed without any counted failure.
        """
        if self.quiet:
            return False
        with self._lock:
            status = self._status
            if status.state == "open" or self._is_late(permit):
                return False
            if status.state == "closed":
                permit = status.permit._replace(quiet=True)
                self._status = status._replace(failures=0, permit=permit)
                return False
            self._close()
            return True

    def pause(self, seconds: float, permit: Permit | None = None) -> bool:
        """Open for *seconds* without counting a failure; return whether it did.

        The back-off does not grow. A breaker that is open keeps its own wait.

        Raises:
            InvalidSettingError: *seconds* is not above 0.
        """
        check_seconds("seconds", seconds, above=0.0)
        with self._lock:
            status = self._status
            if status.state == "open" or self._is_late(permit):
                return False
            now = self.clock()
            since = now if status.state == "closed" else status.healthy_at
            self._move(now, state="open", due=now + seconds, healthy_at=since)
            return True

    def trip(self, seconds: float) -> bool:
        """Open at once, whatever the threshold; return whether it did.

        For a background check that knows more than one attempt. It counts as one
        failure. The wait is at least *seconds*; that of an open breaker is extended
        to *seconds* from now, so that repeated calls keep trials off.

        Raises:
            InvalidSettingError: *seconds* is not above 0.
        """
        check_seconds("seconds", seconds, above=0.0)
        with self._lock:
            now, changed = self.clock(), self._status.state != "open"
            if changed:
                self._open(now, self._status.failures + 1)
            due = max(self._status.due, now + seconds)
            self._status = self._status._replace(due=due)
            return changed

    def recover(self, permit: Permit | None = None) -> bool:
        """Close at once, even if open; return whether it did.

        For a background check that knows more than one attempt. With a *permit* that
        is late it changes nothing.
        """
        with self._lock:
            if self._status.state == "closed" or self._is_late(permit):
                return False
            self._close()
            return True

    def renew_lock(self) -> None:
        """Replace the lock, in a forked child: its parent may have held it."""
        self._lock = Lock()

    def _is_late(self, permit: Permit | None) -> bool:
        if permit is None:
            return False
        return permit.generation != self._status.permit.generation

    def _counts(self, permit: Permit | None, now: float) -> bool:
        """Whether a failure is not one more sign of an outage that was counted."""
        status = self._status
        if status.state == "open" or self._is_late(permit):
            return False
        unclear = permit is None and status.state == "closed"
        by_others = status.reporter != get_ident()
        return not (unclear and by_others and now - status.changed_at < self.instant)

    def _open(self, now: float, failures: int) -> None:
        status, level = self._status, self._status.level
        since = status.healthy_at
        if status.state == "closed":
            level -= int(min((now - since) / self.max_reset, level))
            since = now
        base = min(self.max_reset, self.reset * 2.0**level)
        self._move(
            now,
            state="open",
            failures=failures,
            level=level + (base < self.max_reset),
            due=now + base * (0.5 + 0.5 * self._jitter()),
            healthy_at=since,
        )

    def _close(self) -> None:
        now = self.clock()
        self._move(
            now,
            state="closed",
            failures=0,
            due=math.inf,
            healthy_at=now,
            reporter=None,
        )

    def _move(self, now: float, **changes: object) -> None:
        status = self._status._replace(
            changed_at=now,
            **changes,  # type: ignore[arg-type]  # mypy cannot see the fields' names
        )
        generation = status.permit.generation + 1
        permit = Permit(
            generation,
            trial=status.state == "half_open",
            quiet=status.state == "closed" and not status.failures,
        )
        self._status = status._replace(permit=permit)
