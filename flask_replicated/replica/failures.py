"""What a driver's error says about the server that raised it."""

from __future__ import annotations

import contextlib
import re
import time
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from balancers import UnknownMemberError

from .misconfigured import codes_of, remedy_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine
    from sqlalchemy.exc import DBAPIError

    from balancers import Member, Pool

__all__ = [
    "StorageFailures",
    "Verdict",
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
    """It lives, and has no connection to spare."""
    MISCONFIGURED = "misconfigured"
    """It lives, and never takes such a connection, or has another database."""


# Drivers give no SQLSTATE on connect, unless they speak the protocol themselves, so the
# English messages are known too. Another language of messages makes a server that is
# busy look down, which costs it a second.
_BUSY = frozenset({"53300", "53400"})
_MYSQL_BUSY = frozenset({1040, 1203, 1226})  # too many connections: all, an account's
_BUSY_WORDS = re.compile(
    r"too many (?:clients|connections)|remaining connection slots"
    r"|no more connections allowed"
)
_SHUTTING_DOWN = re.compile(r"the database system is shutting down")
_READ_ONLY_TRANSACTION = "25006"
# On a standby nothing else conflicts: it takes no serializable transactions. The
# second is a deadlock, of which replay is one side.
_RECOVERY_CONFLICTS = frozenset({"40001", "40P01"})
_SOCKET_CLOSED = "connection socket closed"
# A full disk, no memory, a limit of the server's; data, or an index, that is damaged; a
# server that is at odds with itself. All of class 58 are the system's.
_AILS = frozenset({"53100", "53200", "53400", "XX000", "XX001", "XX002"})
_SYSTEM_ERRORS = "58"
# A full disk; a file that cannot be read or written; what the engine has from the
# system; an index, or a table, that is damaged; no memory. And a node of Galera that is
# not of its cluster (1047): it answers whoever asks for no table.
_MYSQL_AILS = frozenset(
    {1021, 1024, 1026, 1030, 1034, 1037, 1038, 1041, 1047, 1114, 1194, 1195}
)
_SQLITE_AILS = frozenset(
    {
        "database disk image is malformed",
        "database or disk is full",
        "disk I/O error",
        "file is not a database",
    }
)
# A shutdown, or the end of this connection alone, while it is in use: not all drivers
# and not all versions of SQLAlchemy take these for its loss. ProxySQL has no server.
_MYSQL_LOST = frozenset({1053, 1077, 1079, 1152, 1184, 1927, 3168, 3169, 9001})
# A table, a column, a function, anything else that has a name, a schema.
_MISSING = frozenset({"42P01", "42703", "42883", "42704", "3F000"})
# A label of an enum has the state of any value that cannot be one.
_WRONG_VALUE = "22P02"
# A database, a column, a table (three times), a function (three times), an index that a
# hint names, what a view is made of.
_MYSQL_MISSING = frozenset({1049, 1054, 1051, 1109, 1146, 1128, 1305, 1630, 1176, 1356})
_SQLITE_MISSING = re.compile(
    r"no such (?:table|column|function|index|module|collation sequence)\b"
)
# The transaction is read only; the server is.
_MYSQL_READ_ONLY = frozenset({1792, 1836})
# The server runs with an option that forbids it: --read-only, or some other.
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


def refuses_but_lives(error: BaseException) -> bool:
    """Whether a server lives that has refused a connection, and may serve others.

    Args:
        error: What a connect raised.
    """
    if judge_connect(error) is not Verdict.DOWN:
        return True
    # The SQLSTATE would not do: it is the same while a server starts, which has ended
    # all its connections before.
    return _SHUTTING_DOWN.search(str(getattr(error, "orig", error))) is not None


def is_read_only_error(error: DBAPIError) -> bool:
    """Whether a server refused a statement because it may only read there."""
    state, code = codes_of(error)
    return (
        state == _READ_ONLY_TRANSACTION
        or code in _MYSQL_READ_ONLY
        or (code == _MYSQL_OPTION and "read-only" in str(error.orig).replace("_", "-"))
        or code == _SQLITE_READ_ONLY
    )


def failed_on_server(error: DBAPIError) -> bool:
    """Whether a read has failed on this connection for a reason of the server's own.

    Replay was in its way; it ails, or shuts down; or psycopg has seen its socket fail,
    and says so without giving the connection up.
    """
    state, code = codes_of(error)
    return (
        state in _RECOVERY_CONFLICTS
        or code in _MYSQL_LOST
        or is_storage_error(error)
        or str(error.orig) == _SOCKET_CLOSED
    )


def is_storage_error(error: DBAPIError) -> bool:
    """Whether a server that answers could not do its work: its disk, its memory."""
    state, code = codes_of(error)
    return (
        state in _AILS
        or state.startswith(_SYSTEM_ERRORS)
        or code in _MYSQL_AILS
        or code in _SQLITE_AILS
    )


def is_missing_object(error: DBAPIError) -> bool:
    """Whether a statement names what its server does not have.

    A replica may not have it yet: a table, a column, a function, a type, a schema.
    """
    state, code = codes_of(error)
    return (
        state in _MISSING
        or (state == _WRONG_VALUE and "enum" in str(error.orig).lower())
        or code in _MYSQL_MISSING
        or (isinstance(code, str) and _SQLITE_MISSING.match(code) is not None)
    )


_MEMORY = 5.0  # seconds; errors that lie further apart cost little, and tell little
_GOES_ON = 2  # errors


class _Seen(NamedTuple):
    times: int
    last: float


class StorageFailures:
    """Takes a replica out while its storage fails, and that of no other does.

    What fails on several of them is a matter of the statement or of the data: it
    would fail anywhere, and must not take out one replica after the other. For the
    same reason the last one stays.

    Args:
        clock: Returns seconds that never go backwards.
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
        """Hear that a replica's storage has failed a read; return whether it must rest.

        Args:
            member: The replica.
            error: What it said.
            pool: Its pool.
            seconds: For how long it is taken out at least, should it be.
        """
        if not self._goes_on_here(member):
            return False
        if all(other is member for other in pool.live):
            return False
        with contextlib.suppress(UnknownMemberError):  # it has been removed meanwhile
            pool.trip(member, seconds, error)
        return True

    def _goes_on_here(self, member: Member[Engine]) -> bool:
        """Note an error; whether it is not the first, and all others have none."""
        now = self._clock()
        seen = {m: what for m, what in self._seen.items() if now - what.last < _MEMORY}
        times = 1 + (seen[member].times if member in seen else 0)
        seen[member] = _Seen(times, now)
        # Without a lock, which a forked child might inherit closed: what two threads
        # note in one moment may count once.
        self._seen = seen
        return times >= _GOES_ON and len(seen) == 1
