"""What a driver's error says about the server that raised it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy.exc import DBAPIError

__all__ = ["refused_as_write"]

_READ_ONLY_TRANSACTION = "25006"
# The server runs with --read-only; the transaction is read only; the server is.
_MYSQL_READ_ONLY = frozenset({1290, 1792, 1836})
_SQLITE_READ_ONLY = "attempt to write a readonly database"


def refused_as_write(error: DBAPIError) -> bool:
    """Whether a server refused a statement because it may only read there."""
    driver = error.orig
    state = getattr(driver, "sqlstate", None) or getattr(driver, "pgcode", None)
    if state == _READ_ONLY_TRANSACTION:
        return True
    arguments = getattr(driver, "args", ())
    first = arguments[0] if arguments else None
    return first in _MYSQL_READ_ONLY or first == _SQLITE_READ_ONLY
