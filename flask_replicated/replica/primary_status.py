"""What a bind's primary says of itself, and what this process knows of it.

One question for each database. It needs no privilege, and is asked over a connection
that somebody else has opened.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from .replica_status import (
    Position,
    ReplicaReport,
    covers,
    query_server,
    read_gtids,
    replication_status,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

__all__ = [
    "PrimaryReport",
    "PrimaryStatus",
    "TimedReport",
    "ask_primary",
    "can_probe",
]


class PrimaryReport(NamedTuple):
    """What a server has said of itself that a primary's engine leads to.

    Attributes:
        standby: Whether it replicates and takes no writes; None where it does not tell.
        proven: Whether that is sure; or else it may be a primary's state, too.
        server: What tells it from the other servers that replicate from each other
            (MariaDB, MySQL); None if untold.
        system_identifier: The cluster's, the same on a primary and its standbys; None
            where it does not tell, as only PostgreSQL does.
        database: The name of the connection's database; None if untold.
        timeline: The one that it writes to (PostgreSQL); None if untold.
        position: How far it has written, if that was asked.
        backend: The id of the process that answered (PostgreSQL), if that was asked.
        slots: How far the subscriber of each logical slot has confirmed, in bytes of
            the primary's log (PostgreSQL).
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
    """What a look at the primary has found.

    Attributes:
        report: What its server said.
        asked: When it was asked, by a clock that never goes backwards.
        answered: When the answer was there.
        anew: Whether it was over a connection that was new.
    """

    report: PrimaryReport
    asked: float
    answered: float
    anew: bool


class _PositionSpan(NamedTuple):
    """A position that the primary was seen to have.

    Attributes:
        position: The position.
        since: From when on it had got there, at the latest.
        until: When it had got no further, at the latest.
    """

    position: Position
    since: float
    until: float


class _LagBounds(NamedTuple):
    """How long ago the primary passed what somebody shows.

    Attributes:
        least: Seconds at least, as far as the primary could be asked.
        most: Seconds at most; None if it had more whenever it was asked.
        in_step: Whether it was not seen to have more.
    """

    least: float
    most: float | None
    in_step: bool


_CONTRADICTS = 1.0
"""Seconds after which one that says it is in step, and shows less, is not believed."""


class PrimaryStatus:
    """What this process knows of one bind's primary, from whoever asked it.

    The background look asks for its position at each interval, and what is kept of that
    tells how old is what a replica shows: since when the primary has more. While the
    primary does not answer, that knowledge ages, and is held against nobody.

    Attributes:
        facts: What it said last; each is None until then. A standby that its address
            has led to is not heard.
        out: Whether it did not answer the latest look, or a standby did.
        doubted: Whether the next look should be over a new connection: one that is
            kept may lead to a server that is the primary no more.
        asked: When it was last asked, and has answered; by the clock of the looks.
        confirmed: The same, over a new connection.
    """

    _MOST = 1000  # positions; beyond it older ones are thinned out

    def __init__(self) -> None:
        self.report = PrimaryReport()
        self.out = self.doubted = False
        self.confirmed = -math.inf
        self._answers = False
        # By the look: others ask for less.
        self._looked = PrimaryReport()
        self.asked = -math.inf
        self._runs: tuple[_PositionSpan, ...] = ()
        self._from: Position | None = None
        self._followed = 0

    def accept(self, facts: PrimaryReport) -> bool:
        """Keep what a server has said; return False instead if it is a standby.

        MariaDB and MySQL do not say so for sure: a primary that replicates from another
        server may have been made read only for a while. So one that was seen to take
        writes stays the primary until its address leads to another one.
        """
        if facts.standby and (facts.proven or facts.server != self.report.server):
            return False
        self.report = facts
        return True

    def record_probe(self, answer: TimedReport) -> bool:
        """Keep what a look has found; return False instead if it is a standby.

        It is called by one thread alone.
        """
        earlier, facts = self._looked, answer.report
        if not answer.anew and self._is_outdated(facts):
            self.doubted = True
            return True
        if not self.accept(facts):
            return False
        self._looked = facts
        if facts.system_identifier != earlier.system_identifier:
            self._runs = ()  # of another cluster
        if facts.timeline != earlier.timeline or self._from is None:
            self._from = facts.position
        self._note(facts.position, answer)
        self.out, self._answers, self._followed = False, True, 0
        self.asked = answer.asked
        if answer.anew:
            self.confirmed, self.doubted = answer.asked, False
        return True

    def _is_outdated(self, facts: PrimaryReport) -> bool:
        """Whether its successor was met already, over a newer connection."""
        known = self.report
        same = facts.system_identifier == known.system_identifier
        return same and (facts.timeline or 0) < (known.timeline or 0)

    def mark_unreachable(self, *, lives: bool = False) -> None:
        """Hear that it cannot be asked.

        Args:
            lives: Whether it has said so itself, and just turns this process away.
        """
        self.out, self._answers = not lives, False

    @property
    def wants_probe(self) -> bool:
        """Whether a look at it should not wait until its time has come."""
        return self.doubted and self._answers

    def _note(self, position: Position | None, answer: TimedReport) -> None:
        if not position:
            self._runs = ()  # it does not tell, or no more
            return
        # What is beyond has been lost with another primary.
        runs = [run for run in self._runs if covers(position, run.position)]
        since = answer.answered
        if runs and runs[-1].position == position:
            since = runs.pop().since
        runs.append(_PositionSpan(position, since, answer.asked))
        if len(runs) > self._MOST:
            half = self._MOST // 2
            runs[:half] = runs[:half:2]
        # Never changed in place: other threads look at it.
        self._runs = tuple(runs)

    @property
    def timeline(self) -> int:
        """The latest timeline that was seen; 0 if none was.

        While the primary answers it is that of the primary. Else replicas may have
        followed another one already.
        """
        own = self.report.timeline or 0
        return max(own, self._followed) if self.out else own

    def replica_follows(self, timeline: int) -> None:
        """Hear that a replica receives a timeline."""
        self._followed = max(self._followed, timeline)

    def reached(self, position: Position) -> bool:
        """Whether somebody shows what only the present timeline has."""
        return self._from is not None and bool(covers(position, self._from))

    def was_behind(self, position: Position, when: float) -> bool:
        """Whether the primary had not written yet what was shown already at a time."""
        if not self._runs or self.asked <= when:
            return False
        return covers(self._runs[-1].position, position) is False

    def lag(
        self, found: ReplicaReport, own: float | None, now: float
    ) -> tuple[float | None, bool]:
        """Return how far a replica is behind, in seconds, and whether that is measured.

        It is as old as the time since the primary passed what it shows. That is known
        as exactly as the primary is asked often; in between counts what the replica
        says of itself. While the primary is out, who has nothing more to show is as far
        behind as it was then.

        Args:
            found: What was seen of the replica.
            own: What it says itself, in seconds; None if it does not know.
            now: When it was seen, by the clock of the looks.
        """
        frozen = self.out and not found.pending
        bounds = self._bounds(found.position, now, self.asked if frozen else now)
        if bounds is None:
            return own, found.measured
        if found.pending or not found.cut_off:
            return _between(found, own, bounds), True
        if bounds.in_step:
            # If the primary just turns us away, it may go on to write.
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
        confirmed = self._looked.slots or {}
        known = [confirmed[slot] for slot in slots if slot in confirmed]
        # As of when the primary was asked for both.
        shown = {"": min(known)} if known else None
        bounds = self._bounds(shown, self.asked, self.asked)
        return None if bounds is None else bounds.least

    def _bounds(
        self, shown: Position | None, now: float, until: float
    ) -> _LagBounds | None:
        """Return when the primary passed a position; None if it cannot be compared.

        Args:
            shown: The position.
            now: The time that is counted to, at most.
            until: The time that is counted to, at least.
        """
        runs = self._runs
        if not runs or not shown or covers(shown, runs[-1].position) is None:
            return None
        reached, passed = None, None
        for run in reversed(runs):
            if covers(shown, run.position):
                reached = run
                break
            passed = run
        return _LagBounds(
            least=0.0 if passed is None else max(0.0, until - passed.since),
            most=None if reached is None else max(0.0, now - reached.until),
            in_step=passed is None,
        )


def _between(
    found: ReplicaReport, own: float | None, bounds: _LagBounds
) -> float | None:
    """Return the lag of one that has more to show: what it says, if that can be."""
    if bounds.most is None:
        # It had less than the primary from the start, whatever it says.
        if not own and bounds.least > _CONTRADICTS:
            own = found.age
    elif own is None or found.replayed is not None:
        own = min(bounds.most, math.inf if own is None else own)
    return None if own is None else max(own, bounds.least)


def can_probe(engine: Engine) -> bool:
    """Whether the position of a primary can be asked for in the background."""
    return engine.dialect.name in _QUESTIONS and not engine.dialect.is_async


def ask_primary(connection: Any, dialect: str, *, whole: bool = False) -> PrimaryReport:
    """Ask a server for its role and identity; it tells less if it knows less.

    Args:
        connection: A DBAPI connection. What has begun on it is committed, or rolled
            back if the server does not understand what it is asked.
        dialect: SQLAlchemy's name for it.
        whole: Whether the position, and what belongs to it, is wanted too.

    Raises:
        Exception: The driver's, if the server does not answer at all.
    """
    questions = _QUESTIONS.get(dialect, ())
    facts = query_server(connection, *questions[0 if whole else 1 :], _tells_nothing)
    # Not a rollback, which would take back what a listener has just set.
    connection.commit()
    return facts


def _tells_nothing(_cursor: Any) -> PrimaryReport:
    return PrimaryReport()


# The first eight digits of the name of a file of its log are those of the timeline.
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


def _postgresql(question: str) -> Callable[[Any], PrimaryReport]:
    def ask(cursor: Any) -> PrimaryReport:
        cursor.execute(question)
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
    """Take for a standby what is read only, and replicates from another server.

    Neither alone is enough: a primary may be made read only on purpose, and may itself
    replicate from another server.
    """
    cursor.execute("SELECT DATABASE(), @@GLOBAL.server_id, @@GLOBAL.read_only")
    row = cursor.fetchone()
    # A bind's own cursor may return a dictionary.
    database, server, read_only = row.values() if isinstance(row, dict) else row
    # A number, or a word in newer versions.
    standby = str(read_only) not in {"0", "OFF"} and _replicates(cursor)
    return PrimaryReport(standby, server=server, database=database)


def _whole_mysql(cursor: Any) -> PrimaryReport:
    return _mysql(cursor)._replace(position=read_gtids(cursor, *_WRITTEN))


_WRITTEN = ("gtid_binlog_pos", "gtid_executed")  # MariaDB's, and MySQL's


def _replicates(cursor: Any) -> bool:
    """Whether it says that it is connected to a source, or tries to be."""
    row = replication_status(cursor) or {}
    return any(row.get(name, "No") != "No" for name in _RECEIVES)


_RECEIVES = ("Replica_IO_Running", "Slave_IO_Running")

# The first is the whole of it.
_QUESTIONS: dict[str, tuple[Callable[[Any], PrimaryReport], ...]] = {
    "postgresql": (
        _postgresql(_POSTGRESQL + _POSITION),
        _postgresql(_POSTGRESQL),
        _postgresql(_ROLE),
    ),
    "mysql": (_whole_mysql, _mysql),
    "mariadb": (_whole_mysql, _mysql),
}
