"""What all workers have observed: added up, and in words."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from balancers.errors import error_text
from flask_replicated.routing.reports import merged
from flask_replicated.routing.state import current_app_state
from flask_replicated.system.log_lines import counted

from .accounts import accounts_in
from .place import REPORTS_LAST
from .report_texts import report_from

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from flask_replicated.routing.reports import EndpointReport, Report

    from .place import ControlPlace

__all__ = ["COLUMNS", "AllReports", "all_reports", "rows", "summary"]

_NO_PLACE = (
    "There is no control place, so what other processes have observed is not known. "
    "Set REPLICATED_CONTROL to a directory that all workers can write to, or to the "
    "URL of a Redis server. In one process, replicated.report() returns its own report."
)
_ROUTED = "No worker has observed anything: set REPLICATED_MODE = 'observe'."
_NOTHING = (
    "No worker has observed anything yet: REPLICATED_MODE is 'observe', and what the "
    "workers observe is shown some seconds later."
)
COLUMNS = (
    *("endpoint", "requests", "reads", "to replicas", "held back", "by writes to"),
    *("GETs write", "mixed"),
)
"""The headings of :func:`rows`."""
_NAMED = 3
_DAY = 86400


class AllReports(NamedTuple):
    """What all workers have observed.

    Attributes:
        report: The sum; None if there is nothing.
        running: How many of them run.
        ended: How many have ended.
        note: Why there is nothing; None if there is something.
    """

    report: Report | None
    running: int = 0
    ended: int = 0
    note: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the same as plain data."""
        found = {} if self.report is None else self.report.to_json()
        workers = {"running": self.running, "ended": self.ended}
        return {"workers": workers, "note": self.note, **found}


def all_reports(place: ControlPlace | None) -> AllReports:
    """Return what all workers of the current application have observed.

    Args:
        place: Its control place; None if it has none.
    """
    state = current_app_state()
    observes = state is not None and state.observation is not None
    if state is None or place is None:
        return AllReports(None, note=_NO_PLACE if observes else _ROUTED)
    try:
        found = [one for one in map(report_from, place.reports()) if one]
        accounts = accounts_in(place)
    except Exception as error:  # noqa: BLE001 - a client's library raises its own
        cause = f"The control place cannot be read: {error_text(error)}."
        return AllReports(None, note=cause)
    if not found:
        return AllReports(None, note=_NOTHING if observes else _ROUTED)
    settings, reports = state.settings, [one.report for one in found]
    total = merged(reports, settings.unpinned, waits=bool(settings.wait))
    there = {(one.host, one.pid) for one in accounts}
    running = sum((one.host, one.pid) in there for one in found)
    return AllReports(total, running, len(found) - running)


def summary(found: AllReports, total: Report) -> Iterator[str]:
    """Return what was observed, in a few sentences.

    Args:
        found: By whom.
        total: The sum.
    """
    since = time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(total.since))
    ended = ""
    if found.ended:
        kept = f"{REPORTS_LAST / _DAY:.0f} days"
        ended = f" and {counted(found.ended, 'earlier one')} (kept for {kept})"
    yield f"Observed by {counted(found.running, 'worker')}{ended} since {since}."
    if total.share is None:
        yield "Nothing was read yet."
        return
    share = 100 * total.share
    yield f"Replicas would have served {share:.0f} % of {counted(total.reads, 'read')}."
    every = total.endpoints.values()
    demanding = sum(one.demanding for one in every)
    compared, behind = (
        sum(one.compared for one in every),
        sum(one.behind for one in every),
    )
    if compared:
        yield (
            f"{counted(demanding, 'read')} must show what its client has written; "
            f"for {behind} of {compared} every replica was behind."
        )
    elif demanding:
        yield (
            f"{counted(demanding, 'read')} must show what its client has written; "
            "how often a replica would be behind is known with one whose lag can be "
            "measured."
        )


def rows(total: Report) -> list[tuple[object, ...]]:
    """Return a row for each endpoint that reads or writes, the most reads first."""
    ranked = sorted(total.endpoints.items(), key=lambda pair: -pair[1].reads)
    return [_row(name, one) for name, one in ranked if one.reads or one.writing]


def _row(name: str, one: EndpointReport) -> tuple[object, ...]:
    share = f" ({100 * one.moved / one.reads:.0f} %)" if one.reads else ""
    gets = f"{one.writing}" if one.only_reading and one.written else ""
    return (
        name,
        one.requests,
        one.reads,
        f"{one.moved}{share}",
        _most(one.held),
        _most(one.held_by),
        gets,
        one.mixed or "",
    )


def _most(counts: Mapping[str, int]) -> str:
    """Return the highest counts, with their names."""
    ranked = sorted(counts.items(), key=lambda pair: -pair[1])
    more = f", {len(ranked) - _NAMED} more" if len(ranked) > _NAMED else ""
    return ", ".join(f"{count} {name}" for name, count in ranked[:_NAMED]) + more
