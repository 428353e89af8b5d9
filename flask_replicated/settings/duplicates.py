"""Replicas whose URL is the primary's, or another replica's: a slip in copying it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from flask_replicated._private import connect_arguments, has_own_creator

from .binds import PORTS
from .compatibility import family

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    from sqlalchemy import URL, Engine

__all__ = ["log_duplicates"]

logger = logging.getLogger("flask_replicated")

_LOCAL = ("localhost", "127.0.0.1", "::1")
_SERVER_ARGUMENTS = (
    *("host", "hostaddr", "port", "service", "unix_socket", "dsn"),
    *("dbname", "database", "db", "target_session_attrs", "read_default_file"),
)
"""Arguments of drivers that name a server or a database."""
_OTHER_PLACES = frozenset({"service", "dsn", "hostaddr", "read_default_file"})
"""Those that hide in a file, or name the server beside the host."""
_ENOUGH_OTHERS = 2
"""So many others beside the primary's own URL: every node is a bind, on purpose."""


def log_duplicates(
    primary: Engine, setting: str, replicas: Mapping[str, Engine], binds: str
) -> None:
    """Log replicas that have the URL of the primary, or of each other.

    Nothing is said of URLs that do not tell which server is meant.

    Args:
        primary: The primary's engine.
        setting: The setting that names it, in Python syntax.
        replicas: The replicas' engines, by name.
        binds: What has the replicas' binds by name, in Python syntax.
    """
    found: dict[Hashable, list[str]] = {}
    for name, engine in replicas.items():
        place = _place(engine)
        if place is not None:
            found.setdefault(place, []).append(f"{binds}[{name!r}]")
    own = found.pop(_place(primary), [])
    if len(own) == 1 and len(replicas) > _ENOUGH_OTHERS:
        logger.info(
            "%s has the host, port and database of %s: it gets no reads while that is "
            "the primary. Where every node is a bind, that is as it should be.",
            own[0],
            setting,
        )
    elif own:
        logger.warning(
            "%s: same host, port and database as %s. The primary itself is not used as "
            "a replica (REPLICATED_ROLE_CHECK): name a replica's server, or leave it "
            "out.",
            " and ".join(own),
            setting,
        )
    for names in found.values():
        if len(names) > 1:
            logger.warning(
                "%s: same host, port and database. One server gets the share of %d: "
                "name a server of its own for each. REPLICATED_WEIGHTS gives a larger "
                "share.",
                " and ".join(names),
                len(names),
            )


def _place(engine: Engine) -> Hashable | None:
    """Return the servers and the database of an engine's URL, None if unknown.

    Users, drivers and further options may differ.
    """
    url = engine.url
    if engine.dialect.name == "sqlite" or has_own_creator(engine.pool):
        return None
    if not _OTHER_PLACES.isdisjoint(url.query) or _has_own_arguments(engine):
        return None
    kind = family(type(engine.dialect))
    servers = _servers(url, PORTS.get(kind))
    if not servers:
        return None
    wanted = url.query.get("target_session_attrs")
    # The driver finds the primary wherever that is named. Else the first server comes
    # first, and each replica may have the others to fall back on.
    ordered = wanted not in {"read-write", "primary"}
    return (
        kind,
        servers if ordered else frozenset(servers),
        url.database or None,
        wanted,
        url.query.get("unix_socket"),
    )


def _has_own_arguments(engine: Engine) -> bool:
    """Whether ``connect_args`` name another server or database than the URL."""
    given = connect_arguments(engine.pool)
    _, by_url = engine.dialect.create_connect_args(engine.url)
    return any(given.get(name) != by_url.get(name) for name in _SERVER_ARGUMENTS)


def _servers(url: URL, default: int | None) -> tuple[tuple[str, str], ...]:
    hosts = _listed(url.query.get("host")) or _listed(url.host)
    ports = _listed(url.query.get("port")) or [f"{url.port or default}"]
    if len(ports) != len(hosts):
        ports = ports[:1] * len(hosts)
    return tuple(map(_server, hosts, ports))


def _listed(value: str | tuple[str, ...] | None) -> list[str]:
    joined = value if isinstance(value, str) else ",".join(value or ())
    return [one.strip() for one in joined.split(",") if one.strip()]


def _server(host: str, port: str) -> tuple[str, str]:
    name, _, own = host.partition(":")
    if own.isdigit():
        host, port = name, own
    return "localhost" if host in _LOCAL else host.lower(), port
