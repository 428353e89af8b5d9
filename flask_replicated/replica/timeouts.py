"""How long a replica may take to accept a connection, in each driver's own words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from sqlalchemy import event

from .hosts import share_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

__all__ = ["limit_connect", "limit_of"]

_TIMEOUT_ARGUMENT = {
    "psycopg": "connect_timeout",
    "psycopg2": "connect_timeout",
    "pymysql": "connect_timeout",
    "mysqldb": "connect_timeout",
    "mariadbconnector": "connect_timeout",
    "mysqlconnector": "connection_timeout",
    "pg8000": "timeout",
    "asyncpg": "timeout",
    "aiomysql": "connect_timeout",
    "asyncmy": "connect_timeout",
}


def limit_of(driver: str) -> str | None:
    """Return what a driver's limit on connecting is called, if it has one."""
    return _TIMEOUT_ARGUMENT.get(driver)


def limit_connect(
    engine: Engine, seconds: int, read_timeout: float | None
) -> Callable[[Any, Any], None] | None:
    """Bound the time to connect; return what lifts the bound from a new connection."""
    argument = limit_of(engine.driver)
    if argument is None:
        return None
    # A second more than the server has, so that it is the one to say so.
    read_seconds = None if read_timeout is None else math.ceil(read_timeout) + 1
    others: dict[str, float] = {}
    if engine.driver == "mysqldb" and read_seconds is not None:
        others["read_timeout"] = read_seconds
    lift: Callable[[Any, Any], None] | None = None
    if engine.driver == "pg8000":
        lift = _lift_socket_limit
    if engine.driver == "pymysql":
        lift = _limit_greeting(engine, seconds, read_seconds)

    @event.listens_for(engine, "do_connect")
    def limit(dialect: Any, _record: Any, _cargs: Any, cparams: dict[str, Any]) -> None:
        cparams.setdefault(argument, share_of(seconds, dialect, cparams))
        for name, value in others.items():
            cparams.setdefault(name, value)

    return lift


def _lift_socket_limit(connection: Any, _record: Any) -> None:
    """Let pg8000 wait for answers; its limit on connecting is one on every read."""
    connection._usock.settimeout(None)  # noqa: SLF001 - it has no other name


def _limit_greeting(
    engine: Engine, seconds: int, read_seconds: int | None
) -> Callable[[Any, Any], None]:
    """Bound the wait for the server's first words, which PyMySQL does not.

    Its ``connect_timeout`` ends when the kernel has accepted, and a server that hangs
    lets the kernel accept. So the limit on reads stands in until it has spoken.
    """
    ours = False

    @event.listens_for(engine, "do_connect")
    def limit(
        _dialect: Any, _record: Any, _cargs: Any, cparams: dict[str, Any]
    ) -> None:
        nonlocal ours
        if cparams.get("read_timeout") is None:
            ours = True
            cparams["read_timeout"] = seconds

    def lift(connection: Any, _record: Any) -> None:
        if ours:
            connection._read_timeout = read_seconds  # noqa: SLF001 - it has no other name

    return lift
