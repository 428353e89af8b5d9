"""Reads go where there is room, and a rotation feeds no queue."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.pool import NullPool, StaticPool

from balancers import First, LeastOutstanding, Member, Pool, RoundRobin
from balancers.strategies import BALANCERS
from examples.cluster import wait_until
from flask_replicated import using_slave
from flask_replicated.engine.capacity import ReplicaCapacity, in_use, is_full
from tests.support import Build, Site, build_fixture, make_file, sqlite_url

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Engine

build = build_fixture
NAMES = ("slave_1", "slave_2")
LONG = 60  # seconds; whoever had to wait would not be answered in time


def small(folder: Path, name: str, **options: Any) -> dict[str, Any]:
    """Return a bind whose pool has one connection."""
    url = sqlite_url(make_file(folder, name))
    return {"url": url, "pool_size": 1, "max_overflow": 0, **options}


def held(site: Site, *names: str) -> contextlib.ExitStack:
    """Use up the connection pools of replicas, until it is closed."""
    stack = contextlib.ExitStack()
    with site.app.app_context():
        for name in names:
            stack.enter_context(site.db.engines[name].connect())
    return stack


class TestExhausted:
    """All connections of a replica's pool are in use."""

    def test_nobody_waits_while_another_has_room(
        self, build: Build, tmp_path: Path
    ) -> None:
        """Reads go to the other one at once, and share them again afterwards."""
        site = build(
            ("slave_2",),
            binds={"slave_1": small(tmp_path, "slave_1")},
            REPLICATED_CONNECT_TIMEOUT=LONG,
        )
        with held(site, "slave_1"):
            assert site.count(6) == {"slave_2": 6}
        assert site.count(6) == {"slave_1": 3, "slave_2": 3}

    def test_whatever_picks(self, build: Build, tmp_path: Path) -> None:
        """A balancer of one's own is not obeyed where one would have to wait."""
        site = build(
            ("slave_2",),
            binds={"slave_1": small(tmp_path, "slave_1")},
            REPLICATED_BALANCER=lambda members: lambda: min(members, key=str),
            REPLICATED_CONNECT_TIMEOUT=LONG,
        )
        assert site.count(3) == {"slave_1": 3}
        with held(site, "slave_1"):
            assert site.count(3) == {"slave_2": 3}

    def test_all_are(
        self, build: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Somebody waits once where all are, then the primary serves: that is load."""
        binds = {name: small(tmp_path, name) for name in NAMES}
        site = build((), binds=binds, REPLICATED_CONNECT_TIMEOUT=0.2)
        with held(site, *NAMES):
            began = time.monotonic()
            assert site.get() == "master"
            assert time.monotonic() - began < 5
        assert "every replica is busy" in caplog.text
        assert "every replica is out" not in caplog.text
        assert site.get() in NAMES

    def test_the_first_that_is_free_is_waited_for(
        self, build: Build, tmp_path: Path
    ) -> None:
        """A request is answered by the replica that it waits for."""
        binds = {name: small(tmp_path, name) for name in NAMES}
        site = build((), binds=binds, REPLICATED_CONNECT_TIMEOUT=LONG)
        with held(site, *NAMES) as first:
            found: list[str] = []
            waiting = threading.Thread(target=lambda: found.append(site.get()))
            waiting.start()
            waiting.join(0.3)
            assert not found
            first.close()
            waiting.join(20)
        assert found[0] in NAMES

    def test_one_that_is_dead_does_not_send_reads_to_the_primary(
        self, build: Build, tmp_path: Path
    ) -> None:
        """Who has not waited yet waits for the only one that lives."""
        site = build(
            (),
            binds={
                "slave_1": small(tmp_path, "slave_1"),
                "slave_2": f"sqlite:///{tmp_path}/no/such/file.db",
            },
            REPLICATED_CONNECT_TIMEOUT=LONG,
            REPLICATED_PROBE_INTERVAL=0,
        )
        with held(site, "slave_1") as first:
            timer = threading.Timer(0.3, first.close)
            timer.start()
            assert {site.get() for _ in range(3)} == {"slave_1"}
            timer.join()

    def test_the_only_one_that_lives_is_busy(
        self, build: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """That comes and goes with each connection, and is not logged each time."""
        site = build(
            (),
            binds={
                "slave_1": small(tmp_path, "slave_1"),
                "slave_2": f"sqlite:///{tmp_path}/no/such/file.db",
            },
            REPLICATED_BREAKER_THRESHOLD=1,
            REPLICATED_BREAKER_RESET=30,
            REPLICATED_CONNECT_TIMEOUT=0.1,
            REPLICATED_PROBE_INTERVAL=0,
        )
        assert site.count(4) == {"slave_1": 4}
        caplog.clear()
        for _ in range(3):
            with held(site, "slave_1"):
                assert site.get() == "master"
            assert site.get() == "slave_1"
        (message,) = caplog.messages
        assert message.startswith("every replica is out, and the primary serves")

    def test_it_is_paused(
        self, build: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """One that gives none back is told of, and no probe brings it back."""
        site = build(
            ("slave_2",),
            binds={"slave_1": small(tmp_path, "slave_1")},
            REPLICATED_CONNECT_TIMEOUT=0.3,
            REPLICATED_PROBE_INTERVAL=0.05,
        )
        pool = site.app.extensions["replicated"].state(site.app).routes[None].replicas
        with held(site, "slave_1"):

            def is_paused() -> bool:
                assert site.get() == "slave_2"
                return [one.name for one in pool.replica_pool.live] == ["slave_2"]

            wait_until(is_paused, "slave_1 to be paused")
            (told,) = [one for one in caplog.records if "slave_1" in one.getMessage()]
            assert told.levelno == logging.WARNING
            assert "SQLALCHEMY_BINDS['slave_1']" in told.getMessage()
            looked = time.monotonic() + 0.5
            while time.monotonic() < looked:
                assert is_paused()
        wait_until(lambda: site.get() == "slave_1", "slave_1 to be back")


class Clock:
    """A clock that is set by hand."""

    now = 100.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


class Rooms:
    """Two replicas of which the first is slow, with one connection each.

    Attributes:
        clock: What they go by.
        pool: The replicas.
        room: What chooses among them.
    """

    def __init__(self, folder: Path, balancer: object = None, **options: Any) -> None:
        self.clock = Clock()
        engines = {}
        for name in NAMES:
            bind = small(folder, name, **options)
            engines[name] = sa.create_engine(bind.pop("url"), **bind)
        self.pool = Pool(engines, clock=self.clock, jitter=lambda: 1.0)
        self.first, self.second = self.pool.members
        slow: Any = SimpleNamespace(
            pool_exhausted=False, slow_until=self.clock.now + 60
        )
        self.replicas = dict.fromkeys(NAMES, slow)
        self.room = ReplicaCapacity(
            self.pool,
            self.replicas,
            RoundRobin() if balancer is None else balancer,
            max_exhausted=2,
            longest=4,
            clock=self.clock,
        )

    @contextlib.contextmanager
    def using(self, member: Member[Engine], many: int = 1) -> Iterator[None]:
        """Use so many connections of a replica."""
        with contextlib.ExitStack() as stack:
            for _ in range(many):
                stack.enter_context(member.target.connect())
            yield

    def pause(self) -> float | None:
        """Find the first one exhausted, as its trial if it is due; return its pause."""
        picked = self.first if self.first in self.pool.live else self.pool.pick()
        self.room.note_full(self.first, self.pool.permit(picked))
        return self.pool.snapshot().members[0].retry_in

    def dispose(self) -> None:
        """Close what is open."""
        for member in self.pool.members:
            member.target.dispose()


@pytest.fixture
def rooms(tmp_path: Path) -> Iterator[Rooms]:
    """Give two replicas that have ten connections each."""
    rooms = Rooms(tmp_path, pool_size=5, max_overflow=5)
    yield rooms
    rooms.dispose()


class TestPauses:
    """How long a replica is paused that gives no connection back."""

    def test_growing(self, rooms: Rooms) -> None:
        """After two seconds without one; then twice as long each time, to a limit."""
        found = []
        for pause in (0.0, 1.9, 0.1, 1.0, 2.0, 4.0, 4.0):
            rooms.clock.now += pause
            found.append(rooms.pause())
        assert found == [None, None, 1.0, 2.0, 4.0, 4.0, 4.0]
        assert rooms.replicas["slave_1"].pool_exhausted

    def test_one_is_given_back(self, rooms: Rooms) -> None:
        """One that gives connections back is not stuck, however few it has."""
        for _ in range(20):
            rooms.clock.now += 1.5
            assert rooms.pause() is None
            rooms.room.note_connected(rooms.first)
        assert not rooms.room.exhausted

    def test_the_last_one(self, rooms: Rooms) -> None:
        """It stays: there is nobody to serve in its place."""
        rooms.pool.drain("slave_2")
        rooms.pause()
        rooms.clock.now += 10
        assert rooms.pause() is None

    def test_one_that_was_removed(self, rooms: Rooms) -> None:
        """Nothing is kept of it."""
        rooms.pause()
        rooms.pool.remove("slave_1").target.dispose()
        rooms.room.note_full(rooms.second, rooms.pool.permit(rooms.second))
        assert rooms.room.exhausted.keys() == {rooms.second}


class TestQueues:
    """One of two is slow, and has connections to spare all the same."""

    def test_more_than_twice_as_many(self, rooms: Rooms) -> None:
        """Its turn is another's, once it has a queue and that one has none."""
        first, second, choose = rooms.first, rooms.second, rooms.room.choose
        with rooms.using(first):
            assert choose(first) is first
        with rooms.using(first, 2):
            assert choose(first) is second
            assert choose(second) is second
            with rooms.using(second):
                assert choose(first) is first
        with rooms.using(first, 3), rooms.using(second):
            assert choose(first) is second

    def test_not_slow(self, rooms: Rooms) -> None:
        """Where all answer in time, the rotation holds, whatever is in use."""
        rooms.clock.now += 61
        with rooms.using(rooms.first, 9):
            assert rooms.room.choose(rooms.first) is rooms.first

    def test_a_trial(self, rooms: Rooms) -> None:
        """Who is to try one that was out tries that one."""
        rooms.pool.trip(rooms.first, 1, OSError("gone"))
        rooms.clock.now += 2
        with rooms.using(rooms.first, 3):
            assert rooms.pool.pick() is rooms.first
            assert rooms.room.choose(rooms.first) is rooms.first

    def test_own_balancer(self, tmp_path: Path) -> None:
        """A balancer of one's own may have its reasons."""
        rooms = Rooms(tmp_path, balancer=lambda _: None, pool_size=5)
        with rooms.using(rooms.first, 5):
            assert rooms.room.choose(rooms.first) is rooms.second  # it is exhausted
        with rooms.using(rooms.first, 4):
            assert rooms.room.choose(rooms.first) is rooms.first
        rooms.dispose()

    @pytest.mark.parametrize("balancer", BALANCERS.values(), ids=BALANCERS)
    def test_named_balancer(self, tmp_path: Path, balancer: type) -> None:
        """One that has a name spreads reads, so it need not be followed here.

        All do except the first in a row.
        """
        rooms = Rooms(tmp_path, balancer=balancer(), pool_size=5)
        spreads = balancer is not First
        with rooms.using(rooms.first, 4):
            chosen = rooms.room.choose(rooms.first)
            assert chosen is (rooms.second if spreads else rooms.first)
        rooms.dispose()

    @pytest.mark.parametrize("balancer", [RoundRobin(), LeastOutstanding()])
    def test_all_are_exhausted(self, tmp_path: Path, balancer: object) -> None:
        """One that knows who waits where is followed; else it is who had room last."""
        rooms = Rooms(tmp_path, balancer=balancer)
        with rooms.using(rooms.first), rooms.using(rooms.second):
            rooms.room.note_full(rooms.first, rooms.pool.permit(rooms.first))
            rooms.clock.now += 1
            followed = rooms.room.choose(rooms.first) is rooms.first
            assert followed == hasattr(balancer, "feedback")
        rooms.dispose()

    def test_by_weight(self, rooms: Rooms) -> None:
        """One that weighs more may have more in use."""
        pool = Pool(
            {m.name: m.target for m in rooms.pool.members}, weights={"slave_1": 3}
        )
        heavy, light = pool.members
        room = ReplicaCapacity(
            pool, rooms.replicas, RoundRobin(), max_exhausted=2, longest=4
        )
        rooms.replicas["slave_1"].slow_until = time.monotonic() + 60
        with rooms.using(heavy, 4), rooms.using(light):
            assert room.choose(heavy) is heavy
        with rooms.using(heavy, 4):
            assert room.choose(heavy) is light


@pytest.mark.parametrize("kind", [NullPool, StaticPool])
def test_other_pools(tmp_path: Path, kind: Any) -> None:
    """Pools without a limit are never exhausted."""
    engine = sa.create_engine(sqlite_url(make_file(tmp_path, "one")), poolclass=kind)
    with engine.connect():
        assert not is_full(engine)
        assert in_use(engine) == 0
    engine.dispose()


def test_as_the_pool_counts(tmp_path: Path) -> None:
    """What is in use is what the pool itself says."""
    url = sqlite_url(make_file(tmp_path, "one"))
    engine = sa.create_engine(url, pool_size=2, max_overflow=1)
    pool: Any = engine.pool
    with contextlib.ExitStack() as stack:
        for many in range(4):
            assert in_use(engine) == pool.checkedout() == many
            assert is_full(engine) is (many == 3)
            if many < 3:
                stack.enter_context(engine.connect())
    assert in_use(engine) == 0
    engine.dispose()
    unlimited = sa.create_engine(url, pool_size=0)
    with unlimited.connect():
        assert in_use(unlimited) == 1
        assert not is_full(unlimited)
    unlimited.dispose()


def test_a_rotation_of_many_threads(build: Build, tmp_path: Path) -> None:
    """A queue at one of them keeps nobody from the others."""
    site = build(
        ("slave_2",),
        binds={"slave_1": small(tmp_path, "slave_1")},
        REPLICATED_CONNECT_TIMEOUT=LONG,
    )
    found: Counter[str] = Counter()

    def ask() -> None:
        with site.app.app_context(), using_slave():
            found[site.who()] += 1

    with held(site, "slave_1"):
        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert found == {"slave_2": 8}
