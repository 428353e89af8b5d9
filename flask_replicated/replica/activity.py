"""Whether a server works on a statement that a caller waits for.

The server is asked over another connection. A statement that runs, however long, is
left alone. One that the server has never received, or has answered already, would be
waited for without end.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from flask_replicated.system.threads import start_thread

from .dbapi_connections import UnpooledConnections
from .poolers import POOLED, backend_pid
from .queries import query_server, row_dict, row_values

if TYPE_CHECKING:
    from collections.abc import Callable
    from queue import SimpleQueue

    from sqlalchemy import Engine

    from .dbapi_connections import Surroundings
    from .in_flight import PendingAnswer

__all__ = ["ActivityQuery", "Backend", "can_list_backends", "list_backends", "works_on"]


class Backend(NamedTuple):
    """What a server does for one of its clients.

    Attributes:
        pid: The id by which the client's driver knows it.
        port: The client's TCP port, as the server sees it; None for other sockets.
        works: Whether a statement runs, and neither side waits for the other.
        began: When the statement began, by this process's monotonic clock; None if the
            server does not tell.
        spread: Seconds by which *began* may be wrong.
    """

    pid: int
    port: int | None
    works: bool
    began: float | None
    spread: float

    def may_have_begun(self, sent: float, later: float) -> bool:
        """Whether its statement may be the one that was sent then.

        Args:
            sent: When that one was sent, by the monotonic clock.
            later: Seconds that it may have taken to arrive.
        """
        if self.began is None:
            return True
        return -self.spread <= self.began - sent <= later + self.spread


# An account always sees its own sessions; of others it may see the pid alone.
_POSTGRESQL = """
SELECT pid, client_port,
       state NOT LIKE 'idle%' AND wait_event_type IS DISTINCT FROM 'Client',
       EXTRACT(EPOCH FROM clock_timestamp() - query_start)
  FROM pg_stat_activity
 WHERE datname = current_database() AND state IS NOT NULL AND pid <> pg_backend_pid()
"""


def _postgresql(cursor: Any) -> list[Backend]:
    cursor.execute(_POSTGRESQL)
    rows, now = cursor.fetchall(), time.monotonic()
    found = []
    for row in rows:
        pid, port, works, age = row_values(row)
        began = None if age is None else now - float(age)
        found.append(Backend(pid, port, bool(works), began, 0.5))
    return found


_COMMANDS = frozenset({"Query", "Execute"})
_WRITES = frozenset({"Writing to net", "Sending to client"})


def _mysql(cursor: Any) -> list[Backend]:
    """Ask for the threads of this account; to see others takes a privilege."""
    cursor.execute("SHOW PROCESSLIST")
    now = time.monotonic()
    found = []
    for values in cursor.fetchall():
        row = row_dict(cursor, values)
        port = str(row["Host"]).rpartition(":")[2]
        works = row["Command"] in _COMMANDS and row["State"] not in _WRITES
        # The server reports whole seconds, rounded down.
        began = None if row["Time"] is None else now - float(row["Time"]) - 0.5
        number = int(port) if port.isdigit() else None
        found.append(Backend(row["Id"], number, works, began, 1.0))
    return found


_QUERIES: dict[str, Callable[[Any], list[Backend]]] = {
    "postgresql": _postgresql,
    "mysql": _mysql,
    "mariadb": _mysql,
}


def can_list_backends(dialect: str) -> bool:
    """Whether servers of a dialect can be asked (SQLAlchemy's name for it)."""
    return dialect in _QUERIES


def list_backends(dialect: str, connection: Any) -> list[Backend]:
    """Ask a server what it does for the clients of its database.

    Args:
        dialect: One that :func:`can_list_backends`.
        connection: A DBAPI connection; its transaction is rolled back.

    Raises:
        Exception: The driver's.
    """
    found = query_server(connection, _QUERIES[dialect])
    connection.rollback()
    return found


def works_on(
    pending: PendingAnswer, sent: float, driver: str, backends: list[Backend]
) -> bool | None:
    """Whether a server works on a statement; None if another server may do so.

    Where the server sees the client directly, the backend's pid and the client's port
    identify the statement. Behind a proxy only the pid is the same, and where an
    address stands for several servers, another one may have the same pid. Behind a
    pooler neither is the same; there a statement that began when this one was sent is
    taken for it.

    Args:
        pending: The wait for the statement's answer.
        sent: When the statement was sent, by this process's monotonic clock.
        driver: SQLAlchemy's name for the connection's driver.
        backends: What the server does.
    """
    pid = _pid(driver, pending.connection)
    own = [one for one in backends if one.pid == pid]
    for one in own:
        if one.port == pending.port:
            return one.works
    later, alike = math.inf, own
    # Poolers of MariaDB and MySQL cannot be recognised.
    if not own and (POOLED in pending.record.info or driver == "pymysql"):
        later, alike = 0.0, backends
    return any(one.works and one.may_have_begun(sent, later) for one in alike) or None


def _pid(driver: str, connection: Any) -> int:
    try:
        if driver == "pymysql":
            return int(connection.thread_id())
        return backend_pid(driver, connection)
    except Exception:  # noqa: BLE001 - closed meanwhile
        return 0


_TRIES = 3


class ActivityQuery:
    """Asks a replica's address what its server does for its clients.

    It opens several connections at once, each in a thread of its own. Where the address
    stands for several servers, each connection may reach another one, and one of them
    may hang.

    Args:
        engine: The replica's engine.
        deadline: When to stop waiting for answers, by the monotonic clock.
        surroundings: Returns the block to connect in.

    Attributes:
        deadline: As the argument.
        backends: What was found so far.
        connections: Those that it opens; to be ended when it is not wanted any more.
    """

    def __init__(
        self,
        engine: Engine,
        deadline: float,
        surroundings: Surroundings = contextlib.nullcontext,
    ) -> None:
        self.deadline = deadline
        self.backends: list[Backend] = []
        self.connections = UnpooledConnections(surroundings)
        self._engine = engine
        self._left = 0
        self._lock = threading.Lock()

    @property
    def done(self) -> bool:
        """Whether no more answers will come."""
        return not self._left

    def begin(self, done: SimpleQueue[Any]) -> None:
        """Start the threads.

        Args:
            done: Receives None once no more answers will come.
        """
        self._left = _TRIES
        for _ in range(_TRIES):
            if not start_thread("activity query", self._run, done):
                with self._lock:
                    self._left -= 1

    def _run(self, done: SimpleQueue[Any]) -> None:
        try:
            with self.connections.connect(self._engine) as connection:
                found = list_backends(self._engine.dialect.name, connection)
        except Exception:  # noqa: BLE001 - an unreachable server tells nothing
            found = []
        with self._lock:
            self.backends += found
            self._left -= 1
        if self.done:
            done.put(None)
        while self.connections.abandoned:
            done.get()  # a greenlet in a forked child
