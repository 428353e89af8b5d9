"""The socket under a DBAPI connection, and how to wake a thread that waits on it."""

from __future__ import annotations

import contextlib
import functools
import os
import select
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["fileno_of", "hang_up", "socket_of", "watch_socket"]


def fileno_of(connection: Any) -> int | None:
    """Return the file descriptor of a DBAPI connection's socket, if it shows one."""
    fileno = getattr(connection, "fileno", None)
    if fileno is None:  # PyMySQL keeps it to itself
        fileno = getattr(getattr(connection, "_sock", None), "fileno", None)
    if fileno is None:
        return None
    try:
        found = fileno()
    except Exception:  # noqa: BLE001 - drivers differ in how they say "closed"
        return None
    return found if isinstance(found, int) and found >= 0 else None


def hang_up(connection: Any) -> bool:
    """Shut down the socket of a connection that another thread may wait on.

    That thread gets the driver's own error for a lost connection, at once. The
    descriptor stays open, so its number cannot be taken by another socket meanwhile;
    its owner closes it.

    Returns:
        Whether a conversation was ended; False where no socket shows, or it had
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
    """Give the socket under a DBAPI connection, to ask the kernel about it.

    Nothing is to be sent or received over it. None where no socket shows, or it was
    closed.
    """
    own = getattr(connection, "_sock", None)
    if isinstance(own, socket.socket):  # PyMySQL's
        yield own
        return
    with _copied(connection) as copy:
        yield copy


@contextlib.contextmanager
def _copied(connection: Any) -> Iterator[socket.socket | None]:
    """Give a second descriptor of the socket, and close it again.

    It stays the same socket whatever the connection's owner does meanwhile.
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
        # A default timeout, or gevent, changes that for the driver, too.
        os.set_blocking(copy.fileno(), blocks)
        # Had it been closed before the copy was made, the number might be another's.
        yield copy if fileno_of(connection) == number else None


def watch_socket(connection: Any) -> Callable[[], object]:
    """Return a function that says whether a connection's socket can be read from.

    An idle connection has nothing to read. If its socket is readable, the server has
    closed it or had something to say that ends it. Asking the kernel takes about a
    microsecond; asking the server, a round trip.
    """
    number = fileno_of(connection)
    return _know_nothing if number is None else _watch(number)


def _know_nothing() -> None:
    """Know nothing of a connection whose driver does not show its socket."""


if hasattr(select, "poll"):

    def _watch(fd: int) -> Callable[[], object]:
        poll = select.poll()
        poll.register(fd, select.POLLIN | select.POLLHUP | select.POLLERR)
        return functools.partial(poll.poll, 0)

else:  # Windows

    def _watch(fd: int) -> Callable[[], object]:
        return lambda: select.select([fd], [], [], 0)[0]
