"""What is asked of every replica's engine, through SQLAlchemy's own events.

None of them is on the path of a statement: a limit on the time to connect, a
session that the server itself keeps read-only, and a look at a pooled connection
before it is used again.
"""

from __future__ import annotations

import functools
import math
import select
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.exc import DisconnectionError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine
    from sqlalchemy.pool import ConnectionPoolEntry

__all__ = ["Replica"]

_READ_ONLY = {
    "postgresql": ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",),
    "mysql": ("SET SESSION TRANSACTION READ ONLY",),
    "mariadb": ("SET SESSION TRANSACTION READ ONLY",),
    # SQLite looks into the file at the first question only; so ask one, or a
    # file that is damaged would pass for a replica.
    "sqlite": ("PRAGMA query_only = ON", "PRAGMA schema_version"),
}
_TIMEOUT_ARGUMENT = {
    "psycopg": "connect_timeout",
    "psycopg2": "connect_timeout",
    "pymysql": "connect_timeout",
    "mysqldb": "connect_timeout",
    "mariadbconnector": "connect_timeout",
    "mysqlconnector": "connection_timeout",
    "pg8000": "timeout",
}


class Replica:
    """One replica's engine, with what is asked of its connections.

    Args:
        engine: The replica's engine, before its first connection.
        connect_timeout: Seconds to connect in; whole ones, rounded up, because
            drivers take no others. The bind's own ``connect_args`` are stronger.
    """

    def __init__(self, engine: Engine, connect_timeout: float) -> None:
        self._outages = 0
        _limit_connect(engine, math.ceil(connect_timeout))
        _read_only(engine)
        if engine.dialect.name != "sqlite":  # a file is always there or never
            event.listen(engine, "connect", self._stamp)
            event.listen(engine, "checkout", self._refuse_stale)

    @property
    def outages(self) -> int:
        """How often it has gone out of rotation."""
        return self._outages

    def retire_connections(self) -> None:
        """Let no connection that is open now be used again.

        After an outage only a new connection can vouch for the server. Each old
        one is closed when the connection pool would hand it out.
        """
        self._outages += 1

    def _stamp(self, connection: Any, record: ConnectionPoolEntry) -> None:
        fileno = getattr(connection, "fileno", None)
        watch = _nothing if fileno is None else _watch(fileno())
        record.info[self] = self._outages, watch

    def _refuse_stale(
        self, _connection: Any, record: ConnectionPoolEntry, _proxy: Any
    ) -> None:
        """Replace a pooled connection that the server has ended meanwhile.

        An idle connection has nothing to read. If its socket is readable, the
        server has closed it or had something to say that ends it. Asking the
        kernel takes about a microsecond; asking the server, a round trip.
        """
        outages, readable = record.info.get(self, _UNKNOWN)
        if outages != self._outages:
            raise DisconnectionError("opened before the replica's last outage")
        if readable():
            raise DisconnectionError("the server has closed this idle connection")


# Of a connection from before this extension was registered.
_UNKNOWN = (None, None)


def _nothing() -> None:
    """Know nothing of a connection whose driver does not show its socket."""


def _limit_connect(engine: Engine, seconds: int) -> None:
    argument = _TIMEOUT_ARGUMENT.get(engine.driver)
    if argument is None:
        return

    @event.listens_for(engine, "do_connect")
    def limit(
        _dialect: Any, _record: Any, _cargs: Any, cparams: dict[str, Any]
    ) -> None:
        cparams.setdefault(argument, seconds)


def _read_only(engine: Engine) -> None:
    statements = _READ_ONLY.get(engine.dialect.name)
    if statements is None:
        return

    @event.listens_for(engine, "connect")
    def refuse_writes(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        try:
            for statement in statements:
                cursor.execute(statement)
        finally:
            cursor.close()
        # Or the first rollback would take the setting back.
        connection.commit()


if hasattr(select, "poll"):

    def _watch(fd: int) -> Callable[[], object]:
        """Return a function that says whether a socket has something to read."""
        poll = select.poll()
        poll.register(fd, select.POLLIN | select.POLLHUP | select.POLLERR)
        return functools.partial(poll.poll, 0)

else:  # Windows

    def _watch(fd: int) -> Callable[[], object]:
        """Return a function that says whether a socket has something to read."""
        return lambda: select.select([fd], [], [], 0)[0]
