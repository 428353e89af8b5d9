"""How many reads each server got, and why the primary got its own.

A read is a transaction that a reading statement began; the statements after it in the
same transaction are not counted, and nothing of a transaction that a write began.
Counting takes no lock, since the next step of an ``itertools.count`` is atomic.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from threading import Lock
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine

from balancers import MemberSnapshot, Pool, PoolSnapshot

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from balancers import Member

    from .decision import Reason

__all__ = ["ReadCounts", "ReplicaPool", "ReplicaPoolSnapshot", "ReplicaSnapshot"]


class _Counter:
    """Counts, from any number of threads at once.

    Attributes:
        add: Adds one.
    """

    __slots__ = ("_own_steps", "add")

    def __init__(self) -> None:
        self.add = count().__next__
        self._own_steps = 0

    def value(self) -> int:
        """Return the count so far. One thread at a time may call it."""
        found = self.add() - self._own_steps  # to find out takes a step, too
        self._own_steps += 1
        return found


class _CountsByReason(dict[str, int]):
    """Counts by reason; 0 for a reason that is not there."""

    def __missing__(self, _reason: str) -> int:
        return 0


class ReadCounts:
    """Counts the reads of one bind in this process."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Start at zero, as in a forked child: the counts so far are its parent's."""
        self._replicas: dict[Member[Engine], _Counter] = {}
        self._primary: dict[Reason, _Counter] = {}
        self._reading = Lock()

    def on_replica(self, member: Member[Engine]) -> None:
        """Count a read on a replica."""
        counter = self._replicas.get(member)
        if counter is None:  # another thread may add one at the same moment
            counter = self._replicas.setdefault(member, _Counter())
        counter.add()

    def on_primary(self, reason: Reason) -> None:
        """Count a read on the primary."""
        counter = self._primary.get(reason)
        if counter is None:
            counter = self._primary.setdefault(reason, _Counter())
        counter.add()

    def of(self, member: Member[Engine]) -> int:
        """Return how many a replica got."""
        with self._reading:
            counter = self._replicas.get(member)
            return 0 if counter is None else counter.value()

    def by_reason(self) -> dict[str, int]:
        """Return how many the primary got, by the reason that brought them there."""
        with self._reading:
            counters = self._primary.copy()
            return _CountsByReason(
                (reason, counters[reason].value()) for reason in sorted(counters)
            )

    def keep(self, members: Collection[Member[Engine]]) -> None:
        """Forget replicas other than these."""
        for member in self._replicas.keys() - set(members):
            self._replicas.pop(member, None)


@dataclass(frozen=True)
class ReplicaSnapshot(MemberSnapshot):
    """One replica at one moment.

    Attributes:
        reads: How many reads it got from this process: transactions that a read has
            begun.
    """

    reads: int


@dataclass(frozen=True)
class ReplicaPoolSnapshot(PoolSnapshot):
    """The replicas of one bind at one moment, and the reads that the primary got.

    Attributes:
        members: Every replica, in the order of the configuration.
        primary_reads: How many reads the primary got from this process, by the reason
            that brought them there: ``'bind'``, ``'block'``, ``'decorator'``,
            ``'fallback'``, ``'is_read'``, ``'latched'``, ``'learnt'``, ``'method'``,
            ``'model'``, ``'off'``, ``'option'``, ``'outside'`` or ``'pinned'``. A
            reason that has not occurred is not a key, and gives 0. What is read after a
            write in its transaction is not counted.
        writers: The endpoints that were learnt as writers, in alphabetical order.
    """

    members: tuple[ReplicaSnapshot, ...]
    primary_reads: Mapping[str, int]
    writers: tuple[str, ...]


class ReplicaPool(Pool[Engine]):
    """The replicas of one bind.

    Args:
        targets: Their engines by name.
        reads: The counts of the bind's reads.
        writers: The endpoints that were learnt as writers; kept up to date.
        options: The options of any :class:`balancers.Pool`.
    """

    def __init__(
        self,
        targets: Mapping[str, Engine],
        reads: ReadCounts,
        writers: Collection[str],
        **options: Any,
    ) -> None:
        self._reads = reads
        self._writers = writers
        super().__init__(targets, **options)

    def snapshot(self) -> ReplicaPoolSnapshot:
        """Return the state of every replica, and how many reads each server got."""
        found = super().snapshot()
        reads = {member.name: self._reads.of(member) for member in self.members}
        return ReplicaPoolSnapshot(
            members=tuple(
                ReplicaSnapshot(**vars(one), reads=reads.get(one.name, 0))
                for one in found.members
            ),
            live=found.live,
            primary_reads=self._reads.by_reason(),
            writers=tuple(sorted(self._writers)),
        )
