"""A pool: members, a circuit breaker for each, a strategy over the live ones."""

from __future__ import annotations

import logging
import random
import time
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Generic, TypeVar

from ._checks import check_fraction, check_weights
from ._membership import Membership
from ._publisher import Publisher
from ._records import MemberRecord, ask_for_feedback, make_members
from .breaker import CircuitBreaker, Permit, latest_permit
from .errors import NoMemberAvailableError, WeightsUnreadError, error_text
from .events import (
    Event,
    MemberAdded,
    MemberClosed,
    MemberDrained,
    MemberRemoved,
    MemberRestored,
    MemberReweighted,
)
from .strategies import RoundRobin, reads_weights, resolve_balancer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from ._member import Member, Pick, Strategy
    from .events import Listener, PoolSnapshot
    from .strategies import Balancer

__all__ = ["Pool"]

T = TypeVar("T")

logger = logging.getLogger("balancers")


def _warn_of_unread_weights(strategy: object) -> None:
    logger.warning("%r reads no weights; Weighted() or Random() does", strategy)


class Pool(Generic[T]):
    """Things to pick from, some of which may be out.

    While every member is healthy, :attr:`pick` is the strategy's own pick function,
    without a lock or a check. While a member is out, :attr:`pick` first reads the
    clock, and gives an open member whose wait is over to one caller as a trial. A
    change of membership builds a new rotation over the live members, so that a lost
    member's load is spread over all others.

    A pool is safe to use from many threads. It starts none and never waits.

    Args:
        targets: What to pick from, by name, in order.
        balancer: Anything that :func:`balancers.strategies.resolve_balancer` takes.
        weights: By name; others weigh 1, and 0 takes no traffic.
        threshold: See :class:`balancers.CircuitBreaker`, as for the next two.
        reset: Seconds.
        max_reset: Seconds.
        slow_start: Seconds over which a recovered or restored member's share grows
            from a tenth to the full one; 0 for at once. It does not apply when the
            pool is made, nor while no other member is in rotation.
        clock: Returns seconds that never go backwards.
        listeners: Each is called with every :data:`balancers.Event`.
        lease: Seconds that a trial may take.
        jitter: Returns a number from 0 to 1; spreads the waits.
        limit: The most members in rotation; None for no limit. The choice is random,
            by weight, and stable: one that is out is replaced by the next in an order
            of this process, and returns to its position when it recovers. The others
            are spares, tried only if all in rotation fail.
        weights_unread: Called, also by :meth:`add`, when weights are given to a
            balancer that reads none; by default a warning is logged.

    Attributes:
        pick: Returns a live member, or one on trial. Replaced at every change of
            membership: read it anew each time, ``pool.pick()``. Raises
            NoMemberAvailableError, which names every member and its cause.
        clock: The clock.

    Raises:
        UnknownBalancerError: *balancer* neither is nor names one.
        UnknownMemberError: A weight is given for a name that is no member's.
        InvalidWeightError: A weight is no whole number from 0 up.
        InvalidSettingError: A number is out of its range.
        InvalidPickError: The balancer returned no pick function. What it raises at
            construction propagates.
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
        breaker()  # validates the numbers, even if there is no member
        self.clock = clock
        self._new_breaker = breaker
        self._listeners = tuple(listeners)
        members = make_members(targets, weights or {})
        self._membership = Membership(
            MemberRecord(member, breaker()) for member in members
        )
        strategy: Strategy[T] = resolve_balancer(balancer)
        self._strategy = strategy
        for member in members:
            ask_for_feedback(strategy, member)
        self._publisher = Publisher(
            self._membership,
            strategy,
            slow_start=slow_start,
            limit=limit,
            clock=clock,
            publish=partial(setattr, self, "pick"),
            tell=self._tell,
            warn=weights_unread or partial(_warn_of_unread_weights, strategy),
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} live={[m.name for m in self.live]}>"

    @property
    def members(self) -> tuple[Member[T], ...]:
        """Every member, in the order given."""
        return tuple(self._membership.records)

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
            UnknownMemberError: There is none; the error lists the known names.
        """
        return self._membership.member(name)

    def candidates(self, first: Member[T] | None = None) -> Iterator[Member[T]]:
        """Return the members to try for one connection, each at most once.

        First comes *first*, unless it has failed (drained or paused it still comes);
        else the pick, which may be a trial. Then the other live members in the order
        of the rotation, so that a lost member's load is spread over all of them.
        Last, open members whose wait is over. Report each outcome before you ask for
        the next member. Empty if no member is available.

        Raises:
            UnknownMemberError: *first* is no member of this pool.
        """
        found = self.first(first)
        return iter(()) if found is None else chain((found,), self.others(found))

    def first(self, wish: Member[T] | None = None) -> Member[T] | None:
        """Return the first member to try: *wish* unless it has failed, else the pick.

        A *wish* that is only paused (:meth:`pause`) is returned: it may still serve
        callers that use it already. None if no member is available. This is the first
        step of :meth:`candidates`.

        Raises:
            UnknownMemberError: *wish* is no member of this pool.
        """
        if wish is not None and self._membership.record(wish).breaker.usable:
            return wish
        try:
            return self.pick()
        except NoMemberAvailableError:
            return None

    def others(self, tried: Member[T]) -> Iterator[Member[T]]:
        """Return the members to try after *tried*: the rest of :meth:`candidates`."""
        return self._publisher.others(tried)

    def permit(self, member: Member[T]) -> Permit:
        """Return a permit; take it before a connect to *member*.

        Given with the outcome, it tells exactly whether the connect began before the
        latest change of the member's breaker. If so, the outcome counts for nothing.

        Raises:
            UnknownMemberError: *member* is not of this pool.
        """
        return self._membership.record(member).breaker.permit()

    def permits(self, member: Member[T]) -> Callable[[], Permit]:
        """Return a function that does what :meth:`permit` does for *member*.

        For a caller that connects to the same member again and again.

        Raises:
            UnknownMemberError: *member* is not of this pool.
        """
        return partial(latest_permit, self._membership.record(member).breaker)

    def failed(
        self, member: Member[T], error: BaseException, permit: Permit | None = None
    ) -> None:
        """Report that a connect to *member* failed.

        Args:
            member: The member.
            error: The cause; only one line of text without passwords is kept.
            permit: From :meth:`permit`; without one, failures within 0.05 seconds
                count as one.

        Raises:
            UnknownMemberError: *member* is not of this pool.
        """
        record = self._membership.record(member)
        self._report(record, error, lambda: record.breaker.failed(permit))

    def pause(
        self,
        member: Member[T],
        seconds: float,
        error: BaseException,
        permit: Permit | None = None,
    ) -> None:
        """Leave *member* out for *seconds* without counting a failure.

        For a server that is up but rejects callers, such as with "too many clients".
        Afterwards one caller gets it as a trial. A member that is out already keeps
        its wait.

        Raises:
            UnknownMemberError: *member* is not of this pool.
            InvalidSettingError: *seconds* is not above 0.
        """
        record = self._membership.record(member)
        self._report(record, error, lambda: record.breaker.pause(seconds, permit))

    def succeeded(self, member: Member[T], permit: Permit | None = None) -> None:
        """Report that a connect to *member* succeeded.

        Takes no lock while the member is healthy.

        Raises:
            UnknownMemberError: *member* is not of this pool.
        """
        record = self._membership.record(member)
        if not record.breaker.quiet:
            self._close(record, lambda: record.breaker.succeeded(permit))

    def trip(self, member: Member[T], seconds: float, error: BaseException) -> bool:
        """Take *member* out at once: a background check has found it unfit.

        Call it after every check that fails, with *seconds* longer than the time to
        the next one: that keeps callers from trials of it.

        Returns:
            Whether its breaker was closed or half-open until now.

        Raises:
            UnknownMemberError: *member* is not of this pool.
            InvalidSettingError: *seconds* is not above 0.
        """
        record = self._membership.record(member)
        return self._report(record, error, lambda: record.breaker.trip(seconds))

    def recover(self, member: Member[T], permit: Permit | None = None) -> None:
        """Take *member* in again at once: a background check has found it fit.

        Args:
            member: The member.
            permit: From :meth:`permit`, taken before the check; if the member's
                breaker has changed since, nothing happens.

        Raises:
            UnknownMemberError: *member* is not of this pool.
        """
        record = self._membership.record(member)
        self._close(record, lambda: record.breaker.recover(permit))

    def drain(self, name: str) -> None:
        """Take the member of this name out of rotation until :meth:`restore`.

        Raises:
            UnknownMemberError: There is none.
        """
        self._set_drained(name, True, MemberDrained(name))

    def restore(self, name: str) -> None:
        """Undo :meth:`drain`; a member whose breaker is open stays out.

        Raises:
            UnknownMemberError: There is none.
        """
        self._set_drained(name, False, MemberRestored(name))

    def add(self, name: str, target: T, weight: int = 1) -> Member[T]:
        """Add a new member, which takes its share of the picks from now on.

        If the pool has a slow start, the member begins with one, as a recovered
        member does: its caches are cold.

        Args:
            name: A name that no member has.
            target: What to pick.
            weight: Its share relative to the others; 0 takes no traffic.

        Returns:
            The member.

        Raises:
            DuplicateMemberError: A member has this name.
            InvalidWeightError: *weight* is no whole number from 0 up.
        """
        (member,) = make_members({name: target}, {name: weight})
        try:
            ask_for_feedback(self._strategy, member)
        except Exception:  # of a custom strategy; the member is of use without
            logger.exception("%r cannot be told of %r", self._strategy, name)
        self._publisher.add(MemberRecord(member, self._new_breaker()))
        self._tell(MemberAdded(name, weight))
        return member

    def remove(self, name: str) -> Member[T]:
        """Remove a member; it is not picked any more when this returns.

        A caller that holds it may go on using it and report on it as before; reports
        have no effect. A new member may take its name at once.

        Returns:
            The member.

        Raises:
            UnknownMemberError: There is none of this name.
        """
        member = self._publisher.remove(name)
        self._tell(MemberRemoved(name))
        return member

    def reweight(self, weights: Mapping[str, int]) -> None:
        """Change the weights of some members; the others keep theirs.

        All at once: after an error none is changed. A member whose weight was 0 begins
        with a slow start, if the pool has one.

        Args:
            weights: By name; 0 takes no traffic.

        Raises:
            WeightsUnreadError: The balancer reads no weights.
            UnknownMemberError: There is no member of a name.
            InvalidWeightError: A weight is no whole number from 0 up.
        """
        if not reads_weights(self._strategy):
            raise WeightsUnreadError(self._strategy)
        members = self._membership.names
        check_weights(members, weights)
        by_member = {members[name]: weight for name, weight in weights.items()}
        for member in self._publisher.reweight(by_member):
            self._tell(MemberReweighted(member.name, by_member[member]))

    def reduce(self, member: Member[T], share: float) -> None:
        """Let *member* take only a part of its share, until told otherwise.

        Relative to the members that take most of theirs: if all are reduced alike, it
        makes no difference. It works with every balancer, also one that reads no
        weights, and leaves the weight as it is.

        Args:
            member: The member.
            share: Above 0; 1 is the full share.

        Raises:
            UnknownMemberError: *member* is not of this pool.
            InvalidSettingError: *share* is not above 0 and at most 1.
        """
        check_fraction("share", share)
        record = self._membership.record(member)
        with self._publisher.changing(record):
            record.share = share

    def causes(self) -> dict[str, str]:
        """Return what state each member is in and why, by name."""
        return self._publisher.causes()

    def snapshot(self) -> PoolSnapshot:
        """Return the state of every member at this moment."""
        return self._publisher.snapshot()

    def reshuffle(self) -> None:
        """Start a new rotation at a random position.

        Call it in a forked child before its threads start: the child has a copy of
        its parent's rotation, and perhaps of a lock that a thread of the parent held.
        """
        self._publisher.reshuffle()

    def _report(
        self, record: MemberRecord[T], error: BaseException, outcome: Callable[[], bool]
    ) -> bool:
        text = error_text(error)
        with self._publisher.changing(record):
            record.last_error = text
            event = record.opened(error) if outcome() else None
        if event:
            self._tell(event)
        return event is not None

    def _close(self, record: MemberRecord[T], outcome: Callable[[], bool]) -> None:
        with self._publisher.changing(record):
            opened_for = record.breaker.opened_for or 0.0
            closed = outcome()
        if closed:
            self._forget_use(record.member)
            self._tell(MemberClosed(record.member.name, opened_for))

    def _forget_use(self, member: Member[T]) -> None:
        """Let a member's feedback forget what it knows: that is of its outage."""
        forget = getattr(member.feedback, "forget", None)  # a custom one may lack it
        if forget is None:
            return
        try:
            forget()
        except Exception:
            logger.exception("%r failed for %r", forget, member.name)

    def _set_drained(self, name: str, drained: bool, event: Event) -> None:
        record = self._membership.record(self.member(name))
        with self._publisher.changing(record):
            changed, record.drained = record.drained != drained, drained
        if changed:
            self._tell(event)

    def _tell(self, event: Event) -> None:
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:  # a faulty listener must not affect the pool
                logger.exception("%r failed on %r", listener, event)
