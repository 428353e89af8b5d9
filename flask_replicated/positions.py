"""What a server says of itself: its role in replication, and how far behind it is.

One adapter for each database. Each asks one question over a connection that somebody
else has opened, and closes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "History",
    "Observation",
    "Observer",
    "Progress",
    "after_a_moment",
    "observe",
    "observer_of",
    "replication_status",
    "role_observer",
    "sees_it_answer",
]

_T = TypeVar("_T")


class Observation(NamedTuple):
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
        doubtful: Whether it may be the primary itself: it is alone, or does not tell.
    """

    primary: bool | None = None
    lag: float | None = None
    measured: bool = False
    received: int | None = None
    replayed: int | None = None
    alone: bool = False
    doubtful: bool = False


class Observer(Protocol):
    """Asks a server for its role and its lag."""

    def __call__(self, cursor: Any, /) -> Observation:
        """Ask over a DBAPI cursor."""


def observe(connection: Any, *observers: Callable[[Any], _T]) -> _T:
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


def observer_of(dialect: str) -> Observer:
    """Return what asks the servers of a dialect, by SQLAlchemy's name for it."""
    return _OBSERVERS.get(dialect, sees_it_answer)


def role_observer(cursor: Any) -> Observation:
    """Ask a PostgreSQL server for its role alone."""
    cursor.execute("SELECT pg_is_in_recovery()")
    return Observation(primary=not cursor.fetchone()[0])


def sees_it_answer(cursor: Any) -> Observation:
    """See that it answers; it tells no more."""
    cursor.execute("SELECT 1")
    cursor.fetchone()
    return Observation()


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


def _postgresql(cursor: Any) -> Observation:
    cursor.execute(_POSTGRESQL)
    recovers, received, replayed, receives, age = cursor.fetchone()
    if not recovers:
        return Observation(primary=True, lag=0.0, measured=True)
    lag = None if age is None else max(0.0, float(age))
    if replayed is None:
        return Observation(primary=False, lag=lag, measured=True)
    replayed = int(replayed)
    if not receives or received is None:
        return Observation(primary=False, lag=lag, measured=True, replayed=replayed)
    received = int(received)
    if received <= replayed:
        lag = 0.0
    return Observation(
        primary=False, lag=lag, measured=True, received=received, replayed=replayed
    )


def after_a_moment(cursor: Any) -> Observation:
    """Ask a PostgreSQL server again, a twentieth of a second later.

    It is the server that waits: so threads, greenlets and loops go on.
    """
    cursor.execute("SELECT pg_sleep(0.05)")
    return _postgresql(cursor)


class Progress:
    """When a replica had received what it shows only now: how far it is behind.

    Who looks at it from time to time knows that everything it had received at one look
    and shows at a later one is no older than the first, whether it still receives or
    not. The age of its last transaction says the same of a primary that is never idle,
    and far more of one that was.
    """

    _MOST = 1000  # looks; of those not shown yet the oldest say most

    def __init__(self) -> None:
        self._looks: list[tuple[float, int]] = []

    def copy(self) -> Progress:
        """Return one that knows the same, for a thread of its own."""
        other = Progress()
        other._looks = self._looks
        return other

    def lag(self, found: Observation, now: float) -> float | None:
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


class History:
    """What was seen of one server, by whoever looked, while this process lives.

    Attributes:
        progress: How far it had got at each look.
        twin: Whether it was found to be the primary's own server.
    """

    def __init__(self) -> None:
        self.progress = Progress()
        self.twin = False
        self._replicated = False

    def found_twin(self, twin: bool) -> None:
        """Note whether its server was found to be the primary's own."""
        self.twin = twin

    def judge(self, found: Observation) -> Observation:
        """Return what was seen, and its role as far as earlier looks tell it.

        One that has replicated and has no source any more was promoted, or cut off:
        either way it goes its own way.
        """
        if found.primary is False:
            self._replicated = True
        if (found.alone and self._replicated) or (found.doubtful and self.twin):
            return found._replace(primary=True)
        return found


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


def _mysql(cursor: Any) -> Observation:
    """Ask for the lag, if the account may (``REPLICATION CLIENT``, ``SLAVE MONITOR``).

    A server that replicates from nobody may be a member of a cluster whose members
    all are primaries: then its role is left open.
    """
    row = replication_status(cursor)
    if row:
        behind = next((row[name] for name in _BEHIND if name in row), None)
        lag = None if behind is None else float(behind)
        return Observation(primary=False, lag=lag, measured=True)
    cursor.execute(_CLUSTERED)
    if cursor.fetchone() is not None:
        return Observation()
    return Observation(alone=row is not None, doubtful=True)


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


_OBSERVERS: dict[str, Observer] = {
    "postgresql": _postgresql,
    "mysql": _mysql,
    "mariadb": _mysql,
}
