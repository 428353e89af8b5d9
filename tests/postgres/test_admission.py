"""New connections to real standbys that are behind: no probe has seen them yet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from examples.cluster import wait_until
from flask_replicated.replica import admission
from flask_replicated.replica import fitness as histories
from flask_replicated.replica.replica_status import sleep_on_server
from tests.postgres.support import bind

if TYPE_CHECKING:
    from examples.cluster import Cluster, Standby
    from tests.postgres.support import Build, Site

pytestmark = pytest.mark.postgres

BINDS = ("slave_1", "slave_2", "slave_3")
STRICT: dict[str, Any] = {"REPLICATED_PROBE_INTERVAL": 0, "REPLICATED_MAX_LAG": 0.5}
AGE = "select extract(epoch from clock_timestamp() - pg_last_xact_replay_timestamp())"


def grow_old(standby: Standby) -> None:
    """Wait until the last transaction that a standby shows is older than allowed."""
    wait_until(lambda: float(standby.execute(AGE)[0][0]) > 0.6, "it to grow old")


def let_lag(cluster: Cluster, standby: Standby) -> None:
    """Let a standby have something to replay for longer than allowed."""
    cluster.primary.execute("insert into item (text) values ('seen by all')")
    cluster.wait_replicated()
    standby.pause_replay()
    cluster.primary.execute("insert into item (text) values ('not replayed')")
    grow_old(standby)


def why(site: Site, name: str) -> str:
    """Return why a replica is out."""
    return site.pool.causes()[name]


def test_behind(build: Build, healthy_cluster: Cluster) -> None:
    """A process that has just begun reads nothing that is too old."""
    first = healthy_cluster.standbys[0]
    let_lag(healthy_cluster, first)
    site = build(**STRICT)
    assert site.count(12).keys() == {"standby_2", "standby_3"}
    assert "REPLICATED_MAX_LAG = 0.5" in why(site, "slave_1")
    first.resume_replay()
    site.wait_live(*BINDS)


def test_before_the_first_probe(build: Build, healthy_cluster: Cluster) -> None:
    """With background probes, no read waits for the first one."""
    let_lag(healthy_cluster, healthy_cluster.standbys[0])
    site = build(**{**STRICT, "REPLICATED_PROBE_INTERVAL": 3600})
    assert site.count(12).keys() == {"standby_2", "standby_3"}


def test_any_lag(build: Build, healthy_cluster: Cluster) -> None:
    """With None a standby may be as late as it likes."""
    let_lag(healthy_cluster, healthy_cluster.standbys[0])
    site = build(**{**STRICT, "REPLICATED_MAX_LAG": None})
    assert site.count(6).keys() == {"standby_1", "standby_2", "standby_3"}


def test_idle_primary(build: Build, healthy_cluster: Cluster) -> None:
    """A primary that writes nothing makes no standby late."""
    for standby in healthy_cluster.standbys:
        grow_old(standby)
    site = build(**STRICT)
    assert site.count(6).keys() == {"standby_1", "standby_2", "standby_3"}


def test_primary_that_was_idle(
    build: Build, healthy_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes in the moment of a connect takes none out, once it is replayed."""
    (standby, *_) = healthy_cluster.standbys
    let_lag(healthy_cluster, standby)
    moments: list[None] = []

    def replayed_meanwhile(cursor: Any) -> None:
        if len(moments) == 1:
            standby.resume_replay()
            standby.wait_replayed(healthy_cluster.primary.position())
        sleep_on_server(cursor)
        moments.append(None)

    monkeypatch.setattr(histories, "sleep_on_server", replayed_meanwhile)
    site = build(**STRICT)
    assert site.count(6).keys() == {"standby_1", "standby_2", "standby_3"}
    assert len(moments) == 2
    assert site.live() == set(BINDS)


def test_in_the_pool(
    build: Build, healthy_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without probes, pooled connections make room for one that asks."""
    monkeypatch.setattr(admission, "_AGAIN", 0.3)
    site = build(**STRICT)
    assert site.count(6).keys() == {"standby_1", "standby_2", "standby_3"}
    let_lag(healthy_cluster, healthy_cluster.standbys[0])
    site.wait_live("slave_2", "slave_3")
    assert "REPLICATED_MAX_LAG" in why(site, "slave_1")


def test_promoted_in_the_pool(
    build: Build, healthy_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is with a standby that was promoted; the first word is enough."""
    monkeypatch.setattr(admission, "_AGAIN", 0.3)
    site = build(REPLICATED_PROBE_INTERVAL=0)
    site.count(6)
    healthy_cluster.standbys[0].promote()
    site.wait_live("slave_2", "slave_3")
    assert "no replica but a primary" in why(site, "slave_1")


def test_all_behind(build: Build, healthy_cluster: Cluster, driver: str) -> None:
    """When none is fresh enough the primary reads."""
    standby = healthy_cluster.standbys[0]
    let_lag(healthy_cluster, standby)
    site = build({"slave_1": bind(standby, driver)}, **STRICT)
    assert site.get().texts[-1] == "not replayed"
    assert site.count(4) == {"primary": 4}


def test_receives_nothing(build: Build, healthy_cluster: Cluster) -> None:
    """A standby that was cut off goes out when it may have missed too much."""
    (standby, *_) = healthy_cluster.standbys
    site = build(
        REPLICATED_PROBE_INTERVAL=0.2,
        REPLICATED_MAX_LAG=3,
        REPLICATED_BREAKER_THRESHOLD=100,
    )
    site.count(3)
    ((source,),) = standby.execute("show primary_conninfo")
    source = source.replace("'", "''")
    standby.execute("alter system set primary_conninfo = ''")
    standby.execute("select pg_reload_conf()")
    try:
        wait_until(
            lambda: not standby.execute("select 1 from pg_stat_wal_receiver"),
            "it to be cut off",
        )
        # What it has not received is counted from when the primary has it.
        healthy_cluster.primary.execute("insert into item (text) values ('missed')")
        site.wait_live("slave_2", "slave_3")
        assert "REPLICATED_MAX_LAG = 3" in why(site, "slave_1")
    finally:
        standby.execute(f"alter system set primary_conninfo = '{source}'")
        standby.execute("select pg_reload_conf()")
    site.wait_live(*BINDS)
