"""Decorators on views, and what is stronger than what."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import pytest
from flask import Blueprint
from flask.views import MethodView, View

from flask_replicated import (
    changes_database,
    use_master_database,
    use_slave_database,
    using_master,
    using_slave,
)
from flask_replicated.blocks import decorator_order
from flask_replicated.blocks.decorator_order import _decorated
from tests.support import REPLICAS, Build, Site, build_fixture

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
R = TypeVar("R")

build = build_fixture


@pytest.fixture
def site(build: Build) -> Site:
    """Give an application with three replicas."""
    return build()


DECORATORS = [
    (use_master_database, "GET", "primary"),
    (changes_database, "GET", "primary"),
    (use_slave_database, "POST", "replica"),
    (using_master(), "GET", "primary"),
    (using_slave(), "POST", "replica"),
]
decorated = pytest.mark.parametrize(
    ("decorator", "method", "role"),
    DECORATORS,
    ids=["use_master", "changes", "use_slave", "using_master()", "using_slave()"],
)


def wrapping(view: Callable[P, R]) -> Callable[P, R]:
    """Decorate as most libraries do."""

    @functools.wraps(view)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        return view(*args, **kwargs)

    return wrapper


def bare(view: Callable[P, R]) -> Callable[P, R]:
    """Decorate as careless libraries do: every attribute is lost."""

    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        return view(*args, **kwargs)

    return wrapper


def ask(site: Site, view: Any, method: str) -> str:
    """Return what a view answers to a request."""
    site.app.add_url_rule("/view", "view", view, methods=["GET", "POST"])
    response = site.client().open("/view", method=method)
    assert response.status_code == 200, response.text
    return response.text


@decorated
class TestDecorators:
    """Each decorator, in each place where a decorator can stand."""

    def test_function(self, site: Site, decorator: Any, method: str, role: str) -> None:
        """A decorated function reads where its decorator says."""
        assert ask(site, decorator(site.role), method) == role

    @pytest.mark.parametrize("other", [wrapping, bare])
    def test_under_another(
        self, site: Site, decorator: Any, method: str, role: str, other: Any
    ) -> None:
        """A decorator counts beneath another one, with or without functools.wraps."""
        assert ask(site, other(decorator(site.role)), method) == role

    @pytest.mark.parametrize("other", [wrapping, bare])
    def test_above_another(
        self, site: Site, decorator: Any, method: str, role: str, other: Any
    ) -> None:
        """A decorator counts above another one, with or without functools.wraps."""
        assert ask(site, decorator(other(site.role)), method) == role

    def test_view_class(
        self, site: Site, decorator: Any, method: str, role: str
    ) -> None:
        """A View reads where its list of decorators says."""

        class Page(View):
            methods = ("GET", "POST")
            decorators = (bare, decorator, wrapping)  # type: ignore[assignment]  # any sequence will do

            def dispatch_request(self) -> str:
                return site.role()

        assert ask(site, Page.as_view("view"), method) == role

    def test_method_view(
        self, site: Site, decorator: Any, method: str, role: str
    ) -> None:
        """Every method of a MethodView reads where its list of decorators says."""

        class Page(MethodView):
            decorators = (decorator,)  # type: ignore[assignment]  # any sequence will do

            def get(self) -> str:
                return site.role()

            post = get

        assert ask(site, Page.as_view("view"), method) == role

    def test_one_method(
        self, site: Site, decorator: Any, method: str, role: str
    ) -> None:
        """A decorator on one method of a MethodView leaves the others alone."""

        class Page(MethodView):
            def get(self) -> str:
                return site.role()

            def post(self) -> str:
                return site.role()

        marked = method.lower()
        setattr(Page, marked, decorator(getattr(Page, marked)))
        assert ask(site, Page.as_view("view"), method) == role
        other = "GET" if method == "POST" else "POST"
        free = {"GET": "replica", "POST": "primary"}[other]
        assert site.client().open("/view", method=other).text == free

    def test_async_view(
        self, site: Site, decorator: Any, method: str, role: str
    ) -> None:
        """A decorated coroutine function reads where its decorator says."""

        async def page() -> str:
            before = site.role()
            await asyncio.sleep(0)
            assert site.role() == before
            return before

        assert ask(site, decorator(page), method) == role

    def test_blueprint(
        self, site: Site, decorator: Any, method: str, role: str
    ) -> None:
        """A decorated view of a blueprint reads where its decorator says."""
        blueprint = Blueprint("part", __name__, url_prefix="/part")
        page = decorator(site.role)
        blueprint.add_url_rule("/page", "page", page, methods=["GET", "POST"])
        site.app.register_blueprint(blueprint)
        assert site.client().open("/part/page", method=method).text == role

    def test_outside_a_request(
        self, site: Site, decorator: Any, method: str, role: str
    ) -> None:
        """A decorated function that is called without a request is heard too."""
        with site.app.app_context():
            assert decorator(site.role)() == role
            assert site.role() == "primary"

    def test_names(self, site: Site, decorator: Any, method: str, role: str) -> None:
        """A decorated function keeps its name, its docstring and its arguments."""

        def page(one: int, *, two: int) -> int:
            """Add."""
            return one + two

        marked = decorator(page)
        assert (marked.__name__, marked.__doc__) == ("page", "Add.")
        assert marked(1, two=2) == 3


class TestStrength:
    """What is stronger than what."""

    def test_before_request(self, site: Site) -> None:
        """A hook before a decorated view already reads where the view will."""
        site.app.before_request(lambda: (site.who(), None)[1])
        assert ask(site, changes_database(site.who), "GET") == "master"
        assert site.seen == ["master", "master"]

    def test_head_of_a_method_view(self, site: Site) -> None:
        """HEAD on a MethodView without head() obeys the decorator of get()."""

        class Page(MethodView):
            @use_master_database
            def get(self) -> str:
                return site.who()

        site.app.add_url_rule("/page", view_func=Page.as_view("page"))
        site.client().head("/page")
        assert site.seen == ["master"]

    def test_decorator_beats_kill_switch(self, build: Build) -> None:
        """A decorator may ask for a replica though AUTO_READ_ON_SLAVE is off."""
        site = build(AUTO_READ_ON_SLAVE=False)
        assert ask(site, use_slave_database(site.who), "GET") in REPLICAS

    def test_decorator_beats_pin(self, site: Site) -> None:
        """A view decorated for replicas reads from one though the client wrote."""
        site.app.add_url_rule("/any", "any", use_slave_database(site.role))
        client = site.client()
        client.post("/write")
        assert client.get("/").text == "master"
        assert client.get("/any").text == "replica"

    def test_latch_beats_decorator(self, site: Site) -> None:
        """A write in a view decorated for replicas goes to the primary."""

        def page() -> str:
            before = site.role()
            site.write()
            return f"{before} {site.role()}"

        assert ask(site, use_slave_database(page), "POST") == "replica primary"
        assert site.entries() == ["written"]

    def test_block_beats_latch(self, site: Site) -> None:
        """A block may ask for a replica though the request has written."""

        def page() -> str:
            site.write()
            with using_slave():
                inside = site.role()
            return f"{inside} {site.role()}"

        assert ask(site, page, "POST") == "replica primary"

    def test_block_beats_decorator(self, site: Site) -> None:
        """A block in a decorated view wins, for as long as it lasts."""

        def page() -> str:
            with using_slave():
                inside = site.role()
            return f"{inside} {site.role()}"

        assert ask(site, changes_database(page), "GET") == "replica primary"

    def test_decorated_helper(self, site: Site) -> None:
        """A view may be called by another view, and takes its mark along."""

        def page() -> str:
            before = site.role()
            return f"{before} {changes_database(site.role)()}"

        assert ask(site, page, "GET") == "replica primary"


def plain() -> str:
    """Answer."""
    return "plain"


fresh = use_master_database(plain)

WRITTEN: dict[str, Any] = {
    "@use_master_database": use_master_database,
    "@changes_database": changes_database,
    "@use_slave_database": use_slave_database,
    "@using_master()": using_master(),
    "@using_slave()": using_slave(),
}


class TestAboveTheRoute:
    """A decorator above ``@app.get(...)``, which Flask does not see."""

    @pytest.mark.parametrize("written", WRITTEN)
    def test_warning(
        self, site: Site, written: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It has no effect, and a warning names the view and the right order, once."""

        def page() -> str:
            return site.role()

        WRITTEN[written](site.app.get("/page")(page))
        for _ in range(2):
            assert site.get("/page") == "replica"
        (record,) = caplog.records
        assert record.levelname == "WARNING"
        for word in ("'page'", written, "@app.get(...), at the top"):
            assert word in record.message

    def test_blueprint(self, site: Site, caplog: pytest.LogCaptureFixture) -> None:
        """It is the same for the route of a blueprint, and between decorators."""
        blueprint = Blueprint("part", __name__)

        @wrapping
        @changes_database
        @blueprint.get("/page")
        @wrapping
        def page() -> str:
            return site.role()

        site.app.register_blueprint(blueprint)
        assert site.get("/page") == "replica"
        (record,) = caplog.records
        assert "'part.page'" in record.message

    @pytest.mark.parametrize("other", [wrapping, bare])
    def test_below_the_route(
        self, site: Site, other: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """In the right order nothing is logged."""

        def page() -> str:
            return site.role()

        site.app.get("/page")(other(changes_database(other(page))))
        site.get("/page")
        assert caplog.records == []

    def test_view_of_its_own(
        self, site: Site, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A function may be one view as it is, and another one decorated."""

        def page() -> str:
            return site.role()

        site.app.add_url_rule("/any", "any", page)
        site.app.add_url_rule("/fresh", "fresh", wrapping(changes_database(page)))
        assert (site.get("/any"), site.get("/fresh")) == ("replica", "primary")
        assert caplog.records == []

    def test_names(self, site: Site, caplog: pytest.LogCaptureFixture) -> None:
        """So may a function whose decorated version has a name of its own."""
        site.app.before_request(lambda: (site.who(), None)[1])
        site.app.add_url_rule("/plain", "plain", plain)
        assert site.get("/plain") == fresh() == "plain"
        assert caplog.records == []

    def test_forgotten(self) -> None:
        """Functions that are gone are not remembered."""
        gc.collect()
        before = len(_decorated)
        kept = [lambda: None for _ in range(3)]
        decorated = [changes_database(one) for one in kept]
        assert len(_decorated) == before + 3
        del kept, decorated
        gc.collect()
        assert len(_decorated) == before

    def test_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A program that decorates functions as it runs does not fill the memory."""
        monkeypatch.setattr(decorator_order, "_MAX_NOTED", len(_decorated))
        kept = [lambda: None for _ in range(3)]
        decorated = [changes_database(one) for one in kept]
        assert len(_decorated) == decorator_order._MAX_NOTED
        del decorated


class TestParentheses:
    """``using_master`` and ``using_slave`` without them."""

    @pytest.mark.parametrize("opener", [using_master, using_slave])
    def test_decorator(self, opener: Any) -> None:
        """As a decorator of whatever kind, it says what to write at once."""

        def plain(*_: object) -> None: ...

        async def later() -> None: ...

        class View:
            def get(self) -> None: ...

        name = opener.__name__
        for what in (plain, later, View, View.get, View().get, lambda: None):
            with pytest.raises(TypeError, match=rf"write '@{name}\(\)'"):
                opener(what)
        kinds: list[Any] = [staticmethod, classmethod, property]
        for wrapped in (kind(plain) for kind in kinds):
            with pytest.raises(TypeError, match=rf"write '@{name}\(\)'"):
                opener(wrapped)

    @pytest.mark.parametrize("opener", [using_master, using_slave])
    def test_block(self, opener: Any) -> None:
        """As a block too, before anything in it runs."""
        with (
            pytest.raises(TypeError, match=rf"with {opener.__name__}\(\):"),
            opener,
        ):
            raise AssertionError

    @pytest.mark.parametrize(
        "decorator", [use_master_database, changes_database, use_slave_database]
    )
    def test_of_a_view_decorator(self, decorator: Any) -> None:
        """A view decorator that is given no view says how it is written."""
        name = decorator.__name__
        methods: list[dict[str, Any]] = [{}, {"methods": ["POST"]}]
        for given in methods:
            with pytest.raises(TypeError, match=rf"takes no .*: write '@{name}'"):
                decorator(**given)
        assert decorator(view=lambda: 7)() == 7
        assert list(inspect.signature(decorator).parameters) == ["view"]

    @pytest.mark.parametrize("pin", ["no", 0, None, "False"])
    def test_pin_is_true_or_false(self, pin: Any) -> None:
        """What only looks like False would pin, or the reverse."""
        with pytest.raises(TypeError, match=r"using_master\(pin=.* True or False"):
            using_master(pin=pin)

    @pytest.mark.parametrize("opener", [using_master, using_slave])
    def test_described(self, opener: Any) -> None:
        """It looks as a function does: name, text, and no argument that is needed."""
        assert opener.__name__ in {"using_master", "using_slave"}
        assert "inside this block" in (inspect.getdoc(opener) or "")
        inspect.signature(opener).bind()
