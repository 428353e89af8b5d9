"""What was seen of one replica, judged beside what is known of its primary."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import (
    DivergedReplicaError,
    ReplicaLagsError,
    UnfitReplicaError,
    WrongRoleError,
)
from .lineage import Lineage
from .positions import Observation, Progress
from .primary_status import PrimaryStatus

if TYPE_CHECKING:
    from .kinship import Kinship

__all__ = ["History", "fault_of"]


class History:
    """What was seen of one server, by whoever looked, while this process lives.

    Args:
        status: What is known of the primary; nothing by default.
        kinship: Compares what it says of itself with what its primary says, if it is to
            be compared.

    Attributes:
        progress: How far it had got at each look.
        twin: Whether it was found to be the primary's own server.
        own: The same of it as it is now; None where nobody has found out yet.
        latest: What was seen last, as it was judged.
        kinship: As given.
        lags: Whether it was found unfit last, and for its lag alone.
    """

    def __init__(
        self, status: PrimaryStatus | None = None, kinship: Kinship | None = None
    ) -> None:
        self.kinship = kinship
        self.progress = Progress()
        self.twin = False
        self.own: bool | None = None
        self.latest = Observation()
        self.lags = False
        self._status = PrimaryStatus() if status is None else status
        self._lineage = Lineage(self._status)
        self._replicated = False
        self._started: float | None = None

    def found_twin(self, twin: bool) -> None:
        """Note whether its server was found to be the primary's own."""
        self.twin = self.own = twin

    def judge(
        self, found: Observation, now: float, progress: Progress | None = None
    ) -> Observation:
        """Return what was seen with its role, its lag and more, as far as it is known.

        One that has replicated and has no source any more was promoted, or cut off:
        either way it goes its own way.

        Args:
            found: What was seen.
            now: When, by a clock that never goes backwards.
            progress: Stands in for the attribute, for a thread of its own.
        """
        if found.primary is False:
            self._replicated = True
        if found.primary is False or found.started != self._started:
            self.own = None  # it is, or may be, another one than was compared
        self._started = found.started
        if (found.alone and self._replicated) or (found.doubtful and self.twin):
            found = found._replace(primary=True)
        if found.primary:
            self._lineage.found_primary()
            self.progress = Progress()
            lag = self._status.subscribed(found.slots) if found.slots else None
            found = found._replace(lag=lag, measured=lag is not None, own=self.own)
        else:
            own = (progress or self.progress).lag(found, now)
            lag, measured = self._status.lag(found, own, now)
            apart = self._lineage.judge(found, now)
            found = found._replace(lag=lag, measured=measured, apart=apart)
        self.latest = found
        return found


def fault_of(
    name: str, found: Observation, *, role_check: bool, max_lag: float | None
) -> UnfitReplicaError | None:
    """Return why a server must not be used as a replica, if so.

    Args:
        name: The replica's bind name.
        found: What was seen of it, as it was judged.
        role_check: Whether its role and history matter.
        max_lag: Seconds that it may be behind; None for any.
    """
    if role_check and found.primary:
        return WrongRoleError(name, found.own)
    if role_check and found.apart is not None:
        return DivergedReplicaError(name, found.apart)
    if max_lag is None or not found.measured:
        return None
    if found.lag is None or found.lag > max_lag:
        return ReplicaLagsError(name, found.lag, max_lag)
    return None
