"""Who waits for an answer over a connection, and for how long.

The driver knows whether an answer is outstanding, and the kernel when something was
last sent or received. So nothing has to be noted when a statement is sent.
"""

from __future__ import annotations

import select
import socket
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from flask_replicated.sockets import socket_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.pool import ConnectionPoolEntry

__all__ = ["PendingAnswer", "pending_answer", "shows_pending"]

_ACTIVE = 1  # libpq's number for a connection that has sent a command

# The last is PyMySQL's: while an answer is outstanding it has no result, and has read
# either no packet of it or several. One packet alone says that something was done.
_OUTSTANDING: dict[str, Callable[[Any], bool]] = {
    "psycopg": lambda driver: driver.pgconn.transaction_status == _ACTIVE,
    "psycopg2": lambda driver: (
        not driver.closed and driver.get_transaction_status() == _ACTIVE
    ),
    "pymysql": lambda driver: driver._result is None and driver._next_seq_id != 2,  # noqa: PLR2004, SLF001 - as said; it has no other sign
}
# Of the kernel's report, in milliseconds and bytes: how long ago something was sent,
# and received; how much was received. The last is there from Linux 4.1 on.
_REPORT = struct.Struct("=44xI4xI72xQ")
_KNOWS = hasattr(socket, "TCP_INFO") and hasattr(select, "poll")


class PendingAnswer(NamedTuple):
    """Somebody's wait for the next word over one connection.

    Attributes:
        record: What the connection's pool knows of it.
        connection: The driver's connection.
        received: Bytes that it has received so far. With one more it is another wait.
        silent: Seconds since anything was sent or received.
        sent: Seconds since anything was sent.
        port: This side's TCP port.
    """

    record: ConnectionPoolEntry
    connection: Any
    received: int
    silent: float
    sent: float
    port: int


def shows_pending(driver: str) -> bool:
    """Whether the waits over a driver's connections can be known here."""
    return _KNOWS and driver in _OUTSTANDING


def pending_answer(driver: str, record: ConnectionPoolEntry) -> PendingAnswer | None:
    """Return the wait over a pool's connection, if somebody waits.

    None as well where nothing tells: the connection was closed, or is no TCP one.

    Args:
        driver: SQLAlchemy's name for it, of those that :func:`can_tell`.
        record: What the pool knows of the connection.
    """
    connection = record.dbapi_connection
    if connection is None:
        return None
    try:
        if not _OUTSTANDING[driver](connection):
            return None
        with socket_of(connection) as sock:
            return None if sock is None else _asked(record, connection, sock)
    except Exception:  # noqa: BLE001 - closed meanwhile; drivers differ in what they say
        return None


def _asked(
    record: ConnectionPoolEntry, connection: Any, sock: socket.socket
) -> PendingAnswer | None:
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or _has_words(sock):
        return None
    report = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _REPORT.size)
    if len(report) < _REPORT.size:
        return None
    sent, heard, received = _REPORT.unpack(report)
    return PendingAnswer(
        record,
        connection,
        received,
        min(sent, heard) / 1000,
        sent / 1000,
        sock.getsockname()[1],
    )


def _has_words(sock: socket.socket) -> bool:
    """Whether there is something to read: then it is this process that is late."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
