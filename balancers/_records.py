"""What a pool knows of each member."""

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

__all__ = ["MemberRecord", "end_ramps", "grant_trial", "make_members"]

T = TypeVar("T")


class MemberRecord(Generic[T]):
    """One member's state; changed under the pool's lock only.

    Attributes:
        member: The member.
        breaker: Its breaker.
        drained: Whether it is drained, by :meth:`Pool.drain`.
        last_error: One line about its last failure.
        ramp: Its slow start; None while it takes its full share.
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
        """Whether it may take traffic or trials at all."""
        return self.member.weight > 0 and not self.drained

    @property
    def live(self) -> bool:
        """Whether it belongs in the rotation."""
        return self.enabled and self.breaker.state == "closed"

    @property
    def ramp_ends(self) -> float:
        """Clock reading at which its slow start ends; infinity without one."""
        return sum(self.ramp) if self.ramp else math.inf

    @property
    def due(self) -> float:
        """Clock reading of its next trial or the end of its slow start."""
        return min(self.breaker.due, self.ramp_ends) if self.enabled else math.inf

    def start_slowly(self, seconds: float) -> None:
        """Begin a slow start if it has become live, drop one if it no longer is."""
        ramping = self.live and seconds > 0
        self.ramp = (self.breaker.clock(), seconds) if ramping else None

    def opened(self, cause: BaseException) -> MemberOpened:
        """Return the event for an opening of its breaker, caused by *cause*."""
        return MemberOpened(
            name=self.member.name,
            failures=self.breaker.failures,
            retry_in=self.breaker.retry_in or 0.0,
            error=self.last_error or "",
            cause=cause,
        )

    def cause(self) -> str:
        """Return why it is out, or that it is in rotation."""
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
        """Return its state as plain data."""
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
    """Return a member for each target.

    Raises:
        UnknownMemberError: A weight is given for a name that is no target's.
        InvalidWeightError: A weight is no whole number from 0 up.
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


def end_ramps(records: Iterable[MemberRecord[T]], now: float) -> bool:
    """End every slow start that is over; return whether there was any."""
    over = [record for record in records if record.ramp_ends <= now]
    for record in over:
        record.ramp = None
    return bool(over)


def grant_trial(
    records: Iterable[MemberRecord[T]], now: float, tried: Collection[Member[T]]
) -> MemberRecord[T] | None:
    """Make the breaker half-open whose trial is longest due; return its record, if any.

    Args:
        records: Those of all members.
        now: Clock reading.
        tried: Members that the caller does not want again.
    """
    due = (
        record
        for record in records
        if record.enabled and record.breaker.due <= now and record.member not in tried
    )
    longest_due = sorted(due, key=lambda record: record.breaker.due)
    return next((record for record in longest_due if record.breaker.acquire()), None)
