"""What a session knows: which request it serves, and the connections that it has."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from flask_replicated._private import current_app_context, current_request_context
from flask_replicated.routing.hints import reads_primary
from flask_replicated.routing.state import STATE

from .primary_connection import PrimaryConnection
from .replica_connection import ReplicaConnection

if TYPE_CHECKING:
    import sqlalchemy as sa
    from flask import Flask, Request
    from sqlalchemy import Engine

    from flask_replicated.routing.decision import Role
    from flask_replicated.routing.state import AppState, RequestState

    from .engines import RoutedEngine

__all__ = ["EMPTY", "SessionState"]

_MANY = 2000  # mapped classes
_UNKNOWN = object()  # no block: the connections were opened in several
EMPTY: dict[Any, Any] = {}
"""No connections, or no options; never written to."""


class SessionState:
    """What a session knows of where its statements go.

    Attributes:
        request: The request that it serves, from its first statement on; or None. See
            :meth:`find_request`.
        app: That request's application.
        state: That request's state.
        connections: What the transaction in progress has by connection and by engine,
            as SQLAlchemy keeps it; or None. See :meth:`note_connections`.
        noted: How many entries of it are known here.
        targets: What to use in place of each facade from now on, by facade: its real
            engine, or a connection.
        default: The default bind of that request's application.
        target: What to use for reads of the default bind. It follows from the others,
            as ``default`` does, but to find both for each statement would cost a tenth
            of ``get_bind()``.
        primary_connections: Those connections to primaries, by real engine.
        replica_connections: Those to replicas, by facade.
        block: The innermost block of ``guarantee()`` or ``using_token()`` whose reads
            the replicas' connections may serve; None outside of blocks.
        losses: How many replicas were lost so far.
        wanted: The role that the statement being executed asks for itself, or None.
        connecting: Whether ``connection()`` was called, and so nothing is executed.
    """

    # Kept in one object: so many attributes more would cost each session its compact
    # dictionary, and slow down every access to it.
    __slots__ = (
        "app",
        "block",
        "connecting",
        "connections",
        "default",
        "losses",
        "noted",
        "primary_connections",
        "replica_connections",
        "request",
        "state",
        "target",
        "targets",
        "wanted",
    )

    app: Flask
    state: RequestState
    default: RoutedEngine
    target: Engine | sa.Connection

    def __init__(self) -> None:
        self.request: Request | None = None
        self.targets: dict[Engine, Engine | sa.Connection] = EMPTY
        self.primary_connections: dict[Engine, PrimaryConnection] = EMPTY
        self.replica_connections: dict[Engine, ReplicaConnection] = EMPTY
        # By these the transaction is known, which itself would keep its session alive.
        self.connections: Any = None
        self.block: object = None
        self.losses = self.noted = 0
        self.wanted: Role | None = None
        self.connecting = False

    def find_request(self) -> bool:
        """Find out which request is served.

        Returns:
            Whether there is one whose application routes the default bind.
        """
        try:  # nearly always there is one, and to ask first costs more
            context = current_request_context()
            current, owner = context.request, current_app_context().app
        except (LookupError, RuntimeError):
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
        self.app, self.request, self.state = owner, current, state
        self.default = default
        self._update_target()
        return True

    def is_plain(self, mapper: Any) -> bool:
        """Whether a mapped class is on the default bind and prefers no role."""
        plain = _on_default_bind(mapper) and not reads_primary(mapper)
        if plain:
            known = self.state.app.plain_mappers
            if len(known) > _MANY:
                known.clear()  # a program that makes models as it runs
            known.add(mapper)
        return plain

    def note_connections(self, connections: dict[Any, Any]) -> None:
        """Remember the connections that have been opened since the last time.

        Args:
            connections: What a session's transaction has by connection and by engine,
                in the order in which they were opened.
        """
        if connections is not self.connections:
            self.forget_connections()
            self.connections, self.targets, self.replica_connections = (
                connections,
                {},
                {},
            )
        for opened in list(islice(connections, self.noted, None)):
            if isinstance(opened, ReplicaConnection):
                if opened.fresh_in is not self.block:
                    self.block = _UNKNOWN
                self.replica_connections[opened.facade] = opened
                self.targets[opened.facade] = opened.engine
            elif isinstance(opened, PrimaryConnection):
                self._note_primary(opened)
        self.noted = len(connections)
        self._update_target()

    def _note_primary(self, connection: PrimaryConnection) -> None:
        routed = connection.facade.routed
        if self.primary_connections is EMPTY:
            self.primary_connections = {}
        earlier = self.primary_connections.setdefault(connection.engine, connection)
        # Where every replica is out the primary serves their reads. Should this
        # transaction have written there already, the earlier connection goes on:
        # two on one server would wait for each other's locks.
        # So by connection, not by engine: a savepoint that ends leaves the engine's
        # name with whichever connection came last.
        self.targets[connection.facade] = self.targets[routed.primary] = earlier

    def note_block(self, block: object) -> None:
        """Note that a replica's connection shows what an open block asks for.

        Args:
            block: The innermost block, or None.
        """
        shown = (one.fresh_in is block for one in self.replica_connections.values())
        self.block = block if all(shown) else _UNKNOWN

    def drop(self, read: ReplicaConnection) -> None:
        """Use a replica's connection no more."""
        self.replica_connections.pop(read.facade, None)
        self.targets.pop(read.facade, None)
        self._update_target()

    def drop_primary(self, lost: PrimaryConnection) -> None:
        """Use a primary's connection no more that stood in for replicas."""
        self.primary_connections.pop(lost.engine, None)
        self.targets.pop(lost.facade, None)
        self.targets.pop(lost.facade.routed.primary, None)
        self._update_target()

    def continue_on_primary(self, read: ReplicaConnection) -> None:
        """Use the primary in place of a replica's connection."""
        primary = read.facade.routed.primary
        self.drop(read)
        self.targets[read.facade] = self.targets.get(primary, primary)
        self._update_target()

    def forget_connections(self) -> None:
        """Forget the connections of a transaction that has ended."""
        self.targets = self.replica_connections = self.primary_connections = EMPTY
        self.connections = self.block = None
        self.losses = self.noted = 0
        self._update_target()

    def _update_target(self) -> None:
        if self.request is not None:
            replicas = self.default.replicas
            self.target = self.targets.get(replicas, replicas)


def _on_default_bind(mapper: Any) -> bool:
    """Whether Flask-SQLAlchemy would send this mapped class to the default engine."""
    try:
        return mapper.local_table.metadata.info.get("bind_key") is None
    except AttributeError:  # a class, an alias, a join: get_bind() finds it
        return False
