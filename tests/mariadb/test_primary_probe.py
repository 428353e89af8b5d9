"""What MariaDB's replicas are, beside what the primary says in the background."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from examples.cluster import wait_until
from flask_replicated import replicated_engine, using_slave
from tests.mariadb.servers import Cluster, have_programs
from tests.pools import live, read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flask_replicated.engine.engines import RoutedEngine

    Build = Callable[..., RoutedEngine]

pytestmark = pytest.mark.mariadb

BOTH = {"slave_1", "slave_2"}
WHO = sa.text("SELECT @@report_host")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Give a primary and two replicas, which wait long until they connect again."""
    pytest.importorskip("pymysql")
    if not have_programs():
        pytest.skip("MariaDB's server is not installed")
    with Cluster(standbys=2) as servers:
        servers.primary.execute("CREATE DATABASE shop")
        servers.primary.execute("CREATE TABLE shop.item (n INT)")
        servers.primary.execute("CREATE USER few@localhost")
        servers.primary.execute("CREATE USER few@'127.0.0.1'")
        for standby in servers.standbys:
            standby.execute("STOP SLAVE")
            standby.execute("CHANGE MASTER TO MASTER_CONNECT_RETRY=60")
            standby.execute("START SLAVE")
        yield servers


@pytest.fixture
def build(cluster: Cluster, made: list[RoutedEngine]) -> Iterator[Build]:
    """Give a function that makes pools, and repair what the test breaks."""
    cluster.wait_replicated()

    def build(user: str = "root", **settings: Any) -> RoutedEngine:
        pairs = enumerate(cluster.standbys, start=1)
        engine = replicated_engine(
            sa.create_engine(cluster.primary.url()),
            {f"slave_{n}": sa.create_engine(one.url(user)) for n, one in pairs},
            REPLICATED_PROBE_INTERVAL=0.3,
            REPLICATED_MAX_LAG=1.5,
            # On a busy machine a server may be late with an answer.
            **{"REPLICATED_CONNECT_TIMEOUT": 10, **settings},
        )
        made.append(engine)
        read(engine)
        histories = [one.history for one in engine.servers.values()]
        wait_until(
            lambda: bool(
                engine.status._positions._spans
                and all(one.latest.position for one in histories)
            ),
            "all of them to be known",
        )
        return engine

    yield build
    cluster.primary.thaw()
    cluster.primary.start()
    for standby in cluster.standbys:
        standby.execute("STOP SLAVE")
        standby.execute("START SLAVE")
    cluster.wait_replicated()


def who(engine: RoutedEngine) -> str:
    """Return who serves a read."""
    with using_slave(), engine.connect() as connection:
        return str(connection.scalar(WHO))


def write(cluster: Cluster) -> None:
    """Write something on the primary."""
    cluster.primary.execute("INSERT INTO shop.item VALUES (1)")


def settle(engine: RoutedEngine, *names: str) -> None:
    """Wait until the monitor alone has left these in rotation: no request asks."""
    wait_until(lambda: live(engine) == set(names), f"only {names} to be live", 20)


@pytest.mark.parametrize("frozen", [False, True])
def test_primary_is_out(cluster: Cluster, build: Build, frozen: bool) -> None:
    """Its replicas do not know their lag then, and serve all the same."""
    engine = build(**({"REPLICATED_CONNECT_TIMEOUT": 3} if frozen else {}))
    (cluster.primary.freeze if frozen else cluster.primary.kill)()
    wait_until(lambda: engine.status.out, "that to be known", 20)
    until = time.monotonic() + 3  # longer than they may lag
    while time.monotonic() < until:
        assert who(engine) != "primary"
        assert live(engine) == BOTH
    if frozen:
        cluster.primary.thaw()
    else:
        cluster.primary.start()
    wait_until(lambda: not engine.status.out, "it to be back")
    time.sleep(1)
    assert live(engine) == BOTH
    if frozen:
        return
    # They go on to wait for a minute, and lack what is written from now on.
    assert not any(standby.follows() for standby in cluster.standbys)
    write(cluster)
    settle(engine)
    assert who(engine) == "primary"


def test_stopped(cluster: Cluster, build: Build) -> None:
    """One that replays no more lags from when the primary writes more."""
    engine = build()
    cluster.standbys[0].execute("STOP SLAVE SQL_THREAD")
    time.sleep(2)  # longer than it may lag
    assert live(engine) == BOTH
    write(cluster)
    settle(engine, "slave_2")
    cluster.standbys[0].execute("START SLAVE")
    settle(engine, "slave_1", "slave_2")


def test_account_may_not_ask(cluster: Cluster, build: Build) -> None:
    """Its lag is measured where the server does not tell its lag to the account."""
    engine = build(user="few")
    assert live(engine) == BOTH
    cluster.standbys[1].execute("STOP SLAVE")
    write(cluster)
    settle(engine, "slave_1")
    causes = engine.replicas.replica_pool.causes
    lags = "behind the primary, more than REPLICATED_MAX_LAG = 1.5"
    wait_until(lambda: lags in causes()["slave_2"], "its lag to be measured", 20)
    cluster.standbys[1].execute("START SLAVE")
    settle(engine, "slave_1", "slave_2")


def test_least_stale(
    cluster: Cluster, build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    """Where both lag and the primary is out, the one that shows more serves."""
    engine = build()
    for standby in reversed(cluster.standbys):
        standby.execute("STOP SLAVE SQL_THREAD")
        write(cluster)
        if standby is cluster.standbys[1]:
            position = cluster.primary.execute("SELECT @@gtid_binlog_pos")[0][0]
            cluster.standbys[0].execute(f"SELECT MASTER_GTID_WAIT('{position}', 30)")
    settle(engine)
    assert who(engine) == "primary"
    cluster.primary.kill()
    for _ in range(4):
        assert who(engine) == "standby_1"
    said = [one.getMessage() for one in caplog.records if one.levelname == "ERROR"]
    assert len([one for one in said if "the primary does not connect" in one]) == 1
