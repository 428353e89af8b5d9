"""What a snapshot says of each replica and each bind."""

from __future__ import annotations

import json
import pickle
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from flask import Flask

from balancers import Member
from flask_replicated import FlaskReplicated, WriteOnReplicaError, using_slave
from flask_replicated.fleet.description import describe
from flask_replicated.fleet.outage_log import OutageLog
from flask_replicated.replica.connection_events import ReplicaServer
from flask_replicated.replica.replica_status import ReplicaReport
from tests.fleets import Fleet, fleet_fixture
from tests.support import Build, break_file, build_fixture, sqlite_url

if TYPE_CHECKING:
    from flask_replicated import ReplicaPoolSnapshot, ReplicaSnapshot

build = build_fixture
fleet = fleet_fixture


def shown(fleet: Fleet) -> ReplicaPoolSnapshot:
    """Return the snapshot of the default bind."""
    with fleet.site.app.app_context():
        return fleet.extension.snapshot()[None]


def member(fleet: Fleet, name: str = "slave_1") -> ReplicaSnapshot:
    """Return the snapshot of one replica."""
    return next(one for one in shown(fleet).members if one.name == name)


def test_without_replicas() -> None:
    """An application without replicas has an empty snapshot, and the commands."""
    app = Flask("plain")
    from flask_sqlalchemy import SQLAlchemy

    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    SQLAlchemy(app)
    extension = FlaskReplicated(app)
    with app.app_context():
        assert extension.snapshot() == {}
    with pytest.raises(RuntimeError, match=r"snapshot\(\) needs an application"):
        extension.snapshot()
    assert app.test_cli_runner().invoke(args=["replicated", "--help"]).exit_code == 0


def test_state_reason_and_since(fleet: Fleet) -> None:
    """State and reason follow what happens, and *since* is when the state began."""
    began = time.time()
    first = member(fleet)
    assert (first.state, first.reason, first.host) == ("closed", None, None)
    assert first.since <= began
    with fleet.site.app.app_context():
        fleet.extension.pool().drain("slave_1")
    drained = member(fleet)
    assert (drained.state, drained.reason) == ("drained", "drained")
    assert began <= drained.since <= time.time()
    with fleet.site.app.app_context():
        fleet.extension.pool().restore("slave_1")
    restored = member(fleet)
    assert (restored.state, restored.reason) == ("closed", None)
    assert drained.since <= restored.since


def test_a_failover(build: Build) -> None:
    """A replica that fails is out with cause and time; its failovers are counted."""
    fleet = Fleet(
        build,
        REPLICATED_BREAKER_THRESHOLD=1,
        REPLICATED_BREAKER_RESET=30,
        REPLICATED_PROBE_INTERVAL=0,  # a read is to find it
    )
    began = time.time()
    fleet.site.count(3)
    fleet.site.dispose()
    break_file(fleet.site.folder, "slave_2")
    assert set(fleet.site.count(6)) == {"slave_1", "slave_3"}
    out = member(fleet, "slave_2")
    assert (out.state, out.reason) == ("open", "down")
    assert began <= out.since <= time.time()
    found = shown(fleet)
    assert found.failovers == {"slave_2": {"down": 1}}
    assert (found.fallbacks, found.reruns) == (0, 0)
    assert pickle.loads(pickle.dumps(found)) == found
    json.dumps(asdict(found))
    fleet.remove("slave_2")
    assert shown(fleet).failovers == {}


def test_what_a_bind_counts(build: Build) -> None:
    """Fallbacks, refused writes by endpoint, and pins by kind are counted."""
    fleet = Fleet(build, REPLICATED_PROBE_INTERVAL=0)  # reads are to find what is out
    site = fleet.site
    site.app.add_url_rule("/refused", view_func=site.refused)
    site.get("/refused")
    with site.app.app_context(), using_slave(), pytest.raises(WriteOnReplicaError):
        site.write()
    site.client().post("/write")
    site.dispose()
    for name in ("slave_1", "slave_2", "slave_3"):
        break_file(site.folder, name)
    assert site.get() == "master"
    found = shown(fleet)
    assert found.refused_writes == {"refused": 1, "(outside a request)": 1}
    assert found.pins == {"time": 1}
    assert found.fallbacks == 1
    assert sum(found.failovers[name]["down"] for name in found.failovers) == 3


@pytest.mark.parametrize(
    ("report", "role", "lag", "position"),
    [
        (ReplicaReport(), None, None, None),
        (
            ReplicaReport(primary=False, lag=1.5, replayed=0x1_0300_0060),
            "replica",
            1.5,
            "1/3000060",
        ),
        (ReplicaReport(primary=True), "primary", None, None),
        (ReplicaReport(primary=False, gtids={"0": 7, "2": 9}), "replica", None, None),
    ],
)
def test_what_its_server_says(
    tmp_path: Any, report: ReplicaReport, role: str, lag: float, position: str
) -> None:
    """Role, lag and position are those of the last look; unknown is not zero."""
    engine = sa.create_engine(sqlite_url(tmp_path / "one.db"))
    server = ReplicaServer("slave_1", engine, 2)
    server.history.latest = report
    facts = describe({"slave_1": server}, OutageLog({}), Member("slave_1", engine, 1))
    wanted = "0:7,2:9" if report.gtids else position
    assert (facts.role, facts.lag, facts.position) == (role, lag, wanted)
    assert (facts.idle, facts.used) == (0, 0)
