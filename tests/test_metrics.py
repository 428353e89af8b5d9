"""Metrics for Prometheus: names, values, and the mode of several processes."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flask_replicated import ConfigurationError
from tests.support import Build, break_file, build_fixture, make_file, sqlite_url

pytest.importorskip("prometheus_client")

from prometheus_client import (
    CollectorRegistry,
    generate_latest,
    parser,
)

from flask_replicated import metrics

build = build_fixture

MONITORING = Path(__file__).parent.parent / "examples" / "monitoring"
# What anybody may build on, by the contract.
LABELS = {
    "replicated_reads_total": ("bind", "replica"),
    "replicated_decisions_total": ("role", "reason"),
    "replicated_replica_state": ("bind", "replica", "state"),
    "replicated_replica_lag_seconds": ("bind", "replica"),
    "replicated_failovers_total": ("bind", "replica", "cause"),
    "replicated_fallbacks_total": ("bind",),
    "replicated_refused_writes_total": ("endpoint",),
    "replicated_pool_connections": ("bind", "replica", "state"),
}


@pytest.fixture
def registry() -> CollectorRegistry:
    """Give an empty registry."""
    return CollectorRegistry()


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    """Return a sample; None if there is no such series."""
    return registry.get_sample_value(f"replicated_{name}", labels)


def test_names() -> None:
    """Names and labels are those of the contract."""
    assert {one.name: one.labels for one in metrics.METRICS} == LABELS


def test_values(build: Build, registry: CollectorRegistry) -> None:
    """Each metric says what the snapshot says at the scrape."""
    # No probe: a read is to find the replica that is out.
    site = build(("slave_1", "slave_2"), REPLICATED_PROBE_INTERVAL=0)
    site.app.add_url_rule("/refused", "shop.refused", site.refused)
    metrics.register(registry, site.app)
    assert value(registry, "decisions_total", role="replica", reason="method") == 0
    site.count(4)
    site.client().post("/")
    site.get("/refused")
    break_file(site.folder, "slave_2")
    site.dispose()
    site.count(4)
    with site.app.app_context():
        site.app.extensions["replicated"].pool().drain("slave_1")
    site.count(1)
    shown = {
        ("reads_total", "slave_1"): 6,
        ("reads_total", "slave_2"): 2,
        ("reads_total", "primary"): 2,
    }
    for (name, replica), count in shown.items():
        assert value(registry, name, bind="", replica=replica) == count, replica
    assert value(registry, "decisions_total", role="replica", reason="method") == 8
    assert value(registry, "decisions_total", role="primary", reason="method") == 1
    assert value(registry, "decisions_total", role="primary", reason="fallback") == 1
    assert value(registry, "fallbacks_total", bind="") == 1
    assert value(registry, "refused_writes_total", endpoint="shop.refused") == 1
    text = generate_latest(registry).decode()
    failovers = re.findall(
        r'failovers_total{bind="",cause="(\w+)",replica="(\w+)"}', text
    )
    assert [replica for _, replica in failovers] == ["slave_2"]
    lag = value(registry, "replica_lag_seconds", bind="", replica="slave_1")
    assert lag is not None
    assert math.isnan(lag)  # unknown, which is not zero


def states(registry: CollectorRegistry, replica: str) -> dict[str, float | None]:
    """Return what the states of a replica of the default bind say."""
    return {
        state: value(registry, "replica_state", bind="", replica=replica, state=state)
        for state in ("closed", "open", "half_open", "drained")
    }


def test_one_state(build: Build, registry: CollectorRegistry) -> None:
    """A replica is in one state; drained wins; a removed one has none."""
    site = build(("slave_1", "slave_2"))
    metrics.register(registry, site.app)
    none = dict.fromkeys(("closed", "open", "half_open", "drained"), 0.0)
    assert states(registry, "slave_2") == {**none, "closed": 1.0}
    with site.app.app_context():
        extension = site.app.extensions["replicated"]
        pool = extension.pool()
        [_, member] = pool.members
        pool.trip(member, 60, ConnectionError("dead"))
        assert states(registry, "slave_2") == {**none, "open": 1.0}
        pool.drain("slave_2")
        assert states(registry, "slave_2") == {**none, "drained": 1.0}
        extension.remove("slave_2")
    assert set(states(registry, "slave_2").values()) == {None}
    assert "slave_2" not in generate_latest(registry).decode()


def test_binds_and_hostile_names(build: Build, registry: CollectorRegistry) -> None:
    """Other binds have their label, and no name can end a line."""
    name = 'x"\\y'
    folder = build(()).folder
    urls = {
        one: sqlite_url(make_file(folder, "master")) for one in (name, f"{name}_slave")
    }
    site = build(("slave_1",), binds=urls)
    metrics.register(registry, site.app)
    with site.app.app_context():
        assert set(site.app.extensions["replicated"].snapshot()) == {None, name}
    assert value(registry, "reads_total", bind=name, replica=f"{name}_slave") == 0
    text = generate_latest(registry).decode()
    assert all(line.startswith(("#", "replicated_")) for line in text.splitlines())


def test_the_current_application(build: Build, registry: CollectorRegistry) -> None:
    """Without an application it is the current one; without any, an error."""
    site = build(("slave_1",))
    with pytest.raises(RuntimeError, match="application context"):
        metrics.register(registry)
    with site.app.app_context():
        metrics.register(registry)
    assert value(registry, "reads_total", bind="", replica="slave_1") == 0


def test_two_applications(build: Build, registry: CollectorRegistry) -> None:
    """A second one in the same registry is an error that says what to do."""
    metrics.register(registry, build(("slave_1",)).app)
    other = build(("slave_1",)).app
    with pytest.raises(ConfigurationError, match="a registry of its own"):
        metrics.register(registry, other)
    other.extensions.pop("replicated.state")
    with pytest.raises(ConfigurationError, match=r"FlaskReplicated\(app\)"):
        metrics.register(CollectorRegistry(), other)


def test_two_applications_in_one_file(
    build: Build, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the multiprocess mode a second one would write over the first one's values."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "/nowhere")
    metrics.register(registry, build(("slave_1",)).app)
    assert list(registry.collect()) == []
    with pytest.raises(ConfigurationError, match="processes of its own"):
        metrics.register(CollectorRegistry(), build(("slave_1",)).app)


def test_forked(
    build: Build, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is new is added to counters, also where a count begins anew."""
    site = build(("slave_1", "slave_2"))
    published = metrics._Published(site.app.extensions["replicated.state"])
    reads = published._metrics["replicated_reads_total"]
    seen = []
    for step in range(4):
        if step == 2:
            site.app.extensions["replicated.state"].after_fork()
            published.after_fork()
        site.count(2)
        published.update()
        published.update()
        seen.append(
            sum(
                sample.value
                for family in reads.collect()
                for sample in family.samples
                if sample.name.endswith("_total")
            )
        )
    assert seen == [2, 4, 6, 8]


WORKER = """
import sys
from pathlib import Path
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_replicated import FlaskReplicated
from flask_replicated.metrics import register
from prometheus_client import CollectorRegistry, generate_latest
folder, reads, removes = Path(sys.argv[1]), int(sys.argv[2]), len(sys.argv) > 3
app = Flask("worker", instance_path=str(folder))
app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{folder / 'master.db'}"
app.config["SQLALCHEMY_BINDS"] = {
    name: f"sqlite:///{folder / name}.db" for name in ("slave_1", "slave_2")
}
db = SQLAlchemy(app)
replicated = FlaskReplicated(app)
app.add_url_rule("/", view_func=lambda: str(db.session.scalar(db.text("SELECT 1"))))
registry = CollectorRegistry()
register(registry, app)
tick = app.extensions["replicated.state"].each_second
for _ in range(reads):
    assert app.test_client().get("/").text == "1"
    tick()
with app.app_context():
    if removes:
        replicated.remove("slave_2")
    else:
        replicated.pool().drain("slave_2")
tick()
assert generate_latest(registry) == b""
print("done", flush=True)
sys.stdin.read()
"""


def start_worker(environ: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    """Start a process that counts, and wait for nothing."""
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, *arguments],
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


SCRAPE = """
import sys
from prometheus_client import CollectorRegistry, generate_latest, multiprocess
from flask_replicated.metrics import PresentReplicasCollector
for pid in sys.argv[1:]:
    multiprocess.mark_process_dead(int(pid))
for collector in (multiprocess.MultiProcessCollector, PresentReplicasCollector):
    registry = CollectorRegistry()
    collector(registry)
    sys.stdout.write(generate_latest(registry).decode() + "===")
"""


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Return the values of a scrape, by name and labels' values."""
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.parametrize("dead", [False, True])
def test_two_processes(tmp_path: Path, dead: bool) -> None:
    """Two workers' counts add up, one that has ended included; gauges tell the living.

    Of the replica that the second worker has removed all states are 0 there. Where no
    other worker that lives has it, this package's collector leaves out its series.
    """
    for name in ("master", "slave_1", "slave_2"):
        make_file(tmp_path, name)
    files = tmp_path / "metrics"
    files.mkdir()
    environ = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(files)}
    workers = [
        start_worker(environ, str(tmp_path), *more) for more in (["4"], ["6", "remove"])
    ]
    gone: list[str] = []
    try:
        for one in workers:
            assert one.stdout is not None
            assert one.stdout.readline() == "done\n"
        if dead:
            workers[0].communicate(timeout=60)
            gone = [str(workers[0].pid)]
        command = [sys.executable, "-c", SCRAPE, *gone]
        found = subprocess.run(
            command, env=environ, check=True, capture_output=True, text=True
        ).stdout
    finally:
        for one in workers:
            one.communicate(timeout=60)
    assert "# TYPE replicated_reads_total counter" in found
    every, present = map(samples, found.split("===")[:2])
    assert every["replicated_decisions_total", "method", "replica"] == 10
    reads = [every["replicated_reads_total", "", f"slave_{one}"] for one in (1, 2)]
    assert sum(reads) == 10
    seen = {
        (replica, state): every["replicated_replica_state", "", state, replica]
        for replica in ("slave_1", "slave_2")
        for state in ("closed", "drained")
    }
    assert seen["slave_1", "closed"] == 1
    assert seen["slave_2", "closed"] == 0
    assert seen["slave_2", "drained"] == (0 if dead else 1)
    removed = {one for one in every if "slave_2" in one}
    assert {one[0] for one in removed} >= {"replicated_reads_total"}
    assert every.keys() - present.keys() == (removed if dead else set())


USED = re.compile(r"(replicated_\w+)(?:\{([^}]*)\})?")
BY = re.compile(r"by \(([^)]*)\)")


def expressions() -> list[str]:
    """Return every query of the dashboard and of the alert rules."""
    board: Any = json.loads((MONITORING / "dashboard.json").read_text())
    queries = [
        target["expr"] for panel in board["panels"] for target in panel["targets"]
    ]
    queries += [one.get("query", "") for one in board["templating"]["list"]]
    rules = (MONITORING / "alerts.yml").read_text()
    return queries + re.split(r"\n +- alert: ", rules)[1:]


def test_dashboard_and_alerts() -> None:
    """Queries name metrics that exist, with labels and values that these have."""
    seen = set()
    for query in expressions():
        labels = {"job"}
        for name, matchers in USED.findall(query):
            assert name in LABELS, name
            seen.add(name)
            labels |= set(LABELS[name])
            for label, wanted in re.findall(r'(\w+)=~?"([^"]*)"', matchers):
                assert label in {*LABELS[name], "job"}, query
                assert label != "state" or wanted in {
                    *("closed", "open", "half_open", "drained"),
                    *("idle", "used"),
                }
        for listed in BY.findall(query):
            assert set(listed.split(", ")) <= labels, query
        for label in re.findall(r"\$labels\.(\w+)", query):
            assert label in labels, query
    assert seen == LABELS.keys()
