"""Listeners on ``db.engine``: every server of the bind hears them, once each."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_sqlalchemy.record_queries import get_recorded_queries
from sqlalchemy import event, text
from sqlalchemy.exc import ArgumentError, InvalidRequestError, OperationalError

from examples.cluster import wait_until
from flask_replicated import (
    FlaskReplicated,
    RoutedSession,
    WriteOnReplicaError,
    replicated_engine,
    using_master,
    using_slave,
)
from tests.fleets import Fleet, fleet_fixture
from tests.support import (
    REPLICAS,
    Build,
    Site,
    break_file,
    build_fixture,
    core,
    make_file,
    make_models,
    sqlite_url,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

build, fleet = build_fixture, fleet_fixture
EVERYBODY = ("master", *REPLICAS)
WHO = "SELECT name FROM marker"


@pytest.fixture
def site(build: Build) -> Site:
    """Give an application over a primary and three replicas."""
    return build()


def engine_of(site: Site, key: str | None = None) -> sa.Engine:
    """Return one of ``db.engines``."""
    with site.app.app_context():
        return site.db.engines[key]


def visit(site: Site) -> None:
    """Let every server answer one request."""
    served = {site.client().get("/").text for _ in REPLICAS}
    served.add(site.client().post("/").text)
    assert served == set(EVERYBODY)


class Ear:
    """Notes which servers it heard of, by the name of their file."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def connection(self, connection: sa.Connection, *_: Any) -> None:
        """Listen to an event about a connection."""
        self.heard.append(Path(connection.engine.url.database or "").stem)

    def driver(self, connection: Any, *_: Any) -> None:
        """Listen to an event about a driver's connection."""
        (row,) = connection.execute("PRAGMA database_list").fetchall()
        self.heard.append(Path(row[2]).stem)

    def counted(self) -> Counter[str]:
        """Return how often each server was heard, and forget it."""
        found = Counter(self.heard)
        self.heard.clear()
        return found


def once_each(*names: str) -> Counter[str]:
    """Return each name once."""
    return Counter(names or EVERYBODY)


class TestHeard:
    """What is listened to on ``db.engine`` is heard for every server."""

    @pytest.mark.parametrize(
        "name", ["before_cursor_execute", "after_cursor_execute", "begin", "rollback"]
    )
    def test_of_connections(self, site: Site, name: str) -> None:
        """An event about a connection is heard once for each use of a server."""
        ear = Ear()
        event.listen(engine_of(site), name, ear.connection)
        visit(site)
        assert ear.counted() == once_each()

    @pytest.mark.parametrize("name", ["before_execute", "after_execute"])
    def test_of_statements(self, site: Site, name: str) -> None:
        """An event about a statement is heard once, too."""
        ear = Ear()
        event.listen(engine_of(site), name, ear.connection)
        visit(site)
        assert ear.counted() == once_each()

    @pytest.mark.parametrize("name", ["connect", "first_connect", "checkout"])
    @pytest.mark.parametrize("target", ["engine", "pool"])
    def test_of_pools(self, site: Site, name: str, target: str) -> None:
        """So is an event about a connection pool, on the engine or on its pool."""
        ear, engine = Ear(), engine_of(site)
        event.listen(engine if target == "engine" else engine.pool, name, ear.driver)
        visit(site)
        assert ear.counted() == once_each()

    def test_of_returned_connections(self, site: Site) -> None:
        """A connection that is returned is heard of."""
        ear = Ear()
        event.listen(engine_of(site), "checkin", ear.driver)
        visit(site)
        assert ear.counted() == once_each()

    @pytest.mark.parametrize("target", ["engine", "dialect"])
    def test_of_dialects(self, build: Build, target: str) -> None:
        """So is an event of a dialect, on the engine or on its dialect."""
        site, heard = build(REPLICATED_PROBE_INTERVAL=0), []

        def connect(_dialect: Any, _record: Any, cargs: Any, _cparams: Any) -> None:
            heard.append(Path(cargs[0]).stem)

        engine = engine_of(site)
        event.listen(
            engine if target == "engine" else engine.dialect, "do_connect", connect
        )
        visit(site)
        assert Counter(heard) == once_each()

    def test_of_errors(self, site: Site) -> None:
        """An error is heard once, with the engine of the server that has made it."""
        ear = Ear()
        event.listen(engine_of(site), "handle_error", ear.connection)
        for method in ("GET", "GET", "GET", "POST"):
            with (
                site.app.test_request_context(method=method),
                pytest.raises(OperationalError, match="no_such_function"),
            ):
                site.db.session.execute(text("SELECT no_such_function()"))
        assert ear.heard.count("master") >= 1
        assert set(ear.heard) == set(EVERYBODY)

    def test_of_a_failed_connect(self, build: Build) -> None:
        """So is a replica that cannot be connected to, before another one serves."""
        site = build(REPLICATED_PROBE_INTERVAL=0)
        site.dispose()  # nothing is connected yet, or it would be used
        heard = []
        for name in REPLICAS[:2]:
            break_file(site.folder, name)

        @event.listens_for(engine_of(site), "handle_error")
        def handle(context: Any) -> None:
            assert context.connection is None
            heard.append(Path(context.engine.url.database).stem)

        assert site.count(6) == Counter(slave_3=6)
        assert set(heard) == set(REPLICAS[:2])

    def test_of_an_error_that_is_replaced(self, site: Site) -> None:
        """An error that a listener returns is the one that is raised."""

        class OurError(Exception):
            """An application's own."""

        @event.listens_for(engine_of(site), "handle_error", retval=True)
        def handle(_context: Any) -> Exception:
            return OurError("made of it")

        for method in ("GET", "POST"):
            with (
                site.app.test_request_context(method=method),
                pytest.raises(OurError),
            ):
                site.db.session.execute(text("SELECT 1 FROM no_such_table"))

    def test_of_connections_that_are_made(self, site: Site) -> None:
        """``engine_connect`` may use the connection, which knows what it is by then."""
        ear = Ear()

        @event.listens_for(engine_of(site), "engine_connect")
        def connect(connection: sa.Connection) -> None:
            ear.connection(connection)
            connection.scalar(text("SELECT 1"))
            connection.rollback()

        visit(site)
        assert ear.counted() == once_each()
        with site.app.test_request_context():
            assert [core(site.db.engine)] == ear.heard

    def test_of_a_write_as_a_connection_is_made(self, site: Site) -> None:
        """A write at ``engine_connect`` is refused on a replica, which stays in use."""

        @event.listens_for(engine_of(site), "engine_connect")
        def connect(connection: sa.Connection) -> None:
            connection.execute(sa.insert(site.entry).values(text="visit"))
            connection.commit()

        with site.app.test_request_context(), pytest.raises(WriteOnReplicaError):
            site.who()
        assert site.client().post("/").text == "master"
        assert site.entries() == ["visit"]
        with site.app.app_context():
            states = site.app.extensions["replicated"].pool().snapshot().members
            assert [member.state for member in states] == ["closed"] * 3

    def test_of_options(self, site: Site) -> None:
        """``set_connection_execution_options`` is heard, with its connection."""
        ear = Ear()
        event.listen(
            engine_of(site), "set_connection_execution_options", ear.connection
        )
        for _ in REPLICAS:
            with site.app.test_request_context(), using_slave():
                site.db.session.connection(execution_options={"yield_per": 5})
        with site.app.test_request_context():
            site.db.session.connection(execution_options={"yield_per": 5})
        assert ear.counted() == once_each()

    def test_of_disposal(self, site: Site) -> None:
        """``engine_disposed`` is heard for each engine."""
        heard: list[str] = []

        @event.listens_for(engine_of(site), "engine_disposed")
        def disposed(engine: sa.Engine) -> None:
            heard.append(Path(engine.url.database or "").stem)

        engine_of(site).dispose()
        assert Counter(heard) == once_each()

    def test_after_disposal(self, site: Site) -> None:
        """The connection pools that come after ``dispose()`` are heard as well."""
        ear, late, engine = Ear(), Ear(), engine_of(site)
        event.listen(engine, "connect", ear.driver)
        visit(site)
        pool = engine.pool
        engine.dispose()
        ear.counted()
        event.listen(engine.pool, "connect", late.driver)
        visit(site)
        assert ear.counted() == late.counted() == once_each()
        event.remove(pool, "connect", late.driver)
        engine.dispose()
        visit(site)
        assert (ear.counted(), late.heard) == (once_each(), [])

    def test_of_core(self, site: Site) -> None:
        """Connections from ``db.engine`` itself are heard once."""
        ear = Ear()
        event.listen(engine_of(site), "before_cursor_execute", ear.connection)
        with site.app.test_request_context():
            served = {core(site.db.engine)}
            with using_master():
                served.add(core(site.db.engine))
            with site.db.engine.begin() as connection:
                served.add(connection.scalar(text(WHO)))
        assert served == set(ear.heard)
        assert len(ear.heard) == 3

    def test_of_a_function(self, site: Site) -> None:
        """What a listener gives to a driver's connection is there on every server."""

        @event.listens_for(engine_of(site), "connect")
        def give(connection: Any, _record: Any) -> None:
            connection.create_function("shout", 1, str.upper)

        site.app.add_url_rule(
            "/shout",
            view_func=lambda: site.db.session.scalar(text("SELECT shout('a')")),
            endpoint="shout",
            methods=["GET", "POST"],
        )
        for method in ("GET", "GET", "GET", "POST"):
            assert site.client().open("/shout", method=method).text == "A"


class TestBinds:
    """What ``session.get_bind()`` returns stands for the same servers."""

    @pytest.fixture(params=["GET", "GET that has read", "POST", "with a model"])
    def bind(self, site: Site, request: pytest.FixtureRequest) -> sa.Engine:
        """Give what it returns in a request."""
        method, _, state = request.param.partition(" ")
        model = request.param == "with a model"
        with site.app.test_request_context(method="GET" if model else method):
            if state == "that has read":
                site.who()
            found = site.db.session.get_bind(
                **({"mapper": site.entry} if model else {})
            )
            assert isinstance(found, sa.Engine)
            return found

    @pytest.mark.parametrize("name", ["after_execute", "begin", "rollback"])
    def test_heard(self, site: Site, bind: sa.Engine, name: str) -> None:
        """A listener that is put on it is heard for every server, once each."""
        ear = Ear()
        listener = ear.connection
        event.listen(bind, name, listener)
        assert event.contains(engine_of(site), name, listener)
        event.listen(engine_of(site), name, listener)  # is there already
        visit(site)
        assert ear.counted() == once_each()

    @pytest.mark.parametrize("target", ["engine", "pool"])
    def test_of_pools(self, site: Site, target: str) -> None:
        """So is one that is about connection pools."""
        with site.app.test_request_context():
            bind = site.db.session.get_bind()
            assert isinstance(bind, sa.Engine)
        ear = Ear()
        event.listen(bind if target == "engine" else bind.pool, "checkin", ear.driver)
        visit(site)
        assert ear.counted() == once_each()

    @pytest.mark.parametrize("there", [True, False])
    def test_removed(self, site: Site, bind: sa.Engine, there: bool) -> None:
        """It is removed by either name, and may come back."""
        engine, ear = engine_of(site), Ear()
        names = (bind, engine) if there else (engine, bind)
        listener = ear.connection
        for first, second in (names, names[::-1]):
            event.listen(first, "before_execute", listener)
            assert event.contains(second, "before_execute", listener)
            event.remove(second, "before_execute", listener)
            for one in names:
                assert not event.contains(one, "before_execute", listener)
        visit(site)
        assert not ear.counted()

    def test_of_options(self, site: Site) -> None:
        """With options of its own it is the primary, whose writes are known."""

        def view() -> str:
            bind: Any = site.db.session.get_bind()
            options = bind.execution_options(isolation_level="AUTOCOMMIT")
            ear = Ear()
            event.listen(options, "after_execute", ear.connection)
            insert = sa.insert(site.entry.__table__).values(text="x")
            for engine in (options, options.execution_options(mine=1)):
                with engine.connect() as connection:
                    connection.execute(insert)
            site.who()
            assert ear.counted() == Counter(master=2)
            return "done"

        site.app.add_url_rule("/options", "options", view)
        client = site.client()
        assert client.get("/options").text == "done"
        assert client.get("/").text == "master"


class TestForms:
    """The ways to listen that SQLAlchemy has."""

    def test_returned_statement(self, site: Site) -> None:
        """With ``retval=True`` a listener changes what is sent to any server."""
        engine = engine_of(site)

        @event.listens_for(engine, "before_cursor_execute", retval=True)
        def tag(*given: Any) -> Any:
            _connection, _cursor, statement, parameters, *_ = given
            return statement.replace("'old'", "'new'"), parameters

        @event.listens_for(engine, "before_execute", retval=True)
        def swap(*given: Any) -> Any:
            _connection, clause, multi, parameters, _options = given
            asks = str(clause) == "SELECT 1"
            return text("SELECT 'old'") if asks else clause, multi, parameters

        for method in ("GET", "POST"):
            with site.app.test_request_context(method=method):
                assert site.db.session.scalar(text("SELECT 1")) == "new"

    def test_refused(self, site: Site) -> None:
        """What SQLAlchemy refuses is refused, and nobody listens."""
        engine, ear = engine_of(site), Ear()
        with pytest.raises(ArgumentError):
            event.listen(engine, "commit", ear.connection, retval=True)
        with pytest.raises(InvalidRequestError, match="No such event"):
            event.listen(engine, "no_such_event", ear.connection)
        assert not event.contains(engine, "commit", ear.connection)
        event.listen(engine, "commit", ear.connection)
        assert event.contains(engine, "commit", ear.connection)

    def test_named(self, site: Site) -> None:
        """With ``named=True`` a listener has its arguments by name."""
        heard: list[str] = []

        @event.listens_for(engine_of(site), "before_cursor_execute", named=True)
        def listen(**given: Any) -> None:
            heard.append(Path(given["conn"].engine.url.database).stem)
            assert given["statement"].startswith("SELECT")

        visit(site)
        assert Counter(heard) == once_each()

    @pytest.mark.parametrize("name", ["connect", "before_cursor_execute"])
    def test_once(self, site: Site, name: str) -> None:
        """With ``once=True`` the first server is heard, and no other."""
        heard: list[object] = []
        event.listen(
            engine_of(site), name, lambda *given: heard.append(given), once=True
        )
        visit(site)
        assert len(heard) == 1

    def test_insert(self, site: Site) -> None:
        """With ``insert=True`` a listener to a pool comes before the others."""
        engine, heard = engine_of(site), []
        for word, options in (("b", {}), ("c", {}), ("a", {"insert": True})):

            def listen(*_: Any, word: str = word) -> None:
                heard.append(word)

            event.listen(engine, "checkout", listen, **options)
        visit(site)
        assert heard == ["a", "b", "c"] * len(EVERYBODY)

    def test_propagate(self, site: Site) -> None:
        """``propagate=True`` is taken, and heard."""
        ear = Ear()
        event.listen(engine_of(site), "checkout", ear.driver, propagate=True)
        visit(site)
        assert ear.counted() == once_each()

    def test_twice(self, site: Site) -> None:
        """A function that is put on twice is heard once."""
        engine, ear = engine_of(site), Ear()
        listener = ear.driver
        event.listen(engine, "checkout", listener)
        event.listen(engine, "checkout", listener)
        visit(site)
        assert ear.counted() == once_each()

    @pytest.mark.parametrize("name", ["connect", "before_cursor_execute"])
    def test_on_every_engine(self, build: Build, name: str) -> None:
        """A function that is put on each of ``db.engines`` is heard once for each."""
        folder = build().folder
        copies = ("analytics", "analytics_slave_1")
        binds = {copy: sqlite_url(make_file(folder, copy)) for copy in copies}
        site, heard = build(binds=binds), []

        def listen(connection: Any, *_: Any) -> None:
            heard.append(connection)

        with site.app.app_context():
            engines = list(site.db.engines.values())
        for engine in engines:
            event.listen(engine, name, listen)
        visit(site)
        for method in ("GET", "POST"):
            with site.app.test_request_context(method=method):
                core(site.db.engines["analytics"])
        assert len(heard) == len(EVERYBODY) + len(copies)
        for engine in engines:
            event.remove(engine, name, listen)
            engine.dispose()
        visit(site)
        assert len(heard) == len(EVERYBODY) + len(copies)


class TestRemoved:
    """``event.remove()`` and ``event.contains()``."""

    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("connect", {}),
            ("connect", {"named": True}),
            ("checkout", {"insert": True}),
            ("do_connect", {}),
            ("handle_error", {}),
            ("begin", {"once": True}),
            ("before_cursor_execute", {}),
            ("before_cursor_execute", {"retval": True, "named": True}),
            ("before_execute", {"once": True}),
        ],
    )
    def test_from_all(self, site: Site, name: str, options: Any) -> None:
        """A listener that is removed is heard by no server any more."""
        engine, heard = engine_of(site), []

        def listen(*given: Any, **named: Any) -> None:
            heard.append((given, named))

        event.listen(engine, name, listen, **options)
        assert event.contains(engine, name, listen)
        event.remove(engine, name, listen)
        assert not event.contains(engine, name, listen)
        visit(site)
        assert not heard
        with pytest.raises(InvalidRequestError):
            event.remove(engine, name, listen)

    def test_again(self, site: Site) -> None:
        """What was removed may come back."""
        engine, ear = engine_of(site), Ear()
        for _ in range(3):
            event.listen(engine, "checkout", ear.driver)
            event.remove(engine, "checkout", ear.driver)
        event.listen(engine, "checkout", ear.driver)
        visit(site)
        assert ear.counted() == once_each()

    def test_nothing_is_kept(self, site: Site) -> None:
        """A listener that is removed is kept by nobody, however many there were."""
        engine = engine_of(site)

        def listener() -> Callable[..., None]:
            return lambda *_: None

        gone = []
        for _ in range(5):
            for name in ("connect", "before_cursor_execute", "do_connect"):
                listen = listener()
                event.listen(engine, name, listen)
                event.remove(engine, name, listen)
                gone.append(weakref.ref(listen))
        del listen
        gc.collect()
        assert [ref() for ref in gone] == [None] * 15


def test_another_engine_for_the_same_servers(tmp_path: Path) -> None:
    """Who makes another engine of the same servers listens to it anew."""
    primary, replica = two_engines(tmp_path)
    ear = Ear()
    for _ in range(10):
        routed = replicated_engine(primary, {"slave_1": replica})
        event.listen(routed, "begin", ear.connection)
        assert event.contains(routed, "begin", ear.connection)
        reads(routed, 1)
        assert set(ear.counted()) == {"master", "slave_1"}
        event.remove(routed, "begin", ear.connection)
        del routed
        gc.collect()
    reads(replicated_engine(primary, {"slave_1": replica}), 1)
    assert not ear.heard
    primary.dispose()
    replica.dispose()


class TestAlone:
    """An engine that is one server's hears that server alone."""

    def test_replica(self, site: Site) -> None:
        """What is put on ``db.engines['slave_1']`` is heard for it alone."""
        ear, driver = Ear(), Ear()
        event.listen(engine_of(site, "slave_1"), "begin", ear.connection)
        event.listen(engine_of(site, "slave_1").pool, "checkout", driver.driver)
        visit(site)
        assert ear.counted() == driver.counted() == once_each("slave_1")

    @pytest.mark.parametrize("first", [None, "slave_1"])
    def test_beside(self, site: Site, first: str | None) -> None:
        """A replica's own listener is heard beside those of all, made alike or not."""
        everywhere, alone = Ear(), Ear()
        ears = {None: everywhere, "slave_1": alone}
        for key in sorted(ears, key=lambda key: key != first):

            def listen(driver: Any, *_: Any, ear: Ear = ears[key]) -> None:
                ear.driver(driver)

            event.listen(engine_of(site, key), "checkout", listen)
        visit(site)
        assert everywhere.counted() == once_each()
        assert alone.counted() == once_each("slave_1")

    def test_primary(self, build: Build, tmp_path: Path) -> None:
        """The primary alone is heard by the name that it has among the binds."""
        url = sqlite_url(make_file(tmp_path, "master"))
        site, ear = build(binds={"master": url}), Ear()
        event.listen(engine_of(site, "master"), "begin", ear.connection)
        visit(site)
        assert ear.counted() == once_each("master")

    def test_other_bind(self, build: Build, tmp_path: Path) -> None:
        """A bind with its own replicas has its own listeners."""
        names = ("analytics", "analytics_slave_1", "plain")
        binds = {name: sqlite_url(make_file(tmp_path, name)) for name in names}
        site = build(binds=binds)
        ears = {name: Ear() for name in (None, "analytics", "plain")}
        for name, ear in ears.items():
            event.listen(engine_of(site, name), "begin", ear.connection)
        visit(site)
        for method in ("GET", "POST"):
            with site.app.test_request_context(method=method):
                core(site.db.engines["analytics"])
                core(site.db.engines["plain"])
        assert ears[None].counted() == once_each()
        assert ears["analytics"].counted() == once_each(*names[:2])
        assert ears["plain"].counted() == Counter(plain=2)

    def test_two_applications(self, build: Build) -> None:
        """Another application's engines have their own listeners."""
        first, ear = build(), Ear()
        second = build(db=first.db)
        event.listen(engine_of(first), "begin", ear.connection)
        visit(second)
        assert not ear.heard
        visit(first)
        assert ear.counted() == once_each()


def two_engines(folder: Path) -> tuple[sa.Engine, sa.Engine]:
    """Return engines of two files."""
    first, second = (
        sa.create_engine(sqlite_url(make_file(folder, name)))
        for name in ("master", "slave_1")
    )
    return first, second


def reads(engine: sa.Engine, many: int) -> None:
    """Read from the replicas of an engine, and once from the primary."""
    for _ in range(many):
        with using_slave(), RoutedSession(engine) as session:
            session.scalar(text(WHO))
    with RoutedSession(engine) as session:
        session.scalar(text(WHO))


@pytest.mark.parametrize("late", [False, True])
class TestOneEngine:
    """An engine that has several parts to play is heard once for each use."""

    def heard(
        self,
        replicas: Callable[[sa.Engine, sa.Engine], dict[str, sa.Engine]],
        folder: Path,
        *,
        late: bool,
    ) -> tuple[int, int, int]:
        """Return what was heard of three kinds of events in three transactions."""
        primary, other = two_engines(folder)
        heard: Counter[str] = Counter()

        def listen(engine: sa.Engine) -> None:
            for name in ("begin", "before_cursor_execute", "checkout", "do_execute"):

                def hear(*_: Any, name: str = name) -> None:
                    heard[name] += 1

                event.listen(engine, name, hear)

        if not late:
            listen(primary)
        routed = replicated_engine(primary, replicas(primary, other))
        if late:
            listen(routed)
        reads(routed, 2)
        for engine in (primary, other):
            engine.dispose()
        assert heard["begin"] == heard["before_cursor_execute"]
        return heard["begin"], heard["checkout"], heard["do_execute"]

    def test_primary_as_replica(self, tmp_path: Path, *, late: bool) -> None:
        """The primary that serves reads too is heard once."""
        found = self.heard(lambda one, _: {"a": one}, tmp_path, late=late)
        assert found == (3, 3, 3)

    def test_two_names(self, tmp_path: Path, *, late: bool) -> None:
        """A replica of two names is heard once."""
        found = self.heard(lambda _, two: {"a": two, "b": two}, tmp_path, late=late)
        assert found == (3, 3, 3)

    def test_options_of_the_primary(self, tmp_path: Path, *, late: bool) -> None:
        """An engine with options hears what the one it is made from hears."""

        def made(one: sa.Engine, _two: sa.Engine) -> dict[str, sa.Engine]:
            return {"a": one.execution_options(note="replica")}

        assert self.heard(made, tmp_path, late=late) == (3, 3, 3)

    def test_options_of_a_replica(self, tmp_path: Path, *, late: bool) -> None:
        """Two engines with options over one are heard once each."""

        def made(_one: sa.Engine, two: sa.Engine) -> dict[str, sa.Engine]:
            return {name: two.execution_options(note=name) for name in "ab"}

        assert self.heard(made, tmp_path, late=late) == (3, 3, 3)


class TestLater:
    """Replicas that come and go."""

    def test_added(self, fleet: Fleet) -> None:
        """A replica that is added hears what all hear, and no more once removed."""
        site, ear, driver = fleet.site, Ear(), Ear()
        event.listen(engine_of(site), "before_cursor_execute", ear.connection)
        event.listen(engine_of(site), "connect", driver.driver)
        event.listen(engine_of(site), "begin", ear.connection)
        event.remove(engine_of(site), "begin", ear.connection)
        fleet.add("slave_4")
        served = site.count(8)
        assert served["slave_4"] == 2
        assert ear.counted() == served
        assert driver.counted() == once_each(*REPLICAS, "slave_4")
        event.remove(engine_of(site), "before_cursor_execute", ear.connection)
        assert site.count(4) == once_each(*REPLICAS, "slave_4")
        assert not ear.heard

    def test_let_go(self, build: Build) -> None:
        """A replica that is removed is kept by no listener, and keeps none."""
        fleet = Fleet(build, REPLICATED_PROBE_INTERVAL=0)
        site, ear = fleet.site, Ear()
        listen = weakref.WeakMethod(ear.driver)
        event.listen(engine_of(site), "checkout", ear.driver)
        fleet.add("slave_4")
        site.count(4)
        gone = weakref.ref(engine_of(site, "slave_4"))
        fleet.remove("slave_4")
        gc.collect()
        assert gone() is None
        event.remove(engine_of(site), "checkout", ear.driver)
        del ear
        gc.collect()
        assert listen() is None

    def test_same_name(self, fleet: Fleet) -> None:
        """A replica that comes back under its name hears once."""
        site, ear = fleet.site, Ear()
        event.listen(engine_of(site), "checkout", ear.driver)
        for _ in range(2):
            fleet.remove("slave_2")
            fleet.add("slave_2")
        served = site.count(6)
        assert served == Counter(dict.fromkeys(REPLICAS, 2))
        assert ear.counted() == served

    def test_made_with_a_listener(self, build: Build) -> None:
        """What makes each engine with a listener of its own is heard once for each."""
        heard: Counter[str] = Counter()

        class Timer:
            """Counts one engine's statements, as instrumentation does."""

            def __init__(self, engine: sa.Engine) -> None:
                self.name = Path(engine.url.database or "").stem
                event.listen(engine, "before_cursor_execute", self.count)

            def count(self, *_: Any) -> None:
                heard[self.name] += 1

        def closed_over(engine: sa.Engine) -> None:
            @event.listens_for(engine, "checkout")
            def count(*_: Any) -> None:
                heard[f"{Path(engine.url.database or '').stem} taken"] += 1

        class Instrumented(SQLAlchemy):
            def _make_engine(self, *given: Any) -> sa.Engine:
                engine = super()._make_engine(*given)
                Timer(engine)
                closed_over(engine)
                return engine

        fleet = Fleet(build, db=Instrumented())
        fleet.add("slave_4")
        served = fleet.site.count(8)
        assert heard == served + Counter(
            {f"{name} taken": count for name, count in served.items()}
        )


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Give a function that makes an application without the extension."""
    made: list[Site] = []

    def make(**config: Any) -> Site:
        app = Flask("plain")
        named = {name: sqlite_url(make_file(tmp_path, name)) for name in EVERYBODY}
        app.config.update(
            SQLALCHEMY_DATABASE_URI=named.pop("master"),
            SQLALCHEMY_BINDS=named,
            **config,
        )
        db = SQLAlchemy(app)
        site = Site(app, db, *make_models(db), tmp_path)
        app.add_url_rule("/", "who", site.who, methods=["GET", "POST"])
        made.append(site)
        return site

    yield make
    for site in made:
        site.dispose()


def add_replica(site: Site, name: str) -> None:
    """Add a replica to a site that has the extension by now."""
    with site.app.app_context():
        bind = sqlite_url(make_file(site.folder, name))
        site.app.extensions["replicated"].add(name, bind)


class TestBefore:
    """What was listened to before the extension was there."""

    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("begin", {}),
            ("before_cursor_execute", {}),
            ("before_execute", {"once": False}),
            ("after_cursor_execute", {"named": False}),
        ],
    )
    def test_connections(
        self, plain: Callable[..., Site], name: str, options: Any
    ) -> None:
        """Every server hears it, later ones too, until it is removed."""
        site, ear = plain(), Ear()
        event.listen(engine_of(site), name, ear.connection, **options)
        FlaskReplicated(site.app)
        visit(site)
        assert ear.counted() == once_each()
        add_replica(site, "slave_4")
        assert site.count(4) == ear.counted()
        event.remove(engine_of(site), name, ear.connection)
        site.count(8)
        assert not ear.heard

    @pytest.mark.parametrize("target", ["engine", "pool"])
    @pytest.mark.parametrize("name", ["connect", "first_connect", "checkout"])
    def test_pools(self, plain: Callable[..., Site], name: str, target: str) -> None:
        """The same for connection pools."""
        site, ear = plain(), Ear()
        engine = engine_of(site)
        event.listen(engine if target == "engine" else engine.pool, name, ear.driver)
        FlaskReplicated(site.app)
        visit(site)
        assert ear.counted() == once_each()

    @pytest.mark.parametrize("target", ["engine", "dialect"])
    def test_dialects(self, plain: Callable[..., Site], target: str) -> None:
        """The same for dialects."""
        site, heard = plain(REPLICATED_PROBE_INTERVAL=0), []

        def connect(_dialect: Any, _record: Any, cargs: Any, _cparams: Any) -> None:
            heard.append(Path(cargs[0]).stem)

        engine = engine_of(site)
        target_ = engine if target == "engine" else engine.dialect
        event.listen(target_, "do_connect", connect)
        FlaskReplicated(site.app)
        visit(site)
        assert Counter(heard) == once_each()

    def test_returned_statement(self, plain: Callable[..., Site]) -> None:
        """What a listener returns is used on every server."""
        site = plain()

        def tag(*given: Any) -> Any:
            _connection, _cursor, statement, parameters, *_ = given
            return statement.replace("1", "2"), parameters

        event.listen(engine_of(site), "before_cursor_execute", tag, retval=True)
        FlaskReplicated(site.app)
        for method in ("GET", "POST"):
            with site.app.test_request_context(method=method):
                assert site.db.session.scalar(text("SELECT 1")) == 2

    def test_named_and_once(self, plain: Callable[..., Site]) -> None:
        """Options are kept: arguments by name, and the first server only."""
        site, heard = plain(), []

        def named(**given: Any) -> None:
            heard.append(given["dbapi_connection"])

        first: list[object] = []

        def once(*given: Any) -> None:
            first.append(given)

        event.listen(engine_of(site), "connect", named, named=True)
        event.listen(engine_of(site), "begin", once, once=True)
        FlaskReplicated(site.app)
        visit(site)
        assert len(heard) == len(EVERYBODY)
        assert len(first) == 1

    @pytest.mark.parametrize("by", ["before", "after"])
    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("checkout", {}),
            ("connect", {"named": True}),
            ("before_cursor_execute", {}),
            ("handle_error", {"once": True}),
        ],
    )
    def test_removed(
        self, plain: Callable[..., Site], by: str, name: str, options: Any
    ) -> None:
        """It is known, and removed, by the engine of then or by ``db.engine``."""
        site, heard = plain(), []

        def listen(*given: Any, **named: Any) -> None:
            heard.append((given, named))

        engines = {"before": engine_of(site)}
        event.listen(engines["before"], name, listen, **options)
        FlaskReplicated(site.app)
        engines["after"] = engine_of(site)
        assert engines["after"] is not engines["before"]
        assert all(event.contains(one, name, listen) for one in engines.values())
        event.remove(engines[by], name, listen)
        assert not any(event.contains(one, name, listen) for one in engines.values())
        visit(site)
        assert not heard
        event.listen(engines["after"], name, listen, **options)
        assert event.contains(engines["after"], name, listen)
        assert not event.contains(engines["before"], name, listen)
        event.remove(engines["after"], name, listen)

    def test_and_after(self, plain: Callable[..., Site]) -> None:
        """What is put on before and after is heard once."""
        site, ear = plain(), Ear()
        event.listen(engine_of(site), "begin", ear.connection)
        FlaskReplicated(site.app)
        event.listen(engine_of(site), "begin", ear.connection)
        visit(site)
        assert ear.counted() == once_each()

    def test_on_the_replica_too(self, plain: Callable[..., Site]) -> None:
        """A function that a replica has by itself is heard once there."""
        site, ear, driver = plain(), Ear(), Ear()
        for key in (None, "slave_2"):
            event.listen(engine_of(site, key), "before_cursor_execute", ear.connection)
            event.listen(engine_of(site, key), "checkout", driver.driver)
        FlaskReplicated(site.app)
        visit(site)
        assert ear.counted() == driver.counted() == once_each()

    def test_made_for_each_engine(self, plain: Callable[..., Site]) -> None:
        """So is one that was made for each engine in turn; not one made for another."""
        site, heard, alone = plain(), Counter[str](), Counter[str]()

        def watch(engine: sa.Engine, counter: Counter[str]) -> None:
            @event.listens_for(engine, "begin")
            def count(connection: sa.Connection) -> None:
                assert (counter is alone) == (engine.url == connection.engine.url)
                counter[Path(connection.engine.url.database or "").stem] += 1

        def note(engine: sa.Engine) -> None:
            @event.listens_for(engine, "begin")
            def count(connection: sa.Connection) -> None:
                heard[Path(connection.engine.url.database or "").stem] += 1

        with site.app.app_context():
            for engine in site.db.engines.values():
                note(engine)
        watch(engine_of(site, "slave_1"), alone)
        FlaskReplicated(site.app)
        visit(site)
        assert heard == once_each()
        assert alone == once_each("slave_1")

    def test_engine_of_then(self, plain: Callable[..., Site]) -> None:
        """What is put on the engine of then, later on, hears the primary alone."""
        site, ear = plain(), Ear()
        engine = engine_of(site)
        FlaskReplicated(site.app)
        event.listen(engine, "begin", ear.connection)
        visit(site)
        assert ear.counted() == once_each("master")

    def test_recorded_queries(self, plain: Callable[..., Site]) -> None:
        """``SQLALCHEMY_RECORD_QUERIES`` records each statement once."""
        site = plain(SQLALCHEMY_RECORD_QUERIES=True)
        FlaskReplicated(site.app)
        add_replica(site, "slave_4")
        for method in ("GET", "GET", "GET", "GET", "POST"):
            with site.app.test_request_context(method=method):
                site.who()
                assert len(get_recorded_queries()) == 1

    def test_own_listeners(self, plain: Callable[..., Site]) -> None:
        """Neither the extension's listeners are handed on, nor a dialect's."""
        first, second = plain(), plain()
        FlaskReplicated(first.app)
        event.listen(engine_of(second), "begin", lambda _: None)
        FlaskReplicated(second.app)
        for key in REPLICAS:
            for name in ("connect", "checkout", "do_execute", "handle_error"):
                without, having = (
                    listeners_of(engine_of(site, key), name) for site in (first, second)
                )
                assert without == having


def listeners_of(engine: sa.Engine, name: str) -> list[str]:
    """Return the names of the functions that hear an event of an engine."""
    for part in (engine.pool, engine.dialect, engine):
        found = getattr(part.dispatch, name, None)
        if found is not None:
            return [f"{one.__module__}.{one.__qualname__}" for one in found]
    raise LookupError(name)


class TestFailing:
    """Listeners that fail."""

    @pytest.mark.parametrize("name", ["connect", "checkout", "engine_connect"])
    @pytest.mark.parametrize(
        "error",
        [LookupError, ConnectionRefusedError, TimeoutError, sa.exc.NoResultFound],
    )
    def test_is_no_outage(self, site: Site, name: str, error: type[Exception]) -> None:
        """What a listener raises reaches the program; replicas stay in use."""
        engine = engine_of(site)

        def fail(*_: Any) -> None:
            raise error("no tenant here")

        event.listen(engine, name, fail)
        for method in ("GET", "POST"):
            for _ in range(5):
                with (
                    site.app.test_request_context(method=method),
                    pytest.raises(error, match="no tenant here"),
                ):
                    site.who()
        event.remove(engine, name, fail)
        with site.app.app_context():
            pool = site.app.extensions["replicated"].pool()
            assert [one.state for one in pool.snapshot().members] == ["closed"] * 3
            engines = site.db.engines.values()
            out = [one.pool.checkedout() for one in engines]  # type: ignore[attr-defined]  # a QueuePool
            assert not any(out)
        visit(site)

    def test_server_in_a_listener(self, site: Site) -> None:
        """A server that fails in a listener is a server that fails."""

        @event.listens_for(engine_of(site), "connect")
        def fail(connection: Any, _record: Any) -> None:
            (row,) = connection.execute("PRAGMA database_list").fetchall()
            if row[2].endswith("slave_2.db"):
                connection.execute("SELECT 1 FROM no_such_table")

        served = {site.client().get("/").text for _ in range(9)}
        assert served == {"slave_1", "slave_3"}
        with site.app.app_context():
            pool = site.app.extensions["replicated"].pool()
            assert "slave_2" in pool.causes()


def test_probe_is_not_heard(build: Build) -> None:
    """The probe opens connections that no listener hears of."""
    site, heard, probes = build(REPLICATED_PROBE_INTERVAL=0.05), [], []
    names = ("connect", "checkout", "checkin", "close", "begin", "do_execute")
    for name in (*names, "before_cursor_execute", "handle_error", "engine_connect"):
        event.listen(engine_of(site), name, lambda *_, name=name: heard.append(name))
    site.get()
    heard.clear()
    # That one has a say in how to connect; so the probe has to ask it.
    event.listen(engine_of(site), "do_connect", lambda *_: probes.append(1))
    wait_until(lambda: len(probes) >= 5 * len(REPLICAS), "probes in the background")
    assert not heard


def test_while_replicas_come(fleet: Fleet) -> None:
    """A replica that comes while listeners are put on hears all of them."""
    site, engine, heard = fleet.site, engine_of(fleet.site), Counter[int]()
    added = [f"slave_{number}" for number in range(4, 12)]

    def add() -> None:
        for name in added:
            fleet.add(name)

    def listen() -> None:
        for number in range(300):
            event.listen(
                engine, "checkout", lambda *_, number=number: heard.update([number])
            )

    with ThreadPoolExecutor(2) as threads:
        for future in [threads.submit(add), threads.submit(listen)]:
            future.result()
    served = site.count(len(REPLICAS) + len(added))
    assert set(served) == {*REPLICAS, *added}
    assert heard == Counter(dict.fromkeys(range(300), len(served)))
