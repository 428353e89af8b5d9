"""What an engine asks of the threads that watch its servers.

They belong to a room above this one, which imports it; so they are described here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["Background", "FleetLike", "MonitorLike", "OutagesLike"]


class Background(Protocol):
    """Threads that begin with the first routed read of a process.

    Attributes:
        idle: Whether they should be started. Asked at each connect, so it costs
            nothing.
    """

    idle: bool

    def stop(self) -> None:
        """Stop until the next routed read."""

    def after_fork(self) -> None:
        """Begin anew in a child process."""


class MonitorLike(Background, Protocol):
    """What probes the replicas in the background."""

    def start(self, owner: object) -> None:
        """Begin, unless it has begun already; end when *owner* is no more."""


class FleetLike(Background, Protocol):
    """What takes in new replicas and lets others go."""

    def start(self) -> None:
        """Obey orders, and begin to look for them, and to ask DNS for replicas."""

    def start_control(self) -> None:
        """Obey orders, and begin to look for them."""

    def renew_locks(self) -> None:
        """Replace locks that a thread which a child process has not may hold."""


class OutagesLike(Protocol):
    """What knows of the replicas' outages, and logs them."""

    def setting(self, name: str) -> str:
        """Return what has a replica's URL, in Python syntax."""

    def is_load(self, exhausted: set[str]) -> bool:
        """Whether nothing but load keeps any replica from serving.

        Args:
            exhausted: Those that had no connection to spare, by name.
        """

    def all_causes(self, seen: Collection[str] = ()) -> str:
        """Return why replicas are out, each cause in one word.

        Args:
            seen: Such words of which it may not know yet.
        """

    def all_misconfigured(self) -> bool:
        """Whether every replica is out for what the operator was told to correct."""
