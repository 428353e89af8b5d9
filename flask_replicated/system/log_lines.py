"""What log lines need: to be seldom, and to count in words."""

from __future__ import annotations

import math
import time

__all__ = ["Seldom", "counted"]


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


def counted(number: int, what: str) -> str:
    """Return a number of things, such as ``1 read`` or ``2 reads``."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
