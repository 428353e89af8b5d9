"""What is read before the URL is matched: it decides nothing for the view."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from flask import Blueprint, g, request
from flask.sessions import SecureCookieSessionInterface
from flask.views import MethodView
from sqlalchemy import event
from werkzeug.routing import BaseConverter

from flask_replicated import (
    changes_database,
    use_master_database,
    use_slave_database,
    using_slave,
)
from flask_replicated.routing.state import STATE, current_request_state
from tests.operations.hidden import hidden_write
from tests.support import (
    REPLICAS,
    Build,
    Site,
    build_fixture,
    get_with_pin,
    pin_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from flask import Flask, Request, Response

pytestmark = pytest.mark.usefixtures("hidden_writes")

build = build_fixture

INSERT = "INSERT INTO entry (text) VALUES ('hidden') RETURNING text"


def in_session(site: Site, work: Callable[[], Any]) -> None:
    """Do something whenever Flask opens a session."""

    class Sessions(SecureCookieSessionInterface):
        def open_session(self, app: Flask, request: Request) -> Any:
            work()
            return super().open_session(app, request)

    site.app.session_interface = Sessions()


def in_converter(site: Site, work: Callable[[], Any]) -> None:
    """Do something whenever an ``<item:key>`` of a URL is converted."""

    class Item(BaseConverter):
        def to_python(self, value: str) -> str:
            work()
            return value

    site.app.url_map.converters["item"] = Item


def in_nested_context(site: Site, work: Callable[[], Any]) -> None:
    """Do something in a session of its own whenever Flask opens a session."""

    def nested() -> None:
        with site.app.app_context():
            work()

    in_session(site, nested)


def over_a_connection(site: Site, work: Callable[[], Any]) -> None:
    """Read from ``db.engine``, too, whenever Flask opens a session."""

    def both() -> None:
        with site.db.engine.connect():
            work()

    in_session(site, both)


MOMENTS = [in_session, in_converter, in_nested_context, over_a_connection]
every_moment = pytest.mark.parametrize("moment", MOMENTS)


class Early:
    """A site that reads before the URL is matched.

    Attributes:
        site: The site.
        seen: Who served the early reads, in order.
    """

    def __init__(self, site: Site, moment: Callable[..., None]) -> None:
        self.site = site
        self.seen: list[str] = []
        moment(site, lambda: self.seen.append(site.who()))

    def view(self, view: Any, *methods: str, rule: str = "/page/<item:key>") -> None:
        """Serve a view at ``/page/...``."""
        self.site.app.url_map.converters.setdefault("item", BaseConverter)
        self.site.app.add_url_rule(rule, "page", view, methods=methods or ["GET"])

    def ask(self, method: str = "GET", url: str = "/page/1") -> str:
        """Return what a fresh client is answered."""
        self.seen.clear()
        response = self.site.client().open(url, method=method)
        assert response.status_code == 200, response.text
        return str(response.text)


@every_moment
class TestDecision:
    """Made again as soon as the URL is matched, by all that is known then."""

    @pytest.mark.parametrize("mark", [changes_database, use_master_database])
    def test_to_the_primary(
        self, build: Build, moment: Any, mark: Callable[..., Any]
    ) -> None:
        """A view decorated for the primary has it, its hooks too."""
        site = build()
        early = Early(site, moment)
        hooks: list[str] = []
        site.app.before_request(lambda: hooks.append(site.who()))

        def view(key: str) -> str:
            return site.who()

        early.view(mark(view))
        for _ in range(2):
            assert early.ask() == "master"
            assert early.seen[0] in REPLICAS
        assert hooks == ["master", "master"]

    def test_to_a_replica(self, build: Build, moment: Any) -> None:
        """A POST decorated for replicas has one, though the primary served before."""
        early = Early(build(), moment)

        @use_slave_database
        def view(key: str) -> str:
            return early.site.who()

        early.view(view, "POST")
        for _ in range(2):
            assert early.ask("POST") in REPLICAS
            assert early.seen == ["master"]

    def test_method_of_a_class(self, build: Build, moment: Any) -> None:
        """One decorated method of a class in a blueprint is asked like a function."""
        site = build()
        early = Early(site, moment)

        class Page(MethodView):
            @changes_database
            def get(self, key: str) -> str:
                return site.who()

            def head(self, key: str) -> Response:
                return site.app.response_class(headers={"Who": site.who()})

        part = Blueprint("part", __name__, url_prefix="/part")
        site.app.url_map.converters.setdefault("item", BaseConverter)
        part.add_url_rule("/<item:key>", view_func=Page.as_view("page"))
        site.app.register_blueprint(part)
        assert early.ask(url="/part/1") == "master"
        assert site.client().head("/part/1").headers["Who"] in REPLICAS

    @pytest.mark.parametrize("says", [False, True, None])
    def test_is_read(self, build: Build, moment: Any, says: bool | None) -> None:
        """REPLICATED_IS_READ is asked when it can know the endpoint."""
        site = build(
            REPLICATED_IS_READ=lambda request: says if request.endpoint else None
        )
        early = Early(site, moment)
        early.view(lambda key: site.role(), "GET", "POST")
        method = "POST" if says else "GET"
        role = "primary" if says is False else "replica"
        assert early.ask(method) == role

    def test_learnt(self, build: Build, moment: Any) -> None:
        """An endpoint whose write a replica has refused starts on the primary."""
        site = build()
        early = Early(site, moment)

        def view(key: str) -> str:
            who = site.who()
            site.db.session.execute(hidden_write(INSERT)).all()
            site.db.session.commit()
            return who

        early.view(view)
        assert site.client().get("/page/1").status_code == 500
        assert [early.ask() for _ in range(3)] == ["master"] * 3
        assert early.seen[0] in REPLICAS
        assert len(site.entries()) == 3

    def test_one_replica(self, build: Build, moment: Any) -> None:
        """A request that reads from replicas all along has one of them."""
        early = Early(build(), moment)
        early.view(lambda key: early.site.who())
        answers = [early.ask() for _ in range(6)]
        assert set(answers) == set(REPLICAS)
        assert early.ask() == early.seen[0]

    def test_pinned(self, build: Build, moment: Any) -> None:
        """A client that has just written reads from the primary early and late."""
        site = build()
        early = Early(site, moment)
        early.view(lambda key: site.who())
        client = site.client()
        client.post("/write")
        early.seen.clear()
        assert client.get("/page/1").text == "master"
        assert early.seen == ["master"]

    def test_latched(self, build: Build, moment: Any) -> None:
        """A view that writes is latched as if nothing had been read before."""
        site = build()
        early = Early(site, moment)

        def view(key: str) -> str:
            site.write()
            return site.who()

        early.view(use_slave_database(view))
        assert early.ask() == "master"
        assert early.seen[0] in REPLICAS
        assert site.entries() == ["written"]

    def test_async(self, build: Build, moment: Any) -> None:
        """A coroutine's decorator is obeyed, too."""
        site = build()
        early = Early(site, moment)

        @changes_database
        async def view(key: str) -> str:
            return site.who()

        early.view(view)
        assert early.ask() == "master"


def make_site(build: Build, **config: Any) -> Site:
    """Make a site whose converter loads an entry, which its replica shows late."""
    site = build(["slave_1"], **config)
    for name, shown in (("master", "new"), ("slave_1", "old")):
        with closing(sqlite3.connect(site.folder / f"{name}.db")) as file, file:
            file.execute("INSERT INTO entry (id, text) VALUES (1, ?)", [shown])
    convert(site, lambda key: site.db.session.get(site.entry, key))
    return site


def convert(site: Site, find: Callable[[int], Any]) -> None:
    """Let a converter find the ``<entry:entry>`` of a URL."""

    class Entry(BaseConverter):
        def to_python(self, value: str) -> Any:
            return find(int(value))

    site.app.url_map.converters["entry"] = Entry


def heard(site: Site) -> list[str]:
    """Return the list of what any server is sent from here on."""
    sent: list[str] = []
    with site.app.app_context():
        event.listen(
            site.db.engine,
            "before_cursor_execute",
            lambda *arguments: sent.append(arguments[2]),
        )
    return sent


class TestObjects:
    """What was loaded before the match, where the view reads from the primary."""

    RULE = "/page/<entry:entry>"

    @pytest.fixture
    def site(self, build: Build) -> Site:
        """Give a site whose converter loads an entry."""
        return make_site(build)

    @pytest.mark.parametrize("mark", [changes_database, use_master_database])
    def test_changed(self, site: Site, mark: Callable[..., Any]) -> None:
        """A view that reads nothing itself changes what is there, not what was."""

        def view(entry: Any) -> str:
            entry.text += "+"
            site.db.session.commit()
            return str(entry.text)

        site.app.add_url_rule(self.RULE, "page", mark(view))
        assert [site.get("/page/1") for _ in range(2)] == ["new+", "new++"]
        assert site.entries() == ["new++"]

    def test_selected(self, site: Site) -> None:
        """A select in the view fills in what the primary has."""

        @site.app.get(self.RULE)
        @use_master_database
        def page(entry: Any) -> str:
            found = site.db.session.scalars(site.db.select(site.entry)).one()
            return f"{found.text} {found is entry}"

        assert site.get("/page/1") == "new True"

    def test_block(self, site: Site) -> None:
        """So is what a converter has asked a replica for in so many words."""

        def find(key: int) -> Any:
            with using_slave():
                return site.db.session.get(site.entry, key)

        convert(site, find)
        site.app.add_url_rule(
            self.RULE, "page", lambda entry: entry.text, methods=["POST"]
        )
        assert site.client().post("/page/1").text == "new"

    def test_replica(self, site: Site) -> None:
        """Where the view reads from the replica, nothing is loaded twice."""
        sent = heard(site)
        site.app.add_url_rule(self.RULE, "page", lambda entry: entry.text)
        assert site.get("/page/1") == "old"
        assert len(sent) == 1

    def test_modified(self, site: Site) -> None:
        """What was changed or added before the match stays so."""

        def find(key: int) -> Any:
            entry: Any = site.db.session.get(site.entry, key)
            entry.text = "mine"
            site.db.session.add(site.entry(text="added"))
            return entry

        convert(site, find)

        @site.app.get(self.RULE)
        @changes_database
        def page(entry: Any) -> str:
            site.db.session.commit()
            return str(entry.text)

        assert site.get("/page/1") == "mine"
        assert site.entries() == ["mine", "added"]

    def test_turned_later(self, site: Site) -> None:
        """A view that begins on the replica and then writes keeps what it has."""

        @site.app.get(self.RULE)
        def page(entry: Any) -> str:
            site.db.session.add(site.entry(text="x"))
            site.db.session.flush()
            return f"{site.who()} {entry.text}"

        assert site.get("/page/1") == "master old"

    def test_is_read(self, build: Build) -> None:
        """REPLICATED_IS_READ is not asked before its time, and heeded all the same."""
        asked: list[bool] = []

        def is_read(request: Request) -> bool | None:
            if request.endpoint is None:
                return None
            asked.append(g.known)
            return False

        site = make_site(build, REPLICATED_IS_READ=is_read)
        site.app.before_request(lambda: setattr(g, "known", True))

        @site.app.get(self.RULE)
        def page(entry: Any) -> str:
            entry.text += "+"
            site.db.session.commit()
            return "done"

        assert site.get("/page/1") == "done"
        assert asked == [True]
        assert site.entries() == ["new+"]

    def test_pushed(self, site: Site) -> None:
        """A request context that is pushed by hand loads again after its first read."""
        site.app.add_url_rule(self.RULE, "page", changes_database(lambda entry: ""))
        with site.app.test_request_context("/page/1"):
            assert site.who() == "master"
            assert (request.view_args or {})["entry"].text == "new"


class TestUnknownUrl:
    """A request that matches nothing is decided by its method, once and for all."""

    @pytest.mark.parametrize(
        ("method", "url", "status"),
        [("GET", "/nothing", 404), ("POST", "/nothing", 404), ("PUT", "/write", 405)],
    )
    def test_method(self, build: Build, method: str, url: str, status: int) -> None:
        """The error page reads where the method says."""
        site = build()
        early = Early(site, in_session)

        def page(_: Exception) -> tuple[str, int]:
            return site.role(), status

        site.app.register_error_handler(status, page)
        response = site.client().open(url, method=method)
        role = "replica" if method == "GET" else "primary"
        assert (response.status_code, response.text) == (status, role)
        assert len(early.seen) == 1

    def test_learnt_apart(self, build: Build) -> None:
        """A write in an error page says nothing of what is read before the match."""
        site = build()

        def page(_: Exception) -> str:
            site.db.session.execute(hidden_write(INSERT)).all()
            site.db.session.commit()
            return "done"

        site.app.register_error_handler(404, page)
        site.get("/nothing")
        early = Early(site, in_session)
        assert site.get() in REPLICAS
        assert early.seen[0] in REPLICAS

    @pytest.mark.parametrize(
        ("host", "role"), [("shop.test", "primary"), ("other.test", "replica")]
    )
    def test_host_matching(self, build: Build, host: str, role: str) -> None:
        """Where hosts are matched, the view of another host is not asked."""
        site = build()
        Early(site, in_session)
        site.app.url_map.host_matching = True
        site.app.register_error_handler(404, lambda _: site.role())
        view = changes_database(site.role)
        site.app.add_url_rule("/page", "page", view, host="shop.test")
        response = site.client().get("/page", base_url=f"http://{host}")
        assert response.text == role


class TestWritesBefore:
    """A write is a write, whenever it was made."""

    @pytest.mark.parametrize("commit", [True, False])
    def test_latches(self, build: Build, commit: bool) -> None:
        """After an early write the view reads from the primary, and its client."""
        site = build()

        def work() -> None:
            site.db.session.add(site.entry(text="visit"))
            site.db.session.flush()
            if commit:
                site.db.session.commit()

        in_session(site, work)

        @site.app.get("/page")
        @use_slave_database
        def page() -> str:
            found = site.db.session.scalars(site.db.select(site.entry.text)).all()
            site.db.session.commit()
            return " ".join([site.who(), *found])

        response = site.client().get("/page")
        assert response.text == "master visit"
        assert site.entries() == ["visit"]
        pin = pin_of(response)
        in_session(site, lambda: None)
        assert get_with_pin(site.app, pin) == "master"

    def test_hidden(self, build: Build) -> None:
        """One that only a server recognises is repaired, learnt, and latches."""
        site = build()
        learnt = site.app.extensions[STATE].decider.writers

        def work() -> None:
            site.db.session.execute(hidden_write(INSERT)).all()
            site.db.session.commit()

        in_session(site, work)
        assert [site.get() for _ in range(3)] == ["master"] * 3
        assert len(site.entries()) == 3
        assert learnt == {"(before the URL is matched)": 1}
        in_session(site, lambda: None)
        assert site.get() in REPLICAS

    def test_suspected(self, build: Build) -> None:
        """What may have written, and was committed, is not read past by the view."""
        site = build()

        def work() -> None:
            site.db.session.execute(hidden_write(INSERT)).all()
            site.db.session.commit()

        in_session(site, work)

        @site.app.post("/page")
        @use_slave_database
        def page() -> str:
            return site.who()

        assert site.client().post("/page").text == "master"
        assert site.app.extensions[STATE].decider.writers == {}


class TestAskedOnce:
    """What is asked of others is not asked for each early read."""

    def test_pins(self, build: Build) -> None:
        """A store of pins is asked once in a request, for early and late reads."""
        asked: list[str] = []

        class Store:
            def remember(self, response: Response, token: str) -> None:
                """Remember nothing."""

            def recall(self, request: Request) -> str:
                asked.append(request.path)
                return ""

        site = build(REPLICATED_PIN_STORE=Store())

        def work() -> None:
            site.who()
            site.who()

        in_session(site, work)
        for _ in range(2):
            site.get()
        assert asked == ["/", "/"]

    def test_is_read(self, build: Build) -> None:
        """REPLICATED_IS_READ is asked once before the match, and once after."""
        asked: list[str | None] = []
        site = build(REPLICATED_IS_READ=lambda request: asked.append(request.endpoint))

        def work() -> None:
            site.who()
            site.who()

        in_session(site, work)
        site.app.before_request(work)
        site.get()
        assert asked == [None, "who"]


def test_fails_before(build: Build) -> None:
    """What REPLICATED_IS_READ raises as it needs the rule says nothing for now."""
    site = build(
        REPLICATED_IS_READ=lambda request: request.url_rule.endpoint == "page",
        PROPAGATE_EXCEPTIONS=True,
    )
    in_session(site, site.who)
    site.app.add_url_rule("/page", "page", site.who, methods=["POST"])
    assert site.client().post("/page").text in REPLICAS
    assert site.seen[0] == "master"
    assert site.get("/") == "master"
    site.app.before_request_funcs[None] = [lambda: setattr(g, "read", site.who())]
    with pytest.raises(AttributeError):
        site.client().get("/nowhere")


def test_own_context(build: Build) -> None:
    """A request context that is pushed by hand is matched at once."""
    site = build()
    in_session(site, lambda: setattr(g, "early", site.who()))
    site.app.add_url_rule("/page", "page", changes_database(site.who))
    with site.app.test_request_context("/page"):
        assert g.early in REPLICAS
        assert site.who() == "master"
        state = current_request_state()
        assert state is not None
        assert state.decided is state.decision
