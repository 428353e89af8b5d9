"""What owns the binds of an application, such as Flask-SQLAlchemy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import URL, Engine

    from .compatibility import PrimaryBind

__all__ = ["BindOwner"]


class BindOwner(Protocol):
    """An adapter for the extension that owns the engines of an application.

    Attributes:
        setting: The key of ``app.config`` that names the binds.
        default: The key of the default engine.
        engines: The engines by key.
        grows: Whether :meth:`make_engine` can make more of them.
    """

    setting: str
    default: str | None
    engines: dict[str | None, Engine]
    grows: bool

    def primary_bind(self, owner: str | None) -> PrimaryBind:
        """Return the primary of a bind; None is the default one."""

    def owns_tables(self, name: str) -> bool:
        """Whether models are known to be on this bind."""

    def make_engine(self, name: str, bind: str | URL | Mapping[str, Any]) -> Engine:
        """Make an engine as the extension makes those of its setting."""
