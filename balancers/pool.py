"""A pool: members, one strategy over the live ones, one breaker for each."""

from __future__ import annotations

import logging
import math
import os
import random
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Generic, TypeVar
from weakref import WeakSet

from ._membership import GONE
from ._rotations import RotationBuilder, by_chance
from ._slots import Slot, end_ramps, grant_probe, make_members
from ._subset import Subset
from .breaker import CircuitBreaker, Permit, check_seconds
from .errors import DuplicateMember, NoMemberAvailable, UnknownMember, error_text
from .events import (
    Event,
    MemberAdded,
    MemberClosed,
    MemberDrained,
    MemberProbed,
    MemberRemoved,
    MemberRestored,
    PoolSnapshot,
)
from .strategies import RoundRobin, resolve_balancer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from .events import Listener
    from .strategies import Balancer, Member, Pick

T = TypeVar("T")

_log = logging.getLogger(__name__)


class Pool(Generic[T]):
    """Things to pick from, of which some may be out.

    While every member is in good health, :attr:`pick` is the strategy's own pick
    function: no lock, no check. While a member is out, :attr:`pick` first looks at
    the clock, and hands an open member whose wait is over to one caller as a probe.
    A change of membership builds a new rotation over the live members, so that a
    lost member's load falls on all others alike.

    A pool is safe to use from many threads. It starts none and never waits.

    Args:
        targets: what to pick from, by name, in order.
        balancer: whatever :func:`balancers.resolve_balancer` takes.
        weights: by name; others weigh 1, and 0 takes no traffic.
        threshold: see :class:`balancers.CircuitBreaker`, as for the next two.
        reset: seconds.
        max_reset: seconds.
        slow_start: seconds over which a recovered or restored member's share grows
            from a tenth to the whole; 0 for at once. Never at the pool's start, and
            not while there is nobody else to carry the load.
        clock: returns seconds that never go backwards.
        listeners: each is called with every :data:`balancers.Event`.
        lease: seconds that a probe may take.
        jitter: returns a number from 0 to 1; spreads the waits.
        limit: at most so many members are in the rotation, of those that could be.
            The choice is random, by weight, and stable: one that is out is replaced
            by the next in an order that is this process's own, and has its place
            back when it returns. The others are spare: tried only if all in the
            rotation fail. None for no limit.

    Attributes:
        pick: returns a live member, or one to probe. Replaced at every change of
            membership: read it anew each time, ``pool.pick()``. Raises
            NoMemberAvailable, which names every member and its cause.
        clock: the clock.

    Raises:
        UnknownBalancer: for *balancer*.
        UnknownMember: a weight for no member.
        InvalidWeight: a weight that is no whole number from 0 up.
        InvalidSetting: a number out of its range.
        InvalidPick: the balancer returned no pick function; what it raises at
            construction is raised as it is.
    """

    pick: Pick[T]

    _version = 0
    _due = math.inf

    def __init__(
        self,
        targets: Mapping[str, T],
        *,
        balancer: Balancer[T] = RoundRobin,
        weights: Mapping[str, int] | None = None,
        threshold: int = 2,
        reset: float = 1.0,
        max_reset: float = 60.0,
        slow_start: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        listeners: Iterable[Listener] = (),
        lease: float = 10.0,
        jitter: Callable[[], float] = random.random,
        limit: int | None = None,
    ) -> None:
        breaker = partial(
            CircuitBreaker,
            threshold=threshold,
            reset=reset,
            max_reset=max_reset,
            lease=lease,
            clock=clock,
            jitter=jitter,
        )
        breaker()  # says what is wrong with the numbers, even if there is no member
        check_seconds("slow_start", slow_start)
        self.clock = clock
        self._builder: RotationBuilder[T] = RotationBuilder(
            resolve_balancer(balancer), clock=clock, causes=self.causes
        )
        self._new_breaker = breaker
        self._slow_start = slow_start
        self._listeners = tuple(listeners)
        self._members = make_members(targets, weights or {})
        self._slots = {member: Slot(member, breaker()) for member in self._members}
        self._names = {member.name: member for member in self._members}
        # Those removed that somebody still holds, and may report on.
        self._gone: WeakSet[Member[T]] = WeakSet()
        self._lock = Lock()
        self._pid = os.getpid()
        self._subset = Subset(limit)
        self._live = self._subset.choose(tuple(m for m in self._members if m.weight))
        self._rotation = self._builder.build_first(self._live)
        self.pick = self._rotation

    def __repr__(self) -> str:
        return f"<{type(self).__name__} live={[m.name for m in self._live]}>"

    @property
    def members(self) -> tuple[Member[T], ...]:
        """Every member, in the order given."""
        return self._members

    @property
    def live(self) -> tuple[Member[T], ...]:
        """The members in rotation, in the order given."""
        return self._live

    @property
    def spares(self) -> tuple[Member[T], ...]:
        """The members that only the limit keeps out of rotation, the next one first."""
        return tuple(self._spares())

    def member(self, name: str) -> Member[T]:
        """Return the member of this name.

        Raises:
            UnknownMember: there is none; it names those that there are.
        """
        try:
            return self._names[name]
        except KeyError:
            raise UnknownMember(name, self._names) from None

    def candidates(self, first: Member[T] | None = None) -> Iterator[Member[T]]:
        """Return the members to try for one connection, each at most once.

        First *first*, unless it has failed (drained or at rest it still counts); else
        the pick, which may be a probe. Then the others that are live, as the
        rotation goes on, so that a dead member's load falls on all survivors alike.
        Last, open members whose wait is over. Report each outcome before asking for
        the next. Empty if nobody is left.

        Raises:
            UnknownMember: *first* is no member of this pool.
        """
        return self._candidates(self.first(first))

    def first(self, wish: Member[T] | None = None) -> Member[T] | None:
        """Return the first member to try: *wish* unless it has failed, else the pick.

        One that only rests (:meth:`rest`) may have room for who knows it already.
        None if nobody is left. It is how :meth:`candidates` begins.

        Raises:
            UnknownMember: *wish* is no member of this pool.
        """
        if wish is not None and self._slot(wish).breaker.usable:
            return wish
        try:
            return self.pick()
        except NoMemberAvailable:
            return None

    def others(self, tried: Member[T]) -> Iterator[Member[T]]:
        """Return the members to try after *tried*: the rest of :meth:`candidates`."""
        seen = {tried}
        for other in self._rest(seen):
            if other not in seen:
                seen.add(other)
                yield other
        while (probe := self._probe(seen)) is not None:
            seen.add(probe)
            yield probe

    def permit(self, member: Member[T]) -> Permit:
        """Return a mark of this moment, taken before a connect to *member*.

        Handed in with the outcome, it tells exactly whether the connect began
        before the latest news of this member, and so has nothing to add.

        Raises:
            UnknownMember: *member* is not of this pool.
        """
        try:
            # What its permit() returns; asked at each connect, so a call less.
            return self._slots[member].breaker._door.permit  # noqa: SLF001
        except (KeyError, TypeError):
            return self._slot(member).breaker.permit()  # says what is wrong

    def failed(
        self, member: Member[T], error: BaseException, permit: Permit | None = None
    ) -> None:
        """Report that a connect to *member* failed.

        Args:
            member: the one tried.
            error: why; only one line of text without passwords is kept.
            permit: from :meth:`permit`; without one, failures within a twentieth of
                a second count as one.

        Raises:
            UnknownMember: *member* is not of this pool.
        """
        slot = self._slot(member)
        self._report(slot, error, lambda: slot.breaker.failed(permit))

    def rest(
        self,
        member: Member[T],
        seconds: float,
        error: BaseException,
        permit: Permit | None = None,
    ) -> None:
        """Leave *member* out for *seconds* without counting a failure.

        For a server that lives but turns callers away, such as "too many clients".
        Afterwards one caller probes it. A member that is out already stays so.

        Raises:
            UnknownMember: *member* is not of this pool.
            InvalidSetting: *seconds* is not above 0.
        """
        slot = self._slot(member)
        self._report(slot, error, lambda: slot.breaker.rest(seconds, permit))

    def succeeded(self, member: Member[T], permit: Permit | None = None) -> None:
        """Report that a connect to *member* succeeded.

        Takes no lock while the member is healthy.

        Raises:
            UnknownMember: *member* is not of this pool.
        """
        slot = self._slot(member)
        if not slot.breaker.quiet:
            self._close(slot, lambda: slot.breaker.succeeded(permit))

    def trip(self, member: Member[T], seconds: float, error: BaseException) -> bool:
        """Take *member* out at once: somebody who watches it knows that it is unfit.

        Repeated while that lasts, each time with *seconds* until the next word, it
        keeps callers from probing it meanwhile.

        Returns:
            Whether it was in rotation, or being probed, until now.

        Raises:
            UnknownMember: *member* is not of this pool.
            InvalidSetting: *seconds* is not above 0.
        """
        slot = self._slot(member)
        return self._report(slot, error, lambda: slot.breaker.trip(seconds))

    def recover(self, member: Member[T], permit: Permit | None = None) -> None:
        """Take *member* in again: somebody who watches it knows that it is fit.

        Args:
            member: the one that was looked at.
            permit: from :meth:`permit`, taken before the look; if there was news of
                this member since, the look proves nothing.

        Raises:
            UnknownMember: *member* is not of this pool.
        """
        slot = self._slot(member)
        self._close(slot, lambda: slot.breaker.recover(permit))

    def drain(self, name: str) -> None:
        """Take the member of this name out of rotation until :meth:`restore`.

        Raises:
            UnknownMember: there is none.
        """
        self._set_drained(name, True, MemberDrained(name))

    def restore(self, name: str) -> None:
        """Undo :meth:`drain`; a member whose breaker is open stays out for that.

        Raises:
            UnknownMember: there is none.
        """
        self._set_drained(name, False, MemberRestored(name))

    def add(self, name: str, target: T, weight: int = 1) -> Member[T]:
        """Take in a new member, which has its share of the picks from here on.

        Where the pool has a slow start, it begins with one: it is as cold as one
        that has recovered.

        Args:
            name: a name that no member has.
            target: what to pick.
            weight: its share relative to the others; 0 takes no traffic.

        Returns:
            the member.

        Raises:
            DuplicateMember: a member has this name.
            InvalidWeight: *weight* is no whole number from 0 up.
        """
        (member,) = make_members({name: target}, {name: weight})
        slot = Slot(member, self._new_breaker())
        with self._lock:
            if name in self._names:
                raise DuplicateMember(name, self._names)
            slot.start_slowly(self._slow_start)
            self._set_members({**self._slots, member: slot})
        self._publish()
        self._builder.warn_of_weights(self._live)
        self._tell(MemberAdded(name, weight))
        return member

    def remove(self, name: str) -> Member[T]:
        """Let a member go for good; it is not picked from when this returns.

        Whoever holds it may go on using it and report as before; that changes
        nothing. A new member may take its name at once.

        Returns:
            the member.

        Raises:
            UnknownMember: there is none of this name.
        """
        with self._lock:
            member = self.member(name)
            self._gone.add(member)
            # Reports that are under way look for the breaker once they have the lock.
            self._slots[member].breaker = GONE
            self._set_members(
                {one: slot for one, slot in self._slots.items() if one is not member}
            )
            self._settle()
        self._publish()
        while member in self._live:  # another change came between
            self._publish()
        self._tell(MemberRemoved(name))
        return member

    def _set_members(self, slots: dict[Member[T], Slot[T]]) -> None:
        """Replace what is known of members, never change it: others read it meanwhile.

        Under the lock; publish afterwards.
        """
        self._slots = slots
        self._members = tuple(slots)
        self._names = {member.name: member for member in slots}
        self._version += 1

    def causes(self) -> dict[str, str]:
        """Return, for every member by name, what its condition is and why."""
        causes = {slot.member.name: slot.cause() for slot in self._slots.values()}
        return causes | {spare.name: "spare" for spare in self._spares()}

    def snapshot(self) -> PoolSnapshot:
        """Return the condition of every member at this moment."""
        with self._lock:
            members = tuple(slot.snapshot() for slot in self._slots.values())
            fit = tuple(slot.member for slot in self._slots.values() if slot.live)
        live = tuple(member.name for member in self._subset.choose(fit))
        if len(live) < len(fit):
            members = tuple(replace(one, live=one.name in live) for one in members)
        return PoolSnapshot(members, live)

    def reshuffle(self) -> None:
        """Start the rotation anew at a random place.

        Call it in a forked child before its threads start: it has copied its
        parent's rotation, and perhaps a lock held by a thread that it has not.
        """
        if os.getpid() != self._pid:
            self._pid = os.getpid()
            self._lock = Lock()
            self._subset.renew()
            for slot in self._slots.values():
                slot.breaker.renew_lock()
        with self._lock:
            self._version += 1
        self._publish()

    def _slot(self, member: Member[T]) -> Slot[T]:
        try:
            return self._slots[member]
        except (KeyError, TypeError):
            if member in self._gone:
                return Slot(member, GONE)
            name = getattr(member, "name", member)
            raise UnknownMember(str(name), self._names) from None

    def _report(
        self, slot: Slot[T], error: BaseException, outcome: Callable[[], bool]
    ) -> bool:
        text = error_text(error)
        with self._changing(slot):
            slot.last_error = text
            event = slot.opened() if outcome() else None
        if event:
            self._tell(event)
        return event is not None

    def _close(self, slot: Slot[T], outcome: Callable[[], bool]) -> None:
        with self._changing(slot):
            opened_for = slot.breaker.opened_for or 0.0
            closed = outcome()
        if closed:
            self._tell(MemberClosed(slot.member.name, opened_for))

    def _set_drained(self, name: str, drained: bool, event: Event) -> None:
        slot = self._slot(self.member(name))
        with self._changing(slot):
            news, slot.drained = slot.drained != drained, drained
        if news:
            self._tell(event)

    @contextmanager
    def _changing(self, slot: Slot[T]) -> Iterator[None]:
        """Hold the lock around a change of *slot*, then publish what follows from it.

        Publishing is left out if the slot is as live, or not, as before.
        """
        with self._lock:
            before = slot.live
            yield
            changed = slot.live != before
            if changed:
                self._version += 1
                slot.start_slowly(self._slow_start)
            self._settle()
        if changed:
            self._publish()

    def _settle(self) -> None:
        """Work out when to look again, and whether anybody has to. Under the lock."""
        self._due = min((slot.due for slot in self._slots.values()), default=math.inf)
        self.pick = self._rotation if self._due == math.inf else self._guarded

    def _publish(self) -> None:
        """Build a rotation outside the lock and publish it unless it is outdated.

        Whoever outdated it publishes a newer one.
        """
        with self._lock:
            version = self._version
            slots = [slot for slot in self._slots.values() if slot.live]
            ramps = {slot.member: slot.ramp for slot in slots if slot.ramp}
        live = self._subset.choose(tuple(slot.member for slot in slots))
        ramps = {member: ramps[member] for member in live if member in ramps}
        rotation = self._builder.rebuild(live, ramps)
        with self._lock:
            if version == self._version:
                self._live, self._rotation = live, rotation
                self._settle()

    def _guarded(self) -> Member[T]:
        """Pick while something is due at some time."""
        if self.clock() >= self._due:
            probe = self._probe()
            if probe is not None:
                return probe
        return self._rotation()

    def _probe(self, tried: Collection[Member[T]] = ()) -> Member[T] | None:
        """Do what is due: end slow starts, hand out the longest due as a probe."""
        with self._lock:
            now, slots = self.clock(), self._slots.values()
            ended = end_ramps(slots, now)
            self._version += ended
            granted = grant_probe(slots, now, tried)
            self._settle()
        if ended:
            self._publish()
        if granted is None:
            return None
        self._tell(MemberProbed(granted.member.name, granted.breaker.lease))
        return granted.member

    def _candidates(self, first: Member[T] | None) -> Iterator[Member[T]]:
        if first is not None:
            yield first
            yield from self.others(first)

    def _rest(self, tried: Collection[Member[T]]) -> Iterator[Member[T]]:
        """Return live members as the rotation goes on, any it left out, then spares.

        Each step is taken from the shared rotation, so that the next caller's
        substitute is another.
        """
        with suppress(NoMemberAvailable):
            for _ in self._live:
                yield self._rotation()
        left = by_chance(member for member in self._live if member not in tried)
        yield from (member for member in left if self._slot(member).live)
        yield from (member for member in self._spares() if self._slot(member).live)

    def _spares(self) -> list[Member[T]]:
        """Return those that only the limit keeps out of the rotation, in order."""
        if self._subset.limit is None:
            return []
        fit = [member for member, slot in self._slots.items() if slot.live]
        live = self._live
        return self._subset.order(member for member in fit if member not in live)

    def _tell(self, event: Event) -> None:
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:  # noqa: BLE001 - a listener hurts nobody
                _log.exception("%r failed on %r", listener, event)
