"""Whether a replica shows what a read must be shown."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from flask_replicated._private import pooled_connection
from flask_replicated.consistency.positions import merged
from flask_replicated.consistency.tokens import Mark
from flask_replicated.replica.connection_events import STARTED
from flask_replicated.replica.poolers import POOLED

from .primary_connection import PrimaryConnection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sqlalchemy import Connection, Engine

    from balancers import Member
    from flask_replicated.consistency.demands import Demand
    from flask_replicated.consistency.positions import LogPosition

    from .known import Known

__all__ = ["Freshness"]

_SHOWN = "flask_replicated.shown"
"""Key in a connection's ``info``: a position that its server shows. It grows only."""


class Freshness:
    """One read's demand, and which replica meets it.

    Args:
        demand: The demand.
        known: What is known of the servers.
        ask_primary: Asks the primary for its position over a connection of its own;
            returns None if it does not tell.
        note_seen: Called with what a replica was known to show before the read, where
            that counts for later ones; or None.
    """

    def __init__(
        self,
        demand: Demand,
        known: Known,
        ask_primary: Callable[[], LogPosition | None],
        note_seen: Callable[[Mark], None] | None,
    ) -> None:
        self.demand = demand
        self._known = known
        self._ask_primary = ask_primary
        self._note_seen = note_seen if demand.monotonic else None
        self._position = demand.position
        self._moved = False
        self._alone = demand.staleness is None and not demand.monotonic

    def preferred(
        self, picked: Member[Engine], live: Iterable[Member[Engine]]
    ) -> Member[Engine]:
        """Return the replica to try first.

        Where reads must not go back in time it is the one that the client has read
        from before; else the pick.
        """
        replica, known = self.demand.replica, self._known
        if replica:
            for member in live:
                if known.incarnation(member) == replica:
                    return member
        return picked

    def likely_met(self, member: Member[Engine], age: float | None) -> bool | None:
        """Whether a replica likely meets the demand, without a question to it.

        Args:
            member: The replica.
            age: How long ago the client has written, in seconds; None if unknown.

        Returns:
            None if that cannot be told.
        """
        if self._is_known(member):
            return True
        if age is None or not self._is_recent(self._known.staleness(member)):
            return None if self.demand.staleness is None else False
        return self._known.likely_shows(member, age)

    def known_first(self, others: Iterable[Member[Engine]]) -> Iterator[Member[Engine]]:
        """Return replicas with those first that need not be asked."""
        return iter(sorted(others, key=lambda one: not self._is_known(one)))

    def nearest(self, behind: Iterable[Member[Engine]]) -> Member[Engine]:
        """Return the replica that has the least to catch up with."""

        def shown(member: Member[Engine]) -> int:
            found = self._known.shown_by(member)
            return 0 if found is None else sum(found.streams.values())

        return max(behind, key=shown)

    def _is_known(self, member: Member[Engine]) -> bool:
        known = self._known
        return self._reached(known.shown_by(member)) and self._is_recent(
            known.staleness(member)
        )

    def is_shown_by(self, connection: Connection) -> bool:
        """Whether a connection was used before for a read that has demanded as much.

        Nearly always that is all, and it needs the fewest questions.
        """
        wanted, pooled = self._position, pooled_connection(connection)
        if wanted is None or pooled is None or not self._alone:
            return False
        shown = pooled.info.get(_SHOWN)
        return shown is not None and shown.covers(wanted)

    def is_met(self, member: Member[Engine], connection: Connection) -> bool:
        """Whether a replica meets the demand; it is asked if that is not known.

        Args:
            member: The replica.
            connection: A connection to it.
        """
        known, monotonic = self._known, self.demand.monotonic
        incarnation = known.incarnation(member, connection) if monotonic else 0
        if monotonic and self.demand.replica not in {0, incarnation}:
            self._move()
        shown = known.shown_by(member, connection)
        reached = self._reached(shown)
        if not reached or (monotonic and shown is None):
            shown = known.ask_replica(member, connection)
            reached = self._reached(shown)
        if shown is not None:
            _note_shown(connection, shown)
        met = reached and (
            self.demand.staleness is None
            or self._is_recent(known.staleness(member, connection))
            or self._is_recent(known.ask_staleness(member, connection))
        )
        if met and self._note_seen is not None:
            self._note_seen(Mark(shown, time.time(), replica=incarnation))
        return met

    def is_met_by_snapshot(self, member: Member[Engine], met: Demand | None) -> bool:
        """Whether an open transaction with a snapshot of its own meets the demand.

        Args:
            member: Its replica.
            met: The demand that it met when it began, or None.
        """
        demand, shown = self.demand, None if met is None else met.position
        incarnation = self._known.incarnation(member) if demand.monotonic else 0
        # The client has read from this server before the snapshot was made.
        there = not demand.replica or (demand.replica == incarnation and bool(met))
        if demand.primary or demand.staleness is not None:
            return False
        if not (there and self._reached(shown)):
            return False
        if self._note_seen is not None:
            self._note_seen(Mark(shown, time.time(), replica=incarnation))
        return True

    def is_impossible(self, primary: Connection) -> bool:
        """Whether the demand is for what the primary never had, so cannot be true.

        After a promotion it can be for what was lost with the former primary.

        Args:
            primary: A connection to the primary, or to a replica in its place.
        """
        wanted = self.demand.position
        known = self._known
        if wanted is None or not isinstance(primary, PrimaryConnection):
            return False
        if known.has_had(wanted):
            return False
        found = known.of_primary(primary)
        if found is None or found.covers(wanted):
            return False
        return found.cluster != wanted.cluster or found.timeline <= wanted.timeline

    def _move(self) -> None:
        """Demand all that the client's former replica can have shown it.

        That is at most what the primary has by now. If the primary cannot be asked, the
        client's floor has to do.
        """
        if not self._moved:
            self._moved = True
            found = self._ask_primary()
            if found is not None:
                position = self._position
                self._position = found if position is None else merged(position, found)

    def _reached(self, shown: LogPosition | None) -> bool:
        wanted = self._position
        return wanted is None or (shown is not None and shown.covers(wanted))

    def _is_recent(self, staleness: float | None) -> bool:
        most = self.demand.staleness
        return most is None or (staleness is not None and staleness <= most)


def _note_shown(connection: Connection, shown: LogPosition) -> None:
    """Note what a replica shows, unless its connection may lead to another server."""
    pooled = pooled_connection(connection)
    if pooled is not None and pooled.info.get(STARTED) and POOLED not in pooled.info:
        pooled.info[_SHOWN] = shown
