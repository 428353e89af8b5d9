"""What whoever is on call is told when a standby freezes under load, and comes back."""

from __future__ import annotations

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from threading import Event
from typing import TYPE_CHECKING, Any

import pytest

from examples.cluster import wait_until
from flask_replicated import signals
from flask_replicated.operations import asking
from flask_replicated.operations.control import CONTROL
from tests.postgres.support import CLIENTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from examples.cluster import Cluster, Server
    from tests.postgres.support import Build, Site

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.parametrize("driver", ["psycopg"], indirect=True),
]

KEYS = ("replicated_event", "replicated_bind", "replicated_replica", "replicated_cause")


def status(site: Site, code: int) -> dict[str, Any] | None:
    """Return what ``status`` says of the first replica, once its exit code is so."""
    result = site.app.test_cli_runner().invoke(args=["replicated", "status", "--json"])
    if result.exit_code != code:
        return None
    found: dict[str, Any] = json.loads(result.stdout)["binds"][""]["replicas"][0]
    return found


def clients(server: Server) -> list[tuple[int]]:
    """Return the processes that serve others' connections."""
    return server.execute(f"select pid {CLIENTS}")


def test_what_a_snapshot_says(build: Build, healthy_cluster: Cluster) -> None:
    """Place, role, lag, position and connections are those of the real server."""
    site = build(REPLICATED_PROBE_INTERVAL=0.1)
    with site.app.test_request_context():
        site.who()
    standby = healthy_cluster.standbys[0]

    def member() -> Any:
        with site.app.app_context():
            return site.app.extensions["replicated"].snapshot()[None].members[0]

    wait_until(lambda: member().latency is not None, "a look at it")
    ((position,),) = standby.execute("select pg_last_wal_replay_lsn()::text")
    wait_until(lambda: member().position == position, "its position to be known")
    found = member()
    assert (found.port, found.role, found.state) == (standby.port, "replica", "closed")
    assert found.lag_seconds == 0
    assert found.connections_used + found.connections_idle >= 0
    assert 0 < found.latency < 60


def test_status_leaves_no_connection(
    build: Build, healthy_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that answers before the next one is asked keeps no connection."""

    def start(_name: str, target: Callable[..., object], *args: object) -> bool:
        target(*args)
        return True

    monkeypatch.setattr(asking, "start_thread", start)
    site = build(REPLICATED_PROBE_INTERVAL=0)
    assert status(site, 0) is not None
    standbys = healthy_cluster.standbys
    wait_until(lambda: not any(map(clients, standbys)), "connections to be closed")


@contextmanager
def heard_outages(site: Site) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """Give the signals of the first replica's outages, each with its keywords.

    On a busy machine another one may be late with an answer, too.
    """
    heard: list[tuple[str, dict[str, Any]]] = []

    def out(_app: Any, **facts: Any) -> None:
        heard.extend([("out", facts)] if facts["replica"] == "slave_1" else [])

    def back(_app: Any, **facts: Any) -> None:
        heard.extend([("back", facts)] if facts["replica"] == "slave_1" else [])

    with (
        signals.replica_out.connected_to(out, site.app),
        signals.replica_back.connected_to(back, site.app),
    ):
        yield heard


def outage_records(caplog: pytest.LogCaptureFixture) -> list[tuple[Any, ...]]:
    """Return what log records say of the first replica's outages."""
    return [
        tuple(one.__dict__[key] for key in KEYS)
        for one in caplog.records
        if one.__dict__.get("replicated_event") in {"replica_out", "replica_back"}
        and one.__dict__["replicated_replica"] == "slave_1"
    ]


def shows_outage(site: Site, shown: list[dict[str, Any]]) -> bool:
    """Whether ``status`` says that the first replica is out; keep what it says."""
    found = status(site, 1)
    shown.extend([found] if found and found["state"] == "open" else [])
    return bool(shown)


@pytest.mark.parametrize("by", ["workers", "asking"])
def test_a_frozen_standby(
    build: Build,
    healthy_cluster: Cluster,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    by: str,
) -> None:
    """Status, one signal and one log record say so with the cause; and of its end."""
    caplog.set_level(logging.WARNING, "flask_replicated")
    site = build(
        REPLICATED_PROBE_INTERVAL=0.4,
        REPLICATED_CONNECT_TIMEOUT=2,
        REPLICATED_CONTROL=str(tmp_path / "control") if by == "workers" else None,
    )
    over = Event()
    shown: list[dict[str, Any]] = []

    def load() -> None:
        while not over.is_set():
            with site.app.test_request_context():
                site.who()

    with heard_outages(site) as heard, ThreadPoolExecutor(2) as threads:
        running = [threads.submit(load) for _ in range(2)]
        try:
            wait_until(lambda: status(site, 0) is not None, "all to be well", 20)
            healthy_cluster.standbys[0].freeze()
            wait_until(partial(shows_outage, site, shown), "the outage shown", 20)
            wait_until(lambda: bool(heard), "the outage to be told", 20)
            healthy_cluster.standbys[0].thaw()
            wait_until(lambda: len(heard) > 1, "the end to be told", 20)
            wait_until(lambda: status(site, 0) is not None, "the end to be shown", 20)
        finally:
            over.set()
            healthy_cluster.standbys[0].thaw()
        assert [one.result() for one in running] == [None, None]
    assert shown[0]["name"] == "slave_1"
    cause = heard[0][1]["cause"]
    assert cause in {"silent", "down"}
    assert shown[0]["reason"] in {"silent", "down"}
    assert [name for name, _ in heard] == ["out", "back"]
    assert outage_records(caplog) == [
        ("replica_out", None, "slave_1", cause),
        ("replica_back", None, "slave_1", heard[1][1]["cause"]),
    ]
    control = site.app.extensions.get(CONTROL)
    if control is not None:
        control.end()
