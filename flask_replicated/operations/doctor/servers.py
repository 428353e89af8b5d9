"""The servers of an application, and connections as the application makes them."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from sqlalchemy import Engine
from sqlalchemy.pool import SingletonThreadPool, StaticPool

from flask_replicated.adapters import adapters_of
from flask_replicated.engine.engines import RoutedEngine
from flask_replicated.fleet.fleet import fleet_of
from flask_replicated.replica.connect_timeout import TimeLimit
from flask_replicated.settings.binds import read_binds
from flask_replicated.system.sockets import hang_up

from .findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flask import Flask

    from flask_replicated.adapters import Adapter
    from flask_replicated.routing.state import AppState

    from .findings import Kind

__all__ = ["OwnConnection", "Server", "servers_of"]

Role: TypeAlias = Literal["primary", "replica", "other"]


@dataclass(frozen=True, eq=False)
class Server:
    """One engine of the application, and what it is there for.

    Attributes:
        bind: The key of its bind, ``''`` for the default one.
        setting: The setting that names it, in Python syntax.
        role: ``'primary'`` if it has replicas, ``'replica'`` if it is one.
        engine: The real engine.
        routed: What it is part of; None for a bind without replicas.
    """

    bind: str
    setting: str
    role: Role
    engine: Engine
    routed: RoutedEngine | None = None

    @property
    def dialect(self) -> str:
        """SQLAlchemy's name for its dialect."""
        return self.engine.dialect.name

    def error(self, kind: Kind, what: str, remedy: str) -> Finding:
        """Return a finding of its bind that keeps the server from serving."""
        return Finding("error", kind, self.bind, what, remedy)

    def warning(self, kind: Kind, what: str, remedy: str) -> Finding:
        """Return any other finding of its bind."""
        return Finding("warning", kind, self.bind, what, remedy)


def servers_of(app: Flask, state: AppState) -> list[Server]:
    """Return every engine of an application once: primaries, replicas, and others.

    Without replicas that are left out, where AUTO_READ_ON_SLAVE = False.

    Args:
        app: The application.
        state: What the extension keeps for it.
    """
    found: dict[Engine, Server] = {}
    for routed in state.routes.values():
        for server in _of_route(routed):
            found.setdefault(server.engine, server)
    for adapter in adapters_of(app):
        left_out = read_binds(adapter.engines, adapter.setting).replica_names()
        for key, engine in adapter.engines.items():
            if not isinstance(engine, RoutedEngine) and key not in left_out:
                other = _named(adapter, key, "other", engine, None)
                found.setdefault(engine, other)
    return list(found.values())


def _of_route(routed: RoutedEngine) -> Iterator[Server]:
    fleet: Any = fleet_of(routed)
    adapter: Adapter = fleet.adapter
    key = adapter.key(fleet.owner)
    yield _named(adapter, key, "primary", routed.real, routed)
    for member in routed.replicas.replica_pool.members:
        yield _named(adapter, member.name, "replica", member.target, routed)


def _named(
    adapter: Adapter,
    key: str | None,
    role: Role,
    engine: Engine,
    routed: RoutedEngine | None,
) -> Server:
    default = key == adapter.default
    setting = adapter.primary if default else f"{adapter.setting}[{key!r}]"
    bind = "" if default and not adapter.prefix else f"{adapter.prefix}{key}"
    return Server(bind, setting, role, engine, routed)


@dataclass
class OwnConnection:
    """A new connection of one engine, made and set up as the application's own.

    Every listener and option of the engine applies, and its connection pool stays as
    it is. Another thread may end it.

    Args:
        server: Whose engine.
        seconds: How long its server may take for all questions together.
    """

    server: Server
    seconds: float
    _open: Any = field(default=None, init=False)

    @contextmanager
    def opened(self) -> Iterator[Any]:
        """Give a DBAPI connection, and close it afterwards.

        Raises:
            Exception: Why there is none, as ``engine.connect()`` raises it.
        """
        engine = self.server.engine
        # These two have one connection, which is the application's.
        shares = isinstance(engine.pool, StaticPool | SingletonThreadPool)
        pool = engine.pool if shares else engine.pool.recreate()
        try:
            with Engine(pool, engine.dialect, engine.url).connect() as connection:
                driver = connection.connection.dbapi_connection
                self._open = driver
                limit = TimeLimit(driver, math.ceil(self.seconds)).start()
                try:
                    yield driver
                except BaseException:
                    connection.invalidate()  # nothing more is sent over it
                    raise
                finally:
                    limit.lift()
                    self._open = None
        finally:
            if not shares:
                pool.dispose()

    def end(self) -> None:
        """End it, where it is open and its driver shows the socket."""
        if self._open is not None:
            hang_up(self._open)
