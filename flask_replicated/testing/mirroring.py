"""Replicas that share the primary's connection, for the time of a block."""

from __future__ import annotations

import weakref
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, cast

import sqlalchemy as sa
from sqlalchemy.pool import NullPool, SingletonThreadPool, StaticPool

from flask_replicated._private import pooled_connection
from flask_replicated.engine.facade import SubclassFacade
from flask_replicated.errors import ConfigurationError

from .beliefs import believing_mirror
from .kit import kit_of, mirroring
from .shared_connections import BorrowedRead, JoinedConnection, SharedRead
from .virtual import virtual_replicas

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from flask import Flask
    from sqlalchemy import Connection, Engine, Pool
    from sqlalchemy.engine.default import DefaultDialect

    from flask_replicated.engine.engines import RoutedEngine

    from .kit import Kit

__all__ = ["mirror"]

_ORIGINAL = "flask_replicated_original"
"""The attribute of a pool in place that has the one which it stands for."""


@contextmanager
def mirror(
    app: Flask | None = None, replicas: Sequence[str] = ("slave_1", "slave_2")
) -> Iterator[None]:
    """Let all replicas show the primary's own data, for a block.

    Their reads share the primary's connection: that of a test's transaction (a
    connection in the place of an engine), that of a memory database, or one of the
    primary's connection pool. Where reads and writes go, and which writes are refused,
    is decided as in production. The replicas' own servers are not connected to.

    A client that has written is pinned by time, as on a database without positions.
    Where no application is the current one, the kit's other blocks inside this one are
    about *app*.

    Args:
        app: The application; the current one by default.
        replicas: Names of replicas for the default bind, where the application has
            no replicas at all.

    Raises:
        RuntimeError: There is no application.
        ConfigurationError: It lacks the extension, or a replica has another driver than
            its primary.
    """
    kit = kit_of(app, "mirror")
    with kit.lock:
        if not kit.depth:
            with ExitStack() as undone:
                _put_in_place(kit, undone, replicas)
                kit.undo = undone.pop_all()
        kit.depth += 1
    try:
        with mirroring(kit.app):
            yield
    finally:
        with kit.lock:
            kit.depth -= 1
            if not kit.depth:
                kit.undo.close()


def _put_in_place(kit: Kit, stack: ExitStack, replicas: Sequence[str]) -> None:
    state = kit.state
    settings = replace(state.settings, role_check=False, probe_interval=0.0, pin="time")
    stack.callback(setattr, state, "settings", state.settings)
    state.settings = settings
    if not kit.routes:
        stack.enter_context(virtual_replicas(kit, replicas))
    mirrored = [_Mirrored(kit, key, routed) for key, routed in kit.routes.items()]
    for one in mirrored:
        stack.enter_context(one.in_place())
    stack.callback(setattr, kit, "mirror", None)
    kit.mirror = _Mirrors(mirrored)
    if kit.recorder is not None:
        kit.recorder.watch()


class _Mirrors:
    """The mirrored binds of an application."""

    def __init__(self, mirrored: list[_Mirrored]) -> None:
        self._mirrored = mirrored

    def routed_for(self, bind: object) -> RoutedEngine | None:
        """Return the routed engine that a test's bind stands for, or None."""
        if isinstance(bind, sa.Engine | sa.Connection):
            for one in self._mirrored:
                if one.is_replaced_by(bind):
                    return one.routed
        return None

    def take_in(self, routed: RoutedEngine, name: str, engine: Engine) -> None:
        """Mirror a replica that is being added."""
        for one in self._mirrored:
            if one.routed is routed:
                one.take_in(name, engine)


class _Mirrored:
    """One bind whose replicas share the primary's connection.

    Args:
        kit: What the tests have put in place.
        key: The bind's key.
        routed: Its routed engine.
    """

    def __init__(self, kit: Kit, key: str | None, routed: RoutedEngine) -> None:
        self.routed = routed
        self._kit = kit
        self._engines = kit.state.engines
        self._key = key
        self._remembered: weakref.ref[Connection] | None = None
        self._names = count(1)

    # --- the connection that is shared ---

    def is_replaced_by(self, bind: sa.Engine | sa.Connection) -> bool:
        """Whether a test has put this in the place of the bind's engine."""
        real = self.routed.real
        if isinstance(bind, sa.Engine):
            return bind is real
        if self._engines.get(self._key) is bind:
            return True
        ours = getattr(bind.engine, "real", bind.engine) is real
        if ours:
            self._remembered = weakref.ref(bind)
        return ours

    def _stand_in(self) -> Connection | None:
        """Return the connection that a test has put in the engine's place, if any."""
        found = self._engines.get(self._key)
        patched = vars(self.routed).get("connect")
        if patched is not None:  # by Flask-SQLAlchemy-Lite's test_isolation()
            found = patched()
        elif not isinstance(found, sa.Connection) and self._remembered is not None:
            found = self._remembered()
        if not isinstance(found, sa.Connection) or found.closed:
            return None
        if found.dialect.driver != self.routed.real.dialect.driver:
            raise ConfigurationError(
                f"db.engines[{self._key!r}]",
                found.engine.url,
                "under mirror() a connection in the place of an engine must have the "
                f"engine's driver, {self.routed.real.dialect.driver!r}.",
            )
        return found

    def _open_for_replica(self) -> SharedRead:
        """Return a replica's connection, over one of the primary's."""
        name, stand_in = self.routed.real.dialect.name, self._stand_in()
        if stand_in is not None:
            return SharedRead(_driver_of(stand_in), name)
        pool = self.routed.real.pool
        if isinstance(pool, StaticPool):  # to give it back would roll it back
            return SharedRead(pool.connection.get_connection(), name)
        if isinstance(pool, SingletonThreadPool):
            with closing(pool.connect()) as pooled:  # still the thread's afterwards
                return SharedRead(pooled.dbapi_connection, name)
        return BorrowedRead(pool.connect(), name)

    def _open_joined(self) -> JoinedConnection:
        """Return the primary's connection inside a test's transaction."""
        stand_in = self._stand_in()
        if stand_in is None:  # the test has ended it at this moment
            raise sa.exc.InvalidRequestError("the test's connection is closed")
        name = f"replicated_joined_{next(self._names)}"
        return JoinedConnection(stand_in, _driver_of(stand_in), name)

    # --- in place ---

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Return a block in which the bind is mirrored.

        Raises:
            ConfigurationError: A replica has another driver than its primary.
        """
        routed = self.routed
        with ExitStack() as stack:
            stack.enter_context(believing_mirror(self._kit, routed))
            self._allow_positions(stack)
            self._replace_primary_pool(stack)
            pool = routed.replicas.replica_pool
            for member in pool.members:
                self._mirror_replica(stack, member.name, member.target)
                pool.recover(member)
            yield

    def take_in(self, name: str, engine: Engine) -> None:
        """Mirror one more replica until the block ends.

        Raises:
            ConfigurationError: It has another driver than its primary.
        """
        self._mirror_replica(self._kit.undo, name, engine)

    def _allow_positions(self, stack: ExitStack) -> None:
        """Let ``REPLICATED_PIN = 'position'`` pass, also where there are none."""
        for facade in (self.routed.primary, self.routed.replicas):
            refuse = vars(facade).pop("connect", None)
            if refuse is not None:
                stack.callback(vars(facade).__setitem__, "connect", refuse)

    def _replace_primary_pool(self, stack: ExitStack) -> None:
        """Let connections to the primary join a test's transaction, if there is one."""
        real = self.routed.real
        joined = NullPool(partial(self._open_joined), dialect=real.dialect)
        real.pool = self._joining(real.pool, joined)

        def restore() -> None:
            # It may have been disposed of, and be another one by now.
            real.pool = getattr(real.pool, _ORIGINAL, real.pool)

        stack.callback(restore)

    def _joining(self, original: Pool, joined: Pool) -> Any:
        """Return a pool that looks like another one, and joins a test's transaction.

        Args:
            original: That pool, which is used where there is no such transaction.
            joined: Gives connections inside it.
        """

        def connect() -> Any:
            inside = self._stand_in() is not None
            return (joined if inside else original).connect()

        own = {_ORIGINAL: original}
        return SubclassFacade(
            lambda: original,
            connect=connect,
            recreate=lambda: self._joining(original.recreate(), joined),
            **own,
        ).get()

    def _mirror_replica(self, stack: ExitStack, name: str, engine: Engine) -> None:
        primary = self.routed.real
        pool, dialect = engine.pool, cast("DefaultDialect", engine.dialect)
        if dialect.driver != primary.dialect.driver:
            raise ConfigurationError(
                f"SQLALCHEMY_BINDS[{name!r}]",
                engine.url,
                f"has the driver {dialect.driver!r}, and its primary "
                f"{primary.dialect.driver!r}: under mirror() they share a connection, "
                "so name one driver for both.",
            )
        twin = self._kit.twins.get(engine)
        if twin is None:  # one for all times, or compiled statements would pile up
            # What the primary's dialect finds out at its first connect holds for it.
            twin = self._kit.twins[engine] = SubclassFacade(
                lambda: primary.dialect,
                dispatch=dialect.dispatch,
                connection_characteristics=dialect.connection_characteristics,
                supports_statement_cache=True,  # which each class must say itself
            ).get()
        shared: Any = NullPool(partial(self._open_for_replica), dialect=twin)
        recreated: Any = SubclassFacade(
            lambda: shared, recreate=lambda: recreated
        ).get()
        engine.dialect, engine.pool = twin, recreated

        def restore() -> None:
            engine.dialect = dialect
            if engine.pool is recreated:
                engine.pool = pool

        # A session of a request that goes on after the block may still come here; a
        # replica without a server has no connections of its own.
        if self.routed not in self._kit.virtual.values():
            stack.callback(restore)


def _driver_of(connection: Connection) -> Any:
    """Return the driver's connection of a test's one.

    Raises:
        InvalidRequestError: It has none any more.
    """
    pooled = pooled_connection(connection)
    if pooled is None or pooled.dbapi_connection is None:
        raise sa.exc.InvalidRequestError(
            "the connection that a test has put in the engine's place was lost, or is "
            "invalidated; under mirror() all servers share it."
        )
    return pooled.dbapi_connection
