"""Replicas that come and go, and processes that use a few of many."""

from __future__ import annotations

import gc
import os
import time
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.pool import QueuePool

from flask_replicated import ConfigurationError, FlaskReplicated, using_slave
from tests.fleets import Fleet, fleet_fixture
from tests.support import (
    REPLICAS,
    Build,
    Site,
    break_file,
    build_fixture,
    core,
    make_file,
    sqlite_url,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

build = build_fixture
fleet = fleet_fixture


class TestRemove:
    """FlaskReplicated.remove()."""

    def test_serves_no_more(self, fleet: Fleet) -> None:
        """A removed replica serves no read and is in db.engines no more."""
        fleet.site.count(6)
        engine = fleet.engines()["slave_2"]
        fleet.remove("slave_2")
        assert "slave_2" not in fleet.engines()
        assert fleet.site.count(10) == {"slave_1": 5, "slave_3": 5}
        assert isinstance(engine.pool, QueuePool)
        assert engine.pool.checkedin() == 0

    def test_a_request_finishes_there(self, fleet: Fleet) -> None:
        """A request that holds a connection goes on; it is closed as it is returned."""
        closed: list[object] = []
        site = fleet.site
        with site.app.test_request_context():
            name = site.who()
            engine = fleet.engines()[name]
            sa.event.listen(engine, "close", lambda *found: closed.append(found))
            fleet.remove(name)
            assert site.who() == name
            assert not closed
            site.db.session.rollback()
            assert len(closed) == 1
            assert site.who() in set(REPLICAS) - {name}

    def test_of_the_first_and_of_all(self, fleet: Fleet) -> None:
        """Dialect and URL survive the first one, and the primary serves after all."""
        shape = fleet.engines()[None].replicas  # type: ignore[attr-defined]  # the routed engine
        fleet.remove("slave_1")
        assert shape.url == fleet.engines()["slave_2"].url
        fleet.remove("slave_2")
        fleet.remove("slave_3")
        assert shape.url == fleet.engines()[None].url
        assert shape.dialect.name == "sqlite"
        assert fleet.site.count(3) == {"master": 3}
        fleet.add("slave_9")
        assert fleet.site.count(3) == {"slave_9": 3}
        assert "slave_9" in str(shape.url)

    def test_and_add_again(self, fleet: Fleet) -> None:
        """A name is free again at once, also for another server."""
        old = fleet.engines()["slave_1"]
        fleet.remove("slave_1")
        fleet.add("slave_1")
        assert fleet.engines()["slave_1"] is not old
        assert fleet.site.count(9) == dict.fromkeys(REPLICAS, 3)

    @pytest.mark.parametrize("name", ["slave_9", "master", None])
    def test_unknown(self, fleet: Fleet, name: Any) -> None:
        """A replica that is not there is named, with those that are."""
        with pytest.raises(ConfigurationError, match="'slave_1', 'slave_2'") as caught:
            fleet.remove(name)
        assert (caught.value.key, caught.value.value) == ("name", name)

    def test_nothing_is_kept(self, fleet: Fleet) -> None:
        """Engines of replicas that have gone are garbage, once the monitor knows."""
        left = []
        for _ in range(5):
            fleet.add("slave_4")
            fleet.site.count(8)
            with fleet.site.app.app_context(), using_slave():
                core(fleet.site.db.engine)
            left.append(weakref.ref(fleet.engines()["slave_4"]))
            fleet.remove("slave_4")
        fleet.site.count(8)
        until = time.monotonic() + 10
        while any(one() for one in left) and time.monotonic() < until:
            time.sleep(0.1)
            gc.collect()
        assert [one() for one in left] == [None] * 5
        routed: Any = fleet.engines()[None]
        assert len(routed._aliases) <= 4

    def test_lite(self, tmp_path: Path) -> None:
        """Flask-SQLAlchemy-Lite's engines come and go; its async ones say no."""
        pytest.importorskip("flask_sqlalchemy_lite")
        pytest.importorskip("aiosqlite")
        from flask_sqlalchemy_lite import SQLAlchemy as Lite

        app = Flask("lite")
        urls = {
            "default" if name == "master" else name: sqlite_url(
                make_file(tmp_path, name)
            )
            for name in ("master", "slave_1")
        }
        app.config["SQLALCHEMY_ENGINES"] = urls
        app.config["SQLALCHEMY_ASYNC_ENGINES"] = {
            name: url.replace("sqlite:", "sqlite+aiosqlite:")
            for name, url in urls.items()
        }
        db = Lite(app)
        extension = FlaskReplicated(app)
        url = sqlite_url(make_file(tmp_path, "slave_2"))
        with app.test_request_context():
            extension.add("slave_2", url)
            extension.remove("slave_1")
            name = db.session.scalar(sa.text("SELECT name FROM marker"))
            assert name == "slave_2"
            assert set(db.engines) == {"default", "slave_2"}
            with pytest.raises(ConfigurationError, match=r"ASYNC_ENGINES.*restart"):
                extension.add("slave_2", url, "async default")
            db.session.close()
            for engine in db.engines.values():
                engine.dispose()


class TestThreads:
    """Members change while many requests are served."""

    def test_no_request_notices(self, fleet: Fleet) -> None:
        """Eight clients read while replicas come and go: every answer is right."""
        done, gate = Event(), Barrier(9)

        def read(_: int) -> Counter[str]:
            gate.wait()
            found: Counter[str] = Counter()
            while not done.is_set():
                found[fleet.site.get()] += 1
            return found

        with ThreadPoolExecutor(9) as threads:
            reads = [threads.submit(read, number) for number in range(8)]
            gate.wait()
            try:
                for turn in range(40):
                    name = f"slave_{4 + turn % 3}"
                    fleet.add(name)
                    fleet.remove(REPLICAS[turn % 3])
                    fleet.site.get()
                    fleet.add(REPLICAS[turn % 3])
                    fleet.remove(name)
            finally:
                done.set()
            served = sum((one.result() for one in reads), Counter[str]())
        assert "master" not in served
        assert fleet.live() == set(REPLICAS)
        assert set(fleet.engines()) == {None, *REPLICAS}
        assert fleet.site.count(9) == dict.fromkeys(REPLICAS, 3)

    def test_one_adds_a_name(self, fleet: Fleet) -> None:
        """Of many that add and remove one name at once, all leave things whole."""
        gate = Barrier(8)

        def change(number: int) -> None:
            gate.wait()
            for _ in range(15):
                try:
                    (fleet.add if number % 2 else fleet.remove)("slave_4")
                except ConfigurationError:
                    continue

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(change, range(8)))
        assert ("slave_4" in fleet.engines()) == ("slave_4" in fleet.live())
        routed: Any = fleet.engines()[None]
        assert set(routed.fleet._replicas) == fleet.live()

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
    @pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
    def test_a_child_has_its_own(self, fleet: Fleet) -> None:
        """A forked child, made while locks are held, changes its own replicas only."""
        fleet.add("slave_4")
        fleet.site.count(8)
        routed: Any = fleet.engines()[None]
        with routed.fleet._lock, routed.replicas.replica_pool._publisher._lock:
            child = os.fork()
            if child == 0:
                code = 2
                try:
                    fleet.remove("slave_1")
                    fleet.add("slave_5")
                    served = set(fleet.site.count(12))
                    expected = {"slave_2", "slave_3", "slave_4", "slave_5"}
                    code = int(served != expected)
                finally:
                    os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert fleet.site.count(8) == dict.fromkeys([*REPLICAS, "slave_4"], 2)


class TestMaxPools:
    """REPLICATED_MAX_POOLS."""

    def test_uses_so_many(self, build: Build) -> None:
        """Reads go to so many replicas, and no other one is ever opened."""
        fleet = Fleet(
            build, [f"slave_{n}" for n in range(1, 7)], REPLICATED_MAX_POOLS=2
        )
        served = fleet.site.count(20)
        assert sorted(served.values()) == [10, 10]
        assert set(served) == fleet.live()

    def test_is_full_again(self, build: Build) -> None:
        """One that is lost is replaced, and no visitor notices."""
        fleet = Fleet(
            build,
            [f"slave_{n}" for n in range(1, 5)],
            REPLICATED_MAX_POOLS=2,
            REPLICATED_BREAKER_RESET=30,
        )
        before = set(fleet.site.count(4))
        lost = min(before)
        fleet.engines()[lost].dispose()
        break_file(fleet.site.folder, lost)
        fleet.site.count(6)
        served = set(fleet.site.count(6))
        assert len(served) == 2
        assert lost not in served
        fleet.remove(max(before))
        assert len(set(fleet.site.count(6))) == 2

    def test_spares_are_the_last_resort(self, build: Build) -> None:
        """If all in use fail at once, others serve before the primary does."""
        names = [f"slave_{n}" for n in range(1, 5)]
        fleet = Fleet(build, names, REPLICATED_MAX_POOLS=2)
        for name in fleet.live():
            break_file(fleet.site.folder, name)
        assert "master" not in fleet.site.count(10)

    def test_spares_hold_no_connections(self, build: Build) -> None:
        """What a replica has open is closed when it is spare again."""
        names = [f"slave_{n}" for n in range(1, 5)]
        fleet = Fleet(build, names, REPLICATED_MAX_POOLS=2)
        before = fleet.live()
        lost = min(before)
        with fleet.site.app.app_context():
            pool = fleet.extension.pool()
        pool.drain(lost)
        fleet.site.count(6)
        (new,) = fleet.live() - before
        assert pool_open(fleet, [new]) == [new]
        with fleet.engines()[new].connect():
            pool.restore(lost)
        fleet.site.count(6)
        spare = set(names) - fleet.live()
        assert pool_open(fleet, spare) == []
        assert sorted(pool_open(fleet, names)) == sorted(fleet.live())

    @pytest.mark.parametrize("value", [0, -1, 1.5, "2", True])
    def test_errors(self, build: Build, value: object) -> None:
        """It is a whole number of at least 1, or None."""
        with pytest.raises(ConfigurationError, match="whole number of at least 1"):
            build(REPLICATED_MAX_POOLS=value)


def pool_open(fleet: Fleet, names: Any) -> list[str]:
    """Return which of these have idle connections."""
    engines: Any = fleet.engines()
    return [name for name in names if engines[name].pool.checkedin()]


def test_sites_are_their_own(build: Build) -> None:
    """Two applications that share a db have fleets of their own."""
    db, extension = SQLAlchemy(), FlaskReplicated()
    first: Site = build(["slave_1"], db=db, extension=extension)
    second: Site = build(["slave_1"], db=db, extension=extension)
    url = sqlite_url(make_file(first.folder, "slave_2"))
    with first.app.app_context():
        extension.add("slave_2", url)
    assert first.count(4) == {"slave_1": 2, "slave_2": 2}
    assert second.count(4) == {"slave_1": 4}
    reads: Callable[[], object] = second.get
    reads()
