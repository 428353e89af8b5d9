"""Adapters for the extensions that own an application's engines and sessions.

One for Flask-SQLAlchemy, and two for Flask-SQLAlchemy-Lite, which keeps async engines
apart. They know where engines and session factories are, and nothing about routing.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import URL

from . import _private
from .engine.session import routed_session_class
from .errors import ConfigurationError
from .routing.hints import note_primary_models
from .settings.compatibility import PrimaryBind

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy import Engine, MetaData
    from sqlalchemy.ext.asyncio import AsyncEngine

    from .engine.engines import RoutedEngine
    from .settings.binds import BindRoles

__all__ = ["Adapter", "adapters_of", "configured_binds"]


class Adapter:
    """Where one application's engines and sessions are.

    A :class:`~flask_replicated.settings.binds.BindOwner` for the packages below.

    Attributes:
        setting: The key of ``app.config`` that names the binds.
        default: The key of the default engine.
        primary: The setting that names the default engine.
        without: The setting as it would be without any replica.
        prefix: What distinguishes this adapter's routes from another's.
        engines: The engines by key.
        grows: Whether :meth:`make_engine` can make more of them.
        makes_own: Whether the application's own code makes engines, so that a URL alone
            does not tell what they will be.
    """

    setting: str
    default: str | None
    primary: str
    without: str
    prefix = ""
    engines: dict[str | None, Engine]
    grows = True
    makes_own = False

    def key(self, owner: str | None) -> str | None:
        """Return the key of a bind's engine; None is the default one."""
        return self.default if owner is None else owner

    def primary_bind(self, owner: str | None) -> PrimaryBind:
        """Return the primary of a bind; None is the default one."""
        without = f"AUTO_READ_ON_SLAVE = False, or no replicas: {self.without}"
        if owner is None:
            return PrimaryBind(self.engines[self.default], self.primary, without)
        setting = f"{self.setting}[{owner!r}]"
        return PrimaryBind(self.engines[owner], setting, without)

    def make_engine(self, name: str, bind: str | URL | Mapping[str, Any]) -> Engine:
        """Make an engine as the extension makes those of its setting."""
        raise NotImplementedError

    def metadatas(self) -> Collection[MetaData] | None:
        """Return the MetaData of all tables; None if they are unknown here."""
        return None

    def owns_tables(self, name: str) -> bool:  # noqa: ARG002 - overridden if known
        """Whether models are known to be on this bind."""
        return False

    def hide(self, binds: BindRoles) -> None:
        """Hide the replicas from migrations, ``create_all()`` and the like."""

    def route(self, routes: Mapping[str | None, RoutedEngine]) -> None:
        """Let the application use the routed engines, by key."""
        raise NotImplementedError

    def unroute(self, routes: Mapping[str | None, RoutedEngine]) -> None:
        """Let it use the primaries' engines again; its session class stays.

        What else has been put in the place of one stays there, too.
        """
        for name, routed in routes.items():
            if self.engines.get(name) is routed:
                self.engines[name] = routed.real


class _FlaskSQLAlchemy(Adapter):
    """Flask-SQLAlchemy's engines and sessions."""

    setting = "SQLALCHEMY_BINDS"
    default = None
    primary = "SQLALCHEMY_DATABASE_URI"
    without = "SQLALCHEMY_BINDS = {}"

    def __init__(self, app: Flask, db: Any) -> None:
        self._app = app
        self._db = db
        self.makes_own = _private.makes_own_engines(db)
        with app.app_context():
            self.engines: dict[str | None, Engine] = db.engines
        note_primary_models(db.Model.registry.mappers)

    def metadatas(self) -> Collection[MetaData]:
        return list(self._db.metadatas.values())

    def owns_tables(self, name: str) -> bool:
        metadata = self._db.metadatas.get(name)
        return metadata is not None and bool(metadata.tables)

    def make_engine(self, name: str, bind: str | URL | Mapping[str, Any]) -> Engine:
        only = {
            self.setting: {name: bind},
            self.primary: None,
            "SQLALCHEMY_ENGINE_OPTIONS": {},
            "SQLALCHEMY_TRACK_MODIFICATIONS": False,  # listens to all sessions
        }
        return _engines_of_copy(self._app, self._db, only)[name]

    def hide(self, binds: BindRoles) -> None:
        hidden = binds.hidden()
        self._app.config[self.setting] = {
            name: value
            for name, value in self._app.config[self.setting].items()
            if name not in hidden
        }
        metadatas = self._db.metadatas
        for name in hidden & metadatas.keys():
            # Models may call the primary by its bind name; those tables are real.
            if not (name == binds.primary and metadatas[name].tables):
                del metadatas[name]

    def route(self, routes: Mapping[str | None, RoutedEngine]) -> None:
        _put_last(self.engines, routes)
        factory = self._db.session.session_factory
        factory.class_ = routed_session_class(factory.class_)


class _Lite(Adapter):
    """Flask-SQLAlchemy-Lite's engines and sessions."""

    setting = "SQLALCHEMY_ENGINES"
    default = "default"
    primary = "SQLALCHEMY_ENGINES['default']"
    without = "SQLALCHEMY_ENGINES = {'default': ...}"

    def __init__(self, app: Flask, db: Any) -> None:
        self._app = app
        self._db = db
        with app.app_context():
            self.engines: dict[str | None, Engine] = db.engines
            self._factory = db.sessionmaker

    def make_engine(self, name: str, bind: str | URL | Mapping[str, Any]) -> Engine:
        # Its sessions may have more than the default one.
        binds = {**self._app.config[self.setting], name: bind}
        return _engines_of_copy(self._app, self._db, {self.setting: binds})[name]

    def route(self, routes: Mapping[str | None, RoutedEngine]) -> None:
        _put_last(self.engines, routes)
        _rebind(self._factory, {routed.real: routed for routed in routes.values()})
        self._factory.class_ = routed_session_class(self._factory.class_)

    def unroute(self, routes: Mapping[str | None, RoutedEngine]) -> None:
        super().unroute(routes)
        _rebind(self._factory, {routed: routed.real for routed in routes.values()})


class _AsyncLite(Adapter):
    """Flask-SQLAlchemy-Lite's async engines and sessions."""

    setting = "SQLALCHEMY_ASYNC_ENGINES"
    default = "default"
    primary = "SQLALCHEMY_ASYNC_ENGINES['default']"
    without = "SQLALCHEMY_ASYNC_ENGINES = {'default': ...}"
    prefix = "async "
    # Only the event loop that opened a connection can close it.
    grows = False
    _replaced: Mapping[AsyncEngine, AsyncEngine] = {}

    def __init__(self, app: Flask, db: Any) -> None:
        with app.app_context():
            self._async_engines: dict[str | None, AsyncEngine] = db.async_engines
            self._factory = db.async_sessionmaker
        self.engines: dict[str | None, Engine] = {
            name: engine.sync_engine for name, engine in self._async_engines.items()
        }

    def route(self, routes: Mapping[str | None, RoutedEngine]) -> None:
        # Only here, as it needs greenlet, which only async engines need.
        from sqlalchemy.ext.asyncio import AsyncEngine  # noqa: PLC0415

        shown = {name: AsyncEngine(routed) for name, routed in routes.items()}
        by_real = {self._async_engines[name]: engine for name, engine in shown.items()}
        _put_last(self._async_engines, shown)
        _rebind(self._factory, by_real)
        inner = self._factory.kw.get("sync_session_class")
        inner = inner or self._factory.class_.sync_session_class
        self._factory.configure(sync_session_class=routed_session_class(inner))
        self._replaced = {new: real for real, new in by_real.items()}

    def unroute(self, routes: Mapping[str | None, RoutedEngine]) -> None:
        for name in routes:
            shown = self._async_engines[name]
            self._async_engines[name] = self._replaced.get(shown, shown)
        _rebind(self._factory, self._replaced)


def _engines_of_copy(
    app: Flask, db: Any, config: Mapping[str, Any]
) -> Mapping[str | None, Engine]:
    """Return the engines that an extension makes for an application of other binds.

    So they are made as those of the application itself, by a subclass's methods too.

    Args:
        app: The application.
        db: The extension that owns its engines.
        config: What to set in the copy of its configuration.
    """
    copied = Flask(
        app.import_name,
        static_folder=None,
        root_path=app.root_path,
        instance_path=str(Path(app.instance_path).absolute()),
    )
    copied.config.update(app.config, **config)
    owner = copy.copy(db)
    if hasattr(db, "metadatas"):  # a new bind is entered there
        owner.metadatas = {**db.metadatas}
    owner.init_app(copied)
    copied.teardown_appcontext_funcs.clear()  # they would end the caller's session
    with copied.app_context():
        return cast("Mapping[str | None, Engine]", owner.engines)


def _put_last(engines: dict[Any, Any], routed: Mapping[Any, Any]) -> None:
    """Put the routed engines into a dictionary, after all others.

    Code that adds a listener to each engine in turn has then added it to each replica
    before it comes to the routed engine, which shares its listeners with them.
    """
    for name, engine in routed.items():
        engines.pop(name, None)
        engines[name] = engine


def _rebind(factory: Any, routed: Mapping[Any, Any]) -> None:
    """Replace the engines in a session factory's options."""
    bind, binds = factory.kw.get("bind"), factory.kw.get("binds")
    factory.configure(bind=routed.get(bind, bind))
    if binds:
        factory.configure(binds={k: routed.get(e, e) for k, e in binds.items()})


_SETTINGS = tuple(kind.setting for kind in (_FlaskSQLAlchemy, _Lite, _AsyncLite))


def _refuse_others(setting: str, binds: object) -> None:
    """Refuse several servers under one name, and none.

    The extensions that own the engines refuse them too, with an error that does not
    help. This check comes first if this extension is registered first.
    """
    for name, value in binds.items() if isinstance(binds, Mapping) else ():
        url = value.get("url") if isinstance(value, Mapping) else value
        if url is None or (isinstance(url, str) and not url.strip()):
            raise ConfigurationError(
                f"{setting}[{name!r}]",
                url,  # other options may contain a password
                "must be a database's URL, or a dict of engine options with a 'url'. "
                "Leave the bind out where there is no such server, as where the "
                "environment variable with its URL is not set.",
            )
        # A URL is a tuple too.
        if isinstance(value, list | tuple | set) and not isinstance(value, URL):
            several = re.sub(r"_\d+$", "", f"{name}")
            raise ConfigurationError(
                f"{setting}[{name!r}]",
                value,
                "a bind is one server. Give each a name of its own: "
                f"{{'{several}_1': ..., '{several}_2': ...}}.",
            )


def configured_binds(app: Flask) -> set[str]:
    """Return the names of all binds in the configuration of an application.

    For one whose engines are to be made yet.

    Raises:
        ConfigurationError: A bind is a list, or has no URL.
    """
    found: set[str] = set()
    for setting in _SETTINGS:
        binds = app.config.get(setting)
        _refuse_others(setting, binds)
        found.update(map(str, binds if isinstance(binds, Mapping) else ()))
    return found


def adapters_of(app: Flask) -> list[Adapter]:
    """Return the adapters for an application's engines, of which there are some.

    Raises:
        ConfigurationError: No extension owns engines yet, or a bind is a list.
    """
    configured_binds(app)  # refuses lists
    db = app.extensions.get("sqlalchemy")
    if isinstance(db, SQLAlchemy):
        return [_FlaskSQLAlchemy(app, db)]
    if hasattr(type(db), "async_engines"):  # Lite, which may not be installed
        adapters = [_Lite(app, db), _AsyncLite(app, db)]
        return [adapter for adapter in adapters if adapter.engines]
    raise ConfigurationError(
        "app.extensions['sqlalchemy']",
        db,
        "Flask-SQLAlchemy is not registered on this app: call db.init_app(app).",
    )
