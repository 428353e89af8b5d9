"""Fixtures for tests against real servers."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from examples.cluster import wait_until
from tests.postgres.support import DRIVERS, Site, bind, make_site, named

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from examples.cluster import Cluster
    from tests.postgres.support import Build


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> str:
    """Give the name of a driver."""
    pytest.importorskip(request.param)
    return str(request.param)


@pytest.fixture(scope="session")
def _schema(cluster: Cluster) -> None:
    cluster.primary.execute("create table item (id serial primary key, text text)")
    cluster.primary.execute(
        "create function slip() returns int language sql as "
        "$$ insert into item (text) values ('slipped') returning id $$"
    )
    cluster.wait_replicated()


@pytest.fixture
def build(_schema: None, healthy_cluster: Cluster, driver: str) -> Iterator[Build]:
    """Give a function that makes applications, and check what they leave behind."""
    primary = healthy_cluster.primary
    primary.execute("truncate item restart identity")
    healthy_cluster.wait_replicated()
    threads = set(threading.enumerate())
    sites: list[Site] = []

    def build(
        binds: Mapping[str, Any] | None = None,
        *,
        twophase: bool = False,
        **config: Any,
    ) -> Site:
        standbys = named(healthy_cluster.standbys)
        named_binds = {name: bind(server, driver) for name, server in standbys}
        known = named_binds if binds is None else binds
        site = make_site(bind(primary, driver), known, twophase=twophase, **config)
        sites.append(site)
        return site

    yield build
    assert not any(site.checked_out() for site in sites)
    for site in sites:
        site.dispose()
    wait_until(lambda: set(threading.enumerate()) <= threads, "threads to end")


@pytest.fixture
def site(build: Build) -> Site:
    """Give an application with three replicas, and with the default settings."""
    return build()
