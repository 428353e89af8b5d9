"""Connections to MariaDB that fall silent, while new ones are well."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import sessionmaker

from examples.cluster import wait_until
from flask_replicated import RoutedSession, replicated_engine, using_slave
from flask_replicated.system.sockets import socket_of
from tests.chaos.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flask_replicated.engine.engines import RoutedEngine
    from tests.mariadb.conftest import Servers

pytestmark = pytest.mark.mariadb

LOST = "no server works on what they wait for"


@pytest.fixture
def proxy(servers: Servers) -> Iterator[Proxy]:
    """Give what stands before the first replica."""
    with Proxy(servers.replica.port) as proxy:
        yield proxy
        proxy.speak()


@pytest.fixture
def engine(servers: Servers, proxy: Proxy) -> Iterator[RoutedEngine]:
    """Give a pool of two servers, the first of them behind the proxy."""
    near = servers.replica.url().replace(str(servers.replica.port), str(proxy.port))
    engine = replicated_engine(
        sa.create_engine(servers.primary.url()),
        {
            "slave_1": sa.create_engine(near, pool_size=2, max_overflow=0),
            "slave_2": sa.create_engine(servers.other.url()),
        },
        REPLICATED_PROBE_INTERVAL=0.5,
        REPLICATED_ROLE_CHECK=False,
        REPLICATED_MAX_LAG=None,
    )
    yield engine
    proxy.speak()
    engine.dispose()


def read(engine: RoutedEngine, seconds: float) -> str:
    """Read for so long, and return who has answered."""
    query = sa.text("SELECT @@report_host, SLEEP(:seconds)")
    make = sessionmaker(engine, class_=RoutedSession)
    with using_slave(), make() as session:
        return str(session.execute(query, {"seconds": seconds}).one()[0])


def in_use(engine: RoutedEngine) -> bool:
    """Whether a caller has a connection to the first replica."""
    target: Any = engine.replicas.replica_pool.member("slave_1").target
    return bool(target.pool.checkedout())


def test_flows_are_forgotten(
    engine: RoutedEngine, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    """Who waits over a silent connection is answered by another server."""
    pool = engine.replicas.replica_pool
    pool.drain("slave_2")
    assert read(engine, 0) == "standby_1"
    proxy.silence_open(b"SLEEP")
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(read, engine, 0)
        wait_until(lambda: in_use(engine), "it to begin")
        pool.restore("slave_2")
        assert waiting.result(20) == "other"
    assert LOST in caplog.text
    wait_until(lambda: len(pool.live) == 2, "slave_1 to be back")
    assert {read(engine, 0) for _ in range(4)} == {"standby_1", "other"}


@pytest.mark.parametrize("rows", [1, 252])  # after 256 packets PyMySQL counts anew
def test_no_wait(
    engine: RoutedEngine, rows: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Who takes long between two statements keeps the connection."""
    engine.replicas.replica_pool.drain("slave_2")
    make = sessionmaker(engine, class_=RoutedSession)
    query = sa.text(
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < "
        f"{rows}) SELECT CONNECTION_ID() FROM n"
    )
    with using_slave(), make() as session, ThreadPoolExecutor(1) as threads:
        before = session.scalars(query).all()
        other = threads.submit(read, engine, 3)
        assert other.result(20) == "standby_1"
        assert session.scalars(query).all() == before
    assert LOST not in caplog.text


def test_a_long_read(engine: RoutedEngine, caplog: pytest.LogCaptureFixture) -> None:
    """A statement that runs for long is left to run, through a proxy as well."""
    with ThreadPoolExecutor(2) as threads:
        found = set(threads.map(lambda _: read(engine, 5), range(2)))
    assert found == {"standby_1", "other"}
    assert LOST not in caplog.text


def test_the_end_of_a_read(engine: RoutedEngine, proxy: Proxy) -> None:
    """A connection that falls silent before it is given back holds no caller up."""
    engine.replicas.replica_pool.drain("slave_2")
    make = sessionmaker(engine, class_=RoutedSession)
    with using_slave(), ThreadPoolExecutor(1) as threads:
        session = make()
        session.execute(sa.text("SELECT SLEEP(0)")).all()
        proxy.silence_open()
        threads.submit(session.close).result(20)
    assert not in_use(engine)


@pytest.mark.skipif(
    not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux alone has it all"
)
def test_keepalive(engine: RoutedEngine) -> None:
    """The kernel is told to ask a host that says nothing."""
    with using_slave(), engine.connect() as connection:
        driver = connection.connection.dbapi_connection
        assert driver is not None
        with socket_of(driver) as sock:
            assert sock is not None
            options = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
            idle, interval, count = (
                sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, option))
                for option in options
            )
            assert idle + interval * count == 7
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7000
