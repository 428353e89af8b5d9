"""What a driver's error says about the server that raised it."""

from __future__ import annotations

import re
from enum import Enum

from sqlalchemy.exc import DBAPIError

from .errors import MisconfiguredReplicaError

__all__ = [
    "Verdict",
    "ails",
    "judge_connect",
    "names_missing",
    "refused_as_write",
    "turns_away",
    "unanswerable",
]


class Verdict(Enum):
    """What a failure to connect says about a server."""

    DOWN = "down"
    """It cannot be reached, or is starting up or shutting down."""
    BUSY = "busy"
    """It lives, and has no connection to spare."""
    MISCONFIGURED = "misconfigured"
    """It lives, and does not know the account or the database, or has another one."""


# SQLSTATEs; drivers do not give them on connect, unless they speak the protocol
# themselves, so the English messages are known too. Another language of messages
# makes a server that is busy look down, which costs it a second.
_STATES = {
    "53300": Verdict.BUSY,
    "53400": Verdict.BUSY,
    "3D000": Verdict.MISCONFIGURED,
    "28000": Verdict.MISCONFIGURED,
    "28P01": Verdict.MISCONFIGURED,
}
_MYSQL = {
    1040: Verdict.BUSY,  # too many connections
    1203: Verdict.BUSY,  # the account has too many
    1226: Verdict.BUSY,  # the account has used up a limit
    1044: Verdict.MISCONFIGURED,  # no access to the database
    1045: Verdict.MISCONFIGURED,  # wrong account or password
    1049: Verdict.MISCONFIGURED,  # no such database
}
_MESSAGES = (
    (
        re.compile(r"too many (?:clients|connections)|remaining connection slots"),
        Verdict.BUSY,
    ),
    (
        re.compile(
            r"(?:database|role) \".*\" does not exist"
            r"|(?:password|authentication) (?:authentication )?failed"
            r"|no pg_hba\.conf entry|permission denied for database"
        ),
        Verdict.MISCONFIGURED,
    ),
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
    if isinstance(error, MisconfiguredReplicaError):
        return Verdict.MISCONFIGURED
    state, code = _codes(error)
    verdict = _STATES.get(state) or (_MYSQL.get(code) if type(code) is int else None)
    if verdict is not None:
        return verdict
    text = str(getattr(error, "orig", error))
    return next((v for pattern, v in _MESSAGES if pattern.search(text)), Verdict.DOWN)


def turns_away(error: BaseException) -> bool:
    """Whether a server lives that has refused a connection, and may serve others.

    Args:
        error: What a connect raised.
    """
    if judge_connect(error) is not Verdict.DOWN:
        return True
    # The SQLSTATE would not do: it is the same while a server starts, which has ended
    # all its connections before.
    return _SHUTTING_DOWN.search(str(getattr(error, "orig", error))) is not None


def refused_as_write(error: DBAPIError) -> bool:
    """Whether a server refused a statement because it may only read there."""
    state, code = _codes(error)
    return (
        state == _READ_ONLY_TRANSACTION
        or code in _MYSQL_READ_ONLY
        or (code == _MYSQL_OPTION and "read-only" in str(error.orig).replace("_", "-"))
        or code == _SQLITE_READ_ONLY
    )


def unanswerable(error: DBAPIError) -> bool:
    """Whether a read has failed on this connection for a reason of the server's own.

    Replay was in its way; it ails, or shuts down; or psycopg has seen its socket fail,
    and says so without giving the connection up.
    """
    state, code = _codes(error)
    return (
        state in _RECOVERY_CONFLICTS
        or code in _MYSQL_LOST
        or ails(error)
        or str(error.orig) == _SOCKET_CLOSED
    )


def ails(error: DBAPIError) -> bool:
    """Whether a server that answers could not do its work: its disk, its memory."""
    state, code = _codes(error)
    return (
        state in _AILS
        or state.startswith(_SYSTEM_ERRORS)
        or code in _MYSQL_AILS
        or code in _SQLITE_AILS
    )


def names_missing(error: DBAPIError) -> bool:
    """Whether a statement names what its server does not have.

    A replica may not have it yet: a table, a column, a function, a type, a schema.
    """
    state, code = _codes(error)
    return (
        state in _MISSING
        or (state == _WRONG_VALUE and "enum" in str(error.orig).lower())
        or code in _MYSQL_MISSING
        or (isinstance(code, str) and _SQLITE_MISSING.match(code) is not None)
    )


def _codes(error: BaseException) -> tuple[str, object]:
    """Return an error's SQLSTATE, or '', and the first thing that its driver says."""
    driver = error.orig if isinstance(error, DBAPIError) else error
    state = getattr(driver, "sqlstate", None) or getattr(driver, "pgcode", None)
    arguments = getattr(driver, "args", None) or (None,)
    first = arguments[0]
    if isinstance(first, dict):  # pg8000
        state, first = state or first.get("C"), first.get("M")
    return str(state or ""), first if isinstance(first, int | str) else None
