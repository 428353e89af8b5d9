"""Binds that cannot be replicas at all: memory databases, other dialects, drivers."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.pool import QueuePool, StaticPool

from examples.cluster import wait_until
from flask_replicated import (
    ConfigurationError,
    FlaskReplicated,
    WriteOnReplicaError,
    replicated_engine,
    using_slave,
)
from tests.pools import monitor_of, read
from tests.support import Build, build_fixture, make_file, sqlite_url

if TYPE_CHECKING:
    from pathlib import Path

    from flask_replicated.engine.engines import RoutedEngine

build = build_fixture

PASSWORD = "hunter2"
ELSEWHERE = f"postgresql+psycopg://shop:{PASSWORD}@db.internal/shop"
COPY = f"postgresql+psycopg://shop:{PASSWORD}@copy.internal/shop"
MEMORY = [
    "sqlite://",
    "sqlite:///:memory:",
    {"url": "sqlite://"},
    {"url": "sqlite:///:memory:", "poolclass": StaticPool},
    sa.make_url("sqlite+pysqlite://"),
]
SHARED = {
    "url": "sqlite:///file:/test_copies?mode=memory&cache=shared&uri=true",
    "poolclass": QueuePool,  # SQLAlchemy 2.1 wants it to be named
}


def registered(uri: Any, binds: dict[str, Any], **config: Any) -> Flask:
    """Return an application with these binds."""
    app = Flask("shop")
    options = dict(uri) if isinstance(uri, dict) else {"url": uri}
    app.config.update(
        SQLALCHEMY_DATABASE_URI=options.pop("url"),
        SQLALCHEMY_ENGINE_OPTIONS=options,
        SQLALCHEMY_BINDS=binds,
        **config,
    )
    SQLAlchemy(app)
    FlaskReplicated(app)
    return app


def served(app: Flask) -> list[str]:
    """Write in a POST, and return what a GET then reads."""
    db: SQLAlchemy = app.extensions["sqlalchemy"]

    def note() -> list[str]:
        return [name for (name,) in db.session.execute(sa.text("SELECT name FROM n"))]

    def write() -> str:
        db.session.execute(sa.text("INSERT INTO n VALUES ('written')"))
        db.session.commit()
        return "done"

    app.add_url_rule("/", view_func=note)
    app.add_url_rule("/write", view_func=write, methods=["POST"])
    with app.app_context(), db.engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE n (name VARCHAR)"))
    for _ in range(2):
        assert app.test_client().post("/write").text == "done"
        found: Any = app.test_client().get("/").json
    with app.app_context():
        for engine in db.engines.values():
            engine.dispose()
    return list(found)


def refused(make: Any, *words: str) -> ConfigurationError:
    """Return the error that names all these words, and no password."""
    with pytest.raises(ConfigurationError) as caught:
        make()
    said = str(caught.value)
    assert all(word in said for word in words), said
    assert PASSWORD not in said
    return caught.value


class TestMemory:
    """A memory database is its engine's own."""

    @pytest.mark.parametrize("bind", MEMORY, ids=str)
    def test_refused(self, bind: Any) -> None:
        """As a replica it is empty: an error that names the bind and the ways out."""
        error = refused(
            lambda: registered("sqlite://", {"slave_1": bind}),
            "SQLALCHEMY_BINDS['slave_1']",
            "SQLALCHEMY_BINDS = {}",
            "the same file",
            "cache=shared",
        )
        assert error.key == "SQLALCHEMY_BINDS['slave_1']"

    def test_of_a_file(self, tmp_path: Path) -> None:
        """Nor is it the copy of a file."""
        file = sqlite_url(tmp_path / "shop.db")
        binds = {"slave_1": file, "slave_2": "sqlite://"}
        refused(lambda: registered(file, binds), "SQLALCHEMY_BINDS['slave_2']")

    def test_primary(self, tmp_path: Path) -> None:
        """A primary in memory has no copies; its replicas may be inherited."""
        file = sqlite_url(make_file(tmp_path, "slave_1"))
        refused(
            lambda: registered("sqlite://", {"slave_1": file}),
            "SQLALCHEMY_BINDS['slave_1']",
            "SQLALCHEMY_DATABASE_URI = 'sqlite://', a memory database",
        )

    def test_of_another_bind(self) -> None:
        """Another bind's replicas are checked as well."""
        binds = {"analytics": "sqlite://", "analytics_slave_1": "sqlite://"}
        refused(
            lambda: registered("sqlite://", binds),
            "SQLALCHEMY_BINDS['analytics_slave_1']",
        )

    def test_added(self, build: Build) -> None:
        """add() refuses it, and leaves everything as it was."""
        extension = FlaskReplicated()
        site = build(["slave_1"], extension=extension)
        with site.app.app_context():
            refused(
                lambda: extension.add("slave_2", "sqlite://"),
                "SQLALCHEMY_BINDS['slave_2']",
            )
            assert "slave_2" not in site.db.engines
        assert site.count(2) == {"slave_1": 2}

    @pytest.mark.parametrize(
        "url",
        [
            "sqlite://",
            "sqlite:///file::memory:?uri=true",
            "sqlite:///file:shop?mode=memory&uri=true",
            "sqlite:///file:?uri=true",
            "sqlite:///file:shop?vfs=memdb&uri=true",
        ],
    )
    def test_without_an_application(self, url: str) -> None:
        """replicated_engine() refuses every way to write it."""
        engines = [sa.create_engine(url, poolclass=QueuePool) for _ in range(2)]
        refused(
            lambda: replicated_engine(engines[0], {"near": engines[1]}),
            "replicas['near']",
            "cache=shared",
        )

    def test_async(self) -> None:
        """Flask-SQLAlchemy-Lite's engines, async ones too, are no other."""
        lite = pytest.importorskip("flask_sqlalchemy_lite")
        for setting, url in (
            ("SQLALCHEMY_ENGINES", "sqlite://"),
            ("SQLALCHEMY_ASYNC_ENGINES", "sqlite+aiosqlite://"),
        ):
            app = Flask("shop")
            app.config[setting] = {"default": url, "replica_1": url}
            lite.SQLAlchemy(app)
            refused(
                lambda app=app: FlaskReplicated(app),
                f"{setting}['replica_1']",
                f"{setting} = {{'default': ...}}",
            )

    def test_nothing_is_routed_before_all_are_right(self) -> None:
        """What is wrong with async engines leaves the others unrouted."""
        lite = pytest.importorskip("flask_sqlalchemy_lite")
        app = Flask("shop")
        app.config["SQLALCHEMY_ENGINES"] = {"default": SHARED, "slave_1": SHARED}
        url = "sqlite+aiosqlite://"
        app.config["SQLALCHEMY_ASYNC_ENGINES"] = {"default": url, "slave_1": url}
        db = lite.SQLAlchemy(app)
        refused(lambda: FlaskReplicated(app), "SQLALCHEMY_ASYNC_ENGINES['slave_1']")
        with app.app_context():
            assert {type(engine) for engine in db.engines.values()} == {sa.Engine}

    def test_left_out(self, caplog: pytest.LogCaptureFixture) -> None:
        """With AUTO_READ_ON_SLAVE = False not even using_slave() reads it."""
        caplog.set_level(logging.INFO)
        app = registered(
            "sqlite://", {"slave_1": "sqlite://"}, AUTO_READ_ON_SLAVE=False
        )
        (said,) = caplog.records
        assert said.levelno == logging.INFO
        assert "SQLALCHEMY_BINDS['slave_1']" in said.getMessage()
        with using_slave():
            assert served(app) == ["written"] * 2


class TestSharedMemory:
    """What is in memory and seen by both works, and nothing is said."""

    @pytest.fixture(autouse=True)
    def _quiet(self, caplog: pytest.LogCaptureFixture) -> Any:
        with caplog.at_level(logging.INFO, "flask_replicated"):
            yield
        assert not caplog.records

    def test_one_file(self, tmp_path: Path) -> None:
        """One file for both."""
        file = sqlite_url(tmp_path / "shop.db")
        assert served(registered(file, {"slave_1": file})) == ["written"] * 2

    def test_shared_cache(self) -> None:
        """A shared cache."""
        assert served(registered(SHARED, {"slave_1": SHARED})) == ["written"] * 2

    def test_memdb(self) -> None:
        """SQLite's own file system in memory, by an absolute name."""
        url = "sqlite:///file:/test_copies_memdb?vfs=memdb&uri=true"
        options = {"url": url, "poolclass": QueuePool}
        assert served(registered(options, {"slave_1": options})) == ["written"] * 2

    def test_one_connection(self) -> None:
        """One connection for both, which stays able to write and open."""
        connection = sqlite3.connect(":memory:", check_same_thread=False)
        options = {
            "url": "sqlite://",
            "creator": lambda: connection,
            "poolclass": StaticPool,
        }
        app = registered(options, {"slave_1": options}, REPLICATED_PROBE_INTERVAL=0.01)
        assert served(app) == ["written"] * 2

    def test_one_engine(self, tmp_path: Path) -> None:
        """The primary's engine as its own replica, which may make its file."""
        for url in ("sqlite://", sqlite_url(tmp_path / "new.db")):
            primary = sa.create_engine(url, poolclass=StaticPool)
            engine = replicated_engine(
                primary, {"slave_1": primary}, REPLICATED_PROBE_INTERVAL=0
            )
            for name in ("one", "two"):
                with engine.begin() as connection:
                    connection.execute(sa.text(f"CREATE TABLE {name} (id INTEGER)"))
                with using_slave(), engine.connect() as connection:
                    connection.execute(sa.text(f"SELECT id FROM {name}")).all()
            engine.dispose()

    def test_the_probe_leaves_it_open(self) -> None:
        """The background probe does not close what everything else uses."""
        connections = [
            sqlite3.connect(":memory:", check_same_thread=False) for _ in range(2)
        ]
        shared, other = (
            sa.create_engine(
                "sqlite://", creator=lambda one=one: one, poolclass=StaticPool
            )
            for one in connections
        )
        engine = replicated_engine(
            shared,
            {"slave_1": shared, "slave_2": other},
            REPLICATED_PROBE_INTERVAL=0.01,
        )
        read(engine)
        loop = monitor_of(engine)._loop
        assert loop is not None
        wait_until(lambda: loop._step() > 0, "a step")
        assert not loop._known
        for _ in range(2):
            read(engine)
        engine.dispose()

    def test_async(self) -> None:
        """A shared cache of two async engines."""
        lite = pytest.importorskip("flask_sqlalchemy_lite")
        app = Flask("shop")
        url = (
            "sqlite+aiosqlite:///file:/test_copies_a?mode=memory&cache=shared&uri=true"
        )
        bind = {"url": url, "poolclass": sa.AsyncAdaptedQueuePool}
        app.config["SQLALCHEMY_ASYNC_ENGINES"] = {"default": bind, "slave_1": bind}
        db = lite.SQLAlchemy(app)
        FlaskReplicated(app)

        async def write_and_read() -> int:
            async with db.async_engine.begin() as connection:
                await connection.execute(sa.text("CREATE TABLE n (id INTEGER)"))
                await connection.execute(sa.text("INSERT INTO n VALUES (7)"))
            with using_slave():
                async with db.async_engine.connect() as connection:
                    found: int = await connection.scalar(sa.text("SELECT id FROM n"))
            await db.async_engine.dispose()
            return found

        with app.app_context():
            assert asyncio.run(write_and_read()) == 7


def derived(name: str, driver: str) -> type[PGDialect_psycopg]:
    """Return a dialect of another name that is PostgreSQL's in all else."""

    class Derived(PGDialect_psycopg):
        supports_statement_cache = True

    Derived.name, Derived.driver = name, driver
    return Derived


class TestDialect:
    """A database of another kind is no replica."""

    @pytest.mark.parametrize("primary", ["sqlite://", "sqlite:////nowhere/shop.db"])
    @pytest.mark.parametrize(
        "replica", [ELSEWHERE, ELSEWHERE.replace("postgresql+psycopg", "mysql+pymysql")]
    )
    def test_refused(self, primary: str, replica: str) -> None:
        """A test configuration that inherits replicas is told how to leave them out."""
        refused(
            lambda: registered(primary, {"slave_1": replica}),
            "SQLALCHEMY_BINDS['slave_1']",
            f"SQLALCHEMY_DATABASE_URI = {primary!r}",
            "AUTO_READ_ON_SLAVE = False",
            "SQLALCHEMY_BINDS = {}",
        )

    @pytest.mark.parametrize(
        "remedy", [{"AUTO_READ_ON_SLAVE": False}, {"SQLALCHEMY_BINDS": {}}]
    )
    def test_remedies(self, tmp_path: Path, remedy: dict[str, Any]) -> None:
        """Both remedies that the error names keep every read on the primary."""
        app = Flask("shop")
        app.config.update(
            {
                "SQLALCHEMY_DATABASE_URI": sqlite_url(tmp_path / "shop.db"),
                "SQLALCHEMY_BINDS": {"slave_1": ELSEWHERE},
            }
            | remedy
        )
        SQLAlchemy(app)
        FlaskReplicated(app)
        with using_slave():
            assert served(app) == ["written"] * 2

    def test_the_others_stay(self, build: Build) -> None:
        """Without reads by method, a replica that can be one is left as it is."""
        site = build(
            ["slave_1"], binds={"slave_2": ELSEWHERE}, AUTO_READ_ON_SLAVE=False
        )
        with site.app.test_request_context(), using_slave():
            for _ in range(3):
                assert site.who() == "slave_1"
                site.db.session.rollback()

    def test_discovered(self, build: Build) -> None:
        """What DNS would name is checked when the application starts."""
        pytest.importorskip("dns")
        source = {"slave": {"url": ELSEWHERE}}
        words = "REPLICATED_DISCOVERY['slave']", "REPLICATED_DISCOVERY = {}"
        refused(lambda: build([], REPLICATED_DISCOVERY=source), *words)
        site = build([], REPLICATED_DISCOVERY=source, AUTO_READ_ON_SLAVE=False)
        assert site.get() == "master"

    def test_a_driver_that_is_not_there(self, build: Build) -> None:
        """So is one whose driver nobody has."""
        pytest.importorskip("dns")
        url = f"nosuch://shop:{PASSWORD}@db.internal/shop"
        refused(
            lambda: build([], REPLICATED_DISCOVERY={"slave": url}),
            "REPLICATED_DISCOVERY['slave']",
            "not known or not installed",
        )

    def test_added(self, build: Build) -> None:
        """add() refuses it."""
        extension = FlaskReplicated()
        site = build(["slave_1"], extension=extension)
        with site.app.app_context():
            refused(
                lambda: extension.add("slave_2", ELSEWHERE),
                "SQLALCHEMY_BINDS['slave_2']",
            )

    @pytest.mark.parametrize(
        ("primary", "replica"),
        [
            ("mysql+pymysql", "mariadb+pymysql"),
            ("mariadb+pymysql", "mysql+pymysql"),
            ("postgresql+psycopg", "postgresql+psycopg"),
            ("timescaledb+psycopg", "postgresql+psycopg"),
            ("postgresql+psycopg", "cockroachdb+psycopg"),
        ],
    )
    def test_one_kind(
        self, primary: str, replica: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """MySQL and MariaDB are one, and so are PostgreSQL and what derives from it."""
        for name in ("timescaledb", "cockroachdb"):
            dialect = derived(name, "psycopg")
            sa.dialects.registry.impls[f"{name}.psycopg"] = lambda kind=dialect: kind
        registered(
            ELSEWHERE.replace("postgresql+psycopg", primary),
            {"slave_1": COPY.replace("postgresql+psycopg", replica)},
        )
        assert not caplog.records


def two_drivers(caplog: pytest.LogCaptureFixture, key: str) -> bool:
    """Whether a warning names the bind and both drivers."""
    return any(
        record.levelno == logging.WARNING
        and all(
            word in record.getMessage() for word in (key, "'psycopg'", "'psycopg2'")
        )
        for record in caplog.records
    )


class TestDriver:
    """Two drivers for one bind's servers."""

    def test_at_start(self, caplog: pytest.LogCaptureFixture) -> None:
        """The replica that is read through another driver is named, and used."""
        pytest.importorskip("psycopg2")
        other = COPY.replace("psycopg", "psycopg2").replace("copy", "copy2")
        app = registered(ELSEWHERE, {"slave_1": COPY, "slave_2": other})
        assert two_drivers(caplog, "SQLALCHEMY_BINDS['slave_2']")
        assert "slave_1" not in caplog.text
        with app.app_context():
            names = app.extensions["replicated"].pool().snapshot().live
        assert names == ("slave_1", "slave_2")

    def test_discovered(self, caplog: pytest.LogCaptureFixture) -> None:
        """So are those that DNS would name."""
        for package in ("dns", "psycopg2"):
            pytest.importorskip(package)
        other = ELSEWHERE.replace("psycopg", "psycopg2")
        registered(ELSEWHERE, {}, REPLICATED_DISCOVERY={"slave": other})
        assert two_drivers(caplog, "REPLICATED_DISCOVERY['slave']")


TENANT = "-c search_path=tenant"
OPTIONS: dict[str, tuple[str, dict[str, Any], str]] = {
    "tables": (
        ELSEWHERE,
        {"execution_options": {"schema_translate_map": {None: "tenant"}}},
        "schema_translate_map",
    ),
    "schema": (ELSEWHERE, {"connect_args": {"options": TENANT}}, "search_path"),
    "schema in the URL": (
        f"{ELSEWHERE}?options=-csearch_path%3Da,b",
        {},
        "search_path",
    ),
    "two of them": (
        ELSEWHERE,
        {"connect_args": {"options": "--TimeZone=UTC -c app.tenant=7 -c work_mem=4MB"}},
        "app.tenant and timezone",
    ),
    "asyncpg's": (
        ELSEWHERE.replace("psycopg", "asyncpg"),
        {"connect_args": {"server_settings": {"search_path": "tenant"}}},
        "search_path",
    ),
    "MySQL's": (
        ELSEWHERE.replace("postgresql+psycopg", "mysql+pymysql"),
        {"connect_args": {"init_command": "SET time_zone = '+00:00'"}},
        "init_command",
    ),
}


class TestRows:
    """What decides which rows a read returns is set for the primary alone."""

    def lines(self, caplog: pytest.LogCaptureFixture) -> list[str]:
        """Return what is told of it, at WARNING."""
        return [
            record.getMessage()
            for record in caplog.records
            if record.levelno == logging.WARNING and "other rows" in record.getMessage()
        ]

    @pytest.mark.parametrize("what", OPTIONS)
    def test_told(self, what: str, caplog: pytest.LogCaptureFixture) -> None:
        """A WARNING names the setting and both binds, and nothing of its value."""
        url, options, names = OPTIONS[what]
        pytest.importorskip(sa.make_url(url).get_driver_name())
        replica = url.partition("?")[0].replace("db.", "copy.")
        registered({"url": url, **options}, {"slave_1": replica})
        (line,) = self.lines(caplog)
        assert line.startswith(f"{names} is not set alike for SQLALCHEMY_DATABASE_URI")
        assert "SQLALCHEMY_BINDS['slave_1']" in line
        assert "SQLALCHEMY_ENGINE_OPTIONS is the primary's alone" in line

    @pytest.mark.parametrize("what", OPTIONS)
    def test_alike(self, what: str, caplog: pytest.LogCaptureFixture) -> None:
        """Where both have the same, there is nothing to tell."""
        url, options, _ = OPTIONS[what]
        pytest.importorskip(sa.make_url(url).get_driver_name())
        replica = {"url": url.replace("db.", "copy."), **options}
        registered({"url": url, **options}, {"slave_1": replica})
        assert not self.lines(caplog)

    @pytest.mark.parametrize(
        "options",
        [
            {"connect_args": {"options": "-c statement_timeout=5s -c work_mem=4MB"}},
            {"connect_args": {"application_name": "shop"}},
            {"connect_args": {"options": "-c 'search_path=a"}},
            {"execution_options": {"logging_token": "primary"}},
            {"creator": lambda: None},
        ],
    )
    def test_other_options(
        self, options: dict[str, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        """What has no part in the rows may differ."""
        registered({"url": ELSEWHERE, **options}, {"slave_1": COPY})
        assert not self.lines(caplog)

    @pytest.mark.parametrize("primarys", [True, False])
    @pytest.mark.parametrize("what", OPTIONS)
    def test_a_creator(
        self, what: str, primarys: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What a creator sets is not known, so only a translation is told of."""
        url, options, names = OPTIONS[what]
        pytest.importorskip(sa.make_url(url).get_driver_name())
        given = {"url": url, **options}
        bare = {"url": f"{sa.make_url(url).drivername}://", "creator": lambda: None}
        if primarys:
            registered(bare, {"slave_1": given})
        else:
            registered(given, {"slave_1": bare})
        told = [line.partition(" is ")[0] for line in self.lines(caplog)]
        assert told == [names] * (what == "tables")

    def test_replica_alone(self, caplog: pytest.LogCaptureFixture) -> None:
        """A replica that alone reads another schema is told of as well."""
        options = {"connect_args": {"options": TENANT}}
        registered(ELSEWHERE, {"slave_1": COPY, "slave_2": {"url": COPY, **options}})
        (line,) = self.lines(caplog)
        assert "SQLALCHEMY_BINDS['slave_2']" in line


def test_a_shared_connection_takes_no_write() -> None:
    """Though its server would take one, a replica's connection refuses it here."""
    primary = sa.create_engine("sqlite://", poolclass=StaticPool)
    engine: RoutedEngine = replicated_engine(
        primary, {"slave_1": primary}, REPLICATED_PROBE_INTERVAL=0
    )
    with (
        using_slave(),
        engine.connect() as connection,
        pytest.raises(WriteOnReplicaError),
    ):
        connection.execute(sa.text("CREATE TABLE t (id INTEGER)"))
    engine.dispose()
