"""Which replica serves when all of them lag and the primary is out as well."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Engine

    from balancers import Member, Pool
    from flask_replicated.replica.connection_events import ReplicaServer

__all__ = ["least_lagged"]


def least_lagged(
    pool: Pool[Engine],
    servers: Mapping[str, ReplicaServer],
    first: Member[Engine] | None,
) -> list[Member[Engine]]:
    """Return the replicas that only their lag keeps out, the one that shows most first.

    Args:
        pool: The replicas.
        servers: What is known of each replica's server, by name.
        first: The one that serves the request already, which keeps to it; or None.
    """
    shown = {one.name: one for one in pool.snapshot().members}
    found: list[tuple[bool, int, float, Member[Engine]]] = []
    for member in pool.members:
        server, one = servers.get(member.name), shown.get(member.name)
        if server is None or one is None or not server.is_of(member.target):
            continue
        if not server.history.lags or one.drained or not one.weight:
            continue
        latest = server.history.latest
        lag = math.inf if latest.lag is None else latest.lag
        # Of one primary's log: more in one stream is no less in another.
        got = sum((latest.position or {}).values())
        found.append((member is not first, -got, lag, member))
    found.sort(key=lambda one: one[:3])
    return [member for *_, member in found]
