"""What sessions hold: loaded objects, and changes that are not flushed yet.

A flush inside ``using_master(pin=False)`` writes whatever its session holds. Changes
that were made before the block began count as any other write. And what was loaded from
a replica before the view was known is loaded again, should that view use the primary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakSet

from sqlalchemy import inspect
from sqlalchemy.orm.session import (
    _sessions,  # the only one that knows of every session, whatever has made it
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Connection
    from sqlalchemy.orm import Session

__all__ = ["are_flushing", "expire_unmodified", "unflushed_sessions"]


def unflushed_sessions() -> WeakSet[Session]:
    """Return the sessions that have changes to flush."""
    known = (reference() for reference in _sessions.valuerefs())
    return WeakSet(
        session
        for session in known
        if session is not None and not session._is_clean()  # noqa: SLF001 - what flush() asks; session.new and its like copy what they find
    )


def are_flushing(sessions: Iterable[Session], connection: Connection) -> bool:
    """Whether one of these sessions is flushing over this connection."""
    return any(
        session._flushing  # noqa: SLF001 - nothing else tells
        and connection in _connections(session)
        for session in sessions
    )


def _connections(session: Session) -> Iterable[object]:
    transaction = session.get_transaction()
    return () if transaction is None else transaction._connections  # noqa: SLF001 - it has no public name


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
