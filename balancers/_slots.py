"""What a pool knows of each of its members."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Generic, TypeVar

from .errors import InvalidWeightError, UnknownMemberError
from .events import MemberOpened, MemberSnapshot
from .strategies import Member

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from ._rotations import Ramp
    from .breaker import CircuitBreaker

T = TypeVar("T")


class Slot(Generic[T]):
    """One member's condition; changed under the pool's lock only.

    Attributes:
        member: the member.
        breaker: its breaker.
        drained: whether it was taken out by hand.
        last_error: one line about its last failure.
        ramp: its slow start; None when it takes its whole share.
    """

    __slots__ = ("breaker", "drained", "last_error", "member", "ramp")

    def __init__(self, member: Member[T], breaker: CircuitBreaker) -> None:
        self.member = member
        self.breaker = breaker
        self.drained = False
        self.last_error: str | None = None
        self.ramp: Ramp | None = None

    @property
    def enabled(self) -> bool:
        """Whether it may take traffic or probes at all."""
        return self.member.weight > 0 and not self.drained

    @property
    def live(self) -> bool:
        """Whether it belongs in the rotation."""
        return self.enabled and self.breaker.state == "closed"

    @property
    def ramp_ends(self) -> float:
        """Clock reading at which its slow start is over; infinity without one."""
        return sum(self.ramp) if self.ramp else math.inf

    @property
    def due(self) -> float:
        """Clock reading from which there is something to do for it."""
        return min(self.breaker.due, self.ramp_ends) if self.enabled else math.inf

    def start_slowly(self, seconds: float) -> None:
        """Begin a slow start if it has just come back, drop one if it has gone."""
        ramping = self.live and seconds > 0
        self.ramp = (self.breaker.clock(), seconds) if ramping else None

    def opened(self, cause: BaseException) -> MemberOpened:
        """Return the event that says it has just been opened, and by what."""
        return MemberOpened(
            name=self.member.name,
            failures=self.breaker.failures,
            retry_in=self.breaker.retry_in or 0.0,
            error=self.last_error or "",
            cause=cause,
        )

    def cause(self) -> str:
        """Return why it is out, or that it is not."""
        if self.drained:
            return "drained"
        if not self.member.weight:
            return "weight 0"
        state, wait = self.breaker.state, self.breaker.retry_in or 0.0
        said = {
            "closed": "in rotation",
            "open": f"open for {wait:.1f} s more" if wait else "open, a trial is due",
            "half_open": f"half-open, on trial for {wait:.1f} s more at most",
        }[state]
        return f"{said}: {self.last_error}" if self.last_error else said

    def snapshot(self) -> MemberSnapshot:
        """Return its condition as plain data."""
        return MemberSnapshot(
            name=self.member.name,
            weight=self.member.weight,
            state=self.breaker.state,
            drained=self.drained,
            live=self.live,
            failures=self.breaker.failures,
            last_error=self.last_error,
            opened_for=self.breaker.opened_for,
            retry_in=self.breaker.retry_in,
        )


def make_members(
    targets: Mapping[str, T], weights: Mapping[str, int]
) -> tuple[Member[T], ...]:
    """Return a member for each target, once every weight is found right.

    Raises:
        UnknownMemberError: a weight for no target.
        InvalidWeightError: a weight that is no whole number from 0 up.
    """
    for name, weight in weights.items():
        if name not in targets:
            raise UnknownMemberError(name, targets)
        whole = isinstance(weight, int) and not isinstance(weight, bool)
        if not whole or weight < 0:
            raise InvalidWeightError(name, weight)
    return tuple(
        Member(name, target, weights.get(name, 1)) for name, target in targets.items()
    )


def end_ramps(slots: Iterable[Slot[T]], now: float) -> bool:
    """End every slow start that is over; return whether there was one."""
    over = [slot for slot in slots if slot.ramp_ends <= now]
    for slot in over:
        slot.ramp = None
    return bool(over)


def grant_trial(
    slots: Iterable[Slot[T]], now: float, tried: Collection[Member[T]]
) -> Slot[T] | None:
    """Make the one whose probe is longest due half-open and return it, if any is.

    Args:
        slots: all of them.
        now: clock reading.
        tried: members that the caller does not want again.
    """
    due = (
        slot
        for slot in slots
        if slot.enabled and slot.breaker.due <= now and slot.member not in tried
    )
    longest_due = sorted(due, key=lambda slot: slot.breaker.due)
    return next((slot for slot in longest_due if slot.breaker.acquire()), None)
