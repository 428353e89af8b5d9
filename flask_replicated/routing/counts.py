"""How many reads each server got, and why the primary got those that it did.

A read is a transaction that was begun on a server by a read: the statements after it
in the same transaction are not counted. To count one takes a step of a counter, which
no two threads take at once, and no lock.
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

__all__ = ["Reads", "ReplicaPool", "ReplicaPoolSnapshot", "ReplicaSnapshot"]


class _Counter:
    """Counts, from any number of threads at once.

    Attributes:
        add: Adds one.
    """

    __slots__ = ("_looks", "add")

    def __init__(self) -> None:
        self.add = count().__next__
        self._looks = 0

    def look(self) -> int:
        """Return the count so far. One thread at a time may look."""
        found = self.add() - self._looks  # to look is a step, too
        self._looks += 1
        return found


class _Tally(dict[str, int]):
    """Counts by a word; a word that is not there has none."""

    def __missing__(self, _word: str) -> int:
        return 0


class Reads:
    """The reads of one bind in this process."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Begin at nothing, as a forked child does: the rest is its parent's."""
        self._replicas: dict[Member[Engine], _Counter] = {}
        self._primary: dict[Reason, _Counter] = {}
        self._looking = Lock()

    def on_replica(self, member: Member[Engine]) -> None:
        """Count a read on a replica."""
        counter = self._replicas.get(member)
        if counter is None:  # another thread may count the first one, too
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
        with self._looking:
            counter = self._replicas.get(member)
            return 0 if counter is None else counter.look()

    def by_reason(self) -> dict[str, int]:
        """Return how many the primary got, by what brought them there."""
        with self._looking:
            counters = self._primary.copy()
            return _Tally((word, counters[word].look()) for word in sorted(counters))

    def keep(self, members: Collection[Member[Engine]]) -> None:
        """Forget the replicas that are none of these."""
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
    """The replicas of one bind at one moment, and the reads that they did not get.

    Attributes:
        members: Every replica, in the order of the configuration.
        primary_reads: How many reads the primary got from this process, by what brought
            them there: ``'bind'``, ``'block'``, ``'decorator'``, ``'fallback'``,
            ``'is_read'``, ``'latched'``, ``'learnt'``, ``'method'``, ``'model'``,
            ``'off'``, ``'option'``, ``'outside'`` or ``'pinned'``. What has not
            happened is not there, and 0 when asked for.
        writers: The endpoints that were learnt as writers, in alphabetical order.
    """

    members: tuple[ReplicaSnapshot, ...]
    primary_reads: Mapping[str, int]
    writers: tuple[str, ...]


class ReplicaPool(Pool[Engine]):
    """The replicas of one bind.

    Args:
        targets: Their engines by name.
        reads: The bind's reads.
        writers: The endpoints that were learnt as writers; kept up to date.
        options: What any pool takes.
    """

    def __init__(
        self,
        targets: Mapping[str, Engine],
        reads: Reads,
        writers: Collection[str],
        **options: Any,
    ) -> None:
        self._reads = reads
        self._writers = writers
        super().__init__(targets, **options)

    def snapshot(self) -> ReplicaPoolSnapshot:
        """Return the condition of every replica, and who got how many reads."""
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
