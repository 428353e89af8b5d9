"""A few faults under load, and what must hold after each."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("psutil")
pytest.importorskip("rich")

from tests.chaos.app import HAS_MONITOR
from tests.chaos.run import run
from tests.chaos.schedule import schedule
from tests.chaos.table import checks
from tests.chaos.workers import in_process

if TYPE_CHECKING:
    from examples.cluster import Cluster

SEED = 3
FAULTS = ("kill", "terminate", "frozen", "disk", "all-down")


@pytest.mark.postgres
def test_no_visitor_notices_a_fault(healthy_cluster: Cluster) -> None:
    """Replicas die, hang and return, and every request is answered."""
    threads = threading.active_count()
    strikes = schedule(SEED, FAULTS, seconds=2)

    report = run(healthy_cluster, in_process, strikes, quiet=0.5)

    for outcome in report.outcomes:
        wrongs = outcome.wrongs
        if outcome.strike.fault.hangs and not HAS_MONITOR:
            # Only somebody who looks after a server in the background can tell.
            wrongs = [wrong for wrong in wrongs if "waited" not in wrong]
        assert not wrongs, (outcome.strike, outcome.errors)
    _noticed, *others = checks(report)
    assert not [check for check in others if check.ok is False]
    assert threading.active_count() <= threads


def test_a_seed_decides_everything() -> None:
    """The same seed gives the same strikes; the last fault is always last."""
    names = ("kill", "promotion", "refused", "slow")
    once, again = (schedule(7, names, seconds=3) for _ in range(2))

    assert once == again
    assert once != schedule(8, names, seconds=3)
    assert sorted(strike.name for strike in once) == sorted(names)
    assert once[-1].name == "promotion"
