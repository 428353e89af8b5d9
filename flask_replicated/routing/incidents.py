"""How often something out of the ordinary has happened to the reads of a bind.

Each is rare beside the reads, so counting may take a lock.
"""

from __future__ import annotations

from collections import Counter
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["OUTSIDE", "Incidents"]

OUTSIDE = "(outside a request)"
"""What stands for the endpoint of code that no request runs."""


class Incidents:
    """Counts failovers, reruns, refused writes and pins of one bind in this process.

    Nothing grows without bound: replicas and endpoints are the application's, and the
    causes and kinds are few.
    """

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Start at zero, as in a forked child: the counts so far are its parent's."""
        self._lock = Lock()
        self._failovers: dict[str, Counter[str]] = {}
        self._refused: Counter[str] = Counter()
        self._pins: Counter[str] = Counter()
        self._reruns = 0

    def failed_over(self, replica: str, cause: str) -> None:
        """Count a read that a replica did not serve, for this cause."""
        with self._lock:
            self._failovers.setdefault(replica, Counter())[cause] += 1

    def reran(self) -> None:
        """Count a statement that runs again elsewhere."""
        with self._lock:
            self._reruns += 1

    def refused(self, endpoint: str | None) -> None:
        """Count a write that was kept from a replica; None is outside a request."""
        with self._lock:
            self._refused[endpoint or OUTSIDE] += 1

    def pinned(self, kind: str) -> None:
        """Count a commit that pins its client: ``'position'`` or ``'time'``."""
        with self._lock:
            self._pins[kind] += 1

    def failovers(self, replicas: Collection[str]) -> dict[str, dict[str, int]]:
        """Return how many each replica has caused, by cause; those of others go."""
        with self._lock:
            for name in self._failovers.keys() - set(replicas):
                del self._failovers[name]
            return {name: dict(found) for name, found in self._failovers.items()}

    @property
    def reruns(self) -> int:
        """How many statements were run again elsewhere."""
        return self._reruns

    def refused_writes(self) -> dict[str, int]:
        """Return how many writes were kept from replicas, by endpoint."""
        with self._lock:
            return dict(self._refused)

    def pins(self) -> dict[str, int]:
        """Return how many commits have pinned their client, by kind."""
        with self._lock:
            return dict(self._pins)
