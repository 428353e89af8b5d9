"""A statement that writes and does not look like it, on every server."""

from __future__ import annotations

from typing import Any

from sqlalchemy import TextClause
from sqlalchemy.ext.compiler import compiles

INSERT = "INSERT INTO book (title) VALUES ('hidden')"


class Hidden(TextClause):
    """Reads like a SELECT and is compiled to a write, as a function may be.

    Args:
        write: What it is compiled to.
    """

    inherit_cache = False

    def __init__(self, write: str) -> None:
        super().__init__("SELECT store()")
        self.write = write


@compiles(Hidden)
def _compile(element: Hidden, _compiler: Any, **_: Any) -> str:
    return element.write


def hidden_write(write: str = INSERT) -> Hidden:
    """Return a write that only a server can recognise."""
    return Hidden(write)
