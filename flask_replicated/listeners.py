"""What happens when a replica leaves or joins: log lines, and a clean slate."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from balancers import MemberAdded, MemberClosed, MemberOpened, MemberRemoved

if TYPE_CHECKING:
    from collections.abc import Mapping

    from balancers import Event

    from .replicas import Replica

__all__ = ["PoolListener"]

logger = logging.getLogger("flask_replicated")


class PoolListener:
    """Tells the operator, once for each outage and return.

    It also retires the open connections of a replica that is out: the trial
    that lets it in again must be a new one, or an old one that nobody has used
    since would vouch for a server that no longer answers.
    """

    def __init__(self, replicas: Mapping[str, Replica]) -> None:
        self._replicas = replicas
        self._out: set[str] = set()

    def __call__(self, happened: Event) -> None:
        """Receive one event of the pool."""
        if isinstance(happened, MemberOpened):
            # A trial that fails opens it again, and is no news.
            level = logging.DEBUG if happened.name in self._out else logging.WARNING
            self._out.add(happened.name)
            logger.log(level, "replica %r is out: %s", happened.name, happened.error)
            replica = self._replicas.get(happened.name)
            if replica is not None:  # not removed at this moment
                replica.retire_connections()
        elif isinstance(happened, MemberClosed):
            self._out.discard(happened.name)
            logger.warning("replica %r is back", happened.name)
            replica = self._replicas.get(happened.name)
            if replica is not None:
                replica.ails = False
        elif isinstance(happened, MemberAdded):
            self._out.discard(happened.name)
            logger.info("replica %r is added", happened.name)
        elif isinstance(happened, MemberRemoved):
            self._out.discard(happened.name)
            logger.info("replica %r is removed", happened.name)
