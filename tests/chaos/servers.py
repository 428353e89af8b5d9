"""What a run needs of the servers that it lets faults strike, whosesoever they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Servers", "Standby"]


class Server(Protocol):
    """A database server that listens on 127.0.0.1.

    Attributes:
        name: What it tells who asks it.
    """

    name: str
    port: int

    def execute(self, sql: str) -> list[tuple[Any, ...]]:
        """Execute a statement, and return its rows."""

    def start(self) -> None:
        """Start it, if it is not running, and wait until it answers."""

    def restart(self) -> None:
        """Stop and start it."""

    def stop(self) -> None:
        """Shut it down."""

    def kill(self) -> None:
        """End it at once."""

    def freeze(self) -> None:
        """Let it take connections, and never answer."""

    def thaw(self) -> None:
        """Undo `freeze`."""


class Standby(Server, Protocol):
    """One that replicates."""

    def promote(self) -> None:
        """Let it be a primary."""

    def rebuild(self) -> None:
        """Let it replicate as before."""

    @property
    def is_promoted(self) -> bool:
        """Whether it is a primary now."""


class Servers(Protocol):
    """A primary and its standbys."""

    @property
    def primary(self) -> Server:
        """The server that takes writes."""

    @property
    def standbys(self) -> Sequence[Standby]:
        """Those that replicate from it."""

    def wait_replicated(self) -> None:
        """Wait until every standby shows what the primary has written."""

    def heal(self) -> None:
        """Bring every server back, in its first role."""
