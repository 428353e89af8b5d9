"""Adds and removes replicas while requests are served."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol, cast

from sqlalchemy import event
from sqlalchemy.exc import NoSuchModuleError

from balancers import UnknownMemberError
from balancers.errors import (
    DuplicateMemberError,
    InvalidWeightError,
    WeightsUnreadError,
    error_text,
)
from flask_replicated.errors import ConfigurationError
from flask_replicated.errors.redaction import safe
from flask_replicated.settings.binds import is_replica_of
from flask_replicated.system.forks import in_this_process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sqlalchemy import URL, Engine
    from sqlalchemy.pool import ConnectionPoolEntry

    from balancers import Event, Member
    from flask_replicated.engine.engines import RoutedEngine
    from flask_replicated.replica.connection_events import ReplicaServer
    from flask_replicated.settings.binds import BindOwner

    from .discovery import Discovery

__all__ = ["Fleet", "fleet_of"]


class ControlLike(Protocol):
    """What looks for orders; it belongs to a room above this one."""

    def start(self, user: object) -> None:
        """Obey the orders, and begin to look for others, unless it has begun."""

    def stop(self, user: object) -> None:
        """Stop, unless others use it too."""

    def changed(self) -> None:
        """Note that a replica has changed its state: others are to know soon."""

    def after_fork(self) -> None:
        """Begin anew in a child process."""


class _SpareEngines:
    """The engines of replicas that the limit keeps out of rotation."""

    engines: frozenset[Engine] = frozenset()


class Fleet:
    """The replicas of one bind, whose number changes.

    Args:
        prepare: Sets up a replica's new engine, before its first connection.
        replicas: What *prepare* returned, by name; kept up to date here.
        limited: Whether a process uses only some of the replicas.

    Attributes:
        routed: The engine that they are part of.
        adapter: What owns the engines; None outside an application.
        owner: The key of the bind that they copy, as their names have it.
        idle: Whether to call :meth:`start`, at the next routed read.
    """

    routed: RoutedEngine
    adapter: BindOwner | None = None
    owner: str | None = None

    def __init__(
        self,
        prepare: Callable[[str, Engine], ReplicaServer],
        replicas: dict[str, ReplicaServer],
        *,
        limited: bool,
    ) -> None:
        self._prepare = prepare
        self._replicas = replicas
        self._limited = limited
        self._spares = _SpareEngines()
        self._lock = Lock()
        self._discoveries: tuple[Discovery, ...] = ()
        self._control: ControlLike | None = None
        self.idle = False

    def listener(self) -> Callable[[Event], None]:
        """Return a listener for the pool's events, after which others may be spare.

        It holds a weak reference: threads hold the pool, and a fleet the application.
        """
        changed = weakref.WeakMethod(self._changed)

        def listen(_event: Event) -> None:
            method = changed()
            if method is not None:
                method()

        return listen

    def _changed(self) -> None:
        self.close_spares()
        if self._control is not None:
            self._control.changed()

    def prepare(self, name: str, engine: Engine) -> ReplicaServer:
        """Set up a replica's new engine, before its first connection."""
        if self._limited:
            spares = self._spares  # without *self*, for the same reason
            _close_returned_if(engine, lambda: engine in spares.engines)
        return self._prepare(name, engine)

    def close_spares(self) -> None:
        """Close the connections to replicas that the limit keeps out of rotation.

        Otherwise a process would hold more connections than its limit allows.
        """
        if not self._limited:
            return
        pool = self.routed.replicas.replica_pool
        with self._lock:
            shown = {one.name for one in pool.snapshot().members if _is_spare(one)}
            targets = [member.target for member in pool.members if member.name in shown]
            idle = [engine for engine in targets if engine not in self._spares.engines]
            self._spares.engines = frozenset(targets)
        for engine in idle:
            # Connections of an async engine can only be closed in its own event loop.
            if not engine.dialect.is_async:
                engine.dispose()

    def add(
        self, name: str, bind: str | URL | Mapping[str, Any], weight: int = 1
    ) -> None:
        """Make an engine for a new replica, and add it to the rotation.

        Raises:
            ConfigurationError: The name, the bind or the weight cannot be right.
        """
        adapter = self._owned("add", name)
        if not is_replica_of(name, self.owner):
            prefix = "" if self.owner is None else f"{self.owner}_"
            raise ConfigurationError(
                "name",
                name,
                f"replicas of this bind are called '{prefix}slave', "
                f"'{prefix}slave_1', '{prefix}slave_2' ...",
            )
        self._add_checked(adapter, name, bind, weight)

    def add_discovery(self, discovery: Discovery) -> None:
        """Discover replicas in DNS, from the first routed read on."""
        self._discoveries += (discovery,)
        self.idle = True

    def add_control(self, control: ControlLike) -> None:
        """Obey orders, from the first routed read on."""
        self._control = control
        self.idle = True

    def start(self) -> None:
        """Obey orders, then look for them, and query DNS, in the background."""
        self.start_control()
        for discovery in self._discoveries:
            discovery.start(self)
        # Last: until the first orders are obeyed, no read goes past this.
        self.idle = False

    def start_control(self) -> None:
        """Obey orders, and start to look for them in the background."""
        if self._control is not None:
            self._control.start(self)

    def stop(self) -> None:
        """Stop what goes on in the background until the next routed read."""
        for discovery in self._discoveries:
            discovery.stop()
        if self._control is not None:
            self._control.stop(self)
        self.idle = self._has_background

    @property
    def _has_background(self) -> bool:
        return bool(self._discoveries) or self._control is not None

    def add_discovered(self, name: str, bind: Mapping[str, Any], weight: int) -> None:
        """Add a server that DNS names.

        Raises:
            ConfigurationError: It cannot be added.
        """
        self._add_checked(self._owned("add", name), name, bind, weight)

    def _add_checked(
        self,
        adapter: BindOwner,
        name: str,
        bind: str | URL | Mapping[str, Any],
        weight: int,
    ) -> None:
        engine = _make_engine(adapter, name, bind)
        if name not in adapter.engines:  # or it is refused for that
            key = f"{adapter.setting}[{name!r}]"
            primary_bind = adapter.primary_bind(self.owner)._replace(
                without="do not add it"
            )
            primary_bind.require_compatible(key, engine)
        self.take_in(name, engine, weight)

    def take_in(self, name: str, engine: Engine, weight: int = 1) -> None:
        """Add a new engine, under a name that is not checked.

        Raises:
            ConfigurationError: The name is taken, or the weight cannot be right.
        """
        routed, pool = self.routed, self.routed.replicas.replica_pool
        engines = self._engines()
        if name in engines:
            raise _taken(name, engines)
        replica = self.prepare(name, engine)
        routed.share(engine)
        if routed.app.kit is not None:
            routed.app.kit.take_in(routed, name, engine)
        try:
            member = pool.add(name, engine, weight)
        except DuplicateMemberError as error:
            raise _taken(name, error.known) from None
        except InvalidWeightError as error:
            raise ConfigurationError(
                "weight",
                error.weight,
                "must be a whole number: 0 for no traffic, 1 or more for a share.",
            ) from None
        routed.share(engine)  # again, for what was shared in between
        with self._lock:
            # Unless another thread has removed it meanwhile.
            if member in pool.members:
                engines[name] = engine
                self._replicas[name] = replica
        self._refresh_facade()

    def remove(self, name: str) -> None:
        """Remove a replica permanently; its connections close as they are returned.

        Raises:
            ConfigurationError: There is no replica of this name.
        """
        self._owned("remove", name)
        pool = self.routed.replicas.replica_pool
        try:
            member = pool.remove(name)
        except UnknownMemberError as error:
            raise _unknown("name", name, error.known) from None
        self._forget(member)
        _close_as_returned(member.target)

    def reweight(self, weights: Mapping[str, int]) -> None:
        """Change the weights of some replicas; none after an error.

        Args:
            weights: By name; checked already, but for the names.

        Raises:
            ConfigurationError: There is no replica of a name, or the balancer reads no
                weights.
        """
        try:
            self.routed.replicas.replica_pool.reweight(weights)
        except UnknownMemberError as error:
            raise _unknown(
                f"weights[{safe(error.name)!r}]", weights.get(error.name), error.known
            ) from None
        except WeightsUnreadError as error:
            raise ConfigurationError(
                "weights",
                dict(weights),
                f"the balancer, {error.balancer}, reads no weights; set "
                "REPLICATED_BALANCER to 'weighted' or another one that does, or drain "
                "a replica with pool().drain().",
            ) from None

    def renew_locks(self) -> None:
        """In a child process, replace locks that the parent's threads may hold."""
        self._lock = Lock()
        for discovery in self._discoveries:
            discovery.after_fork()
        if self._control is not None:
            self._control.after_fork()

    def after_fork(self) -> None:
        """Begin anew in a child process, after the parent's connections are left."""
        self.idle = self._has_background
        self.close_spares()

    def _forget(self, member: Member[Engine]) -> None:
        engine, engines = member.target, self._engines()
        with self._lock:
            # A new replica may have taken the name already.
            if engines.get(member.name) is engine:
                del engines[member.name]
                self._replicas.pop(member.name, None)
        self._refresh_facade()

    def _refresh_facade(self) -> None:
        """Let the facade have the dialect and URL of a replica that still exists."""
        members = self.routed.replicas.replica_pool.members
        real = members[0].target if members else self.routed.real
        self.routed.replicas.real = real
        self.routed.forget_removed()

    def _engines(self) -> dict[str | None, Engine]:
        return {} if self.adapter is None else self.adapter.engines

    def _owned(self, action: str, name: str) -> BindOwner:
        adapter = self.adapter
        if adapter is None or not adapter.grows:
            raise ConfigurationError(
                f"{action}({name!r})",
                None if adapter is None else adapter.setting,
                "the replicas of these engines are fixed when the process starts; "
                "change them there and restart.",
            )
        return adapter


def fleet_of(routed: RoutedEngine) -> Fleet:
    """Return the fleet of a routed engine, which knows no more of it than it needs."""
    return cast("Fleet", routed.fleet)


def _is_spare(shown: Any) -> bool:
    fit = shown.state == "closed" and shown.weight and not shown.drained
    return bool(fit and not shown.live)


def _unknown(key: str, value: object, known: Iterable[str]) -> ConfigurationError:
    listed = ", ".join(map(repr, known)) or "none"
    return ConfigurationError(key, value, f"no such replica; this bind has {listed}.")


def _taken(name: str, known: Any) -> ConfigurationError:
    listed = ", ".join(repr(one) for one in known if one is not None)
    return ConfigurationError(
        "name", name, f"is taken; remove it first, or take a name other than {listed}."
    )


def _make_engine(
    adapter: BindOwner, name: str, bind: str | URL | Mapping[str, Any]
) -> Engine:
    """Make an engine as the adapter does at start."""
    given: object = bind
    if isinstance(bind, Mapping):
        given = bind.get("url")  # the other options may contain a password too
    try:
        return adapter.make_engine(name, bind)
    # An unknown driver, one that is not installed, or an unknown engine option.
    except (NoSuchModuleError, ImportError, TypeError, KeyError) as error:
        why = error_text(error)
    # Such an error may quote the whole URL; and what an option names, such as a pool
    # class or a driver, may raise anything.
    except Exception as error:  # noqa: BLE001 - as said
        why = type(error).__name__
    # Outside of the except block, so that no error that quotes the URL is chained.
    raise ConfigurationError(
        f"{adapter.setting}[{name!r}]",
        given,
        f"must be a database's URL, or a dict of engine options with a 'url' ({why}).",
    )


def _close_as_returned(engine: Engine) -> None:
    """Close an engine's idle connections now, and each other one when it is returned.

    So no thread has to wait for the last one, and one that is opened meanwhile is
    closed the same way.
    """
    # A forked child has a copy of its parent's connection, which is not its own.
    _close_returned_if(engine, in_this_process())
    if not engine.dialect.is_async:
        engine.dispose()


def _close_returned_if(engine: Engine, unwanted: Callable[[], bool]) -> None:
    @event.listens_for(engine, "checkin")
    def close(_connection: Any, record: ConnectionPoolEntry) -> None:
        if record.dbapi_connection is not None and unwanted():
            record.invalidate()
