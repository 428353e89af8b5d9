"""What is known of a replica's server, for a snapshot: nothing here asks it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from sqlalchemy.pool import QueuePool

from flask_replicated.routing.snapshots import ReplicaFacts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Engine

    from balancers import Member
    from flask_replicated.replica.connection_events import ReplicaServer
    from flask_replicated.replica.replica_status import ReplicaReport

    from .outage_log import OutageLog

__all__ = ["describe"]

_LIVES = frozenset({None, "busy", "lag"})
"""Why a replica is out that answers, so that what it last said of its lag holds."""


def describe(
    replicas: Mapping[str, ReplicaServer], outages: OutageLog, member: Member[Engine]
) -> ReplicaFacts:
    """Return what is known of a replica.

    Args:
        replicas: The replicas' servers, by name.
        outages: What knows of their outages.
        member: The replica.
    """
    server, cause = replicas.get(member.name), outages.cause(member.name)
    facts = ReplicaFacts(outages.since(member.name), cause)
    pool = member.target.pool
    if isinstance(pool, QueuePool):
        facts = facts._replace(idle=pool.checkedin(), used=max(0, pool.checkedout()))
    if server is None:  # removed at this moment
        return facts
    found = server.history.latest
    role: Literal["primary", "replica"] = "primary" if found.primary else "replica"
    return facts._replace(
        role=None if found.primary is None else role,
        lag=found.lag if cause in _LIVES else None,
        position=_position_text(found),
        latency=server.history.latency,
    )


def _position_text(found: ReplicaReport) -> str | None:
    if found.replayed is not None:
        return f"{found.replayed >> 32:X}/{found.replayed & 0xFFFFFFFF:X}"
    if not found.gtids:
        return None
    return ",".join(f"{stream}:{number}" for stream, number in found.gtids.items())
