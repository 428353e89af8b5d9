"""``REPLICATED_MODE = 'observe'`` beside a real standby, which lags or does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from examples.cluster import wait_until

from .support import bind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from examples.cluster import Cluster
    from flask_replicated.routing.reports import EndpointReport, Report

    from .support import Build, Site


@pytest.fixture
def paused(healthy_cluster: Cluster) -> Iterator[Cluster]:
    """Give servers whose first standby shows nothing new, once it is paused."""
    yield healthy_cluster
    healthy_cluster.standbys[0].execute("select pg_wal_replay_resume()")


def report(site: Site) -> Report:
    """Return what was observed."""
    with site.app.app_context():
        found: Report = site.app.extensions["replicated"].report()
    return found


def seen(site: Site) -> EndpointReport:
    """Return what was observed of the page that reads."""
    return report(site).endpoints["show"]


def test_behind(build: Build, paused: Cluster, driver: str) -> None:
    """A standby that lags would not have served its client's reads; then it would."""
    standby = paused.standbys[0]
    site = build(
        {"slave_1": bind(standby, driver)},
        REPLICATED_MODE="observe",
        REPLICATED_PROBE_INTERVAL=0.05,
    )
    writer = site.client()
    assert site.get(writer).servers == ["primary", "primary"]
    assert (seen(site).moved, seen(site).demanding) == (1, 0)
    standby.execute("select pg_wal_replay_pause()")
    site.post("mine", writer)

    def is_behind() -> bool:
        assert site.get(writer).texts == ["mine"]
        return seen(site).behind > 0

    wait_until(is_behind, "a look that finds the standby behind")
    assert seen(site).held == {"fallback": seen(site).behind}
    assert seen(site).held_by == {"item": seen(site).behind}
    advice = report(site).advice()
    assert any("set REPLICATED_WAIT = 0.2: " in one for one in advice)
    standby.execute("select pg_wal_replay_resume()")
    paused.wait_replicated()
    behind = seen(site).behind

    def is_up_to_date() -> bool:
        moved = seen(site).moved
        site.get(writer)
        return seen(site).moved > moved

    wait_until(is_up_to_date, "a look that finds the standby up to date")
    found = seen(site)
    # A look may not have told enough to compare.
    assert behind <= found.compared <= found.demanding
    with site.app.app_context():
        (member,) = site.app.extensions["replicated"].snapshot()[None].members
    assert (member.reads, member.role) == (0, "replica")


def test_waiting(build: Build, paused: Cluster, driver: str) -> None:
    """A read that would wait for a replica until it shows the write is served by it."""
    standby = paused.standbys[0]
    site = build(
        {"slave_1": bind(standby, driver)},
        REPLICATED_MODE="observe",
        REPLICATED_PROBE_INTERVAL=0.05,
        REPLICATED_FAILOVER_TIMEOUT=3600,
        REPLICATED_WAIT=3600,
    )
    writer = site.client()
    site.get(writer)
    standby.execute("select pg_wal_replay_pause()")
    site.post("mine", writer)

    def is_behind() -> bool:
        site.get(writer)
        return seen(site).behind > 0

    wait_until(is_behind, "a look that finds the standby behind")
    assert (seen(site).held, seen(site).moved) == ({}, seen(site).reads)
    assert not any("REPLICATED_WAIT" in one for one in report(site).advice())
