"""The background probes of replicas that are files."""

from __future__ import annotations

import gc
import os
import socket
import sqlite3
import threading
import weakref
from queue import SimpleQueue
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from balancers import Permit, Pool
from examples.cluster import wait_until
from flask_replicated import FlaskReplicated, replicated_engine
from flask_replicated.fleet import monitor
from flask_replicated.fleet.monitor import Monitor, MonitoredPool, ProbePolicy
from flask_replicated.fleet.outage_log import OutageLog
from flask_replicated.fleet.probe import ProbeRun, ReplicaProbe
from flask_replicated.replica.replica_status import ReplicaReport, report_queries
from flask_replicated.system.forks import leave_to_parent
from tests.pools import live, monitor_of, read
from tests.support import Build, break_file, build_fixture, make_file, sqlite_url

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from flask_replicated.engine.engines import RoutedEngine

build = build_fixture


def monitors() -> list[threading.Thread]:
    """Return the threads of this package that other tests did not leave behind."""
    return [t for t in _threads() if t not in _left_behind]


def _threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("flask_replicated")]


_left_behind: list[threading.Thread] = []


@pytest.fixture(autouse=True)
def _leave_others_alone() -> None:
    _left_behind[:] = _threads()


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[RoutedEngine]:
    """Give a pool of two files that is probed often."""
    replicas = {
        name: sa.create_engine(sqlite_url(make_file(tmp_path, name)))
        for name in ("slave_1", "slave_2")
    }
    engine = replicated_engine(
        sa.create_engine(sqlite_url(make_file(tmp_path, "master"))),
        replicas,
        REPLICATED_PROBE_INTERVAL=0.05,
        REPLICATED_BREAKER_RESET=60,
        REPLICATED_BREAKER_MAX_RESET=60,
    )
    yield engine
    engine.dispose()


def test_begins_with_the_first_read(engine: RoutedEngine) -> None:
    """No thread runs before there is a reason to."""
    before = len(monitors())
    read(engine)
    assert len(monitors()) > before


def test_leaves_and_returns(engine: RoutedEngine, tmp_path: Path) -> None:
    """A replica is out, and back, without any request and before its wait is over."""
    read(engine)
    break_file(tmp_path, "slave_1")
    wait_until(lambda: live(engine) == {"slave_2"}, "slave_1 to be out")
    make_file(tmp_path, "slave_1")
    wait_until(lambda: live(engine) == {"slave_1", "slave_2"}, "slave_1 to be back")


def test_ends_with_dispose(engine: RoutedEngine) -> None:
    """It ends with the connections, and begins again with the next read."""
    read(engine)
    engine.dispose()
    wait_until(lambda: not monitors(), "the monitor to end")
    read(engine)
    assert monitors()


def test_ends_with_its_owner(tmp_path: Path) -> None:
    """An application that is garbage-collected leaves no thread."""
    engine = replicated_engine(
        sa.create_engine(sqlite_url(make_file(tmp_path, "master"))),
        {"slave_1": sa.create_engine(sqlite_url(make_file(tmp_path, "slave_1")))},
        REPLICATED_PROBE_INTERVAL=0.05,
    )
    read(engine)
    for real in (engine.real, engine.replicas.replica_pool.members[0].target):
        real.dispose()
    del engine, real
    gc.collect()
    wait_until(lambda: not monitors(), "the monitor to end")


def _read_once(folder: Path) -> weakref.ref[Flask]:
    """Serve one request of an application, and drop the application."""
    app = Flask("short")
    names = ("master", "slave_1", "slave_2")
    primary, *replicas = (sqlite_url(make_file(folder, name)) for name in names)
    app.config["SQLALCHEMY_DATABASE_URI"] = primary
    app.config["SQLALCHEMY_BINDS"] = dict(zip(names[1:], replicas, strict=True))
    app.config["REPLICATED_PROBE_INTERVAL"] = 0.05
    db = SQLAlchemy(app)
    replicated = FlaskReplicated(app)
    app.register_blueprint(replicated.page())  # the thread looks for it, too

    @app.get("/")
    def page() -> str:
        return str(db.session.scalar(sa.text("SELECT name FROM marker")))

    assert app.test_client().get("/").text in names[1:]
    with app.app_context():
        for engine in db.engines.values():
            getattr(engine, "real", engine).dispose()  # which leaves the monitor be
    return weakref.ref(app)


def test_ends_with_its_application(tmp_path: Path) -> None:
    """Nothing that the thread keeps alive keeps the application."""
    app = _read_once(tmp_path)
    assert monitors()

    def is_collected() -> bool:
        gc.collect()  # in the middle of a probe its context is alive
        return app() is None

    wait_until(is_collected, "the application to be collected")
    wait_until(lambda: not monitors(), "the monitor to end")


@pytest.mark.parametrize("when", ["connecting", "asking", "after"])
def test_ends_while_probing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """A connection is closed at whatever moment of a probe the end comes."""
    path = make_file(tmp_path, "slave_1")
    closed: list[bool] = []

    class Connection(sqlite3.Connection):
        def cursor(self, *_: Any) -> Any:
            if when == "asking":
                probe.end()
            return super().cursor()

        def close(self) -> None:
            closed.append(True)
            super().close()

    def connect() -> Any:
        if when == "connecting":
            probe.end()
        return sqlite3.connect(path, factory=Connection)

    target = sa.create_engine("sqlite://", creator=connect)
    (member,) = Pool({"slave_1": target}).members
    probe = ReplicaProbe(member)
    monkeypatch.setattr(probe, "_keep", True)
    run = ProbeRun(probe, Permit(0), 0.0, anew=False)
    probe.running = True
    run.run(SimpleQueue())
    if when == "after":
        assert not closed
        probe.end()
    assert closed


@pytest.mark.parametrize(("overslept", "deadline"), [(-0.3, 7.0), (0.01, 7.0), (3, 10)])
def test_held_up(engine: RoutedEngine, overslept: float, deadline: float) -> None:
    """While this process itself was held up, no server was silent."""
    read(engine)
    running = monitor_of(engine)._loop
    assert running is not None
    (member, *_) = engine.replicas.replica_pool.members
    run = ProbeRun(ReplicaProbe(member), Permit(0), 7.0, anew=False)
    engine.monitor.stop()
    wait_until(lambda: not monitors(), "the monitor to end")
    running._entry(member).run = run
    running._move_deadlines(overslept)
    assert run.deadline == deadline


class Suspended(SimpleQueue[Any]):
    """What a monitor waits for: the first time the process is suspended meanwhile.

    Attributes:
        now: The time, by the monotonic clock.
        awake: Seconds for which the process has waited, and was not suspended.
        late: Those that were given up, and the seconds by then.
    """

    def __init__(self, seconds: float) -> None:
        self.now = self.awake = 0.0
        self.late: list[tuple[str, float]] = []
        self._suspended = seconds

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Let time pass, if there is nothing yet."""
        if block:
            suspended, self._suspended = self._suspended, 0.0
            self.now += suspended
            if self.empty() and timeout is not None and timeout > suspended:
                self.now += timeout - suspended
                self.awake += timeout - suspended
        return super().get(block=False)


@pytest.fixture
def suspended(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Suspended]]:
    """Give a loop with two runs that have begun, and what it waits for."""
    done = Suspended(1.5)
    pool = Pool({name: sa.create_engine("sqlite://") for name in "ab"})
    policy = ProbePolicy(10, 1, None, role_check=True)
    monkeypatch.setattr(monitor, "time", SimpleNamespace(monotonic=lambda: done.now))
    monkeypatch.setattr(monitor, "start_thread", lambda *_: True)
    loop: Any = monitor._MonitorLoop(
        MonitoredPool(pool, {}, policy, OutageLog({})), done
    )
    loop._done = done
    for member in pool.members:
        loop._entry(member).due = 0.0

    def give_up(one: Any, _run: object, _now: float) -> None:
        done.late.append((one.member.name, done.awake))
        loop.stop()

    monkeypatch.setattr(loop, "_give_up", give_up)
    yield loop, done
    for member in pool.members:
        member.target.dispose()


def test_suspended(suspended: tuple[Any, Suspended]) -> None:
    """What a server says while this process is suspended can be heard afterwards."""
    loop, done = suspended
    loop.run()
    assert [name for name, _ in done.late] == ["a", "b"]
    assert 0.7 < done.late[0][1] < 1.1


def test_heard_meanwhile(suspended: tuple[Any, Suspended]) -> None:
    """What has been heard of several by then counts for each of them."""
    loop, done = suspended
    done._suspended = 30.0
    start = loop._start

    def answer(one: Any, *rest: Any) -> None:
        start(one, *rest)
        done.put(one.run)

    loop._start = answer
    step, steps = loop._step, []

    def stop_then() -> float:
        steps.append(done.now)
        loop._stopped = len(steps) == 2
        return float(step())

    loop._step = stop_then
    loop.run()
    assert steps == [0.0, 30.0]
    assert done.late == []


def test_left_to_the_parent() -> None:
    """An inherited connection is detached; the parent's is as it was."""
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.socket(fileno=os.dup(ours.fileno())) as parents:
        leave_to_parent(ours)
        with pytest.raises(OSError, match="socket"):
            ours.send(b"goodbye")
        parents.send(b"hello")
        assert theirs.recv(100) == b"hello"


def test_switched_off(build: Build) -> None:
    """With an interval of 0 there is no thread at all."""
    site = build(REPLICATED_PROBE_INTERVAL=0)
    before = len(monitors())
    site.get()
    assert len(monitors()) == before


def test_many_begin_at_once(engine: RoutedEngine) -> None:
    """Eight threads that read first start one monitor."""
    threads = [threading.Thread(target=read, args=(engine,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [t.name for t in monitors()].count("flask_replicated monitor") == 1


def test_a_step_that_fails(
    engine: RoutedEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An error in the monitor itself is logged, and it goes on."""
    pool: Any = engine.replicas.replica_pool
    failures = iter([RuntimeError("once")])
    trip = pool.trip

    def fail_once(*args: Any) -> Any:
        for failure in failures:
            raise failure
        return trip(*args)

    monkeypatch.setattr(pool, "trip", fail_once)
    read(engine)
    break_file(tmp_path, "slave_1")
    wait_until(lambda: live(engine) == {"slave_2"}, "slave_1 to be out")


def test_async_engines() -> None:
    """An async driver is not asked outside its event loop."""
    pool = Pool({"slave_1": sa.create_engine("sqlite+aiosqlite://")})
    policy = ProbePolicy(1, 1, None, role_check=True)
    assert not Monitor(MonitoredPool(pool, {}, policy, OutageLog({}))).idle


class Answers:
    """A cursor that knows its answers, each a list of rows or an error."""

    description = (("Seconds_Behind_Master",), ("Slave_IO_Running",))

    def __init__(self, *answers: Any) -> None:
        self._answers = list(answers)
        self._rows: list[Any] = []

    def execute(self, _sql: str) -> None:
        """Take the next answer."""
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        self._rows = list(answer)

    def fetchone(self) -> Any:
        """Return a row."""
        return self._rows.pop(0) if self._rows else None


UNKNOWN = RuntimeError("no such statement")


@pytest.mark.parametrize(
    ("dialect", "answers", "found"),
    [
        ("mariadb", [UNKNOWN, [(7, "Yes")]], ReplicaReport(False, 7.0, True)),
        ("mysql", [[(0, "Yes")]], ReplicaReport(False, 0.0, True)),
        ("mysql", [[(None, "No")]], ReplicaReport(False, None, True)),
        ("mariadb", [[], [(7, "Yes")]], ReplicaReport(False, 7.0, True)),
        ("mariadb", [[], [], []], ReplicaReport(alone=True, doubtful=True)),
        ("mysql", [[], UNKNOWN, []], ReplicaReport(alone=True, doubtful=True)),
        ("mysql", [UNKNOWN, UNKNOWN, []], ReplicaReport(doubtful=True)),
        # A node of a cluster may be a primary, and serve reads as well as any.
        ("mariadb", [[], [], [("wsrep_on", "ON")]], ReplicaReport()),
        ("mariadb", [UNKNOWN, UNKNOWN, [("wsrep_on", "ON")]], ReplicaReport()),
        (
            "postgresql",
            [[(True, None, None, False, None, None, 3, 1.5)]],
            ReplicaReport(False, None, True, timeline=3, started=1.5),
        ),
        (
            "postgresql",
            [[(True, 5, 4, False, 9, None, 3, 1.5)]],
            ReplicaReport(
                primary=False,
                lag=9.0,
                measured=True,
                replayed=4,
                pending=True,
                age=9.0,
                timeline=3,
                started=1.5,
            ),
        ),
        (
            "postgresql",
            [[(True, 5, 4, True, 9, 4, 3, 1.5)]],
            ReplicaReport(
                primary=False,
                lag=9.0,
                measured=True,
                received=5,
                replayed=4,
                pending=True,
                age=9,
                timeline=4,
                exact=True,
                started=1.5,
            ),
        ),
        (
            "postgresql",
            [[(True, 5, 5, True, 9, None, 3, 1.5)]],
            ReplicaReport(False, 0.0, True, 5, 5, age=9.0, timeline=3, started=1.5),
        ),
        # It is connected, and sent nothing: its log has forked from its source's.
        (
            "postgresql",
            [[(True, 4, 5, True, 9, 3, 3, 1.5)]],
            ReplicaReport(False, 9.0, True, None, 5, age=9.0, timeline=3, started=1.5),
        ),
        (
            "postgresql",
            [[(False, None, None, False, None, None, 3, 1.5)], [("shop,x",)]],
            ReplicaReport(
                primary=True, doubtful=True, started=1.5, slots=("shop", "x")
            ),
        ),
        ("sqlite", [[(1,)]], ReplicaReport()),
    ],
)
def test_answers(dialect: str, answers: list[Any], found: ReplicaReport) -> None:
    """What servers that are rarely at hand say is understood: unknown is not zero."""
    assert report_queries(dialect)[0](Answers(*answers)) == found
