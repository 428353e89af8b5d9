"""Reads without a transaction block around them, where a block changes nothing.

Under ``READ COMMITTED`` each statement sees the newest data, in a block or not. Yet
drivers of PostgreSQL begin a block before the first statement, and end it: two round
trips of three, for one read. So a connection that was picked is in the driver's own
autocommit, and leaves it when a statement comes along for which it is not the same.
A connection taken from a replica's own engine is as the driver makes it: what is done
with it cannot be seen.

A listener that is given the driver's connection or its cursor could send anything, past
what looks at statements. While a program has one, blocks are kept.

Nothing here is remembered beside the driver: it knows whether it is in autocommit, and
whether its server is in a block.
"""

from __future__ import annotations

from contextvars import ContextVar
from operator import attrgetter, methodcaller
from typing import TYPE_CHECKING, Any

from sqlalchemy import event

from flask_replicated._private import pooled_connection
from flask_replicated.replica.connection_events import CHANGED
from flask_replicated.replica.poolers import POOLED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection, Dialect, Engine
    from sqlalchemy.pool import ConnectionPoolEntry

__all__ = [
    "PICKED",
    "WITH_BLOCKS",
    "begin_block",
    "begin_block_late",
    "has_block",
    "leave_out_block",
    "leave_out_blocks",
]

WITH_BLOCKS = "postgresql"
"""The dialect whose drivers put a block around a read that needs none."""

PICKED: ContextVar[bool] = ContextVar("flask_replicated_picked", default=False)
"""Whether the connection being taken from its pool begins its blocks late."""

_MARK = "flask_replicated.engine.lazy_begin"
_AFTER_CHECKOUT = "flask_replicated.autocommit_later"
_OURS = "flask_replicated."
_SENDING = ("do_execute", "do_executemany", "do_execute_no_params")
"""Events of a dialect whose listeners are given a cursor."""

# Of a driver's connection, what is true where its server is in a block: without asking
# the server, and in C. (libpq's number for an idle connection is 0.)
_HAS_BLOCK: dict[str, Callable[[Any], object]] = {
    "psycopg": attrgetter("pgconn.transaction_status"),
    "psycopg2": methodcaller("get_transaction_status"),
    "pysqlite": attrgetter("in_transaction"),
}


def has_block(connection: Connection) -> bool:
    """Whether there may be a block to end, as far as its driver knows."""
    asks, pooled = (
        _HAS_BLOCK.get(connection.dialect.driver),
        pooled_connection(connection),
    )
    if asks is None or pooled is None:
        return True
    try:
        return bool(asks(pooled.dbapi_connection))
    except Exception:  # noqa: BLE001 - closed; drivers differ in how they say so
        return True


def leave_out_blocks(engine: Engine) -> None:
    """Let the connections of a replica's engine leave out blocks that change nothing.

    Not where each cursor is the server's own, and so needs one.
    """
    dialect, asks = engine.dialect, _block_test_of(engine.dialect)
    if asks is None or getattr(dialect, "server_side_cursors", False):
        return
    listeners = _ProgramListeners(engine)

    @event.listens_for(engine, "connect")
    def start(driver: Any, record: ConnectionPoolEntry) -> None:
        # A program that has chosen a level has chosen its blocks, too.
        chosen = driver.autocommit or driver.isolation_level is not None
        if POOLED in record.info:  # its transactions are what is read-only
            return
        if dialect.default_isolation_level == "READ COMMITTED" and not chosen:
            record.info[_MARK] = True

    @event.listens_for(engine, "checkout")
    def hand_out(driver: Any, record: ConnectionPoolEntry, _proxy: Any) -> None:
        listened, late = listeners.find()
        picked = PICKED.get()
        record.info[_AFTER_CHECKOUT] = late and picked
        picked = picked and not listened
        # Another listener may have begun a block already.
        if (
            driver.autocommit is not picked
            and _MARK in record.info
            and not asks(driver)
        ):
            driver.autocommit = picked
            if listened and not late:
                # It may have been called before: what it set would stay set.
                record.info[CHANGED] = True


def _block_test_of(dialect: Dialect) -> Callable[[Any], object] | None:
    """Return what tells whether a server is in a block; None where blocks are kept."""
    if dialect.name != WITH_BLOCKS or dialect.is_async:
        return None
    return _HAS_BLOCK.get(dialect.driver)


class _ProgramListeners:
    """Finds a program's listeners that are given a driver's connection or cursor.

    Args:
        engine: The engine that they may listen to.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._ours = -1  # how many listeners there are if all are this package's

    def find(self) -> tuple[bool, bool]:
        """Return whether there is one.

        And whether all of them only come after this package's ``checkout``.
        """
        count = 0
        for listened in self._events():
            count += len(listened.listeners) + len(listened.parent_listeners)
        if count == self._ours:  # none of which is ever removed
            return False, False
        checkout, *sending = (
            [_is_ours(one) for one in listened] for listened in self._events()
        )
        sends_alone = all(map(all, sending))
        if sends_alone and all(checkout):
            self._ours = count
            return False, False
        return True, sends_alone and checkout == sorted(checkout, reverse=True)

    def _events(self) -> Iterator[Any]:
        dispatch: Any = self._engine.dialect.dispatch
        yield self._engine.pool.dispatch.checkout
        for name in _SENDING:
            yield getattr(dispatch, name)


def _is_ours(listener: Any) -> bool:
    return str(getattr(listener, "__module__", "")).startswith(_OURS)


def leave_out_block(connection: Connection) -> None:
    """Leave out the block, now that the pool's listeners have not begun one."""
    fairy = pooled_connection(connection)
    if fairy is None or not fairy.info.get(_AFTER_CHECKOUT) or _MARK not in fairy.info:
        return
    if "isolation_level" in connection.get_execution_options():
        return
    if connection.get_transaction() is None and not has_block(connection):
        driver: Any = fairy.dbapi_connection
        driver.autocommit = True


def begin_block(connection: Connection) -> None:
    """Let a block begin with what is sent next, unless the connection is in one."""
    fairy = pooled_connection(connection)
    if fairy is None or _MARK not in fairy.info:
        return
    # The caller has chosen a level, and SQLAlchemy has set the driver to it.
    if "isolation_level" in connection.get_execution_options():
        return
    driver: Any = fairy.dbapi_connection
    # One that is lost takes no setting; the next statement says so better.
    if driver.autocommit and not has_block(connection):
        driver.autocommit = False


def begin_block_late(connection: Connection) -> None:
    """Let a block begin if a listener is given cursors that came after the transaction.

    What it has set already would stay set: the connection is not used again.
    """
    fairy = pooled_connection(connection)
    if fairy is None or _MARK not in fairy.info:
        return
    driver: Any = fairy.dbapi_connection
    if driver.autocommit and connection.dispatch.before_cursor_execute:
        begin_block(connection)
        fairy.info[CHANGED] = True
