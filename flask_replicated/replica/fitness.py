"""What was seen of one replica, judged beside what is known of its primary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flask_replicated.errors import (
    DivergedReplicaError,
    ReplicaLagsError,
    UnfitReplicaError,
    WrongRoleError,
)

from .primary_status import PrimaryStatus
from .replica_status import ReplayHistory, ReplicaReport, observe, sleep_on_server
from .timeline import Timeline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .replica_status import ReportQuery
    from .same_database import SameDatabaseCheck

__all__ = ["ReplicaHistory", "unfit_error"]

_MOMENTS = 3
"""How often a server is asked again that may only just have something to replay."""


class ReplicaHistory:
    """What was seen of one server, by whoever looked, while this process lives.

    Args:
        status: What is known of the primary; nothing by default.
        kinship: Compares what it says of itself with what its primary says, if it is to
            be compared.
        max_lag: Seconds that it may be behind; None for any.

    Attributes:
        progress: How far it had got at each look.
        twin: Whether it was found to be the primary's own server.
        own: The same of it as it is now; None where nobody has found out yet.
        latest: What was seen last, as it was judged.
        kinship: As given.
        lags: Whether it was found unfit last, and for its lag alone.
    """

    def __init__(
        self,
        status: PrimaryStatus | None = None,
        kinship: SameDatabaseCheck | None = None,
        max_lag: float | None = None,
    ) -> None:
        self.kinship = kinship
        self.progress = ReplayHistory()
        self.twin = False
        self.own: bool | None = None
        self.latest = ReplicaReport()
        self.lags = False
        self._status = PrimaryStatus() if status is None else status
        self._lineage = Timeline(self._status)
        self._max_lag = max_lag
        self._replicated = False
        self._started: float | None = None

    def found_twin(self, twin: bool) -> None:
        """Note whether its server was found to be the primary's own."""
        self.twin = self.own = twin

    def settle(
        self,
        connection: Any,
        observers: Iterable[ReportQuery],
        clock: Callable[[], float],
        progress: ReplayHistory | None = None,
    ) -> ReplicaReport:
        """Ask a server what it is; give it a few moments before it is too far behind.

        Behind a primary that was idle, or out, the last transaction is old, and what is
        not replayed may have only just come. Nobody knows until it is replayed.

        Args:
            connection: A DBAPI connection.
            observers: What to ask, each for when the one before fails.
            clock: Returns seconds that never go backwards.
            progress: As for :meth:`judge`.

        Raises:
            Exception: The driver's, if it does not answer.
        """
        found = self.judge(observe(connection, *observers), clock(), progress)
        for _ in range(_MOMENTS):
            replays = found.pending and found.received is not None
            if not replays or not _too_far(found, self._max_lag):
                break
            observe(connection, sleep_on_server)
            found = self.judge(observe(connection, *observers), clock(), progress)
        return found

    def judge(
        self, found: ReplicaReport, now: float, progress: ReplayHistory | None = None
    ) -> ReplicaReport:
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
        own = (progress or self.progress).lag(found, now)
        if found.primary:
            self._lineage.found_primary()
            lag = self._status.subscribed(found.slots) if found.slots else None
            found = found._replace(lag=lag, measured=lag is not None, own=self.own)
        else:
            lag, measured = self._status.lag(found, own, now)
            apart = self._lineage.judge(found, now)
            found = found._replace(lag=lag, measured=measured, apart=apart)
        self.latest = found
        return found


def unfit_error(
    name: str, found: ReplicaReport, *, role_check: bool, max_lag: float | None
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
    if max_lag is not None and _too_far(found, max_lag):
        return ReplicaLagsError(name, found.lag, max_lag)
    return None


def _too_far(found: ReplicaReport, max_lag: float | None) -> bool:
    if max_lag is None or not found.measured:
        return False
    return found.lag is None or found.lag > max_lag
