"""What all workers say of their replicas, for the page of one of them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from balancers.errors import error_text
from flask_replicated.operations.accounts import accounts_in
from flask_replicated.operations.current import current_control
from flask_replicated.operations.fleet_status import merged

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from flask_replicated.operations.accounts import Account, Counts, ReplicaRecord

__all__ = ["Workers", "current_workers"]


class Workers(NamedTuple):
    """What is known of all workers.

    Attributes:
        accounts: Their accounts; none if this process knows itself alone.
        worst: Each replica as the worker sees it that sees the worst, with the number
            of workers by state, by bind (empty for the default one) and name.
        reads: How many reads each replica has got from all of them together, by bind
            and name.
        counts: What else they have counted together, by bind.
        within: Seconds in which they obey an order; None if none reaches them.
        trouble: Why they are not known, though there is a control place; or None.
    """

    accounts: Sequence[Account] = ()
    worst: Mapping[tuple[str, str], ReplicaRecord] = {}
    reads: Mapping[str, Mapping[str, int]] = {}
    counts: Mapping[str, Mapping[str, int]] = {}
    within: float | None = None
    trouble: str | None = None


def current_workers() -> Workers:
    """Return what the control place says of all workers; never fails."""
    control = current_control()
    if control is None:
        return Workers()
    try:
        found = accounts_in(control.place)
    except Exception as error:  # noqa: BLE001 - a client's library raises its own
        return Workers(within=control.look, trouble=error_text(error))
    worst = {
        (bind, one["name"]): one
        for bind, replicas in merged(found).items()
        for one in replicas
    }
    reads = _together(one.reads for one in found)
    counts = _together(one.counts for one in found)
    return Workers(found, worst, reads, counts, control.look)


def _together(found: Iterable[Counts]) -> Counts:
    sums: dict[str, Counter[str]] = {}
    for counts in found:
        for bind, numbers in counts.items():
            sums.setdefault(bind, Counter()).update(numbers)
    return {bind: dict(numbers) for bind, numbers in sums.items()}
