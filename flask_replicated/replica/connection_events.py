"""What is asked of every replica's engine, through SQLAlchemy's own events.

None of them is on the path of a statement: a limit on the time to connect, a look
at its role, a session that the server itself keeps read-only, and a look at a pooled
connection before it is used again.
"""

from __future__ import annotations

import contextlib
import math
import weakref
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from sqlalchemy import event
from sqlalchemy.exc import DisconnectionError

from flask_replicated.errors import ReplicaSilentError
from flask_replicated.forks import refuse_inherited
from flask_replicated.sockets import hang_up, watch_socket

from .activity import can_ask
from .admission import Admission
from .connect_timeout import ONE_BIND_EACH, SetupTimeout, limit_connect, warn_of_hosts
from .dbapi_connections import closed_if_refused
from .fitness import ReplicaHistory
from .in_flight import pending_answer, shows_pending
from .keepalive import limit_silence
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

__all__ = ["CHANGED", "ReplicaServer"]

CHANGED = "flask_replicated.changed"
"""Set in a connection's ``info``: its session is no more as it was prepared."""


class ReplicaServer:
    """One replica's engine, with what is asked of its connections.

    Args:
        name: The replica's bind name.
        engine: Its engine, before the first connection.
        connect_timeout: Seconds to connect in; whole ones, rounded up, because
            drivers take no others; several hosts share them. The bind's own
            ``connect_args`` are stronger. As many for what is asked of the server
            then, before anybody has the connection.
        read_timeout: Seconds that a statement may take, or None. The server keeps
            to it; with PyMySQL and mysqlclient the socket too, a second later.
        role_check: Whether a server that is surely no replica is refused.
        max_lag: Seconds that the server may be behind; None for any.
        watched: Whether it is looked at in the background.
        primary: The primary's engine, where that has to be asked whether the server
            is its own; or None.
        kinship: Compares what the server says of itself with what its primary says, if
            it is to be compared.
        shared: Whether its connection may be the primary's too, and so must be able
            to write.
        status: What is known of the primary; nothing by default.
        surroundings: Returns the block in which to connect in the background.

    Attributes:
        outages: How often its breaker has opened, after failed trials too.
        ails: Whether it is out because its storage fails reads, which only a read
            can find to be over.
        crowded: Whether it is out because its connection pool was exhausted for long,
            of which no look knows either.
        slow_until: The clock's reading up to which its answers are taken to be slow.
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
        kinship: SameDatabaseCheck | None = None,
        shared: bool = False,
        status: PrimaryStatus | None = None,
        surroundings: Surroundings = nullcontext,
    ) -> None:
        self.history = ReplicaHistory(status, kinship, max_lag)
        self.admission = Admission(
            name,
            engine.dialect.name,
            self.history,
            role_check=role_check,
            max_lag=max_lag,
            watched=watched,
            # The look in the background asks by itself.
            comparison=None
            if watched or primary is None
            else SameServerCheck(primary, engine, surroundings=surroundings),
        )
        self.outages = 0
        self.storage_fails = self.pool_exhausted = False
        self.slow_until = -math.inf
        self._name = name
        self._engine = weakref.ref(engine)
        self._driver = engine.dialect.driver
        self._tells = shows_pending(self._driver) and can_ask(engine.dialect.name)
        self._records: WeakSet[ConnectionPoolEntry] = WeakSet()
        self._seconds = seconds = math.ceil(connect_timeout)
        warn_of_hosts(f"replica {name!r}", engine, seconds, ONE_BIND_EACH)
        lift = limit_connect(engine, seconds, read_timeout)
        limit_silence(engine)
        if not shared:  # writes are kept away by classification alone
            keep_read_only(
                name, engine, read_timeout, self.admission.ask, self._in_time
            )
        if lift is not None:  # no sooner: a server may be silent after the log-in too
            event.listen(engine, "connect", lift)
        self._first_words: SetupTimeout | None = None
        if engine.dialect.name != "sqlite":  # a file is always there or never
            # Before anything is asked of it, so that who waits can be released.
            event.listen(engine, "connect", self._stamp, insert=True)
            self._first_words = SetupTimeout(engine, seconds)
            event.listen(engine, "connect", self._finish)
            event.listen(engine, "checkout", self._refuse_stale)
            refuse_inherited(engine)

    def hang_up(self) -> int:
        """End every connection that is open, whoever waits on it.

        A thread that waits for an answer gets the error of a lost connection at once.

        Returns:
            How many were ended that had not been ended before.
        """
        self.pool_exhausted = False
        return sum(map(_end, self._known()))

    def waits(self) -> list[PendingAnswer]:
        """Return who waits for an answer, as far as that can be known here.

        Not who waits for a new connection's first words: they have a bound already.
        """
        if not self._tells:
            return []
        found = (
            pending_answer(self._driver, record)
            for record in self._known()
            if self._first_words not in record.info
        )
        return [wait for wait in found if wait is not None]

    def end(self, wait: PendingAnswer) -> bool:
        """End a connection if that wait still goes on; whether it did."""
        now = pending_answer(self._driver, wait.record)
        if now is None or now.connection is not wait.connection:
            return False
        if now.received != wait.received:
            return False
        self.pool_exhausted = False  # there is room again
        return _end(wait.record)

    @property
    def in_use(self) -> bool:
        """Whether somebody has a connection to it, or is about to have one."""
        return any(
            record.in_use or self._first_words in record.info
            for record in self._known()
        )

    def is_of(self, engine: Engine) -> bool:
        """Whether it takes care of this engine, and not of one of the same name."""
        return self._engine() is engine

    def _known(self) -> list[ConnectionPoolEntry]:
        while True:
            try:
                return list(self._records)
            except RuntimeError:  # another thread has just connected
                continue

    def retire_connections(self) -> None:
        """Let no connection that is open now be used again.

        After an outage only a new connection can vouch for the server. Each old
        one is closed when the connection pool would hand it out.
        """
        self.outages += 1

    def _stamp(self, connection: Any, record: ConnectionPoolEntry) -> None:
        record.info[self] = self.outages, watch_socket(connection)
        self._records.add(record)

    def _finish(self, connection: Any, record: ConnectionPoolEntry) -> None:
        """Leave a new connection to who asked for it: its server has said enough."""
        with closed_if_refused(connection, record):
            if self._was_silent(record):
                raise ReplicaSilentError(self._name, self._seconds)

    @contextlib.contextmanager
    def _in_time(self, record: ConnectionPoolEntry) -> Iterator[None]:
        """Give the right reason, where a new connection was ended for its silence."""
        try:
            yield
        except Exception as error:
            if self._was_silent(record):
                raise ReplicaSilentError(self._name, self._seconds) from error
            raise

    def _was_silent(self, record: ConnectionPoolEntry) -> bool:
        return self._first_words is not None and self._first_words.end(record)

    def _refuse_stale(
        self, _connection: Any, record: ConnectionPoolEntry, _proxy: Any
    ) -> None:
        """Replace a pooled connection that the server has ended meanwhile."""
        outages, readable = record.info.get(self, _UNKNOWN)
        if outages != self.outages:
            raise DisconnectionError("opened before the replica's last outage")
        if CHANGED in record.info:
            raise DisconnectionError("its last user has changed the session")
        if self.admission.is_due():
            raise DisconnectionError("its server is to be asked again")
        if readable():
            raise DisconnectionError("the server has closed this idle connection")


# Of a connection from before this extension was registered.
_UNKNOWN = (None, None)
_ENDED = "flask_replicated.ended"


def _end(record: ConnectionPoolEntry) -> bool:
    """End a record's connection; whether it had not been ended before.

    Its socket does not tell: it can be shut down again and again without an error.
    """
    connection = record.dbapi_connection
    if connection is None or record.info.get(_ENDED) is connection:
        return False
    # By its name: the record may have another one at any moment.
    record.info[_ENDED] = connection
    return hang_up(connection)
