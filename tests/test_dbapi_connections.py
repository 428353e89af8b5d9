"""Connections of the probe's own, made as the pool makes those of the application."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from flask import current_app, has_app_context, has_request_context

from examples.cluster import wait_until
from flask_replicated import replicated_engine
from flask_replicated.fleet.probe import ReplicaProbe
from flask_replicated.replica.dbapi_connections import (
    connect_unpooled,
    prepare_unpooled,
)
from flask_replicated.routing.state import AppState
from flask_replicated.settings.config import read_settings
from tests.pools import live, read
from tests.support import Build, build_fixture, make_file, sqlite_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from flask_replicated.engine.engines import RoutedEngine
    from flask_replicated.replica.replica_status import ReplicaReport


site_build = build_fixture


class Replica:
    """A replica's engine whose way to connect notes what it is given.

    Attributes:
        records: The pool's records that it was given; None where it takes none.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.records: list[Any] = []

    def without(self) -> sqlite3.Connection:
        """Connect without a record."""
        self.records.append(None)
        return sqlite3.connect(self._path, check_same_thread=False)

    def given(self, record: Any) -> sqlite3.Connection:
        """Connect, and keep something in the record as a cloud's login does."""
        record.info["token"] = "valid for 15 minutes"
        self.records.append(record)
        return sqlite3.connect(self._path, check_same_thread=False)

    def optional(self, record: Any = None) -> sqlite3.Connection:
        """Connect with a record that need not be given."""
        return self.without() if record is None else self.given(record)

    def listen(self, _dialect: Any, record: Any, _args: Any, _params: Any) -> None:
        """Do the same as a listener, and leave the connecting to others."""
        record.info["token"] = "valid for 15 minutes"
        self.records.append(record)


@pytest.fixture
def replica(tmp_path: Path) -> Replica:
    """Give a replica that is a file."""
    return Replica(make_file(tmp_path, "slave_1"))


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Give what the probes have found so far."""
    found: list[object] = []
    check = ReplicaProbe.check

    def noted(probe: ReplicaProbe, *, anew: bool) -> ReplicaReport:
        try:
            seen = check(probe, anew=anew)
        except Exception as error:
            found.append(error)
            raise
        found.append(seen)
        return seen

    monkeypatch.setattr(ReplicaProbe, "check", noted)
    return found


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Callable[[sa.Engine], RoutedEngine]]:
    """Give a function that makes a pool of one replica, which is probed often."""
    made: list[RoutedEngine] = []

    def build(engine: sa.Engine) -> RoutedEngine:
        primary = sa.create_engine(sqlite_url(make_file(tmp_path, "master")))
        made.append(
            replicated_engine(
                primary, {"slave_1": engine}, REPLICATED_PROBE_INTERVAL=0.05
            )
        )
        return made[-1]

    yield build
    for engine in made:
        engine.dispose()


@pytest.mark.parametrize("way", ["without", "given", "optional"])
def test_creators(
    build: Callable[[sa.Engine], RoutedEngine],
    replica: Replica,
    probes: list[object],
    way: str,
) -> None:
    """A creator is called as the pool calls it, and the replica stays."""
    engine = build(sa.create_engine("sqlite://", creator=getattr(replica, way)))
    read(engine)
    wait_until(lambda: len(probes) > 3, "some probes")
    assert not [one for one in probes if isinstance(one, Exception)]
    assert live(engine) == {"slave_1"}
    assert {record is None for record in replica.records} == {way != "given"}


def test_listeners(
    build: Callable[[sa.Engine], RoutedEngine], replica: Replica, probes: list[object]
) -> None:
    """A do_connect listener finds a record for each connection, none of them twice."""
    target = sa.create_engine(sqlite_url(replica._path))
    sa.event.listen(target, "do_connect", replica.listen)
    engine = build(target)
    read(engine)
    wait_until(lambda: len(probes) > 3, "some probes")
    assert not [one for one in probes if isinstance(one, Exception)]
    assert live(engine) == {"slave_1"}
    records = replica.records
    assert len(records) > 3
    assert len({id(record) for record in records}) == len(records)


def test_out_of_the_pool(replica: Replica) -> None:
    """What counts the pool's connections does not count these."""
    counted: list[str] = []

    def count(name: str) -> tuple[Callable[..., None], str]:
        return (lambda *_: counted.append(name)), name

    engine = sa.create_engine(
        sqlite_url(replica._path),
        poolclass=sa.QueuePool,
        pool_size=1,
        max_overflow=0,
        pool_events=[count("connect"), count("first_connect"), count("close")],
    )
    with engine.connect():  # which leaves nothing to take from the pool
        before = list(counted)
        connection = connect_unpooled(engine)
        prepare_unpooled(engine, connection)
        connection.close()
        assert counted == before
    engine.dispose()


def test_of_a_pool_that_was_replaced(replica: Replica) -> None:
    """dispose() makes a new pool, and the next connection is made as that one's are."""
    engine = sa.create_engine("sqlite://", creator=replica.without)
    old = engine.pool
    engine.dispose()
    assert engine.pool is not old
    connect_unpooled(engine).close()
    engine.pool = sa.create_engine("sqlite://", creator=replica.given).pool
    connect_unpooled(engine).close()
    without, record = replica.records
    assert without is None
    assert record.info == {"token": "valid for 15 minutes"}


def test_prepared(replica: Replica) -> None:
    """The dialect prepares them, with the engine's isolation level."""
    engine = sa.create_engine(
        sqlite_url(replica._path), isolation_level="READ UNCOMMITTED"
    )
    connection = connect_unpooled(engine)
    prepare_unpooled(engine, connection)
    # A function that SQLAlchemy's dialect adds, and the level.
    assert connection.execute("SELECT 'ab' REGEXP 'a.'").fetchone() == (1,)
    assert connection.execute("PRAGMA read_uncommitted").fetchone() == (1,)
    connection.close()


class TestInContext:
    """A creator, or a listener, that reads the application's configuration."""

    @pytest.mark.parametrize("broken", [False, True], ids=["well", "teardown_fails"])
    def test_probes(
        self,
        site_build: Build,
        tmp_path: Path,
        probes: list[object],
        *,
        broken: bool,
    ) -> None:
        """The probe connects in the application's context, and in no request."""
        requests: list[bool] = []

        def creator() -> sqlite3.Connection:
            requests.append(has_request_context())
            return sqlite3.connect(
                current_app.config["REPLICA"], check_same_thread=False
            )

        file = make_file(tmp_path, "slave_1")
        site = site_build(
            [],
            binds={"slave_1": {"url": sqlite_url(file), "creator": creator}},
            REPLICATED_PROBE_INTERVAL=0.05,
            REPLICA=str(file),
        )

        def fail(_error: BaseException | None) -> None:
            if broken and not requests[-1]:
                raise LookupError("only a request has this")

        site.get()
        site.app.teardown_appcontext_funcs.append(fail)
        wait_until(lambda: len(probes) > 3, "some probes")
        site.app.teardown_appcontext_funcs.remove(fail)
        assert not [one for one in probes if isinstance(one, Exception)]
        assert requests[0]
        assert not any(requests[-2:])

    def test_left_again(self, site_build: Build) -> None:
        """The context ends when the connection is made."""
        site = site_build(["slave_1"])
        state = site.app.extensions["replicated"].state(site.app)
        seen: list[object] = []

        def note(*_: object) -> None:
            seen.append(current_app.name)

        engine = sa.create_engine("sqlite://")
        sa.event.listen(engine, "do_connect", note)
        connect_unpooled(engine, state.surroundings()).close()
        assert seen == [site.app.name]
        assert not has_app_context()

    def test_without_an_application(self, replica: Replica) -> None:
        """Where there is none, nothing is pushed."""
        state = AppState(read_settings({}, ("GET",), {}))
        engine = sa.create_engine("sqlite://", creator=replica.without)
        connect_unpooled(engine, state.surroundings()).close()
        assert replica.records == [None]
