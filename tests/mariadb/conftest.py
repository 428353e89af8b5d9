"""A MariaDB primary and its replica."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

import pytest

from examples.cluster import wait_until
from tests.mariadb.servers import Cluster, Replica, Server, have_programs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flask_replicated.engine.engines import RoutedEngine


class Servers(NamedTuple):
    """The servers.

    Attributes:
        primary: Takes writes.
        replica: Replicates from it.
        other: Replicates from nobody; its id is the primary's, as that of a clone.
    """

    primary: Server
    replica: Replica
    other: Server


@pytest.fixture(scope="session")
def _running() -> Iterator[Servers]:
    pytest.importorskip("pymysql")
    if not have_programs():
        pytest.skip("MariaDB's server is not installed")
    with Cluster(standbys=1) as cluster:
        other = cluster.started(Server, "other", 1)
        yield Servers(cluster.primary, cluster.standbys[0], other)


@pytest.fixture
def servers(_running: Servers) -> Servers:
    """Give a primary, its replica, and another server that is neither."""
    if not _running.replica.follows():
        _running.replica.promote()
        _running.replica.follow(_running.primary)
    return _running


@pytest.fixture
def made() -> Iterator[list[RoutedEngine]]:
    """Give a list of engines that are disposed of in the end, with their threads."""
    engines: list[RoutedEngine] = []
    threads = set(threading.enumerate())
    yield engines
    for engine in engines:
        engine.dispose()
    wait_until(
        lambda: (
            not [
                t
                for t in threading.enumerate()
                if t not in threads and "replicated" in t.name
            ]
        ),
        "the threads to end",
    )
