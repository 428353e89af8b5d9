"""The replicas of one bind as a pool, and what a status page is told of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from sqlalchemy import Engine

from balancers import MemberSnapshot, Pool, PoolSnapshot
from flask_replicated.settings.binds import PORTS

from .decision import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from balancers import Member

    from .counts import ReadCounts
    from .incidents import Incidents

__all__ = [
    "ReplicaFacts",
    "ReplicaPool",
    "ReplicaPoolSnapshot",
    "ReplicaSnapshot",
    "ReplicaState",
]

ReplicaState: TypeAlias = Literal["closed", "open", "half_open", "drained"]
"""``'closed'`` is healthy, ``'open'`` is out, ``'half_open'`` is on trial, and
``'drained'`` was taken out by hand, whatever else is wrong with it."""


class ReplicaFacts(NamedTuple):
    """What is known of a replica beside its place in the pool.

    Attributes:
        since: When its state became what it is, in Unix seconds, by state.
        cause: Why it is out, in one word; None while it is not, or unknown.
        role: ``'replica'``, ``'primary'``, or None if it has not told.
        lag: Seconds that it is behind the primary; None if unknown.
        position: The log position that it shows, or None if it has not told.
        latency: Seconds that the last look took that got an answer; None before it.
        idle: Open connections that are not in use; None where that cannot be seen.
        used: Connections in use, or being opened; None where that cannot be seen.
    """

    since: Mapping[str, float]
    cause: str | None = None
    role: Literal["primary", "replica"] | None = None
    lag: float | None = None
    position: str | None = None
    latency: float | None = None
    idle: int | None = None
    used: int | None = None


@dataclass(frozen=True)
class ReplicaSnapshot(MemberSnapshot):
    """One replica at one moment, as this process sees it.

    Attributes:
        state: ``'closed'`` (healthy), ``'open'`` (out), ``'half_open'`` (on trial) or
            ``'drained'``, whatever else is wrong with it.
        reads: How many reads it got from this process: transactions that a read has
            begun.
        host: The host of its bind's URL; several are separated by commas. None for a
            file.
        port: The port of its URL, else its database's usual one. None without a host.
        role: What its server says that it is: ``'replica'`` or ``'primary'``. None if
            it has not told yet.
        lag_seconds: Seconds that it is behind the primary, by the last look. None if it
            is unknown, also because the replica does not answer: that is not zero.
        position: The log position that it shows, by the last look: a PostgreSQL LSN, or
            the number of the last transaction by MariaDB's domain or MySQL's server.
            None if it has not told.
        latency: Seconds that the last background look took which got an answer; None
            before it.
        connections_idle: Connections of this process's that are open and not in use;
            None where its connection pool keeps none.
        connections_used: Connections of this process's that are in use, or are being
            opened; None likewise.
        reason: Why it is not in rotation, in one word or two: ``'drained'``,
            ``'weight 0'`` or ``'spare'`` (of ``REPLICATED_MAX_POOLS``); where it is
            out ``'lag'``, ``'role'``, ``'diverged'``, ``'silent'``, ``'storage'``,
            ``'misconfigured'``, ``'busy'`` or ``'down'``. None while it is.
        since: When it got into its state, in Unix seconds. A trial that fails does not
            begin a new outage.
    """

    state: ReplicaState  # type: ignore[assignment]  # a breaker cannot be drained
    reads: int
    host: str | None
    port: int | None
    role: Literal["primary", "replica"] | None
    lag_seconds: float | None
    position: str | None
    latency: float | None
    connections_idle: int | None
    connections_used: int | None
    reason: str | None
    since: float


@dataclass(frozen=True)
class ReplicaPoolSnapshot(PoolSnapshot):
    """The replicas of one bind at one moment, and the reads that the primary got.

    All counts are this process's, since it was started or forked.

    Attributes:
        members: Every replica, in the order of the configuration.
        primary_reads: How many reads the primary got from this process, by the reason
            that brought them there: ``'bind'``, ``'block'``, ``'decorator'``,
            ``'fallback'``, ``'is_read'``, ``'latched'``, ``'learnt'``, ``'method'``,
            ``'model'``, ``'observe'``, ``'off'``, ``'option'``, ``'outside'`` or
            ``'pinned'``. A reason that has not occurred is not a key, and gives 0. What
            is read after a write in its transaction is not counted.
        replica_reads: How many reads the replicas got together, by reason: ``'bind'``,
            ``'block'``, ``'decorator'``, ``'is_read'``, ``'method'`` or ``'option'``.
            Those of removed replicas are among them.
        writers: The endpoints that were learnt as writers, in alphabetical order.
        fallbacks: How many reads the primary got because no replica served them.
        failovers: How many reads a replica should have served and did not, by replica
            and by cause (the words of a replica's ``reason``).
        reruns: How many statements were run again on another server, since the
            connection that they were sent over was lost.
        refused_writes: How many writes were kept from replicas, by endpoint;
            ``'(outside a request)'`` is one.
        pins: How many commits have pinned their client, by kind: ``'position'`` or
            ``'time'``.
    """

    members: tuple[ReplicaSnapshot, ...]
    primary_reads: Mapping[str, int]
    replica_reads: Mapping[str, int]
    writers: tuple[str, ...]
    fallbacks: int
    failovers: Mapping[str, Mapping[str, int]]
    reruns: int
    refused_writes: Mapping[str, int]
    pins: Mapping[str, int]


class ReplicaPool(Pool[Engine]):
    """The replicas of one bind.

    Args:
        targets: Their engines by name.
        reads: The counts of the bind's reads.
        writers: The endpoints that were learnt as writers; kept up to date.
        incidents: The counts of what goes wrong.
        describe: Returns what is known of a replica's server. It asks none.
        options: The options of any :class:`balancers.Pool`.
    """

    def __init__(
        self,
        targets: Mapping[str, Engine],
        reads: ReadCounts,
        writers: Collection[str],
        incidents: Incidents,
        describe: Callable[[Member[Engine]], ReplicaFacts],
        **options: Any,
    ) -> None:
        self._reads = reads
        self._writers = writers
        self._incidents = incidents
        self._describe = describe
        super().__init__(targets, **options)

    def snapshot(self) -> ReplicaPoolSnapshot:
        """Return the state of every replica, and how many reads each server got."""
        found = super().snapshot()
        members = {member.name: member for member in self.members}
        counts, primary_reads = self._incidents, self._reads.by_reason(Role.PRIMARY)
        return ReplicaPoolSnapshot(
            members=tuple(
                self._complete(one, members[one.name])
                for one in found.members
                if one.name in members  # not removed at this moment
            ),
            live=found.live,
            primary_reads=primary_reads,
            replica_reads=self._reads.by_reason(Role.REPLICA),
            writers=tuple(sorted(self._writers)),
            fallbacks=primary_reads["fallback"],
            failovers=counts.failovers(members),
            reruns=counts.reruns,
            refused_writes=counts.refused_writes(),
            pins=counts.pins(),
        )

    def _complete(
        self, found: MemberSnapshot, member: Member[Engine]
    ) -> ReplicaSnapshot:
        facts, url = self._describe(member), member.target.url
        state: ReplicaState = "drained" if found.drained else found.state
        host = url.host or ",".join(url.normalized_query.get("host", ())) or None
        port = url.port or PORTS.get(url.get_backend_name())
        known: dict[str, Any] = {**vars(found), "state": state}
        return ReplicaSnapshot(
            **known,
            reads=self._reads.of(member),
            host=host,
            port=port if host else None,
            role=facts.role,
            lag_seconds=facts.lag,
            position=facts.position,
            latency=facts.latency,
            connections_idle=facts.idle,
            connections_used=facts.used,
            reason=_reason(found, facts.cause),
            since=facts.since.get(state, 0.0),
        )


def _reason(found: MemberSnapshot, cause: str | None) -> str | None:
    """Return why a replica is not in rotation; None while it is."""
    if found.drained:
        return "drained"
    if found.state != "closed":
        return cause or "down"
    if not found.weight:
        return "weight 0"
    return None if found.live else "spare"
