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
    """

    primary: bool | None = None
    lag: float | None = None
    measured: bool = False


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
       pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn()
           AND EXISTS (SELECT FROM pg_stat_wal_receiver),
       EXTRACT(EPOCH FROM clock_timestamp() - pg_last_xact_replay_timestamp())
"""


def _postgresql(cursor: Any) -> Observation:
    cursor.execute(_POSTGRESQL)
    recovers, caught_up, age = cursor.fetchone()
    if not recovers:
        return Observation(primary=True, lag=0.0, measured=True)
    if caught_up:
        return Observation(primary=False, lag=0.0, measured=True)
    lag = None if age is None else max(0.0, float(age))
    return Observation(primary=False, lag=lag, measured=True)


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
