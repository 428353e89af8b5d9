"""Registering the extension, and what it does to the rest of an application."""

from __future__ import annotations

import copy
import gc
import os
import signal
import threading
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from flask import Flask, has_app_context
from flask_sqlalchemy import SQLAlchemy
from flask_sqlalchemy.session import Session
from sqlalchemy import orm

from examples.cluster import wait_until
from flask_replicated import ConfigurationError, FlaskReplicated
from flask_replicated.routing.request_state import RequestState
from flask_replicated.testing import assert_served, mirror
from tests.support import (
    REPLICAS,
    Build,
    Site,
    add_views,
    break_file,
    build_fixture,
    database_bytes,
    make_file,
    make_models,
    sqlite_url,
)

if TYPE_CHECKING:
    from pathlib import Path

build = build_fixture


def configured(folder: Path) -> Flask:
    """Return an application with three replicas and nothing registered."""
    app = Flask("site")
    app.config.update(
        SQLALCHEMY_DATABASE_URI=sqlite_url(make_file(folder, "master")),
        SQLALCHEMY_BINDS={
            name: sqlite_url(make_file(folder, name)) for name in REPLICAS
        },
    )
    return app


def check(app: Flask, db: SQLAlchemy, folder: Path) -> None:
    """Check that an application reads from replicas and writes to the primary."""
    site = Site(app, db, *make_models(db), folder)
    with app.test_request_context():
        assert site.who() in REPLICAS
        site.write()
        assert site.who() == "master"
    site.dispose()
    assert site.entries() == ["written"]


class Slow(SQLAlchemy):
    """Tells of its engines only when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go_on = threading.Event(), threading.Event()

    @property
    def engines(self) -> Any:
        """Return them, late."""
        self.begun.set()
        self.go_on.wait(20)
        return super().engines


class TestRegistering:
    """Every order that the factory pattern knows."""

    def test_at_once(self, tmp_path: Path) -> None:
        """Both extensions may take the application in their constructors."""
        app = configured(tmp_path)
        db = SQLAlchemy(app)
        FlaskReplicated(app)
        check(app, db, tmp_path)

    def test_factory(self, tmp_path: Path) -> None:
        """Both extensions may be made first and initialised in a factory."""
        db, extension = SQLAlchemy(), FlaskReplicated()
        app = configured(tmp_path)
        db.init_app(app)
        extension.init_app(app)
        check(app, db, tmp_path)

    def test_models_before_the_application(self, tmp_path: Path) -> None:
        """A session and models that exist before the application are routed too."""
        db = SQLAlchemy()
        models = make_models(db)
        session = db.session
        app = configured(tmp_path)
        db.init_app(app)
        FlaskReplicated(app)
        site = Site(app, db, *models, tmp_path)
        with app.test_request_context():
            assert session is db.session
            assert site.who() in REPLICAS
        site.dispose()

    def test_without_application(self) -> None:
        """FlaskReplicated() without an application does nothing."""
        assert FlaskReplicated().state(Flask("site")) is None

    def test_registered(self, build: Build) -> None:
        """``app.extensions['replicated']`` holds the extension."""
        extension = FlaskReplicated()
        site = build(extension=extension)
        assert site.app.extensions["replicated"] is extension

    def test_before_sqlalchemy(self, tmp_path: Path) -> None:
        """It may be registered before Flask-SQLAlchemy, also with contexts between."""
        db, app = SQLAlchemy(), configured(tmp_path)
        extension = FlaskReplicated(app)
        with app.app_context():
            assert app.extensions["replicated"] is extension
        db.init_app(app)
        check(app, db, tmp_path)

    def test_asked_before_any_context(self, tmp_path: Path) -> None:
        """Registered before, its commands and its test kit need no context first."""
        db, app = SQLAlchemy(), configured(tmp_path)
        FlaskReplicated(app)
        db.init_app(app)
        assert (
            app.test_cli_runner().invoke(args=["replicated", "status"]).exit_code == 0
        )
        db, app = SQLAlchemy(), configured(tmp_path)
        extension = FlaskReplicated(app)
        db.init_app(app)
        assert extension.state(app) is not None
        with mirror(app), assert_served():
            pass

    def test_first_request(self, tmp_path: Path) -> None:
        """Registered before, it pins the client of the very first request."""
        db, app = SQLAlchemy(), configured(tmp_path)
        app.config["REPLICATED_PIN_STORE"] = "session"
        app.secret_key = "a key"
        FlaskReplicated(app)
        db.init_app(app)
        site = Site(app, db, *make_models(db), tmp_path)
        add_views(site)
        client = app.test_client()
        assert client.post("/write").text == client.get("/").text == "master"
        assert app.test_client().get("/").text in REPLICAS
        site.dispose()

    def test_settings_before_sqlalchemy(self, tmp_path: Path) -> None:
        """Registered before, it reads the settings at once, and takes no second."""
        app = configured(tmp_path)
        app.config["REPLICATED_WEIGHTS"] = {"slave_9": 2}
        with pytest.raises(ConfigurationError, match="slave_9"):
            FlaskReplicated(app)
        del app.config["REPLICATED_WEIGHTS"]
        FlaskReplicated(app)
        with pytest.raises(ConfigurationError, match="register it once"):
            FlaskReplicated(app)

    def test_without_sqlalchemy(self, tmp_path: Path) -> None:
        """Without Flask-SQLAlchemy each request fails, and says what is missing."""
        app = configured(tmp_path)
        FlaskReplicated(app)
        for _ in range(2):
            with pytest.raises(ConfigurationError, match=r"call db\.init_app\(app\)"):
                app.test_client().get("/")

    def test_two_first_requests(self, tmp_path: Path) -> None:
        """Registered before, a request that comes meanwhile is served as any other."""
        passed: list[str] = []
        answers: list[Any] = []
        app, db = configured(tmp_path), Slow()
        FlaskReplicated(app)
        db.init_app(app)
        site = Site(app, db, *make_models(db), tmp_path)
        add_views(site)
        inner = app.wsgi_app

        def outer(*args: Any) -> Any:
            passed.append(args[0]["REQUEST_METHOD"])
            return inner(*args)

        app.wsgi_app = outer  # type: ignore[assignment,method-assign]  # as Flask documents
        client = app.test_client
        first = threading.Thread(target=lambda: client().get("/"))
        first.start()
        assert db.begun.wait(20)
        second = threading.Thread(
            target=lambda: answers.append(client().post("/write"))
        )
        second.start()
        second.join(0.2)  # it waits for the first one
        db.go_on.set()
        for one in (first, second):
            one.join(20)
        assert passed == ["GET", "POST"]
        assert "replicated_pin" in answers[0].headers["Set-Cookie"]
        site.dispose()

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
    @pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
    def test_forked_meanwhile(self, tmp_path: Path) -> None:
        """Registered before, a child that is forked meanwhile registers by itself."""
        app, db = configured(tmp_path), Slow()
        FlaskReplicated(app)
        db.init_app(app)
        site = Site(app, db, *make_models(db), tmp_path)
        add_views(site)
        first = threading.Thread(target=lambda: app.test_client().get("/"))
        first.start()
        assert db.begun.wait(20)
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            db.go_on.set()
            os._exit(app.test_client().get("/").text not in REPLICAS)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        db.go_on.set()
        first.join(20)
        site.dispose()

    def test_fails_in_a_context(self, tmp_path: Path) -> None:
        """Registered before, a context that fails for a setting is not left behind."""
        app = configured(tmp_path)
        app.config["SQLALCHEMY_BINDS"]["slave_1"] = "postgresql://server/shop"
        FlaskReplicated(app)
        SQLAlchemy(app)
        for context in (app.app_context, app.test_request_context):
            with pytest.raises(ConfigurationError, match="slave_1"), context():
                pass
            assert not has_app_context()

    def test_twice(self, build: Build) -> None:
        """Registering twice on one application says what to do."""
        site = build()
        with pytest.raises(ConfigurationError, match="register it once"):
            FlaskReplicated(site.app)


class TestSharing:
    """Several applications."""

    def test_one_db_and_one_extension(self, build: Build, tmp_path: Path) -> None:
        """Two applications share one db and one extension, each with its own pool."""
        folder = tmp_path / "second"
        folder.mkdir()
        db, extension = SQLAlchemy(), FlaskReplicated()
        first = build(["slave_1", "slave_2"], db=db, extension=extension)
        second = build(["slave_7"], db=db, extension=extension, folder=folder)
        for _ in range(4):
            first.get()
            second.get()
        assert sorted(first.seen) == ["slave_1", "slave_1", "slave_2", "slave_2"]
        assert second.seen == ["slave_7"] * 4
        first.get("/write")
        assert first.entries() == ["written"]
        assert second.entries() == []

    def test_with_and_without_replicas(self, build: Build, tmp_path: Path) -> None:
        """An application without replicas may share a db with one that has some."""
        folder = tmp_path / "second"
        folder.mkdir()
        db, extension = SQLAlchemy(), FlaskReplicated()
        plain = build([], db=db, extension=extension, folder=folder)
        routed = build(db=db, extension=extension)
        assert plain.count(3) == {"master": 3}
        assert routed.count(3) == dict.fromkeys(REPLICAS, 1)
        assert plain.count(3) == {"master": 3}

    def test_unregistered_application(self, build: Build, tmp_path: Path) -> None:
        """An application that shares the db but not the extension is left alone."""
        routed = build()
        other = configured(tmp_path)
        routed.db.init_app(other)
        site = Site(other, routed.db, routed.marker, routed.entry, tmp_path)
        with other.test_request_context():
            assert site.who() == "master"
            engines = routed.db.engines.values()
            assert {type(engine) for engine in engines} == {sa.Engine}
        site.dispose()

    def test_nested_applications(self, build: Build, tmp_path: Path) -> None:
        """Inside one application's request another one's context is not routed."""
        db, extension = SQLAlchemy(), FlaskReplicated()
        first = build(db=db, extension=extension)
        second = build(db=db, extension=extension)
        with first.app.test_request_context():
            first.write()
            with second.app.app_context():
                assert second.who() == "master"
        with second.app.test_request_context():
            assert second.who() in REPLICAS

    def test_session_of_two_applications(self, build: Build, tmp_path: Path) -> None:
        """A session that serves two applications reads from each one's own servers."""
        db = SQLAlchemy(session_options={"scopefunc": threading.get_ident})
        folders = [tmp_path / name for name in ("one", "two")]
        for folder in folders:
            folder.mkdir()
        (folders[1] / "master.db").write_bytes(database_bytes("other"))
        one, two = (build(db=db, folder=folder) for folder in folders)
        with one.app.test_request_context():
            assert one.who() in REPLICAS
            db.session.rollback()
            with two.app.app_context():
                assert two.who() == "other"
            db.session.rollback()

    def test_transaction_of_two_applications(
        self, build: Build, tmp_path: Path
    ) -> None:
        """So does one whose transaction goes on from one to the other."""
        db = SQLAlchemy()
        (tmp_path / "slave_2.db").write_bytes(database_bytes("other"))
        one, two = (build([name], db=db) for name in ("slave_1", "slave_2"))
        seen = []
        with db.session.session_factory() as session:
            for site in (one, two, one):
                with site.app.test_request_context():
                    seen.append(session.scalar(sa.select(site.marker.name)))
        assert seen == ["slave_1", "other", "slave_1"]


class TestWithoutReplicas:
    """As if the extension were absent."""

    def test_engine_and_session(self, build: Build) -> None:
        """Engines and session class are Flask-SQLAlchemy's own."""
        site = build([])
        with site.app.app_context():
            assert type(site.db.engine) is sa.Engine
            (session_class,) = type(site.db.session()).__bases__
            assert session_class is Session

    def test_no_cookie(self, build: Build) -> None:
        """A write sets no cookie."""
        assert "Set-Cookie" not in build([]).client().post("/write").headers

    def test_ordinary_binds(self, build: Build) -> None:
        """Other binds and their metadata stay as they are."""
        site = build(["analytics"])
        assert list(site.app.config["SQLALCHEMY_BINDS"]) == ["analytics"]
        assert "analytics" in site.db.metadatas


class TestMetadata:
    """Replica binds own no tables."""

    @pytest.fixture
    def site(self, build: Build, tmp_path: Path) -> Site:
        """Give an application whose replicas cannot be opened."""
        site = build()
        for name in REPLICAS:
            break_file(tmp_path, name)
        return site

    @pytest.mark.parametrize("method", ["create_all", "drop_all", "reflect"])
    @pytest.mark.parametrize("binds", ["__all__", None, [None]])
    def test_touches_the_primary_only(
        self, site: Site, method: str, binds: Any
    ) -> None:
        """create_all(), drop_all() and reflect() open no replica."""
        with site.app.app_context():
            getattr(site.db, method)(binds)
            tables = sa.inspect(site.db.engine).get_table_names()
        assert sorted(tables) == ([] if method == "drop_all" else ["entry", "marker"])

    def test_create_all_in_a_get(self, site: Site) -> None:
        """create_all() in a view that reads writes to the primary."""
        with site.app.test_request_context():
            site.db.drop_all()
            site.db.create_all()
            assert sa.inspect(site.db.engines[None]).has_table("marker")

    def test_nothing_is_opened_at_start(self, tmp_path: Path) -> None:
        """Registering and serving writes open no replica."""
        app = configured(tmp_path)
        for name in REPLICAS:
            break_file(tmp_path, name)
        db = SQLAlchemy(app)
        FlaskReplicated(app)
        site = Site(app, db, *make_models(db), tmp_path)
        with app.test_request_context(method="POST"):
            site.write()
            assert site.who() == "master"
        site.dispose()

    def test_ordinary_bind(self, build: Build) -> None:
        """Tables of another bind are still created in that bind."""
        site = build([*REPLICAS, "analytics"])
        key = sa.Column("key", sa.Integer, primary_key=True)
        sa.Table("more", site.db.metadatas["analytics"], key)
        with site.app.app_context():
            site.db.create_all()
            names = {
                key: sa.inspect(site.db.engines[key]).has_table("more")
                for key in (None, "analytics", "slave_1")
            }
        assert names == {None: False, "analytics": True, "slave_1": False}

    def test_inspect_in_a_get(self, build: Build) -> None:
        """Inspecting ``db.engine`` works in any request."""
        site = build()
        with site.app.test_request_context():
            assert sa.inspect(site.db.engine).has_table("entry")

    def test_a_copy_of_the_engine(self, build: Build) -> None:
        """``db.engine`` can be copied, as any engine can."""
        site = build()
        with site.app.app_context():
            assert sa.inspect(copy.copy(site.db.engine)).has_table("entry")


class OwnSession(Session):
    """A session class as an application may bring it."""

    def shout(self) -> str:
        """Return something that only this class knows."""
        return "own"


class ChoosingSession(Session):
    """A session class that chooses some engines by itself."""

    def get_bind(self, *args: Any, **kwargs: Any) -> Any:
        """Send everything that is marked to the first replica."""
        if self.info.get("chosen"):
            return self._db.engines["slave_1"]
        return super().get_bind(*args, **kwargs)


class TestOwnSessionClass:
    """``session_options={'class_': …}``."""

    def test_kept(self, build: Build) -> None:
        """A session class of the application keeps its methods and is routed."""
        site = build(db=SQLAlchemy(session_options={"class_": OwnSession}))
        with site.app.test_request_context():
            assert isinstance(site.db.session(), OwnSession)
            assert site.db.session().shout() == "own"  # type: ignore[attr-defined]  # as asserted above
            assert site.who() in REPLICAS
            site.write()
            assert site.who() == "master"

    def test_own_get_bind(self, build: Build) -> None:
        """A get_bind() of the application's own is asked first."""
        site = build(db=SQLAlchemy(session_options={"class_": ChoosingSession}))
        with site.app.test_request_context(method="POST"):
            site.db.session.info["chosen"] = True
            assert site.who() == "slave_1"
            site.db.session.remove()
            assert site.who() == "master"

    def test_second_session(self, build: Build) -> None:
        """A plain session on ``db.engine`` is served by one server throughout."""
        site = build()
        with (
            site.app.test_request_context(),
            orm.Session(site.db.engine) as session,
        ):
            name = session.scalar(sa.select(site.marker.name))
            assert name == session.scalar(sa.select(site.marker.name)) == site.who()

    def test_scoped_by_hand(self, build: Build) -> None:
        """A scoped session that the application makes itself is routed."""
        site = build()
        own = site.db._make_scoped_session({})
        with site.app.test_request_context():
            assert own.scalar(sa.select(site.marker.name)) in {*REPLICAS, "master"}
            own.remove()


def used_app(folder: Path) -> tuple[weakref.ref[Any], ...]:
    """Use an application and return what must not outlive it."""
    app = configured(folder)
    db = SQLAlchemy(app)
    extension = FlaskReplicated(app)
    site = Site(app, db, *make_models(db), folder)

    def write() -> str:
        site.write()
        return "done"

    app.add_url_rule("/", "who", site.who, methods=["GET"])
    app.add_url_rule("/write", "write", write)
    for path in ("/", "/write", "/"):
        app.test_client().get(path)
    with app.app_context():
        engines = list(db.engines.values())
    site.dispose()
    return tuple(map(weakref.ref, (app, extension, *engines)))


class TestMemory:
    """Nothing outlives its application."""

    def test_applications_are_collected(self, tmp_path: Path) -> None:
        """An application, its extension and its engines are garbage once unused."""
        left = used_app(tmp_path)

        def collected() -> bool:
            gc.collect()
            return [reference() for reference in left] == [None] * len(left)

        # A probe that is under way keeps its engine until it ends.
        wait_until(collected, "the application to be collected")

    def test_shared_extension(self, tmp_path: Path) -> None:
        """A shared extension does not keep an application alive."""
        extension = FlaskReplicated()
        app = configured(tmp_path)
        SQLAlchemy(app)
        extension.init_app(app)
        gone = weakref.ref(app)
        del app
        gc.collect()
        assert gone() is None

    def test_requests_leave_nothing(self, build: Build) -> None:
        """The number of objects does not grow with requests."""
        site = build()

        def visit(times: int) -> int:
            for path in ("/", "/write", "/no-such-page") * times:
                site.client().get(path)
            gc.collect()
            return sum(isinstance(one, RequestState) for one in gc.get_objects())

        assert visit(20) == 0
