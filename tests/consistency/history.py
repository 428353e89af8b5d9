"""What clients remember of their requests."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Look", "Operation"]


class Look(NamedTuple):
    """One statement that read all registers.

    Attributes:
        server: Who answered it.
        versions: Of each register, by its number.
    """

    server: str
    versions: tuple[int, ...]


class Operation(NamedTuple):
    """One request: an invocation and its response.

    Attributes:
        client: Whose.
        began: When it was sent, in seconds of a clock that all clients share.
        ended: When it was answered.
        looks: What it has read, in this order; empty for a write.
        wrote: The register that it wrote, and the version that it got; None for a
            read.
        worker: The process that answered.
        carried: What the client sent of what its store had; several tokens are
            separated by commas. Empty if the store is not at the client.
        stored: What the answer told it to keep instead; empty for nothing.
        error: Why it failed; empty if it did not. Nothing is known then of what it
            has read or written.
    """

    client: int
    began: float
    ended: float
    looks: tuple[Look, ...] = ()
    wrote: tuple[int, int] | None = None
    worker: int = 0
    carried: str = ""
    stored: str = ""
    error: str = ""
