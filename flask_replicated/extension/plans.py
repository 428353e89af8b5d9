"""What of an application is to be routed, and whether it can be right."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from flask_replicated.errors import ConfigurationError
from flask_replicated.errors.redaction import safe
from flask_replicated.settings.bind_names import primary_hint
from flask_replicated.settings.binds import replicated_bind, same_database

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy import Engine

    from flask_replicated.adapters import Adapter
    from flask_replicated.routing.state import AppState
    from flask_replicated.settings.binds import BindRoles
    from flask_replicated.settings.config import DiscoverySource

__all__ = ["Plan", "make_plan"]

logger = logging.getLogger("flask_replicated")


class Plan(NamedTuple):
    """What is to be routed.

    Attributes:
        adapter: What owns the engines.
        binds: What their names say.
        copies: The replicas by the key of the bind that they copy.
        sources: Where DNS names more of them.
    """

    adapter: Adapter
    binds: BindRoles
    copies: Mapping[str | None, Mapping[str, Engine]]
    sources: Mapping[str, DiscoverySource]


def make_plan(adapter: Adapter, binds: BindRoles, state: AppState) -> Plan:
    """Find out what is to be routed, and whether it can be right.

    Raises:
        ConfigurationError: It cannot, and would be read from.
    """
    _merge_primary(adapter, binds)
    return Plan(
        adapter, binds, _copies(adapter, binds, state), _sources(adapter, state)
    )


def _merge_primary(adapter: Adapter, binds: BindRoles) -> None:
    """Let the bind ``'master'`` and the default bind be one engine."""
    engines, name = adapter.engines, binds.primary
    slip = primary_hint(adapter) if name is None else ""
    if name is not None:
        default = engines.setdefault(adapter.default, engines[name])
        if not same_database(default, engines[name]):
            raise ConfigurationError(
                f"{adapter.setting}[{name!r}]",
                engines[name].url,
                f"must name the database of {adapter.primary} = {safe(default.url)!r}; "
                "remove one of the two.",
            )
        engines[name] = default
    names = binds.replicas.get(None, ())
    if names and adapter.default not in engines:
        raise ConfigurationError(
            adapter.primary,
            None,
            f"{', '.join(names)} need{'s' if len(names) == 1 else ''} a primary; set "
            f"it, or {adapter.setting}['master']. {slip}".rstrip(),
        )
    if slip:
        logger.warning("%s", slip)


def _copies(
    adapter: Adapter, binds: BindRoles, state: AppState
) -> dict[str | None, dict[str, Engine]]:
    """Return the replicas that can be copies of their primaries, by owner.

    Raises:
        ConfigurationError: One cannot, and would be read from.
    """
    copies: dict[str | None, dict[str, Engine]] = {}
    for owner, names in binds.replicas.items():
        primary = adapter.primary_bind(owner)
        for name in names:
            key, engine = f"{adapter.setting}[{name!r}]", adapter.engines[name]
            if _is_fit(state, partial(primary.require_compatible, key, engine)):
                copies.setdefault(owner, {})[name] = engine
    return copies


def _sources(adapter: Adapter, state: AppState) -> Mapping[str, DiscoverySource]:
    """Return where DNS names replicas of an application's engines.

    Raises:
        ConfigurationError: They cannot be copies, and would be read from.
    """
    if not adapter.grows:
        return {}
    found = {}
    for name, source in state.settings.discovery.items():
        owner, item = replicated_bind(name), f"REPLICATED_DISCOVERY[{name!r}]"
        key = adapter.key(owner)
        if key not in adapter.engines:
            raise ConfigurationError(
                item, None, f"there is no bind {key!r} that its replicas could copy."
            )
        primary = adapter.primary_bind(owner)._replace(
            without="AUTO_READ_ON_SLAVE = False, or REPLICATED_DISCOVERY = {}"
        )
        require = partial(primary.require_same_dialect, item, source.url)
        if adapter.makes_own or _is_fit(state, require):
            found[name] = source
    return found


def _is_fit(state: AppState, require: Callable[[], None]) -> bool:
    """Whether what is configured can be a replica.

    A test configuration that inherits the replicas of another one may say
    ``AUTO_READ_ON_SLAVE = False`` instead of naming none. Not even code that asks for a
    replica must find such a one then.

    Raises:
        ConfigurationError: It cannot, and would be read from.
    """
    try:
        require()
    except ConfigurationError as error:
        if state.settings.read_on_replica:
            raise
        logger.info("left out, as AUTO_READ_ON_SLAVE = False: %s", error)
        return False
    return True
