"""A fault under load, where workers serve from greenlets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

pytest.importorskip("psutil")
pytest.importorskip("rich")
pytest.importorskip("gunicorn", reason="gunicorn is not installed")
pytest.importorskip("gevent", reason="gevent is not installed")

from tests.chaos.app import SETTINGS
from tests.chaos.faults import COMMON
from tests.chaos.run import run
from tests.chaos.schedule import schedule
from tests.chaos.table import checks
from tests.chaos.workers import greenlets

# Other tests run beside this one, so that all takes longer.
SPARE = 2.0  # seconds
PATIENT = {**SETTINGS, "REPLICATED_CONNECT_TIMEOUT": 2, "REPLICATED_READ_TIMEOUT": 3}

if TYPE_CHECKING:
    from examples.cluster import Cluster


@pytest.mark.postgres
def test_no_visitor_of_greenlets_notices(healthy_cluster: Cluster) -> None:
    """A standby is killed and returns, and every request is answered."""
    strikes = schedule(5, COMMON, ("kill",), seconds=2)

    report = run(
        healthy_cluster, greenlets, strikes, settings=PATIENT, quiet=1, spare=SPARE
    )

    (outcome,) = report.outcomes
    assert not outcome.errors
    assert not outcome.wrongs, outcome
    _noticed, *others = checks(report)
    assert not [check for check in others if check.ok is False]
