"""What a pool knows of each member."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from ._checks import check_weights
from ._member import Member, change
from .errors import InvalidSettingError
from .events import MemberOpened, MemberSnapshot
from .feedback import is_feedback

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from .breaker import CircuitBreaker

__all__ = [
    "MemberRecord",
    "Standing",
    "ask_for_feedback",
    "end_ramps",
    "grant_trial",
    "make_members",
]

T = TypeVar("T")


class Standing(NamedTuple):
    """What a live member may take.

    Attributes:
        weight: Its weight.
        share: Which part of that, from 0 to 1, for the time being.
        ramp: Start and length of its slow start, as a clock reading and in seconds;
            None while there is none.
    """

    weight: int
    share: float
    ramp: tuple[float, float] | None


class MemberRecord(Generic[T]):
    """One member's state; changed under the pool's lock only.

    Attributes:
        member: The member.
        breaker: Its breaker.
        drained: Whether it is drained, by :meth:`Pool.drain`.
        last_error: One line about its last failure.
        ramp: Start and length of its slow start; None while there is none.
        share: Which part of its weight it takes for the time being.
    """

    __slots__ = ("breaker", "drained", "last_error", "member", "ramp", "share")

    def __init__(self, member: Member[T], breaker: CircuitBreaker) -> None:
        self.member = member
        self.breaker = breaker
        self.drained = False
        self.last_error: str | None = None
        self.ramp: tuple[float, float] | None = None
        self.share = 1.0

    @property
    def enabled(self) -> bool:
        """Whether it may take traffic or trials at all."""
        return self.member.weight > 0 and not self.drained

    @property
    def live(self) -> bool:
        """Whether it belongs in the rotation."""
        return self.enabled and self.breaker.state == "closed"

    @property
    def standing(self) -> Standing:
        """What it may take."""
        return Standing(self.member.weight, self.share, self.ramp)

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
    check_weights(targets, weights)
    return tuple(
        Member(name, target, weights.get(name, 1)) for name, target in targets.items()
    )


def ask_for_feedback(strategy: object, member: Member[Any]) -> None:
    """Ask a strategy what is to be told of a member's use, if it wants to be asked.

    Raises:
        InvalidSettingError: It returns what cannot be told.
    """
    ask = getattr(strategy, "feedback", None)
    found = ask(member) if callable(ask) else None
    if found is None:
        return
    if not is_feedback(found):
        raise InvalidSettingError(
            f"{type(strategy).__name__}.feedback()", found, "a Feedback, or None"
        )
    change(member, feedback=found)


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
