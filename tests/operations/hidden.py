"""A statement that writes and does not look like it, on every server."""

from __future__ import annotations

from typing import Any

from sqlalchemy import TextClause
from sqlalchemy.ext.compiler import compiles


class Hidden(TextClause):
    """Reads like a SELECT and is compiled to an INSERT, as a function may be."""

    inherit_cache = False


@compiles(Hidden)
def _compile(_element: Hidden, _compiler: Any, **_: Any) -> str:
    return "INSERT INTO book (title) VALUES ('hidden')"


def hidden_write() -> Hidden:
    """Return a write that only a server can recognise."""
    return Hidden("SELECT store_a_book()")
