"""Read-only sessions: a replica's server refuses what classification misses.

So a bind that names the primary by mistake cannot be written to through the pool.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.engine.characteristics import ConnectionCharacteristic

from .dbapi_connections import closed_if_refused
from .poolers import SessionSetup
from .queries import execute

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

    from sqlalchemy import Engine
    from sqlalchemy.pool import ConnectionPoolEntry

__all__ = ["keep_read_only"]

_READ_ONLY = {
    "mysql": ("SET SESSION TRANSACTION READ ONLY",),
    "mariadb": ("SET SESSION TRANSACTION READ ONLY",),
    # SQLite opens the file at the first query only: without one, a damaged file would
    # pass for a replica.
    "sqlite": ("PRAGMA query_only = ON", "PRAGMA schema_version"),
}
# The server's own statement timeout. MySQL and MariaDB have different names for it,
# and each runs the comments that are meant for it.
_LIMIT = {
    "mysql": "SET @replicated = 0 "
    "/*M!100100 , SESSION max_statement_time = {seconds} */ "
    "/*!50708 , SESSION max_execution_time = {ms} */",
}
_LIMIT["mariadb"] = _LIMIT["mysql"]


def keep_read_only(
    name: str,
    engine: Engine,
    read_timeout: float | None,
    ask: Callable[[Any, ConnectionPoolEntry], None],
    in_time: Callable[[ConnectionPoolEntry], AbstractContextManager[None]],
) -> None:
    """Make every new session read-only, once its server was found fit to be used.

    Args:
        name: The replica's bind name.
        engine: The replica's engine.
        read_timeout: Seconds that a statement may take, or None.
        ask: Checks the server over the new connection, and raises if it is unfit.
        in_time: Returns the block in which to do both, for the connection's entry in
            its connection pool.
    """
    _ignore_read_write(engine)
    set_up = _session_setup(name, engine, read_timeout)
    if set_up is None:
        return

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, record: ConnectionPoolEntry) -> None:
        with closed_if_refused(connection, record), in_time(record):
            ask(connection, record)
            set_up(connection, record)


def _session_setup(
    name: str, engine: Engine, read_timeout: float | None
) -> Callable[[Any, ConnectionPoolEntry], None] | None:
    """Return what makes a session read-only; None if unknown for the dialect."""
    dialect = engine.dialect.name
    if read_timeout is None:
        figures = {}
    else:
        figures = {"seconds": read_timeout, "ms": math.ceil(read_timeout * 1000)}
    if dialect == "postgresql":
        limits = {"statement_timeout": str(figures["ms"])} if figures else {}
        return SessionSetup(name, engine, limits).prepare
    statements = _READ_ONLY.get(dialect)
    if statements is None:
        return None
    limit = _LIMIT.get(dialect)
    if figures and limit is not None:
        statements = (*statements, limit.format(**figures))
    return partial(_prepare, statements)


def _prepare(
    statements: Iterable[str], connection: Any, _record: ConnectionPoolEntry
) -> None:
    """Make a new session read-only."""
    execute(connection, *statements)
    # Otherwise the first rollback would take the setting back.
    connection.commit()


class _AlwaysReadOnly(ConnectionCharacteristic):
    """``postgresql_readonly`` for an engine whose sessions are always read-only.

    Setting it would change nothing. To reset it when the connection returns to its
    pool, SQLAlchemy would ask for READ WRITE, which a standby refuses.
    """

    transactional = True

    def set_characteristic(self, dialect: Any, dbapi_conn: Any, value: Any) -> None:
        """Do nothing: the session is read-only."""

    def reset_characteristic(self, dialect: Any, dbapi_conn: Any) -> None:
        """Do nothing: the session stays read-only."""

    def get_characteristic(self, dialect: Any, dbapi_conn: Any) -> bool:  # noqa: ARG002 - SQLAlchemy's signature
        """Return True."""
        return True


def _ignore_read_write(engine: Engine) -> None:
    """Ignore execution options that would begin a read-write transaction."""
    dialect: Any = engine.dialect
    if dialect.name == "postgresql":
        dialect.connection_characteristics = dialect.connection_characteristics.union(
            {"postgresql_readonly": _AlwaysReadOnly()}
        )
