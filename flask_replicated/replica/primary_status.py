"""What a bind's primary reports of itself, and what this process knows of it.

There is one query for each database. It needs no privilege.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from .lag import PositionHistory, lag_between
from .queries import query_server, row_values
from .replica_status import (
    Position,
    ReplicaReport,
    covers,
    read_gtids,
    replication_status,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy import Engine

__all__ = [
    "PrimaryReport",
    "PrimaryStatus",
    "TimedReport",
    "ask_primary",
    "can_probe",
    "source_of",
]


class PrimaryReport(NamedTuple):
    """What the server says of itself that a primary's URL leads to.

    Attributes:
        standby: Whether it replicates and takes no writes; None if it does not tell.
        proven: Whether *standby* is certain; else it may be a primary's state too.
        server: The server's id in replication (MariaDB, MySQL); None if untold.
        system_identifier: The cluster's id, the same on a primary and its standbys;
            None if untold, as on all but PostgreSQL.
        database: The name of the connection's database; None if untold.
        timeline: The timeline that it writes to (PostgreSQL); None if untold.
        position: The end of its log, if that was asked.
        backend: The pid of the process that answered (PostgreSQL), if that was asked.
        slots: What the subscriber of each logical slot has confirmed, in bytes of the
            primary's log (PostgreSQL).
    """

    standby: bool | None = None
    proven: bool = False
    server: int | None = None
    system_identifier: int | None = None
    database: str | None = None
    timeline: int | None = None
    position: Position | None = None
    backend: int | None = None
    slots: dict[str, int] | None = None


class TimedReport(NamedTuple):
    """What a probe of the primary has found.

    Attributes:
        report: What its server said.
        asked: When it was asked, by a monotonic clock.
        answered: When the answer was there.
        anew: Whether the connection was new.
    """

    report: PrimaryReport
    asked: float
    answered: float
    anew: bool


class PrimaryStatus:
    """What this process knows of one bind's primary, over any connection.

    The background probe asks for the primary's position at each interval. From these
    positions follows the age of what a replica shows: the time since the primary has
    more. While the primary does not answer, they are not held against a replica.

    Attributes:
        report: The latest report; empty until there is one. A standby that the
            primary's URL has led to does not count.
        out: Whether it did not answer the latest probe, or a standby did.
        doubted: Whether to probe it next over a new connection: a kept one may lead to
            a server that is not the primary any more.
        asked: When it was last asked and has answered, by the monotonic clock.
        confirmed: The same, over a new connection.
    """

    def __init__(self) -> None:
        self.report = PrimaryReport()
        self.out = self.doubted = False
        self.confirmed = -math.inf
        self._answers = False
        # From a probe: other connections ask for less.
        self._probed = PrimaryReport()
        self.asked = -math.inf
        self._positions = PositionHistory()
        self._timeline_start: Position | None = None
        self._followed = 0

    def accept(self, report: PrimaryReport) -> bool:
        """Keep a report; return False instead if it is a standby's.

        MariaDB and MySQL do not tell for certain: a primary that has a source itself
        may have been made read-only for a while. So one that was seen to take writes
        stays the primary until its URL leads to another server.
        """
        if report.standby and (report.proven or report.server != self.report.server):
            return False
        self.report = report
        return True

    def record_probe(self, probed: TimedReport) -> bool:
        """Keep what a probe has found; return False instead if it is a standby's.

        Called by one thread only.
        """
        earlier, report = self._probed, probed.report
        if not probed.anew and self._is_outdated(report):
            self.doubted = True
            return True
        if not self.accept(report):
            return False
        self._probed = report
        if report.system_identifier != earlier.system_identifier:
            self._positions.clear()
        if report.timeline != earlier.timeline or self._timeline_start is None:
            self._timeline_start = report.position
        self._positions.record(report.position, probed.asked, probed.answered)
        self.out, self._answers, self._followed = False, True, 0
        self.asked = probed.asked
        if probed.anew:
            self.confirmed, self.doubted = probed.asked, False
        return True

    def _is_outdated(self, report: PrimaryReport) -> bool:
        """Whether its successor was seen already, over a newer connection."""
        known = self.report
        same = report.system_identifier == known.system_identifier
        return same and (report.timeline or 0) < (known.timeline or 0)

    def mark_unreachable(self, *, lives: bool = False) -> None:
        """Note that it cannot be asked.

        Args:
            lives: Whether its server has said so, and only refuses this connection.
        """
        self.out, self._answers = not lives, False

    @property
    def wants_probe(self) -> bool:
        """Whether to probe it at once, instead of at its regular time."""
        return self.doubted and self._answers

    @property
    def timeline(self) -> int:
        """The latest timeline that was seen; 0 if none was.

        While the primary answers it is the primary's. Otherwise replicas may follow a
        later one already.
        """
        own = self.report.timeline or 0
        return max(own, self._followed) if self.out else own

    def replica_follows(self, timeline: int) -> None:
        """Note that a replica receives a timeline."""
        self._followed = max(self._followed, timeline)

    def reached(self, position: Position) -> bool:
        """Whether a position is beyond the start of the present timeline."""
        start = self._timeline_start
        return start is not None and bool(covers(position, start))

    def was_behind(self, position: Position, when: float) -> bool:
        """Whether the primary had not written by now what was shown at some time."""
        return self.asked > when and self._positions.is_behind(position)

    def lag(
        self, found: ReplicaReport, own: float | None, now: float
    ) -> tuple[float | None, bool]:
        """Return how far a replica is behind, in seconds, and whether that is measured.

        The lag is the time since the primary passed what the replica shows. How exact
        that is depends on how often the primary is asked; in between the replica's own
        account counts. While the primary is out, the lag of a replica that has nothing
        more to show stays as it was then.

        Args:
            found: The replica's report.
            own: Its lag by its own account, in seconds; None if it does not know.
            now: When it was asked, by the monotonic clock.
        """
        frozen = self.out and not found.pending
        until = self.asked if frozen else now
        bounds = self._positions.bounds(found.position, now, until)
        if bounds is None:
            return own, found.measured
        if found.pending or not found.cut_off:
            return lag_between(found, own, bounds), True
        if bounds.in_step:
            # If the primary only refuses this process, it may go on to write.
            current = self.out or self._answers
            return (0.0, True) if current else (own, found.measured)
        if bounds.most is None and found.measured:
            return (None if own is None else max(own, bounds.least)), True
        return bounds.least, True

    def subscriber_lag(self, slots: tuple[str, ...]) -> float | None:
        """Return the lag of a logical subscriber; None if it follows another server.

        Args:
            slots: The slots of its subscriptions. One that the primary does not have
                belongs to another publisher.
        """
        confirmed = self._probed.slots or {}
        known = [confirmed[slot] for slot in slots if slot in confirmed]
        # As of when the primary was asked for both.
        shown = {"": min(known)} if known else None
        bounds = self._positions.bounds(shown, self.asked, self.asked)
        return None if bounds is None else bounds.least


def can_probe(engine: Engine) -> bool:
    """Whether a primary can be asked in the background, and compared with others."""
    return engine.dialect.name in _QUERIES and not engine.dialect.is_async


def ask_primary(connection: Any, dialect: str, *, whole: bool = False) -> PrimaryReport:
    """Ask a server for its role and identity; a server that knows less tells less.

    Args:
        connection: A DBAPI connection. Its transaction is committed, or rolled back if
            the server does not understand the query.
        dialect: SQLAlchemy's name for it.
        whole: Whether to ask for the position too, and what belongs to it.

    Raises:
        Exception: The driver's, if the server does not answer at all.
    """
    queries = _QUERIES.get(dialect, ())
    report = query_server(connection, *queries[0 if whole else 1 :], _tells_nothing)
    # Not a rollback, which would take back what a listener has just set.
    connection.commit()
    return report


def _tells_nothing(_cursor: Any) -> PrimaryReport:
    return PrimaryReport()


# The name of a WAL file begins with eight digits of the timeline.
_POSTGRESQL = """
SELECT pg_is_in_recovery(),
       current_database(),
       (SELECT system_identifier FROM pg_control_system()),
       CASE WHEN NOT pg_is_in_recovery()
            THEN left(pg_walfile_name(pg_current_wal_lsn()), 8) END
"""
_POSITION = """,
       CASE WHEN NOT pg_is_in_recovery()
            THEN pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0') END,
       pg_backend_pid(),
       (SELECT string_agg(
                 slot_name || ' ' || pg_wal_lsn_diff(confirmed_flush_lsn, '0/0'), ',')
          FROM pg_replication_slots WHERE slot_type = 'logical')
"""
_ROLE = "SELECT pg_is_in_recovery(), current_database(), NULL, NULL"


def _postgresql(query: str) -> Callable[[Any], PrimaryReport]:
    def ask(cursor: Any) -> PrimaryReport:
        cursor.execute(query)
        standby, database, system, digits, *more = cursor.fetchone()
        position, backend, slots = more or (None, None, None)
        return PrimaryReport(
            standby=standby,
            proven=True,
            system_identifier=system,
            database=database,
            timeline=None if digits is None else int(digits, 16),
            position=None if position is None else {"": int(position)},
            backend=backend,
            slots=dict(map(_slot, slots.split(","))) if slots else None,
        )

    return ask


def _slot(shown: str) -> tuple[str, int]:
    name, position = shown.split()
    return name, int(position)


def _mysql(cursor: Any) -> PrimaryReport:
    """Take a server for a standby if it is read-only and has a source.

    Either alone is not enough: a primary may be made read-only on purpose, and may
    itself replicate from another server.
    """
    cursor.execute("SELECT DATABASE(), @@GLOBAL.server_id, @@GLOBAL.read_only")
    database, server, read_only = row_values(cursor.fetchone())
    # A number, or a word in newer versions.
    standby = str(read_only) not in {"0", "OFF"} and _replicates(cursor)
    return PrimaryReport(standby, server=server, database=database)


def _whole_mysql(cursor: Any) -> PrimaryReport:
    return _mysql(cursor)._replace(position=read_gtids(cursor, *_WRITTEN))


_WRITTEN = ("gtid_binlog_pos", "gtid_executed")  # MariaDB's, and MySQL's


def _replicates(cursor: Any) -> bool:
    """Whether it is connected to a source, or tries to be."""
    return _receives(replication_status(cursor) or {})


def _receives(row: Mapping[str, Any]) -> bool:
    return any(row.get(name, "No") != "No" for name in _RECEIVES)


def source_of(connection: Any) -> int | None:
    """Return the id of the server that a MariaDB or MySQL server replicates from.

    None if it has no source, is not connected to one, or does not tell. Its
    transaction is rolled back.

    Raises:
        Exception: The driver's, if the server does not answer at all.
    """
    row = query_server(connection, replication_status) or {}
    connection.rollback()
    if not _receives(row):
        return None
    return next((int(row[name]) for name in _SOURCE_IDS if name in row), None)


_RECEIVES = ("Replica_IO_Running", "Slave_IO_Running")
_SOURCE_IDS = ("Source_Server_Id", "Master_Server_Id")

# The first asks for the position too.
_QUERIES: dict[str, tuple[Callable[[Any], PrimaryReport], ...]] = {
    "postgresql": (
        _postgresql(_POSTGRESQL + _POSITION),
        _postgresql(_POSTGRESQL),
        _postgresql(_ROLE),
    ),
    "mysql": (_whole_mysql, _mysql),
    "mariadb": (_whole_mysql, _mysql),
}
