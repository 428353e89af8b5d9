"""What the tests of one application have put in place, and where they find it."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from threading import RLock
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

from flask import Flask, current_app, has_app_context

from flask_replicated.errors import ConfigurationError
from flask_replicated.routing.state import state_of

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator
    from contextlib import ExitStack

    from sqlalchemy import Engine

    from balancers import Member
    from flask_replicated.engine.engines import RoutedEngine
    from flask_replicated.routing.state import AppState

__all__ = ["Kit", "kit_of", "mirroring"]


class _Mirrors(Protocol):
    def routed_for(self, bind: object) -> RoutedEngine | None:
        """Return the routed engine that a bind stands for, or None."""

    def take_in(self, routed: RoutedEngine, name: str, engine: Engine) -> None:
        """Mirror a replica that is being added."""


class _Watches(Protocol):
    def watch(self) -> None:
        """Listen to all routed engines that there are by now."""


class Kit:
    """What tests have put in place for one application.

    Args:
        app: The application.
        state: Its state.

    Attributes:
        app: The same.
        state: The same.
        lock: Held while something is put in place or taken away.
        mirror: The open ``mirror()`` block's work, or None.
        recorder: What records reads, or None before the first use.
        depth: How many ``mirror()`` blocks are open.
        undo: Takes away what the first of them has put in place.
        beliefs: What blocks say of the servers, by bind.
        down: How many blocks keep a replica out, by bind and name.
        twins: The dialects of mirrored replicas, by engine.
        virtual: The routed engines of binds without replicas, by setting and the
            replicas' names.
    """

    mirror: _Mirrors | None = None
    depth = 0
    undo: ExitStack
    recorder: _Watches | None = None

    def __init__(self, app: Flask, state: AppState) -> None:
        self.app = app
        self.state = state
        self.lock = RLock()
        self.beliefs: dict[RoutedEngine, Any] = {}
        self.down: dict[RoutedEngine, Counter[str]] = {}
        self.twins: WeakKeyDictionary[Engine, Any] = WeakKeyDictionary()
        self.virtual: dict[tuple[str, ...], RoutedEngine] = {}

    def routed_for(self, bind: object) -> RoutedEngine | None:
        """Return the routed engine that a test's bind stands for, or None."""
        return None if self.mirror is None else self.mirror.routed_for(bind)

    def take_in(self, routed: RoutedEngine, name: str, engine: Engine) -> None:
        """Mirror a replica that is being added, if others are."""
        with self.lock:
            if self.mirror is not None:
                self.mirror.take_in(routed, name, engine)

    @property
    def routes(self) -> dict[str | None, RoutedEngine]:
        """The routed engines by bind key."""
        return self.state.routes

    def require_routes(self, caller: str) -> None:
        """Refuse an application that has no replicas, where nothing is counted.

        Raises:
            ConfigurationError: It has none.
        """
        if not self.routes:
            raise ConfigurationError(
                "SQLALCHEMY_BINDS",
                None,
                f"{caller}() needs replicas, and this app has none. Enter "
                "'with mirror(app):' first, which gives it some.",
            )

    def members(
        self, name: str, caller: str
    ) -> list[tuple[RoutedEngine, Member[Engine]]]:
        """Return the replicas of a name, of any bind.

        Raises:
            ConfigurationError: There is none; the error lists the known names.
        """
        self.require_routes(caller)
        found = [one for one in self._members() if one[1].name == name]
        if not found:
            known = ", ".join(repr(member.name) for _, member in self._members())
            raise ConfigurationError(
                f"{caller}(name)", name, f"no replica has this name; there are {known}."
            )
        return found

    def _members(self) -> Iterator[tuple[RoutedEngine, Member[Engine]]]:
        for routed in self.routes.values():
            for member in routed.replicas.replica_pool.members:
                yield routed, member


_mirrored: ContextVar[tuple[Flask, ...]] = ContextVar(
    "flask_replicated_mirrored", default=()
)


@contextmanager
def mirroring(app: Flask) -> Iterator[None]:
    """Let the kit's other blocks inside this one be about an application."""
    _mirrored.set((*_mirrored.get(), app))
    try:
        yield
    finally:
        # Without the token of set(): blocks may end in any order, and in a fixture
        # that has a context of its own.
        others = [*_mirrored.get()]
        if app in others:
            others.remove(app)
        _mirrored.set((*others,))


def _app_of_test(caller: str) -> Flask:
    """Return the current application, else the one that is mirrored.

    Raises:
        RuntimeError: There is neither.
    """
    if has_app_context():
        return current_app._get_current_object()  # type: ignore[attr-defined,no-any-return]  # noqa: SLF001 - the proxy's documented method is not in its type
    if _mirrored.get():
        return _mirrored.get()[-1]
    raise RuntimeError(
        f"{caller}() needs an application: call it inside 'with mirror(app):' or "
        "'with app.app_context():', or give it app=app."
    )


def kit_of(app: Flask | None, caller: str) -> Kit:
    """Return what tests have put in place for an application.

    Args:
        app: The application; None for the current one, or the one that is mirrored.
        caller: The function that asks, for errors.

    Raises:
        RuntimeError: There is no application.
        ConfigurationError: It is no Flask application, or lacks the extension.
    """
    if app is None:
        app = _app_of_test(caller)
    if not isinstance(app, Flask):
        raise ConfigurationError("app", app, f"{caller}() takes a Flask application.")
    state = state_of(app)
    if state is None:
        raise ConfigurationError(
            "app.extensions['replicated']",
            None,
            f"{caller}() needs FlaskReplicated(app) on this app.",
        )
    kit = state.kit
    if not isinstance(kit, Kit):
        kit = state.kit = Kit(app, state)
    return kit
