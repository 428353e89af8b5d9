"""Immutable records about a pool: what listeners receive and what a snapshot shows.

A listener is called in the thread that caused the change, after the change and
outside every lock. Two changes at the same moment may be reported in either order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

__all__ = [
    "Event",
    "Listener",
    "MemberAdded",
    "MemberClosed",
    "MemberDrained",
    "MemberOnTrial",
    "MemberOpened",
    "MemberRemoved",
    "MemberRestored",
    "MemberReweighted",
    "MemberSnapshot",
    "PoolSnapshot",
    "State",
]

State: TypeAlias = Literal["closed", "open", "half_open"]


@dataclass(frozen=True)
class MemberOpened:
    """A member's breaker has opened: callers are kept from it.

    Fires when enough connects have failed in a row, when a trial has failed, and
    at :meth:`Pool.pause` and :meth:`Pool.trip`; also for a drained member. Not for a
    failure below the threshold, not for a member whose breaker is open already, and
    not for :meth:`Pool.drain`.

    Attributes:
        name: The member.
        failures: Counted failures in a row; 0 if it is only paused.
        retry_in: Seconds until its next trial, unless it is drained.
        error: One line about the last failure, without passwords.
        cause: That failure itself, for a listener that examines it. Do not keep it:
            its text may contain passwords, and its traceback references much else.
    """

    name: str
    failures: int
    retry_in: float
    error: str
    cause: BaseException | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class MemberOnTrial:
    """A trial has started: one caller got an open member, which is now half-open.

    Fires once for each trial, also when the outcome of the one before was never
    reported. Not for drained members, which get no trial.

    Attributes:
        name: The member.
        lease: Seconds for which no other caller gets it.
    """

    name: str
    lease: float


@dataclass(frozen=True)
class MemberClosed:
    """A member's breaker has closed: it is healthy again.

    Fires when a trial has succeeded and at :meth:`Pool.recover`, once for each
    recovery; also for a member that was drained meanwhile and so stays out of the
    rotation. Not for a success that a caller other than the trial reports, and not
    at start.

    Attributes:
        name: The member.
        opened_for: Seconds since it was last healthy.
    """

    name: str
    opened_for: float


@dataclass(frozen=True)
class MemberDrained:
    """A member was drained by :meth:`Pool.drain`; not if it was drained already.

    Attributes:
        name: The member.
    """

    name: str


@dataclass(frozen=True)
class MemberRestored:
    """A member was restored by :meth:`Pool.restore`; not if it was not drained.

    The member may still be out: its breaker can be open, or its weight 0.

    Attributes:
        name: The member.
    """

    name: str


@dataclass(frozen=True)
class MemberAdded:
    """A member was added by :meth:`Pool.add`; not for those of the constructor.

    Attributes:
        name: The member.
        weight: Its weight; with 0 it takes no traffic.
    """

    name: str
    weight: int


@dataclass(frozen=True)
class MemberRemoved:
    """A member was removed by :meth:`Pool.remove`.

    No event about it follows, except for a change at the same moment.

    Attributes:
        name: The member.
    """

    name: str


@dataclass(frozen=True)
class MemberReweighted:
    """A member's weight was changed by :meth:`Pool.reweight`; not if it is the same.

    Attributes:
        name: The member.
        weight: Its new weight; with 0 it takes no traffic.
    """

    name: str
    weight: int


Event: TypeAlias = (
    MemberOpened
    | MemberOnTrial
    | MemberClosed
    | MemberDrained
    | MemberRestored
    | MemberAdded
    | MemberRemoved
    | MemberReweighted
)


class Listener(Protocol):
    """Any callable that takes one event; what it returns is ignored.

    What it raises is logged and goes no further.
    """

    def __call__(self, event: Event, /) -> object:
        """Receive *event*."""


@dataclass(frozen=True)
class MemberSnapshot:
    """One member at one moment.

    Attributes:
        name: Its name.
        weight: Its weight; 0 takes no traffic.
        state: ``'closed'`` (healthy), ``'open'`` or ``'half_open'`` (on trial).
        drained: Whether it is drained, by :meth:`Pool.drain`.
        live: Whether it is in rotation. One that is not, although it is ``'closed'``,
            not drained and of some weight, is a spare: the pool's limit is reached.
        failures: Counted connect failures in a row.
        last_error: One line about the last one, kept after recovery; or None.
        opened_for: Seconds since it was last healthy; None if closed.
        retry_in: Seconds until its next trial; None if closed.
    """

    name: str
    weight: int
    state: State
    drained: bool
    live: bool
    failures: int
    last_error: str | None
    opened_for: float | None
    retry_in: float | None


@dataclass(frozen=True)
class PoolSnapshot:
    """A pool at one moment; ``dataclasses.asdict`` makes plain data of it.

    Attributes:
        members: Every member, in the order given to the pool.
        live: The names of those in rotation.
    """

    members: tuple[MemberSnapshot, ...]
    live: tuple[str, ...]
