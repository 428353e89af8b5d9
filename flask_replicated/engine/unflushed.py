"""Sessions with changes that were made before a block began.

A flush inside of ``using_master(pin=False)`` writes whatever its session has; what it
had when the block began is somebody else's write, and counts as any.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakSet

from sqlalchemy.orm.session import (
    _sessions,  # the only one that knows of every session, whoever made it
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Connection
    from sqlalchemy.orm import Session

__all__ = ["are_flushing", "unflushed_sessions"]


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
