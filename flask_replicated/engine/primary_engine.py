"""The primary as an engine, whose connections report committed writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flask_replicated.errors import PrimaryUnavailableError
from flask_replicated.routing.overrides import leaves_no_trace

from .facade import Alias, ServerFacade, shown_by
from .primary_connection import PrimaryConnection

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine
    from sqlalchemy.engine.interfaces import PoolProxiedConnection

    from .facade import ReplicasFacade, RoutedFacade

__all__ = ["PrimaryEngine"]


class PrimaryEngine(ServerFacade):
    """The primary; its connections report committed writes.

    It equals the real engine: any session keeps its connections by their engines and
    looks for them by its bind.

    Args:
        real: The primary's engine.
        routed: The engine that it is part of.
        fallback_for: The replicas, where the primary serves a read of theirs.
    """

    def __init__(
        self,
        real: Engine,
        routed: RoutedFacade,
        fallback_for: ReplicasFacade | None = None,
    ) -> None:
        self.routed = routed
        self._facade = fallback_for or self
        super().__init__(real)

    # As the routed engine's, since session.get_bind() returns either; connections have
    # the real ones.
    dispatch = shown_by("routed.listeners", "dispatch")
    pool = shown_by("routed.listeners", "pool")
    dialect = shown_by("routed.listeners", "dialect")

    def __eq__(self, other: object) -> bool:
        return other is self or other is self.real

    def __hash__(self) -> int:
        return hash(self.real)

    def execution_options(self, **options: Any) -> PrimaryEngine:  # type: ignore[override]  # an engine all the same
        """Return the primary with execution options of its own."""
        return _PrimaryWithOptions(self.real.execution_options(**options), self.routed)

    def connect(self) -> Connection:
        """Connect to the primary."""
        routed = self.routed
        routed.app.notice_fork()
        # A request's read that hangs here is ended by what goes on in the background.
        if routed.monitor.idle and routed.app.request_state() is not None:
            routed.wake()
        with routed.trial():
            return self._connect()

    def _connect(self) -> Connection:
        # SQLAlchemy's own, which others may have wrapped to hear of each connect.
        try:
            return super().connect()
        except PrimaryUnavailableError as error:
            if not error.standby:
                raise
        # Where its address stands for several servers, the next one may be another.
        return super().connect()

    def _connection_cls(self, _engine: Engine) -> PrimaryConnection:  # type: ignore[override]  # called like the class that it is in Engine
        return PrimaryConnection(self.real, self._facade)

    def raw_connection(self) -> PoolProxiedConnection:
        """Return a DBAPI connection to the primary.

        What is done with it cannot be followed, so it counts as a write.
        """
        routed = self.routed
        routed.app.notice_fork()
        with routed.trial():
            connection = self.real.raw_connection()
        if not leaves_no_trace():
            routed.app.note_raw_connection(routed.untold())
        return connection


class _PrimaryWithOptions(PrimaryEngine):
    """The primary with execution options of its own, for a caller to hold.

    As with any such engine, its listeners are its own.
    """

    dispatch = shown_by("real", "dispatch")
    pool = shown_by("real", "pool")
    dialect = shown_by("real", "dialect")

    def _connection_cls(self, engine: Engine) -> PrimaryConnection:  # type: ignore[override]  # the same
        connection = super()._connection_cls(engine)
        connection.ask_by_name()
        connection.engine = Alias(self.real, self)
        return connection
