"""Which replica serves when all of them lag and the primary is out as well."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Engine

    from balancers import Member, Pool
    from flask_replicated.replica.connection_events import ReplicaServer

__all__ = ["Notices", "least_stale"]


def least_stale(
    pool: Pool[Engine],
    replicas: Mapping[str, ReplicaServer],
    first: Member[Engine] | None,
) -> list[Member[Engine]]:
    """Return the replicas that only their lag keeps out, the one that shows most first.

    Args:
        pool: The replicas.
        replicas: What takes care of each replica's connections, by name.
        first: The one that serves the request already, which keeps to it; or None.
    """
    shown = {one.name: one for one in pool.snapshot().members}
    found: list[tuple[bool, int, float, Member[Engine]]] = []
    for member in pool.members:
        replica, one = replicas.get(member.name), shown.get(member.name)
        if replica is None or one is None or not replica.is_of(member.target):
            continue
        if not replica.history.lags or one.drained or not one.weight:
            continue
        latest = replica.history.latest
        lag = math.inf if latest.lag is None else latest.lag
        # Of one primary's log: who has more in one stream has no less in another.
        got = sum((latest.position or {}).values())
        found.append((member is not first, -got, lag, member))
    found.sort(key=lambda one: one[:3])
    return [member for *_, member in found]


class Notices(dict[str, object]):
    """What was said of an outage, so that each thing is said once, by any thread.

    A dictionary, because it is asked at each connect whether there is anything.
    """

    def begin(self, what: str) -> bool:
        """Whether this is to be said: it is so, and was not until now."""
        mine = object()
        return self.setdefault(what, mine) is mine

    def end(self, what: str) -> bool:
        """Whether it was so until now."""
        return self.pop(what, None) is not None
