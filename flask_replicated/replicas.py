"""What is asked of every replica's engine, through SQLAlchemy's own events.

None of them is on the path of a statement: a limit on the time to connect, a look
at its role, a session that the server itself keeps read-only, and a look at a pooled
connection before it is used again.
"""

from __future__ import annotations

import functools
import math
import select
import weakref
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from sqlalchemy import event
from sqlalchemy.engine.characteristics import ConnectionCharacteristic
from sqlalchemy.exc import DisconnectionError

from .admission import Admission
from .comparing import Comparison
from .hosts import share_of, warn_of_hosts
from .positions import History
from .sockets import fileno_of, hang_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sqlalchemy import Engine
    from sqlalchemy.pool import ConnectionPoolEntry

__all__ = ["CHANGED", "Replica"]

CHANGED = "flask_replicated.changed"
"""Set in a connection's ``info``: its session is no more as it was prepared."""

_READ_ONLY = {
    "postgresql": ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",),
    "mysql": ("SET SESSION TRANSACTION READ ONLY",),
    "mariadb": ("SET SESSION TRANSACTION READ ONLY",),
    # SQLite looks into the file at the first question only; so ask one, or a
    # file that is damaged would pass for a replica.
    "sqlite": ("PRAGMA query_only = ON", "PRAGMA schema_version"),
}
# A server's own limit on a statement. MySQL and MariaDB call it by different names,
# and each runs the comments that are meant for it.
_LIMIT = {
    "postgresql": "SET statement_timeout = {ms}",
    "mysql": "SET @replicated = 0 "
    "/*M!100100 , SESSION max_statement_time = {seconds} */ "
    "/*!50708 , SESSION max_execution_time = {ms} */",
}
_LIMIT["mariadb"] = _LIMIT["mysql"]
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
        name: The replica's bind name.
        engine: Its engine, before the first connection.
        connect_timeout: Seconds to connect in; whole ones, rounded up, because
            drivers take no others; several hosts share them. The bind's own
            ``connect_args`` are stronger.
        read_timeout: Seconds that a statement may take, or None. The server keeps
            to it; with PyMySQL and mysqlclient the socket too, a second later.
        role_check: Whether a server that is surely no replica is refused.
        max_lag: Seconds that the server may be behind; None for any.
        watched: Whether it is looked at in the background.
        primary: The primary's engine, where that has to be asked whether the server
            is its own; or None.

    Attributes:
        outages: How often its breaker has opened, after failed trials too.
        ails: Whether it is out because its storage fails reads, which only a read
            can find to be over.
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
    ) -> None:
        self.history = History()
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
            else Comparison(primary, engine),
        )
        self.outages = 0
        self.ails = False
        self._engine = weakref.ref(engine)
        self._records: WeakSet[ConnectionPoolEntry] = WeakSet()
        seconds = math.ceil(connect_timeout)
        warn_of_hosts(name, engine, seconds)
        lift = _limit_connect(engine, seconds, read_timeout)
        _prepare_sessions(engine, read_timeout, self.admission.ask)
        _keep_read_only(engine)
        if lift is not None:  # no sooner: a server may be silent after the log-in too
            event.listen(engine, "connect", lift)
        if engine.dialect.name != "sqlite":  # a file is always there or never
            # Before anything is asked of it, so that who waits can be released.
            event.listen(engine, "connect", self._stamp, insert=True)
            event.listen(engine, "checkout", self._refuse_stale)

    def hang_up(self) -> int:
        """End every connection that is open, whoever waits on it; return how many.

        A thread that waits for an answer gets the error of a lost connection at once.
        """
        connections = [record.dbapi_connection for record in self._known()]
        return sum(map(hang_up, filter(None, connections)))

    @property
    def in_use(self) -> bool:
        """Whether somebody has a connection to it."""
        return any(record.in_use for record in self._known())

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
        number = fileno_of(connection)
        watch = _nothing if number is None else _watch(number)
        record.info[self] = self.outages, watch
        self._records.add(record)

    def _refuse_stale(
        self, _connection: Any, record: ConnectionPoolEntry, _proxy: Any
    ) -> None:
        """Replace a pooled connection that the server has ended meanwhile.

        An idle connection has nothing to read. If its socket is readable, the
        server has closed it or had something to say that ends it. Asking the
        kernel takes about a microsecond; asking the server, a round trip.
        """
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


def _nothing() -> None:
    """Know nothing of a connection whose driver does not show its socket."""


def _limit_connect(
    engine: Engine, seconds: int, read_timeout: float | None
) -> Callable[[Any, Any], None] | None:
    """Bound the time to connect; return what lifts the bound from a new connection."""
    argument = _TIMEOUT_ARGUMENT.get(engine.driver)
    if argument is None:
        return None
    # A second more than the server has, so that it is the one to say so.
    read_seconds = None if read_timeout is None else math.ceil(read_timeout) + 1
    others: dict[str, float] = {}
    if engine.driver == "mysqldb" and read_seconds is not None:
        others["read_timeout"] = read_seconds
    lift: Callable[[Any, Any], None] | None = None
    if engine.driver == "pg8000":
        lift = _lift_socket_limit
    if engine.driver == "pymysql":
        lift = _limit_greeting(engine, seconds, read_seconds)

    @event.listens_for(engine, "do_connect")
    def limit(dialect: Any, _record: Any, _cargs: Any, cparams: dict[str, Any]) -> None:
        cparams.setdefault(argument, share_of(seconds, dialect, cparams))
        for name, value in others.items():
            cparams.setdefault(name, value)

    return lift


def _lift_socket_limit(connection: Any, _record: Any) -> None:
    """Let pg8000 wait for answers; its limit on connecting is one on every read."""
    connection._usock.settimeout(None)  # noqa: SLF001 - it has no other name


def _limit_greeting(
    engine: Engine, seconds: int, read_seconds: int | None
) -> Callable[[Any, Any], None]:
    """Bound the wait for the server's first words, which PyMySQL does not.

    Its ``connect_timeout`` ends when the kernel has accepted, and a server that hangs
    lets the kernel accept. So the limit on reads stands in until it has spoken.
    """
    ours = False

    @event.listens_for(engine, "do_connect")
    def limit(
        _dialect: Any, _record: Any, _cargs: Any, cparams: dict[str, Any]
    ) -> None:
        nonlocal ours
        if cparams.get("read_timeout") is None:
            ours = True
            cparams["read_timeout"] = seconds

    def lift(connection: Any, _record: Any) -> None:
        if ours:
            connection._read_timeout = read_seconds  # noqa: SLF001 - it has no other name

    return lift


def _prepare_sessions(
    engine: Engine, read_timeout: float | None, ask: Callable[[Any], None]
) -> None:
    """Let every new session be read-only, once its server has said that it may be used.

    Args:
        engine: The replica's engine.
        read_timeout: Seconds that a statement may take, or None.
        ask: Asks over a new connection, and raises if the server may not be used.
    """
    dialect = engine.dialect.name
    statements = _READ_ONLY.get(dialect)
    if statements is None:
        return
    limit = _LIMIT.get(dialect)
    if read_timeout is not None and limit is not None:
        limited = limit.format(seconds=read_timeout, ms=math.ceil(read_timeout * 1000))
        statements = (*statements, limited)

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        try:
            ask(connection)
            _prepare(connection, statements)
        except BaseException:
            connection.close()  # nobody else would
            raise


def _prepare(connection: Any, statements: Iterable[str]) -> None:
    """Make a new session read-only."""
    cursor = connection.cursor()
    try:
        for statement in statements:
            cursor.execute(statement)
    finally:
        cursor.close()
    # Or the first rollback would take the setting back.
    connection.commit()


class _AlwaysReadOnly(ConnectionCharacteristic):
    """``postgresql_readonly`` where every session is read-only, and stays it.

    To set it would change nothing; and SQLAlchemy's way to take it back, when the
    connection returns to its pool, is to ask for READ WRITE, which a standby refuses.
    """

    transactional = True

    def set_characteristic(self, dialect: Any, dbapi_conn: Any, value: Any) -> None:
        """Leave the session as it was prepared."""

    def reset_characteristic(self, dialect: Any, dbapi_conn: Any) -> None:
        """Leave it so."""

    def get_characteristic(self, dialect: Any, dbapi_conn: Any) -> bool:  # noqa: ARG002 - SQLAlchemy's signature
        """Return True."""
        return True


def _keep_read_only(engine: Engine) -> None:
    """Let no execution option begin another transaction than a read-only one."""
    dialect: Any = engine.dialect
    if dialect.name == "postgresql":
        dialect.connection_characteristics = dialect.connection_characteristics.union(
            {"postgresql_readonly": _AlwaysReadOnly()}
        )


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
