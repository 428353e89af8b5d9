"""Event listeners of a routed engine: each is put on every engine behind it.

SQLAlchemy keeps listeners with an engine, its connection pool or its dialect, whichever
an event is about. What a routed engine shows for these three looks like the primary's,
and puts every listener on all of its servers, as one registration: so
``event.remove()`` removes it from all, and ``event.contains()`` finds it.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from functools import partial
from operator import attrgetter
from traceback import walk_tb
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

from sqlalchemy import Dialect, Engine, Pool, event
from sqlalchemy.engine.events import ConnectionEvents, DialectEvents
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool.events import PoolEvents

from flask_replicated._private import EventKey, add_listener, parent_of
from flask_replicated.errors import UnfitReplicaError

from .facade import ObjectFacade, SubclassFacade

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from .facade import RoutedFacade

    Part = Callable[[Engine], Any]

__all__ = ["Listeners", "raised_by_listener"]

_INTERNAL = ("sqlalchemy.", "flask_replicated.")
"""Modules whose listeners every engine has already."""
_CALLS = "sqlalchemy.event.attr"
"""The module that calls listeners."""
_WRAPPERS = ("sqlalchemy.event.", "sqlalchemy.util.")
"""Where SQLAlchemy has what it wraps listeners in."""
_RETURN = frozenset({"before_execute", "before_cursor_execute"})
"""Events whose listeners SQLAlchemy wraps, unless they return a value."""


def _itself(engine: Engine) -> Engine:
    return engine


_PARTS: tuple[Part, ...] = (_itself, attrgetter("pool"), attrgetter("dialect"))
"""The parts of an engine that can have listeners."""
_EVENTS = ((Engine, ConnectionEvents), (Pool, PoolEvents), (Dialect, DialectEvents))
"""The events of each, as methods that describe them."""


class Listeners:
    """The listeners of a routed engine.

    Args:
        routed: The engine, with its primary and its replicas.

    Attributes:
        dispatch: Takes listeners for all events of the engine itself.
    """

    def __init__(self, routed: RoutedFacade) -> None:
        self._routed = routed
        self._primary = routed.real
        self._listeners: list[_SharedListener] = []
        self.dispatch = self._dispatch_of(_itself)
        self._pool, self._dialect = (
            SubclassFacade(
                partial(part, self._primary), dispatch=self._dispatch_of(part)
            )
            for part in _PARTS[1:]
        )
        self._inherit()
        for engine in routed.engines():
            self.share(engine)

    @property
    def pool(self) -> Any:
        """A facade of the primary's connection pool that takes listeners for all."""
        return self._pool.get()

    @property
    def dialect(self) -> Any:
        """A facade of the primary's dialect that takes listeners for all."""
        return self._dialect.get()

    def _dispatch_of(self, part: Part) -> Any:
        primary, listen = self._primary, partial(self._listen, part)
        return ObjectFacade(lambda: part(primary).dispatch, _listen=listen)

    def _listen(self, part: Part, key: EventKey[Any], **options: Any) -> None:
        """Add a listener; SQLAlchemy calls this in place of its own way to do so."""
        key, *others = self._names_of(key)
        if self._has(key):  # SQLAlchemy, too, takes it only once
            return
        listener = _SharedListener(key, part, options, others)
        self._put(listener, self._primary)  # first: it may be refused
        listener.keep_in(self._listeners)
        # Later, or a replica that is being added might miss it.
        for engine in self._routed.engines():
            self._put(listener, engine)

    def _names_of(self, key: EventKey[Any]) -> list[EventKey[Any]]:
        """Return the registrations that are one: on each facade that a caller may hold.

        What ``session.get_bind()`` returns is the routed engine, or its primary or its
        replicas. The routed engine's comes first.
        """
        routed = self._routed
        facades: tuple[Engine, ...] = (routed, routed.primary, routed.replicas)
        if not any(key.target is facade for facade in facades):  # a part of one
            return [key]
        return [
            EventKey(one, key.identifier, key.fn, key.dispatch_target, key.fn_wrap)
            for one in facades
        ]

    def _has(self, key: EventKey[Any]) -> bool:
        return any(listener.is_of(key) for listener in list(self._listeners))

    def share(self, engine: Engine) -> None:
        """Put the listeners of all engines on another one, a new replica's."""
        for listener in list(self._listeners):
            self._put(listener, engine, made_with=self._primary)

    def _put(
        self, listener: _SharedListener, engine: Engine, made_with: Engine | None = None
    ) -> None:
        if engine is not self._primary and (
            listener.part(engine) is listener.part(self._primary)
        ):
            return
        # An engine with options has the listeners of the one that it was made from.
        parents = _lineage(engine)[1:] if listener.part is _itself else ()
        if not any(parent in self._routed.engines() for parent in parents):
            listener.put_on(engine, made_with)

    def _inherit(self) -> None:
        """Share listeners from when the primary's engine was the only one."""
        facades = (self._routed, self.pool, self.dialect)
        for part, new in zip(_PARTS, facades, strict=True):
            for engine in _lineage(self._primary):
                for name, wrapped in _all_listeners_of(part(engine)):
                    self._take_over(engine, part, new, name, wrapped)

    def _take_over(
        self, engine: Engine, part: Part, new: Any, name: str, wrapped: Any
    ) -> None:
        """Share one listener, if it is the program's."""
        function = _unwrapped(wrapped)
        if str(getattr(function, "__module__", "")).startswith(_INTERNAL):
            return
        old, options = part(engine), {"retval": True} if name in _RETURN else {}
        for was, now in ((engine, self._routed), (old, new)):
            before = EventKey(was, name, function, old, wrapped)
            key, *others = self._names_of(EventKey(now, name, function, old, wrapped))
            if before.contains() and not self._has(key):
                others.append(before)
                _SharedListener(key, part, options, others).keep_in(self._listeners)


class _RemovalHook(event.RefCollection[Any]):
    """Calls a function when SQLAlchemy removes a listener.

    Args:
        key: How the listener is registered.
        removed: The function.
    """

    def __init__(self, key: EventKey[Any], removed: Callable[[], None]) -> None:
        self._functions: deque[Any] = deque()
        self._removed = removed
        key.append_to_list(self, self._functions)

    def remove(self, key: EventKey[Any]) -> None:
        """Do what SQLAlchemy asks of a registration, and call the function."""
        key.remove_from_list(self, self._functions)
        self._removed()


class _SharedListener:
    """One function that listens on all servers of a bind.

    Args:
        key: How it is registered on the facade.
        part: Which part of an engine it is put on.
        options: What ``event.listen()`` was given.
        others: How else it is registered: on other facades of the bind, or on the
            primary's engine, if it was when there were no others. It may be removed by
            any registration.
    """

    def __init__(
        self,
        key: EventKey[Any],
        part: Part,
        options: dict[str, Any],
        others: Collection[EventKey[Any]],
    ) -> None:
        self._key = key
        self.part = part
        self._options = options
        self._others = others

    def is_of(self, key: EventKey[Any]) -> bool:
        """Whether it is registered in this way."""
        mine = self._key
        same = mine.target is key.target and mine.identifier == key.identifier
        return same and bool(mine.fn == key.fn)

    def keep_in(self, listeners: list[_SharedListener]) -> None:
        """Be in a list until it is removed."""
        listeners.append(self)

        def forget() -> None:
            listeners.remove(self)
            for other in self._others:
                _remove(other)

        again = partial(_remove, self._key)
        self._hooks = [_RemovalHook(self._key, forget)]
        self._hooks += [_RemovalHook(other, again) for other in self._others]

    def put_on(self, engine: Engine, made_with: Engine | None) -> None:
        """Put it on an engine, unless the engine has it already.

        Args:
            engine: The engine.
            made_with: The primary's, where what makes engines may have given each a
                listener of its own: ``SQLALCHEMY_RECORD_QUERIES``, OpenTelemetry.
        """
        target, key = self.part(engine), self._key
        found = [key.fn]
        if made_with is not None:
            fingerprint = _fingerprint(key.fn, made_with)
            others = map(_unwrapped, _listeners_of(target, key.identifier))
            found += [one for one in others if _fingerprint(one, engine) == fingerprint]
        if not any(_listens(engine, target, key.identifier, one) for one in found):
            add_listener(target, key, self._options)


def _remove(key: EventKey[Any]) -> None:
    if key.contains():
        key.remove()


def _listens(engine: Engine, target: Any, name: str, function: Any) -> bool:
    """Whether a function was put on this engine itself."""
    keys = (EventKey(one, name, function, target) for one in (engine, target))
    return any(key.contains() for key in keys)


def _lineage(engine: Engine) -> list[Engine]:
    """Return an engine, and those that it is a view of, with options of its own."""
    found = [engine]
    while (parent := parent_of(found[-1])) is not None:
        found.append(parent)
    return found


def _listeners_of(target: Any, name: str) -> list[Any]:
    """Return its own listeners, as SQLAlchemy calls them; not those of its class."""
    found = getattr(target.dispatch, name)
    return list(getattr(found, "local", found).listeners)


def _all_listeners_of(target: Any) -> Iterator[tuple[str, Any]]:
    """Return the listeners of all events, each with its event's name."""
    events = next(events for kind, events in _EVENTS if isinstance(target, kind))
    for name, described in vars(events).items():
        if callable(described) and not name.startswith("_"):
            for function in _listeners_of(target, name):
                yield name, function


def _unwrapped(function: Any) -> Any:
    """Return a listener without what SQLAlchemy has wrapped it in."""
    while str(getattr(function, "__module__", "")).startswith("sqlalchemy."):
        inner = _cells(function)
        behind = inner.get("orig_fn", inner.get("fn"))
        if behind is None:
            break
        function = behind
    return function


def _fingerprint(function: Any, engine: Engine) -> Any:
    """Return a value that functions share which do the same, each for its engine."""
    if isinstance(function, MethodType):
        return function.__func__
    if not isinstance(function, FunctionType):
        return id(function)
    bound = [*_cells(function).values(), *(function.__defaults__ or ())]
    return function.__code__, [None if one is engine else id(one) for one in bound]


def _cells(function: Any) -> dict[str, Any]:
    """Return the variables around a function that it uses, by name."""
    code, found = getattr(function, "__code__", None), {}
    cells = getattr(function, "__closure__", None) or ()
    for name, cell in zip(getattr(code, "co_freevars", ()), cells, strict=False):
        with suppress(ValueError):  # it is empty as yet
            found[name] = cell.cell_contents
    return found


def raised_by_listener(error: Exception, engine: Engine) -> bool:
    """Whether it is a listener of the program that has failed, and not a server.

    Args:
        error: What connecting has raised.
        engine: The engine that was to connect.
    """
    if isinstance(error, DBAPIError | UnfitReplicaError):
        return False
    trace = walk_tb(error.__traceback__)
    names = [str(frame.f_globals.get("__name__")) for frame, _ in trace]
    if _CALLS not in names:
        return False
    called = names[names.index(_CALLS) :]
    others = [name for name in called if not name.startswith(_WRAPPERS)]
    # Some drivers let an error of their own code through; and SQLAlchemy asks a server
    # for its version in a listener, too.
    driver = str(getattr(engine.dialect.dbapi, "__name__", "")).partition(".")[0]
    drivers = {driver, engine.driver}
    ours = {"flask_replicated", "sqlalchemy", *drivers}
    packages = [name.partition(".")[0] for name in others]
    return bool(packages) and packages[0] not in ours and drivers.isdisjoint(packages)
