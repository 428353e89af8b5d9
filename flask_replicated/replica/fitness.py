"""Whether a server may be used as a replica: its role, its timeline, its lag.

A promoted standby, one that does not follow the primary, and one that is too far behind
are unfit. New connections (``admission``) and background probes are judged alike.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from flask_replicated.errors import (
    DivergedReplicaError,
    ReplicaLagsError,
    UnfitReplicaError,
    WrongRoleError,
)

from .lag import ReplayHistory, exceeds
from .primary_status import PrimaryStatus
from .queries import query_server
from .replica_status import ReplicaReport, sleep_on_server
from .timeline import Timeline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .replica_status import ReportQuery
    from .same_database import SameDatabaseCheck

__all__ = ["ReplicaHistory", "unfit_error"]

_RETRIES = 3
"""How often a server is asked again that may be about to replay its last change."""


class ReplicaHistory:
    """What this process has seen of one server, over any connection.

    Args:
        status: What is known of the primary; nothing by default.
        same_database: Compares its database with the primary's; None for no check.
        max_lag: Seconds that it may be behind; None for any.

    Attributes:
        progress: What it had received and replayed at each report.
        same_server: Whether it was found to be the primary's own server.
        own: The same for the server as it is now; None until that is known.
        latest: The last report, with role and lag as judged.
        same_database: As the argument.
        judged_at: When that was, by the monotonic clock.
        lags: Whether it was found unfit last, and for its lag alone.
        latency: Seconds that the latest background look took which got an answer; None
            before it.
    """

    def __init__(
        self,
        status: PrimaryStatus | None = None,
        same_database: SameDatabaseCheck | None = None,
        max_lag: float | None = None,
    ) -> None:
        self.same_database = same_database
        self.progress = ReplayHistory()
        self.same_server = False
        self.own: bool | None = None
        self.latest = ReplicaReport()
        self.judged_at = -math.inf
        self.lags = False
        self.latency: float | None = None
        self._status = PrimaryStatus() if status is None else status
        self._timeline = Timeline(self._status)
        self._max_lag = max_lag
        self._replicated = False
        self._started: float | None = None

    def found_same_server(self, same: bool) -> None:
        """Note whether its server was found to be the primary's own."""
        self.same_server = self.own = same

    def ask(
        self,
        connection: Any,
        queries: Iterable[ReportQuery],
        clock: Callable[[], float],
        progress: ReplayHistory | None = None,
    ) -> ReplicaReport:
        """Ask a server for a report; ask again before it counts as too far behind.

        Behind a primary that was idle, or out, the last transaction is old, and what is
        not replayed yet may have arrived just now. Only its replay tells.

        Args:
            connection: A DBAPI connection.
            queries: What to ask, each for when the one before fails.
            clock: Returns monotonic seconds.
            progress: As for :meth:`judge`.

        Raises:
            Exception: The driver's, if it does not answer.
        """
        found = self.judge(query_server(connection, *queries), clock(), progress)
        for _ in range(_RETRIES):
            replays = found.pending and found.received is not None
            if not replays or not exceeds(found, self._max_lag):
                break
            query_server(connection, sleep_on_server)
            found = self.judge(query_server(connection, *queries), clock(), progress)
        return found

    def judge(
        self, found: ReplicaReport, now: float, progress: ReplayHistory | None = None
    ) -> ReplicaReport:
        """Return a report completed with role and lag, as far as they are known.

        A server that has replicated and has no source any more was promoted, or
        detached: either way it is a primary of its own.

        Args:
            found: The report.
            now: When it was made, by a monotonic clock.
            progress: Used instead of the attribute, by a thread of its own.
        """
        if found.primary is False:
            self._replicated = True
        if found.primary is False or found.started != self._started:
            self.own = None  # it is, or may be, another server than was compared
        self._started = found.started
        if (found.alone and self._replicated) or (found.doubtful and self.same_server):
            found = found._replace(primary=True)
        own = (progress or self.progress).lag(found, now)
        if found.primary:
            self._timeline.found_primary()
            lag = self._status.subscriber_lag(found.slots) if found.slots else None
            found = found._replace(lag=lag, measured=lag is not None, own=self.own)
        else:
            lag, measured = self._status.lag(found, own, now)
            apart = self._timeline.judge(found, now)
            found = found._replace(lag=lag, measured=measured, apart=apart)
        self.latest, self.judged_at = found, now
        return found

    def staleness(self, now: float) -> float | None:
        """Return how old what the server shows may be, in seconds; None if unknown.

        That is its lag, and the age of that knowledge.

        Args:
            now: Monotonic seconds.
        """
        lag = self.latest.lag
        return None if lag is None else lag + now - self.judged_at


def unfit_error(
    name: str, found: ReplicaReport, *, role_check: bool, max_lag: float | None
) -> UnfitReplicaError | None:
    """Return why a server must not be used as a replica, if so.

    Args:
        name: The replica's bind name.
        found: A report that :meth:`ReplicaHistory.judge` returned.
        role_check: Whether its role and history matter.
        max_lag: Seconds that it may be behind; None for any.
    """
    if role_check and found.primary:
        return WrongRoleError(name, found.own)
    if role_check and found.apart is not None:
        return DivergedReplicaError(name, found.apart)
    if max_lag is not None and exceeds(found, max_lag):
        return ReplicaLagsError(name, found.lag, max_lag)
    return None
