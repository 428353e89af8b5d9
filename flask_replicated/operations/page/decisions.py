"""Where requests have read of late, and why."""

from __future__ import annotations

import time
from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

from flask_replicated.system.forks import ForkAware

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flask_replicated.routing.explanations import Explanation

__all__ = ["Decided", "Decisions"]

_MOST = 200


class _Kind(NamedTuple):
    """What reads have in common that are shown in one line."""

    method: str
    endpoint: str
    bind: str | None
    role: str
    reason: str


class Decided(NamedTuple):
    """Reads that were decided alike.

    Attributes:
        at: When the last of them was, in Unix seconds.
        reads: How many there were, since this line is kept.
        method: The method of their requests.
        endpoint: The endpoint.
        bind: The bind; None is the default one.
        server: The replica that got the last one, or ``'primary'``.
        reason: Why.
    """

    at: float
    reads: int
    method: str
    endpoint: str
    bind: str | None
    server: str
    reason: str


class Decisions(ForkAware):
    """The last decisions, one line for all that are alike; so a flood hides none.

    Up to 200 lines are kept; the one that was not repeated for longest goes first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget, in a forked child, what its parent has decided."""
        self._lock = Lock()
        self._lines: OrderedDict[_Kind, Decided] = OrderedDict()

    def note(self, method: str, endpoint: str, reads: Iterable[Explanation]) -> None:
        """Note the reads of one request.

        Args:
            method: Its method.
            endpoint: Its endpoint.
            reads: Where it has read, and why.
        """
        self.notice_fork()
        now = time.time()
        with self._lock:
            for bind, role, replica, reason in reads:
                kind = _Kind(method, endpoint, bind, role, reason)
                before = self._lines.pop(kind, None)
                self._lines[kind] = Decided(
                    now,
                    1 if before is None else before.reads + 1,
                    method,
                    endpoint,
                    bind,
                    replica or "primary",
                    reason,
                )
            while len(self._lines) > _MOST:
                self._lines.popitem(last=False)

    def latest(self, count: int) -> list[Decided]:
        """Return so many of them, the latest first."""
        with self._lock:
            lines = list(self._lines.values())
        return lines[: -count - 1 : -1]
