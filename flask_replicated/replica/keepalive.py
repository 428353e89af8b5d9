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

_IDLE_ARGUMENT = "keepalives_idle"
_TOLD = "flask_replicated.keepalive"
"""Key in a connection's ``info``: what its driver was told."""
_ARGUMENTS = {
    _IDLE_ARGUMENT: _IDLE,
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
    def limit(_dialect: Any, record: Any, _cargs: Any, cparams: dict[str, Any]) -> None:
        for name, value in arguments.items():
            cparams.setdefault(name, value)
        if record is not None:
            record.info[_TOLD] = cparams.get("keepalives", 1), cparams[_IDLE_ARGUMENT]

    if hasattr(socket, "TCP_KEEPIDLE"):  # not on each system
        event.listen(engine, "connect", _set_if_untold)


def _libpq_version(driver: Any) -> int:
    version = getattr(driver, "__libpq_version__", None)  # psycopg2's
    return int(driver.pq.version() if version is None else version)


def _set_if_untold(connection: Any, record: Any) -> None:
    """Set the options where the program has connected itself, and has set none.

    Its creator, or a listener to ``do_connect``, may not know of the arguments.
    """
    on, idle = record.info.pop(_TOLD, (1, None))
    if str(on) == "0":
        return
    own = None
    with contextlib.suppress(OSError), socket_of(connection) as sock:
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            own = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
    if own is not None and str(own) != str(idle) and own == _system_idle():
        _set_options(connection, record)


def _system_idle() -> int:
    with socket.socket() as fresh:
        return fresh.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)


def _set_options(connection: Any, _record: Any) -> None:
    with contextlib.suppress(OSError), socket_of(connection) as sock:
        if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
            return
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _OPTIONS.items():
            option = getattr(socket, name, None)
            if option is not None:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
