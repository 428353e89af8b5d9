"""The extension: reads the configuration once, then puts the parts together."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from flask import Flask, has_app_context

from .adapters import Adapter, adapters_of
from .errors import ConfigurationError
from .errors.redaction import safe
from .fleet.build import routed_engine
from .fleet.discovery import Discovery
from .fleet.fleet import fleet_of
from .routing.responses import pin_responses
from .routing.state import STATE, AppState, current_app_state
from .settings.bind_names import log_misnamed_binds, primary_hint
from .settings.binds import BindRoles, read_binds, replicated_bind, same_database
from .settings.config import DiscoverySource, read_settings
from .settings.validators import weight as read_weight

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from sqlalchemy import URL, Engine

    from .engine.engines import RoutedEngine
    from .routing.counts import ReplicaPool

    Engines = dict[str | None, Engine]

__all__ = ["FlaskReplicated"]

logger = logging.getLogger("flask_replicated")


class FlaskReplicated:
    """Reads from a pool of replicas in a Flask-SQLAlchemy application.

    Register it after Flask-SQLAlchemy, here or with :meth:`init_app`. One
    object may serve several applications, also ones that share a ``db``.

    Args:
        app: The application, or None to call :meth:`init_app` later.

    Attributes:
        READONLY_METHODS: HTTP methods that read from a replica, where
            ``REPLICATED_READONLY_METHODS`` names no others.
    """

    READONLY_METHODS: Collection[str] = frozenset({"GET", "HEAD"})

    def __init__(self, app: Flask | None = None) -> None:
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Route the reads of an application to its replicas.

        The replica binds leave ``app.config['SQLALCHEMY_BINDS']`` and
        ``db.metadatas``: they are copies and own no tables, so ``create_all()``
        and migrations pass them by. Their engines stay in ``db.engines``.

        Raises:
            ConfigurationError: A setting cannot be right, Flask-SQLAlchemy is
                not registered yet, or this extension already is; or the application
                is not Flask's.
        """
        if not isinstance(app, Flask):
            raise ConfigurationError(
                "app",
                app,
                "must be a Flask application; Quart and other frameworks are not "
                "supported.",
            )
        if "replicated" in app.extensions:
            raise ConfigurationError(
                "app.extensions['replicated']",
                app.extensions["replicated"],
                "FlaskReplicated is already registered on this app; register it once.",
            )
        adapters = adapters_of(app)
        binds = [read_binds(adapter.engines, adapter.setting) for adapter in adapters]
        names = [name for found in binds for name in found.replica_names()]
        settings = read_settings(app.config, self.READONLY_METHODS, names)
        state = AppState(settings, app)
        plans = [
            _plan(adapter, found, state)
            for adapter, found in zip(adapters, binds, strict=True)
        ]
        for plan in plans:  # only now, as none has raised an error
            _route(plan, state)
        if state.routes:
            app.wsgi_app = pin_responses(  # type: ignore[assignment,method-assign]  # Flask's documented way
                app.wsgi_app, state.responses, state.response_starts
            )
        log_misnamed_binds(app.name, adapters, served=bool(names or state.routes))
        app.extensions["replicated"] = self
        app.extensions[STATE] = state

    def state(self, app: Flask) -> AppState | None:
        """Return what this extension keeps for an application, if registered."""
        state: AppState | None = app.extensions.get(STATE)
        return state

    def pool(self, bind_key: str | None = None) -> ReplicaPool:
        """Return the replicas of a bind of the current application.

        For a status page (``pool().snapshot()``, which also counts the reads of each
        server, and says why the primary got its own) or maintenance
        (``pool().drain('slave_1')``).

        Args:
            bind_key: The bind that they copy; None is the default one.
                Flask-SQLAlchemy-Lite's async binds are called ``'async default'``,
                ``'async analytics'``.

        Raises:
            ConfigurationError: That bind has no replicas.
            RuntimeError: There is no application context.
        """
        return _routed(bind_key, "pool").replicas.replica_pool

    def add(
        self,
        name: str,
        bind: str | URL | Mapping[str, Any],
        bind_key: str | None = None,
        weight: int = 1,
    ) -> None:
        """Let a new replica of the current application serve reads from now on.

        In this process alone: each worker has replicas of its own.

        Args:
            name: A name that a replica bind may have, such as ``'slave_4'``.
            bind: What ``SQLALCHEMY_BINDS`` would have under this name: a URL, or
                Flask-SQLAlchemy's dict of engine options.
            bind_key: The bind that it copies, as for :meth:`pool`.
            weight: Its share relative to the others; 0 takes no traffic.

        Raises:
            ConfigurationError: The name is no replica's or is taken, the URL or
                the weight cannot be right, or that bind has no replicas.
            RuntimeError: There is no application context.
        """
        fleet = fleet_of(_routed(bind_key, "add"))
        fleet.add(name, bind, read_weight("weight", weight))

    def remove(self, name: str, bind_key: str | None = None) -> None:
        """Let a replica of the current application go.

        It gets no new reads from now on. Requests that are being served by it
        finish there; each of its connections is closed when it is given back.

        Args:
            name: The replica's name.
            bind_key: The bind that it copies, as for :meth:`pool`.

        Raises:
            ConfigurationError: That bind has no such replica.
            RuntimeError: There is no application context.
        """
        fleet_of(_routed(bind_key, "remove")).remove(name)


def _routed(bind_key: str | None, method: str) -> RoutedEngine:
    """Return a bind of the current application with its replicas."""
    if not has_app_context():
        raise RuntimeError(
            f"{method}() needs an application context: with app.app_context(): ..."
        )
    state = current_app_state()
    routed: RoutedEngine | None = None if state is None else state.routes.get(bind_key)
    if routed is None:
        raise ConfigurationError(
            f"{method}(bind_key=...)",
            bind_key,
            f"{'the default bind' if bind_key is None else f'the bind {bind_key!r}'} "
            "has no replicas.",
        )
    return routed


class _Plan(NamedTuple):
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


def _plan(adapter: Adapter, binds: BindRoles, state: AppState) -> _Plan:
    """Find out what is to be routed, and whether it can be right."""
    _merge_primary(adapter, binds)
    return _Plan(
        adapter, binds, _copies(adapter, binds, state), _sources(adapter, state)
    )


def _route(plan: _Plan, state: AppState) -> None:
    adapter, binds, copies, sources = plan
    routes: dict[str | None, RoutedEngine] = {}
    for owner in dict.fromkeys([*copies, *map(replicated_bind, sources)]):
        key = adapter.key(owner)
        targets = copies.get(owner, {})
        setting = adapter.primary_bind(owner).setting
        routes[key] = routed_engine(
            state, adapter.engines[key], targets, setting, adapter.setting
        )
        fleet = fleet_of(routes[key])
        fleet.adapter, fleet.owner = adapter, owner
    for name, source in sources.items():
        key = adapter.key(replicated_bind(name))
        fleet_of(routes[key]).add_discovery(Discovery(name, source))
    adapter.hide(binds)
    if routes:
        adapter.route(routes)
    if adapter.default is None:
        state.engines, state.metadatas = adapter.engines, adapter.metadatas
    for key, routed in routes.items():
        plain = key == adapter.default and not adapter.prefix
        state.routes[None if plain else f"{adapter.prefix}{key}"] = routed


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
