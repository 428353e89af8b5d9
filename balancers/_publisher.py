"""Publishes a pool's pick function, a new one at every change of membership."""

from __future__ import annotations

import math
import os
from contextlib import contextmanager, suppress
from dataclasses import replace
from threading import Lock
from typing import TYPE_CHECKING, Generic, TypeVar

from ._checks import check_seconds
from ._member import change
from ._records import end_ramps, grant_trial
from ._rotations import RotationBuilder, weighted_shuffle
from ._subset import Subset
from .errors import NoMemberAvailableError
from .events import MemberOnTrial, PoolSnapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from ._member import Member, Pick, Strategy
    from ._membership import Membership
    from ._records import MemberRecord, Standing
    from .events import Event

__all__ = ["Publisher"]

T = TypeVar("T")


class Publisher(Generic[T]):
    """Keeps a rotation over the live members, and publishes the function that picks.

    While every member is healthy, that function is the rotation itself. During a wait
    or a slow start it is :meth:`_pick_when_due`, which reads the clock first.
    Strategies and listeners are called outside the lock.

    Args:
        membership: The members; only the publisher changes it from now on.
        strategy: Builds the rotations.
        slow_start: Seconds over which a returning member's share grows.
        limit: The most members in rotation; None for no limit.
        clock: Returns seconds.
        publish: Called with each new pick function.
        tell: Called with each event.
        warn: Called when weights are given that the strategy does not read.

    Attributes:
        live: The members in rotation, in the order given.

    Raises:
        InvalidSettingError: For *slow_start* or *limit*.
        InvalidPickError: The strategy returned no pick function.
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
        self._subset = Subset(limit, getattr(strategy, "prefer", None))
        self._clock = clock
        self._publish = publish
        self._tell = tell
        self._warn = warn
        self._lock = Lock()
        self._pid = os.getpid()
        self._weighings = 0
        self.live = self._subset.choose(tuple(self._fit()))
        self._warn_if_weights_unread()
        self._rotation = self._builder.build(self.live)
        self._publish_pick()

    @contextmanager
    def changing(self, record: MemberRecord[T]) -> Iterator[None]:
        """Hold the lock around a change of *record*, then publish a pick function.

        The rotation is built anew only if the member has become live or ceased to be,
        or may take another share.
        """
        with self._lock:
            before = record.live, record.standing
            yield
            if record.live != before[0]:
                record.start_slowly(self._slow_start)
            changed = (record.live, record.standing) != before
            self._publish_pick()
        if changed:
            self._rotate()

    def reweight(self, weights: Mapping[Member[T], int]) -> list[Member[T]]:
        """Give members other weights, all at once; return those that had another.

        Args:
            weights: By member; the others keep theirs. One that was removed is none.
        """
        with self._lock:
            records = self._membership.records
            changed = [
                member
                for member, weight in weights.items()
                if member in records and member.weight != weight
            ]
            for member in changed:
                was_live = records[member].live
                change(member, weight=weights[member])
                if records[member].live != was_live:
                    records[member].start_slowly(self._slow_start)
            self._weighings += 1
            self._publish_pick()
        if changed:
            self._rotate()
        return changed

    def add(self, record: MemberRecord[T]) -> None:
        """Add a new member, with a slow start.

        Raises:
            DuplicateMemberError: A member has its name.
        """
        with self._lock:
            self._membership.add(record)
            record.start_slowly(self._slow_start)
        self._rotate()
        self._warn_if_weights_unread()

    def _warn_if_weights_unread(self) -> None:
        if self._builder.ignores_weights(self.live):
            self._warn()

    def remove(self, name: str) -> Member[T]:
        """Remove a member; it is in no rotation when this returns.

        Raises:
            UnknownMemberError: There is none of this name.
        """
        with self._lock:
            member = self._membership.remove(name)
            self._publish_pick()
        self._rotate()
        while member in self.live:  # a concurrent change has outdated that rotation
            self._rotate()
        return member

    def reshuffle(self) -> None:
        """Start a new rotation; in a forked child also replace the locks."""
        if os.getpid() != self._pid:
            self._pid = os.getpid()
            self._lock = Lock()
            self._subset.renew()
            for record in self._membership.records.values():
                record.breaker.renew_lock()
                renew = getattr(record.member.feedback, "renew", None)
                if renew is not None:
                    renew()
        self._rotate()

    def others(self, tried: Member[T]) -> Iterator[Member[T]]:
        """Return the members to try after *tried*, each at most once."""
        seen = {tried}
        for other in self._remaining(seen):
            if other not in seen:
                seen.add(other)
                yield other

    def spares(self) -> list[Member[T]]:
        """Return the members that only the limit keeps out, first choice first."""
        if self._subset.limit is None:
            return []
        live = self.live
        return self._subset.order(one for one in self._fit() if one not in live)

    def causes(self) -> dict[str, str]:
        """Return what state each member is in and why, by name."""
        records = self._membership.records.values()
        causes = {record.member.name: record.cause() for record in records}
        return causes | {spare.name: "spare" for spare in self.spares()}

    def snapshot(self) -> PoolSnapshot:
        """Return the state of every member at this moment."""
        with self._lock:
            records = self._membership.records.values()
            members = tuple(record.snapshot() for record in records)
            fit = tuple(self._fit())
        live = tuple(member.name for member in self._subset.choose(fit))
        if len(live) < len(fit):
            members = tuple(replace(one, live=one.name in live) for one in members)
        return PoolSnapshot(members, live)

    def _fit(self) -> dict[Member[T], Standing]:
        """Return the members that may be in rotation, and what each may take."""
        records = self._membership.records.values()
        return {record.member: record.standing for record in records if record.live}

    def _publish_pick(self) -> None:
        """Publish the rotation, or a pick that reads the clock if something is due.

        The caller holds the lock.
        """
        records = self._membership.records.values()
        self._due = min((record.due for record in records), default=math.inf)
        self._publish(self._rotation if self._due == math.inf else self._pick_when_due)

    def _rotate(self) -> None:
        """Build a rotation outside the lock and publish it unless it is outdated.

        The change that outdated it publishes a newer one.
        """
        with self._lock:
            fit, weighings = self._fit(), self._weighings
        live = self._subset.choose(tuple(fit))
        rotation = self._builder.rebuild(live, fit)
        with self._lock:
            # A strategy may have read weights that have been changed, and back.
            if fit == self._fit() and weighings == self._weighings:
                self.live, self._rotation = live, rotation
                self._publish_pick()

    def _pick_when_due(self) -> Member[T]:
        """Start a trial if one is due, else pick from the rotation."""
        if self._clock() >= self._due:
            trial = self._start_trial()
            if trial is not None:
                return trial
        return self._rotation()

    def _start_trial(self, tried: Collection[Member[T]] = ()) -> Member[T] | None:
        """End slow starts that are over; return the member whose trial starts, if any.

        Args:
            tried: Members that the caller does not want again.
        """
        with self._lock:
            now, records = self._clock(), self._membership.records.values()
            ended = end_ramps(records, now)
            granted = grant_trial(records, now, tried)
            self._publish_pick()
        if ended:
            self._rotate()
        if granted is None:
            return None
        self._tell(MemberOnTrial(granted.member.name, granted.breaker.lease))
        return granted.member

    def _remaining(self, tried: Collection[Member[T]]) -> Iterator[Member[T]]:
        """Return the members to try next; *tried* grows meanwhile, some come twice.

        First the live ones in the order of the rotation, then those that it left out,
        spares, and members that are due for a trial. Each step advances the shared
        rotation, so that the next caller's substitute is another.
        """
        with suppress(NoMemberAvailableError):
            for _ in self.live:
                yield self._rotation()
        given = [member for member in self.live if member not in tried]
        left = self._subset.sort(weighted_shuffle(given), given)
        # Read now: a spare would become live as soon as one of those fails.
        left += self.spares()
        record = self._membership.record
        yield from (member for member in left if record(member).live)
        while (trial := self._start_trial(tried)) is not None:
            yield trial
