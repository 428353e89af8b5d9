"""How a listener to a pool's ``connect`` event refuses a new connection."""

from __future__ import annotations

import functools
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.pool import NullPool

if TYPE_CHECKING:
    from collections.abc import Iterator


__all__ = ["closed_if_refused"]


@contextmanager
def closed_if_refused(connection: Any, record: Any) -> Iterator[None]:
    """Let a new connection be closed if what is asked of it inside raises.

    It is closed once: some drivers take a second time for an error, which SQLAlchemy
    would log with a traceback instead of the real cause.

    Args:
        connection: The DBAPI connection.
        record: Its record in the pool, whose attribute for it may be set.
    """
    try:
        yield
    except BaseException:
        if not _pool_closes():
            record.dbapi_connection = None  # or the pool might, if it is not a new one
            connection.close()
        raise


@functools.cache
def _pool_closes() -> bool:
    """Whether this version of SQLAlchemy closes what a listener has refused.

    2.1 does, and the later ones of 2.0; the earlier ones leave it open.
    """
    closed: list[bool] = []
    connection: Any = SimpleNamespace(close=lambda: closed.append(True))
    pool = NullPool(lambda: connection)

    @event.listens_for(pool, "connect")
    def refuse(*_: object) -> None:
        raise RuntimeError

    try:
        pool.connect()
    except RuntimeError:
        pass
    return bool(closed)
