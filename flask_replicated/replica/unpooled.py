"""Connections that belong to no pool, for the look and for comparisons.

They are made and prepared as those of the engine's pool are. Pool events such as
``connect`` do not fire for them, and no limit of the pool counts them.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from sqlalchemy.pool.base import _ConnectionRecord

from .throttle import unlimited

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from sqlalchemy import Engine

    Surroundings = Callable[[], AbstractContextManager[object]]

__all__ = ["connect_unpooled", "prepare_unpooled"]


def connect_unpooled(engine: Engine, surroundings: Surroundings = nullcontext) -> Any:
    """Open a DBAPI connection as the engine's pool does, and keep it out of the pool.

    The engine's creator, or its ``do_connect`` listeners, get a record of its own.

    Args:
        engine: Whose server to connect to.
        surroundings: Returns the block to connect in: the application's context, in
            which a creator may read ``current_app``.

    Returns:
        The connection. The caller closes it, and calls :func:`prepare_unpooled`
        before anything else: that may have to wait for the server, too.

    Raises:
        Exception: Whatever the creator, a listener or the driver raises.
    """
    pool: Any = engine.pool  # read each time: dispose() replaces it
    # What the pool itself passes. The public base class of it keeps no info.
    record = _ConnectionRecord(pool, connect=False)
    with unlimited(), surroundings():
        return pool._invoke_creator(record)  # noqa: SLF001 - calls creator() and creator(record) alike


def prepare_unpooled(engine: Engine, connection: Any) -> None:
    """Do to such a connection what the engine's dialect does to each new one.

    So a dialect's own settings, and the engine's ``isolation_level``, hold for it.
    """
    dialect: Any = engine.dialect
    on_connect = dialect.on_connect_url(engine.url)
    if on_connect is not None:
        on_connect(connection)
    set_level = dialect._builtin_onconnect()  # noqa: SLF001 - the isolation_level has no public name
    if set_level is not None:
        set_level(connection, None)
