"""The engine of one replica that was picked."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, cast

from .facade import EngineFacade
from .measured import Flights, MeasuredConnection
from .replica_connection import ReplicaConnection

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from balancers import Feedback, Member

    from .facade import ReplicasFacade

__all__ = ["MeasuredEngine", "PickedEngine"]


class PickedEngine(EngineFacade):
    """One replica's engine, whose connections know that it was picked.

    Attributes:
        permit: Returns a permit; called before each connect.
        connection_class: What it connects by.
    """

    connection_class = ReplicaConnection

    def __init__(self, member: Member[Engine], facade: ReplicasFacade) -> None:
        self.permit = facade.replica_pool.permits(member)
        # Called like the class that it is in Engine.
        self._connection_cls = partial(self.connection_class, facade, member)  # type: ignore[assignment]
        super().__init__(member.target)

    if TYPE_CHECKING:

        def connect(self) -> ReplicaConnection:
            """Connect to the replica."""


class MeasuredEngine(PickedEngine):
    """One replica's engine, whose use is measured for the balancer."""

    connection_class = MeasuredConnection

    def __init__(
        self, member: Member[Engine], facade: ReplicasFacade, feedback: Feedback
    ) -> None:
        super().__init__(member, facade)
        self._flights = Flights(feedback)

    def connect(self) -> ReplicaConnection:
        """Connect to the replica, and tell what comes of it."""
        flight = self._flights.begin()
        try:
            connection = super().connect()
        except BaseException as error:
            flight.end(error)
            raise
        flight.connected()
        cast("MeasuredConnection", connection).flight = flight
        return connection
