"""What a server says of itself: its role in replication, and how far behind it is.

One adapter for each database. Each asks one question over a connection that somebody
else has opened, and closes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "Observation",
    "Observer",
    "Progress",
    "observer_of",
    "role_question_of",
    "sees_it_answer",
]


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
    """

    primary: bool | None = None
    lag: float | None = None
    measured: bool = False
    received: int | None = None
    replayed: int | None = None


class Observer(Protocol):
    """Asks a server for its role and its lag."""

    def __call__(self, cursor: Any) -> Observation:
        """Ask over a DBAPI cursor."""


def observer_of(dialect: str) -> Observer:
    """Return what asks the servers of a dialect, by SQLAlchemy's name for it."""
    return _OBSERVERS.get(dialect, sees_it_answer)


def role_question_of(dialect: str) -> Callable[[Any], bool]:
    """Return the question whether a server is surely no replica, cheap to ask.

    It is asked once on each new connection.
    """
    return _not_in_recovery if dialect == "postgresql" else _cannot_tell


def _cannot_tell(_cursor: Any) -> bool:
    return False


def _not_in_recovery(cursor: Any) -> bool:
    cursor.execute("SELECT pg_is_in_recovery()")
    return not cursor.fetchone()[0]


def sees_it_answer(cursor: Any) -> Observation:
    """See that it answers; it tells no more."""
    cursor.execute("SELECT 1")
    cursor.fetchone()
    return Observation()


# An idle primary sends nothing, so the age of the last transaction is no lag where
# all that was received is replayed, and more may be received at any time. Where
# nothing receives, nobody can say what is missing: then the age is the most that is
# known.
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
    if not receives or received is None or replayed is None:
        return Observation(primary=False, lag=lag, measured=True)
    received, replayed = int(received), int(replayed)
    if received <= replayed:
        lag = 0.0
    return Observation(False, lag, True, received, replayed)


class Progress:
    """When a replica had received what it shows only now: how far it is behind.

    Who looks at it from time to time knows that everything it had received at one look
    and shows at a later one is no older than the first. The age of its last transaction
    says the same of a primary that is never idle, and far more of one that was.
    """

    _MOST = 1000

    def __init__(self) -> None:
        self._looks: list[tuple[float, int]] = []

    def lag(self, found: Observation, now: float) -> float | None:
        """Return the most that a replica can be behind, in seconds.

        Args:
            found: What was seen of it.
            now: When, by a clock that never goes backwards.
        """
        if found.received is None or found.replayed is None:
            self._looks.clear()
            return found.lag
        shown = [look for look in self._looks if look[1] <= found.replayed]
        waiting = self._looks[len(shown) :]
        self._looks = [*[*shown[-1:], *waiting][: self._MOST], (now, found.received)]
        if not shown:
            return found.lag
        since = now - shown[-1][0]
        return since if found.lag is None else min(found.lag, since)


# The first is the newer name of the same, on either server.
_STATUS = ("SHOW REPLICA STATUS", "SHOW SLAVE STATUS")
_BEHIND = ("Seconds_Behind_Source", "Seconds_Behind_Master")


def _mysql(cursor: Any) -> Observation:
    """Ask for the lag, if the account may (``REPLICATION CLIENT``, ``SLAVE MONITOR``).

    A server that replicates from nobody may be a member of a cluster whose members
    all are primaries, so its role is left open.
    """
    row = _status(cursor)
    if row is None:
        return sees_it_answer(cursor)
    behind = next((row[name] for name in _BEHIND if name in row), None)
    lag = None if behind is None else float(behind)
    return Observation(primary=False, lag=lag, measured=True)


def _status(cursor: Any) -> dict[str, Any] | None:
    if not any(_knows(cursor, statement) for statement in _STATUS):
        return None
    row = cursor.fetchone()
    if row is None or isinstance(row, dict):
        return row
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
