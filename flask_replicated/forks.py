"""Connections that a forked process has inherited, and must not use.

Python tells of a fork that it makes itself, and then each engine begins anew. A server
that forks past Python, as uWSGI does without ``py-call-osafterfork``, tells nobody: so
the process is compared where a connection is taken from its pool.
"""

from __future__ import annotations

from os import getpid
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.exc import DisconnectionError

from .replica.sockets import leave_to_parent

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.pool import ConnectionPoolEntry

__all__ = ["UNTOLD", "refuse_inherited"]

UNTOLD = (
    "this process was forked, and Python was not told: the connections that it "
    "inherited are left to its parent, and new ones are opened. Other libraries are "
    "not so careful: with uWSGI set py-call-osafterfork = true (or lazy-apps = true)."
)
"""The warning of a process that finds out for itself that it was forked."""

_PROCESS = "flask_replicated.process"


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
