"""What pins a client to the primary, and for how long."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from flask import Blueprint, Response, stream_with_context
from flask.sessions import SessionInterface

from flask_replicated import (
    use_master_database,
    use_slave_database,
    using_master,
)
from flask_replicated.consistency.stores import CookieStore
from tests.balancers.support import FakeClock
from tests.support import (
    COOKIE,
    REPLICAS,
    Build,
    Site,
    break_file,
    build_fixture,
    get_with_pin,
    pin_of,
    unpooled,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from flask import Flask, Request
    from flask.sessions import SessionMixin
    from werkzeug.test import TestResponse

build = build_fixture


@pytest.fixture
def site(build: Build) -> Site:
    """Give an application with three replicas."""
    return build()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """Give the clock that the pins go by."""
    clock = FakeClock(1_700_000_000.0)
    monkeypatch.setattr(time, "time", clock)
    return clock


def request(site: Site, view: Callable[[], Any], method: str = "GET") -> TestResponse:
    """Return the answer of a view to a fresh client."""
    site.app.add_url_rule("/view", "view", view, methods=[method])
    return site.client().open("/view", method=method)


class TestHowLong:
    """A pin is one client's, and ends."""

    def test_reads_its_own_write(self, site: Site) -> None:
        """After a write the same client reads from the primary, another does not."""
        writer, other = site.client(), site.client()
        writer.post("/write")
        assert [writer.get("/").text for _ in range(3)] == ["master"] * 3
        assert other.get("/").text in REPLICAS

    @pytest.mark.parametrize("seconds", [0.5, 5, 60])
    def test_ends(self, build: Build, clock: FakeClock, seconds: float) -> None:
        """A pin lasts for REPLICATED_PIN_SECONDS and no longer."""
        site = build(REPLICATED_PIN_SECONDS=seconds)
        pin = pin_of(site.client().post("/write"))
        clock.now += seconds - 0.1
        assert get_with_pin(site.app, pin) == "master"
        clock.now += 0.2
        assert get_with_pin(site.app, pin) in REPLICAS

    def test_of_what_was_read(self, build: Build, clock: FakeClock) -> None:
        """A client that goes on to read keeps its replica, and seldom gets a cookie."""
        site = build(REPLICATED_GUARANTEE="monotonic")
        client = site.app.test_client(use_cookies=False)
        pin, served, told = "", set(), []
        for _ in range(15):
            response = client.get("/", headers={"Cookie": f"{COOKIE}={pin}"})
            served.add(response.text)
            found = pin_of(response)
            told.append(found is not None)
            pin = found or pin
            clock.now += 100
        assert len(served) == 1
        assert told == [True, False, True] + [False, True] * 6

    def test_begins_anew(self, site: Site, clock: FakeClock) -> None:
        """A second write pins for the full time again."""
        client = site.client()
        client.post("/write")
        clock.now += 4
        client.post("/write")
        clock.now += 4
        assert client.get("/").text == "master"

    def test_reading_does_not_prolong(self, site: Site, clock: FakeClock) -> None:
        """A read by a pinned client sets no cookie."""
        client = site.client()
        client.post("/write")
        clock.now += 1
        assert pin_of(client.get("/")) is None

    def test_off(self, build: Build) -> None:
        """REPLICATED_PIN_SECONDS = 0 pins nobody and sets no cookie."""
        site = build(REPLICATED_PIN_SECONDS=0)
        client = site.client()
        assert pin_of(client.post("/write")) is None
        assert client.get("/").text in REPLICAS

    @pytest.mark.parametrize("pinned", [True, False])
    def test_asked_once(
        self, site: Site, monkeypatch: pytest.MonkeyPatch, pinned: bool
    ) -> None:
        """A request asks once when its client last wrote, and only with a pin."""
        asked: list[str] = []
        ask = CookieStore.recall

        def counted(self: CookieStore, request: Request) -> str:
            asked.append(request.path)
            return ask(self, request)

        monkeypatch.setattr(CookieStore, "recall", counted)
        client = site.client()
        client.get("/")  # the endpoint is known from here on
        if pinned:
            client.post("/write")
        asked.clear()
        for _ in range(2):
            client.get("/")
        assert asked == (["/", "/"] if pinned else [])


def insert(site: Site) -> sa.Insert:
    """Return an insert without a model."""
    return sa.insert(site.entry.__table__).values(text="core")


def flush(site: Site) -> None:
    """Write through the unit of work."""
    site.who()
    site.db.session.add(site.entry(text="orm"))
    site.db.session.flush()
    site.who()


def savepoint(site: Site) -> None:
    """Write inside a savepoint that is released."""
    # The driver begins a transaction at the first write and not at a savepoint.
    site.db.session.execute(sa.delete(site.entry))
    with site.db.session.begin_nested():
        site.db.session.execute(insert(site))


def defaulted(site: Site) -> sa.Insert:
    """Return an insert whose default asks the database first."""

    def ask(context: Any) -> Any:
        return context.connection.scalar(sa.text("SELECT 'asked'"))

    id_ = sa.Column("id", sa.Integer, primary_key=True)
    text = sa.Column("text", sa.String, default=ask)
    return sa.insert(sa.Table("entry", sa.MetaData(), id_, text))


def ask_before(site: Site, name: str) -> None:
    """Have a listener ask the primary something before each statement."""

    def ask(connection: sa.Connection, *_: Any) -> None:
        if not connection.info.get("asks"):
            connection.info["asks"] = True
            connection.execute(sa.text("SELECT 1"))
            del connection.info["asks"]

    with site.app.app_context():
        sa.event.listen(site.db.engine, name, ask)


class TestOthersBefore:
    """What runs on the same connection before a statement is sent hides nothing."""

    @pytest.mark.parametrize("how", ["before_execute", "before_cursor_execute", ""])
    def test_a_write(self, site: Site, how: str) -> None:
        """The request is latched, and a pin begins or is renewed."""
        if how:
            ask_before(site, how)

        def view() -> str:
            site.db.session.execute(insert(site) if how else defaulted(site))
            site.db.session.commit()
            return str(site.who())

        site.app.add_url_rule("/view", "view", view)
        client = site.client()
        for _ in range(2):
            answer = client.get("/view")
            assert answer.text == "master"
            assert pin_of(answer) is not None

    @pytest.mark.parametrize("how", ["before_execute", "before_cursor_execute"])
    def test_housekeeping(self, build: Build, how: str) -> None:
        """Nor is the other taken for the write, where that leaves no trace."""
        site = build(REPLICATED_UNPINNED={"entry": "*"})
        ask_before(site, how)

        def view() -> str:
            with using_master():
                site.who()
            site.db.session.execute(insert(site))
            site.db.session.commit()
            return "done"

        assert pin_of(request(site, view)) is None


WRITES: dict[str, Callable[[Site], Any]] = {
    "orm": flush,
    "core": lambda s: s.db.session.execute(insert(s)),
    "update of nothing": lambda s: s.db.session.execute(
        sa.update(s.entry).values(text="")
    ),
    "text": lambda s: s.db.session.execute(
        sa.text("INSERT INTO entry VALUES (1, 'x')")
    ),
    "connection": lambda s: s.db.session.connection().exec_driver_sql(
        "/* SELECT */ INSERT INTO entry VALUES (1, 'x')"
    ),
    "returning": lambda s: s.db.session.scalars(
        insert(s).returning(sa.literal(1))
    ).all(),
    "savepoint": savepoint,
    "ddl": lambda s: s.db.session.execute(sa.text("CREATE TABLE more (id INTEGER)")),
}


def write_by_engine(site: Site) -> None:
    """Commit on a Core connection of ``db.engine``."""
    with site.db.engine.begin() as connection:
        connection.execute(insert(site))


def write_autocommit(site: Site) -> None:
    """Write on a connection that commits each statement."""
    options = {"isolation_level": "AUTOCOMMIT"}
    site.db.session.connection(execution_options=options).execute(insert(site))
    site.db.session.rollback()


def write_in_own_context(site: Site) -> None:
    """Commit in a nested application context."""
    with site.app.app_context():
        site.write()


COMMITS: dict[str, Callable[[Site], Any]] = {
    "engine": write_by_engine,
    "autocommit": write_autocommit,
    "own context": write_in_own_context,
    "session": lambda s: s.write(),
}


class TestWhatPins:
    """A transaction that wrote and was committed, and nothing else."""

    @pytest.mark.parametrize("way", WRITES)
    @pytest.mark.parametrize("method", ["GET", "POST"])
    def test_commit(self, site: Site, way: str, method: str) -> None:
        """Every committed write pins, whatever the method and however written."""

        def view() -> str:
            WRITES[way](site)
            site.db.session.commit()
            return "done"

        pin = pin_of(request(site, view, method))
        assert pin is not None
        assert get_with_pin(site.app, pin) == "master"

    @pytest.mark.parametrize("way", COMMITS)
    def test_own_commit(self, site: Site, way: str) -> None:
        """A write pins wherever its commit happened."""

        def view() -> str:
            COMMITS[way](site)
            return "done"

        assert pin_of(request(site, view)) is not None
        assert len(site.entries()) == 1

    @pytest.mark.parametrize("way", WRITES)
    def test_rollback(self, site: Site, way: str) -> None:
        """A write that is rolled back pins nobody."""

        def view() -> str:
            WRITES[way](site)
            site.db.session.rollback()
            return "done"

        assert pin_of(request(site, view, "POST")) is None
        assert site.entries() == []

    @pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE"])
    def test_reading(self, site: Site, method: str) -> None:
        """A request that only read pins nobody, whatever its method."""

        def view() -> str:
            site.who()
            site.db.session.commit()
            return "done"

        response = request(site, view, method)
        assert response.status_code == 200
        assert "Set-Cookie" not in response.headers

    def test_lock(self, site: Site) -> None:
        """A transaction that only locked pins nobody."""

        def view() -> str:
            site.db.session.scalars(sa.select(site.marker).with_for_update()).all()
            site.db.session.commit()
            return "done"

        assert pin_of(request(site, view, "POST")) is None

    def test_savepoint(self, site: Site) -> None:
        """A savepoint in which nothing was written pins nobody."""

        def view() -> str:
            with site.db.session.begin_nested():
                site.who()
            site.db.session.commit()
            return "done"

        assert pin_of(request(site, view, "POST")) is None

    def test_forgotten_commit(self, site: Site) -> None:
        """A view that forgets to commit changes nothing and pins nobody."""

        def view() -> str:
            site.db.session.add(site.entry(text="lost"))
            site.db.session.flush()
            return "done"

        assert pin_of(request(site, view, "POST")) is None
        assert site.entries() == []

    def test_write_then_rolled_back_read(self, site: Site) -> None:
        """A committed write pins though a later transaction is rolled back."""

        def view() -> str:
            site.write()
            site.db.session.execute(insert(site))
            site.db.session.rollback()
            return "done"

        assert pin_of(request(site, view)) is not None

    def test_commit_then_raise(self, site: Site) -> None:
        """A view that commits and then raises pins, through the error page."""

        def view() -> str:
            site.write()
            raise KeyError

        response = request(site, view, "POST")
        assert response.status_code == 500
        assert pin_of(response) is not None

    def test_redirect(self, site: Site) -> None:
        """The usual redirect after a POST reads the write."""

        def view() -> Response:
            site.write()
            return site.app.redirect("/")  # type: ignore[return-value]  # a Response

        site.app.add_url_rule("/post", "post", view, methods=["POST"])
        assert site.client().post("/post", follow_redirects=True).text == "master"

    def test_decorated_for_replicas(self, site: Site) -> None:
        """A write in a view decorated for replicas pins as well."""

        @use_slave_database
        def view() -> str:
            site.write()
            return "done"

        assert pin_of(request(site, view)) is not None

    @pytest.mark.parametrize("hook", ["before_request", "after_request"])
    def test_hook(self, site: Site, hook: str) -> None:
        """A write in a hook pins."""

        def work(response: Response | None = None) -> Response | None:
            site.write()
            return response

        getattr(site.app, hook)(work)
        assert pin_of(request(site, lambda: "page")) is not None

    def test_session_interface(self, site: Site) -> None:
        """A write in Flask's session interface, which saves last, pins."""

        class Saving(SessionInterface):
            def open_session(self, app: Flask, request: Request) -> Any:
                return {}

            def save_session(
                self, app: Flask, session: SessionMixin, response: Response
            ) -> None:
                site.write()

        site.app.session_interface = Saving()
        assert pin_of(request(site, lambda: "page")) is not None

    def test_blueprint(self, site: Site) -> None:
        """A write in a blueprint's view pins the client in the whole application."""
        blueprint = Blueprint("part", __name__, url_prefix="/part")

        @blueprint.post("/page")
        def page() -> str:
            site.write()
            return "done"

        site.app.register_blueprint(blueprint)
        client = site.client()
        client.post("/part/page")
        assert client.get("/").text == "master"

    def test_write_while_streaming(
        self, site: Site, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A write in a streamed body comes too late to pin, and is logged."""

        def view() -> Response:
            def body() -> Iterator[str]:
                yield "one"
                site.write()
                yield "two"

            return Response(stream_with_context(body()))

        response = request(site, view)
        assert response.text == "onetwo"
        assert site.entries() == ["written"]
        assert pin_of(response) is None
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "'view' committed a write after its response" in caplog.text

    def test_outside_a_request(self, site: Site) -> None:
        """A write outside a request pins nobody and raises nothing."""
        with site.app.app_context():
            site.write()
        assert site.get() in REPLICAS

    def test_other_cookies_survive(self, site: Site) -> None:
        """The pin is one more cookie, beside those of the view."""

        def view() -> Response:
            site.write()
            response = Response("done")
            response.set_cookie("mine", "1")
            return response

        cookies = request(site, view).headers.getlist("Set-Cookie")
        assert sorted(cookie.partition("=")[0] for cookie in cookies) == [
            "mine",
            COOKIE,
        ]


class TestWritesThatLookLikeReads:
    """A write on the primary pins, however well it is hidden in a query."""

    @pytest.mark.parametrize(
        "statement",
        [
            sa.select(
                sa.exists(
                    sa.select(
                        sa.insert(sa.table("entry", sa.column("text")))
                        .values(text="x")
                        .returning(sa.column("id"))
                        .cte("nested")
                        .c.id
                    )
                )
            ),
            sa.text("SELECT add_guest('x')"),
            sa.select(sa.func.add_guest("x")),
            sa.select(sa.literal(1)).where(sa.func.nextval("s") > 0),
        ],
        ids=["nested CTE", "text", "unknown function", "sequence in WHERE"],
    )
    def test_is_suspected(self, build: Build, statement: Any) -> None:
        """What may write is known to have, once it is committed."""
        site = build()

        def view() -> str:
            with contextlib.suppress(sa.exc.DBAPIError):  # SQLite knows none of them
                site.db.session.execute(statement)
            site.db.session.commit()
            return "done"

        site.app.add_url_rule("/hidden", "hidden", view, methods=["POST"])
        assert pin_of(site.client().post("/hidden")) is not None

    @pytest.mark.parametrize(
        "sql",
        [
            "SELECT count(*), lower('A'), coalesce(max(id), 0) FROM entry",
            "SELECT id FROM entry WHERE id IN (1, 2) AND (id > 0 OR id < 0)",
            "SELECT CAST(id AS VARCHAR(10)) FROM entry",
        ],
    )
    def test_reads_pin_nobody(self, build: Build, sql: str) -> None:
        """What calls nothing but functions that only compute has written nothing."""
        site = build()

        def view() -> str:
            site.db.session.execute(sa.text(sql))
            site.db.session.commit()
            return "done"

        site.app.add_url_rule("/plain", "plain", view, methods=["POST"])
        assert pin_of(site.client().post("/plain")) is None


SHOUT = sa.text("SELECT shout('x')")


def option(site: Site) -> None:
    """Read from the primary by an option of the statement."""
    site.db.session.execute(SHOUT.execution_options(replicated="master"))


def block(site: Site) -> None:
    """Read from the primary by a block."""
    with using_master():
        site.db.session.execute(SHOUT)


def announced(site: Site) -> None:
    """Read in a transaction that announces a write."""
    with site.db.engine.begin() as connection:
        connection.execute(SHOUT)


def with_options(site: Site) -> None:
    """Read over the primary with options of its own."""
    with site.db.engine.execution_options(mine=1).connect() as connection:
        connection.execute(SHOUT)
        connection.commit()


def connection(site: Site) -> None:
    """Read over the session's connection, which is the primary's."""
    site.db.session.connection().execute(SHOUT)


def plainly(site: Site) -> None:
    """Read as any request does."""
    site.db.session.execute(SHOUT)


class TestRenewal:
    """Only what may have brought a client to the primary without a pin renews one."""

    @pytest.fixture
    def site(self, build: Build) -> Site:
        """Give an application whose database has a function that nobody knows."""
        site = build(REPLICATED_PIN_SECONDS=5)

        def teach(connection: Any, _record: object) -> None:
            connection.create_function("shout", 1, str.upper)

        with site.app.app_context():
            for engine in site.db.engines.values():
                sa.event.listen(getattr(engine, "real", engine), "connect", teach)
        return site

    def _poll(self, site: Site, view: Callable[[], Any], **options: Any) -> Any:
        """Return what pins a view's second answer, to a client that is pinned."""
        site.app.add_url_rule("/poll", "poll", view, **options)
        method = options.get("methods", ["GET"])[0]
        client = site.client()
        assert pin_of(client.post("/write")) is not None
        response = client.open("/poll", method=method)
        assert response.status_code == 200
        return pin_of(response)

    @staticmethod
    def _view(site: Site, read: Callable[[Site], None]) -> Callable[[], str]:
        def view() -> str:
            read(site)
            site.db.session.commit()
            return site.who()

        return view

    def test_suspicion_alone(self, site: Site, clock: FakeClock) -> None:
        """A client that polls is free when its pin is over, however often it polls."""
        site.app.add_url_rule("/poll", "poll", self._view(site, plainly))
        client = site.client()
        client.post("/write")
        for _ in range(4):
            clock.now += 1
            response = client.get("/poll")
            assert (response.text, pin_of(response)) == ("master", None)
        clock.now += 2
        assert client.get("/poll").text in REPLICAS

    def test_in_autocommit(self, site: Site) -> None:
        """Nor does it where each statement commits itself."""

        def read(site: Site) -> None:
            with site.db.engine.connect() as connection:
                connection.execution_options(isolation_level="AUTOCOMMIT")
                connection.execute(SHOUT)

        assert self._poll(site, self._view(site, read)) is None

    def test_sure_write(self, site: Site) -> None:
        """A write renews the pin, also after a suspicion in its transaction."""

        def read(site: Site) -> None:
            plainly(site)
            site.db.session.execute(insert(site))

        assert self._poll(site, self._view(site, read)) is not None

    @pytest.mark.parametrize(
        "read", [option, block, announced, with_options, connection]
    )
    def test_asked_for(self, site: Site, read: Callable[[Site], None]) -> None:
        """Who asks for the primary would be there without a pin."""
        assert self._poll(site, self._view(site, read)) is not None

    def test_method(self, site: Site) -> None:
        """A POST would be there without a pin."""
        view = self._view(site, plainly)
        assert self._poll(site, view, methods=["POST"]) is not None

    def test_decorator(self, site: Site) -> None:
        """A view that is decorated for the primary would be there without a pin."""
        view = use_master_database(self._view(site, plainly))
        assert self._poll(site, view) is not None

    @pytest.mark.parametrize("is_read", [True, False])
    def test_is_read(self, build: Build, site: Site, is_read: bool) -> None:
        """What REPLICATED_IS_READ says counts as the method does."""
        other = build(REPLICATED_IS_READ=lambda _: is_read)

        def view() -> str:
            with contextlib.suppress(sa.exc.DBAPIError):  # SQLite does not know it
                other.db.session.execute(SHOUT)
            other.db.session.commit()
            return "done"

        assert (self._poll(other, view) is None) is is_read

    def test_latched_meanwhile(self, site: Site) -> None:
        """A request that has locked would be there without a pin."""

        def read(site: Site) -> None:
            site.db.session.scalars(sa.select(site.marker).with_for_update()).all()
            plainly(site)

        assert self._poll(site, self._view(site, read)) is not None

    @pytest.mark.parametrize(
        "later",
        [
            lambda s: s.db.session.scalars(sa.select(s.marker).with_for_update()).all(),
            lambda s: s.db.session.connection().scalar(sa.select(s.marker.name)),
        ],
        ids=["a lock", "the connection"],
    )
    def test_latched_later(self, site: Site, later: Callable[[Site], Any]) -> None:
        """Why it was there counts as it was when the statement was sent."""

        def read(site: Site) -> None:
            plainly(site)
            later(site)

        assert self._poll(site, self._view(site, read)) is None

    def test_raw_connection(self, site: Site) -> None:
        """Nor does a driver's connection that is the primary's for the pin alone."""

        def read(site: Site) -> None:
            with site.db.engine.connect() as connection:
                driver: Any = connection.connection.dbapi_connection
                assert driver.execute("SELECT name FROM marker").fetchone()

        assert self._poll(site, self._view(site, read)) is None

    def test_is_read_reads(self, build: Build) -> None:
        """REPLICATED_IS_READ may itself read what is suspected; it is asked once."""
        sites: list[Site] = []
        asked = []

        def read() -> None:
            with contextlib.suppress(sa.exc.DBAPIError):  # SQLite knows no shout()
                sites[0].db.session.execute(SHOUT)

        def is_read(_: object) -> bool:
            asked.append(1)
            read()
            return True

        site = build(REPLICATED_IS_READ=is_read)
        sites.append(site)

        def view() -> str:
            for _ in range(3):
                read()
            site.db.session.commit()
            return "done"

        site.app.add_url_rule("/poll", "poll", view)
        client = site.client()
        client.post("/write")
        asked.clear()
        assert pin_of(client.get("/poll")) is None
        assert len(asked) == 1

    def test_begins_one(self, site: Site) -> None:
        """Without a pin a suspicion on the primary pins as ever."""
        assert pin_of(request(site, self._view(site, block))) is not None


class TestBegin:
    """Only what is on the primary for a reason of its own begins a pin."""

    @pytest.fixture
    def shop(self, build: Build) -> Site:
        """Give an application whose entries are housekeeping."""
        return self.teach(build(REPLICATED_UNPINNED={"entry": "*"}))

    @staticmethod
    def teach(site: Site) -> Site:
        """Give an application's databases a function that nobody knows."""

        def teach(connection: Any, _record: object) -> None:
            connection.create_function("shout", 1, str.upper)

        with site.app.app_context():
            sa.event.listen(site.db.engine, "connect", teach)
        return site

    @staticmethod
    def keep_house(site: Site) -> None:
        """Write what leaves no trace."""
        site.db.session.execute(insert(site))

    @staticmethod
    def forget(site: Site) -> None:
        """Write what is to leave no trace, and do not commit it."""
        with using_master(pin=False):
            site.db.session.execute(sa.delete(site.marker).where(sa.false()))

    def _pins(self, site: Site, *acts: Callable[[Site], Any], method: str) -> bool:
        def view() -> str:
            for act in acts:
                act(site)
            site.db.session.commit()
            return "done"

        response = request(site, view, method)
        assert response.text == "done"
        return pin_of(response) is not None

    @pytest.mark.parametrize("before", [keep_house, forget])
    @pytest.mark.parametrize("method", ["GET", "POST"])
    def test_housekeeping(
        self, shop: Site, before: Callable[[Site], None], method: str
    ) -> None:
        """A read that shares its transaction with housekeeping does not, in a GET."""
        assert self._pins(shop, before, plainly, method=method) is (method == "POST")

    @pytest.mark.parametrize("read", [option, block, announced, connection])
    def test_asked_for(self, shop: Site, read: Callable[[Site], None]) -> None:
        """One that asks for the primary does."""
        acts = [plainly, read] if read is announced else [self.keep_house, read]
        assert self._pins(shop, *acts, method="GET")

    def test_model(self, shop: Site) -> None:
        """One of a model that asks for the primary does."""
        master = sa.Table("ledger", shop.db.metadata, sa.Column("id", sa.Integer))
        model: Any = type(
            "Ledger",
            (shop.db.Model,),
            {
                "__table__": master,
                "__replicated__": "master",
                "__mapper_args__": {"primary_key": [master.c.id]},
            },
        )
        with shop.app.app_context():
            shop.db.create_all()

        def read(site: Site) -> None:
            site.db.session.execute(sa.select(sa.func.shout(model.id))).all()

        assert self._pins(shop, self.keep_house, read, method="GET")

    def test_sure_write(self, shop: Site) -> None:
        """What surely writes does, beside housekeeping and a suspicion."""

        def write(site: Site) -> None:
            site.db.session.execute(sa.update(site.marker).values(name="master"))

        acts = self.keep_house, plainly, write
        assert self._pins(shop, *acts, method="GET")

    @pytest.mark.parametrize("method", ["GET", "POST"])
    def test_fallback(self, build: Build, tmp_path: Path, method: str) -> None:
        """Where every replica is out, a read of theirs does not."""
        site = build((), binds={"slave_1": unpooled(tmp_path / "slave_1.db")})
        break_file(tmp_path, "slave_1")
        self.teach(site)
        assert self._pins(site, plainly, method=method) is (method == "POST")

    @pytest.mark.parametrize("read", [option, block, announced, connection])
    def test_asked_for_in_a_fallback(
        self, build: Build, tmp_path: Path, read: Callable[[Site], None]
    ) -> None:
        """What would be there in any case does."""
        site = build((), binds={"slave_1": unpooled(tmp_path / "slave_1.db")})
        break_file(tmp_path, "slave_1")
        self.teach(site)
        assert self._pins(site, plainly, read, method="GET")

    def test_locked_in_a_fallback(self, build: Build, tmp_path: Path) -> None:
        """And so does what follows a lock."""
        site = build((), binds={"slave_1": unpooled(tmp_path / "slave_1.db")})
        break_file(tmp_path, "slave_1")
        self.teach(site)

        def lock(site: Site) -> None:
            site.db.session.scalars(sa.select(site.marker).with_for_update()).all()

        assert self._pins(site, plainly, lock, plainly, method="GET")
