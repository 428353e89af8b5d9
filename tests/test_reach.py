"""How far a request's decision reaches: contexts, sessions, threads, hooks, bodies."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
from flask import Blueprint, Response, copy_current_request_context, request
from flask import stream_with_context as streamed
from flask.views import MethodView, View
from werkzeug.utils import cached_property, import_string

from flask_replicated import changes_database, using_master
from flask_replicated.routing import decider, state
from flask_replicated.routing.request_state import RequestState
from tests.support import REPLICAS, Build, Site, answer, build_fixture, core, pin_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flask.typing import ResponseReturnValue

    from flask_replicated.routing.decision import Decision
    from flask_replicated.routing.state import AppState

build = build_fixture


@pytest.fixture
def site(build: Build) -> Site:
    """Give an application with three replicas."""
    return build()


def in_a_thread(function: Callable[[], Any]) -> Any:
    """Return what a function returns in another thread."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join(30)
    return results[0]


class TestSessions:
    """What a request has done belongs to the request."""

    def test_two_sessions(self, site: Site) -> None:
        """A second session of a request has its replica, and then its latch."""

        def view() -> str:
            with site.db.session.session_factory() as other:
                name = other.scalar(site.db.select(site.marker.name))
                assert site.who() == name
                other.rollback()
                site.write()
                return str(other.scalar(site.db.select(site.marker.name)))

        assert answer(site, view) == "master"

    def test_session_of_two_requests(self, site: Site) -> None:
        """A session that outlives its request is bound by the next one alone."""
        with site.app.app_context():
            session = site.db.session.session_factory()

        def who() -> str:
            session.rollback()
            return str(session.scalar(site.db.select(site.marker.name)))

        with site.app.test_request_context(method="POST"):
            assert who() == "master"
        with site.app.test_request_context():
            assert who() in REPLICAS
            site.write()
            assert who() == "master"
        with site.app.test_request_context():
            assert who() in REPLICAS
        with site.app.app_context():
            assert who() == "master"
        session.close()

    def test_deep_contexts(self, site: Site) -> None:
        """A write three application contexts down latches the request."""

        def view() -> str:
            first = site.who()
            with site.app.app_context(), site.app.app_context():
                assert site.who() == first
                with site.app.app_context():
                    site.write()
                assert core(site.db.engine) == "master"
            site.db.session.rollback()
            return site.who()

        assert answer(site, view) == "master"


class TestThreads:
    """Threads and tasks take nothing along that they were not given."""

    def test_bare_thread(self, site: Site) -> None:
        """A thread that a GET starts has no request: it uses the primary."""

        def work() -> str:
            with site.app.app_context():
                return site.who()

        def view() -> str:
            return f"{site.role()} {in_a_thread(work)}"

        assert answer(site, view) == "replica master"

    def test_copied_request(self, site: Site) -> None:
        """A thread that was given the request shares its replica and its latch."""

        def view() -> str:
            first = site.who()

            @copy_current_request_context
            def work() -> str:
                same = site.who()
                site.write()
                site.db.session.remove()
                return same

            assert in_a_thread(work) == first
            site.db.session.rollback()
            return site.who()

        assert answer(site, view) == "master"

    def test_first_at_once(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        """Two threads that are the first to ask for a request's state share it."""
        found: list[object] = []

        def made(app: AppState, known: Decision | None) -> RequestState:
            if not found:
                found.append(None)
                found[0] = app.request_state()  # as another thread does meanwhile
            return RequestState(app, known)

        monkeypatch.setattr(state, "RequestState", made)
        with site.app.test_request_context():
            assert state.current_request_state() is found[0]

    def test_latched_while_decided(
        self, site: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A latch by another thread, at the first decision, is not the endpoint's."""
        running: list[RequestState | None] = []

        def marked_role(*_: object) -> None:
            running.append(state.current_request_state())
            if len(running) == 1 and running[0]:
                running[0].latch("another thread has written")

        monkeypatch.setattr(decider, "marked_role", marked_role)
        assert site.get() == "master"
        assert len(running) == 2
        assert site.get() in REPLICAS

    def test_requests_at_once(self, site: Site) -> None:
        """Requests of several threads neither share nor leak a latch."""
        both_inside = threading.Barrier(2, timeout=30)

        def view() -> str:
            if request.args:
                site.write()
            both_inside.wait()
            return site.role()

        site.app.add_url_rule("/view", "view", view)
        answers: dict[str, str] = {}

        def ask(path: str) -> None:
            answers[path] = site.client().get(path).text

        threads = [
            threading.Thread(target=ask, args=(p,)) for p in ("/view", "/view?write=1")
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert answers == {"/view": "replica", "/view?write=1": "primary"}


class TestAsync:
    """Views that are coroutines."""

    def test_latch(self, site: Site) -> None:
        """A write before an await latches what comes after it."""

        async def view() -> str:
            before = site.role()
            site.write()
            await asyncio.sleep(0)
            return f"{before} {site.role()}"

        assert answer(site, view) == "replica primary"

    def test_block_over_await(self, site: Site) -> None:
        """A block lasts over an await, and is not taken along by other tasks."""

        async def child() -> str:
            return site.role()

        async def view() -> str:
            with using_master():
                children = await asyncio.gather(child(), child())
                return " ".join([site.role(), *children])

        assert answer(site, view) == "primary replica replica"

    def test_hooks(self, site: Site) -> None:
        """Hooks and error handlers that are coroutines share the request's replica."""

        async def before() -> None:
            site.who()

        async def handle(_: Exception) -> str:
            return site.who()

        async def view() -> str:
            raise KeyError(site.who())

        site.app.before_request(before)
        site.app.register_error_handler(KeyError, handle)
        served = answer(site, view)
        assert site.seen == [served] * 3
        assert served in REPLICAS


class TestStreaming:
    """Bodies that are made after the headers have left."""

    def stream(self, site: Site, *work: Callable[[], object]) -> Response:
        """Answer with a body that works and says who serves."""

        def body() -> Iterator[str]:
            for step in work:
                step()
                yield f"{site.role()} "

        return Response(streamed(body()))

    def test_latched_before(self, site: Site) -> None:
        """A body reads from the primary if its view has written."""

        def view() -> Response:
            site.write()
            return self.stream(site, lambda: None)

        assert answer(site, view).strip() == "primary"

    def test_write(self, site: Site, caplog: pytest.LogCaptureFixture) -> None:
        """A write in a body latches it; that it cannot pin is said once a write."""

        def view() -> Response:
            return self.stream(site, lambda: None, site.write, lambda: None)

        site.app.add_url_rule("/view", "view", view)
        response = site.client().get("/view")
        assert response.text == "replica primary primary "
        assert site.entries() == ["written"]
        assert pin_of(response) is None
        assert ["'view'" in record.message for record in caplog.records] == [True]

    def test_write_without_pins(
        self, build: Build, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Where pinning is off, nothing is lost and nothing is said."""
        site = build(REPLICATED_PIN_SECONDS=0)
        answer(site, lambda: self.stream(site, site.write))
        assert site.entries() == ["written"]
        assert not caplog.records

    def test_abandoned(self, site: Site) -> None:
        """A client that leaves in mid-stream leaves no connection behind."""

        def view() -> Response:
            return self.stream(site, lambda: None, site.write, lambda: None)

        site.app.add_url_rule("/view", "view", view)
        response = site.client().get("/view", buffered=False)
        next(iter(response.response))
        response.close()
        with site.app.app_context():
            pools: list[Any] = [engine.pool for engine in site.db.engines.values()]
        assert [pool.checkedout() for pool in pools] == [0] * len(pools)


class TestHooks:
    """Functions around the view."""

    def test_write_before(self, site: Site) -> None:
        """A write in a before_request function latches the view."""
        site.app.before_request(site.write)
        response = site.client().get("/")
        assert response.text == "master"
        assert pin_of(response) is not None

    @pytest.mark.parametrize("hook", ["teardown_request", "teardown_appcontext"])
    def test_write_at_the_end(
        self, site: Site, hook: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A write in a teardown function reaches the primary, and the log."""
        wrote: list[None] = []  # once: the contexts of this test end as well

        def write(_: object) -> None:
            if not wrote:
                wrote.append(None)
                site.write()

        getattr(site.app, hook)(write)
        response = site.client().get("/")
        assert response.text in REPLICAS
        assert site.entries() == ["written"]
        assert pin_of(response) is None
        # By the end of the application context the request may be gone.
        name = "who" if hook == "teardown_request" else "(after the request)"
        (said,) = (record.message for record in caplog.records)
        assert f"{name!r} committed a write after its response had left" in said

    def test_error_page_after_a_write(self, site: Site) -> None:
        """The error page of a view that has written reads from the primary."""

        def view() -> str:
            site.write()
            raise KeyError

        site.app.register_error_handler(KeyError, lambda _: site.who())
        assert answer(site, view) == "master"

    def test_error_page_writes(self, site: Site) -> None:
        """An error page may write, in a GET too, and pins."""

        def handle(_: Exception) -> ResponseReturnValue:
            site.write("report")
            return site.who(), 404

        site.app.register_error_handler(404, handle)
        response = site.client().get("/no-such-page")
        assert response.text == "master"
        assert pin_of(response) is not None
        assert site.entries() == ["report"]

    def test_wrong_method(self, site: Site) -> None:
        """The page for a wrong method is decided by that method."""
        site.app.register_error_handler(405, lambda _: site.role())
        site.app.add_url_rule("/view", "view", lambda: "", methods=["PUT"])
        assert site.client().get("/view").text == "replica"
        assert site.client().post("/view").text == "primary"


class TestTestClient:
    """Test suites that keep an application context pushed."""

    def test_inside_a_context(self, site: Site) -> None:
        """Requests are decided one by one, though all share one session."""
        with site.app.app_context():
            assert site.who() == "master"
            client = site.client()
            assert client.get("/").text in REPLICAS
            assert client.post("/").text == "master"
            assert site.client().get("/").text in REPLICAS
            site.write("by the test")
            assert site.who() == "master"
            assert client.post("/write").text == "master"
            assert client.get("/").text == "master"
            assert site.client().get("/").text in REPLICAS
        assert site.entries() == ["by the test", "written"]

    def test_kept_context(self, site: Site) -> None:
        """``with client:`` keeps the request, and the reads of the test with it."""
        with site.client() as client:
            served = client.get("/").text
            assert site.who() == served
        with site.client() as client:
            client.post("/write")
            assert site.who() == "master"


class LazyView:
    """A view that is imported when it is first called, as Flask's docs show it."""

    def __init__(self, name: str) -> None:
        self.__module__, _, self.__name__ = name.rpartition(".")
        self.name = name

    @cached_property
    def view(self) -> Callable[[], str]:
        """The view itself."""
        found: Callable[[], str] = import_string(self.name)
        return found

    def __call__(self) -> str:
        """Import the view, and call it."""
        return self.view()


class TestViews:
    """Views of every kind, in places that nobody decorates."""

    def test_lazily_imported(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        """A decorator that is found only when the view is called is heard then."""
        marked = changes_database(site.who)
        monkeypatch.setattr(pytest, "lazy_page", marked, raising=False)
        site.app.add_url_rule("/lazy", "lazy", LazyView("pytest.lazy_page"))
        assert [site.get("/lazy") for _ in range(2)] == ["master"] * 2

    def test_nested_blueprints(self, site: Site) -> None:
        """Views, hooks and error pages of nested blueprints share one replica."""
        outer, inner = Blueprint("outer", __name__), Blueprint("inner", __name__)

        def fail() -> str:
            raise KeyError(site.who())

        inner.add_url_rule("/page", "page", fail)
        inner.before_request(lambda: (site.who(), None)[1])
        outer.before_request(lambda: (site.who(), None)[1])
        outer.register_error_handler(KeyError, lambda _: site.who())
        outer.register_blueprint(inner, url_prefix="/inner")
        site.app.register_blueprint(outer, url_prefix="/outer")
        served = site.get("/outer/inner/page")
        assert site.seen == [served] * 4
        assert served in REPLICAS

    def test_undecorated_classes(self, site: Site) -> None:
        """Class-based views are decided by their method, and latch."""

        class Page(View):
            methods = ("GET", "POST")

            def dispatch_request(self) -> str:
                """Say who serves."""
                return site.role()

        class Item(MethodView):
            init_every_request = False

            def get(self) -> str:
                """Read, write, and read again."""
                before = site.role()
                site.write()
                return f"{before} {site.role()}"

        site.app.add_url_rule("/page", view_func=Page.as_view("page"))
        site.app.add_url_rule("/item", view_func=Item.as_view("item"))
        assert site.get("/page") == "replica"
        assert site.client().post("/page").text == "primary"
        assert [site.get("/item") for _ in range(2)] == ["replica primary"] * 2
