"""A statement that writes and does not look like it, on every server."""

from __future__ import annotations

import re
from typing import Any

import sqlalchemy as sa

INSERT = "INSERT INTO book (title) VALUES ('hidden')"
_HIDDEN = re.compile(r"SELECT store\(\) /\* (.*) \*/", re.DOTALL)


def hidden_write(write: str = INSERT) -> sa.TextClause:
    """Return a write that only a server can recognise.

    It reads like a call of a function, and what that function does stands in a
    comment.
    """
    return sa.text(f"SELECT store() /* {write} */")


def do_hidden_write(
    _connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any
) -> tuple[str, Any]:
    """Do what the function does, as a listener to ``before_cursor_execute``."""
    found = _HIDDEN.fullmatch(statement)
    return (found[1] if found else statement), parameters
