"""Frozen facts about a pool: what listeners receive and what a snapshot shows.

A listener is called in the thread that caused the change, after the change and
outside every lock. Two changes at the same moment may be told in either order.
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
    "MemberSnapshot",
    "PoolSnapshot",
    "State",
]

State: TypeAlias = Literal["closed", "open", "half_open"]


@dataclass(frozen=True)
class MemberOpened:
    """A member's breaker has opened: callers are kept from it.

    Fires when enough connects have failed in a row, when a probe has failed, and
    at :meth:`Pool.pause` and :meth:`Pool.trip`; also for a drained member. Not for a
    failure below the threshold, not for news of a member that is already out, and
    not for :meth:`Pool.drain`.

    Attributes:
        name: the member.
        failures: counted failures in a row; 0 if it only rests.
        retry_in: seconds until one caller may probe it, unless it is drained.
        error: one line about the last failure, without passwords.
        cause: that failure itself, for a listener that judges it. Its text may hold
            passwords, and its traceback much else: do not keep it.
    """

    name: str
    failures: int
    retry_in: float
    error: str
    cause: BaseException | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class MemberOnTrial:
    """One caller was handed an open member to try it: it is half-open.

    Fires once for each probe, also when the one before it was never reported. Not
    for drained members, which are never probed.

    Attributes:
        name: the member.
        lease: seconds for which nobody else is handed it.
    """

    name: str
    lease: float


@dataclass(frozen=True)
class MemberClosed:
    """A member's breaker has closed: it is healthy again.

    Fires when a probe has succeeded and at :meth:`Pool.recover`, once for each
    recovery; also for a member that was drained meanwhile and so stays out of the
    rotation. Not for a success that was reported by somebody other than the probe,
    and not at start.

    Attributes:
        name: the member.
        opened_for: seconds since it was last healthy.
    """

    name: str
    opened_for: float


@dataclass(frozen=True)
class MemberDrained:
    """Somebody called :meth:`Pool.drain`; not if it was drained already.

    Attributes:
        name: the member.
    """

    name: str


@dataclass(frozen=True)
class MemberRestored:
    """Somebody called :meth:`Pool.restore`; not if it was not drained.

    The member may still be out: its breaker can be open, or its weight 0.

    Attributes:
        name: the member.
    """

    name: str


@dataclass(frozen=True)
class MemberAdded:
    """Somebody called :meth:`Pool.add`; not for those given to the pool at first.

    Attributes:
        name: the member.
        weight: its weight; with 0 it takes no traffic.
    """

    name: str
    weight: int


@dataclass(frozen=True)
class MemberRemoved:
    """Somebody called :meth:`Pool.remove`: it is a member no longer.

    Nothing is told of it afterwards, unless it happened at the same moment.

    Attributes:
        name: the member.
    """

    name: str


Event: TypeAlias = (
    MemberOpened
    | MemberOnTrial
    | MemberClosed
    | MemberDrained
    | MemberRestored
    | MemberAdded
    | MemberRemoved
)


class Listener(Protocol):
    """Any callable that takes one event; what it returns is ignored.

    What it raises is logged and goes no further.
    """

    def __call__(self, event: Event, /) -> object:
        """Take note of *event*."""


@dataclass(frozen=True)
class MemberSnapshot:
    """One member at one moment.

    Attributes:
        name: its name.
        weight: its weight; 0 takes no traffic.
        state: ``'closed'`` (healthy), ``'open'`` or ``'half_open'`` (on trial).
        drained: whether it was taken out by hand.
        live: whether it is in rotation. One that is ``'closed'``, not drained and
            of some weight is otherwise spare: the pool's limit is reached.
        failures: counted connect failures in a row.
        last_error: one line about the last one, kept after recovery; or None.
        opened_for: seconds since it was last healthy; None if closed.
        retry_in: seconds until it may be probed (again); None if closed.
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
        members: every member, in the order given to the pool.
        live: the names of those in rotation.
    """

    members: tuple[MemberSnapshot, ...]
    live: tuple[str, ...]
