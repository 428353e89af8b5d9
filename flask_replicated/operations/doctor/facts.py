"""What a server says of itself that concerns more than one of them.

Each question is one query. A server that does not understand one, or does not allow it,
leaves that fact unknown. Nothing is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from flask_replicated.replica.failures import is_missing_object
from flask_replicated.replica.poolers import backend_pid
from flask_replicated.replica.queries import query_server, row_values, untold

if TYPE_CHECKING:
    from collections.abc import Callable

    from .servers import Server

__all__ = ["Facts", "ask_facts", "value_of"]


@dataclass(frozen=True)
class Facts:
    """What one server says of itself.

    Attributes:
        identity: The same for all connections that lead to one server; None if untold.
        connections: How many connections ordinary accounts may have open together, and
            ``max_connections``; None if untold.
        account: Whom the server takes the application for, as SQL has it.
        versions: What ``alembic_version`` has: nothing without such a table; None if it
            cannot be read.
        file: The SQLite file, ``''`` for a memory database; None for another database.
        pooled: Whether there is a connection pooler before it (PostgreSQL).
        own: Whether a replica's bind leads to the primary itself.
    """

    identity: str | None = None
    connections: tuple[int, int] | None = None
    account: str = "its account"
    versions: frozenset[str] | None = None
    file: str | None = None
    pooled: bool = False
    own: bool = False


def ask_facts(connection: Any, server: Server, version_table: str) -> Facts:
    """Ask over a new connection.

    Args:
        connection: A DBAPI connection. Its transaction is rolled back.
        server: Whose it is.
        version_table: What Alembic calls its table, quoted where it must be.

    Raises:
        Exception: The driver's, if the server does not answer any more.
    """
    query = _QUERIES.get(server.dialect)
    row = query_server(connection, _rows(query), untold) if query else None
    asked = f"SELECT version_num FROM {version_table}"  # noqa: S608 - its own setting
    versions: frozenset[str] | None
    try:
        rows = query_server(connection, _rows(asked))
        versions = frozenset(str(one[0]) for one in rows or ())
    except Exception as error:  # noqa: BLE001 - drivers raise what they like
        versions = frozenset() if is_missing_object(error) else None
    connection.rollback()
    if not row:
        return Facts(versions=versions)
    identity, free, most, account, backend = row[0]
    if server.dialect == "sqlite":
        return Facts(versions=versions, file=identity or "")
    told = backend_pid(server.engine.dialect.driver, connection) if backend else 0
    return Facts(
        identity=str(identity),
        connections=(int(free), int(most)),
        account=str(account),
        versions=versions,
        pooled=bool(told) and told != backend,
    )


def value_of(connection: Any, question: str) -> Any:
    """Return the first value of a query's first row; None if the server refuses it."""
    rows = query_server(connection, _rows(question), untold)
    connection.rollback()
    return rows[0][0] if rows else None


def _rows(question: str) -> Callable[[Any], list[list[Any]] | None]:
    return partial(_fetch, question)


def _fetch(question: str, cursor: Any) -> list[list[Any]] | None:
    cursor.execute(question)
    return [row_values(row) for row in cursor.fetchall()]


_POSTGRESQL = """
SELECT pg_postmaster_start_time()::text AS identity,
       current_setting('max_connections')::int
       - current_setting('superuser_reserved_connections')::int
       - coalesce(current_setting('reserved_connections', true), '0')::int AS free,
       current_setting('max_connections')::int AS most,
       quote_ident(current_user::text) AS account,
       pg_backend_pid() AS backend
"""
_MYSQL = """
SELECT CONCAT(@@hostname, ':', @@port) AS identity,
       @@GLOBAL.max_connections AS free, @@GLOBAL.max_connections AS most,
       CONCAT('''', REPLACE(CURRENT_USER(), '@', '''@'''), '''') AS account,
       NULL AS backend
"""
_QUERIES = {
    "postgresql": _POSTGRESQL,
    "mysql": _MYSQL,
    "mariadb": _MYSQL,
    "sqlite": "SELECT file, NULL, NULL, NULL, NULL FROM pragma_database_list",
}
