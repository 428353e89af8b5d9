"""A few faults under load, and what must hold after each."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("psutil")
pytest.importorskip("rich")

from examples.cluster import wait_until
from tests.chaos.app import SETTINGS
from tests.chaos.databases import DATABASES
from tests.chaos.faults import COMMON
from tests.chaos.run import run
from tests.chaos.schedule import schedule
from tests.chaos.table import checks
from tests.chaos.workers import in_process
from tests.mariadb.servers import have_programs

if TYPE_CHECKING:
    from examples.cluster import Cluster
    from tests.chaos.servers import Servers

SEED = 3
# Other tests run beside these, so that all takes longer.
SPARE = 2.0  # seconds
PATIENT = {**SETTINGS, "REPLICATED_CONNECT_TIMEOUT": 2, "REPLICATED_READ_TIMEOUT": 3}
LASTING = 4.0  # seconds of a fault: longer than each of these
FAULTS = {
    "postgresql": (
        "kill",
        "terminate",
        "frozen",
        "disk",
        "dead-host",
        "lost-flows",
        "stale-primary",
        "all-down",
    ),
    "mariadb": ("kill", "frozen", "dead-host"),
}


@pytest.mark.postgres
def test_no_visitor_of_postgresql(healthy_cluster: Cluster) -> None:
    """Standbys die, hang and return, and every request is answered."""
    check_that_nobody_notices(healthy_cluster, "postgresql")


@pytest.mark.mariadb
def test_no_visitor_of_mariadb() -> None:
    """Replicas die, hang and return, and every request is answered."""
    pytest.importorskip("pymysql")
    if not have_programs():
        pytest.skip("MariaDB's server is not installed")
    with DATABASES["mariadb"].servers(lambda _: None) as cluster:
        check_that_nobody_notices(cluster, "mariadb")


def check_that_nobody_notices(cluster: Servers, name: str) -> None:
    """Let faults strike the servers of a database."""
    threads = set(threading.enumerate())
    database = DATABASES[name]
    strikes = schedule(SEED, database.faults, FAULTS[name], seconds=LASTING)

    report = run(
        cluster,
        in_process,
        strikes,
        database=database,
        settings=PATIENT,
        quiet=0.5,
        spare=SPARE,
    )

    for outcome in report.outcomes:
        assert not outcome.wrongs, (outcome.strike, outcome.errors)
    _noticed, *others = checks(report)
    assert not [check for check in others if check.ok is False]
    wait_until(lambda: set(threading.enumerate()) <= threads, "threads to end")


def test_a_seed_decides_everything() -> None:
    """The same seed gives the same strikes; the last fault is always last."""
    names = ("kill", "promotion", "refused", "slow")
    once, again = (schedule(7, COMMON, names, seconds=3) for _ in range(2))

    assert once == again
    assert once != schedule(8, COMMON, names, seconds=3)
    assert sorted(strike.name for strike in once) == sorted(names)
    assert once[-1].name == "promotion"
