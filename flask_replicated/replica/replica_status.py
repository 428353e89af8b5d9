"""Asks a server for its role in replication, its lag and its log position.

There is one query for each database. It runs over a connection that the caller has
opened, and that stays open.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias

from .queries import row_dict

__all__ = [
    "Position",
    "ReplicaReport",
    "ReportQuery",
    "can_measure_lag",
    "covers",
    "no_report",
    "parse_gtids",
    "ping",
    "query_role",
    "read_gtids",
    "replication_status",
    "report_queries",
    "sleep_on_server",
]

Position: TypeAlias = Mapping[str, int]
"""How far a log has got, by stream: PostgreSQL has one (in bytes, called ``""``),
MariaDB one for each domain, MySQL one for each server that has written."""


def covers(shown: Position, wanted: Position) -> bool | None:
    """Whether a server that shows one position has all that is up to another.

    Streams that only one of them has do not count: a replica may leave some out on
    purpose. None if they have no stream in common.
    """
    common = shown.keys() & wanted.keys()
    if not common:
        return None
    return all(shown[stream] >= wanted[stream] for stream in common)


class ReplicaReport(NamedTuple):
    """What one server reports, completed by what this process knows.

    Attributes:
        primary: Whether it is a primary; None if it does not tell.
        lag: Seconds that it is behind the primary, at most; None if unknown.
        measured: Whether it can measure its lag at all. One that can, and does not
            know it, does not count as up to date.
        received: How much of the primary's log it has received, in bytes, while it is
            receiving; None if it is not, or does not tell.
        replayed: How much of that it has replayed, and so shows.
        alone: Whether it says that it has no source, and is in no cluster whose
            members all are primaries.
        doubtful: Whether it may be the primary itself: it is alone, or does not tell,
            or says that it is a primary.
        own: Whether it is the bind's own primary; None if unknown.
        pending: Whether it has received more than it shows, however long ago.
        gtids: The position that it shows, where that is not counted in bytes.
        applied: The part of it that its source has written: MariaDB counts a server's
            own writes in the same stream.
        age: Seconds since the commit of the last transaction that it shows
            (PostgreSQL).
        timeline: The timeline of its last restart point (PostgreSQL), which may be
            outdated for some minutes; or, if *exact*, the one that it receives.
        exact: Whether the timeline is the one that it receives now.
        started: When its server was started, by the server's clock (PostgreSQL).
        slots: The replication slots of its database's logical subscriptions.
        apart: Why it is no copy of the primary (see ``timeline``), or None.
    """

    primary: bool | None = None
    lag: float | None = None
    measured: bool = False
    received: int | None = None
    replayed: int | None = None
    alone: bool = False
    doubtful: bool = False
    own: bool | None = None
    pending: bool = False
    gtids: Position | None = None
    applied: Position | None = None
    age: float | None = None
    timeline: int | None = None
    exact: bool = False
    started: float | None = None
    slots: tuple[str, ...] = ()
    apart: str | None = None

    @property
    def position(self) -> Position | None:
        """The log position that it shows."""
        return self.gtids if self.replayed is None else {"": self.replayed}

    @property
    def cut_off(self) -> bool:
        """Whether it is not receiving, or does not tell."""
        return self.lag is None if self.replayed is None else self.received is None


class ReportQuery(Protocol):
    """Asks a server for its role and its lag."""

    def __call__(self, cursor: Any, /) -> ReplicaReport:
        """Ask over a DBAPI cursor."""


def report_queries(dialect: str) -> tuple[ReportQuery, ...]:
    """Return the queries for a dialect, the most comprehensive one first.

    Args:
        dialect: SQLAlchemy's name for it.
    """
    return _QUERIES.get(dialect, (ping,))


def can_measure_lag(dialect: str) -> bool:
    """Whether servers of a dialect can tell how far they are behind.

    Args:
        dialect: SQLAlchemy's name for it.
    """
    return dialect in _QUERIES


def query_role(cursor: Any) -> ReplicaReport:
    """Ask a PostgreSQL server for its role alone."""
    cursor.execute("SELECT pg_is_in_recovery()")
    primary = not cursor.fetchone()[0]
    return ReplicaReport(primary=primary, doubtful=primary)


def ping(cursor: Any) -> ReplicaReport:
    """Check that a server answers."""
    cursor.execute("SELECT 1")
    cursor.fetchone()
    return ReplicaReport()


def no_report(_cursor: Any) -> ReplicaReport:
    """Ask nothing: the last query, where the server may refuse to tell."""
    return ReplicaReport()


# An idle primary sends nothing, so the age of the last transaction is no lag on a
# standby that is receiving and has replayed everything. On one that is not receiving,
# it is unknown what is missing: then the age is all there is to go by.
_POSTGRESQL = """
SELECT pg_is_in_recovery(),
       pg_wal_lsn_diff(pg_last_wal_receive_lsn(), '0/0'),
       pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0'),
       EXISTS (SELECT FROM pg_stat_wal_receiver),
       EXTRACT(EPOCH FROM clock_timestamp() - pg_last_xact_replay_timestamp())
"""
# Not available on some managed services. Only members of pg_read_all_stats see the
# timeline that is received; the other one is that of the last restart point.
_MORE = """,
       (SELECT received_tli FROM pg_stat_wal_receiver),
       (SELECT timeline_id FROM pg_control_checkpoint()),
       EXTRACT(EPOCH FROM pg_postmaster_start_time())
"""
# For a server that is no standby. Names of slots contain no commas.
_SLOTS = """
SELECT string_agg(subslotname, ',') FROM pg_subscription
 WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


def _postgresql(cursor: Any) -> ReplicaReport:
    cursor.execute(_POSTGRESQL + _MORE)
    *row, received, timeline, started = cursor.fetchone()
    found = _understood(*row)
    found = found._replace(started=None if started is None else float(started))
    if found.primary:
        cursor.execute(_SLOTS)
        (slots,) = cursor.fetchone()
        return found._replace(slots=tuple(slots.split(",")) if slots else ())
    exact = found.received is not None and received is not None
    return found._replace(timeline=received if exact else timeline, exact=exact)


def _plain_postgresql(cursor: Any) -> ReplicaReport:
    cursor.execute(_POSTGRESQL)
    return _understood(*cursor.fetchone())


def _understood(
    recovers: bool, received: Any, replayed: Any, receives: bool, age: Any
) -> ReplicaReport:
    if not recovers:
        return ReplicaReport(primary=True, doubtful=True)
    age = None if age is None else max(0.0, float(age))
    found = ReplicaReport(primary=False, lag=age, measured=True, age=age)
    if replayed is None:
        return found
    pending = received is not None and received > replayed
    found = found._replace(replayed=int(replayed), pending=pending)
    # A standby whose log has forked from its source's stays connected, and is sent
    # nothing beyond the fork: it seems to have received less than it shows.
    if not receives or received is None or received < replayed:
        return found
    lag = 0.0 if received == replayed else age
    return found._replace(received=int(received), lag=lag)


def sleep_on_server(cursor: Any) -> None:
    """Let a PostgreSQL server wait for 50 ms, so that this works in any event loop."""
    cursor.execute("SELECT pg_sleep(0.05)")


# The same statement by its newer name, and by its older one.
_STATUS = ("SHOW REPLICA STATUS", "SHOW SLAVE STATUS")
# MariaDB lists named sources only here; MySQL has no such statement.
_ALL_STATUS = "SHOW ALL SLAVES STATUS"
_BEHIND = ("Seconds_Behind_Source", "Seconds_Behind_Master")
# Clusters whose members all are primaries: Galera, group replication.
_CLUSTERED = (
    "SHOW GLOBAL VARIABLES WHERE Variable_name = 'wsrep_on' AND Value = 'ON' OR "
    "Variable_name = 'group_replication_single_primary_mode' AND Value = 'OFF'"
)


def _mysql(cursor: Any) -> ReplicaReport:
    """Ask for the lag, given ``REPLICATION CLIENT`` or ``SLAVE MONITOR``.

    A server that has no source may be a member of a cluster whose members all are
    primaries: then its role is unknown. Every account may ask for its position.
    """
    row = replication_status(cursor)
    if row:
        behind = next((row[name] for name in _BEHIND if name in row), None)
        lag = None if behind is None else float(behind)
        shown = read_gtids(cursor, *_SHOWN)
        received = parse_gtids(next((row[n] for n in _RECEIVED if row.get(n)), ""))
        pending = shown is not None and covers(shown, received) is False
        return ReplicaReport(
            primary=False,
            lag=lag,
            measured=True,
            pending=pending,
            gtids=shown,
            applied=read_gtids(cursor, *_REPLICATED),
        )
    cursor.execute(_CLUSTERED)
    if cursor.fetchone() is not None:
        return ReplicaReport()
    if row is not None:
        return ReplicaReport(alone=True, doubtful=True)
    # A server that has never replicated has positions of its own, which say nothing.
    applied = read_gtids(cursor, *_REPLICATED)
    shown = read_gtids(cursor, *_SHOWN) if applied else None
    return ReplicaReport(doubtful=True, gtids=shown, applied=applied)


# MariaDB's and MySQL's. In MySQL's each GTID has the server that wrote it.
_SHOWN = ("gtid_current_pos", "gtid_executed")
_REPLICATED = ("gtid_slave_pos", "gtid_executed")
_RECEIVED = ("Gtid_IO_Pos", "Retrieved_Gtid_Set")


def read_gtids(cursor: Any, *names: str) -> Position | None:
    """Ask MariaDB or MySQL for a GTID position; None if it has none.

    Args:
        cursor: A DBAPI cursor.
        names: The variables to try, in this order.
    """
    if not any(_knows(cursor, f"SELECT @@GLOBAL.{name} AS gtids") for name in names):
        return None
    return parse_gtids(str(_next_row(cursor).get("gtids") or "")) or None


def parse_gtids(text: str) -> dict[str, int]:
    """Return the last number of each stream in a GTID position or set.

    MariaDB: ``0-1-270,1-2-14``, that is domain, server, number. MySQL:
    ``uuid:1-5:7,uuid:tag:1-3``. Gaps before the last number are ignored: they may be
    from when the server was set up.
    """
    found: dict[str, int] = {}
    for one in filter(None, re.split(r"[,\s]+", text)):
        source, *rest = one.split(":")
        if not rest:
            domain, _, number = one.split("-")
            found[domain] = int(number)
        for part in rest:
            first, _, last = part.partition("-")
            if first.isdigit():
                found[source] = max(found.get(source, 0), int(last or first))
            else:  # a tag, which those after it have
                source = f"{source.partition(':')[0]}:{part}"
    return found


def replication_status(cursor: Any) -> dict[str, Any] | None:
    """Ask MariaDB or MySQL for its source: empty if it has none; None if untold."""
    if not any(_knows(cursor, statement) for statement in _STATUS):
        return None
    return _next_row(cursor) or (
        _next_row(cursor) if _knows(cursor, _ALL_STATUS) else {}
    )


def _next_row(cursor: Any) -> dict[str, Any]:
    return row_dict(cursor, cursor.fetchone())


def _knows(cursor: Any, statement: str) -> bool:
    try:
        cursor.execute(statement)
    except Exception:  # noqa: BLE001 - no such statement, or no privilege
        return False
    return True


_QUERIES: dict[str, tuple[ReportQuery, ...]] = {
    "postgresql": (_postgresql, _plain_postgresql),
    "mysql": (_mysql,),
    "mariadb": (_mysql,),
}
