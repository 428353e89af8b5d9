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

from flask_replicated.forks import leave_to_parent
from flask_replicated.sockets import hang_up

from .dbapi_connections import connect_unpooled, prepare_unpooled
from .poolers import POOLED, backend_pid

if TYPE_CHECKING:
    from collections.abc import Callable
    from queue import SimpleQueue

    from sqlalchemy import Engine

    from .dbapi_connections import Surroundings
    from .in_flight import PendingAnswer

__all__ = ["ActivityQuery", "Backend", "can_ask", "list_backends", "works_on"]


class Backend(NamedTuple):
    """What a server does for one of its clients.

    Attributes:
        pid: The id by which its driver knows it.
        port: The client's TCP port, as the server sees it; None for other sockets.
        works: Whether a statement runs, and neither side waits for the other.
        began: When the statement did, by this process's monotonic clock; None if the
            server does not tell.
        spread: Seconds that this may be wrong.
    """

    pid: int
    port: int | None
    works: bool
    began: float | None
    spread: float

    def may_have_begun(self, sent: float, later: float) -> bool:
        """Whether its statement may be what was sent then, if it came *later* at most.

        All in seconds.
        """
        if self.began is None:
            return True
        return -self.spread <= self.began - sent <= later + self.spread


# Where a statement's text cannot be seen, neither can the rest; but one's own can.
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
        pid, port, works, age = row.values() if isinstance(row, dict) else row
        began = None if age is None else now - float(age)
        found.append(Backend(pid, port, bool(works), began, 0.5))
    return found


_COMMANDS = frozenset({"Query", "Execute"})
_WRITES = frozenset({"Writing to net", "Sending to client"})


def _mysql(cursor: Any) -> list[Backend]:
    """Ask for the threads of one's own account; it takes a privilege to see others."""
    cursor.execute("SHOW PROCESSLIST")
    now = time.monotonic()
    names = [column[0] for column in cursor.description]
    found = []
    for values in cursor.fetchall():
        row = values if isinstance(values, dict) else dict(zip(names, values))  # noqa: B905 - as many as there are names
        port = str(row["Host"]).rpartition(":")[2]
        works = row["Command"] in _COMMANDS and row["State"] not in _WRITES
        # Whole seconds are told, rounded down.
        began = None if row["Time"] is None else now - float(row["Time"]) - 0.5
        number = int(port) if port.isdigit() else None
        found.append(Backend(row["Id"], number, works, began, 1.0))
    return found


_QUESTIONS: dict[str, Callable[[Any], list[Backend]]] = {
    "postgresql": _postgresql,
    "mysql": _mysql,
    "mariadb": _mysql,
}


def can_ask(dialect: str) -> bool:
    """Whether a dialect's servers can be asked, by SQLAlchemy's name for it."""
    return dialect in _QUESTIONS


def list_backends(dialect: str, connection: Any) -> list[Backend]:
    """Ask a server what it does for the clients of its database.

    Args:
        dialect: One that :func:`can_ask`.
        connection: A DBAPI connection; its transaction is rolled back.

    Raises:
        Exception: The driver's.
    """
    cursor = connection.cursor()
    try:
        found = _QUESTIONS[dialect](cursor)
    finally:
        cursor.close()
    connection.rollback()
    return found


def works_on(
    wait: PendingAnswer, since: float, driver: str, backends: list[Backend]
) -> bool | None:
    """Whether a server works on what somebody waits for; None if it may be another's.

    Where the server sees the client itself, the two ids tell. Behind a proxy only that
    of the process is the same, and where an address stands for several servers, another
    one may have it, too. Behind a pooler neither is; there a statement that began when
    this one was sent is taken for it.

    Args:
        wait: The wait.
        since: When the statement was sent, by this process's monotonic clock.
        driver: The connection's.
        backends: What the server does.
    """
    pid = _pid(driver, wait.connection)
    own = [one for one in backends if one.pid == pid]
    for one in own:
        if one.port == wait.port:
            return one.works
    later, alike = math.inf, own
    # MariaDB's and MySQL's poolers do not show.
    if not own and (POOLED in wait.record.info or driver == "pymysql"):
        later, alike = 0.0, backends
    return any(one.works and one.may_have_begun(since, later) for one in alike) or None


def _pid(driver: str, connection: Any) -> int:
    try:
        if driver == "pymysql":
            return int(connection.thread_id())
        return backend_pid(driver, connection)
    except Exception:  # noqa: BLE001 - closed meanwhile
        return 0


_TRIES = 3


class ActivityQuery:
    """One inquiry, in threads of its own.

    Args:
        engine: The replica's.
        deadline: The clock's reading at which nobody waits for more answers.
        surroundings: Returns the block to connect in.

    Attributes:
        deadline: The same.
        backends: What was found so far.
    """

    def __init__(
        self,
        engine: Engine,
        deadline: float,
        surroundings: Surroundings = contextlib.nullcontext,
    ) -> None:
        self.deadline = deadline
        self.backends: list[Backend] = []
        self._engine = engine
        self._surroundings = surroundings
        self._left = 0
        self._over = self._abandoned = False
        # Each thread has a place of its own, and the count a lock.
        self._open: list[Any] = [None] * _TRIES
        self._lock = threading.Lock()

    @property
    def done(self) -> bool:
        """Whether no more answers will come."""
        return not self._left

    def begin(self, done: SimpleQueue[Any]) -> None:
        """Ask.

        Args:
            done: Gets None once no more answers will come.
        """
        for place in range(_TRIES):
            thread = threading.Thread(
                target=self._run,
                args=(place, done),
                name="flask_replicated inquiry",
                daemon=True,
            )
            self._left += 1
            try:
                thread.start()
            except RuntimeError:  # no more threads
                self._left -= 1

    def _run(self, place: int, done: SimpleQueue[Any]) -> None:
        try:
            found = self._ask(place)
        except Exception:  # noqa: BLE001 - one that cannot be asked tells nothing
            found = []
        with self._lock:
            self.backends += found
            self._left -= 1
        if self.done:
            done.put(None)
        while self._abandoned:
            done.get()  # a greenlet in a forked child

    def _ask(self, place: int) -> list[Backend]:
        connection = connect_unpooled(self._engine, self._surroundings)
        self._open[place] = connection
        try:
            if self._over:  # looked at once it can be ended, or it might be missed
                return []
            prepare_unpooled(self._engine, connection)
            return list_backends(self._engine.dialect.name, connection)
        finally:
            with contextlib.suppress(Exception):
                connection.close()
            self._open[place] = None

    def end(self) -> None:
        """End what still waits on a socket that can be known."""
        self._over = True
        for connection in filter(None, self._open):
            hang_up(connection)

    def abandon(self) -> None:
        """Leave the connections to the parent of this process, for good."""
        self._over = self._abandoned = True
        for connection in filter(None, self._open):
            leave_to_parent(connection)
