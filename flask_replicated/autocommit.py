"""Reads without a transaction block around them, where a block changes nothing.

Under ``READ COMMITTED`` each statement sees the newest data, in a block or not. Yet
drivers of PostgreSQL begin a block before the first statement, and end it: two round
trips of three, for one read. So a connection that was picked is in the driver's own
autocommit, and leaves it when a statement comes along for which it is not the same.
Whoever takes one from a replica's own engine has it as the driver makes it: nobody
would see what they do with it.

Nothing here is remembered beside the driver: it knows whether it is in autocommit, and
whether its server is in a block.
"""

from __future__ import annotations

from contextvars import ContextVar
from operator import attrgetter, methodcaller
from typing import TYPE_CHECKING, Any

from sqlalchemy import event

from .poolers import POOLED

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection, Engine
    from sqlalchemy.pool import ConnectionPoolEntry

__all__ = ["PICKED", "WITH_BLOCKS", "begin_block", "has_block", "leave_out_blocks"]

WITH_BLOCKS = "postgresql"
"""The dialect whose drivers put a block around a read that needs none."""

PICKED: ContextVar[bool] = ContextVar("flask_replicated_picked", default=False)
"""Whether what is being taken from a pool is for somebody who begins blocks late."""

_MARK = "flask_replicated.autocommit"

# Of a driver's connection, what is true where its server is in a block: without asking
# the server, and in C. (libpq's number for an idle connection is 0.)
_HAS_BLOCK: dict[str, Callable[[Any], object]] = {
    "psycopg": attrgetter("pgconn.transaction_status"),
    "psycopg2": methodcaller("get_transaction_status"),
    "pysqlite": attrgetter("in_transaction"),
}


def has_block(connection: Connection) -> bool:
    """Whether there may be a block to end, as far as its driver knows."""
    asks = _HAS_BLOCK.get(connection.dialect.driver)
    fairy = connection._dbapi_connection  # noqa: SLF001 - the public one begins a block
    if asks is None or fairy is None:
        return True
    try:
        return bool(asks(fairy.dbapi_connection))
    except Exception:  # noqa: BLE001 - closed; drivers differ in how they say so
        return True


def leave_out_blocks(engine: Engine) -> None:
    """Let the connections of a replica's engine leave out blocks that change nothing.

    Not where each cursor is the server's own, and so needs one.
    """
    dialect = engine.dialect
    asks = _HAS_BLOCK.get(dialect.driver)
    if (
        dialect.name != WITH_BLOCKS
        or dialect.is_async
        or asks is None
        or getattr(dialect, "server_side_cursors", False)
    ):
        return

    @event.listens_for(engine, "connect")
    def start(driver: Any, record: ConnectionPoolEntry) -> None:
        # Whoever has chosen a level has chosen its blocks, too.
        chosen = driver.autocommit or driver.isolation_level is not None
        if POOLED in record.info:  # its transactions are what is read-only
            return
        if dialect.default_isolation_level == "READ COMMITTED" and not chosen:
            record.info[_MARK] = True

    @event.listens_for(engine, "checkout")
    def hand_out(driver: Any, record: ConnectionPoolEntry, _proxy: Any) -> None:
        picked = PICKED.get()
        # Another who listens may have begun a block already.
        if (
            driver.autocommit is not picked
            and _MARK in record.info
            and not asks(driver)
        ):
            driver.autocommit = picked


def begin_block(connection: Connection) -> None:
    """Let a block begin with what is sent next, unless the connection is in one."""
    fairy = connection._dbapi_connection  # noqa: SLF001 - the same
    if fairy is None or _MARK not in fairy.info:
        return
    # The caller has chosen a level, and SQLAlchemy has set the driver to it.
    if "isolation_level" in connection.get_execution_options():
        return
    driver: Any = fairy.dbapi_connection
    # One that is lost takes no setting; the next statement says so better.
    if driver.autocommit and not has_block(connection):
        driver.autocommit = False
