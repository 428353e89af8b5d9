"""What clients see of their own writes, and who shows it to them."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import pytest

from tests.balancers.support import FakeClock
from tests.support import COOKIE

from .support import STANDBYS, end_backends

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flask.testing import FlaskClient

    from examples.cluster import Cluster

    from .support import Build, Site


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """Give the clock by which tokens age."""
    clock = FakeClock(time.time())
    monkeypatch.setattr(time, "time", clock)
    return clock


@pytest.fixture
def paused(healthy_cluster: Cluster) -> Iterator[Cluster]:
    """Give servers whose standbys show nothing new, once they are paused."""
    yield healthy_cluster
    pause(healthy_cluster, resume=True)


def pause(cluster: Cluster, *, resume: bool = False) -> None:
    """Let the standbys show nothing new, or go on."""
    for standby in cluster.standbys:
        standby.execute(f"select pg_wal_replay_{'resume' if resume else 'pause'}()")


def with_cookie(site: Site, value: str) -> FlaskClient:
    """Return a client that has a cookie."""
    client = site.client()
    client.set_cookie(COOKIE, value)
    return client


def cookie_of(client: FlaskClient) -> str:
    """Return the token that a client has."""
    found = client.get_cookie(COOKIE)
    return "" if found is None else found.value


def test_a_minute_of_lag(build: Build, paused: Cluster, clock: FakeClock) -> None:
    """A write is seen by its client while replicas lag, and on replicas afterwards."""
    site = build(REPLICATED_PIN_SECONDS=5)
    writer = site.client()
    pause(paused)
    site.post("mine", writer)
    for _ in range(6):
        clock.now += 10
        assert site.get(writer).texts == ["mine"]
        assert site.get(site.client()).texts == []
    pause(paused, resume=True)
    paused.wait_replicated()
    answer = site.get(writer)
    assert answer.texts == ["mine"]
    assert answer.servers[0] in STANDBYS


def test_soon_on_replicas(build: Build, healthy_cluster: Cluster) -> None:
    """Of 20 reads that come 150 ms after their client's write, replicas serve 16."""
    site = build()
    site.count(6)
    healthy_cluster.wait_replicated()
    served = 0
    for number in range(20):
        writer = site.client()
        site.post(str(number), writer)
        time.sleep(0.15)
        answer = site.get(writer)
        assert str(number) in answer.texts
        served += answer.servers[0] in STANDBYS
    assert served >= 16


@pytest.mark.parametrize("guarantee", ["read_your_writes", "monotonic"])
def test_answers_cross(build: Build, paused: Cluster, guarantee: str) -> None:
    """A write is seen though the answer to an earlier one has come after its own."""
    site = build(REPLICATED_GUARANTEE=guarantee)
    writer = site.client()
    site.post("first", writer)
    carried = cookie_of(writer)
    one, other = with_cookie(site, carried), with_cookie(site, carried)
    site.post("second", one)
    paused.wait_replicated()
    pause(paused)
    site.post("third", other)
    assert site.get(one).texts == ["first", "second", "third"]
    assert site.get(with_cookie(site, carried)).texts == ["first", "second", "third"]


def test_lost_when_asked(
    build: Build, healthy_cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """A connection that ended while it idled is no error when it is asked."""
    site = build()
    writer = site.client()
    site.at_once(6)
    site.post("mine", writer)
    healthy_cluster.wait_replicated()
    for standby in healthy_cluster.standbys:
        end_backends(standby)
    for _ in range(6):
        assert site.get(writer).texts == ["mine"]
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]
