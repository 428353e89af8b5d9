"""The extension: reads the configuration once, then joins the parts."""

from __future__ import annotations

import logging
import os
import weakref
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

from flask import Flask, request_finished

from balancers import Pool

from .config import Binds, Settings, read_binds, read_settings, same_database
from .engines import RoutedEngine
from .errors import ConfigurationError
from .listeners import PoolLog
from .pinning import CookiePins
from .replicas import prepare_replica
from .session import routed_session_class
from .state import AppState

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from flask import Response
    from flask_sqlalchemy import SQLAlchemy
    from sqlalchemy import Engine

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
        self._states: WeakKeyDictionary[Flask, AppState] = WeakKeyDictionary()
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Route the reads of an application to its replicas.

        The replica binds leave ``app.config['SQLALCHEMY_BINDS']`` and
        ``db.metadatas``: they are copies and own no tables, so ``create_all()``
        and migrations pass them by. Their engines stay in ``db.engines``.

        Raises:
            ConfigurationError: A setting cannot be right, Flask-SQLAlchemy is
                not registered yet, or this extension already is.
        """
        db = _flask_sqlalchemy(app)
        with app.app_context():
            engines = cast("Engines", db.engines)
        binds = read_binds(app.config["SQLALCHEMY_BINDS"])
        names = [name for owned in binds.replicas.values() for name in owned]
        settings = read_settings(app.config, self.READONLY_METHODS, names)
        _settle_primary(engines, binds)
        state = AppState(
            app, settings, CookiePins(settings.pin_cookie, settings.pin_seconds)
        )
        for owner, replicas in binds.replicas.items():
            pool = _pool({name: engines[name] for name in replicas}, settings)
            state.routes[owner] = RoutedEngine(state, engines[owner], pool)
        engines.update(state.routes)
        _hide(app, db, binds)
        if state.routes:
            _route_sessions(db)
            _finish_requests(app, state)
            _follow_forks(state)
        else:
            logger.warning(
                "%s: SQLALCHEMY_BINDS has no 'slave_1': every statement goes to "
                "the primary.",
                app.name,
            )
        self._states[app] = state
        app.extensions["replicated"] = self

    def state(self, app: Flask) -> AppState | None:
        """Return what this extension keeps for an application, if registered."""
        return self._states.get(app)


def _flask_sqlalchemy(app: Flask) -> SQLAlchemy:
    db = app.extensions.get("sqlalchemy")
    if db is None:
        raise ConfigurationError(
            "app.extensions['sqlalchemy']",
            None,
            "register Flask-SQLAlchemy first: db.init_app(app), then "
            "FlaskReplicated(app).",
        )
    if "replicated" in app.extensions:
        raise ConfigurationError(
            "app.extensions['replicated']",
            app.extensions["replicated"],
            "FlaskReplicated is already registered on this app; register it once.",
        )
    return cast("SQLAlchemy", db)


def _settle_primary(engines: Engines, binds: Binds) -> None:
    """Let ``SQLALCHEMY_BINDS['master']`` and the default bind be one engine."""
    name = binds.primary
    for orphan in binds.orphans:
        logger.warning(
            "SQLALCHEMY_BINDS[%r] looks like a replica of a bind that is not "
            "there; it stays an ordinary bind.",
            orphan,
        )
    if name is not None:
        default = engines.setdefault(None, engines[name])
        if not same_database(default, engines[name]):
            raise ConfigurationError(
                f"SQLALCHEMY_BINDS[{name!r}]",
                engines[name].url,  # its repr masks the password
                "must name the database of SQLALCHEMY_DATABASE_URI = "
                f"{default.url!r}; remove one of the two.",
            )
        engines[name] = default
    for owner in binds.replicas:
        if owner not in engines:
            raise ConfigurationError(
                "SQLALCHEMY_DATABASE_URI",
                None,
                f"{', '.join(binds.replicas[owner])} need a primary to replicate; "
                "set SQLALCHEMY_DATABASE_URI or SQLALCHEMY_BINDS['master'].",
            )


def _pool(engines: dict[str, Engine], settings: Settings) -> Pool[Engine]:
    for engine in engines.values():
        prepare_replica(engine, settings.connect_timeout)
    weights = {n: w for n, w in settings.weights.items() if n in engines}
    return Pool(
        engines,
        balancer=settings.balancer,
        weights=weights,
        threshold=settings.breaker_threshold,
        reset=settings.breaker_reset,
        max_reset=settings.breaker_max_reset,
        # A trial that is still connecting must not be taken for lost.
        lease=max(10.0, 3 * settings.connect_timeout),
        listeners=[PoolLog(engines)],
    )


def _hide(app: Flask, db: SQLAlchemy, binds: Binds) -> None:
    """Take the copies out of what ``create_all()`` and migrations walk through."""
    hidden = binds.hidden()
    configured = app.config["SQLALCHEMY_BINDS"]
    app.config["SQLALCHEMY_BINDS"] = {
        name: value for name, value in configured.items() if name not in hidden
    }
    for name in hidden:
        metadata = db.metadatas.get(name)
        # Models may call the primary by its bind name; those tables are real.
        if metadata is not None and not (name == binds.primary and metadata.tables):
            del db.metadatas[name]


def _route_sessions(db: SQLAlchemy) -> None:
    factory: Any = db.session.session_factory
    factory.class_ = routed_session_class(factory.class_)


def _finish_requests(app: Flask, state: AppState) -> None:
    def finish(_sender: Flask, response: Response, **_: object) -> None:
        state.finish(response)

    # Flask sends this signal after the last after_request function and after
    # the session was saved, so a write in those pins its client too.
    request_finished.connect(finish, app, weak=False)


def _follow_forks(state: AppState) -> None:
    if not hasattr(os, "register_at_fork"):  # Windows
        return
    alive: Callable[[], AppState | None] = weakref.ref(state)

    def after_fork() -> None:
        current = alive()
        if current is not None:
            current.after_fork()

    os.register_at_fork(after_in_child=after_fork)
