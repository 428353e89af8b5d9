"""A pool: members, one strategy over the live ones, one breaker for each."""

from __future__ import annotations

import logging
import math
import os
import random
import time
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Generic, TypeVar

from .breaker import CircuitBreaker, Permit, check_seconds
from .errors import (
    InvalidPick,
    InvalidWeight,
    NoMemberAvailable,
    UnknownMember,
    error_text,
)
from .events import (
    Event,
    MemberClosed,
    MemberDrained,
    MemberOpened,
    MemberProbed,
    MemberRestored,
    MemberSnapshot,
    PoolSnapshot,
)
from .strategies import Member, RoundRobin, resolve_balancer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from .events import Listener
    from .strategies import Balancer, Pick, Strategy

T = TypeVar("T")

FIRST_SHARE = 0.1
"""Part of its full share with which a recovered member's slow start begins."""

_log = logging.getLogger(__name__)


class _Slot(Generic[T]):
    """What the pool knows of one member; changed under the pool's lock only."""

    __slots__ = ("breaker", "drained", "last_error", "member", "recovered_at")

    def __init__(self, member: Member[T], breaker: CircuitBreaker) -> None:
        self.member = member
        self.breaker = breaker
        self.drained = False
        self.last_error: str | None = None
        self.recovered_at: float | None = None  # while its share is ramping up

    @property
    def enabled(self) -> bool:
        """Whether it may take traffic or probes at all."""
        return self.member.weight > 0 and not self.drained

    @property
    def live(self) -> bool:
        """Whether it belongs in the rotation."""
        return self.enabled and self.breaker.state == "closed"

    def cause(self) -> str:
        """Return why it is out, or that it is not."""
        if self.drained:
            return "drained"
        if not self.member.weight:
            return "weight 0"
        state, wait = self.breaker.state, self.breaker.retry_in or 0.0
        said = {
            "closed": "in rotation",
            "open": f"open for {wait:.1f} s more",
            "half_open": f"half-open, being probed for {wait:.1f} s more at most",
        }[state]
        return f"{said}: {self.last_error}" if self.last_error else said

    def snapshot(self) -> MemberSnapshot:
        """Return its condition."""
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
    ) -> None:
        def breaker() -> CircuitBreaker:
            return CircuitBreaker(
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
        self._strategy: Strategy[T] = resolve_balancer(balancer)
        self._slow_start = slow_start
        self._listeners = tuple(listeners)
        self._members = _members(targets, weights or {})
        self._slots = {member: _Slot(member, breaker()) for member in self._members}
        self._names = {member.name: member for member in self._members}
        self._lock = Lock()
        self._pid = os.getpid()
        self._version = 0
        self._due = math.inf
        self._live = tuple(m for m in self._members if m.weight)
        self._rotation = self._build(self._live)
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

        First *first*, unless its breaker is open (drained it still counts); else
        the pick, which may be a probe. Then the others that are live, as the
        rotation goes on, so that a dead member's load falls on all survivors alike.
        Last, open members whose wait is over. Report each outcome before asking for
        the next. Empty if nobody is left.

        Raises:
            UnknownMember: *first* is no member of this pool.
        """
        if first is not None and self._slot(first).breaker.state != "closed":
            first = None
        return self._candidates(first)

    def permit(self, member: Member[T]) -> Permit:
        """Return a mark of this moment, taken before a connect to *member*.

        Handed in with the outcome, it tells exactly whether the connect began
        before the latest news of this member, and so has nothing to add.

        Raises:
            UnknownMember: *member* is not of this pool.
        """
        return self._slot(member).breaker.permit()

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
        slot, text = self._slot(member), error_text(error)
        with self._changing(slot):
            opened = slot.breaker.failed(permit)
            slot.last_error = text
        if opened:
            self._tell_opened(slot, text)

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
        slot, text = self._slot(member), error_text(error)
        with self._changing(slot):
            opened = slot.breaker.rest(seconds, permit)
            slot.last_error = text
        if opened:
            self._tell_opened(slot, text)

    def succeeded(self, member: Member[T], permit: Permit | None = None) -> None:
        """Report that a connect to *member* succeeded.

        Takes no lock while the member is healthy.

        Raises:
            UnknownMember: *member* is not of this pool.
        """
        slot = self._slot(member)
        if slot.breaker.quiet:
            return
        with self._changing(slot):
            opened_for = slot.breaker.opened_for or 0.0
            closed = slot.breaker.succeeded(permit)
        if closed:
            self._tell(MemberClosed(member.name, opened_for))

    def drain(self, name: str) -> None:
        """Take the member of this name out of rotation until :meth:`restore`.

        Raises:
            UnknownMember: there is none.
        """
        slot = self._slots[self.member(name)]
        with self._changing(slot):
            news, slot.drained = not slot.drained, True
        if news:
            self._tell(MemberDrained(name))

    def restore(self, name: str) -> None:
        """Undo :meth:`drain`; a member whose breaker is open stays out for that.

        Raises:
            UnknownMember: there is none.
        """
        slot = self._slots[self.member(name)]
        with self._changing(slot):
            news, slot.drained = slot.drained, False
        if news:
            self._tell(MemberRestored(name))

    def causes(self) -> dict[str, str]:
        """Return, for every member by name, what its condition is and why."""
        return {slot.member.name: slot.cause() for slot in self._slots.values()}

    def snapshot(self) -> PoolSnapshot:
        """Return the condition of every member at this moment."""
        with self._lock:
            members = tuple(slot.snapshot() for slot in self._slots.values())
        return PoolSnapshot(members, tuple(one.name for one in members if one.live))

    def reshuffle(self) -> None:
        """Start the rotation anew at a random place.

        Call it in a forked child before its threads start: it has copied its
        parent's rotation, and perhaps a lock held by a thread that it has not.
        """
        if os.getpid() != self._pid:
            self._pid = os.getpid()
            self._lock = Lock()
            for slot in self._slots.values():
                slot.breaker.renew_lock()
        with self._lock:
            self._version += 1
        self._publish()

    def _slot(self, member: Member[T]) -> _Slot[T]:
        try:
            return self._slots[member]
        except (KeyError, TypeError):
            name = getattr(member, "name", member)
            raise UnknownMember(str(name), self._names) from None

    @contextmanager
    def _changing(self, slot: _Slot[T]) -> Iterator[None]:
        """Hold the lock around a change of *slot*, then publish what follows from it.

        Publishing is left out if the slot is as live, or not, as before.
        """
        with self._lock:
            before = slot.live
            yield
            changed = slot.live != before
            if changed:
                self._version += 1
                slot.recovered_at = self.clock() if slot.live else None
            self._settle()
        if changed:
            self._publish()

    def _settle(self) -> None:
        """Work out when to look again, and whether anybody has to. Under the lock."""
        slots = [slot for slot in self._slots.values() if slot.enabled]
        ramps = [slot.recovered_at for slot in slots if slot.recovered_at is not None]
        dues = [slot.breaker.due for slot in slots]
        dues += [since + self._slow_start for since in ramps]
        self._due = min(dues, default=math.inf)
        self.pick = self._rotation if self._due == math.inf else self._guarded

    def _publish(self) -> None:
        """Build a rotation outside the lock and publish it unless it is outdated.

        Whoever outdated it publishes a newer one.
        """
        with self._lock:
            version = self._version
            slots = [slot for slot in self._slots.values() if slot.live]
            ramps = {
                slot.member: slot.recovered_at
                for slot in slots
                if slot.recovered_at is not None
            }
        live = tuple(slot.member for slot in slots)
        rotation = self._build_ramped(live, ramps)
        with self._lock:
            if version == self._version:
                self._live, self._rotation = live, rotation
                self._settle()

    def _build(self, live: tuple[Member[T], ...]) -> Pick[T]:
        """Return the strategy's pick function over *live*, whatever it raises."""
        if not live:
            return self._nobody
        pick: object = self._strategy(live)
        if not callable(pick):
            raise InvalidPick(self._strategy, pick)
        return pick

    def _rebuild(self, live: tuple[Member[T], ...]) -> Pick[T]:
        """Do the same, but by round robin if the strategy fails."""
        try:
            return self._build(live)
        except Exception:
            _log.exception("%r failed; round robin takes its place", self._strategy)
            return RoundRobin()(live)

    def _build_ramped(
        self, live: tuple[Member[T], ...], ramps: Mapping[Member[T], float]
    ) -> Pick[T]:
        """Return a rotation in which the members of *ramps* pass some picks on.

        A pick that falls on one of them stands with a probability that grows with
        time and otherwise goes to a rotation over the rest. So it works for every
        strategy, keeps the ramping member's share exact on average, and spreads what
        it leaves over the others as they share everything else.
        """
        rotation = self._rebuild(live)
        steady = tuple(member for member in live if member not in ramps)
        if not (ramps and steady and self._slow_start):
            return rotation
        return self._thin_out(rotation, self._rebuild(steady), ramps)

    def _thin_out(
        self, rotation: Pick[T], steady: Pick[T], ramps: Mapping[Member[T], float]
    ) -> Pick[T]:
        clock, span = self.clock, self._slow_start

        def pick() -> Member[T]:
            member = rotation()
            since = ramps.get(member)
            if since is None:
                return member
            share = max(FIRST_SHARE, (clock() - since) / span)
            return member if random.random() < share else steady()  # noqa: S311

        return pick

    def _nobody(self) -> Member[T]:
        raise NoMemberAvailable(self.causes())

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
            ended = self._end_ramps()
            granted = self._grant(tried)
            self._settle()
        if ended:
            self._publish()
        if granted is None:
            return None
        self._tell(MemberProbed(granted.member.name, granted.breaker.lease))
        return granted.member

    def _end_ramps(self) -> bool:
        until = self.clock() - self._slow_start
        over = [
            slot
            for slot in self._slots.values()
            if slot.recovered_at is not None and slot.recovered_at <= until
        ]
        for slot in over:
            slot.recovered_at = None
        self._version += bool(over)
        return bool(over)

    def _grant(self, tried: Collection[Member[T]]) -> _Slot[T] | None:
        now = self.clock()
        due = [
            slot
            for slot in self._slots.values()
            if slot.enabled and slot.breaker.due <= now and slot.member not in tried
        ]
        if not due:
            return None
        slot = min(due, key=lambda slot: slot.breaker.due)
        return slot if slot.breaker.acquire() else None

    def _candidates(self, first: Member[T] | None) -> Iterator[Member[T]]:
        try:
            member = self.pick() if first is None else first
        except NoMemberAvailable:
            return
        yield member
        tried = {member}
        for other in self._others(tried):
            if other not in tried:
                tried.add(other)
                yield other
        while (probe := self._probe(tried)) is not None:
            tried.add(probe)
            yield probe

    def _others(self, tried: Collection[Member[T]]) -> Iterator[Member[T]]:
        """Return live members as the rotation goes on, then any it has left out.

        Each step is taken from the shared rotation, so that the next caller's
        substitute is another. Chance orders the left out, by weight: P. Efraimidis
        and P. Spirakis, "Weighted random sampling with a reservoir" (2006).
        """
        for _ in self._live:
            try:
                yield self._rotation()
            except NoMemberAvailable:
                return
        left = [member for member in self._live if member not in tried]
        left.sort(key=lambda one: random.random() ** (1 / one.weight))  # noqa: S311
        yield from (one for one in reversed(left) if self._slots[one].live)

    def _tell_opened(self, slot: _Slot[T], text: str) -> None:
        breaker = slot.breaker
        wait = breaker.retry_in or 0.0
        self._tell(MemberOpened(slot.member.name, breaker.failures, wait, text))

    def _tell(self, event: Event) -> None:
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:
                _log.exception("%r failed on %r", listener, event)


def _members(
    targets: Mapping[str, T], weights: Mapping[str, int]
) -> tuple[Member[T], ...]:
    """Return a member for each target, once every weight is found right."""
    for name, weight in weights.items():
        if name not in targets:
            raise UnknownMember(name, targets)
        whole = isinstance(weight, int) and not isinstance(weight, bool)
        if not whole or weight < 0:
            raise InvalidWeight(name, weight)
    return tuple(
        Member(name, target, weights.get(name, 1)) for name, target in targets.items()
    )
