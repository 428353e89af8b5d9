"""DBAPI connections: opened outside a connection pool, or closed when refused.

A connection of :func:`connect_unpooled` is made and prepared like those of the engine's
connection pool. Pool events such as ``connect`` do not fire for it, and it does not
count towards the pool's size.
"""

from __future__ import annotations

import functools
from contextlib import contextmanager, nullcontext, suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

from flask_replicated._private import invoke_creator, isolation_level_setter
from flask_replicated.system.forks import leave_to_parent
from flask_replicated.system.sockets import hang_up

from .throttle import unlimited

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from sqlalchemy import Engine

    Surroundings = Callable[[], AbstractContextManager[object]]

__all__ = [
    "UnpooledConnections",
    "closed_if_refused",
    "connect_unpooled",
    "prepare_unpooled",
]


class _Entry(ConnectionPoolEntry):
    """What a creator, or a ``do_connect`` listener, gets in place of a pool's entry."""

    # In place of the properties of the same names, which other classes implement.
    info: dict[Any, Any] = {}  # noqa: RUF012 - each has its own
    record_info: dict[Any, Any] = {}  # noqa: RUF012 - the same
    dbapi_connection = driver_connection = None
    in_use = True

    def __init__(self) -> None:
        self.info, self.record_info = {}, {}

    def invalidate(self, e: BaseException | None = None, soft: bool = False) -> None:
        """Do nothing: there is no connection yet."""

    close = invalidate


def connect_unpooled(engine: Engine, surroundings: Surroundings = nullcontext) -> Any:
    """Open a DBAPI connection as the engine's connection pool does, outside of it.

    The engine's creator, or its ``do_connect`` listeners, get a record of its own.

    Args:
        engine: Whose server to connect to.
        surroundings: Returns the block to connect in: the application's context, in
            which a creator may read ``current_app``.

    Returns:
        The connection. The caller closes it, and calls :func:`prepare_unpooled`
        before anything else, as that may have to wait for the server too.

    Raises:
        Exception: Whatever the creator, a listener or the driver raises.
    """
    connect = invoke_creator(engine.pool)  # read each time: dispose() replaces it
    with unlimited(), surroundings():
        return connect(_Entry())


def prepare_unpooled(engine: Engine, connection: Any) -> None:
    """Prepare such a connection like the engine's dialect prepares each new one.

    So the dialect's own settings and the engine's ``isolation_level`` apply to it.
    """
    dialect: Any = engine.dialect
    on_connect = dialect.on_connect_url(engine.url)
    if on_connect is not None:
        on_connect(connection)
    set_level = isolation_level_setter(dialect)
    if set_level is not None:
        set_level(connection, None)


class UnpooledConnections:
    """Connections outside a connection pool, which another thread can end.

    Args:
        surroundings: Returns the block to connect in.

    Attributes:
        abandoned: Whether they belong to the parent, in a forked child.
    """

    def __init__(self, surroundings: Surroundings = nullcontext) -> None:
        self._surroundings = surroundings
        self._open: list[Any] = []
        self._ended = self.abandoned = False

    @contextmanager
    def connect(self, engine: Engine) -> Iterator[Any]:
        """Give a new connection that is prepared, and close it afterwards.

        Raises:
            Exception: It was ended, or what the driver raises.
        """
        self._check()
        connection = connect_unpooled(engine, self._surroundings)
        self._open.append(connection)
        try:
            self._check()  # again: end() may not have seen the connection
            prepare_unpooled(engine, connection)
            yield connection
        finally:
            with suppress(Exception):
                connection.close()
            self._open.remove(connection)

    def _check(self) -> None:
        if self._ended:
            raise RuntimeError("the connection is not needed any more")

    def end(self) -> None:
        """End all of them permanently, where the driver shows the socket."""
        self._ended = True
        for connection in list(self._open):
            hang_up(connection)

    def abandon(self) -> None:
        """In a forked child, leave all of them to the parent process."""
        self._ended = self.abandoned = True
        for connection in list(self._open):
            leave_to_parent(connection)


@contextmanager
def closed_if_refused(connection: Any, record: Any) -> Iterator[None]:
    """Close a new connection if this block of a ``connect`` listener raises.

    It is closed once: some drivers raise an error if closed twice, which SQLAlchemy
    would log with a traceback instead of the real cause.

    Args:
        connection: The DBAPI connection.
        record: Its record in the connection pool, which may be changed.
    """
    try:
        yield
    except BaseException:
        if not _pool_closes():
            record.dbapi_connection = None  # or the pool might close it again
            connection.close()
        raise


@functools.cache
def _pool_closes() -> bool:
    """Whether this version of SQLAlchemy closes a connection if a listener raises.

    2.1 and later releases of 2.0 do; earlier ones leave it open.
    """
    closed: list[bool] = []
    connection: Any = SimpleNamespace(close=lambda: closed.append(True))
    pool = NullPool(lambda: connection)

    @event.listens_for(pool, "connect")
    def refuse(*_: object) -> None:
        raise RuntimeError

    try:
        pool.connect()
    except RuntimeError:
        pass
    return bool(closed)
