"""Probes that never end, threads that cannot be had, replicas that are gone."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from examples.cluster import wait_until
from flask_replicated import replicated_engine
from flask_replicated.fleet.probe import ReplicaProbe
from flask_replicated.replica.connection_events import ReplicaServer
from tests.pools import live, monitor_of, read
from tests.support import make_file, sqlite_url

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from flask_replicated.engine.engines import RoutedEngine
    from flask_replicated.replica.replica_status import ReplicaReport

NAMES = ("slave_1", "slave_2")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[RoutedEngine]:
    """Give a pool of two files that is probed often and given up soon."""
    urls = {name: sqlite_url(make_file(tmp_path, name)) for name in ("master", *NAMES)}
    engine = replicated_engine(
        sa.create_engine(urls["master"]),
        {name: sa.create_engine(urls[name]) for name in NAMES},
        REPLICATED_PROBE_INTERVAL=0.05,
        REPLICATED_CONNECT_TIMEOUT=0.05,
        REPLICATED_BREAKER_RESET=60,
        REPLICATED_BREAKER_MAX_RESET=60,
    )
    yield engine
    engine.dispose()


class Stuck:
    """Probes of one replica that wait until they are let go.

    Attributes:
        waiting: How many do.
        many: How many do before one ends by itself.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, many: int) -> None:
        self.waiting = 0
        self.many = many
        self._over = threading.Event()
        self._check = ReplicaProbe.check

        def check(probe: ReplicaProbe, *, anew: bool) -> ReplicaReport:
            return self._wait(probe, anew=anew)

        monkeypatch.setattr(ReplicaProbe, "check", check)

    def _wait(self, probe: ReplicaProbe, *, anew: bool) -> ReplicaReport:
        if probe.member.name == "slave_1" and self.waiting < self.many:
            self.waiting += 1
            self._over.wait(30)
            self.waiting -= 1
        return self._check(probe, anew=anew)

    def let_go(self) -> None:
        """Let every probe end."""
        self.many = 0
        self._over.set()


def test_one_stuck_probe(engine: RoutedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe that never ends keeps no replica out: another one is begun beside it."""
    stuck = Stuck(monkeypatch, many=1)
    read(engine)
    wait_until(lambda: live(engine) == {"slave_2"}, "slave_1 to be out")
    wait_until(lambda: live(engine) == set(NAMES), "slave_1 to be back")
    assert stuck.waiting == 1
    stuck.let_go()


def test_probes_do_not_pile_up(
    engine: RoutedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long a server hangs, few threads wait for it; and it may return."""
    stuck = Stuck(monkeypatch, many=100)
    read(engine)
    wait_until(lambda: stuck.waiting >= 3, "three probes to hang")
    wait_until(lambda: live(engine) == {"slave_2"}, "slave_1 to be out")
    waited = threading.Event()
    assert not waited.wait(0.5)  # ten times as long as a probe may take
    assert stuck.waiting == 3
    stuck.let_go()
    wait_until(lambda: live(engine) == set(NAMES), "slave_1 to be back")


def test_no_thread(
    engine: RoutedEngine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A process that is out of threads says so, and holds it against no replica."""
    start, refused = threading.Thread.start, 0

    def refuse(thread: threading.Thread) -> None:
        nonlocal refused
        if "probe of" in thread.name and refused < 6:
            refused += 1
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    probed: set[str] = set()
    check = ReplicaProbe.check

    def noted(probe: ReplicaProbe, *, anew: bool) -> ReplicaReport:
        probed.add(probe.member.name)
        return check(probe, anew=anew)

    monkeypatch.setattr(ReplicaProbe, "check", noted)
    read(engine)
    wait_until(lambda: probed == set(NAMES), "both to be probed")
    assert live(engine) == set(NAMES)
    assert caplog.text.count("no thread could be started") == 1


def test_removed_while_it_hangs(
    engine: RoutedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for a replica that is removed is released; its successor is not hit."""
    stuck = Stuck(monkeypatch, many=100)
    hit: list[ReplicaServer] = []

    def hang_up(replica: ReplicaServer) -> int:
        hit.append(replica)
        return 0

    monkeypatch.setattr(ReplicaServer, "hang_up", hang_up)
    monkeypatch.setattr(ReplicaServer, "in_use", True)
    fleet: Any = engine.fleet
    old = fleet._replicas["slave_1"]
    read(engine)
    wait_until(lambda: stuck.waiting > 0, "a probe to hang")
    gone = engine.replicas.replica_pool.remove("slave_1")
    fleet._replicas["slave_1"] = object()  # of a new one with this name
    before = len(hit)
    wait_until(lambda: len(hit) > before + 1, "those who wait to be released")
    assert set(hit) == {old}
    monkeypatch.setattr(ReplicaServer, "in_use", False)
    stuck.let_go()
    loop: Any = monitor_of(engine)._loop
    wait_until(lambda: gone not in loop._known, "it to be forgotten")
    gone.target.dispose()  # nothing else would
