"""Sessions that the server itself keeps read-only, whatever is asked of it later.

What classification misses the server refuses; so a bind that names the primary by
mistake cannot be written to through the pool.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.engine.characteristics import ConnectionCharacteristic

from .dbapi_connections import closed_if_refused
from .poolers import SessionSetup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

    from sqlalchemy import Engine
    from sqlalchemy.pool import ConnectionPoolEntry

__all__ = ["keep_read_only"]

_READ_ONLY = {
    "mysql": ("SET SESSION TRANSACTION READ ONLY",),
    "mariadb": ("SET SESSION TRANSACTION READ ONLY",),
    # SQLite looks into the file at the first question only; so ask one, or a
    # file that is damaged would pass for a replica.
    "sqlite": ("PRAGMA query_only = ON", "PRAGMA schema_version"),
}
# A server's own limit on a statement. MySQL and MariaDB call it by different names,
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
    ask: Callable[[Any], None],
    in_time: Callable[[ConnectionPoolEntry], AbstractContextManager[None]],
) -> None:
    """Let every new session be read-only, once its server has said that it may be used.

    Args:
        name: The replica's bind name.
        engine: The replica's engine.
        read_timeout: Seconds that a statement may take, or None.
        ask: Asks over a new connection, and raises if the server may not be used.
        in_time: Surrounds all that is asked of it, by what its pool knows of it.
    """
    _keep_read_only(engine)
    settle = _settling(name, engine, read_timeout)
    if settle is None:
        return

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, record: ConnectionPoolEntry) -> None:
        with closed_if_refused(connection, record), in_time(record):
            ask(connection)
            settle(connection, record)


def _settling(
    name: str, engine: Engine, read_timeout: float | None
) -> Callable[[Any, ConnectionPoolEntry], None] | None:
    """Return what prepares a new connection, if anything is known for its dialect."""
    dialect = engine.dialect.name
    if read_timeout is None:
        figures = {}
    else:
        figures = {"seconds": read_timeout, "ms": math.ceil(read_timeout * 1000)}
    if dialect == "postgresql":
        limits = {"statement_timeout": str(figures["ms"])} if figures else {}
        return SessionSetup(name, engine, limits).settle
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
