"""Recognises connection poolers such as PgBouncer in front of a PostgreSQL server.

A pooler in transaction mode gives each transaction to any free server connection. So
what is ``SET`` for a session reaches other clients, and does not apply to the next
transaction. The pooling mode cannot be asked for. But a pooler is recognised: the
backend pid that the driver got when it connected is not the pid that answers. Then all
settings are made by transaction, which works in every mode.
"""

from __future__ import annotations

import logging
import struct
from operator import attrgetter, methodcaller
from typing import TYPE_CHECKING, Any

from sqlalchemy import event

from flask_replicated._private import pg8000_key_data

from .queries import execute, first_row

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy import Connection, Engine
    from sqlalchemy.engine import ExecutionContext
    from sqlalchemy.pool import ConnectionPoolEntry

__all__ = ["POOLED", "SessionSetup", "backend_pid"]

logger = logging.getLogger("flask_replicated")

POOLED = "flask_replicated.pooled"
"""Key in a connection's ``info``: there is a pooler between it and its server."""

_BEGUN = "flask_replicated.begun"
_READ_ONLY = {"default_transaction_read_only": "on"}


def _pid_of_pg8000(connection: Any) -> int:
    pid: int = struct.unpack_from("!i", pg8000_key_data(connection))[0]
    return pid


_of_libpq = methodcaller("get_backend_pid")
_PIDS: Mapping[str, Callable[[Any], int]] = {
    "psycopg": attrgetter("info.backend_pid"),
    "psycopg2": _of_libpq,
    "psycopg2cffi": _of_libpq,
    "asyncpg": lambda connection: int(connection.get_server_pid()),
    "pg8000": _pid_of_pg8000,
}


class SessionSetup:
    """Makes the PostgreSQL sessions of one replica read-only, and sets their limits.

    Args:
        name: The replica's bind name.
        engine: Its engine, of PostgreSQL's dialect.
        limits: Other server parameters to set, by name.
    """

    def __init__(self, name: str, engine: Engine, limits: Mapping[str, str]) -> None:
        self._name = name
        self._engine = engine
        self._by_session = _settings({**_READ_ONLY, **limits}, local=False)
        # psycopg can begin each transaction so: that takes no statement of its own.
        self._says_read_only = engine.dialect.driver == "psycopg"
        read_only = {} if self._says_read_only else {"transaction_read_only": "on"}
        settings = {**read_only, **limits}
        self._by_transaction = _settings(settings, local=True) if settings else ""
        self._found = False

    def prepare(self, connection: Any, record: ConnectionPoolEntry) -> None:
        """Set up a new connection: its session, or each of its transactions.

        Args:
            connection: The driver's.
            record: The connection pool's entry of it.
        """
        pid = backend_pid(self._engine.dialect.driver, connection)
        # Sets nothing if another backend answers: check and setting in one query.
        query = f"{self._by_session} WHERE pg_backend_pid() = {pid}"
        direct = bool(first_row(connection, query))
        # Otherwise the first rollback would take the setting back.
        connection.commit()
        if direct:
            return
        record.info[POOLED] = True
        if self._says_read_only:
            dialect: Any = self._engine.dialect
            dialect.set_readonly(connection, True)
        # Before _found is set, and more than once if need be: another thread may open a
        # connection at this moment, and its transactions need the listeners too.
        self._listen()
        if not self._found:
            self._found = True
            logger.info(
                "replica %r is reached through a connection pooler: each of its "
                "transactions is made read only by itself",
                self._name,
            )

    def _listen(self) -> None:
        """Send the settings before the first statement of each transaction."""
        if self._found or not self._by_transaction:
            return
        event.listen(self._engine, "begin", self._note_begin)
        event.listen(self._engine, "do_execute", self._before)
        event.listen(self._engine, "do_executemany", self._before)
        event.listen(self._engine, "do_execute_no_params", self._before_bare)

    def _note_begin(self, connection: Connection) -> None:
        # Nothing is sent yet: if the connection is lost, the first statement notices it
        # and may be retried elsewhere.
        info = connection.info
        if POOLED in info:
            info[_BEGUN] = True

    def _before(self, _cursor: Any, _sql: str, _parameters: Any, context: Any) -> None:
        connection = context.root_connection
        if connection.info.pop(_BEGUN, False):
            execute(connection.connection, self._by_transaction)

    def _before_bare(self, cursor: Any, sql: str, context: ExecutionContext) -> None:
        self._before(cursor, sql, None, context)


def _settings(values: Mapping[str, str], *, local: bool) -> str:
    """Return the query that sets the server's parameters."""
    scope = "true" if local else "false"
    calls = (
        f"set_config('{key}', '{value}', {scope})" for key, value in values.items()
    )
    return f"SELECT {', '.join(calls)}"


def backend_pid(driver: str, connection: Any) -> int:
    """Return the backend pid that a driver got when it connected; 0 if none.

    If another backend answers, there is a pooler in between.

    Args:
        driver: SQLAlchemy's name for the driver, of PostgreSQL.
        connection: The driver's.
    """
    tells = _PIDS.get(driver)
    if tells is None:
        return 0
    return tells(getattr(connection, "driver_connection", connection))
