"""One address with several standbys behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from examples.cluster import wait_until
from flask_replicated import WriteOnReplicaError, using_slave
from tests.haproxy import PROGRAM, haproxy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from examples.cluster import Cluster
    from tests.postgres.support import Backend, Build, Site

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.skipif(PROGRAM is None, reason="HAProxy is not installed"),
]

MANY = 6  # connections, and as many threads that hold one each


def url(port: int, driver: str) -> str:
    """Return the URL of what listens on a port."""
    return f"postgresql+{driver}://postgres@127.0.0.1:{port}/postgres"


@pytest.fixture
def site(build: Build, healthy_cluster: Cluster, driver: str) -> Iterator[Site]:
    """Give an application with one bind, and two standbys behind it."""
    one, two = (standby.port for standby in healthy_cluster.standbys[:2])
    with haproxy(one, two) as port:
        site = build({"slave_1": {"url": url(port, driver), "pool_size": MANY}})
        yield site
        site.dispose()


def servers(site: Site) -> set[str]:
    """Return who answers, over all connections that a pool has."""
    return {answer.servers[0] for answer in site.at_once(MANY)}


def test_reads_use_all(site: Site) -> None:
    """Connections to one address reach every server, and each is read-only."""
    assert servers(site) == {"standby_1", "standby_2"}
    with site.app.test_request_context("/"), using_slave():
        with pytest.raises(WriteOnReplicaError):
            site.db.session.execute(text("select slip()"))
        site.db.session.rollback()
        setting = text("select current_setting('default_transaction_read_only')")
        assert site.db.session.scalar(setting) == "on"


def test_one_dies(site: Site, healthy_cluster: Cluster) -> None:
    """A server that dies behind the address fails no request."""
    servers(site)
    healthy_cluster.standbys[0].kill()
    # Until HAProxy has noticed, others may have to serve.
    wait_until(lambda: servers(site) == {"standby_2"}, "HAProxy to notice", timeout=20)


def backend(site: Site) -> Backend:
    """Return who serves a GET."""
    found: list[Backend] = []
    site.between = found.append
    site.get()
    return found[0]


def test_idle_connections_are_cut(
    build: Build, healthy_cluster: Cluster, driver: str
) -> None:
    """A connection that HAProxy has cut for being idle is replaced in time."""
    standby = healthy_cluster.standbys[0]
    living = "select pid from pg_stat_activity where backend_type = 'client backend'"
    with haproxy(standby.port, idle="300ms") as port:
        site = build({"slave_1": url(port, driver)}, REPLICATED_PROBE_INTERVAL=0)
        first = backend(site)
        wait_until(lambda: (first.pid,) not in standby.execute(living), "it to be cut")
        second = backend(site)
        assert first.server == second.server == "standby_1"
        assert first.pid != second.pid
        site.dispose()
