"""A circuit breaker that counts connect failures: closed, open, half-open.

A door's whole condition is one immutable value that a transition replaces, under a
lock; whoever only looks takes no lock and never sees half a change.
"""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass, replace
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

from .errors import InvalidSettingError

if TYPE_CHECKING:
    from collections.abc import Callable

    from .events import State


__all__ = [
    "CircuitBreaker",
    "Permit",
]


@dataclass(frozen=True, slots=True)
class Permit:
    """What an attempt knew of the breaker when it began.

    Attributes:
        generation: moves with every counted failure and every change of state, so
            that an outcome which arrives late is known to be late.
        trial: whether this attempt is the one trial of a half-open breaker.
        quiet: whether the breaker was closed with no failure to forget, and so has
            nothing to learn from a success.
    """

    generation: int
    trial: bool = False
    quiet: bool = False


class Door(NamedTuple):
    """The whole condition of a breaker, replaced at each transition."""

    state: State = "closed"
    permit: Permit = Permit(0, quiet=True)  # made once, so that asking is free
    failures: int = 0
    level: int = 0  # doublings that the next opening starts from
    changed_at: float = -math.inf  # last counted failure or change of state
    healthy_at: float = -math.inf  # last closing; of an open door, its first opening
    due: float = math.inf  # when a probe may be had


class CircuitBreaker:
    """Opens after failures in a row, lets one probe through, closes if that succeeds.

    Wait: the n-th opening waits between half and all of ``reset * 2**n`` seconds, at
    most *max_reset*; the random half keeps processes from probing together ("equal
    jitter": M. Brooker, "Exponential Backoff And Jitter", 2015). Each *max_reset*
    seconds of health forget one doubling, so a flapping server is asked ever more
    rarely and a settled one starts afresh.

    One outage, one count: a failure counts only if its attempt began after the last
    counted failure and the last change of state. With a :class:`Permit` that is
    known exactly. Without one, failures of a closed breaker within *instant* seconds
    after the last that counted are taken for the same outage.

    Probes: exactly one at a time. If its outcome is not reported within *lease*
    seconds, the next caller gets a new probe, and the lost one's permit is void. A
    success reported while the breaker is open proves nothing and changes nothing.

    Args:
        threshold: failures in a row that open it, 1 or more.
        reset: first wait in seconds, above 0.
        max_reset: longest wait in seconds, *reset* or more.
        lease: seconds that a probe may take, above 0; longer than a connect timeout.
        instant: seconds; see above. 0 counts every failure.
        clock: returns seconds that never go backwards.
        jitter: returns a number from 0 to 1.

    Raises:
        InvalidSettingError: a number is out of its range.
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
        self._door = Door()

    def __repr__(self) -> str:
        door = self._door
        return f"<{type(self).__name__} {door.state}, failures={door.failures}>"

    @property
    def state(self) -> State:
        """``'closed'``, ``'open'``, or ``'half_open'`` once a probe is out."""
        return self._door.state

    @property
    def failures(self) -> int:
        """Counted failures in a row, those of probes included."""
        return self._door.failures

    @property
    def quiet(self) -> bool:
        """Whether it is closed and has no failure to forget."""
        return self._door.permit.quiet

    @property
    def usable(self) -> bool:
        """Whether it is closed, or left alone for a while without any failure."""
        door = self._door
        return door.state == "closed" or not door.failures

    @property
    def due(self) -> float:
        """Clock reading from which a probe may be had; infinity if closed."""
        return self._door.due

    @property
    def retry_in(self) -> float | None:
        """Seconds until a probe may be had, 0.0 if now; None if closed."""
        door = self._door
        if door.state == "closed":
            return None
        return max(0.0, door.due - self.clock())

    @property
    def opened_for(self) -> float | None:
        """Seconds since it was last closed; None if it is."""
        door = self._door
        if door.state == "closed":
            return None
        return max(0.0, self.clock() - door.healthy_at)

    def permit(self) -> Permit:
        """Return a mark of this moment, to hand in with the outcome. Takes no lock."""
        return self._door.permit

    def acquire(self) -> Permit | None:
        """Return leave to try, or None while the breaker is open.

        A closed breaker always gives leave. An open one whose wait is over, or a
        half-open one whose probe's lease is over, gives it to one caller.
        """
        if self.quiet:
            return self.permit()
        with self._lock:
            now, door = self.clock(), self._door
            if door.state != "closed":
                if now < door.due:
                    return None
                self._move(now, state="half_open", due=now + self.lease)
            return self.permit()

    def failed(self, permit: Permit | None = None) -> bool:
        """Report that an attempt failed; return whether this opened the breaker."""
        with self._lock:
            now = self.clock()
            if not self._counts(permit, now):
                return False
            failures = self._door.failures + 1
            if self._door.state == "closed" and failures < self.threshold:
                self._move(now, failures=failures)
                return False
            self._open(now, failures)
            return True

    def succeeded(self, permit: Permit | None = None) -> bool:
        """Report that an attempt succeeded; return whether this closed the breaker.

        Costs no lock while there is nothing to forget.
        """
        if self.quiet:
            return False
        with self._lock:
            door = self._door
            if door.state == "open" or self._is_late(permit):
                return False
            if door.state == "closed":
                permit = replace(door.permit, quiet=True)
                self._door = door._replace(failures=0, permit=permit)
                return False
            self._close()
            return True

    def pause(self, seconds: float, permit: Permit | None = None) -> bool:
        """Open for *seconds* without counting a failure; return whether it did.

        The back-off stays where it was. An open breaker keeps its own wait.

        Raises:
            InvalidSettingError: *seconds* is not above 0.
        """
        check_seconds("seconds", seconds, above=0.0)
        with self._lock:
            door = self._door
            if door.state == "open" or self._is_late(permit):
                return False
            now = self.clock()
            since = now if door.state == "closed" else door.healthy_at
            self._move(now, state="open", due=now + seconds, healthy_at=since)
            return True

    def trip(self, seconds: float) -> bool:
        """Open at once, on better evidence than an attempt; return whether it did.

        It counts as one failure, whatever the threshold. The wait is *seconds* at
        least; an open breaker's is prolonged to that, so that whoever has the evidence
        and repeats this keeps others from probing.

        Raises:
            InvalidSettingError: *seconds* is not above 0.
        """
        check_seconds("seconds", seconds, above=0.0)
        with self._lock:
            now, news = self.clock(), self._door.state != "open"
            if news:
                self._open(now, self._door.failures + 1)
            due = max(self._door.due, now + seconds)
            self._door = self._door._replace(due=due)
            return news

    def recover(self, permit: Permit | None = None) -> bool:
        """Close at once, on better evidence than an attempt; return whether it did.

        Unlike :meth:`succeeded` it also closes an open breaker. A *permit* from before
        the latest news makes it void.
        """
        with self._lock:
            if self._door.state == "closed" or self._is_late(permit):
                return False
            self._close()
            return True

    def renew_lock(self) -> None:
        """Replace the lock: for a forked child whose parent may have held it."""
        self._lock = Lock()

    def _is_late(self, permit: Permit | None) -> bool:
        if permit is None:
            return False
        return permit.generation != self._door.permit.generation

    def _counts(self, permit: Permit | None, now: float) -> bool:
        door = self._door
        if door.state == "open" or self._is_late(permit):
            return False
        same = permit is None and door.state == "closed"
        return not (same and now - door.changed_at < self.instant)

    def _open(self, now: float, failures: int) -> None:
        door, level = self._door, self._door.level
        since = door.healthy_at
        if door.state == "closed":
            healthy = now - since
            level = max(0, level - int(min(healthy / self.max_reset, level)))
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
        self._move(now, state="closed", failures=0, due=math.inf, healthy_at=now)

    def _move(self, now: float, **changes: object) -> None:
        door = self._door._replace(
            changed_at=now,
            **changes,  # type: ignore[arg-type]  # mypy cannot see the fields' names
        )
        generation = door.permit.generation + 1
        permit = Permit(
            generation,
            trial=door.state == "half_open",
            quiet=door.state == "closed" and not door.failures,
        )
        self._door = door._replace(permit=permit)


def check_seconds(
    name: str, value: float, *, least: float = 0.0, above: float | None = None
) -> None:
    """Raise InvalidSettingError unless *value* is a finite number in its range."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and math.isfinite(value)):
        raise InvalidSettingError(name, value, "a finite number of seconds")
    if above is not None and value <= above:
        raise InvalidSettingError(name, value, f"above {above:g} seconds")
    if value < least:
        raise InvalidSettingError(name, value, f"{least:g} seconds or more")


def check_count(name: str, value: int) -> None:
    """Raise InvalidSettingError unless *value* is a whole number from 1 up."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < 1:
        raise InvalidSettingError(name, value, "a whole number, 1 or more")
