"""The live page: who sees it, what it shows, and what its buttons do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask, Response, abort, request
from werkzeug.middleware.proxy_fix import ProxyFix

from flask_replicated import ConfigurationError, FlaskReplicated
from flask_replicated.operations import control as control_module
from flask_replicated.operations.control import CONTROL
from flask_replicated.operations.page import blueprint
from flask_replicated.routing.state import STATE
from flask_replicated.system.log_lines import Seldom
from tests.support import Build, Site, break_file, build_fixture, pin_of, sqlite_url

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flask.testing import FlaskClient
    from werkzeug.test import TestResponse

build = build_fixture

SAME_SITE = {"Sec-Fetch-Site": "same-origin"}
SECRET = "hunter2"
WEIGHTS = "A weight is a whole number from 0 up, such as 3."


def paged(
    build: Build,
    guard: Callable[[], bool] | None = lambda: True,
    replicas: Any = ("slave_1", "slave_2", "slave_3"),
    **config: Any,
) -> Site:
    """Return a site with the page."""
    extension = FlaskReplicated()
    site = build(replicas, extension=extension, **config)
    site.app.register_blueprint(extension.page(guard))
    return site


def tokens(page: TestResponse) -> dict[str, str]:
    """Return the hidden fields that a form of the page has for its protection."""
    found = re.search(r'name="(replicated_token)" value="([^"]+)"', page.text)
    assert found is not None
    return {found[1]: found[2]}


def press(
    client: FlaskClient,
    order: str,
    replica: str = "slave_1",
    headers: Mapping[str, str] = SAME_SITE,
    **fields: str,
) -> TestResponse:
    """Send the form of a replica as the page's script does."""
    form = tokens(client.get("/replicated/"))
    form |= {"bind": "", "replica": replica, "order": order} | fields
    accepts = {"Accept": "application/json"}
    return client.post("/replicated/", data=form, headers={**accepts, **headers})


def live(site: Site) -> set[str]:
    """Return the replicas in rotation."""
    extension: FlaskReplicated = site.app.extensions["replicated"]
    with site.app.app_context():
        return set(extension.pool().snapshot().live)


# --- who sees it ---


@pytest.mark.parametrize("found", [False, None, 1, "yes"])
def test_guard_refuses(build: Build, found: Any) -> None:
    """Whom the guard does not admit finds nothing at all: only True opens it."""
    site = paged(build, lambda: found)
    site.app.debug = True
    client = site.client()
    for path in ("/replicated/", "/replicated", "/replicated/static/page.css"):
        assert client.get(path).status_code == 404
    answer = client.post("/replicated/", data={"order": "drain", "replica": "slave_1"})
    assert answer.status_code == 404
    assert "Content-Security-Policy" not in answer.headers
    assert live(site) == {"slave_1", "slave_2", "slave_3"}


@pytest.mark.parametrize("path", ["/replicated", "/replicated/static/page.css"])
@pytest.mark.parametrize(
    "method", ["HEAD", "OPTIONS", "POST", "PUT", "DELETE", "PATCH", "TRACE", "PROPFIND"]
)
@pytest.mark.parametrize("guard", [None, lambda: False])
@pytest.mark.parametrize(
    "headers", [{}, {"Connection": "Upgrade", "Upgrade": "websocket"}]
)
def test_no_method_tells_that_there_is_a_page(
    build: Build, method: str, path: str, guard: Any, headers: dict[str, str]
) -> None:
    """Who is not admitted gets the same answer by any method as where nothing is."""
    client = paged(build, guard).client()
    found, nothing = (
        client.open(one, method=method, headers=headers)
        for one in (path, f"/nothing{path}")
    )
    assert (found.status_code, found.text) == (404, nothing.text)
    assert dict(found.headers) == dict(nothing.headers)
    assert client.open(path.replace("d/", "d//"), method=method).status_code == 404


@pytest.mark.parametrize(
    ("path", "method", "allowed"),
    [
        ("/replicated/", "OPTIONS", "GET, HEAD, POST"),
        ("/replicated/", "PUT", "GET, HEAD, POST"),
        ("/replicated/static/page.css", "POST", "GET, HEAD"),
    ],
)
def test_methods_of_the_page(
    build: Build, path: str, method: str, allowed: str
) -> None:
    """Who is admitted is told which methods there are."""
    answer = paged(build).client().open(path, method=method)
    assert answer.status_code == 405
    assert ", ".join(sorted(answer.headers["Allow"].split(", "))) == allowed


def test_guard_admits(build: Build) -> None:
    """Whom the guard admits sees page and files, with and without the last slash."""
    client = paged(build).client()
    for path in ("/replicated/", "/replicated", "/replicated/static/page.js"):
        with client.get(path) as answer:
            assert answer.status_code == 200


def test_guard_that_waits(build: Build) -> None:
    """A guard may be a coroutine function, and what it raises is raised."""
    pytest.importorskip("asgiref")

    async def guard() -> bool:
        if request.args.get("who") != "ada":
            abort(401)
        return True

    client = paged(build, guard).client()  # type: ignore[arg-type]  # as views may
    assert client.get("/replicated/").status_code == 401
    assert client.get("/replicated/?who=ada").status_code == 200


@pytest.mark.parametrize(
    ("debug", "peer", "headers", "status"),
    [
        (True, "127.0.0.1", {}, 200),
        (True, "::1", {"Host": "[::1]:5000"}, 200),
        (True, "::ffff:127.0.0.1", {"Host": "127.0.0.1:5000"}, 200),
        (False, "127.0.0.1", {}, 404),
        (True, "192.0.2.7", {}, 404),
        (True, "", {}, 404),
        (True, "127.0.0.1", {"X-Forwarded-For": "127.0.0.1"}, 404),
        (True, "192.0.2.7", {"X-Forwarded-For": "127.0.0.1"}, 404),
        (True, "127.0.0.1", {"Forwarded": "for=192.0.2.7"}, 404),
        (True, "127.0.0.1", {"X-Forwarded-Server": "shop.example"}, 404),
        (True, "127.0.0.1", {"Cf-Connecting-Ip": "192.0.2.7"}, 404),
        (True, "127.0.0.1", {"Host": "rebound.example"}, 404),
    ],
)
@pytest.mark.parametrize("proxied", [False, True])
def test_without_a_guard(
    build: Build,
    *,
    debug: bool,
    peer: str,
    headers: Mapping[str, str],
    status: int,
    proxied: bool,
) -> None:
    """Without a guard only this machine is admitted, and only in debug mode."""
    site = paged(build, None)
    site.app.debug = debug
    if proxied:
        site.app.wsgi_app = ProxyFix(site.app.wsgi_app)  # type: ignore[method-assign]
    environ = {"REMOTE_ADDR": peer}
    answer = site.client().get(
        "/replicated/", headers=headers, environ_overrides=environ
    )
    assert answer.status_code == status


def test_wrong_arguments() -> None:
    """A guard that cannot be called, or a prefix that is no path, is an error."""
    extension = FlaskReplicated()
    with pytest.raises(ConfigurationError, match=r"page\(guard=\.\.\.\) = True"):
        extension.page(True)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"page\(url_prefix=\.\.\.\)"):
        extension.page(url_prefix="ops/")


# --- what it shows ---


def test_shows_the_replicas(build: Build) -> None:
    """Page and live part show each replica, its state and its share of the reads."""
    site = paged(
        build,
        REPLICATED_BREAKER_THRESHOLD=1,
        REPLICATED_BREAKER_RESET=30,
        REPLICATED_PROBE_INTERVAL=0,  # a read is to find the replica that is out
    )
    client = site.client()
    site.count(30)
    page = client.get("/replicated/")
    assert "3 of 3 replicas serve reads." in page.text
    assert page.text.count('class="state good">serving<') == 3
    assert page.text.count(" · 33 %<") == 3
    site.dispose()
    break_file(site.folder, "slave_2")
    site.count(6)
    part = client.get("/replicated/?live").text
    assert "<html" not in part
    assert "2 of 3 replicas serve reads; not slave_2 (out, down)." in part
    assert "<strong>slave_2</strong> went out: down: " in part
    assert "slave_2: 1 (down)" in part  # the failover
    with site.app.app_context():
        extension: FlaskReplicated = site.app.extensions["replicated"]
        extension.pool().drain("slave_1")
    part = client.get("/replicated/?live").text
    assert "1 of 3 replicas serve reads; not slave_1 (drained), slave_2" in part


def test_headers(build: Build) -> None:
    """Nothing is cached or framed, and no script or style runs but the page's own."""
    page = paged(build).client().get("/replicated/")
    assert page.headers["Cache-Control"] == "no-store"
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<style|\sstyle=|<script>|\son\w+=", page.text)
    assert not re.search(r'(?:src|href)="(?!/replicated/)', page.text)


def test_headers_of_the_application(build: Build) -> None:
    """What the application sets for all responses, as Talisman does, is not for it."""
    site = paged(build)

    @site.app.after_request
    def set_headers(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = "default-src 'none'"
        response.headers["X-Frame-Options"] = "SAMEORIGIN"
        response.headers["Access-Control-Allow-Origin"] = "https://else.example"
        response.headers["X-Own"] = "yes"
        return response

    page = site.client().get("/replicated/")
    assert "script-src 'self'" in page.headers["Content-Security-Policy"]
    assert page.headers["X-Frame-Options"] == "DENY"
    assert "Access-Control-Allow-Origin" not in page.headers
    assert page.headers["X-Own"] == "yes"


def test_a_prefix_that_varies(build: Build) -> None:
    """Below a part that varies, the page's own URLs have the same one."""
    extension = FlaskReplicated()
    site = build(["slave_1"], extension=extension)
    site.app.register_blueprint(extension.page(lambda: True, "/<tenant>/ops"))
    client = site.client()
    page = client.get("/acme/ops/")
    assert not re.search(r'(?:src|href|action)="(?!/acme/ops/)', page.text)
    with client.get("/acme/ops/static/page.js") as script:
        assert script.status_code == 200
    form = tokens(page) | {"replica": "slave_1", "order": "drain"}
    answer = client.post("/acme/ops/", data=form, headers=SAME_SITE)
    assert (answer.status_code, answer.location) == (303, "/acme/ops/")


def test_text_that_cannot_be_encoded(build: Build) -> None:
    """An error's text may have a part of a file's name that is in no encoding."""
    site = paged(build)
    pool = site.app.extensions[STATE].routes[None].replicas.replica_pool
    pool.trip(pool.member("slave_1"), 60.0, OSError("no \udcff"))
    assert r"no \udcff" in site.client().get("/replicated/").text


def test_below_a_path(build: Build) -> None:
    """An application below a path of its server has its page there, too."""
    environ = {"SCRIPT_NAME": "/shop"}
    page = paged(build).client().get("/replicated/", environ_overrides=environ)
    assert "Path=/shop/replicated/" in page.headers["Set-Cookie"]
    assert not re.search(r'(?:src|href|action)="(?!/shop/replicated/)', page.text)
    assert 'data-live="/shop/replicated/?live"' in page.text


def test_hostile_names(build: Build) -> None:
    """Markup in a bind's name is shown and not obeyed; no password is shown."""
    evil = "<img src=x onerror=alert(1)>\"'"
    pytest.importorskip("psycopg")
    url = f"postgresql+psycopg://u:{SECRET}@<b>host/x"
    site = paged(
        build,
        replicas=(),
        binds={
            evil: sqlite_url(build(()).folder / "master.db"),
            f"{evil}_slave_1": sqlite_url(build(()).folder / "master.db"),
            "hidden": url,
            "hidden_slave_1": url,
        },
    )
    page = site.client().get("/replicated/").text
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert "&lt;b&gt;host" in page
    assert "<img" not in page
    assert "<b>" not in page
    assert SECRET not in page
    assert (
        press(site.client(), "drain", f"{evil}_slave_1", bind=evil).status_code == 200
    )


def test_leaves_the_application_alone(build: Build) -> None:
    """To look at the page reads nothing, pins nobody, and runs no context processor."""
    site = paged(build)

    @site.app.context_processor
    def entries() -> dict[str, Any]:
        return {"entries": site.who()}

    client = site.client()
    for _ in range(3):
        assert pin_of(client.get("/replicated/")) is None
    assert pin_of(press(client, "drain")) is None
    extension: FlaskReplicated = site.app.extensions["replicated"]
    with site.app.app_context():
        found = extension.pool().snapshot()
    assert sum(one.reads for one in found.members) == 0
    assert found.primary_reads == {}
    assert site.seen == []


def test_extra(build: Build) -> None:
    """A template of the application's own is shown on the page."""
    from jinja2 import DictLoader

    site = paged(build)
    site.app.jinja_loader = DictLoader({"replicated/extra.html": "<i>{{ 6 * 7 }}</i>"})
    assert "<i>42</i>" in site.client().get("/replicated/").text


@pytest.mark.parametrize("source", ["{{ 1 / 0 }}", "{% include 'none.html' %}"])
def test_extra_that_fails(
    build: Build,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
) -> None:
    """A template that fails takes nothing else of the page with it."""
    from jinja2 import DictLoader

    monkeypatch.setattr(blueprint, "_told_section", Seldom(0.0))
    site = paged(build)
    site.app.jinja_loader = DictLoader({"replicated/extra.html": source})
    text = site.client().get("/replicated/").text
    assert "The template replicated/extra.html has failed" in text
    assert "Drain slave_1" in text
    assert "replicated/extra.html" in caplog.text


def test_two_pages_and_a_late_extension(build: Build) -> None:
    """Pages may be registered before the extension; of several, one notes the reads."""
    extension = FlaskReplicated()
    site = build(["slave_1"], extension=extension)
    state = site.app.extensions.pop(STATE)
    for name in ("one", "two"):
        page = extension.page(lambda: True, f"/{name}")
        site.app.register_blueprint(page, name=name)
    site.app.extensions[STATE] = state
    site.count(1)
    text = site.client().get("/two/").text
    assert "GET <strong>who</strong>" in text
    assert "1 read so far" in text


def test_without_replicas() -> None:
    """An application without replicas, or without the extension, has the page."""
    app = Flask("plain")
    app.register_blueprint(FlaskReplicated().page(lambda: True))
    text = app.test_client().get("/replicated/").text
    assert "No replica is configured: the primary serves every read." in text


def test_observed(build: Build, tmp_path: Path) -> None:
    """What replicas would serve is shown, of all workers where they are known."""
    for place in (None, str(tmp_path / "control")):
        site = paged(
            build, replicas=(), REPLICATED_MODE="observe", REPLICATED_CONTROL=place
        )
        site.app.add_url_rule("/evil", "<b>evil</b>", site.who)
        client = site.client()
        assert client.get("/evil").text == "master"
        for _ in range(2):
            assert client.get("/write").status_code == 200
        if place is not None:
            site.app.extensions[CONTROL].look_now()
        text = client.get("/replicated/").text
        assert "Replicas would have served 33 % of 3 reads." in text
        assert "&lt;b&gt;evil&lt;/b&gt;" in text
        assert "<b>evil" not in text
        assert "2 entry" in text
        assert "using_master(pin=False)" in text
    routed = paged(build)
    assert "would have served" not in routed.client().get("/replicated/").text


def test_two_applications(build: Build) -> None:
    """One page may be registered on several applications; each shows its own."""
    extension = FlaskReplicated()
    page = extension.page(lambda: True)
    one, other = (
        build(names, extension=extension) for names in (["slave_1"], ["slave_7"])
    )
    for site in (one, other):
        site.app.register_blueprint(page)
    one.count(1)
    text = one.client().get("/replicated/").text
    assert "slave_1" in text
    assert "slave_7" not in text
    assert "GET <strong>who</strong>" in text
    text = other.client().get("/replicated/").text
    assert "slave_7" in text
    assert "No request has read yet." in text


# --- its buttons ---


def test_orders(build: Build) -> None:
    """Drain and restore do so, and say so to the script and to a plain browser."""
    site = paged(build)
    client = site.client()
    answer = press(client, "drain", "slave_2")
    assert answer.json == {"message": "slave_2 is drained: it gets no new reads."}
    assert live(site) == {"slave_1", "slave_3"}
    assert "Restore slave_2" in client.get("/replicated/?live").text
    answer = press(client, "restore", "slave_2", {**SAME_SITE, "Accept": "text/html"})
    assert (answer.status_code, answer.location) == (303, "/replicated/")
    assert live(site) == {"slave_1", "slave_2", "slave_3"}
    text = client.get("/replicated/?live").text
    assert text.index("was restored") < text.index("was drained")


def test_weight_and_switch(build: Build) -> None:
    """A weight, and the switch for all reads, count at once."""
    site = paged(build, REPLICATED_BALANCER="weighted")
    client = site.client()
    answer = press(client, "weight", "slave_2", weight="3")
    assert answer.json == {"message": "slave_2 has the weight 3 now."}
    assert site.count(10)["slave_2"] == 6
    answer = press(client, "off")
    assert answer.json == {"message": "All reads go to the primary now."}
    assert set(site.count(3)) == {"master"}
    text = client.get("/replicated/?live").text
    assert "Replicas are switched off, and the primary serves" in text
    assert press(client, "on").status_code == 200
    assert "master" not in site.count(3)


def test_balancer_without_weights(build: Build) -> None:
    """Where weights are not read, none can be set."""
    client = paged(build).client()
    assert 'name="weight"' not in client.get("/replicated/").text
    answer = press(client, "weight", weight="3")
    assert answer.status_code == 400
    assert "reads no weights" in str(answer.json)


def test_switched_off_by_setting(build: Build) -> None:
    """The page does not overrule the configuration."""
    client = paged(build, AUTO_READ_ON_SLAVE=False).client()
    assert "AUTO_READ_ON_SLAVE = False is in" in client.get("/replicated/").text
    assert press(client, "on").status_code == 400


def test_all_workers(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a control place, states are those of all workers, and orders reach all."""
    # Each worker looks when the test says so.
    monkeypatch.setattr(control_module, "start_thread", lambda *_: True)
    place = str(tmp_path / "control")
    one, other = (
        paged(build, REPLICATED_CONTROL=place, REPLICATED_PROBE_INTERVAL=0)
        for _ in range(2)
    )
    controls = [site.app.extensions["replicated.control"] for site in (one, other)]
    client = one.client()
    for site, control in zip((one, other), controls, strict=True):
        assert site.count(3) == {"slave_1": 1, "slave_2": 1, "slave_3": 1}
        control.look_now()
    try:
        answer = press(client, "drain", "slave_2")
        assert "Other workers obey within 5 s." in str(answer.json)
        text = client.get("/replicated/?live").text
        assert "any of 2 workers sees" in text
        assert "workers: 1 drained, 1 serving" in text
        assert "Reads of all workers since they were started" in text
        assert text.count(" · 33 %<") == 3  # three reads, in the sum of both
        controls[1].look_now()
        assert live(other) == {"slave_1", "slave_3"}
        assert "workers: " not in client.get("/replicated/?live").text
        press(client, "off")
        controls[1].look_now()
        assert other.get() == "master"
        Path(place, "site@orders.json").write_text("{")  # damaged
        assert press(client, "on").status_code == 200
        controls[1].look_now()
        assert other.get() != "master"
    finally:
        for control in controls:
            control.end()


def test_control_place_fails(build: Build, tmp_path: Path) -> None:
    """A control place that cannot be used is told of, and the page goes on."""
    (tmp_path / "control").write_text("no directory")
    site = paged(build, REPLICATED_CONTROL=str(tmp_path / "control"))
    client = site.client()
    try:
        assert "The control place cannot be read" in client.get("/replicated/").text
        answer = press(client, "drain")
        assert answer.status_code == 400
        assert "This process has obeyed, and no other will" in str(answer.json)
        assert live(site) == {"slave_2", "slave_3"}
    finally:
        site.app.extensions["replicated.control"].end()


def test_last_decisions(build: Build) -> None:
    """The page says where requests have read, and why; its own reads are not shown."""
    sites: list[Site] = []
    site = paged(build, lambda: sites[0].who() == "master")
    sites.append(site)
    site.client().get("/")
    site.client().post("/write")
    client = site.client()
    for _ in range(2):
        text = re.sub(r"<[^>]*>", "", client.get("/replicated/").text)
    extension: FlaskReplicated = site.app.extensions["replicated"]
    with site.app.app_context():
        found = extension.pool().snapshot()
    assert sum(one.reads for one in found.members) == 1
    assert found.primary_reads["block"] == 2  # the guard's
    assert re.search(r"GET who reads from slave_\d: GET only reads 1 read so far", text)
    assert "POST write reads from primary" in text
    assert "replicated.index" not in text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"order": "weight", "weight": "-1"}, WEIGHTS),
        ({"order": "weight", "weight": "\N{SUPERSCRIPT TWO}"}, WEIGHTS),
        ({"order": "weight", "weight": "9" * 5000}, WEIGHTS),
        ({"order": "weight"}, WEIGHTS),
        ({"replica": "slave_9"}, "There is no replica 'slave_9' any more."),
        ({"bind": "analytics"}, "This bind has no replicas."),
        ({"order": "drop"}, "The page knows no such order."),
    ],
)
def test_impossible_orders(build: Build, fields: dict[str, str], message: str) -> None:
    """What cannot be done is refused, with the reason."""
    client = paged(build).client()
    form = {**tokens(client.get("/replicated/")), "order": "drain"}
    form |= {"replica": "slave_1"} | fields
    headers = {**SAME_SITE, "Accept": "application/json"}
    answer = client.post("/replicated/", data=form, headers=headers)
    assert (answer.status_code, answer.json) == (400, {"message": message})


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (SAME_SITE, 200),
        ({"Origin": "https://localhost"}, 200),  # behind a proxy that ends TLS
        ({}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://localhost"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_forms_of_other_sites(
    build: Build, headers: Mapping[str, str], status: int
) -> None:
    """A form counts only where the browser says that it comes from the page."""
    site = paged(build)
    assert press(site.client(), "drain", headers=headers).status_code == status
    assert ("slave_1" in live(site)) == (status == 403)


def test_forged_tokens(build: Build) -> None:
    """A form without a token, or with one of another browser, is refused."""
    site = paged(build)
    owner, other = site.client(), site.client()
    foreign = tokens(other.get("/replicated/"))
    owner.get("/replicated/")
    form = {"order": "drain", "replica": "slave_1"}
    for found in ({}, foreign, {"replicated_token": "\N{SNOWMAN}"}):
        answer = owner.post("/replicated/", data=form | found, headers=SAME_SITE)
        assert answer.status_code == 403
    mine = tokens(owner.get("/replicated/"))
    answer = site.app.test_client(use_cookies=False).post(
        "/replicated/", data=form | mine, headers=SAME_SITE
    )
    assert answer.status_code == 403
    assert live(site) == {"slave_1", "slave_2", "slave_3"}


@pytest.mark.parametrize("key", ["a-key", None])
def test_forms_reach_any_worker(build: Build, key: str | None) -> None:
    """The form of one worker is accepted by another, also without SECRET_KEY."""
    one = paged(build, SECRET_KEY=key).client()
    other = paged(build, SECRET_KEY=key).app.test_client(use_cookies=False)
    page = one.get("/replicated/")
    cookie = one.get_cookie("replicated_page", path="/replicated/")
    assert cookie is not None
    assert cookie.http_only
    answer = other.post(
        "/replicated/",
        data={"order": "drain", "replica": "slave_1", **tokens(page)},
        headers={**SAME_SITE, "Cookie": f"replicated_page={cookie.value}"},
    )
    assert answer.status_code == 303


def test_flask_wtf(build: Build) -> None:
    """Where Flask-WTF guards all forms, the page's carry its token as well."""
    csrf = pytest.importorskip("flask_wtf.csrf")
    site = paged(build)
    csrf.CSRFProtect(site.app)
    client = site.client()
    assert press(client, "drain").status_code == 400
    page = client.get("/replicated/").text
    found = re.search(r'name="csrf_token" value="([^"]+)"', page)
    assert found is not None
    assert press(client, "drain", csrf_token=found[1]).status_code == 200
