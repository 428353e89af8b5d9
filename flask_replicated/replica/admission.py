"""What a server must say of itself before a new connection to it is used."""

from __future__ import annotations

import time
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any

from flask_replicated.errors import ReplicaLagsError

from .fitness import unfit_error
from .replica_status import ReplicaReport, query_role, report_queries

if TYPE_CHECKING:
    from collections.abc import Callable

    from .fitness import ReplicaHistory
    from .replica_status import ReportQuery
    from .same_server import SameServerCheck

__all__ = ["Admission", "accept_any_lag"]

accept_any_lag: ContextVar[bool] = ContextVar("flask_replicated_any_lag", default=False)
"""Whether whoever connects takes a replica that is too far behind, as none is not."""

_AGAIN = 5.0
"""Seconds after which one is asked again where no look in the background does it."""
_COMPARED = 60.0
"""Seconds for which it is not compared with the primary again, there too."""


class Admission:
    """Refuses connections to a server that is no replica, or too far behind.

    It is asked over each new connection, before anybody else has it: so a process that
    has just begun, and a replica that is new or back, need not wait for a look. Where
    there is no look, a pooled connection is replaced by a new one from time to time.

    Args:
        name: The replica's bind name.
        dialect: SQLAlchemy's name for it.
        history: What was seen of the server.
        role_check: Whether one that is no replica is refused.
        max_lag: Seconds that it may be behind; None for any.
        watched: Whether there is a look in the background.
        comparison: Finds out whether it is the primary, where no look does it; or None.
        clock: Returns seconds that never go backwards.
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
        self._observers = _observers(dialect, role_check, max_lag)
        self._asked = clock()
        self._again = None if watched or not self._observers else _AGAIN
        self._comparison = comparison
        self._compare_at = clock()

    def is_due(self) -> bool:
        """Whether a pooled connection must make place for one that asks.

        Only the first who wants to know is told so.
        """
        if self._again is None:
            return False
        now = self._clock()
        if now - self._asked < self._again:
            return False
        self._asked = now
        return True

    def ask(self, connection: Any) -> None:
        """Ask over a new connection.

        Raises:
            MisconfiguredReplicaError: The server has another database.
            WrongRoleError: It is no replica.
            DivergedReplicaError: It does not follow the primary.
            ReplicaLagsError: It is too far behind, or nobody knows how far.
            Exception: The driver's, if it does not answer at all.
        """
        if not self._observers:
            return
        self._asked = self._clock()
        if self._history.kinship is not None:
            self._history.kinship.ask(connection)
        history = self._history
        progress = history.progress.copy()
        found = history.settle(connection, self._observers, self._clock, progress)
        history.progress = progress
        if found.doubtful:
            self._compare()
        fault = self._fault(found)
        # Not the error itself, which would keep alive who is waiting here.
        self._history.lags = lags = isinstance(fault, ReplicaLagsError)
        if fault is not None and not (lags and accept_any_lag.get()):
            raise fault

    def _compare(self) -> None:
        """Find out whether it is the primary, for the connections after this one."""
        now = self._clock()
        if self._comparison is not None and now >= self._compare_at:
            self._compare_at = now + _COMPARED
            self._comparison.begin(self._history.found_twin)


def _observers(
    dialect: str, role_check: bool, max_lag: float | None
) -> tuple[ReportQuery, ...]:
    """Return what to ask, and what next if the server does not know that."""
    if not role_check and max_lag is None:
        return ()
    if dialect in {"mysql", "mariadb"}:
        return *report_queries(dialect), _nothing
    if dialect != "postgresql":
        return ()
    return *report_queries(dialect), query_role if role_check else _nothing


def _nothing(_cursor: Any) -> ReplicaReport:
    return ReplicaReport()
