"""Workers of gunicorn that fork from an application which has read before."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("gunicorn", reason="gunicorn is not installed")

from examples.cluster import wait_until
from tests.chaos.workers import started
from tests.postgres.support import bind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from examples.cluster import Cluster, Server
    from tests.chaos.workers import Service

pytestmark = pytest.mark.postgres

KINDS: dict[str, dict[str, object]] = {
    "gthread": {"--worker-class": "gthread", "--threads": 4, "--preload": ""},
    "gevent": {"--worker-class": "gevent", "--preload": ""},
}


@pytest.fixture(params=KINDS)
def service(
    request: pytest.FixtureRequest, healthy_cluster: Cluster
) -> Iterator[Service]:
    """Give two workers of each kind."""
    kind = request.param
    if kind == "gevent" and find_spec("gevent") is None:
        pytest.skip("gevent is not installed")
    servers = (healthy_cluster.primary, *healthy_cluster.standbys)
    config = {
        "urls": [bind(server, "psycopg") for server in servers],
        "greenlets": kind == "gevent",
    }
    environment = {"PRELOADED": json.dumps(config)}
    named = "tests.postgres.preloaded:app"
    with started(named, environment, "/own", 2, KINDS[kind]) as running:
        yield running


def ask(service: Service) -> dict[str, Any]:
    """Return what a worker says of itself."""
    status, fields = service.visitor().ask("GET", "/own")
    assert status == 200, fields
    return fields


def workers(service: Service, probes: int) -> dict[int, dict[str, Any]]:
    """Return what each worker says once it keeps so many connections to probe."""
    found: dict[int, dict[str, Any]] = {}

    def settled() -> bool:
        fields = ask(service)
        found[fields["pid"]] = fields
        ready = [one for one in found.values() if len(one["probing"]) == probes]
        return len(ready) == service.workers

    wait_until(settled, "every worker to probe every server", timeout=30)
    return found


def backends(servers: tuple[Server, ...]) -> set[int]:
    """Return the backends of all connections to these servers."""
    query = "select pid from pg_stat_activity where backend_type = 'client backend'"
    return {pid for server in servers for (pid,) in server.execute(query)}


def test_each_has_its_own(service: Service, healthy_cluster: Cluster) -> None:
    """Each worker probes for itself, and the parent's connections are left alone."""
    standbys = healthy_cluster.standbys
    servers = (healthy_cluster.primary, *standbys)
    first, second = workers(service, len(servers)).values()
    assert first["monitors"] == second["monitors"] == 1
    parent = {*first["parent"]["probing"], *first["parent"]["reading"]}
    assert len(parent) == len(servers) + len(standbys)
    owned = [parent] + [{*one["probing"], *one["reading"]} for one in (first, second)]
    assert sum(map(len, owned)) == len(set().union(*owned))
    assert parent <= backends(servers)


def test_a_standby_dies(service: Service, healthy_cluster: Cluster) -> None:
    """Every worker leaves it out, and no request fails meanwhile."""
    standbys = healthy_cluster.standbys
    many = len(standbys) + 1  # and the primary
    parent = next(iter(workers(service, many).values()))["parent"]
    standbys[2].kill()
    workers(service, many - 1)
    assert {ask(service)["server"] for _ in range(40)} == {"standby_1", "standby_2"}
    assert len(backends(standbys[:2]) & {*parent["probing"], *parent["reading"]}) == 4
