"""The extension: reads the configuration once, then puts the parts together."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from flask import Flask, has_app_context

from .adapters import Adapter, adapters_of, configured_binds
from .consistency.guarantees import open_token_blocks
from .consistency.tokens import bind_id
from .errors import ConfigurationError
from .errors.redaction import safe
from .fleet.build import routed_engine
from .fleet.fleet import fleet_of
from .operations.commands import add_commands
from .routing.overrides import using_master
from .routing.responses import Explain, pin_responses
from .routing.state import STATE, AppState, current_app_state, state_of
from .settings.bind_names import log_misnamed_binds, primary_hint
from .settings.binds import BindRoles, read_binds, replicated_bind, same_database
from .settings.config import DiscoverySource, read_settings
from .settings.validators import weight as read_weight
from .settings.validators import weights as read_weights
from .waiting import Waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from flask import Blueprint
    from sqlalchemy import URL, Engine

    from .engine.engines import RoutedEngine
    from .operations.place import ControlPlace
    from .routing.explanations import Explanation
    from .routing.observation import Observation
    from .routing.reports import Report
    from .routing.snapshots import ReplicaPool, ReplicaPoolSnapshot

__all__ = ["FlaskReplicated", "pin_responses_of", "publish"]

logger = logging.getLogger("flask_replicated")


class FlaskReplicated:
    """Reads from a pool of replicas in a Flask-SQLAlchemy application.

    Register it before or after Flask-SQLAlchemy, here or with :meth:`init_app`. One
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

        Before ``db.init_app(app)`` the settings are read; the rest follows with the
        first application context or request after it.

        Raises:
            ConfigurationError: A setting cannot be right, this extension is registered
                already, or the application is not Flask's.
        """
        _check_app(app)
        if "sqlalchemy" in app.extensions:
            self._register(app)
            return
        read_settings(app.config, self.READONLY_METHODS, configured_binds(app))
        add_commands(app)
        app.extensions["replicated"] = self
        Waiting(app, self._register)

    def _register(self, app: Flask, waiting: Waiting | None = None) -> None:
        """Register an application whose engines are there.

        Args:
            app: The application.
            waiting: What has waited for them, if the extension came first.
        """
        adapters = adapters_of(app)
        binds = [read_binds(adapter.engines, adapter.setting) for adapter in adapters]
        names = [name for found in binds for name in found.replica_names()]
        settings = read_settings(app.config, self.READONLY_METHODS, names)
        state = AppState(settings, app)
        if settings.mode == "observe":
            state.observation = _observation(state)
        plans = [
            _plan(adapter, found, state)
            for adapter, found in zip(adapters, binds, strict=True)
        ]
        place = None
        if settings.control is not None:
            place = _control_place(app, settings.control)
        for plan in plans:  # only now, as none has raised an error
            _route(plan, state)
        if state.routes:
            pin_responses_of(app, state, waiting)
            if state.responses.tokens.in_session:
                app.after_request(state.responses.save_in_session)
        log_misnamed_binds(app.name, adapters, served=bool(names or state.routes))
        state.responses.quiet_block = partial(using_master, pin=False)
        if place is not None:
            _add_control(app, state, place)
        add_commands(app)
        app.extensions["replicated"] = self
        app.extensions[STATE] = state

    def state(self, app: Flask) -> AppState | None:
        """Return what this extension keeps for an application, if registered."""
        return state_of(app)

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
        routed = _routed(bind_key, "pool")
        routed.obey_orders()
        return routed.replicas.replica_pool

    def snapshot(self) -> dict[str | None, ReplicaPoolSnapshot]:
        """Return the state of every pool of the current application, in this process.

        By the key of the bind that the replicas copy, as for :meth:`pool`. Empty if
        none has replicas. It asks no server, and waits for none.

        Raises:
            RuntimeError: There is no application context.
        """
        _require_context("snapshot")
        state = current_app_state()
        if state is None:
            return {}
        state.obey_orders()
        return state.snapshot()

    def page(
        self,
        guard: Callable[[], bool] | None = None,
        url_prefix: str = "/replicated",
    ) -> Blueprint:
        """Return a page that shows the replicas as they are, and takes orders for them.

        Register it: ``app.register_blueprint(replicated.page(guard=...))``. Whom the
        guard does not admit, gets 404.

        Args:
            guard: Called in each request for the page; only True admits it. Without a
                guard, requests from this machine are admitted in debug mode.
            url_prefix: Where the page is.

        Raises:
            ConfigurationError: The guard is no function, or the prefix no path.
        """
        from .operations.page.blueprint import make_page  # noqa: PLC0415 - few need it

        return make_page(guard, url_prefix)

    def token(self) -> str:
        """Return what the current request, or ``using_token()`` block, has committed.

        Together with what it was given: its client's pin, the block's token. With
        ``using_token()``, other requests and background jobs see all of that. ``""`` if
        there is nothing, as before the first commit, and everywhere else.

        Raises:
            RuntimeError: A block is open, and there is no application context.
        """
        if open_token_blocks():
            _require_context("token")  # what was given cannot be read without
        state = current_app_state()
        return "" if state is None else state.token()

    def explanation(self) -> list[Explanation]:
        """Return where the current request has read, and why, the oldest read first.

        A read is the first one of its transaction on a server. The first 100 of a
        request are kept. There is none outside a request, or where the application has
        no replicas.
        """
        state = current_app_state()
        return [] if state is None else state.explanation()

    def report(self) -> Report | None:
        """Return what the current application's observed reads have shown so far.

        In this process alone; ``flask replicated report`` adds up all workers. None
        unless ``REPLICATED_MODE = 'observe'``.

        Raises:
            RuntimeError: There is no application context.
        """
        _require_context("report")
        state = current_app_state()
        if state is None or state.observation is None:
            return None
        return state.observation.report()

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

    def reweight(self, weights: Mapping[str, int], bind_key: str | None = None) -> None:
        """Change the weights of some replicas of the current application.

        In this process alone, and until it ends. The other replicas keep theirs. A
        replica whose weight was 0 begins with ``REPLICATED_SLOW_START``.

        Args:
            weights: By name; 0 takes no traffic.
            bind_key: The bind that they copy, as for :meth:`pool`.

        Raises:
            ConfigurationError: That bind has no such replica, a weight cannot be right,
                or the balancer reads no weights; then none is changed.
            RuntimeError: There is no application context.
        """
        fleet = fleet_of(_routed(bind_key, "reweight"))
        fleet.reweight(read_weights("weights", weights))


def _check_app(app: Flask) -> None:
    """Raise ConfigurationError if an application cannot be registered."""
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


def _observation(state: AppState) -> Observation:
    from .routing.observation import Observation  # noqa: PLC0415 - few need it

    return Observation(state)


def _control_place(app: Flask, setting: str) -> ControlPlace:
    from .operations.control import make_place  # noqa: PLC0415 - few need it

    return make_place(setting, app.name)


def _add_control(app: Flask, state: AppState, place: ControlPlace) -> None:
    """Let an application obey the orders in its control place."""
    from .operations.control import CONTROL, Control  # noqa: PLC0415 - few need it

    control = Control(place, state)
    for routed in state.routes.values():
        fleet_of(routed).add_control(control)
    state.decider.prepare = state.obey_orders
    app.extensions[CONTROL] = control


def pin_responses_of(
    app: Flask, state: AppState, waiting: Waiting | None = None
) -> None:
    """Let the responses of an application carry pins."""
    around: Any = waiting or app
    explain = Explain(state.settings.explain, app.config, state.add_reads)
    wants_starts = state.observation or state.advice
    around.wsgi_app = pin_responses(
        around.wsgi_app, state.responses, state.response_starts, wants_starts, explain
    )


def _require_context(method: str) -> None:
    """Raise RuntimeError unless an application is the current one."""
    if not has_app_context():
        raise RuntimeError(
            f"{method}() needs an application context: with app.app_context(): ..."
        )


def _routed(bind_key: str | None, method: str) -> RoutedEngine:
    """Return a bind of the current application with its replicas."""
    _require_context(method)
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
    observed = [] if state.observation is None else _owners(adapter, binds)
    for owner in dict.fromkeys([*copies, *map(replicated_bind, sources), *observed]):
        key = adapter.key(owner)
        targets = copies.get(owner, {})
        setting = adapter.primary_bind(owner).setting
        routes[key] = routed_engine(
            state, adapter.engines[key], targets, setting, adapter.setting
        )
        fleet = fleet_of(routes[key])
        fleet.adapter, fleet.owner = adapter, owner
    if sources:
        from .fleet.discovery import Discovery  # noqa: PLC0415 - few need it
    for name, source in sources.items():
        key = adapter.key(replicated_bind(name))
        fleet_of(routes[key]).add_discovery(Discovery(name, source))
    adapter.hide(binds)
    publish(adapter, routes, state)


def _owners(adapter: Adapter, binds: BindRoles) -> list[str | None]:
    """Return the binds that may have replicas one day."""
    hidden = binds.hidden()
    return [
        None if key == adapter.default else key
        for key in adapter.engines
        if key not in hidden
    ]


def publish(
    adapter: Adapter, routes: Mapping[str | None, RoutedEngine], state: AppState
) -> None:
    """Let an application use routed engines.

    Args:
        adapter: What owns its engines.
        routes: The routed engines by the adapter's keys.
        state: The application's state.
    """
    if routes:
        adapter.route(routes)
    if adapter.default is None:
        state.engines, state.metadatas = adapter.engines, adapter.metadatas
    for key, routed in routes.items():
        plain = key == adapter.default and not adapter.prefix
        routed.reads.bind = None if plain else f"{adapter.prefix}{key}"
        routed.announcer.bind = routed.reads.bind
        state.routes[routed.reads.bind] = routed
        # Engines for sync and async sessions lead to the same databases.
        routed.bind = bind_id(None if key == adapter.default else key)


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
