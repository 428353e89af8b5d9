"""Queries over DBAPI connections that the caller has opened, and that stay open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["execute", "first_row", "query_server", "row_dict", "row_values", "untold"]

_T = TypeVar("_T")


def query_server(connection: Any, *queries: Callable[[Any], _T]) -> _T:
    """Run the first of several queries that a server understands.

    A server need not know all that the first query asks for, and the account may lack
    a privilege.

    Args:
        connection: A DBAPI connection. Its transaction is rolled back after a query
            that has failed; otherwise it is left open.
        queries: The queries, the most comprehensive one first. Each gets a cursor.

    Raises:
        Exception: The driver's, for the last of them.
    """
    *first, last = queries
    for query in first:
        try:
            return _run(connection, query)
        except Exception:  # noqa: BLE001 - a lost connection fails again below
            connection.rollback()
    return _run(connection, last)


def _run(connection: Any, query: Callable[[Any], _T]) -> _T:
    cursor = connection.cursor()
    try:
        return query(cursor)
    finally:
        cursor.close()


def untold(_cursor: Any) -> None:
    """Return None: the last query, where the server may refuse to tell."""


def execute(connection: Any, *statements: str) -> None:
    """Execute statements that return nothing.

    Raises:
        Exception: The driver's.
    """

    def run(cursor: Any) -> None:
        for statement in statements:
            cursor.execute(statement)

    _run(connection, run)


def first_row(connection: Any, query: str) -> list[Any]:
    """Return the values of a query's first row; empty if there is none.

    Raises:
        Exception: The driver's.
    """

    def fetch(cursor: Any) -> list[Any]:
        cursor.execute(query)
        return row_values(cursor.fetchone())

    return _run(connection, fetch)


def row_values(row: Any) -> list[Any]:
    """Return the values of a row; a bind's own cursor may return a dictionary."""
    return list(row.values() if isinstance(row, dict) else row or ())


def row_dict(cursor: Any, row: Any) -> dict[str, Any]:
    """Return a row of the cursor's by the names of its columns; empty if it is None."""
    if row is None or isinstance(row, dict):
        return row or {}
    return dict(zip((column[0] for column in cursor.description), row, strict=True))
