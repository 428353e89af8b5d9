"""``flask replicated explain``, and the panel of Flask-DebugToolbar."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from flask.views import MethodView
from sqlalchemy import select

from flask_replicated import use_master_database, use_slave_database
from tests.support import Build, Site, break_file, build_fixture

if TYPE_CHECKING:
    from click.testing import Result

build = build_fixture


@pytest.fixture
def site(build: Build) -> Site:
    """Give an application with two replicas, whose views must not run."""
    site = build(("slave_1", "slave_2"))
    add_shop(site)
    return site


def add_shop(site: Site) -> None:
    """Add views that fail if they are called."""

    def fail(**_values: object) -> str:
        raise AssertionError("the view was run")

    class Basket(MethodView):
        init_every_request = False

        def get(self) -> str:
            return fail()

        @use_slave_database
        def post(self) -> str:
            return fail()

    add = site.app.add_url_rule
    add("/orders/<int:number>", "orders", fail)
    add("/pay", "pay", use_master_database(fail))
    add("/basket/", "basket", Basket.as_view("basket"))
    site.app.before_request(fail)


def ask(site: Site, *words: str) -> Result:
    """Run the command."""
    return site.app.test_cli_runner().invoke(args=["replicated", "explain", *words])


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/orders/7?page=2", ("orders", "replica", "GET only reads")),
        ("get", "http://localhost/orders/7", ("orders", "replica", "GET only reads")),
        ("HEAD", "/orders/7", ("orders", "replica", "HEAD only reads")),
        ("GET", "/pay", ("pay", "primary", "the view is decorated")),
        ("GET", "/basket/", ("basket", "replica", "GET only reads")),
        ("POST", "/basket/", ("basket", "replica", "the view is decorated")),
        ("POST", "/write", ("write", "primary", "POST may write")),
    ],
)
def test_decisions(
    site: Site, method: str, path: str, expected: tuple[str, str, str]
) -> None:
    """URL rule, view and method decide; neither the view nor a hook is run."""
    result = ask(site, method, path, "--json")
    found = json.loads(result.stdout)
    assert (found["endpoint"], found["role"], found["reason"]) == expected
    serve = {"": ["slave_1", "slave_2"]} if expected[1] == "replica" else {}
    assert (found["serve"], result.exit_code) == (serve, 0)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("GET", "/nowhere"), 1, "no view answers it: 404 Not Found"),
        (("DELETE", "/pay"), 1, "no view answers it: 405 Method Not Allowed"),
        (("GET", "/basket"), 1, "redirected to http://localhost/basket/"),
        (("/pay", "GET"), 2, "explain GET /orders/7"),
    ],
)
def test_no_view(site: Site, words: tuple[str, str], code: int, said: str) -> None:
    """Where no view answers it says why."""
    result = ask(site, *words)
    assert result.exit_code == code
    assert said in result.output


def test_replicas_that_are_out(site: Site) -> None:
    """It says which replicas would not serve, and what would if none did."""
    break_file(site.folder, "slave_2")
    said = ask(site, "GET", "/orders/7").stdout
    assert "(endpoint 'orders') reads from a replica: GET only reads." in said
    assert "(default): slave_1\n" in said
    assert "not slave_2: " in said
    assert "The view is not run" in said
    break_file(site.folder, "slave_1")
    said = ask(site, "GET", "/orders/7").stdout
    assert "the primary, as no replica does (REPLICATED_FALLBACK = 'master')" in said


def test_settings(build: Build) -> None:
    """The kill switch and the program's own rule count, also one that fails."""
    site = build(("slave_1",), AUTO_READ_ON_SLAVE=False)
    assert "the primary: AUTO_READ_ON_SLAVE is off." in ask(site, "GET", "/").stdout

    def rule(request: Any) -> bool:
        if request.method == "PUT":
            raise LookupError("no user")
        return bool(request.args)

    site = build(("slave_1",), REPLICATED_IS_READ=rule)
    said = ask(site, "POST", "/?q=1").stdout
    assert "a replica: REPLICATED_IS_READ says True." in said
    result = ask(site, "PUT", "/")
    assert "REPLICATED_IS_READ has failed here: LookupError: no user" in result.stdout
    assert result.exit_code == 0


def test_no_replicas(build: Build) -> None:
    """Without replicas there is nothing to decide."""
    said = ask(build(()), "GET", "/").stdout
    assert "no bind of this application has replicas" in said


def test_panel(build: Build) -> None:
    """The panel lists the request's reads, and escapes what it shows."""
    toolbar = pytest.importorskip("flask_debugtoolbar")
    site = build(
        ("slave_1",),
        DEBUG=True,
        DEBUG_TB_PANELS=["flask_replicated.operations.debug_panel.ReplicasPanel"],
    )
    toolbar.DebugToolbarExtension(site.app)
    page = "<html><body>{}</body></html>"

    def view() -> str:
        statement = select(site.marker.name).execution_options(replicated="master")
        site.db.session.scalar(statement)
        return page.format(site.who())

    site.app.add_url_rule("/page", "page", view)
    site.app.add_url_rule("/quiet", "quiet", lambda: page.format("hello"))
    shown = site.get("/page")
    assert "Where this request has read, and why" in shown
    assert "<td>execution_options(replicated=&#39;master&#39;)</td>" in shown
    assert "<td>slave_1</td>" in shown
    assert "<td>GET only reads</td>" in shown
    assert "This request has not read." in site.get("/quiet")
