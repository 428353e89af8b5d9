"""Replicas that cannot be opened, and what visitors notice: nothing."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy import NullPool

from balancers import Pool
from flask_replicated import AllReplicasOutError, use_slave_database, using_slave
from tests.balancers.support import FakeClock
from tests.support import (
    REPLICAS,
    Build,
    Site,
    break_file,
    build_fixture,
    make_file,
    sqlite_url,
    unpooled,
)

if TYPE_CHECKING:
    from pathlib import Path

build = build_fixture

PASSWORD = "hunter2"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """Give the clock that breakers go by, for sites built afterwards."""
    clock = FakeClock(time.monotonic())
    defaults = Pool.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "clock", clock)
    return clock


def fragile(build: Build, folder: Path, **config: Any) -> Site:
    """Return a site whose replicas open their file for every connection.

    No probe finds them, on a slow machine, before the test's clock has moved.
    """
    binds = {name: unpooled(make_file(folder, name)) for name in REPLICAS}
    return build([], binds=binds, **{"REPLICATED_PROBE_INTERVAL": 0, **config})


@pytest.fixture
def site(build: Build, clock: FakeClock, tmp_path: Path) -> Site:
    """Give a site whose replicas can be broken at any time."""
    return fragile(build, tmp_path)


class TestOneDown:
    """One of three replicas is out."""

    def test_at_the_start(self, build: Build, clock: FakeClock, tmp_path: Path) -> None:
        """A replica that is down when the application starts costs no failed GET."""
        break_file(tmp_path, "slave_2")
        binds = {name: unpooled(tmp_path / f"{name}.db") for name in REPLICAS}
        for name in ("slave_1", "slave_3"):
            make_file(tmp_path, name)
        site = build([], binds=binds, REPLICATED_PROBE_INTERVAL=0)
        counts = site.count(60)
        assert counts["slave_1"] + counts["slave_3"] == 60
        assert abs(counts["slave_1"] - counts["slave_3"]) <= 2

    @pytest.mark.parametrize("victim", REPLICAS)
    def test_later(self, site: Site, tmp_path: Path, victim: str) -> None:
        """A replica that dies costs no failed GET; the others share its load evenly."""
        site.count(9)
        break_file(tmp_path, victim)
        counts = site.count(60)
        assert counts.total() == 60
        assert set(counts) == set(REPLICAS) - {victim}
        assert max(counts.values()) - min(counts.values()) <= 2

    def test_core(self, site: Site, tmp_path: Path) -> None:
        """Core connections fail over like sessions."""
        break_file(tmp_path, "slave_1")
        for _ in range(6):
            with (
                site.app.test_request_context(),
                site.db.engine.connect() as connection,
            ):
                name = connection.scalar(sa.text("SELECT name FROM marker"))
                assert name in {"slave_2", "slave_3"}

    def test_in_mid_request(self, site: Site, tmp_path: Path) -> None:
        """A request whose replica is lost between transactions goes on with another."""
        with site.app.test_request_context():
            first = site.who()
            site.db.session.commit()
            break_file(tmp_path, first)
            second = site.who()
            site.db.session.commit()
            assert second in set(REPLICAS) - {first}
            assert site.who() == second

    def test_said_once(
        self, site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The loss of a replica is logged once, with its cause."""
        break_file(tmp_path, "slave_3")
        site.count(30)
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert "'slave_3'" in record.getMessage()
        assert "unable to open database file" in record.getMessage()

    def test_writes_go_on(self, site: Site, tmp_path: Path) -> None:
        """Writes, before and after reads, do not notice."""
        break_file(tmp_path, "slave_1")
        for _ in range(6):
            site.get("/write")
        assert len(site.entries()) == 6

    def test_unflushed_objects_stay(self, site: Site, tmp_path: Path) -> None:
        """A read that fails over leaves new objects in the session."""
        with site.app.test_request_context():
            site.db.session.autoflush = False
            site.db.session.add(site.entry(text="kept"))
            for name in ("slave_1", "slave_2"):
                break_file(tmp_path, name)
            assert site.who() == "slave_3"
            site.db.session.commit()
        assert site.entries() == ["kept"]


class TestBusy:
    """A replica lives, and has no connection to spare."""

    def test_at_rest(self, site: Site) -> None:
        """A request goes on with its replica, which others leave alone for a while."""
        with site.app.test_request_context():
            first = site.who()
            site.db.session.commit()
            pool = site.db.engine.replicas.replica_pool  # type: ignore[attr-defined]  # the routed engine
            pool.pause(pool.member(first), 60, OSError("too many clients"))
            assert site.who() == first
        assert first not in site.count(6)

    def test_exhausted(self, build: Build, tmp_path: Path) -> None:
        """A request whose replica has none for it any more goes on with the primary."""
        small = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.01}
        urls = {name: f"sqlite:///{make_file(tmp_path, name)}" for name in REPLICAS}
        site = build([], binds={name: {"url": urls[name], **small} for name in urls})
        with site.app.test_request_context():
            first = site.who()
            site.db.session.commit()
            with site.db.engines[first].connect():
                assert site.who() == "master"
            site.db.session.commit()
            assert site.who() == "master"

    @pytest.mark.parametrize("fallback", ["master", "error"])
    def test_all_busy(
        self,
        build: Build,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        fallback: str,
    ) -> None:
        """Load on all of them is called so, once, with what helps; none is out."""
        small = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.01}
        binds = {
            name: {"url": sqlite_url(make_file(tmp_path, name)), **small}
            for name in ("slave_1", "slave_2")
        }
        site = build([], binds=binds, REPLICATED_FALLBACK=fallback)
        with site.app.app_context():
            engines = dict(site.db.engines)
        with engines["slave_1"].connect(), engines["slave_2"].connect():
            if fallback == "master":
                assert site.count(3) == {"master": 3}
            else:
                with (
                    site.app.test_request_context(),
                    pytest.raises(AllReplicasOutError, match="is busy") as caught,
                ):
                    site.who()
                assert caught.value.load
                assert "Let more be open" in str(caught.value)
        told = [record for record in caplog.records if "every" in record.getMessage()]
        for record in told:
            assert record.levelno == logging.WARNING
            assert "every replica is busy" in record.getMessage()
            assert "pool_size and max_overflow" in record.getMessage()
        assert len(told) == (fallback == "master")
        assert set(site.count(4)) <= {"slave_1", "slave_2"}

    def test_busy_and_out(
        self, build: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Where one is down as well it is more than load."""
        small = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.01}
        url = sqlite_url(make_file(tmp_path, "slave_1"))
        bind = {"url": url, **small}
        site = build(["slave_2"], binds={"slave_1": bind}, REPLICATED_PROBE_INTERVAL=0)
        with site.app.app_context():
            busy = site.db.engines["slave_1"]
            site.db.engines["slave_2"].dispose()
        break_file(tmp_path, "slave_2")
        with busy.connect():
            assert site.count(3) == {"master": 3}
        assert "every replica is out" in caplog.text
        assert "every replica is busy" not in caplog.text

    def test_who_waits_goes_elsewhere(self, build: Build, tmp_path: Path) -> None:
        """Nobody waits long for a place in one pool while others have some."""
        names = ("slave_1", "slave_2")
        binds = {
            name: {
                "url": f"sqlite:///{make_file(tmp_path, name)}",
                "pool_size": 1,
                "max_overflow": 0,
            }
            for name in names
        }
        site = build([], binds=binds, REPLICATED_CONNECT_TIMEOUT=0.2)
        with site.app.app_context():
            engines = dict(site.db.engines)
            pool = site.db.engine.replicas.replica_pool  # type: ignore[attr-defined]  # the routed engine
        for busy, other in (names, names[::-1]):
            with engines[busy].connect():
                assert site.count(4) == {other: 4}
        assert {one.name for one in pool.live} == set(names)


class TestTimeLimit:
    """Replicas are tried for so long, and no longer."""

    def test_over(self, build: Build, clock: FakeClock, tmp_path: Path) -> None:
        """When the time is over no further replica is tried."""
        for limit, tried in ((0, 2), (60, 3)):
            site = fragile(
                build,
                tmp_path,
                REPLICATED_FAILOVER_TIMEOUT=limit,
                REPLICATED_BREAKER_THRESHOLD=1,
            )
            for name in REPLICAS:
                break_file(tmp_path, name)
            with site.app.test_request_context():
                assert site.who() == "master"
                pool = site.db.engine.replicas.replica_pool  # type: ignore[attr-defined]  # the routed engine
            members = pool.snapshot().members
            assert sum(one.state == "open" for one in members) == tried


class TestReturn:
    """A replica comes back."""

    def test_used_again(self, site: Site, clock: FakeClock, tmp_path: Path) -> None:
        """A replica that returns is used again, with an equal share."""
        break_file(tmp_path, "slave_2")
        site.count(12)
        make_file(tmp_path, "slave_2")
        clock.now += 60
        site.count(3)
        assert site.count(30) == dict.fromkeys(REPLICAS, 10)

    def test_not_before_its_time(
        self, site: Site, clock: FakeClock, tmp_path: Path
    ) -> None:
        """Until the wait is over nobody tries a replica that is out."""
        break_file(tmp_path, "slave_2")
        site.count(12)
        make_file(tmp_path, "slave_2")
        assert "slave_2" not in site.count(30)

    def test_all_return(self, site: Site, clock: FakeClock, tmp_path: Path) -> None:
        """After a total loss the primary hands the reads back."""
        for name in REPLICAS:
            break_file(tmp_path, name)
        assert site.count(12) == {"master": 12}
        for name in REPLICAS:
            make_file(tmp_path, name)
        clock.now += 60
        site.count(6)
        assert site.count(30) == dict.fromkeys(REPLICAS, 10)

    def test_still_down(self, site: Site, clock: FakeClock, tmp_path: Path) -> None:
        """A trial that fails costs no failed GET either."""
        break_file(tmp_path, "slave_2")
        for _ in range(5):
            assert set(site.count(6)) == {"slave_1", "slave_3"}
            clock.now += 60


class TestAllDown:
    """Nobody is left."""

    def test_primary(self, site: Site, tmp_path: Path) -> None:
        """With every replica out the primary reads."""
        for name in REPLICAS:
            break_file(tmp_path, name)
        assert site.count(12) == {"master": 12}

    def test_pin_and_latch(self, site: Site, tmp_path: Path) -> None:
        """With every replica out a request reads and writes in one transaction."""
        for name in REPLICAS:
            break_file(tmp_path, name)

        def view() -> str:
            site.who()
            site.db.session.add(site.entry(text="one"))
            site.db.session.flush()
            found = site.db.session.scalar(sa.select(site.entry.text))
            site.db.session.commit()
            return str(found)

        site.app.add_url_rule("/both", "both", view)
        assert site.get("/both") == "one"
        assert site.entries() == ["one"]

    def test_asked_for_replicas(self, site: Site, tmp_path: Path) -> None:
        """Decorators and blocks that ask for a replica get the primary then."""
        for name in REPLICAS:
            break_file(tmp_path, name)
        site.app.add_url_rule("/any", "any", use_slave_database(site.who))
        assert site.get("/any") == "master"
        with site.app.app_context(), using_slave():
            assert site.who() == "master"

    def test_error(self, build: Build, clock: FakeClock, tmp_path: Path) -> None:
        """REPLICATED_FALLBACK = 'error' raises, with each replica and its cause."""
        site = fragile(build, tmp_path, REPLICATED_FALLBACK="error")
        site.count(3)
        for name in REPLICAS:
            break_file(tmp_path, name)
        for _ in range(4):
            with (
                site.app.test_request_context(),
                pytest.raises(AllReplicasOutError) as caught,
            ):
                site.who()
            assert list(caught.value.causes) == list(REPLICAS)
            for cause in caught.value.causes.values():
                assert "unable to open database file" in cause
            assert "REPLICATED_FALLBACK = 'master'" in str(caught.value)
        assert site.client().get("/").status_code == 500
        assert site.client().post("/").text == "master"

    def test_error_with_weights(self, build: Build, clock: FakeClock) -> None:
        """A replica that weighs 0 is named as well, with that as its cause."""
        site = build(
            REPLICATED_FALLBACK="error",
            REPLICATED_WEIGHTS=dict.fromkeys(REPLICAS, 0),
        )
        with (
            site.app.test_request_context(),
            pytest.raises(AllReplicasOutError) as caught,
        ):
            site.who()
        assert all("weight" in cause for cause in caught.value.causes.values())
        assert list(caught.value.causes) == list(REPLICAS)

    def test_no_password(
        self, build: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Neither the error nor the log shows a password that a cause contains."""

        def refuse() -> Any:
            url = f"postgresql://me:{PASSWORD}@db/shop"
            raise OSError(f"cannot connect to {url} with password={PASSWORD}")

        bind = {"url": "sqlite://", "creator": refuse, "poolclass": NullPool}
        site = build([], binds={"slave_1": bind}, REPLICATED_FALLBACK="error")
        for _ in range(4):
            with (
                site.app.test_request_context(),
                pytest.raises(AllReplicasOutError) as caught,
            ):
                site.who()
            assert PASSWORD not in str(caught.value)
            assert PASSWORD not in repr(caught.value)
            assert "slave_1" in str(caught.value)
        assert caplog.text
        assert PASSWORD not in caplog.text

    def test_session_survives(
        self, build: Build, clock: FakeClock, tmp_path: Path
    ) -> None:
        """After the error the same session still writes to the primary."""
        site = fragile(build, tmp_path, REPLICATED_FALLBACK="error")
        for name in REPLICAS:
            break_file(tmp_path, name)
        with site.app.test_request_context():
            with pytest.raises(AllReplicasOutError):
                site.who()
            site.write()
            assert site.who() == "master"
        assert site.entries() == ["written"]


class TestCorrupt:
    """A file that opens but is no database."""

    def test_later(self, site: Site, tmp_path: Path) -> None:
        """A replica whose file is damaged costs no failed GET."""
        (tmp_path / "slave_2.db").write_bytes(b"This is no database. " * 500)
        assert set(site.count(30)) == {"slave_1", "slave_3"}
