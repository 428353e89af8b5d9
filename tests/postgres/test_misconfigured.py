"""Binds that are not configured right: one line says so, and what to do."""

from __future__ import annotations

import gc
import logging
from typing import TYPE_CHECKING, Any

import pytest

from balancers import Pool
from examples.cluster import wait_until
from tests.postgres.support import bind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from examples.cluster import Cluster
    from tests.postgres.support import Build, Site

pytestmark = [
    pytest.mark.postgres,
    # The oldest SQLAlchemy leaves a connection that fails in its own hooks to the
    # collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

# What is wrong, and a word of the remedy.
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "account": ({"user": "no_such_account"}, "Correct the account"),
    "database": ({"dbname": "no_such_database"}, "Correct the name of the database"),
    "setting": ({"options": "-c work_mem=little"}, "Correct that option"),
    "tls": ({"sslmode": "verify-full"}, "sslrootcert"),
    "option": ({"conect_timeout": 2}, "Correct that option"),
    "level": (
        {"options": "-c default_transaction_isolation=serializable"},
        "default_transaction_isolation=read",
    ),
}


@pytest.fixture(autouse=True)
def _collect() -> Iterator[None]:
    """Leave nothing to be collected in another test."""
    yield
    gc.collect()


@pytest.fixture
def trips(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Give who was found unfit so far, by a probe or by a read."""
    found: list[str] = []
    trip = Pool.trip

    def noted(pool: Pool[Any], member: Any, *rest: Any) -> bool:
        found.append(member.name)
        return trip(pool, member, *rest)

    monkeypatch.setattr(Pool, "trip", noted)
    return found


def read_until_tried(site: Site, trips: list[str]) -> None:
    """Read until the replica was tried some times in vain."""
    wait_until(lambda: site.count(2).total() == 2 and len(trips) > 4, "some tries", 30)


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "beside another"])
@pytest.mark.parametrize("what", WRONG)
def test_one_line(  # noqa: PLR0917 - they are fixtures
    build: Build,
    healthy_cluster: Cluster,
    driver: str,
    caplog: pytest.LogCaptureFixture,
    trips: list[str],
    what: str,
    alone: bool,
) -> None:
    """However often it is tried, and whether the primary has to serve for it or not."""
    first, second, _ = healthy_cluster.standbys
    arguments, word = WRONG[what]
    binds: dict[str, Any] = {
        "slave_1": {"url": bind(first, driver), "connect_args": arguments}
    }
    if not alone:
        binds["slave_2"] = bind(second, driver)
    caplog.set_level(logging.WARNING, "flask_replicated")
    # On a busy machine the other one may be late with an answer.
    site = build(binds, REPLICATED_PROBE_INTERVAL=0.05, REPLICATED_CONNECT_TIMEOUT=10)
    read_until_tried(site, trips)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    said = record.getMessage()
    assert "\n" not in said
    assert "replica 'slave_1' is not configured right" in said
    assert "SQLALCHEMY_BINDS['slave_1']" in said
    assert word in said
    assert site.live() == (set() if alone else {"slave_2"})


def test_mended(
    build: Build,
    healthy_cluster: Cluster,
    driver: str,
    caplog: pytest.LogCaptureFixture,
    trips: list[str],
) -> None:
    """When it is mended the replica is back, and the log says so."""
    primary, standby = healthy_cluster.primary, healthy_cluster.standbys[0]
    primary.execute("create role late login")
    primary.execute("alter role late set default_transaction_isolation = serializable")
    primary.execute("grant select on item to late")
    healthy_cluster.wait_replicated()
    url = bind(standby, driver).replace("postgres@", "late@")
    try:
        site = build({"slave_1": url}, REPLICATED_PROBE_INTERVAL=0.05)
        read_until_tried(site, trips)
        assert "is not configured right" in caplog.text
        primary.execute("alter role late reset default_transaction_isolation")
        site.wait_live("slave_1")
        assert site.get().servers[0] == "standby_1"
        assert "replica 'slave_1' is back" in caplog.text
        site.dispose()
    finally:
        primary.execute("drop owned by late")
        primary.execute("drop role late")
