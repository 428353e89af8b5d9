"""Standbys that are reached by a name, and a name server that is silent."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.postgres.support import bind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from examples.cluster import Cluster, Server
    from tests.postgres.support import Build

pytestmark = [pytest.mark.postgres, pytest.mark.usefixtures("_names")]


@pytest.fixture
def _names(build: Build, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let one name stand for this machine, and the server of another be silent."""
    resolve, speak = socket.getaddrinfo, threading.Event()

    def stand_in(host: Any, *rest: Any, **more: Any) -> Any:
        if host == "silent.test":
            speak.wait(60)
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return resolve("127.0.0.1" if host == "db.test" else host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", stand_in)
    yield
    speak.set()


def by_name(server: Server, driver: str, name: str) -> str:
    """Return the URL of a server, with a name for its address."""
    return bind(server, driver).replace("127.0.0.1", name)


def test_silent_name_server(
    build: Build, healthy_cluster: Cluster, driver: str
) -> None:
    """A replica whose name is not known in time is out, and no read waits for it."""
    first, second, _ = healthy_cluster.standbys
    # The monitor's thread ends with the probe that waits for the name.
    site = build(
        {
            "slave_1": by_name(first, driver, "db.test"),
            "slave_2": by_name(second, driver, "silent.test"),
        },
        REPLICATED_CONNECT_TIMEOUT=1,
        REPLICATED_BREAKER_MAX_RESET=60,
    )
    took = []
    for _ in range(12):
        began = time.monotonic()
        assert site.get().servers[0] == "standby_1"
        took.append(time.monotonic() - began)
    assert max(took) < 8
    assert site.live() == {"slave_1"}
    assert "its name server has not answered" in str(site.pool.causes())


def test_every_server_by_name(
    build: Build, healthy_cluster: Cluster, driver: str
) -> None:
    """The primary and its replicas are found by their names."""
    binds = {
        f"slave_{number}": by_name(server, driver, "db.test")
        for number, server in enumerate(healthy_cluster.standbys, start=1)
    }
    primary = by_name(healthy_cluster.primary, driver, "db.test")
    site = build(binds, SQLALCHEMY_DATABASE_URI=primary)
    assert site.post("written").texts == ["written"]
    assert set(site.count(6)) == {"standby_1", "standby_2", "standby_3"}
