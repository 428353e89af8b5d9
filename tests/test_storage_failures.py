"""A replica that takes connections, and whose storage fails reads."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from balancers import Pool
from examples.cluster import wait_until
from flask_replicated import replicated_engine, using_slave
from flask_replicated.fleet.probe import ReplicaProbe
from flask_replicated.replica.failures import (
    StorageFailures,
    cause_of,
    failed_on_server,
    is_storage_error,
)
from tests.balancers.support import FakeClock
from tests.support import REPLICAS, Build, build_fixture, make_file, sqlite_url

if TYPE_CHECKING:
    from pathlib import Path

    from flask_replicated.replica.replica_status import ReplicaReport

build = build_fixture

ERROR = OSError("no space left")
PAGE = 4096


def damage(path: Path) -> None:
    """Overwrite all but the first page of a database file: it can be opened."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(PAGE)
        file.write(b"\xff" * (size - PAGE))


class TestAiling:
    """Who is taken out."""

    @pytest.fixture
    def clock(self) -> FakeClock:
        """Give a clock."""
        return FakeClock()

    @pytest.fixture
    def pool(self, clock: FakeClock) -> Pool[sa.Engine]:
        """Give three replicas."""
        engine = sa.create_engine("sqlite://")
        return Pool(dict.fromkeys(REPLICAS, engine), clock=clock)

    @pytest.fixture
    def storage_failures(self, clock: FakeClock) -> StorageFailures:
        """Give who decides."""
        return StorageFailures(clock)

    def test_once(
        self, storage_failures: StorageFailures, pool: Pool[sa.Engine]
    ) -> None:
        """One error is a matter of that read."""
        member, *_ = pool.members
        assert not storage_failures.note(member, ERROR, pool, 1.0)
        assert member in pool.live

    def test_again(
        self, storage_failures: StorageFailures, pool: Pool[sa.Engine], clock: FakeClock
    ) -> None:
        """One that goes on takes its replica out, and at once after a vain return."""
        member, *_ = pool.members
        storage_failures.note(member, ERROR, pool, 1.0)
        assert storage_failures.note(member, ERROR, pool, 1.0)
        assert member not in pool.live
        clock.now += 2
        pool.recover(member)
        assert storage_failures.note(member, ERROR, pool, 1.0)
        assert member not in pool.live

    def test_everywhere(
        self, storage_failures: StorageFailures, pool: Pool[sa.Engine]
    ) -> None:
        """What fails on several replicas is the statement's matter, not theirs."""
        for _ in range(3):
            for member in pool.members:
                assert not storage_failures.note(member, ERROR, pool, 1.0)
        assert pool.live == pool.members

    def test_last(
        self, storage_failures: StorageFailures, pool: Pool[sa.Engine]
    ) -> None:
        """The last one in rotation stays."""
        member, *others = pool.members
        for other in others:
            pool.trip(other, 60, ERROR)
        for _ in range(3):
            assert not storage_failures.note(member, ERROR, pool, 1.0)
        assert pool.live == (member,)

    def test_long_ago(
        self, storage_failures: StorageFailures, pool: Pool[sa.Engine], clock: FakeClock
    ) -> None:
        """Errors that lie far apart have nothing to do with each other."""
        first, second, _ = pool.members
        storage_failures.note(first, ERROR, pool, 1.0)
        clock.now += 6
        assert not storage_failures.note(first, ERROR, pool, 1.0)
        clock.now += 6
        storage_failures.note(second, ERROR, pool, 1.0)
        assert storage_failures.note(second, ERROR, pool, 1.0)

    def test_removed(
        self, storage_failures: StorageFailures, pool: Pool[sa.Engine]
    ) -> None:
        """One that has been removed meanwhile does no harm."""
        member = pool.remove("slave_1")
        for _ in range(2):
            storage_failures.note(member, ERROR, pool, 1.0)


@pytest.mark.parametrize(
    ("orig", "failed"),
    [
        (Exception(1021, "Disk full (/tmp/#sql); waiting for someone"), True),
        (Exception(1030, 'Got error 28 "No space left on device"'), True),
        (Exception(1195, "Table 'entry' is marked as crashed"), True),
        (Exception(1016, "Can't open file: 'entry.MYD' (errno: 24)"), True),
        (Exception(1932, "Table 'shop.entry' doesn't exist in engine"), True),
        (Exception(1064, "You have an error in your SQL syntax"), False),
        (Exception("disk I/O error"), True),
        (Exception("file is not a database"), True),
        (Exception("database or disk is full"), True),
        (Exception("no such table: entry"), False),
    ],
)
def test_other_databases(orig: Exception, failed: bool) -> None:
    """Each database has its own way to say so."""
    error = sa.exc.OperationalError("SELECT 1", {}, orig)
    assert is_storage_error(error) is failed_on_server(error) is failed


@pytest.mark.parametrize(
    "state",
    ["53000", "53100", "53200", "53400", "58030", "58P01", "XX000", "XX001", "XX002"],
)
def test_states(state: str) -> None:
    """A SQLSTATE says so, whatever the message."""
    orig = Exception("Lesefehler")
    orig.sqlstate = state  # type: ignore[attr-defined]  # as psycopg's errors have it
    assert is_storage_error(sa.exc.OperationalError("SELECT 1", {}, orig))


@pytest.mark.parametrize(
    ("state", "message", "failed"),
    [
        ("42501", 'could not open file "base/5/16397": Permission denied', True),
        ("42501", 'kann Datei »"pg_tblspc/16/PG_18/5/7"« nicht öffnen', True),
        ("42809", 'could not open file "global/1262": Is a directory', True),
        ("42501", "permission denied for table entry", False),
        ("42501", 'permission denied for schema "base"', False),
        ("42809", '"entry" is not a sequence', False),
    ],
)
def test_files(state: str, message: str, failed: bool) -> None:
    """A file that cannot be opened is no table that must not be read."""
    orig = Exception(message)
    orig.sqlstate = state  # type: ignore[attr-defined]  # as psycopg's errors have it
    error = sa.exc.ProgrammingError("SELECT 1", {}, orig)
    assert is_storage_error(error) is failed_on_server(error) is failed
    assert (cause_of(error) == cause_of(orig) == "storage") is failed


def test_no_get_fails(
    build: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A read that a damaged file fails is answered elsewhere, and the log says so."""
    files = {name: make_file(tmp_path, name) for name in REPLICAS}
    site = build(
        [],
        binds={name: sqlite_url(file) for name, file in files.items()},
        REPLICATED_BREAKER_RESET=60,
        REPLICATED_BREAKER_MAX_RESET=60,
    )
    damage(files["slave_2"])
    with caplog.at_level(logging.WARNING, "flask_replicated"):
        assert set(site.count(30)) == {"slave_1", "slave_3"}
    (line,) = caplog.messages
    assert "'slave_2' is out: DatabaseError: database disk image is malformed" in line


def test_a_statement_that_fails_everywhere(build: Build, tmp_path: Path) -> None:
    """It is run once on each server, is raised, and takes out no replica."""
    names = ("master", *REPLICAS)
    files = {name: make_file(tmp_path, name) for name in names}
    site = build([], binds={name: sqlite_url(files[name]) for name in REPLICAS})
    damage(site.folder / "master.db")
    for name in REPLICAS:
        damage(files[name])

    def view() -> str:
        with pytest.raises(sa.exc.DatabaseError, match="malformed"):
            site.who()
        return "raised"

    site.app.add_url_rule("/raises", "raises", view)
    assert set(site.count(10, "/raises")) == {"raised"}
    with site.app.app_context():
        pool = site.app.extensions["replicated"].pool()
    assert len(pool.live) == len(REPLICAS)


def test_a_probe_does_not_bring_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that answers a probe is not well for that; its wait goes on."""
    names = ("master", "slave_1", "slave_2")
    files = {name: make_file(tmp_path, name) for name in names}
    primary, *replicas = (sa.create_engine(sqlite_url(files[name])) for name in names)
    engine = replicated_engine(
        primary,
        dict(zip(names[1:], replicas, strict=True)),
        REPLICATED_PROBE_INTERVAL=0.02,
        REPLICATED_BREAKER_RESET=60,
        REPLICATED_BREAKER_MAX_RESET=60,
    )
    pool, probes = engine.replicas.replica_pool, 0
    check = ReplicaProbe.check

    def counted(probe: ReplicaProbe, *, anew: bool) -> ReplicaReport:
        nonlocal probes
        probes += probe.member.name == "slave_1"
        return check(probe, anew=anew)

    monkeypatch.setattr(ReplicaProbe, "check", counted)
    damage(files["slave_1"])
    failed = 0
    for _ in range(4):
        with using_slave(), engine.connect() as connection:
            try:
                connection.execute(sa.text("SELECT name FROM marker"))
            except sa.exc.DatabaseError:
                failed += 1
    assert failed == 2
    before = probes
    wait_until(lambda: probes > before + 3, "some probes")
    assert [member.name for member in pool.live] == ["slave_2"]
    engine.dispose()
