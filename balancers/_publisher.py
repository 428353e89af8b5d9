"""Publishes a pool's pick function, and a new one at every change of membership."""

from __future__ import annotations

import math
import os
from contextlib import contextmanager, suppress
from dataclasses import replace
from threading import Lock
from typing import TYPE_CHECKING, Generic, TypeVar

from ._rotations import RotationBuilder, by_chance
from ._slots import end_ramps, grant_trial
from ._subset import Subset
from .breaker import check_seconds
from .errors import NoMemberAvailableError
from .events import MemberOnTrial, PoolSnapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from ._membership import Membership
    from ._rotations import Ramp
    from ._slots import Slot
    from .events import Event
    from .strategies import Member, Pick, Strategy

T = TypeVar("T")


class Publisher(Generic[T]):
    """Keeps a rotation over the live members, and publishes the function that picks.

    While every member is in good health that is the rotation itself; while a wait or
    a slow start goes on, a guard around it that looks at the clock. Strategies and
    listeners are called outside the lock.

    Args:
        membership: the members; from here on only the publisher changes it.
        strategy: builds the rotations.
        slow_start: seconds over which a member that comes back takes its share.
        limit: at most so many are in rotation; None for all.
        clock: returns seconds.
        publish: takes each pick function.
        tell: takes each event.
        warn: called when weights are given that the strategy does not read.

    Attributes:
        live: the members in rotation, in the order given.

    Raises:
        InvalidSettingError: for *slow_start* or *limit*.
        InvalidPickError: the strategy returned no pick function.
    """

    def __init__(
        self,
        membership: Membership[T],
        strategy: Strategy[T],
        *,
        slow_start: float,
        limit: int | None,
        clock: Callable[[], float],
        publish: Callable[[Pick[T]], None],
        tell: Callable[[Event], None],
        warn: Callable[[], None],
    ) -> None:
        check_seconds("slow_start", slow_start)
        self._membership = membership
        self._builder = RotationBuilder(strategy, clock=clock, causes=self.causes)
        self._slow_start = slow_start
        self._subset = Subset(limit)
        self._clock = clock
        self._publish = publish
        self._tell = tell
        self._warn = warn
        self._lock = Lock()
        self._pid = os.getpid()
        self.live = self._subset.choose(tuple(self._fit()))
        self._warn_of_weights()
        self._rotation = self._builder.build(self.live)
        self._settle()

    @contextmanager
    def changing(self, slot: Slot[T]) -> Iterator[None]:
        """Hold the lock around a change of *slot*, then publish what follows from it.

        A new rotation is left out if the slot is as live, or not, as before.
        """
        with self._lock:
            before = slot.live
            yield
            changed = slot.live != before
            if changed:
                slot.start_slowly(self._slow_start)
            self._settle()
        if changed:
            self._rotate()

    def add(self, slot: Slot[T]) -> None:
        """Take in a new member, by a slow start.

        Raises:
            DuplicateMemberError: a member has its name.
        """
        with self._lock:
            self._membership.add(slot)
            slot.start_slowly(self._slow_start)
        self._rotate()
        self._warn_of_weights()

    def _warn_of_weights(self) -> None:
        if self._builder.ignores_weights(self.live):
            self._warn()

    def remove(self, name: str) -> Member[T]:
        """Let a member go; it is in no rotation when this returns.

        Raises:
            UnknownMemberError: there is none of this name.
        """
        with self._lock:
            member = self._membership.remove(name)
            self._settle()
        self._rotate()
        while member in self.live:  # another change came between
            self._rotate()
        return member

    def reshuffle(self) -> None:
        """Start the rotation anew; in a forked child, with locks of its own."""
        if os.getpid() != self._pid:
            self._pid = os.getpid()
            self._lock = Lock()
            self._subset.renew()
            for slot in self._membership.slots.values():
                slot.breaker.renew_lock()
        self._rotate()

    def others(self, tried: Member[T]) -> Iterator[Member[T]]:
        """Return the members to try after *tried*, each at most once."""
        seen = {tried}
        for other in self._remaining(seen):
            if other not in seen:
                seen.add(other)
                yield other

    def spares(self) -> list[Member[T]]:
        """Return those that only the limit keeps out of the rotation, in order."""
        if self._subset.limit is None:
            return []
        live = self.live
        return self._subset.order(one for one in self._fit() if one not in live)

    def causes(self) -> dict[str, str]:
        """Return, for every member by name, what its condition is and why."""
        slots = self._membership.slots.values()
        causes = {slot.member.name: slot.cause() for slot in slots}
        return causes | {spare.name: "spare" for spare in self.spares()}

    def snapshot(self) -> PoolSnapshot:
        """Return the condition of every member at this moment."""
        with self._lock:
            slots = self._membership.slots.values()
            members = tuple(slot.snapshot() for slot in slots)
            fit = tuple(self._fit())
        live = tuple(member.name for member in self._subset.choose(fit))
        if len(live) < len(fit):
            members = tuple(replace(one, live=one.name in live) for one in members)
        return PoolSnapshot(members, live)

    def _fit(self) -> dict[Member[T], Ramp | None]:
        """Return the members fit for the rotation, each with its slow start if any."""
        slots = self._membership.slots.values()
        return {slot.member: slot.ramp for slot in slots if slot.live}

    def _settle(self) -> None:
        """Work out when to look again, and whether anybody has to. Under the lock."""
        slots = self._membership.slots.values()
        self._due = min((slot.due for slot in slots), default=math.inf)
        self._publish(self._rotation if self._due == math.inf else self._guarded)

    def _rotate(self) -> None:
        """Build a rotation outside the lock and publish it unless it is outdated.

        Whoever outdated it publishes a newer one.
        """
        with self._lock:
            fit = self._fit()
        live = self._subset.choose(tuple(fit))
        ramps = {member: ramp for member in live if (ramp := fit[member])}
        rotation = self._builder.rebuild(live, ramps)
        with self._lock:
            if fit == self._fit():
                self.live, self._rotation = live, rotation
                self._settle()

    def _guarded(self) -> Member[T]:
        """Pick while something is due at some time."""
        if self._clock() >= self._due:
            probe = self._probe()
            if probe is not None:
                return probe
        return self._rotation()

    def _probe(self, tried: Collection[Member[T]] = ()) -> Member[T] | None:
        """Do what is due: end slow starts, hand out the longest due as a probe."""
        with self._lock:
            now, slots = self._clock(), self._membership.slots.values()
            ended = end_ramps(slots, now)
            granted = grant_trial(slots, now, tried)
            self._settle()
        if ended:
            self._rotate()
        if granted is None:
            return None
        self._tell(MemberOnTrial(granted.member.name, granted.breaker.lease))
        return granted.member

    def _remaining(self, tried: Collection[Member[T]]) -> Iterator[Member[T]]:
        """Return whom to try as *tried* grows, some of them more than once.

        Live members as the rotation goes on, any it left out, spares, probes. Each
        step is taken from the shared rotation, so that the next caller's substitute
        is another.
        """
        with suppress(NoMemberAvailableError):
            for _ in self.live:
                yield self._rotation()
        left = by_chance(member for member in self.live if member not in tried)
        # Looked up before one of those fails, whose place a spare would take.
        left += self.spares()
        slot = self._membership.slot
        yield from (member for member in left if slot(member).live)
        while (probe := self._probe(tried)) is not None:
            yield probe
