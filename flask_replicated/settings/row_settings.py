"""What the settings of an engine's connections say of the rows that it reads.

``SQLALCHEMY_ENGINE_OPTIONS`` is the primary's alone, so a schema that is chosen there
is not a replica's: it would read the rows of another one, and nothing would fail.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from flask_replicated._private import connect_arguments, has_own_creator

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy import Engine

__all__ = ["differing_settings"]

_TRANSLATION = "schema_translate_map"
_POSTGRESQL = frozenset(
    {
        "bytea_output",
        "datestyle",
        "default_text_search_config",
        "intervalstyle",
        "lc_monetary",
        "lc_numeric",
        "lc_time",
        "role",
        "row_security",
        "search_path",
        "timezone",
        "transform_null_equals",
    }
)
"""Those of its settings that decide which rows are read, or what is in them."""
_MYSQL = frozenset({"charset", "collation", "init_command", "sql_mode", "time_zone"})
"""The same, as arguments of its drivers."""


def differing_settings(primary: Engine, replica: Engine) -> list[str]:
    """Return what decides the rows of a read, and is not set alike for two engines.

    What a creator sets at each connect is not known, and is compared with nothing.

    Args:
        primary: An engine.
        replica: One of the same kind of database.
    """
    engines = (primary, replica)
    ours, theirs = (dict(_translation(engine)) for engine in engines)
    if not any(has_own_creator(engine.pool) for engine in engines):
        ours, theirs = (
            known | dict(_settings(engine))
            for known, engine in zip((ours, theirs), engines, strict=True)
        )
    names = ours.keys() | theirs.keys()
    return sorted(name for name in names if ours.get(name) != theirs.get(name))


def _translation(engine: Engine) -> Iterator[tuple[str, object]]:
    translation = engine.get_execution_options().get(_TRANSLATION)
    if translation:
        yield _TRANSLATION, dict(translation)


def _settings(engine: Engine) -> Iterator[tuple[str, object]]:
    """Return what is set at each connect of an engine that has no creator."""
    arguments = connect_arguments(engine.pool)
    if engine.dialect.name in {"mysql", "mariadb"}:
        # Flask-SQLAlchemy names the drivers' usual one for MySQL, not for MariaDB.
        given = {"charset": "utf8mb4", **arguments}
        yield from ((name, given[name]) for name in _MYSQL & given.keys())
        return
    for name, value in _session_settings(arguments):
        if name in _POSTGRESQL or "." in name:  # or the application's own
            yield name, value


def _session_settings(arguments: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Return what the arguments of a PostgreSQL driver set for each session."""
    options, settings = arguments.get("options"), arguments.get("server_settings")
    if isinstance(options, str):
        yield from _parsed(options)
    if isinstance(settings, dict):  # asyncpg's
        yield from ((str(name).lower(), str(value)) for name, value in settings.items())


def _parsed(options: str) -> Iterator[tuple[str, str]]:
    """Parse ``-c name=value``, ``-cname=value`` and ``--name=value``."""
    try:
        words = shlex.split(options)
    except ValueError:  # the server will say what it thinks of it
        return
    for word in words:
        name, equals, value = word.removeprefix("-c").removeprefix("--").partition("=")
        if equals:
            yield name.replace("-", "_").lower(), value
