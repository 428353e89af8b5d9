"""Forked child processes: what they inherit from their parent, and must not use.

Python tells of a fork that it makes itself, and then each application begins anew. A
server that forks past Python, as uWSGI does without ``py-call-osafterfork``, tells
nothing. So the process is compared where a connection is made or taken from its pool,
and wherever a thread, a lock or a file descriptor of the parent's would mislead. The
order in which one bind begins anew is in ``RoutedEngine.after_fork()``.
"""

from __future__ import annotations

import logging
import os
from os import getpid
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from sqlalchemy import event
from sqlalchemy.exc import DisconnectionError

from .sockets import fileno_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine
    from sqlalchemy.pool import ConnectionPoolEntry

__all__ = [
    "UNTOLD",
    "ForkAware",
    "in_this_process",
    "leave_to_parent",
    "refuse_inherited",
]

logger = logging.getLogger("flask_replicated")

UNTOLD = (
    "this process was forked, and Python was not told: the connections that it "
    "inherited are left to its parent, and new ones are opened. Other libraries are "
    "not so careful: with uWSGI set py-call-osafterfork = true (or lazy-apps = true)."
)
"""The warning of a process that finds out for itself that it was forked."""

_PROCESS = "flask_replicated.process"


def in_this_process() -> Callable[[], bool]:
    """Return a function that says whether it runs in the process that is running now.

    In a forked child it does not: threads of the parent do not run there, and locks
    that they held are never released.
    """
    process = getpid()
    return lambda: getpid() == process


class ForkAware:
    """Something that must begin anew in a forked child, which may find out late.

    Attributes:
        process: The id of the process whose connections it has.
    """

    def __init__(self) -> None:
        self.process = getpid()
        self._renewing = Lock()
        _fork_aware.add(self)

    def was_forked(self) -> bool:
        """Whether this is a forked child in which it has not begun anew yet."""
        return self.process != getpid()

    def notice_fork(self) -> None:
        """Begin anew in a forked child of which Python was not told."""
        if not self.was_forked():
            return
        with self._renewing:
            if self.was_forked():  # unless another thread has done it
                logger.warning(UNTOLD)
                _after_fork()

    def begin_anew(self) -> None:
        """Forget, in a child process, the connections that are the parent's."""
        raise NotImplementedError

    def after_fork(self) -> None:
        """Begin anew, and let other threads know."""
        self.begin_anew()
        self._renewing = Lock()
        # Last: other threads wait until it is so.
        self.process = getpid()


# For the hook below, which can never be taken back: one for all, and it keeps none of
# them alive.
_fork_aware: WeakSet[ForkAware] = WeakSet()


def _after_fork() -> None:
    for one in list(_fork_aware):
        one.after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)


def refuse_inherited(engine: Engine) -> None:
    """Replace each pooled connection that another process has opened.

    The parent still uses it, so nothing is sent over it, not even a goodbye.

    Args:
        engine: The engine of a server; a file has no connection to share.
    """

    @event.listens_for(engine, "connect", insert=True)
    def stamp(_connection: Any, record: ConnectionPoolEntry) -> None:
        record.info[_PROCESS] = getpid()

    @event.listens_for(engine, "checkout", insert=True)
    def refuse(connection: Any, record: ConnectionPoolEntry, _proxy: Any) -> None:
        if record.info.get(_PROCESS, getpid()) != getpid():
            leave_to_parent(connection)
            raise DisconnectionError("opened by the process that this was forked from")


def leave_to_parent(connection: Any) -> None:
    """Cut a DBAPI connection in a forked child off from its server.

    Its socket is the parent's, too: whatever is sent or read here, the parent would
    miss. A greenlet that waits on it goes on in the child, and a driver that is done
    with it says goodbye. So its descriptor leads to the null device from now on; the
    parent's own is as it was.
    """
    number = fileno_of(connection)
    if number is None:
        return
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, number, inheritable=False)
    os.close(nowhere)
