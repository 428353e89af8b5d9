"""Listeners to the connection events of one replica's engine.

A new connection has a timeout, is asked for the server's role and lag, and gets a
read-only session. A pooled one is checked before it is used again. Nothing here runs
for a statement.
"""

from __future__ import annotations

import contextlib
import math
import weakref
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.exc import DisconnectionError

from flask_replicated.errors import ReplicaSilentError
from flask_replicated.system.forks import refuse_inherited
from flask_replicated.system.sockets import watch_socket

from .admission import Admission
from .connect_timeout import (
    ONE_BIND_EACH,
    SetupTimeout,
    set_connect_timeout,
    warn_of_hosts,
)
from .dbapi_connections import closed_if_refused
from .fitness import ReplicaHistory
from .keepalive import enable_keepalive
from .open_connections import OpenConnections, end_record
from .read_only import keep_read_only
from .same_server import SameServerCheck

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine
    from sqlalchemy.pool import ConnectionPoolEntry

    from .dbapi_connections import Surroundings
    from .in_flight import PendingAnswer
    from .primary_status import PrimaryStatus
    from .same_database import SameDatabaseCheck

__all__ = ["CHANGED", "STARTED", "ReplicaServer"]

CHANGED = "flask_replicated.changed"
"""Key in a connection's ``info``: the session's settings were changed by its user."""
STARTED = "flask_replicated.started"
"""The same: when its server was started, by the server's clock; None if untold."""
# For a connection that was opened before these listeners were added.
_UNKNOWN = (None, None)


class ReplicaServer:
    """One replica's server: its open connections, and what is known of it.

    Args:
        name: The replica's bind name.
        engine: Its engine, before the first connection.
        connect_timeout: Seconds to connect in, rounded up to whole ones, because
            drivers take no others; several hosts share them. The bind's own
            ``connect_args`` take precedence. As many seconds again for what the server
            is asked before the connection is handed out.
        read_timeout: Seconds that a statement may take, or None. The server enforces
            it; with PyMySQL and mysqlclient the socket too, a second later.
        role_check: Whether a server that is surely no replica is refused.
        max_lag: Seconds that the server may be behind; None for any.
        watched: Whether it is probed in the background.
        primary: The primary's engine, if the replica is to be compared with it (see
            :class:`SameServerCheck`); or None.
        same_database: Compares the server's database with the primary's; None for no
            check.
        shared: Whether its connection may be the primary's too, and so must be able
            to write.
        status: What is known of the primary; nothing by default.
        surroundings: Returns the block in which to connect in the background.

    Attributes:
        outages: How often its breaker has opened, after failed trials too.
        storage_fails: Whether it is out because its storage fails reads. Only a read
            can find that to be over.
        pool_exhausted: Whether it is out because its connection pool was exhausted for
            long, which a probe does not see either.
        slow_until: Until when its answers count as slow, by the monotonic clock.
        history: What was seen of its server.
        admission: Asks the server whether it may be used.
    """

    def __init__(
        self,
        name: str,
        engine: Engine,
        connect_timeout: float,
        read_timeout: float | None = None,
        *,
        role_check: bool = True,
        max_lag: float | None = None,
        watched: bool = True,
        primary: Engine | None = None,
        same_database: SameDatabaseCheck | None = None,
        shared: bool = False,
        status: PrimaryStatus | None = None,
        surroundings: Surroundings = nullcontext,
    ) -> None:
        self.history = ReplicaHistory(status, same_database, max_lag)
        self.admission = Admission(
            name,
            engine.dialect.name,
            self.history,
            role_check=role_check,
            max_lag=max_lag,
            watched=watched,
            # The background probe makes the comparison itself.
            comparison=None
            if watched or primary is None
            else SameServerCheck(primary, engine, surroundings=surroundings),
        )
        self.outages = 0
        self.storage_fails = self.pool_exhausted = False
        self.slow_until = -math.inf
        self._name = name
        self._engine = weakref.ref(engine)
        self._open = OpenConnections(engine.dialect)
        self._seconds = math.ceil(connect_timeout)
        self._setup_timeout: SetupTimeout | None = None
        self._listen(engine, read_timeout, shared=shared)

    def _listen(
        self, engine: Engine, read_timeout: float | None, *, shared: bool
    ) -> None:
        """Add the listeners. Those with ``insert`` run before all others."""
        name, seconds = self._name, self._seconds
        warn_of_hosts(f"replica {name!r}", engine, seconds, ONE_BIND_EACH)
        lift = set_connect_timeout(engine, seconds, read_timeout)
        enable_keepalive(engine)
        if not shared:  # writes are kept away by classification alone
            keep_read_only(name, engine, read_timeout, self._admit, self._in_time)
        if lift is not None:  # last: a server may be silent after the log-in too
            event.listen(engine, "connect", lift)
        if engine.dialect.name != "sqlite":  # a file is there, or it is not
            # First, so that a connection that hangs in what follows can be ended.
            event.listen(engine, "connect", self._stamp, insert=True)
            self._setup_timeout = SetupTimeout(engine, seconds)
            event.listen(engine, "connect", self._finish)
            event.listen(engine, "checkout", self._refuse_stale)
            refuse_inherited(engine)

    def hang_up(self) -> int:
        """End every open connection.

        A thread that waits for an answer gets the driver's error of a lost connection.

        Returns:
            How many were ended, not counting those that had been ended before.
        """
        ended = sum(map(end_record, self._open.records()))
        if ended:
            self.pool_exhausted = False  # their users give them back
        return ended

    def pending_answers(self) -> list[PendingAnswer]:
        """Return the answers that its connections wait for, as far as can be seen.

        Connections that are still being set up are left out: they have a timeout.
        """
        return self._open.pending_answers(
            lambda record: self._setup_timeout not in record.info
        )

    def end_connection(self, pending: PendingAnswer) -> bool:
        """End a connection if it still waits for that answer; return whether it did."""
        if not self._open.waits_still(pending):
            return False
        self.pool_exhausted = False  # there is room again
        return end_record(pending.record)

    @property
    def in_use(self) -> bool:
        """Whether a connection to it is in use, or being set up."""
        return any(
            record.in_use or self._setup_timeout in record.info
            for record in self._open.records()
        )

    def is_of(self, engine: Engine) -> bool:
        """Whether it belongs to this engine, and not to another of the same name."""
        return self._engine() is engine

    def retire_connections(self) -> None:
        """Let no connection that is open now be used again.

        After an outage only a new connection proves that the server is well. Each old
        one is closed when the connection pool would hand it out.
        """
        self.outages += 1

    def _stamp(self, connection: Any, record: ConnectionPoolEntry) -> None:
        record.info[self] = self.outages, watch_socket(connection)
        self._open.add(record)

    def _admit(self, connection: Any, record: ConnectionPoolEntry) -> None:
        """Ask over a new connection whether its server may be used."""
        record.info[STARTED] = self.admission.ask(connection)

    def _finish(self, connection: Any, record: ConnectionPoolEntry) -> None:
        """End the timeout of a new connection, which is ready to be used."""
        with closed_if_refused(connection, record):
            if self._was_silent(record):
                raise ReplicaSilentError(self._name, self._seconds)

    @contextlib.contextmanager
    def _in_time(self, record: ConnectionPoolEntry) -> Iterator[None]:
        """Raise the right error where the timeout has ended a new connection."""
        try:
            yield
        except Exception as error:
            if self._was_silent(record):
                raise ReplicaSilentError(self._name, self._seconds) from error
            raise

    def _was_silent(self, record: ConnectionPoolEntry) -> bool:
        return self._setup_timeout is not None and self._setup_timeout.end(record)

    def _refuse_stale(
        self, _connection: Any, record: ConnectionPoolEntry, _proxy: Any
    ) -> None:
        """Replace a pooled connection that must not be used again, or was closed."""
        outages, readable = record.info.get(self, _UNKNOWN)
        if outages != self.outages:
            raise DisconnectionError("opened before the replica's last outage")
        if CHANGED in record.info:
            raise DisconnectionError("its last user has changed the session")
        if self.admission.is_due():
            raise DisconnectionError("its server is to be asked again")
        if readable():
            raise DisconnectionError("the server has closed this idle connection")
