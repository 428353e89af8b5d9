"""The objects that a session has loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import inspect

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ["expire_unmodified"]


def expire_unmodified(session: Session) -> None:
    """Let a session load its objects again when they are next used.

    What was changed, added or deleted is left as it is.
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
