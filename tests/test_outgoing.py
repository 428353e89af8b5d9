"""How a pin reaches its client: middleware, sockets, and what brings none."""

from __future__ import annotations

import asyncio
import io
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from wsgiref.handlers import SimpleHandler

import pytest
import sqlalchemy as sa
from asgiref.testing import ApplicationCommunicator
from asgiref.wsgi import WsgiToAsgi
from flask import Flask, Response, redirect, send_file, session, stream_with_context
from flask.sessions import SecureCookieSessionInterface
from werkzeug.datastructures import Headers
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.test import Client, EnvironBuilder
from werkzeug.wrappers import Response as Plain

from flask_replicated import use_master_database
from flask_replicated.consistency.tokens import Mark, Token, bind_id, decode, encode
from flask_replicated.routing.responses import OVER_WEBSOCKET, Explain, pin_responses
from flask_replicated.routing.state import STATE
from tests.balancers.support import FakeClock
from tests.support import (
    COOKIE,
    REPLICAS,
    SECRET,
    Build,
    Site,
    build_fixture,
    get_with_pin,
    pin_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from werkzeug.test import TestResponse

build = build_fixture

Environ = dict[str, Any]


@pytest.fixture
def site(build: Build) -> Site:
    """Give an application with three replicas."""
    return build()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """Give the clock that pins go by."""
    clock = FakeClock(1_700_000_000.0)
    clocks = SimpleNamespace(time=clock, monotonic=clock)
    for name in ("consistency.client", "routing.request_state", "routing.responses"):
        monkeypatch.setattr(f"flask_replicated.{name}.time", clocks)
    monkeypatch.setattr("flask_replicated.engine.engines.time", clocks)
    return clock


def said(pin: str | None) -> float:
    """Return the time that a pin says."""
    token = decode(pin or "", [SECRET])
    return 0.0 if token is None else token.latest_untold


def saying(moment: float) -> str:
    """Return a pin that says a time."""
    return encode(Token({bind_id(None): Mark(untold=moment)}), [SECRET])


def pins(response: TestResponse) -> list[str]:
    """Return the headers that set a pin."""
    cookies = response.headers.getlist("Set-Cookie")
    return [line for line in cookies if line.startswith(f"{COOKIE}=")]


# --- middleware -------------------------------------------------------------------


def buffers(app: Any) -> Any:
    """Answer when the whole response is there, with another one."""

    def middleware(environ: Environ, start: Any) -> Any:
        response = Plain.from_app(app, environ, buffered=True)
        response.set_data(response.get_data() + b"!")
        return response(environ, start)

    return middleware


def holds(app: Any) -> Any:
    """Hand status and headers on when the body is there."""

    def middleware(environ: Environ, start: Any) -> Any:
        held: list[Any] = []

        def begin(*args: Any) -> Any:
            held[:] = args
            return lambda data: None

        body = app(environ, begin)
        data = b"".join(body)
        getattr(body, "close", int)()
        start(*held)
        return [data]

    return middleware


def copies(app: Any) -> Any:
    """Hand on a copy of the environment."""
    return lambda environ, start: app({**environ, "wsgi.url_scheme": "https"}, start)


def renews(app: Any) -> Any:
    """Hand on an environment that has nothing but what the standard names."""

    def middleware(environ: Environ, start: Any) -> Any:
        kept = {
            name: value
            for name, value in environ.items()
            if name.isupper() or name.startswith("wsgi.")
        }
        return app(kept, start)

    return middleware


def steps(app: Any) -> Any:
    """Call the application when the body is asked for."""

    def middleware(environ: Environ, start: Any) -> Iterator[bytes]:
        body = app(environ, start)
        try:
            yield from body
        finally:
            getattr(body, "close", int)()

    return middleware


def writes(app: Any) -> Any:
    """Send the body by the function that start_response() returns."""

    def middleware(environ: Environ, start: Any) -> Iterable[bytes]:
        sent: list[Any] = []

        def begin(*args: Any) -> Any:
            sent.append(start(*args))
            return sent[0]

        body = app(environ, begin)
        for data in body:
            sent[0](data)
        getattr(body, "close", int)()
        return []

    return middleware


def begins_twice(app: Any) -> Any:
    """Begin a response anew, as one does when an error has come up meanwhile."""

    def middleware(environ: Environ, start: Any) -> Any:
        def begin(status: str, headers: Any, *_: Any) -> Any:
            start("200 OK", [])
            error = LookupError()
            return start(status, list(headers), (LookupError, error, None))

        return app(environ, begin)

    return middleware


def other_thread(app: Any) -> Any:
    """Run the application in another thread, as those do that set a time limit."""

    def middleware(environ: Environ, start: Any) -> Any:
        with ThreadPoolExecutor(1) as executor:
            return executor.submit(lambda: list(app(environ, start))).result(30)

    return middleware


def tries_again(app: Any) -> Any:
    """Call the application once more, as those do that answer errors by a page."""

    def middleware(environ: Environ, start: Any) -> Any:
        body = app(environ, lambda *_: None)
        getattr(body, "close", int)()
        environ.update(PATH_INFO="/", REQUEST_METHOD="GET")
        return app(environ, start)

    return middleware


def behind_a_proxy(app: Any) -> Any:
    """Believe what a proxy says of the client."""
    return ProxyFix(app, x_for=1, x_proto=1, x_host=1, x_prefix=1)


MIDDLEWARE = [
    buffers,
    holds,
    copies,
    renews,
    steps,
    writes,
    other_thread,
    tries_again,
    behind_a_proxy,
]
ORDERS = ["before", "after", "both"]


def answers_errors(app: Any) -> Any:
    """Answer what the application raises."""

    def middleware(environ: Environ, start: Any) -> Any:
        try:
            return app(environ, start)
        except LookupError:
            start("502 Bad Gateway", [])
            return [b"try again"]

    return middleware


def around(site: Site, middleware: list[Callable[..., Any]], order: str) -> None:
    """Install middleware before the extension, so inside of it, or after it."""
    bare: Any = Flask.wsgi_app.__get__(site.app)
    if order != "after":
        for one in middleware:
            bare = one(bare)
    state = site.app.extensions[STATE]
    explain = Explain(None, site.app.config, state.add_reads)
    wrapped: Any = pin_responses(
        bare, state.responses, state.response_starts, state.advice, explain
    )
    if order != "before":
        for one in middleware:
            wrapped = one(wrapped)
    site.app.wsgi_app = wrapped  # type: ignore[method-assign]  # as init_app() does


@pytest.mark.parametrize("order", ORDERS)
class TestMiddleware:
    """Whatever lies between the application and its server."""

    @pytest.mark.parametrize("middleware", MIDDLEWARE)
    def test_reaches(
        self, site: Site, middleware: Callable[..., Any], order: str
    ) -> None:
        """The pin reaches the client, once, and its next request sees the write."""
        around(site, [middleware], order)
        client = site.client()
        response = client.post("/write")
        assert response.status_code == 200
        assert len(pins(response)) == 1
        assert client.get("/").text.rstrip("!") == "master"

    @pytest.mark.parametrize("middleware", MIDDLEWARE)
    def test_of_readers(
        self, site: Site, middleware: Callable[..., Any], order: str
    ) -> None:
        """A request that only reads sets no cookie, so its response stays cacheable."""
        around(site, [middleware], order)
        for method in ("GET", "POST"):
            assert "Set-Cookie" not in site.client().open("/", method=method).headers

    def test_several(self, site: Site, order: str) -> None:
        """So it does through several of them at once."""
        around(site, [copies, buffers, steps, behind_a_proxy, holds, copies], order)
        response = site.client().post("/write")
        assert len(pins(response)) == 1

    def test_streamed(self, site: Site, order: str) -> None:
        """A write in a body is in time where the headers still wait for the body."""

        def body() -> Iterator[str]:
            yield "one"
            site.write()

        def view() -> Response:
            return Response(stream_with_context(body()))

        site.app.add_url_rule("/view", "view", view)
        around(site, [buffers], order)
        assert len(pins(site.client().get("/view"))) == (order != "after")


@pytest.mark.parametrize("order", ["before", "after"])
def test_begun_twice(site: Site, order: str) -> None:
    """A response that is begun anew brings the pin, once."""
    around(site, [begins_twice], order)
    sent = io.BytesIO()
    environ = EnvironBuilder(path="/write", method="POST").get_environ()
    SimpleHandler(io.BytesIO(), sent, io.StringIO(), environ).run(site.app)
    head, _, body = sent.getvalue().decode().partition("\r\n\r\n")
    assert body == "master"
    assert head.count(f"Set-Cookie: {COOKIE}=") == 1


def test_inner_cache(site: Site) -> None:
    """A cache inside the extension keeps no pin, and hands none to another client."""
    kept: dict[str, Plain] = {}

    def caches(app: Any) -> Any:
        def middleware(environ: Environ, start: Any) -> Any:
            path = environ["PATH_INFO"]
            if path not in kept:
                kept[path] = Plain.from_app(app, environ, buffered=True)
            return kept[path](environ, start)

        return middleware

    around(site, [caches], "before")
    assert len(pins(site.client().get("/write"))) == 1
    assert pins(site.client().get("/write")) == []


def test_of_a_nested_request(site: Site) -> None:
    """A request context that a view pushes writes for the view's client."""

    def view() -> str:
        with site.app.test_request_context("/other"):
            site.write()
        return "done"

    site.app.add_url_rule("/view", "view", view)
    assert len(pins(site.client().get("/view"))) == 1


def test_of_an_inner_client(site: Site) -> None:
    """A request that a view makes by a test client has a pin of its own."""
    inner: list[TestResponse] = []

    def view() -> str:
        inner.append(site.client().post("/write"))
        return "done"

    site.app.add_url_rule("/view", "view", view)
    assert pins(site.client().get("/view")) == []
    assert len(pins(inner[0])) == 1


class TestResponses:
    """Whatever a view answers."""

    VIEWS: dict[str, Callable[[], Any]] = {  # noqa: RUF012 - never changed
        "redirect": lambda: redirect("/"),
        "file": lambda: send_file(io.BytesIO(b"data"), mimetype="text/plain"),
        "no content": lambda: ("", 204),
        "not modified": lambda: ("", 304),
        "generator": lambda: (part for part in ("one", "two")),
        "error": lambda: 1 // 0,
        "forbidden": lambda: ("no", 403),
        "from another": lambda: Response.from_app(
            Plain("from another"), EnvironBuilder().get_environ()
        ),
    }

    @pytest.mark.parametrize("what", VIEWS)
    @pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
    def test_pinned(self, site: Site, what: str, method: str) -> None:
        """It brings the pin."""

        def view() -> Any:
            site.write()
            return self.VIEWS[what]()

        site.app.add_url_rule("/view", "view", view, methods=["GET", "POST"])
        response = site.client().open("/view", method=method)
        assert get_with_pin(site.app, pin_of(response)) == "master"

    @pytest.mark.skipif(
        version("flask").startswith("2."), reason="its test client cannot do it"
    )
    def test_beside_the_session(self, site: Site) -> None:
        """It is one more cookie beside the session's, also for a test's session."""
        client = site.client()

        def view() -> str:
            session["seen"] = session.get("seen", 0) + 1
            site.write()
            return str(session["seen"])

        site.app.add_url_rule("/view", "view", view)
        with client.session_transaction() as stored:
            stored["seen"] = 41
        response = client.get("/view")
        assert response.text == "42"
        assert len(response.headers.getlist("Set-Cookie")) == 2
        with client.session_transaction() as stored:
            assert stored["seen"] == 42
        assert client.get("/").text == "master"

    def test_asgi(self, site: Site) -> None:
        """It reaches the client of an ASGI server, too."""
        communicator: Any = ApplicationCommunicator
        adapted: Any = WsgiToAsgi

        async def ask() -> list[Any]:
            scope = {
                "type": "http",
                "method": "POST",
                "path": "/write",
                "http_version": "1.1",
                "query_string": b"",
                "headers": [],
            }
            server = communicator(adapted(site.app), scope)
            await server.send_input({"type": "http.request", "body": b""})
            begun = await server.receive_output(30)
            await server.wait(30)
            return list(begun["headers"])

        headers = asyncio.run(ask())
        cookies = [value for name, value in headers if name.lower() == b"set-cookie"]
        assert [cookie.split(b"=")[0].decode() for cookie in cookies] == [COOKIE]


# --- several applications -----------------------------------------------------------


class TestTwoApplications:
    """On one host, and in one process."""

    @pytest.fixture
    def sites(self, build: Build, tmp_path: Any) -> tuple[Site, Site]:
        """Give two applications, the second with sessions of its own."""
        first = build(folder=tmp_path)
        second = build(folder=tmp_path, SESSION_COOKIE_NAME="shop")
        return first, second

    def test_names(self, sites: tuple[Site, Site]) -> None:
        """Each has a pin of its own where each has sessions of its own."""
        first, second = sites
        for site, name in ((first, COOKIE), (second, f"shop_{COOKIE}")):
            (cookie,) = site.client().post("/write").headers.getlist("Set-Cookie")
            assert cookie.partition("=")[0] == name

    @pytest.mark.parametrize("inside", [True, False])
    @pytest.mark.parametrize("number", [0, 1])
    def test_mounted(self, sites: tuple[Site, Site], inside: bool, number: int) -> None:
        """A client that has written to one of them is pinned there, and there alone."""
        first, second = sites
        if inside:
            around(
                first,
                [lambda app: DispatcherMiddleware(app, {"/shop": second.app})],
                "before",
            )
            client = Client(first.app)
        else:
            client = Client(DispatcherMiddleware(first.app, {"/shop": second.app}))
        here, there = ("", "/shop") if number == 0 else ("/shop", "")
        assert len(client.post(f"{here}/write").headers.getlist("Set-Cookie")) == 1
        assert client.get(f"{here}/").text == "master"
        assert client.get(f"{there}/").text in REPLICAS

    def test_cascade(self, sites: tuple[Site, Site]) -> None:
        """One that is asked after another has answered 404 pins its own clients."""
        first, second = sites

        def cascades(app: Any) -> Any:
            def middleware(environ: Environ, start: Any) -> Any:
                other = Plain.from_app(second.app, environ, buffered=True)
                answers = app if other.status_code == 404 else other
                return answers(environ, start)

            return middleware

        first.app.add_url_rule("/own", "own", first.app.view_functions["write"])
        around(first, [cascades], "before")
        assert len(pins(first.client().get("/own"))) == 1

    def test_other_key(self, build: Build) -> None:
        """A cookie that another application has set under the same name is nothing."""
        other = build(SECRET_KEY="of another")
        foreign = pin_of(other.client().post("/write"))
        site = build()
        assert get_with_pin(site.app, foreign) in REPLICAS
        own = pin_of(site.client().post("/write"))
        assert get_with_pin(site.app, f"{foreign}; {COOKIE}={own}") == "master"

    def test_paths(self, build: Build) -> None:
        """Under different paths neither overwrites the other."""
        sites = [build(APPLICATION_ROOT=root) for root in ("/", "/shop")]
        client = Client(DispatcherMiddleware(sites[0].app, {"/shop": sites[1].app}))
        client.post("/write")
        client.post("/shop/write")
        assert all(client.get_cookie(COOKIE, path=path) for path in ("/", "/shop"))
        assert [client.get(path).text for path in ("/", "/shop/")] == ["master"] * 2

    def test_writes_for_the_other(self, sites: tuple[Site, Site]) -> None:
        """What a view does in another application's context is not its own write."""
        first, second = sites

        def view() -> str:
            with second.app.app_context():
                second.write()
            return "done"

        first.app.add_url_rule("/view", "view", view)
        assert "Set-Cookie" not in first.client().get("/view").headers


class TestAttributes:
    """Like the session cookie's."""

    def cookie(self, site: Site) -> str:
        """Return the header that sets the pin."""
        (line,) = site.client().post("/write").headers.getlist("Set-Cookie")
        return line

    @pytest.mark.parametrize(
        ("configured", "right"),
        [(None, "Lax"), ("Lax", "Lax"), ("Strict", "Strict"), ("None", "None")],
    )
    def test_same_site(self, build: Build, configured: str | None, right: str) -> None:
        """SameSite is SESSION_COOKIE_SAMESITE, and Lax where that says nothing."""
        site = build(SESSION_COOKIE_SAMESITE=configured, SESSION_COOKIE_SECURE=True)
        assert f"SameSite={right}" in self.cookie(site)

    @pytest.mark.parametrize("wanted", [True, False])
    def test_partitioned(self, build: Build, wanted: bool) -> None:
        """Partitioned is SESSION_COOKIE_PARTITIONED, where Flask has that."""
        site = build(SESSION_COOKIE_PARTITIONED=wanted, SESSION_COOKIE_SECURE=True)
        known = hasattr(SecureCookieSessionInterface, "get_cookie_partitioned")
        assert ("Partitioned" in self.cookie(site)) == (wanted and known)

    def test_of_a_session_interface(self, build: Build) -> None:
        """A session interface of the application's own is asked, not its settings."""

        class Framed(SecureCookieSessionInterface):
            def get_cookie_samesite(self, app: Flask) -> str:
                return "None"

            def get_cookie_secure(self, app: Flask) -> bool:
                return True

        site = build(SESSION_COOKIE_SAMESITE="Strict")
        site.app.session_interface = Framed()
        around(site, [buffers], "before")
        cookie = self.cookie(site)
        assert "SameSite=None" in cookie
        assert "Secure" in cookie

    @pytest.mark.parametrize(
        ("config", "name"),
        [
            ({}, COOKIE),
            ({"SESSION_COOKIE_NAME": "session"}, COOKIE),
            ({"SESSION_COOKIE_NAME": "__Host-blog"}, f"__Host-blog_{COOKIE}"),
            ({"SESSION_COOKIE_NAME": "b", "REPLICATED_PIN_COOKIE": "mine"}, "mine"),
        ],
    )
    def test_name(self, build: Build, config: Environ, name: str) -> None:
        """Its name follows the session cookie's, unless a setting says otherwise."""
        site = build(**config, SESSION_COOKIE_SECURE=True, SESSION_COOKIE_PATH="/")
        assert self.cookie(site).partition("=")[0] == name


class TestNames:
    """The pin is called after the session cookie, as that is called in the end."""

    def cookie(self, site: Site) -> str:
        """Return the name of the pin that a write sets; it pins its client, too."""
        client = site.client()
        (line,) = client.post("/write").headers.getlist("Set-Cookie")
        assert client.get("/").text == "master"
        return line.partition("=")[0]

    def test_of_a_session_interface(self, build: Build) -> None:
        """An interface of the application's own may name it."""

        class Named(SecureCookieSessionInterface):
            def get_cookie_name(self, app: Flask) -> str:
                return f"{app.name}-visit"

        site = build()
        site.app.session_interface = Named()
        assert self.cookie(site) == f"{site.app.name}-visit_{COOKIE}"

    def test_of_a_later_setting(self, build: Build) -> None:
        """The application may be configured after the extension."""
        site = build()
        site.app.config["SESSION_COOKIE_NAME"] = "late"
        assert self.cookie(site) == f"late_{COOKIE}"

    def test_given(self, build: Build) -> None:
        """A name that is given is stronger, be it the default."""
        site = build(REPLICATED_PIN_COOKIE=COOKIE)
        site.app.config["SESSION_COOKIE_NAME"] = "late"
        assert self.cookie(site) == COOKIE

    def test_without_a_name(self, build: Build) -> None:
        """An interface that cannot tell fails no request."""

        class Nameless(SecureCookieSessionInterface):
            def get_cookie_name(self, app: Flask) -> str:
                raise LookupError

            def open_session(self, app: Flask, request: Any) -> Any:
                return {}

            def save_session(self, app: Flask, session: Any, response: Any) -> None:
                pass

        site = build(SESSION_COOKIE_NAME="shop")
        site.app.session_interface = Nameless()
        assert self.cookie(site) == f"shop_{COOKIE}"

    def test_asked_once(self, build: Build) -> None:
        """It is asked by the first request alone."""
        asked = []

        class Counting(SecureCookieSessionInterface):
            def get_cookie_name(self, app: Flask) -> str:
                asked.append(app)
                return "counted"

            def open_session(self, app: Flask, request: Any) -> Any:
                return {}

            def save_session(self, app: Flask, session: Any, response: Any) -> None:
                pass

        site = build()
        site.app.session_interface = Counting()
        for _ in range(3):
            self.cookie(site)
        assert len(asked) == 1


# --- times --------------------------------------------------------------------------


class TestTimes:
    """A pin counts from when the headers leave, and never goes backwards."""

    def test_leaves_late(self, build: Build, clock: FakeClock) -> None:
        """A response that leaves long after its commit pins for the full time."""
        site = build(REPLICATED_PIN_SECONDS=3)

        def view() -> str:
            site.write()
            clock.now += 60
            return "done"

        site.app.add_url_rule("/view", "view", view)
        pin = pin_of(site.client().get("/view"))
        clock.now += 2.9
        assert get_with_pin(site.app, pin) == "master"
        clock.now += 0.2
        assert get_with_pin(site.app, pin) in REPLICAS

    @pytest.mark.parametrize("order", ORDERS)
    def test_held_back(self, site: Site, clock: FakeClock, order: str) -> None:
        """It counts from when a middleware inside lets the response go."""

        def slow(app: Any) -> Any:
            def middleware(environ: Environ, start: Any) -> Any:
                response = Plain.from_app(app, environ, buffered=True)
                clock.now += 60
                return response(environ, start)

            return middleware

        around(site, [slow], order)
        before = clock.now
        told = said(pin_of(site.client().post("/write")))
        assert told - before == (60 if order != "after" else 0)

    @pytest.mark.parametrize("store", ["cookie", "header"])
    def test_body_begins_late(self, build: Build, clock: FakeClock, store: str) -> None:
        """It counts from when a streamed body begins, as headers leave no earlier."""
        site = build(REPLICATED_PIN_STORE=store)

        def body() -> Iterator[str]:
            clock.now += 60
            yield "one"
            clock.now += 60
            yield "two"

        def view() -> Response:
            site.write()
            return Response(body())

        site.app.add_url_rule("/view", "view", view)
        before = clock.now
        response = site.client().get("/view")
        told = pin_of(response)
        if store == "header":
            told = response.headers["Replicated-Position"]
        assert said(told) - before == 60
        assert response.text == "onetwo"

    def test_body_is_not_awaited(self, build: Build) -> None:
        """Nothing waits for a body where the session has the pin, or there is none."""
        site = build(REPLICATED_PIN_STORE="session")
        begun: list[str] = []

        def body() -> Iterator[str]:
            begun.append(threading.current_thread().name)
            yield "one"

        def view() -> Response:
            site.write()
            return Response(body())

        site.app.add_url_rule("/view", "view", view)
        site.app.add_url_rule("/reads", "reads", lambda: Response(body()))
        for path in ("/view", "/reads"):
            environ = EnvironBuilder(path=path).get_environ()
            rest = site.app(environ, lambda *_: lambda _: None)
            assert begun == []
            getattr(rest, "close", int)()

    def test_crossing(self, site: Site) -> None:
        """Of two requests that cross, the one that leaves last has the newer pin."""
        committed, may_leave = threading.Event(), threading.Event()
        answers: dict[str, float] = {}

        def view() -> str:
            site.write()
            committed.set()
            may_leave.wait(30)
            return "done"

        site.app.add_url_rule("/view", "view", view)

        def ask(path: str) -> None:
            answers[path] = said(pin_of(site.client().get(path)))

        early = threading.Thread(target=ask, args=("/view",))
        early.start()
        committed.wait(30)
        ask("/write")
        may_leave.set()
        early.join(30)
        assert answers["/view"] >= answers["/write"]

    @pytest.mark.parametrize("path", ["/write", "/marked"])
    @pytest.mark.parametrize("order", ORDERS)
    def test_never_back(
        self, site: Site, clock: FakeClock, order: str, path: str
    ) -> None:
        """A worker whose clock is behind sets no earlier pin than it was brought."""

        @use_master_database
        def marked() -> str:
            site.write()
            return "done"

        site.app.add_url_rule("/marked", "marked", marked, methods=["POST"])
        around(site, [buffers, renews], order)
        ahead = clock.now + 0.9
        headers = {
            "Cookie": f"{COOKIE}={saying(clock.now - 2)}; {COOKIE}={saying(ahead)}"
        }
        client = site.app.test_client(use_cookies=False)
        told = said(pin_of(client.post(path, headers=headers)))
        assert told == pytest.approx(ahead, abs=0.001)

    @pytest.mark.parametrize("later", [-3, 2, 3600])
    def test_of_now(self, site: Site, clock: FakeClock, later: float) -> None:
        """One that is older, or from the future, is replaced by this moment."""
        headers = {"Cookie": f"{COOKIE}={saying(clock.now + later)}"}
        client = site.app.test_client(use_cookies=False)
        told = said(pin_of(client.post("/write", headers=headers)))
        assert told == pytest.approx(clock.now, abs=0.001)


# --- without a response -----------------------------------------------------------


class Socket:
    """A connection whose events are requests over its handshake's environment."""

    def __init__(self, site: Site, *, upgrade: bool, through: bool) -> None:
        self.site = site
        headers = Headers({"Upgrade": "WebSocket"} if upgrade else {})
        self.environ = EnvironBuilder(path="/socket.io/", headers=headers).get_environ()
        if not through:
            return

        def serves_sockets(_app: Any) -> Any:
            def middleware(environ: Environ, start: Any) -> Any:
                start("200 OK", [])
                return [b""]

            return middleware

        around(site, [serves_sockets], "before")
        response = Client(site.app).open(self.environ)
        self.environ = response.request.environ

    def event(self, work: Callable[[], Any]) -> Any:
        """Return what an event's handler does, in a thread of its own."""

        def handle() -> Any:
            with self.site.app.request_context(self.environ):
                return work()

        with ThreadPoolExecutor(1) as executor:
            return executor.submit(handle).result(30)


sockets = pytest.mark.parametrize(
    ("upgrade", "through"), [(True, True), (True, False), (False, True), (False, False)]
)


class TestSockets:
    """Many requests over one connection, and no response to any."""

    @sockets
    def test_sees_its_write(
        self,
        build: Build,
        clock: FakeClock,
        caplog: pytest.LogCaptureFixture,
        upgrade: bool,
        through: bool,
    ) -> None:
        """The next events see an event's write for the time of a pin; it is logged."""
        site = build(REPLICATED_PIN_SECONDS=4)
        socket = Socket(site, upgrade=upgrade, through=through)
        other = Socket(site, upgrade=upgrade, through=False)
        assert socket.event(site.who) in REPLICAS
        for _ in range(3):
            socket.event(site.write)
            assert socket.event(site.who) == "master"
            assert other.event(site.who) in REPLICAS
            clock.now += 3.9
            assert socket.event(site.who) == "master"
            clock.now += 0.2
            assert socket.event(site.who) in REPLICAS
        (record,) = caplog.records
        assert record.levelname == "WARNING"
        assert "'(no endpoint)' committed a write" in record.message
        assert "using_master()" in record.message

    @sockets
    def test_drivers_connection(
        self, build: Build, upgrade: bool, through: bool
    ) -> None:
        """An event that asks for the driver's connection counts as one that writes."""
        site = build()
        socket = Socket(site, upgrade=upgrade, through=through)

        def work() -> None:
            raw = site.db.engine.raw_connection()
            raw.close()

        socket.event(work)
        assert socket.event(site.who) == "master"

    def test_off(self, build: Build, caplog: pytest.LogCaptureFixture) -> None:
        """Without pins nothing is remembered, and nothing said."""
        site = build(REPLICATED_PIN_SECONDS=0)
        socket = Socket(site, upgrade=True, through=True)
        socket.event(site.write)
        assert socket.event(site.who) in REPLICAS
        assert caplog.records == []

    def test_first_words(self, site: Site, caplog: pytest.LogCaptureFixture) -> None:
        """A write in a handshake that has a response pins by it."""
        socket = Socket(site, upgrade=False, through=False)

        def serves_sockets(app: Any) -> Any:
            def middleware(environ: Environ, start: Any) -> Any:
                socket.environ = environ
                socket.event(site.write)
                start("200 OK", [])
                return [b""]

            return middleware

        around(site, [serves_sockets], "before")
        assert len(pins(site.client().get("/socket.io/"))) == 1
        assert socket.event(site.who) == "master"
        assert caplog.records == []

    def test_reads_only(self, site: Site) -> None:
        """Events that write nothing read from replicas, each from any."""
        socket = Socket(site, upgrade=True, through=True)
        assert {socket.event(site.who) for _ in range(6)} == set(REPLICAS)


class TestTold:
    """What no response can tell is said in the log, once for each endpoint."""

    def stream(self, site: Site, name: str) -> None:
        """Add a view that writes while its body is sent."""

        def view() -> Response:
            def body() -> Iterator[str]:
                yield "one"
                site.write()

            return Response(stream_with_context(body()))

        site.app.add_url_rule(f"/{name}", name, view)

    def test_once(self, site: Site, caplog: pytest.LogCaptureFixture) -> None:
        """It is said once for each endpoint, however often it happens."""
        for name in ("first", "second"):
            self.stream(site, name)
        for _ in range(3):
            for name in ("first", "second"):
                site.client().get(f"/{name}").get_data()
        told = [record.message.split()[1] for record in caplog.records]
        assert told == ["'first'", "'second'"]

    def test_bounded(self, site: Site, caplog: pytest.LogCaptureFixture) -> None:
        """A program that makes endpoints as it runs is not remembered for ever."""
        state = site.app.extensions[STATE]
        for number in range(3000):
            state.responses.warn_missed(OVER_WEBSOCKET, f"endpoint {number}")
        assert len(caplog.records) == 1000

    def test_in_time(self, site: Site, caplog: pytest.LogCaptureFixture) -> None:
        """A write that its response tells of is no news."""

        def write(response: Response) -> Response:
            site.write()
            return response

        site.app.after_request(write)
        assert len(pins(site.client().post("/write"))) == 1
        assert caplog.records == []

    def test_before_the_first_part(
        self, site: Site, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A body whose view has written is in time until its first part is there."""

        def body() -> Iterator[str]:
            site.write()
            yield "one"

        def view() -> Response:
            site.write()
            return Response(stream_with_context(body()))

        site.app.add_url_rule("/view", "view", view)
        assert len(pins(site.client().get("/view"))) == 1
        assert caplog.records == []

    def test_a_body_that_fails(self, site: Site) -> None:
        """One that raises before its first part is closed, and the server hears it."""
        closed: list[str] = []

        def body() -> Iterator[str]:
            yield str(site.folder.joinpath("nothing").read_text())

        def view() -> Response:
            site.write()
            response = Response(body())
            response.call_on_close(lambda: closed.append("closed"))
            return response

        site.app.add_url_rule("/view", "view", view)
        with pytest.raises(FileNotFoundError):
            site.client().get("/view")
        assert closed == ["closed"]

    @pytest.mark.parametrize("parts", [[], [b""], [b"one", b"two"]])
    def test_any_body(self, site: Site, parts: list[bytes]) -> None:
        """A body may have no part; a HEAD has none either."""

        def view() -> Response:
            site.write()
            return Response(iter(parts))

        site.app.add_url_rule("/view", "view", view)
        response = site.client().get("/view")
        assert response.data == b"".join(parts)
        assert len(pins(response)) == 1
        assert len(pins(site.client().head("/view"))) == 1

    @pytest.mark.parametrize("setting", ["PROPAGATE_EXCEPTIONS", "TESTING"])
    @pytest.mark.parametrize("writes", [True, False])
    def test_raised(
        self,
        build: Build,
        caplog: pytest.LogCaptureFixture,
        setting: str,
        writes: bool,
    ) -> None:
        """An error that leaves the application takes a pin away; that is said."""
        config: Environ = {setting: True}
        site = build(**config)
        self.fail(site, writes=writes)
        around(site, [answers_errors], "after")
        for _ in range(2):
            response = site.client().put("/order/7")
            assert (response.status_code, pins(response)) == (502, [])
        told = [record.message for record in caplog.records]
        assert len(told) == writes
        assert all("'order' committed a write and then raised" in one for one in told)

    def test_raised_and_answered_inside(
        self, build: Build, caplog: pytest.LogCaptureFixture
    ) -> None:
        """One that a middleware answers within the extension is no news: it pins."""
        site = build(PROPAGATE_EXCEPTIONS=True)
        self.fail(site, writes=True)
        around(site, [answers_errors], "before")
        client = site.client()
        response = client.put("/order/7")
        assert (response.status_code, len(pins(response))) == (502, 1)
        assert client.get("/").text == "master"
        assert caplog.records == []

    def fail(self, site: Site, *, writes: bool) -> None:
        """Add a view that raises, after a write or without one."""

        def order(number: int) -> str:
            if writes:
                site.write()
            raise LookupError(number)

        site.app.add_url_rule("/order/<int:number>", "order", order, methods=["PUT"])

    def test_commit_at_the_end(
        self, site: Site, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A commit in teardown_appcontext pins where the headers still wait for it."""

        def commit(_: object) -> None:
            if not site.app.config.get("WROTE"):
                site.app.config["WROTE"] = True
                site.db.session.execute(sa.insert(site.entry).values(text="late"))
                site.db.session.commit()

        site.app.teardown_appcontext(commit)
        around(site, [holds], "before")
        assert len(pins(site.client().get("/"))) == 1
        assert caplog.records == []


def test_a_broken_store(build: Build, caplog: pytest.LogCaptureFixture) -> None:
    """What a store raises fails no response, wherever that leaves."""

    class Broken:
        def remember(self, response: Response, token: str) -> None:
            raise OSError

        def recall(self, request: Any) -> str:
            return ""

    site = build(REPLICATED_PIN_STORE=Broken())
    around(site, [buffers], "before")
    assert site.client().post("/write").status_code == 200
    assert "the pin store Broken fails" in caplog.text
