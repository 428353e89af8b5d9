"""Flask-SQLAlchemy-Lite, its async sessions, and SQLAlchemy's own sessions."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy as FlaskSQLAlchemy
from flask_sqlalchemy.session import Session as FlaskSession
from sqlalchemy import orm
from sqlalchemy.util import greenlet_spawn

from flask_replicated import (
    FlaskReplicated,
    RoutedSession,
    WriteOnReplicaError,
    changes_database,
    replicated_engine,
    using_slave,
)
from tests.operations.hidden import hidden_write
from tests.support import Build, build_fixture, make_file, pin_of, sqlite_url

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    View = Callable[[], str] | Callable[[], Awaitable[str]]

pytest.importorskip("flask_sqlalchemy_lite")
from flask_sqlalchemy_lite import SQLAlchemy

build = build_fixture
pytestmark = pytest.mark.usefixtures("hidden_writes")
NAMES = ("master", "slave_1", "slave_2")
WHO = sa.text("SELECT name FROM marker")
INSERT = "INSERT INTO entry (text) VALUES ('new') RETURNING text"


def role(name: object) -> str:
    """Return ``'primary'`` or ``'replica'`` for the name of a database."""
    return "primary" if name == "master" else "replica"


@dataclass
class Lite:
    """An application with Flask-SQLAlchemy-Lite."""

    app: Flask
    db: SQLAlchemy
    folder: Path
    views: list[View] = field(default_factory=list)

    def who(self) -> str:
        """Return who serves a read of the default session."""
        return role(self.db.session.scalar(WHO))

    async def async_who(self) -> str:
        """Return who serves a read of the default async session."""
        return role(await self.db.async_session.scalar(WHO))

    def ask(self, view: View, method: str = "GET") -> str:
        """Return what a view answers to a fresh client."""
        if view not in self.views:
            self.views.append(view)
            self.app.add_url_rule("/view", "view", view, methods=["GET", "POST"])
        response = self.app.test_client().open("/view", method=method)
        assert response.status_code == 200, response.text
        return response.text

    def entries(self, name: str = "master") -> list[str]:
        """Return the entries in one database, read without the application."""
        engine = sa.create_engine(sqlite_url(self.folder / f"{name}.db"))
        with engine.connect() as connection:
            found = connection.scalars(sa.text("SELECT text FROM entry")).all()
        engine.dispose()
        return list(found)


def dispose(app: Flask, db: SQLAlchemy) -> None:
    """Close every pooled connection."""
    with app.app_context():
        for engine in db.engines.values():
            engine.dispose()
        engines = list(db.async_engines.values())

    async def close() -> None:
        for engine in engines:
            await engine.dispose()

    asyncio.run(close())


@contextmanager
def make_lite(
    folder: Path, *kinds: str, before: Callable[[SQLAlchemy], None] | None = None
) -> Iterator[Lite]:
    """Make an application with sync engines, async engines, or both.

    *before* is called in its context before the extension is registered.
    """
    app = Flask("lite")
    app.config["SECRET_KEY"] = "not-a-secret"
    files = [make_file(folder, name) for name in NAMES]
    for kind in kinds:
        driver = "sqlite+aiosqlite" if kind == "ASYNC" else "sqlite"
        key = "SQLALCHEMY_ASYNC_ENGINES" if kind == "ASYNC" else "SQLALCHEMY_ENGINES"
        urls = [f"{driver}:///{file}" for file in files]
        names = ("default", *NAMES[1:])
        app.config[key] = dict(zip(names, urls, strict=True))
    db = SQLAlchemy()
    db.init_app(app)
    if before is not None:
        with app.app_context():
            before(db)
    FlaskReplicated(app)
    yield Lite(app, db, folder)
    dispose(app, db)


def listen(engine: sa.Engine, heard: list[str]) -> None:
    """Note which servers are heard of, and give each a function."""

    @sa.event.listens_for(engine, "before_cursor_execute")
    def note(connection: sa.Connection, *_: Any) -> None:
        heard.append(Path(connection.engine.url.database or "").stem)

    @sa.event.listens_for(engine, "connect")
    def give(connection: Any, _record: Any) -> None:
        connection.create_function("shout", 1, str.upper)


SHOUT = sa.text("SELECT shout(name) FROM marker")


@pytest.fixture
def lite(tmp_path: Path) -> Iterator[Lite]:
    """Give an application with sync engines."""
    with make_lite(tmp_path, "SYNC") as made:
        yield made


@pytest.fixture
def async_lite(tmp_path: Path) -> Iterator[Lite]:
    """Give an application with sync and async engines."""
    pytest.importorskip("aiosqlite")
    with make_lite(tmp_path, "SYNC", "ASYNC") as made:
        yield made


class TestLite:
    """``db.session`` and ``db.get_session()``."""

    @pytest.mark.parametrize(
        ("method", "who"), [("GET", "replica"), ("POST", "primary")]
    )
    def test_methods(self, lite: Lite, method: str, who: str) -> None:
        """A request reads where its method says."""
        assert lite.ask(lite.who, method) == who

    def test_latch_and_pin(self, lite: Lite) -> None:
        """A write in a GET goes to the primary, latches and pins."""

        def view() -> str:
            before = lite.who()
            lite.db.session.execute(sa.text(INSERT))
            lite.db.session.commit()
            return f"{before} {lite.who()}"

        lite.app.add_url_rule("/write", "write", view)
        lite.app.add_url_rule("/", "who", lite.who)
        client = lite.app.test_client()
        response = client.get("/write")
        assert response.text == "replica primary"
        assert pin_of(response) is not None
        assert client.get("/").text == "primary"
        assert [lite.entries(name) for name in NAMES] == [["new"], [], []]

    def test_named_sessions(self, lite: Lite) -> None:
        """Named sessions share the request's replica and its latch."""

        def view() -> str:
            report = lite.db.get_session("report")
            assert report is not lite.db.session
            first = lite.db.session.scalar(WHO)
            assert report.scalar(WHO) == first
            report.rollback()
            lite.db.session.execute(sa.text(INSERT))
            return role(report.scalar(WHO))

        assert lite.ask(view) == "primary"

    def test_engine(self, lite: Lite) -> None:
        """``db.engine.connect()`` reads where the session would."""

        def view() -> str:
            with lite.db.engine.connect() as connection:
                return role(connection.scalar(WHO))

        assert lite.ask(view) == "replica"
        assert lite.ask(view, "POST") == "primary"

    @pytest.mark.parametrize("before", [False, True])
    def test_listeners(self, tmp_path: Path, *, before: bool) -> None:
        """What is put on ``db.engine`` is heard for every server, whenever it was."""
        heard: list[str] = []

        def put(db: SQLAlchemy) -> None:
            listen(db.engine, heard)

        with make_lite(tmp_path, "SYNC", before=put if before else None) as lite:
            if not before:
                with lite.app.app_context():
                    put(lite.db)

            def view() -> str:
                return str(lite.db.session.scalar(SHOUT))

            for method in ("GET", "GET", "POST"):
                assert lite.ask(view, method) == heard[-1].upper()
            assert sorted(heard) == sorted(NAMES)

    def test_decorated(self, lite: Lite) -> None:
        """Decorators work as they do elsewhere."""
        assert lite.ask(changes_database(lite.who)) == "primary"

    def test_outside_a_request(self, lite: Lite) -> None:
        """A job uses the primary, or a replica if it asks; there it cannot write."""
        with lite.app.app_context():
            assert lite.who() == "primary"
            lite.db.session.rollback()
            with using_slave():
                assert lite.who() == "replica"
                with pytest.raises(WriteOnReplicaError):
                    lite.db.session.execute(sa.text(INSERT))

    def test_repair(self, lite: Lite) -> None:
        """A write that only the replica recognises is repaired."""

        def view() -> str:
            found = lite.db.session.scalar(hidden_write(INSERT))
            lite.db.session.commit()
            return f"{found} {lite.who()}"

        assert lite.ask(view) == "new primary"
        assert lite.entries() == ["new"]

    def test_get_or_abort(self, lite: Lite) -> None:
        """Lite's own helpers are routed like the session that they use."""

        def view() -> str:
            return role(lite.db.one_or_abort(sa.select(sa.text("name FROM marker"))))

        assert lite.ask(view) == "replica"


class TestAsyncLite:
    """``db.async_session`` and ``db.get_async_session()``."""

    @pytest.mark.parametrize(
        ("method", "who"), [("GET", "replica"), ("POST", "primary")]
    )
    def test_methods(self, async_lite: Lite, method: str, who: str) -> None:
        """A request reads where its method says."""
        assert async_lite.ask(async_lite.async_who, method) == who

    def test_latch_and_pin(self, async_lite: Lite) -> None:
        """A write in a GET goes to the primary, latches and pins."""
        session = async_lite.db.get_async_session

        async def view() -> str:
            before = await async_lite.async_who()
            await session().execute(sa.text(INSERT))
            await session().commit()
            return f"{before} {await async_lite.async_who()}"

        async_lite.app.add_url_rule("/write", "write", view)
        response = async_lite.app.test_client().get("/write")
        assert response.text == "replica primary"
        assert pin_of(response) is not None
        assert [async_lite.entries(name) for name in NAMES] == [["new"], [], []]

    def test_shared_with_sync_sessions(self, async_lite: Lite) -> None:
        """Async and sync sessions of one request share the latch."""

        async def view() -> str:
            before = async_lite.who()
            await async_lite.db.async_session.execute(sa.text(INSERT))
            after = async_lite.who()
            await async_lite.db.async_session.rollback()
            return f"{before} {after}"

        # The sync session's read is over before the file is locked.
        assert async_lite.ask(view) == "replica primary"

    def test_tasks(self, async_lite: Lite) -> None:
        """Sessions of several tasks share the request's replica."""

        async def read(name: str) -> object:
            return await async_lite.db.get_async_session(name).scalar(WHO)

        async def view() -> str:
            found = set(await asyncio.gather(*map(read, "abcd")))
            assert len(found) == 1
            return role(found.pop())

        assert async_lite.ask(view) == "replica"

    def test_using_slave(self, async_lite: Lite) -> None:
        """A block holds over awaits, and refuses writes."""

        async def view() -> str:
            with using_slave():
                found = await async_lite.async_who()
                with pytest.raises(WriteOnReplicaError):
                    await async_lite.db.async_session.execute(sa.text(INSERT))
            return found

        assert async_lite.ask(view, "POST") == "replica"

    def test_repair(self, async_lite: Lite) -> None:
        """A write that only the replica recognises is repaired."""

        async def view() -> str:
            session = async_lite.db.async_session
            found = await session.scalar(hidden_write(INSERT))
            await session.commit()
            return f"{found} {await async_lite.async_who()}"

        assert async_lite.ask(view) == "new primary"
        assert async_lite.entries() == ["new"]

    def test_stream(self, async_lite: Lite) -> None:
        """A streamed result comes from a replica."""

        async def view() -> str:
            result = await async_lite.db.async_session.stream_scalars(WHO)
            (name,) = [name async for name in result]
            return role(name)

        assert async_lite.ask(view) == "replica"

    def test_engine(self, async_lite: Lite) -> None:
        """An async engine's connection reads where the session would."""

        async def view() -> str:
            async with async_lite.db.async_engine.connect() as connection:
                return role(await connection.scalar(WHO))

        assert async_lite.ask(view) == "replica"
        assert async_lite.ask(view, "POST") == "primary"

    @pytest.mark.parametrize("before", [False, True])
    def test_listeners(self, tmp_path: Path, *, before: bool) -> None:
        """What is put on ``sync_engine`` is heard for every server."""
        pytest.importorskip("aiosqlite")
        heard: list[str] = []

        def put(db: SQLAlchemy) -> None:
            listen(db.async_engine.sync_engine, heard)

        put_before = put if before else None
        with make_lite(tmp_path, "SYNC", "ASYNC", before=put_before) as lite:
            if not before:
                with lite.app.app_context():
                    put(lite.db)

            async def view() -> str:
                session = lite.db.get_async_session
                found = {await session(name).scalar(SHOUT) for name in "ab"}
                lite.who()  # which another engine serves
                (name,) = found
                return str(name)

            for method in ("GET", "GET", "POST"):
                assert lite.ask(view, method) == heard[-1].upper()
            assert sorted(heard) == sorted(NAMES * 2)

    @pytest.mark.parametrize("of", ["session", "engine"])
    def test_driver(self, async_lite: Lite, of: str) -> None:
        """What is done with the driver's connection counts as a write, and pins."""

        async def raw() -> Any:
            if of == "engine":
                return await async_lite.db.async_engine.raw_connection()
            connection = await async_lite.db.async_session.connection()
            return await connection.get_raw_connection()

        async def view() -> str:
            taken = await raw()
            await taken.driver_connection.execute(INSERT.partition("RETURNING")[0])
            await taken.driver_connection.commit()
            if of == "engine":
                await greenlet_spawn(taken.close)
            return await async_lite.async_who()

        async_lite.app.add_url_rule("/raw", "raw", view)
        response = async_lite.app.test_client().get("/raw")
        assert response.text == "primary"
        assert pin_of(response) is not None
        assert async_lite.entries() == ["new"]

    def test_outside_a_request(self, async_lite: Lite) -> None:
        """A job uses the primary, or a replica if it asks."""
        with async_lite.app.app_context():
            sessions = async_lite.db.async_sessionmaker

        async def job() -> tuple[str, str]:
            async with sessions() as session:
                plain = role(await session.scalar(WHO))
                await session.rollback()
                with using_slave():
                    return plain, role(await session.scalar(WHO))

        assert asyncio.run(job()) == ("primary", "replica")

    def test_only_async(self, tmp_path: Path) -> None:
        """An application needs no sync engine."""
        pytest.importorskip("aiosqlite")
        with make_lite(tmp_path, "ASYNC") as only:
            assert only.ask(only.async_who) == "replica"
            assert only.ask(only.async_who, "POST") == "primary"


class Base(orm.DeclarativeBase):
    """The base of the mapped class below."""


class Entry(Base):
    """A row that sessions outside Flask write."""

    __tablename__ = "entry"

    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    text: orm.Mapped[str]


@pytest.fixture
def sessions(tmp_path: Path) -> Iterator[orm.sessionmaker[RoutedSession]]:
    """Give a session factory over a primary and two replicas."""
    master, *replicas = [
        sa.create_engine(sqlite_url(make_file(tmp_path, name))) for name in NAMES
    ]
    engine = replicated_engine(master, dict(zip(NAMES[1:], replicas, strict=True)))
    yield orm.sessionmaker(engine, class_=RoutedSession)
    engine.dispose()


class TestPlainSessions:
    """``sessionmaker(replicated_engine(...), class_=RoutedSession)``."""

    def test_primary(self, sessions: orm.sessionmaker[RoutedSession]) -> None:
        """A session reads and writes on the primary, and sees what it wrote."""
        with sessions.begin() as session:
            assert role(session.scalar(WHO)) == "primary"
            session.add(Entry(text="new"))
        with sessions() as session:
            assert session.scalars(sa.select(Entry.text)).all() == ["new"]

    def test_replicas(self, sessions: orm.sessionmaker[RoutedSession]) -> None:
        """Inside using_slave() transactions take the replicas in turn."""
        served = set()
        with using_slave():
            for _ in range(2):
                with sessions() as session:
                    served.add(session.scalar(WHO))
                    assert session.scalars(sa.select(Entry)).all() == []
        assert served == {"slave_1", "slave_2"}

    def test_refused(self, sessions: orm.sessionmaker[RoutedSession]) -> None:
        """A replica is never written to."""
        with using_slave(), sessions() as session:
            with pytest.raises(WriteOnReplicaError):
                session.execute(sa.text(INSERT))
            session.add(Entry(text="new"))
            with pytest.raises(WriteOnReplicaError):
                session.commit()
        with sessions() as session:
            assert session.scalars(sa.select(Entry)).all() == []

    def test_statement(self, sessions: orm.sessionmaker[RoutedSession]) -> None:
        """A statement may ask for a replica, or for the primary."""
        with sessions() as session:
            slave = WHO.execution_options(replicated="slave")
            assert role(session.scalar(slave)) == "replica"
            assert role(session.scalar(WHO)) == "primary"

    def test_inside_an_application(
        self, build: Build, sessions: orm.sessionmaker[RoutedSession]
    ) -> None:
        """Another application's request decides nothing for it."""
        with build(NAMES[1:]).app.test_request_context(), sessions() as session:
            assert role(session.scalar(WHO)) == "primary"

    def test_by_mapper(self, tmp_path: Path) -> None:
        """``binds`` that name a routed engine for some classes are routed too."""
        master, replica = [
            sa.create_engine(sqlite_url(make_file(tmp_path, name)))
            for name in NAMES[:2]
        ]
        engine = replicated_engine(master, {"slave_1": replica})
        with using_slave(), RoutedSession(binds={Entry: engine}) as session:
            assert session.scalars(sa.select(Entry)).all() == []
            connection = session.connection(bind_arguments={"mapper": Entry})
            assert connection.engine is replica
        engine.dispose()


class Tenant(FlaskSession):
    """A session class that sends one query to a server of its own choice."""

    def get_bind(
        self, mapper: Any = None, clause: Any = None, bind: Any = None, **kwargs: Any
    ) -> Any:
        """Send what is asked for ``special`` to the second replica."""
        if self.info.get("special"):
            return self._db.engines["slave_2"]
        return super().get_bind(mapper, clause=clause, bind=bind, **kwargs)


class TestOwnSessionClass:
    """``SQLAlchemy(session_options={'class_': ...})``."""

    def test_before_the_extension(self, build: Build) -> None:
        """A class given before the extension exists keeps its own choices."""
        site = build(NAMES[1:], db=FlaskSQLAlchemy(session_options={"class_": Tenant}))
        assert site.get() in NAMES[1:]
        assert site.client().post("/").text == "master"
        with site.app.test_request_context(method="POST"):
            assert isinstance(site.db.session(), Tenant)
            assert isinstance(site.db.session(), RoutedSession)
            site.db.session.info["special"] = True
            assert site.who() == "slave_2"

    def test_already_routed(self, build: Build) -> None:
        """A class that is routed already is taken as it is."""

        class Routed(RoutedSession, FlaskSession):
            pass

        site = build(NAMES[1:], db=FlaskSQLAlchemy(session_options={"class_": Routed}))
        assert site.get() in NAMES[1:]
        with site.app.app_context():
            # Flask-SQLAlchemy's factory has made a subclass of it.
            assert type(site.db.session()).__bases__ == (Routed,)
