"""A pool: members, one strategy over the live ones, one breaker for each."""

from __future__ import annotations

import logging
import random
import time
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Generic, TypeVar

from ._membership import Membership
from ._publisher import Publisher
from ._slots import Slot, make_members
from .breaker import CircuitBreaker, Permit
from .errors import NoMemberAvailableError, error_text
from .events import (
    Event,
    MemberAdded,
    MemberClosed,
    MemberDrained,
    MemberRemoved,
    MemberRestored,
)
from .strategies import RoundRobin, resolve_balancer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from .events import Listener, PoolSnapshot
    from .strategies import Balancer, Member, Pick

__all__ = [
    "Pool",
]

T = TypeVar("T")

_log = logging.getLogger(__name__)


def _warn_of_weights() -> None:
    _log.warning("RoundRobin() reads no weights; Weighted() or Random() does")


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
        weights_unread: called, also by :meth:`add`, when weights are given to a
            balancer that reads none; by default the log says so.

    Attributes:
        pick: returns a live member, or one to probe. Replaced at every change of
            membership: read it anew each time, ``pool.pick()``. Raises
            NoMemberAvailableError, which names every member and its cause.
        clock: the clock.

    Raises:
        UnknownBalancerError: for *balancer*.
        UnknownMemberError: a weight for no member.
        InvalidWeightError: a weight that is no whole number from 0 up.
        InvalidSettingError: a number out of its range.
        InvalidPickError: the balancer returned no pick function; what it raises at
            construction is raised as it is.
    """

    pick: Pick[T]

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
        weights_unread: Callable[[], None] | None = None,
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
        self.clock = clock
        self._new_breaker = breaker
        self._listeners = tuple(listeners)
        members = make_members(targets, weights or {})
        self._membership = Membership(Slot(member, breaker()) for member in members)
        self._publisher = Publisher(
            self._membership,
            resolve_balancer(balancer),
            slow_start=slow_start,
            limit=limit,
            clock=clock,
            publish=partial(setattr, self, "pick"),
            tell=self._tell,
            warn=weights_unread or _warn_of_weights,
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} live={[m.name for m in self.live]}>"

    @property
    def members(self) -> tuple[Member[T], ...]:
        """Every member, in the order given."""
        return tuple(self._membership.slots)

    @property
    def live(self) -> tuple[Member[T], ...]:
        """The members in rotation, in the order given."""
        return self._publisher.live

    @property
    def spares(self) -> tuple[Member[T], ...]:
        """The members that only the limit keeps out of rotation, the next one first."""
        return tuple(self._publisher.spares())

    def member(self, name: str) -> Member[T]:
        """Return the member of this name.

        Raises:
            UnknownMemberError: there is none; it names those that there are.
        """
        return self._membership.member(name)

    def candidates(self, first: Member[T] | None = None) -> Iterator[Member[T]]:
        """Return the members to try for one connection, each at most once.

        First *first*, unless it has failed (drained or at rest it still counts); else
        the pick, which may be a probe. Then the others that are live, as the
        rotation goes on, so that a dead member's load falls on all survivors alike.
        Last, open members whose wait is over. Report each outcome before asking for
        the next. Empty if nobody is left.

        Raises:
            UnknownMemberError: *first* is no member of this pool.
        """
        found = self.first(first)
        return iter(()) if found is None else chain((found,), self.others(found))

    def first(self, wish: Member[T] | None = None) -> Member[T] | None:
        """Return the first member to try: *wish* unless it has failed, else the pick.

        One that only rests (:meth:`rest`) may have room for who knows it already.
        None if nobody is left. It is how :meth:`candidates` begins.

        Raises:
            UnknownMemberError: *wish* is no member of this pool.
        """
        if wish is not None and self._membership.slot(wish).breaker.usable:
            return wish
        try:
            return self.pick()
        except NoMemberAvailableError:
            return None

    def others(self, tried: Member[T]) -> Iterator[Member[T]]:
        """Return the members to try after *tried*: the rest of :meth:`candidates`."""
        return self._publisher.others(tried)

    def permit(self, member: Member[T]) -> Permit:
        """Return a mark of this moment, taken before a connect to *member*.

        Handed in with the outcome, it tells exactly whether the connect began
        before the latest news of this member, and so has nothing to add.

        Raises:
            UnknownMemberError: *member* is not of this pool.
        """
        try:
            # What its permit() returns; asked at each connect, so a call less.
            return self._membership.slots[member].breaker._door.permit  # noqa: SLF001
        except (KeyError, TypeError):
            return self._membership.slot(member).breaker.permit()  # says what is wrong

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
            UnknownMemberError: *member* is not of this pool.
        """
        slot = self._membership.slot(member)
        self._report(slot, error, lambda: slot.breaker.failed(permit))

    def pause(
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
            UnknownMemberError: *member* is not of this pool.
            InvalidSettingError: *seconds* is not above 0.
        """
        slot = self._membership.slot(member)
        self._report(slot, error, lambda: slot.breaker.pause(seconds, permit))

    def succeeded(self, member: Member[T], permit: Permit | None = None) -> None:
        """Report that a connect to *member* succeeded.

        Takes no lock while the member is healthy.

        Raises:
            UnknownMemberError: *member* is not of this pool.
        """
        slot = self._membership.slot(member)
        if not slot.breaker.quiet:
            self._close(slot, lambda: slot.breaker.succeeded(permit))

    def trip(self, member: Member[T], seconds: float, error: BaseException) -> bool:
        """Take *member* out at once: somebody who watches it knows that it is unfit.

        Repeated while that lasts, each time with *seconds* until the next word, it
        keeps callers from probing it meanwhile.

        Returns:
            Whether it was in rotation, or being probed, until now.

        Raises:
            UnknownMemberError: *member* is not of this pool.
            InvalidSettingError: *seconds* is not above 0.
        """
        slot = self._membership.slot(member)
        return self._report(slot, error, lambda: slot.breaker.trip(seconds))

    def recover(self, member: Member[T], permit: Permit | None = None) -> None:
        """Take *member* in again: somebody who watches it knows that it is fit.

        Args:
            member: the one that was looked at.
            permit: from :meth:`permit`, taken before the look; if there was news of
                this member since, the look proves nothing.

        Raises:
            UnknownMemberError: *member* is not of this pool.
        """
        slot = self._membership.slot(member)
        self._close(slot, lambda: slot.breaker.recover(permit))

    def drain(self, name: str) -> None:
        """Take the member of this name out of rotation until :meth:`restore`.

        Raises:
            UnknownMemberError: there is none.
        """
        self._set_drained(name, True, MemberDrained(name))

    def restore(self, name: str) -> None:
        """Undo :meth:`drain`; a member whose breaker is open stays out for that.

        Raises:
            UnknownMemberError: there is none.
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
            DuplicateMemberError: a member has this name.
            InvalidWeightError: *weight* is no whole number from 0 up.
        """
        (member,) = make_members({name: target}, {name: weight})
        self._publisher.add(Slot(member, self._new_breaker()))
        self._tell(MemberAdded(name, weight))
        return member

    def remove(self, name: str) -> Member[T]:
        """Let a member go for good; it is not picked from when this returns.

        Whoever holds it may go on using it and report as before; that changes
        nothing. A new member may take its name at once.

        Returns:
            the member.

        Raises:
            UnknownMemberError: there is none of this name.
        """
        member = self._publisher.remove(name)
        self._tell(MemberRemoved(name))
        return member

    def causes(self) -> dict[str, str]:
        """Return, for every member by name, what its condition is and why."""
        return self._publisher.causes()

    def snapshot(self) -> PoolSnapshot:
        """Return the condition of every member at this moment."""
        return self._publisher.snapshot()

    def reshuffle(self) -> None:
        """Start the rotation anew at a random place.

        Call it in a forked child before its threads start: it has copied its
        parent's rotation, and perhaps a lock held by a thread that it has not.
        """
        self._publisher.reshuffle()

    def _report(
        self, slot: Slot[T], error: BaseException, outcome: Callable[[], bool]
    ) -> bool:
        text = error_text(error)
        with self._publisher.changing(slot):
            slot.last_error = text
            event = slot.opened(error) if outcome() else None
        if event:
            self._tell(event)
        return event is not None

    def _close(self, slot: Slot[T], outcome: Callable[[], bool]) -> None:
        with self._publisher.changing(slot):
            opened_for = slot.breaker.opened_for or 0.0
            closed = outcome()
        if closed:
            self._tell(MemberClosed(slot.member.name, opened_for))

    def _set_drained(self, name: str, drained: bool, event: Event) -> None:
        slot = self._membership.slot(self.member(name))
        with self._publisher.changing(slot):
            news, slot.drained = slot.drained != drained, drained
        if news:
            self._tell(event)

    def _tell(self, event: Event) -> None:
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:  # noqa: BLE001 - a listener hurts nobody
                _log.exception("%r failed on %r", listener, event)
