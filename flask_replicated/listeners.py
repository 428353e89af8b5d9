"""What happens when a replica leaves or joins: log lines, and a clean slate."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from balancers import MemberClosed, MemberOpened

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Engine

    from balancers import Event

__all__ = ["PoolLog"]

logger = logging.getLogger("flask_replicated")


class PoolLog:
    """A listener that tells the operator, once for each outage and return.

    It also drops the idle connections of a replica that is out: the trial that
    lets it in again must be a new connection, or an old one that nobody has
    used since would vouch for a server that no longer answers.
    """

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self._engines = engines
        self._out: set[str] = set()

    def __call__(self, happened: Event) -> None:
        """Receive one event of the pool."""
        if isinstance(happened, MemberOpened):
            # A trial that fails opens it again, and is no news.
            level = logging.DEBUG if happened.name in self._out else logging.WARNING
            self._out.add(happened.name)
            logger.log(level, "replica %r is out: %s", happened.name, happened.error)
            engine = self._engines[happened.name]
            # An async driver can close nothing outside its event loop.
            engine.dispose(close=not engine.dialect.is_async)
        elif isinstance(happened, MemberClosed):
            self._out.discard(happened.name)
            logger.warning("replica %r is back", happened.name)
