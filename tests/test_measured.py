"""A balancer is told of each use of a replica: once as it begins, once as it ends."""

from __future__ import annotations

import gc
import logging
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from balancers import Feedback, LeastOutstanding, Zoned
from examples.cluster import wait_until
from flask_replicated import ConfigurationError, using_slave
from flask_replicated.engine.measured import MeasuredConnection
from flask_replicated.engine.replica_connection import ReplicaConnection
from tests.fleets import Fleet
from tests.support import Build, Site, break_file, build_fixture, make_file, sqlite_url

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from balancers import Member

build = build_fixture


class Recorder(Feedback):
    """Keeps what it is told."""

    __slots__ = ("told",)

    def __init__(self) -> None:
        self.told: list[object] = []
        super().__init__()

    def started(self) -> None:
        """Keep that a use has begun."""
        super().started()
        self.told.append("started")

    def finished(self, seconds: float, error: BaseException | None = None) -> None:
        """Keep how it has ended."""
        super().finished(seconds, error)
        self.told.append(type(error).__name__ if error else "finished")
        assert 0 <= seconds < 60


class Recording(LeastOutstanding):
    """Tells recorders."""

    __slots__ = ()

    def feedback(self, _member: Member[Any]) -> Feedback:
        """Return one for each member."""
        return Recorder()


@pytest.fixture
def site(build: Build) -> Site:
    """Give an application whose balancer keeps what it is told of its replica."""
    return build(("slave_1",), REPLICATED_BALANCER=Recording)


def member_of(site: Site, name: str = "slave_1") -> Member[Any]:
    """Return a replica."""
    with site.app.app_context():
        return site.app.extensions["replicated"].pool().member(name)  # type: ignore[no-any-return]  # as it is


def recorder(site: Site, name: str = "slave_1") -> Recorder:
    """Return what a replica's use is told to."""
    found = member_of(site, name).feedback
    assert isinstance(found, Recorder)
    return found


def within(site: Site, work: Callable[[], object]) -> None:
    """Do something in a request that reads from the replica."""
    with site.app.test_request_context("/"):
        work()


class Cancelled(BaseException):
    """What ends a greenlet."""


def test_each_use(site: Site) -> None:
    """A request uses one connection, until its context ends, and is timed."""
    found = recorder(site)
    with site.app.test_request_context("/"):
        assert site.who() == "slave_1"
        assert site.who() == "slave_1"
        assert (found.told, found.in_flight) == (["started"], 1)
    assert found.told == ["started", "finished"]
    assert found.in_flight == 0
    assert 0 < (found.latency or 0) < 60


def test_core(site: Site) -> None:
    """So do connections without a session; one that reads nothing looks no faster."""
    found, engine = recorder(site), None
    with site.app.app_context(), using_slave():
        engine = site.db.engine
        with engine.connect() as connection:
            assert connection.scalar(sa.text("SELECT 1")) == 1
            assert connection.exec_driver_sql("SELECT 2").scalar() == 2
            assert found.in_flight == 1
        before = found.latency
        assert before is not None
        with engine.connect():
            pass
        with engine.connect() as one, engine.connect() as other:
            assert found.in_flight == 2
            one.close()
            one.close()
            assert found.in_flight == 1
            assert not other.closed
    assert found.in_flight == 0
    assert found.told.count("started") == found.told.count("finished") == 4
    assert found.latency is not None
    assert found.latency >= before * (1 - 1e-9)


def fail(site: Site) -> None:
    """Send what the server refuses."""
    with pytest.raises(OperationalError):
        site.db.session.execute(sa.text("SELECT * FROM nowhere"))


def invalidate(site: Site) -> None:
    """Let a connection be lost between two statements, and used again."""
    assert site.who() == "slave_1"
    with using_slave():
        site.db.session.connection().invalidate()
    site.db.session.rollback()
    assert site.who() == "slave_1"


def stream(site: Site) -> None:
    """Read rows as they come, and not all of them."""
    rows = site.db.session.execute(
        sa.text("SELECT 1 UNION ALL SELECT 2"), execution_options={"yield_per": 1}
    )
    assert next(rows)[0] == 1


def leave(site: Site) -> None:
    """Let the garbage collector find a connection that nobody has closed."""
    with using_slave():
        connection = site.db.engine.connect()
        connection.execute(sa.text("SELECT 1")).all()
        del connection


def cancel(site: Site) -> None:
    """End a greenlet while a statement runs."""
    engine = site.db.engines["slave_1"]

    def end(*_: object) -> None:
        sa.event.remove(engine, "before_cursor_execute", end)
        raise Cancelled

    sa.event.listen(engine, "before_cursor_execute", end)
    with pytest.raises(Cancelled):
        site.who()


@pytest.mark.parametrize(
    ("work", "ends"),
    [
        (fail, ["OperationalError"]),
        (invalidate, ["finished", "finished"]),
        (stream, ["finished"]),
        (leave, ["finished"]),
        (cancel, ["Cancelled"]),
    ],
)
@pytest.mark.filterwarnings("ignore:The garbage collector:sqlalchemy.exc.SAWarning")
def test_always_balanced(
    site: Site, work: Callable[[Site], None], ends: list[str]
) -> None:
    """However a use ends, that is told, once."""
    found = recorder(site)
    within(site, lambda: work(site))
    gc.collect()
    assert [one for one in found.told if one != "started"] == ends
    assert found.told.count("started") == len(ends)
    assert found.in_flight == 0


def test_a_failed_connect(build: Build, tmp_path: Path) -> None:
    """One that fails is told as it is, and another replica's use begins."""
    site = build(("slave_1", "slave_2"), REPLICATED_BALANCER=Recording)
    break_file(tmp_path, "slave_1")
    assert site.count(4) == {"slave_2": 4}
    failed, served = recorder(site), recorder(site, "slave_2")
    assert set(failed.told) == {"started", "OperationalError"}
    assert failed.latency is None
    assert (failed.in_flight, served.in_flight) == (0, 0)


def test_a_wait(build: Build, tmp_path: Path) -> None:
    """Who waits for a connection counts as one that has it."""
    url = sqlite_url(make_file(tmp_path, "slave_1"))
    bind = {"url": url, "pool_size": 1, "max_overflow": 0}
    site = build((), binds={"slave_1": bind}, REPLICATED_BALANCER=Recording)
    found = recorder(site)

    def read() -> None:
        within(site, site.who)

    waiting = [threading.Thread(target=read) for _ in range(3)]
    with site.app.test_request_context("/"):
        site.who()
        for thread in waiting:
            thread.start()
        wait_until(lambda: found.in_flight == 4, "three to wait")
    for thread in waiting:
        thread.join(20)
    assert found.in_flight == 0
    assert found.told.count("finished") == 4


def test_many_threads(build: Build) -> None:
    """Nothing is lost where many begin and end at once."""
    site = build(REPLICATED_BALANCER="peak_ewma")

    def read() -> None:
        for _ in range(40):
            site.get()

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for name in ("slave_1", "slave_2", "slave_3"):
        found = member_of(site, name).feedback
        assert found is not None
        assert found.in_flight == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_fork(site: Site) -> None:
    """A child starts at zero, and what it inherits does not end there."""
    found = recorder(site)
    with site.app.app_context(), using_slave():
        inherited = site.db.engine.connect()
        inherited.execute(sa.text("SELECT 1")).all()
        child = os.fork()
        if child == 0:
            with site.db.engine.connect() as own:
                own.execute(sa.text("SELECT 1")).all()
                right = found.in_flight == 1
                inherited.close()
                right = right and found.in_flight == 1
            os._exit(0 if right and found.in_flight == 0 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert found.in_flight == 1
        inherited.close()
    assert (found.told, found.in_flight) == (["started", "finished"], 0)


@pytest.mark.parametrize("balancer", ["round_robin", "peak_ewma"])
def test_only_if_asked(build: Build, balancer: str) -> None:
    """Where no balancer asks, connections are what they are without all this."""
    site = build(REPLICATED_BALANCER=balancer)
    with site.app.test_request_context("/"):
        with using_slave():
            connection = site.db.session.connection()
        assert isinstance(connection, ReplicaConnection)
        asked = balancer == "peak_ewma"
        assert isinstance(connection, MeasuredConnection) == asked
        assert (connection.member.feedback is not None) == asked


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (ValueError("no"), r"its feedback\(\) failed: ValueError: no"),
        (7, r"its feedback\(\) returned 7, not a Feedback or None"),
    ],
)
def test_feedback_that_cannot_be(build: Build, answer: Any, said: str) -> None:
    """An error at the start names the setting; later on, reads go on without."""

    class Balancer(LeastOutstanding):
        wrong = True

        def feedback(self, _member: Member[Any]) -> Any:
            if self.wrong and isinstance(answer, Exception):
                raise answer
            return answer if self.wrong else None

    with pytest.raises(ConfigurationError, match=said) as caught:
        build(("slave_1",), REPLICATED_BALANCER=Balancer)
    assert caught.value.key == "REPLICATED_BALANCER"
    balancer = Balancer()
    balancer.wrong = False
    fleet = Fleet(build, ("slave_1",), REPLICATED_BALANCER=balancer)
    balancer.wrong = True
    fleet.add("slave_2")
    assert fleet.site.count(2) == {"slave_1": 1, "slave_2": 1}


def test_a_faulty_balancer(build: Build, caplog: pytest.LogCaptureFixture) -> None:
    """What its feedback raises fails no read, and is logged once."""

    class Faulty:
        def started(self) -> None:
            raise ValueError("started")

        def finished(self, _seconds: float, _error: object = None) -> None:
            raise ValueError("finished")

    class Balancer(LeastOutstanding):
        def feedback(self, _member: Member[Any]) -> Any:
            return Faulty()

        def __call__(self, members: Any) -> Any:
            return lambda: members[0]

    site = build(REPLICATED_BALANCER=Zoned(Balancer(), "a", {"slave_1": "a"}))
    with caplog.at_level(logging.ERROR):
        assert site.count(5) == {"slave_1": 5}
    (told,) = caplog.records
    assert "cannot be told of its replica's use" in told.getMessage()
