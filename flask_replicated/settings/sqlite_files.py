"""SQLite databases: files, and memory; by what the driver is told to open."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl, unquote

from sqlalchemy import StaticPool, event

from flask_replicated._private import has_own_creator
from flask_replicated.errors import MisconfiguredReplicaError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Engine

__all__ = [
    "in_private_memory",
    "missing_file",
    "require_existing_file",
    "shares_connection",
    "uses_given_connection",
]

_MEMORY = ":memory:"


class _Name(NamedTuple):
    """The name of a database, as SQLite reads it.

    Attributes:
        path: Its path; empty for a temporary database.
        options: The options of a URI, such as ``mode`` and ``cache``.
    """

    path: str
    options: Mapping[str, str]

    @property
    def private(self) -> bool:
        """Whether each connection has its own database of this name."""
        if self.options.get("vfs") == "memdb":
            return not self.path.startswith("/")
        volatile = self.path in {"", _MEMORY} or self.options.get("mode") == "memory"
        return volatile and self.options.get("cache") != "shared"

    @property
    def file(self) -> str | None:
        """Its file; None if it has none, or it is unknown."""
        elsewhere = self.path in {"", _MEMORY} or "vfs" in self.options
        return None if elsewhere or self.options.get("mode") == "memory" else self.path


def _name(arguments: Sequence[Any], options: Mapping[str, Any]) -> _Name | None:
    """Return what a driver is told to open; None if that is not a string."""
    given = arguments[0] if arguments else options.get("database")
    if not isinstance(given, str):
        return None
    if not (options.get("uri") and given.startswith("file:")):
        return _Name(given, {})
    path, _, query = given[len("file:") :].partition("#")[0].partition("?")
    if path.startswith("//"):  # an authority, which is empty or localhost
        path = "/" + path[2:].partition("/")[2]
    path = unquote(path)
    if os.name == "nt":  # file:///C:/shop.db
        path = re.sub(r"^/(?=[A-Za-z]:)", "", path)
    return _Name(path, dict(parse_qsl(query, keep_blank_values=True)))


def in_private_memory(engine: Engine) -> bool:
    """Whether an engine's database is in memory and invisible to other engines."""
    if engine.dialect.name != "sqlite" or has_own_creator(engine.pool):
        return False
    name = _name(*engine.dialect.create_connect_args(engine.url))
    return name is not None and name.private


def uses_given_connection(engine: Engine) -> bool:
    """Whether a SQLite engine's only connection comes from a custom function.

    It very likely is in memory, and shared with other engines.
    """
    return (
        engine.dialect.name == "sqlite"
        and isinstance(engine.pool, StaticPool)
        and has_own_creator(engine.pool)
    )


def shares_connection(engine: Engine, other: Engine) -> bool:
    """Whether two SQLite engines may share one connection."""
    same = engine.dialect.name == "sqlite" and engine.pool is other.pool
    return same or uses_given_connection(engine)


def require_existing_file(name: str, engine: Engine) -> None:
    """Let a replica's SQLite file be opened, but never created.

    SQLite creates an empty database for a missing file, and each read from it would
    find no table. A connect to a missing file raises ``MisconfiguredReplicaError``.

    Args:
        name: The replica's bind name.
        engine: Its engine.
    """
    if engine.dialect.name != "sqlite":
        return

    @event.listens_for(engine, "do_connect")
    def check_file(_dialect: Any, _record: Any, cargs: Any, cparams: Any) -> None:
        file = _missing(_name(cargs, cparams))
        if file is not None:
            raise MisconfiguredReplicaError(
                name,
                f"its file {str(file)!r} does not exist",
                "A replica's is never created: let {bind} name a copy of the primary's "
                "file, or that file itself.",
            )


def missing_file(engine: Engine) -> Path | None:
    """Return an SQLite engine's file if it does not exist; a connect would create it.

    Args:
        engine: Any engine; one with a creator of its own has no file that is known.
    """
    if engine.dialect.name != "sqlite" or has_own_creator(engine.pool):
        return None
    return _missing(_name(*engine.dialect.create_connect_args(engine.url)))


def _missing(name: _Name | None) -> Path | None:
    """Return the absolute path of a database's file, if there is none."""
    if name is None or name.file is None:
        return None
    file = Path(name.file)
    try:
        file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return file.absolute()
    except OSError:  # SQLite will say what it is
        return None
    return None
