"""Whether a standby still follows its primary after a promotion.

PostgreSQL begins a new timeline at each promotion. A standby that has not followed it
may show rows that the present primary does not have, and seem up to date. So may one
whose source was promoted beside the primary (split brain).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .primary_status import PrimaryStatus
    from .replica_status import ReplicaReport

__all__ = ["Timeline"]

_COMES_BACK = "It is used again once it follows; if it cannot, rebuild it (pg_rewind)."


class Timeline:
    """Compares one standby's timeline and position with its primary's.

    Args:
        status: What is known of the primary.
    """

    def __init__(self, status: PrimaryStatus) -> None:
        self._status = status
        self._was_primary = False
        self._timeline = 0
        # The position that it showed last, and when.
        self._shown: tuple[dict[str, int], float] | None = None
        self._suspected: float | None = None
        # A verdict, and the state of both servers for which it holds.
        self._apart: tuple[object, str] | None = None

    def found_primary(self) -> None:
        """Note that its server is a primary."""
        self._was_primary = True
        self._shown = self._suspected = None

    def judge(self, found: ReplicaReport, now: float) -> str | None:
        """Return why a standby is no copy of the primary, or None.

        Args:
            found: What it has reported.
            now: When, by the monotonic clock.
        """
        if found.replayed is None:
            return None
        apart = self._goes_its_own_way(found, now)
        self._shown = {"": found.replayed}, now
        if apart is not None:
            return apart
        return self._receives(found) if not found.cut_off else self._is_cut_off(found)

    def _receives(self, found: ReplicaReport) -> str | None:
        """Judge a standby that is receiving."""
        latest = self._status.timeline
        self._was_primary = False
        if not found.exact or found.timeline is None:
            # It may not see what it receives; but what it shows proves that it follows.
            if found.position and self._status.reached(found.position):
                self._timeline = max(self._timeline, latest)
            return None
        self._timeline = found.timeline
        if found.timeline < latest:
            return (
                f"it follows timeline {found.timeline}, and the primary is on timeline "
                f"{latest} since a promotion: it may show rows that the primary does "
                f"not have. {_COMES_BACK}"
            )
        self._status.replica_follows(found.timeline)
        return None

    def _is_cut_off(self, found: ReplicaReport) -> str | None:
        """Judge a standby that is not receiving."""
        latest = self._status.timeline
        known = max(self._timeline, found.timeline or 0)
        if 0 < known < latest:
            return (
                f"it is on timeline {known} and receives from no server, and timeline "
                f"{latest} has begun since: it may show rows that the primary does not "
                f"have. {_COMES_BACK}"
            )
        if self._was_primary:
            return (
                "it was a primary before and receives from no server: it may show rows "
                f"that the present primary does not have. {_COMES_BACK}"
            )
        return None

    def _goes_its_own_way(self, found: ReplicaReport, now: float) -> str | None:
        """Judge by what only a standby of another history can show.

        It counts once the primary has confirmed it over a new connection: a kept one
        may lead to a server that is not the primary any more.
        """
        status = self._status
        # Only a restart, or another primary, can make it a copy again.
        state = (found.started, status.report.timeline, status.report.system_identifier)
        if self._apart is not None and self._apart[0] == state:
            return self._apart[1]
        self._apart = None
        why = self._own_way(found)
        if why is None:
            self._suspected = None
            return None
        if self._suspected is None or status.confirmed <= self._suspected:
            self._suspected = self._suspected or now
            status.doubted = True
            return None
        self._apart = state, why
        return why

    def _own_way(self, found: ReplicaReport) -> str | None:
        status = self._status
        own = status.report.timeline
        if found.exact and found.timeline and own and found.timeline > own:
            return (
                f"it follows timeline {found.timeline}, and the primary is on timeline "
                f"{own}: its source was promoted beside the primary. Let it follow the "
                "primary, or name the server that it follows as the primary."
            )
        if self._shown is not None and status.was_behind(*self._shown):
            return (
                "it shows what the primary has not written, and so follows another "
                "history. Rebuild it (pg_rewind) and let it follow the primary, or "
                "name the server that it follows as the primary."
            )
        return None
