"""What a run is to do, and what it may find."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .checker import Kind

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["GUARANTEES", "PINS", "REDIS", "STORES", "Plan"]

GUARANTEES = ("none", "read_your_writes", "monotonic")
PINS = ("auto", "position", "time")
STORES = ("cookie", "session", "header", "redis")
REDIS = os.environ.get("REDIS_URL", "redis://localhost:6379/13")


@dataclass(frozen=True)
class Plan:
    """One run.

    Attributes:
        seed: Decides what clients do and what happens to the servers.
        operations: How many requests all clients together send.
        guarantee: ``REPLICATED_GUARANTEE``.
        pin: ``REPLICATED_PIN``.
        pin_seconds: ``REPLICATED_PIN_SECONDS``.
        lag: Seconds that a replica is behind at the most, by intent.
        clients: How many, each with its own cookies.
        parallel: How many requests at the same time every third client sends.
        workers: How many processes serve.
        promotes: Whether a replica is promoted halfway.
        store: ``REPLICATED_PIN_STORE``; Redis is the server of ``REDIS_URL``.
    """

    seed: int = 0
    operations: int = 20_000
    guarantee: str = "read_your_writes"
    pin: str = "auto"
    pin_seconds: float = 5.0
    lag: float = 1.0
    clients: int = 9
    parallel: int = 2
    workers: int = 2
    promotes: bool = True
    store: str = "cookie"

    @property
    def settings(self) -> Mapping[str, Any]:
        """Of the application."""
        return {
            "SECRET_KEY": "not-a-secret",
            "REPLICATED_GUARANTEE": self.guarantee,
            "REPLICATED_PIN": self.pin,
            "REPLICATED_PIN_SECONDS": self.pin_seconds,
            "REPLICATED_PIN_STORE": REDIS if self.store == "redis" else self.store,
        }

    @property
    def has_positions(self) -> bool:
        """Whether a pin is a position."""
        return self.pin != "time"

    @property
    def overwrites(self) -> bool:
        """Whether an answer of one worker may overwrite what another has stored.

        With a header the client keeps both; Redis keeps the maximum.
        """
        return self.workers > 1 and self.store in {"cookie", "session"}

    @property
    def promised(self) -> frozenset[Kind]:
        """What must hold. The order of writes always does: one server takes them."""
        promised = {
            Kind.MONOTONIC_WRITES,
            Kind.WRITES_FOLLOW_READS,
            Kind.LOST_WRITES,
        }
        in_time = self.lag + _MARGIN <= self.pin_seconds
        if self.guarantee != "none" and (self.has_positions or in_time):
            promised.add(Kind.READ_YOUR_WRITES)
        if self.guarantee == "monotonic" and self.has_positions:
            promised.add(Kind.MONOTONIC_READS)
        return frozenset(promised)


# Seconds: a loaded machine adds to the lag.
_MARGIN = 2.0
