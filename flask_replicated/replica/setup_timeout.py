"""A bound on what a new connection waits for before anybody has it.

Drivers bound the time in which a server accepts a connection. What follows has no
bound: SQLAlchemy asks a new server for its version, and this package for its role. A
pooler takes connections for a server that is down, a frozen server may have been asked
a moment too late; then the caller would wait for minutes, and with the first connection
of a process everybody else does.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from sqlalchemy import event

from .sockets import fileno_of, hang_up

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.pool import ConnectionPoolEntry

__all__ = ["SetupTimeout", "TimeLimit"]


class TimeLimit:
    """Ends the conversation on a connection after some time, unless it is lifted.

    Whoever waits on the connection then gets the driver's error of a lost one. Where
    the driver does not show its socket there is no limit.

    Args:
        connection: A DBAPI connection.
        seconds: How long.

    Attributes:
        reached: Whether the connection was ended.
    """

    def __init__(self, connection: Any, seconds: float) -> None:
        self.reached = False
        self._connection = connection
        self._lock = threading.Lock()
        self._lifted = False
        self._timer = threading.Timer(seconds, self._reach)
        self._timer.name = "flask_replicated time limit"
        self._timer.daemon = True

    def start(self) -> TimeLimit:
        """Let the time run from here on."""
        if fileno_of(self._connection) is not None:
            try:
                self._timer.start()
            except RuntimeError:  # no more threads: then without a limit
                pass
        return self

    def lift(self) -> bool:
        """Do nothing to the connection from here on; return whether it was ended."""
        self._timer.cancel()
        with self._lock:
            self._lifted = True
        return self.reached

    def _reach(self) -> None:
        with self._lock:  # no socket is waited for here
            if not self._lifted:
                self.reached = hang_up(self._connection)


class SetupTimeout:
    """Bounds the time from when a server has accepted until it has said enough.

    All that listens to ``connect`` in between shares it: SQLAlchemy's own questions,
    the application's listeners that were registered before, and this package's.

    Args:
        engine: The engine, before its first connection.
        seconds: How long a server may take.
    """

    def __init__(self, engine: Engine, seconds: float) -> None:
        self._seconds = seconds
        event.listen(engine, "connect", self._begin, insert=True)

    def _begin(self, connection: Any, record: ConnectionPoolEntry) -> None:
        record.info[self] = TimeLimit(connection, self._seconds).start()

    def end(self, record: ConnectionPoolEntry) -> bool:
        """Lift the limit; return whether the server was silent for too long."""
        limit: TimeLimit | None = record.info.pop(self, None)
        return limit is not None and limit.lift()
