"""How long a server may take until a new connection to it can be used.

``REPLICATED_CONNECT_TIMEOUT`` is applied in two places: each driver is told its own
timeout argument, and a timer covers what is asked of the server after the log-in.
"""

from __future__ import annotations

import logging
import math
import threading
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from sqlalchemy import event

from flask_replicated._private import pg8000_socket, set_pymysql_read_timeout
from flask_replicated.system.sockets import fileno_of, hang_up

from .dbapi_connections import connect_unpooled, prepare_unpooled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sqlalchemy import Engine
    from sqlalchemy.engine import Dialect
    from sqlalchemy.pool import ConnectionPoolEntry

    from .dbapi_connections import Surroundings

__all__ = [
    "NAME_A_LIMIT",
    "ONE_BIND_EACH",
    "SetupTimeout",
    "TimeLimit",
    "connect_share",
    "connected_for",
    "set_connect_timeout",
    "timeout_argument",
    "warn_of_hosts",
]

logger = logging.getLogger("flask_replicated")

_TIMEOUT_ARGUMENT = {
    "psycopg": "connect_timeout",
    "psycopg2": "connect_timeout",
    "pymysql": "connect_timeout",
    "mysqldb": "connect_timeout",
    "mariadbconnector": "connect_timeout",
    "mysqlconnector": "connection_timeout",
    "pg8000": "timeout",
    "asyncpg": "timeout",
    "aiomysql": "connect_timeout",
    "asyncmy": "connect_timeout",
}


def timeout_argument(driver: str) -> str | None:
    """Return the name of a driver's connect timeout argument, if it has one."""
    return _TIMEOUT_ARGUMENT.get(driver)


def set_connect_timeout(
    engine: Engine, seconds: int, read_timeout: float | None
) -> Callable[[Any, Any], None] | None:
    """Give the driver a timeout for connecting.

    Args:
        engine: Before its first connection.
        seconds: How long a connect may take.
        read_timeout: Seconds that a statement may take, or None. Some drivers have one
            socket timeout for both.

    Returns:
        A listener to ``connect`` that takes the timeout off the new connection, where
        the driver would apply it to statements too; or None.
    """
    argument = timeout_argument(engine.driver)
    if argument is None:
        return None
    # A second more than the server's own limit, so that the server reports it first.
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
        cparams.setdefault(argument, connect_share(seconds, dialect, cparams))
        for name, value in others.items():
            cparams.setdefault(name, value)

    return lift


def _lift_socket_limit(connection: Any, _record: Any) -> None:
    """Let pg8000 wait for answers: its connect timeout applies to every read."""
    pg8000_socket(connection).settimeout(None)


def _limit_greeting(
    engine: Engine, seconds: int, read_seconds: int | None
) -> Callable[[Any, Any], None]:
    """Limit the wait for the server's greeting, which PyMySQL does not.

    Its ``connect_timeout`` covers the TCP connect alone, which the kernel of a server
    that hangs still accepts. So ``read_timeout`` is used until the server has answered.
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
            set_pymysql_read_timeout(connection, read_seconds)

    return lift


_LIBPQ = frozenset({"psycopg", "psycopg2"})
_LIMIT = "connect_timeout"
_TAKES_ONE = 170000  # the first version of libpq that does not turn 1 into 2


ONE_BIND_EACH = "Give each host a bind of its own"
"""Remedy for a replica."""
NAME_A_LIMIT = "Say how long each host may take, as in '?connect_timeout=2'"
"""Remedy for a primary, whose URL may well name several hosts for failover."""


def connect_share(seconds: int, dialect: Dialect, arguments: Mapping[str, Any]) -> int:
    """Return the whole seconds that each host of a URL may take to connect.

    libpq's drivers try several hosts one after the other, with one timeout for each.

    Args:
        seconds: What all may take together; drivers take no fractions.
        dialect: The engine's.
        arguments: The driver's connect arguments.
    """
    tries = _tries(dialect, arguments)
    return seconds if tries == 1 else max(seconds // tries, _least(dialect))


def warn_of_hosts(whose: str, engine: Engine, seconds: int, remedy: str) -> None:
    """Log a warning if a URL's hosts together may exceed the connect timeout.

    Args:
        whose: Whose URL it is.
        engine: Its engine.
        seconds: The connect timeout.
        remedy: What to do, unless the timeout is raised.
    """
    dialect = engine.dialect
    if dialect.driver not in _LIBPQ:
        return
    _, arguments = dialect.create_connect_args(engine.url)
    tries = _tries(dialect, arguments)
    longest = tries * connect_share(seconds, dialect, arguments)
    if longest > seconds and _LIMIT not in arguments:
        logger.warning(
            "%s: for the hosts in its URL the driver tries %d times, one after "
            "the other, and for no less than %d seconds each. So a connect may take %d "
            "seconds, and not REPLICATED_CONNECT_TIMEOUT = %d. %s, "
            "or set REPLICATED_CONNECT_TIMEOUT = %d.",
            whose,
            tries,
            _least(dialect),
            longest,
            seconds,
            remedy,
            longest,
        )


def _tries(dialect: Dialect, arguments: Mapping[str, Any]) -> int:
    """Return how many hosts a driver may try for one connect."""
    if dialect.driver not in _LIBPQ:
        return 1
    hosts = arguments.get("hostaddr") or arguments.get("host") or ""
    # libpq tries every host for a standby first, and then for any server.
    twice = arguments.get("target_session_attrs") == "prefer-standby"
    return (str(hosts).count(",") + 1) * (2 if twice else 1)


def _least(dialect: Dialect) -> int:
    """Return the shortest timeout, in seconds, that a driver applies to a host."""
    # psycopg 3 does not show this, and takes 1 for 2 with every libpq.
    libpq: int = getattr(dialect.dbapi, "__libpq_version__", 0)
    return 1 if libpq >= _TAKES_ONE else 2


class TimeLimit:
    """Ends a connection after some time, unless the limit is lifted.

    A thread that waits on the connection then gets the driver's error of a lost one.
    Where the driver does not show its socket there is no limit.

    Args:
        connection: A DBAPI connection.
        seconds: How long it may take.

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
        """Start the timer."""
        if fileno_of(self._connection) is not None:
            try:
                self._timer.start()
            except RuntimeError:  # no more threads: then without a limit
                pass
        return self

    def lift(self) -> bool:
        """Stop the timer; return whether the connection was ended."""
        self._timer.cancel()
        with self._lock:
            self._lifted = True
        return self.reached

    def _reach(self) -> None:
        with self._lock:  # shutting a socket down does not block
            if not self._lifted:
                self.reached = hang_up(self._connection)


@contextmanager
def connected_for(
    engine: Engine, seconds: float, surroundings: Surroundings = nullcontext
) -> Iterator[Any]:
    """Give a DBAPI connection outside the connection pool, and close it afterwards.

    Args:
        engine: Whose server to connect to.
        seconds: How long all that is asked over it may take; the connect has the
            driver's own timeout.
        surroundings: Returns the block to connect in.

    Raises:
        Exception: Whatever the connect or the driver raises.
    """
    connection = connect_unpooled(engine, surroundings)
    limit = TimeLimit(connection, seconds).start()
    try:
        prepare_unpooled(engine, connection)
        yield connection
    finally:
        limit.lift()
        connection.close()


class SetupTimeout:
    """Limits what happens between a server's log-in and the use of the connection.

    Drivers limit the connect, and nothing that follows: SQLAlchemy asks a new server
    for its version, and this package asks for its role. A pooler accepts connections
    for a server that is down, and a server may freeze at that moment. Without a limit
    the caller would wait for minutes, and so would everyone who waits for the first
    connection of a process. All listeners to ``connect`` share this one limit.

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
        """Lift the limit; return whether the connection was ended by it."""
        limit: TimeLimit | None = record.info.pop(self, None)
        return limit is not None and limit.lift()
