"""The extension: reads the configuration once, then puts the parts together."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from flask import Flask, has_app_context

from flask_replicated.adapters import adapters_of, configured_binds
from flask_replicated.consistency.guarantees import open_token_blocks
from flask_replicated.errors import ConfigurationError
from flask_replicated.fleet.fleet import fleet_of
from flask_replicated.operations.commands import add_commands
from flask_replicated.routing.overrides import using_master
from flask_replicated.routing.state import STATE, AppState, current_app_state, state_of
from flask_replicated.settings.bind_names import log_misnamed_binds
from flask_replicated.settings.binds import read_binds
from flask_replicated.settings.config import read_settings
from flask_replicated.settings.validators import weight as read_weight
from flask_replicated.settings.validators import weights as read_weights

from .plans import make_plan
from .routes import pin_responses_of, route
from .waiting import Waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from flask import Blueprint
    from sqlalchemy import URL

    from flask_replicated.engine.engines import RoutedEngine
    from flask_replicated.operations.place import ControlPlace
    from flask_replicated.routing.explanations import Explanation
    from flask_replicated.routing.observation import Observation
    from flask_replicated.routing.reports import Report
    from flask_replicated.routing.snapshots import ReplicaPool, ReplicaPoolSnapshot

__all__ = ["FlaskReplicated"]


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
            make_plan(adapter, found, state)
            for adapter, found in zip(adapters, binds, strict=True)
        ]
        place = None
        if settings.control is not None:
            place = _control_place(app, settings.control)
        for plan in plans:  # only now, as none has raised an error
            route(plan, state)
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
        # Only here, as few need it.
        from flask_replicated.operations.page.blueprint import make_page  # noqa: PLC0415

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
    # Only here, as few need it.
    from flask_replicated.routing.observation import Observation  # noqa: PLC0415

    return Observation(state)


def _control_place(app: Flask, setting: str) -> ControlPlace:
    # Only here, as few need it.
    from flask_replicated.operations.control import make_place  # noqa: PLC0415

    return make_place(setting, app.name)


def _add_control(app: Flask, state: AppState, place: ControlPlace) -> None:
    """Let an application obey the orders in its control place."""
    # Only here, as few need it.
    from flask_replicated.operations.control import CONTROL, Control  # noqa: PLC0415

    control = Control(place, state)
    for routed in state.routes.values():
        fleet_of(routed).add_control(control)
    state.decider.prepare = state.obey_orders
    app.extensions[CONTROL] = control


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


def _require_context(method: str) -> None:
    """Raise RuntimeError unless an application is the current one."""
    if not has_app_context():
        raise RuntimeError(
            f"{method}() needs an application context: with app.app_context(): ..."
        )
