"""What is logged again and again, and not each time."""

from __future__ import annotations

import math
import time

__all__ = ["Seldom"]


class Seldom:
    """Tells once in some time that it is time.

    Two threads at one moment may both be told so; that is no harm to a log.

    Args:
        seconds: The time.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._next = -math.inf

    def is_due(self) -> bool:
        """Whether it is time; if so, it is not again until the time is over."""
        now = time.monotonic()
        due = now >= self._next
        if due:
            self._next = now + self._seconds
        return due
