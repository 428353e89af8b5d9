"""Replicas that come and go while requests are served."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from threading import Lock
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.exc import NoSuchModuleError

from balancers import UnknownMemberError
from balancers.errors import DuplicateMemberError, InvalidWeightError, error_text
from flask_replicated.errors import ConfigurationError
from flask_replicated.forks import in_this_process
from flask_replicated.settings.binds import is_replica_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import URL, Engine
    from sqlalchemy.pool import ConnectionPoolEntry

    from balancers import Event, Member
    from flask_replicated.engine.engines import RoutedEngine
    from flask_replicated.replica.connection_events import ReplicaServer
    from flask_replicated.settings.bind_owner import BindOwner

    from .discovery import Discovery

__all__ = ["Fleet"]


class _SpareEngines:
    """The engines of replicas that the limit keeps out of rotation."""

    engines: frozenset[Engine] = frozenset()


class Fleet:
    """The replicas of one bind, whose number changes.

    Args:
        care: Gives a replica's new engine what every replica's engine has.
        replicas: What *care* returned, by name; kept up to date here.
        limited: Whether a process uses only some of them.

    Attributes:
        routed: The engine that they are part of.
        adapter: Who owns the engines, or None outside an application.
        owner: The key of the bind that they copy, as their names have it.
        idle: Whether :meth:`discover` should be called: at the next routed read.
    """

    routed: RoutedEngine
    adapter: BindOwner | None = None
    owner: str | None = None

    def __init__(
        self,
        care: Callable[[str, Engine], ReplicaServer],
        replicas: dict[str, ReplicaServer],
        *,
        limited: bool,
    ) -> None:
        self._care = care
        self._replicas = replicas
        self._limited = limited
        self._spares = _SpareEngines()
        self._lock = Lock()
        self._discoveries: tuple[Discovery, ...] = ()
        self.idle = False

    def listener(self) -> Callable[[Event], None]:
        """Return what the pool tells its events to, as others may be spare then.

        It keeps nobody alive: threads hold the pool, and this holds the application.
        """
        look = weakref.WeakMethod(self.look_for_spares)

        def hear(_happened: Event) -> None:
            known = look()
            if known is not None:
                known()

        return hear

    def care(self, name: str, engine: Engine) -> ReplicaServer:
        """Give a replica's new engine what every replica's engine has."""
        if self._limited:
            spares = self._spares  # not all of this, for the same reason
            _close_returned_if(engine, lambda: engine in spares.engines)
        return self._care(name, engine)

    def look_for_spares(self) -> None:
        """Close the connections to replicas that the limit keeps out of rotation.

        Or a process would hold more of them than its limit says.
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
            # What an async engine has open can be closed in its own loop alone.
            if not engine.dialect.is_async:
                engine.dispose()

    def add(
        self, name: str, bind: str | URL | Mapping[str, Any], weight: int = 1
    ) -> None:
        """Make an engine for a new replica and let it serve reads.

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
        self._take_copy(adapter, name, bind, weight)

    def watch(self, discovery: Discovery) -> None:
        """Let DNS name replicas, from the first routed read on."""
        self._discoveries += (discovery,)
        self.idle = True

    def discover(self) -> None:
        """Begin to look into DNS."""
        self.idle = False
        for discovery in self._discoveries:
            discovery.start(self.routed)

    def stop(self) -> None:
        """Look no more until the next routed read."""
        for discovery in self._discoveries:
            discovery.stop()
        self.idle = bool(self._discoveries)

    def discovered(self, name: str, bind: Mapping[str, Any], weight: int) -> None:
        """Let a server that DNS names serve reads.

        Raises:
            ConfigurationError: It cannot.
        """
        self._take_copy(self._owned("add", name), name, bind, weight)

    def _take_copy(
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
        """Let a new engine serve reads, under a name that is not looked at.

        Raises:
            ConfigurationError: The name is taken, or the weight cannot be right.
        """
        routed, pool = self.routed, self.routed.replicas.replica_pool
        engines = self._engines()
        if name in engines:
            raise _taken(name, engines)
        replica = self.care(name, engine)
        routed.share(engine)
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
        routed.share(engine)  # again: what was shared meanwhile missed it
        with self._lock:
            # Unless somebody has removed it meanwhile.
            if member in pool.members:
                engines[name] = engine
                self._replicas[name] = replica
        self._settle()

    def remove(self, name: str) -> None:
        """Give a replica no new reads, and close its connections as they are done.

        Raises:
            ConfigurationError: There is no replica of this name.
        """
        self._owned("remove", name)
        pool = self.routed.replicas.replica_pool
        try:
            member = pool.remove(name)
        except UnknownMemberError as error:
            known = ", ".join(map(repr, error.known)) or "none"
            raise ConfigurationError(
                "name", name, f"no such replica; this bind has {known}."
            ) from None
        self._forget(member)
        _close_as_returned(member.target)

    def renew_locks(self) -> None:
        """Replace locks that a thread which a child process has not may hold."""
        self._lock = Lock()
        for discovery in self._discoveries:
            discovery.after_fork()

    def after_fork(self) -> None:
        """Begin anew in a child process, once the parent's connections are let go."""
        self.idle = bool(self._discoveries)
        self.look_for_spares()

    def _forget(self, member: Member[Engine]) -> None:
        engine, engines = member.target, self._engines()
        with self._lock:
            # A new replica may have the name already.
            if engines.get(member.name) is engine:
                del engines[member.name]
                self._replicas.pop(member.name, None)
        self._settle()

    def _settle(self) -> None:
        """Let the engine-shaped pool have a dialect and URL of one that is there."""
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


def _is_spare(shown: Any) -> bool:
    fit = shown.state == "closed" and shown.weight and not shown.drained
    return bool(fit and not shown.live)


def _taken(name: str, known: Any) -> ConfigurationError:
    listed = ", ".join(repr(one) for one in known if one is not None)
    return ConfigurationError(
        "name", name, f"is taken; remove it first, or take a name other than {listed}."
    )


def _make_engine(
    adapter: BindOwner, name: str, bind: str | URL | Mapping[str, Any]
) -> Engine:
    """Make an engine as it would have been made at start."""
    given: object = bind
    if isinstance(bind, Mapping):
        given = bind.get("url")  # the rest may hold a password too
    try:
        return adapter.make_engine(name, bind)
    # A driver that is not known or not installed, an option that no engine knows.
    except (NoSuchModuleError, ImportError, TypeError, KeyError) as error:
        why = error_text(error)
    # What is no URL, or one whose port is no number, is quoted in these as it is; and
    # what an option stands for, such as a pool or a driver, may raise anything.
    except Exception as error:  # noqa: BLE001 - as said
        why = type(error).__name__
    # Out here, so that a report has no error that quotes it behind this one.
    raise ConfigurationError(
        f"{adapter.setting}[{name!r}]",
        given,
        f"must be a database's URL, or a dict of engine options with a 'url' ({why}).",
    )


def _close_as_returned(engine: Engine) -> None:
    """Close an engine's idle connections now, and each other one when it comes back.

    A connection that comes back is closed on the spot, so nobody has to wait for
    the last, and one that is opened in between goes the same way.
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
