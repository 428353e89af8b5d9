"""What a server says of itself: its role in replication, and how far behind it is.

One adapter for each database. Each asks one question over a connection that somebody
else has opened, and closes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "Position",
    "ReplayHistory",
    "ReplicaReport",
    "ReportQuery",
    "covers",
    "ping",
    "query_role",
    "query_server",
    "read_gtids",
    "replication_status",
    "report_queries",
    "sleep_on_server",
]

_T = TypeVar("_T")

Position: TypeAlias = Mapping[str, int]
"""How far a log has got, by stream: PostgreSQL has one (in bytes, called ``""``),
MariaDB one for each domain, MySQL one for each server that has written."""


def covers(shown: Position, wanted: Position) -> bool | None:
    """Whether all up to one position is shown by who has got to another.

    A stream that only one of them has says nothing: a replica may leave it out on
    purpose. None if they have none in common.
    """
    common = shown.keys() & wanted.keys()
    if not common:
        return None
    return all(shown[stream] >= wanted[stream] for stream in common)


class ReplicaReport(NamedTuple):
    """What was seen of one server.

    Attributes:
        primary: Whether it is no replica; None where it does not tell.
        lag: Seconds that it is behind the primary at most; None if unknown.
        measured: Whether it can tell its lag at all. One that can and does not know
            it is not taken for one that is up to date.
        received: How far into the primary's log it has received, in bytes, while it
            goes on to receive; None if it does not, or does not tell.
        replayed: How far of that it shows.
        alone: Whether it says that it replicates from nobody, and is of no cluster
            whose members all are primaries.
        doubtful: Whether it may be the primary itself: it is alone, or does not tell,
            or says that it is a primary.
        own: Whether it is the bind's own primary, as far as that was found out.
        pending: Whether it has received more than it shows, be it long ago.
        gtids: What it shows, where that is not counted in bytes.
        age: Seconds since the last transaction that it shows was committed, on
            PostgreSQL.
        timeline: The one that its server knows to be on (PostgreSQL). The server may
            have gone on to a later one for some minutes, unless this is *exact*.
        exact: Whether the timeline is the one that it receives now.
        started: When its server was started, by the server's clock (PostgreSQL).
        slots: The replication slots of the logical subscriptions of its database.
        apart: Why it is not to be taken for a copy of the primary, or None.
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
    age: float | None = None
    timeline: int | None = None
    exact: bool = False
    started: float | None = None
    slots: tuple[str, ...] = ()
    apart: str | None = None

    @property
    def position(self) -> Position | None:
        """What it shows, to be compared with what the primary has written."""
        return self.gtids if self.replayed is None else {"": self.replayed}

    @property
    def cut_off(self) -> bool:
        """Whether it receives nothing, or does not tell."""
        return self.lag is None if self.replayed is None else self.received is None


class ReportQuery(Protocol):
    """Asks a server for its role and its lag."""

    def __call__(self, cursor: Any, /) -> ReplicaReport:
        """Ask over a DBAPI cursor."""


def query_server(connection: Any, *observers: Callable[[Any], _T]) -> _T:
    """Ask a server, and ask less if it does not know that.

    Args:
        connection: A DBAPI connection; its transaction is rolled back before it is
            asked for less, and else left open.
        observers: What to ask, each for when the one before fails.

    Raises:
        Exception: The driver's, for the last of them.
    """
    *more, last = observers
    for observer in more:
        try:
            return _asked(connection, observer)
        except Exception:  # noqa: BLE001 - should it have died, the next line says so
            # A server that lives need not know what it is asked, nor may the account.
            connection.rollback()
    return _asked(connection, last)


def _asked(connection: Any, observer: Callable[[Any], _T]) -> _T:
    cursor = connection.cursor()
    try:
        return observer(cursor)
    finally:
        cursor.close()


def report_queries(dialect: str) -> tuple[ReportQuery, ...]:
    """Return what to ask the servers of a dialect, and what next if one knows less.

    Args:
        dialect: SQLAlchemy's name for it.
    """
    return _OBSERVERS.get(dialect, (ping,))


def query_role(cursor: Any) -> ReplicaReport:
    """Ask a PostgreSQL server for its role alone."""
    cursor.execute("SELECT pg_is_in_recovery()")
    primary = not cursor.fetchone()[0]
    return ReplicaReport(primary=primary, doubtful=primary)


def ping(cursor: Any) -> ReplicaReport:
    """See that it answers; it tells no more."""
    cursor.execute("SELECT 1")
    cursor.fetchone()
    return ReplicaReport()


# An idle primary sends nothing, so the age of the last transaction is no lag where
# all that was received is replayed, and more may be received at any time. Where
# nothing receives, this alone does not say what is missing: then the age is the most
# that it tells.
_POSTGRESQL = """
SELECT pg_is_in_recovery(),
       pg_wal_lsn_diff(pg_last_wal_receive_lsn(), '0/0'),
       pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0'),
       EXISTS (SELECT FROM pg_stat_wal_receiver),
       EXTRACT(EPOCH FROM clock_timestamp() - pg_last_xact_replay_timestamp())
"""
# What some services do not have. The timeline that is received is shown to members of
# pg_read_all_stats alone; the other one is that of the last restart point.
_MORE = """,
       (SELECT received_tli FROM pg_stat_wal_receiver),
       (SELECT timeline_id FROM pg_control_checkpoint()),
       EXTRACT(EPOCH FROM pg_postmaster_start_time())
"""
# Of one that is no standby. Names of slots have no commas.
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
    # One whose log has forked from its source's is connected to it, too, and is sent
    # nothing beyond the fork: it seems to have received less than it shows.
    if not receives or received is None or received < replayed:
        return found
    lag = 0.0 if received == replayed else age
    return found._replace(received=int(received), lag=lag)


def sleep_on_server(cursor: Any) -> None:
    """Let a PostgreSQL server wait for a twentieth of a second.

    It is the server that waits: so threads, greenlets and loops go on.
    """
    cursor.execute("SELECT pg_sleep(0.05)")


class ReplayHistory:
    """When a replica had received what it shows only now: how far it is behind.

    Who looks at it from time to time knows that everything it had received at one look
    and shows at a later one is no older than the first, whether it still receives or
    not. The age of its last transaction says the same of a primary that is never idle,
    and far more of one that was.
    """

    _MOST = 1000  # looks; of those not shown yet the oldest say most

    def __init__(self) -> None:
        self._looks: list[tuple[float, int]] = []

    def copy(self) -> ReplayHistory:
        """Return one that knows the same, for a thread of its own."""
        other = ReplayHistory()
        other._looks = self._looks
        return other

    def lag(self, found: ReplicaReport, now: float) -> float | None:
        """Return the most that a replica can be behind, in seconds.

        Args:
            found: What was seen of it.
            now: When, by a clock that never goes backwards.
        """
        if found.replayed is None:
            self._looks = []
            return found.lag
        shown = [look for look in self._looks if look[1] <= found.replayed]
        kept = [*shown[-1:], *self._looks[len(shown) :]][: self._MOST]
        if found.received is not None:
            kept.append((now, found.received))
        # Never changed in place: another thread may be looking at it.
        self._looks = kept
        if not shown:
            return found.lag
        since = now - shown[-1][0]
        return since if found.lag is None else min(found.lag, since)


# The first is the newer name of the same, on either server.
_STATUS = ("SHOW REPLICA STATUS", "SHOW SLAVE STATUS")
# MariaDB lists sources that were given a name only here; MySQL does not know it.
_ALL_STATUS = "SHOW ALL SLAVES STATUS"
_BEHIND = ("Seconds_Behind_Source", "Seconds_Behind_Master")
# Those of a cluster whose members all are primaries: Galera, group replication.
_CLUSTERED = (
    "SHOW GLOBAL VARIABLES WHERE Variable_name = 'wsrep_on' AND Value = 'ON' OR "
    "Variable_name = 'group_replication_single_primary_mode' AND Value = 'OFF'"
)


def _mysql(cursor: Any) -> ReplicaReport:
    """Ask for the lag, if the account may (``REPLICATION CLIENT``, ``SLAVE MONITOR``).

    A server that replicates from nobody may be a member of a cluster whose members
    all are primaries: then its role is left open. What it has replayed any account may
    ask for.
    """
    row = replication_status(cursor)
    if row:
        behind = next((row[name] for name in _BEHIND if name in row), None)
        lag = None if behind is None else float(behind)
        shown = read_gtids(cursor, *_SHOWN)
        received = _parse_gtids(next((row[n] for n in _RECEIVED if row.get(n)), ""))
        pending = shown is not None and covers(shown, received) is False
        return ReplicaReport(
            primary=False, lag=lag, measured=True, pending=pending, gtids=shown
        )
    cursor.execute(_CLUSTERED)
    if cursor.fetchone() is not None:
        return ReplicaReport()
    if row is not None:
        return ReplicaReport(alone=True, doubtful=True)
    # One that has never replicated numbers what it writes by itself.
    replicated = read_gtids(cursor, *_REPLICATED)
    shown = read_gtids(cursor, *_SHOWN) if replicated else None
    return ReplicaReport(doubtful=True, gtids=shown)


# MariaDB's, and MySQL's. MySQL's numbers tell who has written.
_SHOWN = ("gtid_current_pos", "gtid_executed")
_REPLICATED = ("gtid_slave_pos", "gtid_executed")
_RECEIVED = ("Gtid_IO_Pos", "Retrieved_Gtid_Set")


def read_gtids(cursor: Any, *names: str) -> Position | None:
    """Ask MariaDB or MySQL for a position; None if it has none.

    Args:
        cursor: A DBAPI cursor.
        names: The variables to try, one after the other.
    """
    if not any(_knows(cursor, f"SELECT @@GLOBAL.{name} AS gtids") for name in names):
        return None
    return _parse_gtids(str(_row(cursor).get("gtids") or "")) or None


def _parse_gtids(text: str) -> dict[str, int]:
    """Return the last number of each stream.

    MariaDB: ``0-1-270,1-2-14``, which is domain, server, number. MySQL:
    ``uuid:1-5:7,uuid:tag:1-3``. Those that are missing before the last say little:
    they may have been left out when the server was set up.
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
    """Ask MariaDB or MySQL for its source: nothing if it has none; None if untold."""
    if not any(_knows(cursor, statement) for statement in _STATUS):
        return None
    return _row(cursor) or (_row(cursor) if _knows(cursor, _ALL_STATUS) else {})


def _row(cursor: Any) -> dict[str, Any]:
    row = cursor.fetchone()
    if row is None or isinstance(row, dict):
        return row or {}
    return dict(zip((column[0] for column in cursor.description), row, strict=True))


def _knows(cursor: Any, statement: str) -> bool:
    try:
        cursor.execute(statement)
    except Exception:  # noqa: BLE001 - no such statement, or no privilege
        return False
    return True


_OBSERVERS: dict[str, tuple[ReportQuery, ...]] = {
    "postgresql": (_postgresql, _plain_postgresql),
    "mysql": (_mysql,),
    "mariadb": (_mysql,),
}
