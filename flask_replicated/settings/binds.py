"""Which binds are replicas, and of which bind: by their names; and who owns them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from flask_replicated.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sqlalchemy import URL, Engine

    from .compatibility import PrimaryBind

__all__ = [
    "PORTS",
    "PRIMARY_NAMES",
    "REPLICA_NAME",
    "BindOwner",
    "BindRoles",
    "is_replica_of",
    "read_binds",
    "replicated_bind",
    "same_database",
]

PORTS = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306}
"""The ports that servers have where a URL names none."""
PRIMARY_NAMES = ("master", "primary")
REPLICA_NAME = re.compile(r"(?:(?P<owner>.+)_)?(?:slave|replica)(?:_\d+)?")


class BindRoles(NamedTuple):
    """The roles that the keys of ``SQLALCHEMY_BINDS`` give.

    Attributes:
        primary: The key that names the primary (``'master'``), or None.
        replicas: The replicas' keys by the key of the bind that they copy, None for the
            default bind; in the order of the configuration.
    """

    primary: str | None
    replicas: Mapping[str | None, tuple[str, ...]]

    def replica_names(self) -> list[str]:
        """Return the keys of all replicas."""
        return [name for names in self.replicas.values() for name in names]

    def hidden(self) -> frozenset[str]:
        """Return the keys of binds that own no tables: copies, and 'master'."""
        primary = [self.primary] if self.primary else []
        return frozenset([*self.replica_names(), *primary])


def read_binds(binds: Collection[str | None], setting: str) -> BindRoles:
    """Sort the keys of the engines into primary, replicas and others.

    Args:
        binds: The keys, in order.
        setting: The setting that has these keys, for errors.

    Raises:
        ConfigurationError: Both ``'master'`` and ``'primary'`` are there.
    """
    primaries = [name for name in PRIMARY_NAMES if name in binds]
    if len(primaries) > 1:
        raise ConfigurationError(
            setting,
            primaries,
            "'master' and 'primary' are two names for one bind; keep one of them.",
        )
    replicas: dict[str | None, list[str]] = {}
    for name in binds:
        if not isinstance(name, str):
            continue  # the default bind, or a key that is no name
        owner = replicated_bind(name)
        if REPLICA_NAME.fullmatch(name) and (owner is None or owner in binds):
            replicas.setdefault(owner, []).append(name)
    return BindRoles(
        primary=primaries[0] if primaries else None,
        replicas={owner: tuple(names) for owner, names in replicas.items()},
    )


def replicated_bind(name: str) -> str | None:
    """Return the key of the bind that a replica of this name copies; None: default."""
    match = REPLICA_NAME.fullmatch(name)
    owner = match["owner"] if match else None
    return None if owner in PRIMARY_NAMES else owner


def is_replica_of(name: object, owner: str | None) -> bool:
    """Whether this is a name for a replica of the bind *owner*; None is the default."""
    if not (isinstance(name, str) and REPLICA_NAME.fullmatch(name)):
        return False
    return replicated_bind(name) == owner


def same_database(primary: Engine, master: Engine) -> bool:
    """Whether two engines name one database; drivers and users may differ."""

    def place(url: URL) -> tuple[object, ...]:
        host = url.query.get("host") or url.host or "localhost"
        host = "localhost" if host in {"127.0.0.1", "::1"} else host
        backend = url.get_backend_name()
        port = url.port or PORTS.get(backend)
        return backend, host, port, url.database or None

    return place(primary.url) == place(master.url)


class BindOwner(Protocol):
    """An adapter for the extension that owns the engines of an application.

    Attributes:
        setting: The key of ``app.config`` that names the binds.
        default: The key of the default engine.
        engines: The engines by key.
        grows: Whether :meth:`make_engine` can make more of them.
    """

    setting: str
    default: str | None
    engines: dict[str | None, Engine]
    grows: bool

    def primary_bind(self, owner: str | None) -> PrimaryBind:
        """Return the primary of a bind; None is the default one."""

    def owns_tables(self, name: str) -> bool:
        """Whether models are known to be on this bind."""

    def make_engine(self, name: str, bind: str | URL | Mapping[str, Any]) -> Engine:
        """Make an engine as the extension makes those of its setting."""
