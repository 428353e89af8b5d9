"""How long a server's host may be silent before the kernel ends a connection to it.

Without these a read waits for a quarter of an hour for a host that is gone, and for
ever where it waits for an answer: so long does a kernel repeat what was not
acknowledged, and so little does it ask by itself. It ends no statement that runs: the
host's kernel answers for itself, however busy its server is.
"""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Any

from sqlalchemy import event

from flask_replicated.sockets import socket_of

if TYPE_CHECKING:
    from sqlalchemy import Engine

__all__ = ["limit_silence"]

_IDLE = 4
"""Seconds without a word before the kernel asks the host whether it is there."""
_INTERVAL = 1
"""Seconds between two such questions."""
_COUNT = 3
"""How many of them may go unanswered."""
_SECONDS = _IDLE + _COUNT * _INTERVAL
"""Seconds that what was sent may stay unacknowledged: as long as the others take."""

_LIBPQ = frozenset({"psycopg", "psycopg2"})
_KNOWS_USER_TIMEOUT = 120000  # the version of libpq

_ARGUMENTS = {
    "keepalives_idle": _IDLE,
    "keepalives_interval": _INTERVAL,
    "keepalives_count": _COUNT,
}
# By name: no system has all of them.
_OPTIONS = {
    "TCP_KEEPIDLE": _IDLE,
    "TCP_KEEPINTVL": _INTERVAL,
    "TCP_KEEPCNT": _COUNT,
    "TCP_USER_TIMEOUT": 1000 * _SECONDS,
}


def limit_silence(engine: Engine) -> None:
    """Let the kernel end a connection whose other host does not answer for 7 seconds.

    The bind's own ``connect_args``, or what its URL says, are stronger. Nothing is
    done where the driver neither takes such arguments nor shows its socket.

    Args:
        engine: Before its first connection.
    """
    if engine.dialect.driver not in _LIBPQ:
        event.listen(engine, "connect", _set_options)
        return
    arguments = dict(_ARGUMENTS)
    if _libpq_version(engine.dialect.dbapi) >= _KNOWS_USER_TIMEOUT:
        arguments["tcp_user_timeout"] = 1000 * _SECONDS  # without effect but on Linux

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
