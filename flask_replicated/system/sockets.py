"""The socket under a DBAPI connection, and how to wake a thread that waits on it."""

from __future__ import annotations

import contextlib
import functools
import os
import select
import socket
from typing import TYPE_CHECKING, Any

from flask_replicated._private import driver_socket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["fileno_of", "hang_up", "socket_of", "watch_socket"]


def fileno_of(connection: Any) -> int | None:
    """Return the file descriptor of a DBAPI connection's socket, if it shows one."""
    fileno = getattr(connection, "fileno", None)
    if fileno is None:
        fileno = getattr(driver_socket(connection), "fileno", None)
    if fileno is None:  # psycopg's under SQLAlchemy's async adapter
        fileno = getattr(_under_adapter(connection), "fileno", None)
    if fileno is None:
        return None
    try:
        found = fileno()
    except Exception:  # noqa: BLE001 - drivers differ in how they say "closed"
        return None
    return found if isinstance(found, int) and found >= 0 else None


def _under_adapter(connection: Any) -> Any:
    """Return the async driver's own connection; None if there is no adapter."""
    return getattr(connection, "driver_connection", None)


def hang_up(connection: Any) -> bool:
    """Shut down a connection that another thread may wait on.

    That thread gets the driver's own error for a lost connection, at once. The file
    descriptor stays open, so its number cannot be reused by another socket meanwhile;
    the connection's owner closes it.

    Returns:
        Whether it was shut down; False where the driver shows no socket, or it had
        ended already.
    """
    with _copied(connection) as sock:
        if sock is None:
            return False
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:  # it has ended already
            return False
    return True


@contextlib.contextmanager
def socket_of(connection: Any) -> Iterator[socket.socket | None]:
    """Give the socket under a DBAPI connection, to get or set its options.

    Nothing must be sent or received over it. None where the driver shows no socket, or
    it is closed.
    """
    own = driver_socket(connection)
    if isinstance(own, socket.socket):
        yield own
        return
    with _copied(connection) as copy:
        yield copy


@contextlib.contextmanager
def _copied(connection: Any) -> Iterator[socket.socket | None]:
    """Give a duplicate of the socket's descriptor, and close it again.

    It stays the same socket even if the connection's owner closes it meanwhile.
    """
    number = fileno_of(connection)
    try:
        blocks = number is not None and os.get_blocking(number)
        copy = None if number is None else socket.socket(fileno=os.dup(number))
    except OSError:
        copy = None
    if copy is None:
        yield None
        return
    with copy:
        # Python sets this by its default timeout, or gevent, for both descriptors.
        os.set_blocking(copy.fileno(), blocks)
        # If it was closed before it was duplicated, this may be another socket.
        yield copy if fileno_of(connection) == number else None


def watch_socket(connection: Any) -> Callable[[], object]:
    """Return a function that tells whether a connection's socket is readable.

    An idle connection has nothing to read. If its socket is readable, the server has
    closed it, or has sent an error that ends it. Asking the kernel takes about a
    microsecond; asking the server takes a round trip. An event loop reads all by
    itself: there the driver knows whether the connection has been closed.
    """
    is_closed: Callable[[], object] | None = getattr(
        _under_adapter(connection), "is_closed", None
    )
    if is_closed is not None:  # asyncpg's
        return is_closed
    number = fileno_of(connection)
    return _never_readable if number is None else _watch(number)


def _never_readable() -> None:
    """Stand in where the driver does not show its socket."""


if hasattr(select, "poll"):

    def _watch(fd: int) -> Callable[[], object]:
        poll = select.poll()
        poll.register(fd, select.POLLIN | select.POLLHUP | select.POLLERR)
        return functools.partial(poll.poll, 0)

else:  # Windows

    def _watch(fd: int) -> Callable[[], object]:
        return lambda: select.select([fd], [], [], 0)[0]
