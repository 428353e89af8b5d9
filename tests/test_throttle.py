"""New connections to a replica are opened a few at a time."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Event, Lock
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.pool import NullPool, QueuePool

from examples.cluster import wait_until
from flask_replicated import (
    AllReplicasOutError,
    FlaskReplicated,
    replicated_engine,
    using_slave,
)
from flask_replicated.replica.throttle import (
    limit_connecting,
    limit_pool_wait,
    unlimited,
)
from tests.support import Build, build_fixture, make_file, sqlite_url, unpooled

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

build = build_fixture


def done() -> Event:
    """Return something that nobody has to wait for."""
    event = Event()
    event.set()
    return event


class Slow:
    """A ``creator``-like dialect whose connects take time and may fail.

    Attributes:
        most: How many were under way at once, at the most.
        outages: What the limit is told.
        asked: How often it has asked for that: once by each that wants a place, and
            again by who has one.
        go_on: What a connect waits for; those that wait for another go on doing so.
    """

    def __init__(self, path: Path, many: int = 2, seconds: float = 5) -> None:
        make_file(path, "slave_1")
        self.engine = sa.create_engine(
            sqlite_url(path / "slave_1.db"), poolclass=NullPool
        )
        self.now = self.most = self.calls = self.outages = self.asked = 0
        self.go_on = done()
        self.pause = 0.01
        self.error: Exception | None = None
        self._lock = Lock()
        self._connect = self.engine.dialect.connect
        self.engine.dialect.connect = self.connect  # type: ignore[method-assign]  # a slow server
        limit_connecting(self.engine, many, seconds, self._tell)

    def _tell(self) -> int:
        with self._lock:
            self.asked += 1
            return self.outages

    def connect(self, *args: Any, **options: Any) -> Any:
        """Connect slowly."""
        with self._lock:
            go_on = self.go_on
            self.calls += 1
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            time.sleep(self.pause)
            go_on.wait(20)
            if self.error is not None:
                raise self.error
            return self._connect(*args, **options)
        finally:
            with self._lock:
                self.now -= 1

    def ask(self, _: int = 0) -> object:
        """Connect and return an answer, or the error."""
        try:
            with self.engine.connect() as connection:
                return connection.scalar(sa.text("SELECT name FROM marker"))
        except Exception as error:  # noqa: BLE001 - it is what is asked for
            return error


def storm(slow: Slow, threads: int = 12) -> list[object]:
    """Let so many threads connect at once."""
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(slow.ask, range(threads)))


class TestLimit:
    """limit_connecting()."""

    def test_so_many_at_a_time(self, tmp_path: Path) -> None:
        """Twelve threads connect, two at a time, and all get there."""
        slow = Slow(tmp_path)
        assert storm(slow) == ["slave_1"] * 12
        assert slow.most == 2

    def test_one_more_fails_as_load(self, tmp_path: Path) -> None:
        """Who waits in vain gets the error of an exhausted connection pool."""
        slow = Slow(tmp_path, many=1, seconds=0.05)
        slow.go_on = Event()
        with ThreadPoolExecutor(3) as pool:
            asked = [pool.submit(slow.ask) for _ in range(3)]
            wait_until(lambda: sum(one.done() for one in asked) == 2, "two to give up")
            slow.go_on.set()
            found = [one.result() for one in asked]
        assert found.count("slave_1") == 1
        errors = [one for one in found if isinstance(one, sa.exc.TimeoutError)]
        assert len(errors) == 2
        assert "REPLICATED_MAX_CONNECTING" in str(errors[0])
        assert slow.ask() == "slave_1"

    @pytest.mark.parametrize(
        "error",
        [sqlite3.OperationalError("no"), OSError("no"), ValueError("no")],
    )
    def test_a_place_is_given_back(self, tmp_path: Path, error: Exception) -> None:
        """However a connect ends, its place is free again."""
        slow = Slow(tmp_path, many=1, seconds=0.2)
        slow.pause = 0
        slow.error = error
        for _ in range(5):
            assert not isinstance(slow.ask(), sa.exc.TimeoutError)
        slow.error = KeyboardInterrupt()  # type: ignore[assignment]  # it ends all the same
        with suppress(KeyboardInterrupt):
            slow.ask()
        slow.error = None
        assert slow.ask() == "slave_1"

    def test_who_waits_for_one_that_goes_out_goes_elsewhere(
        self, tmp_path: Path
    ) -> None:
        """A waiter does not try a server that went out while it waited."""
        slow = Slow(tmp_path, many=1, seconds=20)

        def fail(*_: Any, **__: Any) -> Any:
            # Three wait for this one, which has a place.
            wait_until(lambda: slow.asked == 3 + 2, "others to wait")
            slow.calls += 1
            slow.outages += 1
            raise sqlite3.OperationalError

        slow.engine.dialect.connect = fail  # type: ignore[method-assign]  # dead
        with ThreadPoolExecutor(4) as pool:
            found = [one.result() for one in [pool.submit(slow.ask) for _ in range(4)]]
        assert sum(isinstance(one, sa.exc.OperationalError) for one in found) == 1
        assert sum(isinstance(one, sa.exc.TimeoutError) for one in found) == 3
        assert slow.calls == 1

    def test_other_listeners_are_heard(self, tmp_path: Path) -> None:
        """Listeners before and after it may change arguments, or connect."""
        slow = Slow(tmp_path)
        seen: list[Any] = []

        @sa.event.listens_for(slow.engine, "do_connect")
        def change(_dialect: Any, _record: Any, _cargs: Any, cparams: Any) -> None:
            cparams["timeout"] = 7
            seen.append("change")

        assert slow.ask() == "slave_1"
        assert seen == ["change"]

        @sa.event.listens_for(slow.engine, "do_connect")
        def own(_dialect: Any, _record: Any, cargs: Any, cparams: Any) -> Any:
            assert cparams["timeout"] == 7
            return sqlite3.connect(*cargs, **cparams)

        calls = slow.calls
        assert slow.ask() == "slave_1"
        assert (seen, slow.calls) == (["change"] * 2, calls)

    def test_a_watcher_does_not_wait(self, tmp_path: Path) -> None:
        """Who watches the server connects past those who wait for it."""
        slow = Slow(tmp_path, many=1, seconds=0.2)
        held = slow.go_on = Event()
        with ThreadPoolExecutor(1) as pool:
            connecting = pool.submit(slow.ask)
            wait_until(lambda: slow.now == 1, "it to begin")
            slow.go_on = done()
            with unlimited():
                assert slow.ask() == "slave_1"
            assert isinstance(slow.ask(), sa.exc.TimeoutError)
            held.set()
            assert connecting.result() == "slave_1"

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
    @pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
    def test_a_child_has_places_of_its_own(self, tmp_path: Path) -> None:
        """A child forked while its parent connects finds all places free."""
        slow = Slow(tmp_path, many=1, seconds=0.2)
        held = slow.go_on = Event()
        with ThreadPoolExecutor(1) as pool:
            connecting = pool.submit(slow.ask)
            wait_until(lambda: slow.now == 1, "it to begin")
            child = os.fork()
            if child == 0:
                slow._lock = Lock()
                slow.go_on = done()
                os._exit(int(slow.ask() != "slave_1"))
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            held.set()
            assert connecting.result() == "slave_1"
        assert code == 0


class Patient(QueuePool):
    """A pool with a default of its own."""

    def __init__(self, creator: Any, timeout: float = 7, **options: Any) -> None:
        super().__init__(creator, timeout=timeout, **options)


class TestWaiting:
    """How long a caller waits for a connection that another one has."""

    @pytest.mark.parametrize(
        ("options", "seconds", "found"),
        [
            ({}, 2, 2),
            ({}, 60, 30),  # never longer than it would have been
            ({"pool_timeout": 30}, 2, 30),
            ({"pool_timeout": float("30")}, 2, 30),
            ({"pool_timeout": 0.5}, 2, 0.5),
            ({"pool_timeout": None}, 2, None),
            ({"poolclass": Patient}, 2, 2),
        ],
    )
    def test_what_a_bind_says_is_stronger(
        self, options: Any, seconds: float, found: float | None
    ) -> None:
        """The limit stands in for SQLAlchemy's default alone, and outlives dispose."""
        options = {"poolclass": QueuePool, **options}
        engine = sa.create_engine("sqlite://", **options)
        limit_pool_wait(engine, seconds)
        for _ in range(2):
            assert isinstance(engine.pool, QueuePool)
            assert engine.pool.timeout() == found
            engine.dispose()

    def test_no_wait_in_other_pools(self) -> None:
        """A pool that gives everybody a connection has no limit."""
        limit_pool_wait(sa.create_engine("sqlite://", poolclass=NullPool), 2)

    def test_primary(self) -> None:
        """Not for the primary, where a bind names that."""
        primary = sa.create_engine("sqlite://", poolclass=QueuePool)
        replicas = {"slave_1": primary.execution_options(), "slave_2": primary}
        replicated_engine(primary, replicas)
        assert primary.pool.timeout() == 30  # type: ignore[attr-defined]  # a QueuePool


class TestAsync:
    """An async engine's loop is never blocked."""

    def engine(
        self, folder: Path, wait: Callable[[], Awaitable[object]], seconds: float
    ) -> tuple[Any, Any]:
        """Return an async engine whose connects wait in the loop, and a counter."""
        pytest.importorskip("aiosqlite")
        pytest.importorskip("greenlet")
        from sqlalchemy.ext.asyncio import create_async_engine
        from sqlalchemy.util import await_only

        path = make_file(folder, "slave_1")
        engine = create_async_engine(f"sqlite+aiosqlite:///{path}", poolclass=NullPool)
        dialect = engine.sync_engine.dialect
        connect, counts = dialect.connect, {"now": 0, "most": 0}

        def slow(*args: Any, **options: Any) -> Any:
            counts["now"] += 1
            counts["most"] = max(counts["most"], counts["now"])
            try:
                await_only(wait())
                return connect(*args, **options)
            finally:
                counts["now"] -= 1

        dialect.connect = slow  # type: ignore[method-assign]  # a slow server
        limit_connecting(engine.sync_engine, 2, seconds, lambda: 0)
        return engine, counts

    def test_waits_without_blocking(self, tmp_path: Path) -> None:
        """Ten tasks connect two at a time, while the loop goes on."""
        engine, counts = self.engine(tmp_path, lambda: asyncio.sleep(0.03), 20)

        async def ask() -> object:
            async with engine.connect() as connection:
                return await connection.scalar(sa.text("SELECT name FROM marker"))

        async def main() -> list[object]:
            return list(await asyncio.gather(*(ask() for _ in range(10))))

        assert asyncio.run(main()) == ["slave_1"] * 10
        assert counts["most"] == 2

    def test_fails_as_load(self, tmp_path: Path) -> None:
        """A task that waits in vain gets the same error."""
        gate = asyncio.Event()
        engine, _ = self.engine(tmp_path, gate.wait, 0.05)

        async def ask() -> object:
            async with engine.connect():
                return "connected"

        async def main() -> list[object]:
            asked = [asyncio.ensure_future(ask()) for _ in range(3)]
            await asyncio.wait(asked, timeout=20, return_when=asyncio.FIRST_COMPLETED)
            gate.set()
            return list(await asyncio.gather(*asked, return_exceptions=True))

        found = asyncio.run(main())
        assert found.count("connected") == 2
        assert sum(isinstance(one, sa.exc.TimeoutError) for one in found) == 1


def test_an_application_goes_elsewhere(build: Build, tmp_path: Path) -> None:
    """A replica that is busy with connects trips no breaker; others serve."""
    for name in ("slave_1", "slave_2"):
        make_file(tmp_path, name)
    extension = FlaskReplicated()
    site = build(
        [],
        binds={
            name: unpooled(tmp_path / f"{name}.db") for name in ("slave_1", "slave_2")
        },
        extension=extension,
        REPLICATED_MAX_CONNECTING=1,
        REPLICATED_CONNECT_TIMEOUT=0.05,
        REPLICATED_PROBE_INTERVAL=0,
    )
    with site.app.app_context():
        dialect = site.db.engines["slave_1"].dialect
        pool = extension.pool()
    connect, begun, held = dialect.connect, Event(), Event()

    def slow(*args: Any, **options: Any) -> Any:
        begun.set()
        held.wait(20)
        return connect(*args, **options)

    dialect.connect = slow  # type: ignore[method-assign]  # a slow server

    def get() -> str:
        while (served := site.get()) != "slave_1":
            pass
        return served

    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(get)
        assert begun.wait(20)
        assert {site.get() for _ in range(4)} == {"slave_2"}
        held.set()
        assert first.result() == "slave_1"
    assert [one.failures for one in pool.snapshot().members] == [0, 0]
    assert pool.snapshot().live == ("slave_1", "slave_2")


def test_one_waits_for_half_of_the_time(tmp_path: Path) -> None:
    """To wait and then to connect takes little longer than to connect."""
    engines = {
        name: sa.create_engine(
            sqlite_url(make_file(tmp_path, name)), poolclass=NullPool
        )
        for name in ("master", "slave_1")
    }
    routed = replicated_engine(
        engines["master"],
        {"slave_1": engines["slave_1"]},
        REPLICATED_MAX_CONNECTING=1,
        REPLICATED_CONNECT_TIMEOUT=0.1,
        REPLICATED_FALLBACK="error",
        REPLICATED_PROBE_INTERVAL=0,
    )
    held, begun = Event(), Event()
    connect = engines["slave_1"].dialect.connect

    def connecting(*args: Any, **options: Any) -> Any:
        begun.set()
        held.wait(10)
        return connect(*args, **options)

    engines["slave_1"].dialect.connect = connecting  # type: ignore[method-assign]  # a slow server

    def ask() -> None:
        with using_slave(), routed.connect():
            pass

    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(ask)
        begun.wait(10)
        with pytest.raises(AllReplicasOutError, match=r"within 0\.05 s"):
            ask()
        held.set()
        first.result()
    routed.dispose()
