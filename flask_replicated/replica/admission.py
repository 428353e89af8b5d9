"""Asks a server for its role and lag before a new connection to it is used."""

from __future__ import annotations

import time
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any

from flask_replicated.errors import ReplicaLagsError
from flask_replicated.system.threads import start_thread

from .fitness import unfit_error
from .replica_status import no_report, query_role, report_queries

if TYPE_CHECKING:
    from collections.abc import Callable

    from .fitness import ReplicaHistory
    from .replica_status import ReportQuery
    from .same_server import SameServerCheck

__all__ = ["Admission", "accept_any_lag"]

accept_any_lag: ContextVar[bool] = ContextVar("flask_replicated_any_lag", default=False)
"""Whether a connect accepts a replica that is too far behind, as all others are."""

_AGAIN = 5.0
"""Seconds after which a server is asked again where no background probe does it."""
_COMPARE_AGAIN = 60.0
"""Seconds after which it is compared with the primary again, there too."""


class Admission:
    """Refuses connections to a server that is no replica, or too far behind.

    The server is asked over each new connection before that is handed out. So neither a
    process that has just started nor a replica that is new or back has to wait for a
    background probe. Where there is no probe, a pooled connection is replaced by a new
    one from time to time.

    Args:
        name: The replica's bind name.
        dialect: SQLAlchemy's name for it.
        history: What was seen of the server.
        role_check: Whether one that is no replica is refused.
        max_lag: Seconds that it may be behind; None for any.
        watched: Whether the replica is probed in the background.
        comparison: Finds out whether it is the primary's own server, where no probe
            does it; or None.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self,
        name: str,
        dialect: str,
        history: ReplicaHistory,
        *,
        role_check: bool,
        max_lag: float | None,
        watched: bool,
        comparison: SameServerCheck | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._history = history
        self._fault = partial(unfit_error, name, role_check=role_check, max_lag=max_lag)
        self._clock = clock
        self._queries = _queries(dialect, role_check, max_lag)
        self._asked = clock()
        self._again = None if watched or not self._queries else _AGAIN
        self._comparison = comparison
        self._compare_at = clock()

    def is_due(self) -> bool:
        """Whether a pooled connection must be replaced by a new one, which asks again.

        It is true once; from then on, not until the interval is over again.
        """
        if self._again is None:
            return False
        now = self._clock()
        if now - self._asked < self._again:
            return False
        self._asked = now
        return True

    def ask(self, connection: Any) -> float | None:
        """Ask over a new connection.

        Returns:
            When the server was started, by its clock; None if it does not tell.

        Raises:
            MisconfiguredReplicaError: The server has another database.
            WrongRoleError: It is no replica.
            DivergedReplicaError: It does not follow the primary.
            ReplicaLagsError: It is too far behind, or it is unknown how far.
            Exception: The driver's, if it does not answer at all.
        """
        if not self._queries:
            return None
        self._asked = self._clock()
        history = self._history
        if history.same_database is not None:
            history.same_database.check(connection)
        progress = history.progress.copy()
        found = history.ask(connection, self._queries, self._clock, progress)
        history.progress = progress
        if found.doubtful:
            self._compare()
        fault = self._fault(found)
        # Not the error itself: its traceback would keep the caller's frames alive.
        history.lags = lags = isinstance(fault, ReplicaLagsError)
        if fault is not None and not (lags and accept_any_lag.get()):
            raise fault
        return found.started

    def _compare(self) -> None:
        """Find out in the background whether it is the primary's own server."""
        now = self._clock()
        if self._comparison is not None and now >= self._compare_at:
            self._compare_at = now + _COMPARE_AGAIN
            start_thread("comparison", self._find_out, self._comparison)

    def _find_out(self, comparison: SameServerCheck) -> None:
        with suppress(Exception):  # the primary may be out
            self._history.found_same_server(comparison.is_same_server())


def _queries(
    dialect: str, role_check: bool, max_lag: float | None
) -> tuple[ReportQuery, ...]:
    """Return what to ask, and what to ask next if the server does not know that."""
    if not role_check and max_lag is None:
        return ()
    if dialect in {"mysql", "mariadb"}:
        return *report_queries(dialect), no_report
    if dialect != "postgresql":
        return ()
    return *report_queries(dialect), query_role if role_check else no_report
