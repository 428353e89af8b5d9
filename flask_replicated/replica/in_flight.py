"""Which connections wait for an answer, and for how long.

The driver knows whether an answer is outstanding, and the kernel knows when something
was last sent or received. So nothing has to be recorded when a statement is sent.
"""

from __future__ import annotations

import select
import socket
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from flask_replicated._private import pymysql_awaits_answer
from flask_replicated.system.sockets import socket_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.pool import ConnectionPoolEntry

__all__ = ["PendingAnswer", "pending_answer", "shows_pending"]

_ACTIVE = 1  # libpq's number for a connection that has sent a command

_OUTSTANDING: dict[str, Callable[[Any], bool]] = {
    "psycopg": lambda driver: driver.pgconn.transaction_status == _ACTIVE,
    "psycopg2": lambda driver: (
        not driver.closed and driver.get_transaction_status() == _ACTIVE
    ),
    "pymysql": pymysql_awaits_answer,
}
# Fields of the kernel's TCP_INFO, in milliseconds and bytes: time since something was
# sent, and received; bytes received. The last one exists from Linux 4.1 on.
_TCP_INFO = struct.Struct("=44xI4xI72xQ")
_SUPPORTED = hasattr(socket, "TCP_INFO") and hasattr(select, "poll")


class PendingAnswer(NamedTuple):
    """A statement's wait for the server's next bytes over one connection.

    Attributes:
        record: The connection pool's entry of the connection.
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
    """Whether pending answers over a driver's connections can be seen here."""
    return _SUPPORTED and driver in _OUTSTANDING


def pending_answer(driver: str, record: ConnectionPoolEntry) -> PendingAnswer | None:
    """Return the answer that a pooled connection waits for, if any.

    None also where that cannot be seen: the connection was closed, or is not TCP.

    Args:
        driver: SQLAlchemy's name for it, one that :func:`shows_pending`.
        record: The connection pool's entry of the connection.
    """
    connection = record.dbapi_connection
    if connection is None:
        return None
    try:
        if not _OUTSTANDING[driver](connection):
            return None
        with socket_of(connection) as sock:
            return None if sock is None else _measured(record, connection, sock)
    except Exception:  # noqa: BLE001 - closed meanwhile; drivers differ in what they say
        return None


def _measured(
    record: ConnectionPoolEntry, connection: Any, sock: socket.socket
) -> PendingAnswer | None:
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or _is_readable(sock):
        return None
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    if len(info) < _TCP_INFO.size:
        return None
    sent, heard, received = _TCP_INFO.unpack(info)
    return PendingAnswer(
        record,
        connection,
        received,
        min(sent, heard) / 1000,
        sent / 1000,
        sock.getsockname()[1],
    )


def _is_readable(sock: socket.socket) -> bool:
    """Whether an answer has arrived: then it is this process that is late."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
