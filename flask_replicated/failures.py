"""What a driver's error says about the server that raised it."""

from __future__ import annotations

import re
from enum import Enum

from sqlalchemy.exc import DBAPIError

from .errors import MisconfiguredReplicaError

__all__ = [
    "Verdict",
    "judge_connect",
    "refused_as_write",
    "storage_failed",
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
_READ_ONLY_TRANSACTION = "25006"
# On a standby nothing else conflicts: it takes no serializable transactions. The
# second is a deadlock, of which replay is one side.
_RECOVERY_CONFLICTS = frozenset({"40001", "40P01"})
_SOCKET_CLOSED = "connection socket closed"
# A full disk; data, or an index, that is damaged. All of class 58 are the system's.
_STORAGE = frozenset({"53100", "XX001", "XX002"})
_SYSTEM_ERRORS = "58"
# A full disk; a file that cannot be read or written; what the engine has from the
# system; an index, or a table, that is damaged.
_MYSQL_STORAGE = frozenset({1021, 1024, 1026, 1030, 1034, 1194, 1195})
_SQLITE_STORAGE = frozenset(
    {
        "database disk image is malformed",
        "database or disk is full",
        "disk I/O error",
        "file is not a database",
    }
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

    Replay was in its way; or its storage; or psycopg has seen its socket fail, and
    says so without giving the connection up.
    """
    state, _ = _codes(error)
    return (
        state in _RECOVERY_CONFLICTS
        or storage_failed(error)
        or str(error.orig) == _SOCKET_CLOSED
    )


def storage_failed(error: DBAPIError) -> bool:
    """Whether a server could not read or write its files, or not make sense of them."""
    state, code = _codes(error)
    return (
        state in _STORAGE
        or state.startswith(_SYSTEM_ERRORS)
        or code in _MYSQL_STORAGE
        or code in _SQLITE_STORAGE
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
