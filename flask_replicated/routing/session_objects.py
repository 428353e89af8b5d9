"""What sessions hold: loaded objects, and changes that are not flushed yet.

A flush inside ``using_master(pin=False)`` writes whatever its session holds. Changes
that were made before the block began count as any other write. And what was loaded from
a replica before the view was known is loaded again, should that view use the primary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakSet

from sqlalchemy import inspect

from flask_replicated import _private

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from sqlalchemy import Connection
    from sqlalchemy.orm import Session

__all__ = ["are_flushing", "expire_unmodified", "unflushed_sessions"]


def unflushed_sessions() -> WeakSet[Session]:
    """Return the sessions that have changes to flush."""
    return WeakSet(_private.unflushed_sessions())


def are_flushing(sessions: Iterable[Session], connection: Connection) -> bool:
    """Whether one of these sessions is flushing over this connection."""
    return any(
        _private.is_flushing(session) and connection in _connections(session)
        for session in sessions
    )


def _connections(session: Session) -> Collection[object]:
    transaction = session.get_transaction()
    return () if transaction is None else _private.connections_of(transaction)


def expire_unmodified(session: Session) -> None:
    """Let a session load its objects again when they are next used.

    Objects that were changed, added or deleted are left as they are.
    """
    for loaded in list(session.identity_map.values()):
        state = inspect(loaded)
        if state.modified or loaded in session.deleted:
            continue
        mapper = state.mapper
        names = [*mapper.column_attrs.keys(), *mapper.relationships.keys()]
        # By name: without names related objects may be expired too, changed or not.
        names = [name for name in names if name in state.dict]
        if names:
            session.expire(loaded, names)
