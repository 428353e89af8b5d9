"""What a driver's error says about the server that raised it."""

from __future__ import annotations

import contextlib
import re
import time
from enum import Enum
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from sqlalchemy.exc import TimeoutError  # noqa: A004 - not the built-in one

from balancers import UnknownMemberError
from flask_replicated.errors import (
    DivergedReplicaError,
    ExhaustedError,
    ReplicaLagsError,
    ReplicaSilentError,
    UnansweredError,
    WrongRoleError,
)

from .misconfigured import codes_of, is_file_error, remedy_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine
    from sqlalchemy.exc import DBAPIError

    from balancers import Member, Pool

__all__ = [
    "Cause",
    "StorageFailures",
    "Verdict",
    "cause_of",
    "failed_on_server",
    "is_missing_object",
    "is_read_only_error",
    "is_storage_error",
    "judge_connect",
    "refuses_but_lives",
]


class Verdict(Enum):
    """What a failure to connect says about a server."""

    DOWN = "down"
    """It cannot be reached, or is starting up or shutting down."""
    BUSY = "busy"
    """It is alive, and has no connection to spare."""
    MISCONFIGURED = "misconfigured"
    """It is alive, and never accepts such a connection, or has another database."""


# Drivers that use libpq give no SQLSTATE on connect, so the English messages are
# matched too. In another language a busy server counts as down, for a second.
_BUSY = frozenset({"53300", "53400"})
_MYSQL_BUSY = frozenset({1040, 1203, 1226})  # too many connections: all, an account's
_BUSY_WORDS = re.compile(
    r"too many (?:clients|connections)|remaining connection slots"
    r"|no more connections allowed"
)
_SHUTTING_DOWN = re.compile(r"the database system is shutting down")
_READ_ONLY_TRANSACTION = "25006"
# On a standby only replay conflicts with a read, as it takes no serializable
# transactions. The second is a deadlock with replay.
_RECOVERY_CONFLICTS = frozenset({"40001", "40P01"})
_SOCKET_CLOSED = "connection socket closed"
# Too many open files, a full disk, no memory, a configured limit; an internal error,
# damaged data, a damaged index. All of class 58 are system errors.
_STORAGE = frozenset({"53000", "53100", "53200", "53400", "XX000", "XX001", "XX002"})
_SYSTEM_ERRORS = "58"
# A full disk; a file that cannot be found, opened, read or written; an error of the
# storage engine; a damaged index or table; a table without its file; no memory. And a
# Galera node that has left its cluster (1047), and answers what reads no table.
_MYSQL_STORAGE = frozenset(
    {1016, 1017, 1021, 1024, 1026, 1030, 1033, 1034, 1037, 1038, 1041, 1047, 1114}
    | {1194, 1195, 1712, 1812, 1932}
)
_SQLITE_STORAGE = frozenset(
    {
        "database disk image is malformed",
        "database or disk is full",
        "disk I/O error",
        "file is not a database",
    }
)
# A shutdown, or the end of this one connection, while it is in use: not all drivers and
# versions of SQLAlchemy take these for a disconnect. 9001: ProxySQL has no server.
_MYSQL_LOST = frozenset({1053, 1077, 1079, 1152, 1184, 1927, 3168, 3169, 9001})
# A table, a column, a function, any other object, a schema. And what a standby does not
# do, such as to read an unlogged table, whose rows are not in the log.
_MISSING = frozenset({"42P01", "42703", "42883", "42704", "3F000", "0A000"})
# An unknown label of an enum has the SQLSTATE of any malformed value.
_WRONG_VALUE = "22P02"
# A database, a column, a table (three codes), a function (three codes), an index that a
# hint names, an object that a view uses.
_MYSQL_MISSING = frozenset({1049, 1054, 1051, 1109, 1146, 1128, 1305, 1630, 1176, 1356})
_SQLITE_MISSING = re.compile(
    r"no such (?:table|column|function|index|module|collation sequence)\b"
)
# The transaction is read-only; the server is.
_MYSQL_READ_ONLY = frozenset({1792, 1836})
# The server runs with an option that forbids it: --read-only, or another one.
_MYSQL_OPTION = 1290
_SQLITE_READ_ONLY = "attempt to write a readonly database"


def judge_connect(error: BaseException) -> Verdict:
    """Return what a failure to connect says about the server.

    Args:
        error: What ``engine.connect()`` raised.
    """
    state, code = codes_of(error)
    text = str(getattr(error, "orig", error))
    if state in _BUSY or code in _MYSQL_BUSY or _BUSY_WORDS.search(text):
        return Verdict.BUSY
    return Verdict.DOWN if remedy_for(error) is None else Verdict.MISCONFIGURED


Cause: TypeAlias = Literal[
    "busy",
    "diverged",
    "down",
    "lag",
    "misconfigured",
    "role",
    "silent",
    "storage",
]
"""Why a replica does not serve, in one word: for counts, signals and log records."""

_CAUSES: dict[type[Exception], Cause] = {
    ReplicaLagsError: "lag",
    WrongRoleError: "role",
    DivergedReplicaError: "diverged",
    ReplicaSilentError: "silent",
    UnansweredError: "silent",
    ExhaustedError: "busy",
    TimeoutError: "busy",
}


def cause_of(error: BaseException) -> Cause:
    """Return in one word why a replica does not serve.

    Args:
        error: What a connect or a read raised, or why the replica is unfit.
    """
    for kind, cause in _CAUSES.items():
        if isinstance(error, kind):
            return cause
    verdict = judge_connect(error)
    if verdict is not Verdict.BUSY and is_storage_error(error):
        return "storage"
    return verdict.value


def refuses_but_lives(error: BaseException) -> bool:
    """Whether a server that refused a connection may still serve open ones.

    Args:
        error: What a connect raised.
    """
    if judge_connect(error) is not Verdict.DOWN:
        return True
    # The SQLSTATE is not enough: it is the same for a server that is starting, and
    # that has no open connections.
    return _SHUTTING_DOWN.search(str(getattr(error, "orig", error))) is not None


def is_read_only_error(error: DBAPIError) -> bool:
    """Whether a server refused a statement because it is a write."""
    state, code = codes_of(error)
    return (
        state == _READ_ONLY_TRANSACTION
        or code in _MYSQL_READ_ONLY
        or (code == _MYSQL_OPTION and "read-only" in str(error.orig).replace("_", "-"))
        or code == _SQLITE_READ_ONLY
    )


def failed_on_server(error: DBAPIError) -> bool:
    """Whether a read failed for a reason of the server's, and may succeed elsewhere.

    It conflicted with replay; the server's storage fails, or it shuts down; what it has
    prepared is of before a migration; or psycopg has found its socket closed, which it
    reports without invalidating the connection.
    """
    state, code = codes_of(error)
    return (
        state in _RECOVERY_CONFLICTS
        or _has_old_plan(error)
        or code in _MYSQL_LOST
        or is_storage_error(error)
        or str(error.orig) == _SOCKET_CLOSED
    )


def _has_old_plan(error: DBAPIError) -> bool:
    """Whether a statement was prepared before its table was changed.

    It fails on its connection for as long as that lives. Messages are translated, the
    names of the server's own functions are not.
    """
    told = getattr(error.orig, "diag", None)
    return getattr(told, "source_function", None) == "RevalidateCachedQuery"


def is_storage_error(error: BaseException) -> bool:
    """Whether a server that answers has failed inside: disk, memory, damaged data."""
    state, code = codes_of(error)
    return (
        state in _STORAGE
        or state.startswith(_SYSTEM_ERRORS)
        or is_file_error(error)
        or code in _MYSQL_STORAGE
        or code in _SQLITE_STORAGE
    )


def is_missing_object(error: BaseException) -> bool:
    """Whether a statement uses a table, column, function or other name that is missing.

    A replica may not have replayed its creation yet, or never gets its rows.

    Args:
        error: SQLAlchemy's, or the driver's.
    """
    state, code = codes_of(error)
    text = str(getattr(error, "orig", error))
    return (
        state in _MISSING
        or (state == _WRONG_VALUE and "enum" in text.lower())
        or code in _MYSQL_MISSING
        or (isinstance(code, str) and _SQLITE_MISSING.match(code) is not None)
    )


_MEMORY = 5.0  # seconds; errors further apart cost little, and say little
_REPEATED = 2  # errors


class _Seen(NamedTuple):
    times: int
    last: float


class StorageFailures:
    """Takes a replica out when its storage fails reads, and no other replica's does.

    A replica with a full disk or a damaged file still accepts connections and answers
    probes; only reads can tell. What fails on several replicas is caused by the
    statement or the data: it would fail anywhere, and must not take out one replica
    after the other. For the same reason the last one stays.

    Args:
        clock: Returns monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[Member[Engine], _Seen] = {}

    def note(
        self,
        member: Member[Engine],
        error: BaseException,
        pool: Pool[Engine],
        seconds: float,
    ) -> bool:
        """Count a read that storage has failed; return whether to avoid the replica.

        Args:
            member: The replica.
            error: The error.
            pool: Its pool.
            seconds: How long it is taken out, at least.
        """
        if not self._is_repeated(member):
            return False
        if all(other is member for other in pool.live):
            return False
        with contextlib.suppress(UnknownMemberError):  # it has been removed meanwhile
            pool.trip(member, seconds, error)
        return True

    def _is_repeated(self, member: Member[Engine]) -> bool:
        """Count an error; return whether it is not the first, and no other has any."""
        now = self._clock()
        seen = {m: what for m, what in self._seen.items() if now - what.last < _MEMORY}
        times = 1 + (seen[member].times if member in seen else 0)
        seen[member] = _Seen(times, now)
        # Without a lock, which a forked child might inherit locked: what two threads
        # count at the same moment may count once.
        self._seen = seen
        return times >= _REPEATED and len(seen) == 1
