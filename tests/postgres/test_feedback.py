"""Balancers that go by feedback, where threads are greenlets, or tasks of a loop."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask
from sqlalchemy import text

from flask_replicated import FlaskReplicated
from tests.chaos.proxy import Proxy
from tests.postgres.support import WHO, bind, run_greenlets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from examples.cluster import Cluster

pytestmark = pytest.mark.postgres

MEASURED = ["least_outstanding", "peak_ewma", "latency_window"]
LATE = 0.5
READS = 200
"""So few that round robin would not end soon, as half of them would be late."""


@pytest.fixture
def proxy(healthy_cluster: Cluster) -> Iterator[Proxy]:
    """Give a proxy in front of the first standby."""
    with Proxy(healthy_cluster.standbys[0].port) as proxy:
        yield proxy


def near(cluster: Cluster, proxy: Proxy, driver: str) -> str:
    """Return the URL of the first standby by way of the proxy."""
    first = cluster.standbys[0]
    return bind(first, driver).replace(str(first.port), str(proxy.port))


GREENLETS = """
from gevent import monkey

monkey.patch_all()

import json
import sys
from concurrent.futures import ThreadPoolExecutor

from gevent import Timeout
from sqlalchemy import text
from tests.postgres.support import make_site

balancer, reads, primary, *standbys = sys.argv[1:]
binds = {f"slave_{number}": url for number, url in enumerate(standbys, 1)}
site = make_site(
    primary, binds, REPLICATED_BALANCER=balancer, REPLICATED_PROBE_INTERVAL=0
)


def give_up(_):
    with site.app.test_request_context(), Timeout(0.1, False):
        site.db.session.execute(text("select pg_sleep(5)"))


def read(_):
    with site.app.test_request_context():
        return site.who().server


def served(reads):
    with ThreadPoolExecutor(6) as greenlets:
        found = list(greenlets.map(read, range(reads)))
    return {server: found.count(server) for server in found}


served(30)
print("ready", flush=True)
sys.stdin.readline()
found = served(int(reads))
with ThreadPoolExecutor(6) as greenlets:
    list(greenlets.map(give_up, range(6)))
flights = [member.feedback.in_flight for member in site.pool.members]
print(json.dumps([found, flights]))
"""


@pytest.mark.parametrize("balancer", MEASURED)
def test_greenlets(healthy_cluster: Cluster, proxy: Proxy, balancer: str) -> None:
    """A late standby gets less, and every use ends, of greenlets that give up too."""
    pytest.importorskip("gevent", reason="gevent is not installed")
    pytest.importorskip("psycopg")
    urls = (
        bind(healthy_cluster.primary, "psycopg"),
        near(healthy_cluster, proxy, "psycopg"),
        bind(healthy_cluster.standbys[1], "psycopg"),
    )
    output, _ = run_greenlets(
        GREENLETS,
        (balancer, str(READS), *urls),
        lambda: setattr(proxy, "delay", LATE),
    )
    found, flights = json.loads(output)
    assert found.get("standby_1", 0) < 0.2 * READS
    assert sum(found.values()) == READS
    assert flights == [0, 0]


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
@pytest.mark.parametrize("balancer", MEASURED)
def test_tasks(
    healthy_cluster: Cluster, proxy: Proxy, driver: str, balancer: str
) -> None:
    """A late standby gets less, and every use ends, of tasks that are cancelled too."""
    pytest.importorskip(driver)
    lite = pytest.importorskip("flask_sqlalchemy_lite")
    app = Flask("async")
    app.config.update(REPLICATED_BALANCER=balancer, REPLICATED_PROBE_INTERVAL=0)
    app.config["SQLALCHEMY_ASYNC_ENGINES"] = {
        "default": bind(healthy_cluster.primary, driver),
        "slave_1": near(healthy_cluster, proxy, driver),
        "slave_2": bind(healthy_cluster.standbys[1], driver),
    }
    db = lite.SQLAlchemy(app)
    replicated = FlaskReplicated(app)
    found: Counter[str] = Counter()

    async def read(statement: Any = WHO) -> str:
        # A request of its own: each keeps its replica.
        with app.test_request_context():
            async with db.async_sessionmaker() as session:
                return str((await session.execute(statement)).one()[0])

    async def work(reads: int) -> None:
        for _ in range(reads):
            found[await read()] += 1

    async def give_up() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(read(text("select pg_sleep(5)")), 0.1)

    async def main() -> list[int]:
        try:
            await asyncio.gather(*(work(5) for _ in range(5)))
            found.clear()
            proxy.delay = LATE
            await asyncio.gather(*(work(READS // 5) for _ in range(5)))
            await asyncio.gather(*(give_up() for _ in range(5)))
            members = replicated.pool("async default").members
            return [one.feedback.in_flight for one in members if one.feedback]
        finally:
            proxy.delay = 0.0
            for engine in db.async_engines.values():
                await engine.dispose()

    with app.app_context():
        flights = asyncio.run(main())
    assert found["standby_1"] < 0.2 * READS
    assert sum(found.values()) == READS
    assert flights == [0, 0]
