"""TCP keepalive: the kernel ends a connection whose host does not respond.

Without it, a read that is sent to a host that is gone waits for a quarter of an hour,
which is how long a kernel retransmits; a read that waits for an answer from it waits
for hours. Keepalive ends no statement that runs: the host's kernel responds, however
busy its server is.
"""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Any

from sqlalchemy import event

from flask_replicated.system.sockets import socket_of

if TYPE_CHECKING:
    from sqlalchemy import Engine

__all__ = ["enable_keepalive"]

_IDLE = 4
"""Seconds without traffic before the kernel sends the first keepalive probe."""
_INTERVAL = 1
"""Seconds between two keepalive probes."""
_COUNT = 3
"""Unanswered keepalive probes after which the connection ends."""
_SECONDS = _IDLE + _COUNT * _INTERVAL
"""Seconds that sent data may stay unacknowledged: the same time in all."""

_LIBPQ = frozenset({"psycopg", "psycopg2"})
_KNOWS_USER_TIMEOUT = 120000  # the version of libpq

_ARGUMENTS = {
    "keepalives_idle": _IDLE,
    "keepalives_interval": _INTERVAL,
    "keepalives_count": _COUNT,
}
# By name, as no system has all of them.
_OPTIONS = {
    "TCP_KEEPIDLE": _IDLE,
    "TCP_KEEPINTVL": _INTERVAL,
    "TCP_KEEPCNT": _COUNT,
    "TCP_USER_TIMEOUT": 1000 * _SECONDS,
}


def enable_keepalive(engine: Engine) -> None:
    """Let the kernel end a connection whose host does not respond for 7 seconds.

    The bind's own ``connect_args`` and its URL take precedence. Nothing is done where
    the driver neither takes such arguments nor shows its socket.

    Args:
        engine: Before its first connection.
    """
    if engine.dialect.driver not in _LIBPQ:
        event.listen(engine, "connect", _set_options)
        return
    arguments = dict(_ARGUMENTS)
    if _libpq_version(engine.dialect.dbapi) >= _KNOWS_USER_TIMEOUT:
        arguments["tcp_user_timeout"] = 1000 * _SECONDS  # has an effect on Linux only

    @event.listens_for(engine, "do_connect")
    def limit(
        _dialect: Any, _record: Any, _cargs: Any, cparams: dict[str, Any]
    ) -> None:
        for name, value in arguments.items():
            cparams.setdefault(name, value)


def _libpq_version(driver: Any) -> int:
    version = getattr(driver, "__libpq_version__", None)  # psycopg2's
    return int(driver.pq.version() if version is None else version)


def _set_options(connection: Any, _record: Any) -> None:
    with contextlib.suppress(OSError), socket_of(connection) as sock:
        if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
            return
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _OPTIONS.items():
            option = getattr(socket, name, None)
            if option is not None:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
