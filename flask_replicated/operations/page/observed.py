"""What the page says of reads that are only observed."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from flask_replicated.operations.all_reports import (
    COLUMNS,
    AllReports,
    all_reports,
    rows,
    summary,
)
from flask_replicated.operations.current import current_place
from flask_replicated.routing.state import current_app_state

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ObservedView", "observed_view"]

_SHOWN = 30  # endpoints


class ObservedView(NamedTuple):
    """What was observed.

    Attributes:
        sentences: The sum.
        percent: The share of the reads that replicas would have served; None without
            any.
        columns: The headings.
        rows: The endpoints with the most reads.
        more: How many endpoints there are besides.
        advice: What to write.
    """

    sentences: Sequence[str]
    percent: float | None
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    more: int
    advice: Sequence[str]


def observed_view() -> ObservedView | None:
    """Return what was observed of the current application; None if it is not.

    By all workers, where there is a control place that can tell; else by this one.
    """
    state = current_app_state()
    if state is None or state.observation is None:
        return None
    place = current_place()
    found = AllReports(None) if place is None else all_reports(place)
    if found.report is None:
        found = AllReports(state.observation.report(), running=1)
    total = found.report
    if total is None:
        return None
    every = rows(total)
    more = max(0, len(every) - _SHOWN)
    return ObservedView(
        sentences=list(summary(found, total)),
        percent=None if total.share is None else 100 * total.share,
        columns=[one[0].upper() + one[1:] for one in COLUMNS],
        rows=every[:_SHOWN],
        more=more,
        advice=total.advice(),
    )
