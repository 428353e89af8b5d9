"""What a session knows: which request it serves, and the connections that it has."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from flask_replicated.routing.flask_context import this_app, this_context
from flask_replicated.routing.hints import reads_primary
from flask_replicated.routing.state import STATE

from .connections import PrimaryConnection, ReplicaConnection

if TYPE_CHECKING:
    import sqlalchemy as sa
    from flask import Flask, Request
    from sqlalchemy import Engine

    from flask_replicated.routing.decision import Role
    from flask_replicated.routing.state import AppState, RequestState

    from .engines import RoutedEngine

__all__ = ["EMPTY", "SessionState"]

_MANY = 2000  # mapped classes
EMPTY: dict[Any, Any] = {}
"""No connections, or no options; never written to."""


class SessionState:
    """What a session knows of where its statements go.

    The request that it serves, from its first statement on (see ``serve()``):
    ``app``, ``request``, ``state``, and ``routed``, the default bind.

    The connections of the transaction in progress (see ``note()``): as it has them
    itself in ``connections``, of which ``noted`` are known here; in ``targets`` what
    stands for each facade from now on, its real engine or a connection (the default
    bind's replica once more in ``target``, for the way of nearly all); in ``primaries``
    and ``reads`` those to the primary and to replicas; in ``losses`` how many replicas
    were lost so far.

    ``wanted`` is what the statement that is being executed asks for itself;
    ``connecting`` tells that connection() was called, and so nothing is executed.
    """

    # Kept in one object: so many attributes more would cost each session its compact
    # dictionary, and every access to it. And in slots, each set at once: a default of
    # the class is dearer to read than all of them are to set.
    __slots__ = (
        "app",
        "connecting",
        "connections",
        "losses",
        "noted",
        "primaries",
        "reads",
        "request",
        "routed",
        "state",
        "target",
        "targets",
        "wanted",
    )

    app: Flask
    state: RequestState

    def __init__(self) -> None:
        self.request: Request | None = None
        self.routed: RoutedEngine | None = None
        self.target: Engine | sa.Connection | None = None
        self.targets: dict[Engine, Engine | sa.Connection] = EMPTY
        self.primaries: dict[Engine, PrimaryConnection] = EMPTY
        self.reads: dict[Engine, ReplicaConnection] = EMPTY
        # They tell the transaction, which itself would keep its session alive.
        self.connections: Any = None
        self.losses = self.noted = 0
        self.wanted: Role | None = None
        self.connecting = False

    def serve(self) -> bool:
        """Learn which request is served; whether it may go the short way."""
        try:  # nearly always there is one, and to ask first is dearer
            context = this_context()
            owner = this_app()
        except RuntimeError:
            return False
        app: AppState | None = owner.extensions.get(STATE)
        if app is None:
            return False
        default: RoutedEngine | None = app.routes.get(None)
        # A test may have put in another engine.
        if default is None or app.engines.get(None) is not default:
            return False
        state = app.state_in(context)
        if state is None:
            return False
        self.app, self.request = owner, context.request
        self.state, self.routed = state, default
        # What was noted while another bind was the default, or none.
        self.target = self.targets.get(default.replicas)
        return True

    def finds_plain(self, mapper: Any) -> bool:
        """Whether a mapped class is on the default bind and prefers no role."""
        plain = _on_default_bind(mapper) and not reads_primary(mapper)
        if plain:
            known = self.state.app.plain_mappers
            if len(known) > _MANY:
                known.clear()  # a program that makes models as it runs
            known.add(mapper)
        return plain

    def note(self, connections: dict[Any, Any]) -> None:
        """Remember the connections that have been opened since the last time.

        Args:
            connections: What a session's transaction has by connection and by engine,
                in the order in which they were opened.
        """
        if connections is not self.connections:
            self.forget()
            self.connections, self.targets, self.reads = connections, {}, {}
        for opened in list(islice(connections, self.noted, None)):
            if isinstance(opened, ReplicaConnection):
                self.reads[opened.facade] = opened
                self.targets[opened.facade] = opened.engine
                if self.routed is not None and opened.facade is self.routed.replicas:
                    self.target = opened.engine
            elif isinstance(opened, PrimaryConnection):
                self._note_primary(opened)
        self.noted = len(connections)

    def _note_primary(self, connection: PrimaryConnection) -> None:
        routed = connection.facade.routed
        if self.primaries is EMPTY:
            self.primaries = {}
        earlier = self.primaries.setdefault(connection.engine, connection)
        # Where every replica is out the primary serves their reads. Should this
        # transaction have written there already, the earlier connection goes on:
        # two on one server would wait for each other's locks.
        # So by connection, not by engine: a savepoint that ends leaves the engine's
        # name with whichever connection came last.
        self.targets[connection.facade] = self.targets[routed.primary] = earlier

    def leave(self, read: ReplicaConnection) -> None:
        """Forget a replica's connection."""
        if self.routed is not None and read.facade is self.routed.replicas:
            self.target = None
        self.reads.pop(read.facade, None)
        self.targets.pop(read.facade, None)

    def forget(self) -> None:
        """Forget the connections of a transaction that has ended."""
        self.targets = self.reads = self.primaries = EMPTY
        self.target = self.connections = None
        self.losses = self.noted = 0


def _on_default_bind(mapper: Any) -> bool:
    """Whether Flask-SQLAlchemy would send this mapped class to the default engine."""
    try:
        return mapper.local_table.metadata.info.get("bind_key") is None
    except AttributeError:  # a class, an alias, a join: the slow way knows
        return False
