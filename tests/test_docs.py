"""The code in ``docs``, executed as printed.

``routing.md``, ``testing.md`` and ``integrations.md`` have tests of their own.
"""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from flask import Flask, g, request
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import make_url, text

from balancers import Feedback, Pool
from examples.servers import free_port
from flask_replicated import FlaskReplicated, signals
from flask_replicated.consistency.store_setting import make_store
from flask_replicated.consistency.stores import CookieStore
from flask_replicated.replica.failures import Cause
from flask_replicated.routing.decision import FALLBACKS, WROTE, Reason
from flask_replicated.settings.config import read_settings
from tests.pin_stores import COOKIE, HEADER, Client, largest, make_app

DOCS = Path(__file__).parent.parent / "docs"
POSTGRESQL = "postgresql+psycopg://shop:secret"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(document: str) -> list[str]:
    """Return the code that a document prints."""
    found = BLOCK.findall((DOCS / f"{document}.md").read_text())
    assert found
    return found


def run(document: str, app: Flask, **known: Any) -> dict[str, Any]:
    """Run all of a document's code, and return the names that are known then."""
    names: dict[str, Any] = {"app": app, **known}
    for block in blocks(document):
        exec(compile(block, f"docs/{document}.md", "exec"), names)
    return names


@pytest.fixture
def app() -> Flask:
    """Give an application that nothing is registered on yet."""
    return Flask("shop")


@pytest.mark.parametrize("document", ["poolers", "patroni"])
def test_configuration_is_taken(document: str, app: Flask) -> None:
    """What the text configures makes engines, and replicas of them."""
    pytest.importorskip("psycopg")
    run(document, app)
    replicas = {name for name in app.config["SQLALCHEMY_BINDS"] if "slave" in name}
    db = SQLAlchemy(app)
    replicated = FlaskReplicated(app)
    with app.app_context():
        members = replicated.pool().members
        assert {member.name for member in members} == replicas
        assert db.engine.url.drivername == "postgresql+psycopg"


def test_url_names_all_nodes(app: Flask) -> None:
    """The URL that is built for several hosts is one that drivers understand."""
    names: dict[str, Any] = {"app": app}
    for block in blocks("patroni")[:2]:
        exec(block, names)
    query = make_url(app.config["SQLALCHEMY_DATABASE_URI"]).query
    assert query["host"] == names["NODES"]
    assert query["target_session_attrs"] == "read-write"


def test_no_leader_is_503(app: Flask) -> None:
    """A primary that cannot be reached is answered as the text says."""
    pytest.importorskip("psycopg")
    run("patroni", app)
    url = f"postgresql+psycopg://shop@127.0.0.1:{free_port()}/shop"
    app.config.update(SQLALCHEMY_DATABASE_URI=url, SQLALCHEMY_BINDS={})
    db = SQLAlchemy(app)
    FlaskReplicated(app)
    app.add_url_rule(
        "/", "add", lambda: str(db.session.scalar(text("select 1"))), methods=["POST"]
    )
    response = app.test_client().post("/")
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "5"


def test_no_replica_is_503(app: Flask, tmp_path: Path) -> None:
    """A read beyond the share answers 503, and says when to come back."""
    run("failover", app)
    for name in ("one", "two"):
        sqlite3.connect(tmp_path / f"{name}.db").close()
    app.config.update(
        SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path / 'one.db'}",
        SQLALCHEMY_BINDS={"slave_1": f"sqlite:///{tmp_path / 'two.db'}"},
        REPLICATED_FALLBACK_SHARE=0,
    )
    db = SQLAlchemy(app)
    replicated = FlaskReplicated(app)

    @app.get("/")
    def index() -> str:
        return str(db.session.scalar(text("SELECT 1")))

    assert app.test_client().get("/").text == "1"
    with app.app_context():
        replicated.pool().drain("slave_1")
    response = app.test_client().get("/")
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "10"


def test_page(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guards that the text proposes let operators in, and nobody else."""
    flask_login = pytest.importorskip("flask_login")
    monkeypatch.setenv("PAGE_PASSWORD", "geheim ä")
    names = run("page", app, replicated=FlaskReplicated())
    other = Flask("other")
    other.register_blueprint(FlaskReplicated().page(guard=names["knows_the_password"]))
    for auth, status in ((("", "geheim ä"), 200), (("ada", ""), 401), (None, 401)):
        response = other.test_client().get("/replicated/", auth=auth)
        assert response.status_code == status
        assert ("WWW-Authenticate" in response.headers) is (status == 401)
    users = {
        name: type("User", (flask_login.UserMixin,), {"id": name, "is_admin": admin})()
        for name, admin in (("ada", True), ("ben", False))
    }
    app.secret_key = "secret"
    flask_login.LoginManager(app).user_loader(users.get)
    for name, status in (("ada", 200), ("ben", 404), (None, 404)):
        client = app.test_client()
        with client.session_transaction() as session:
            session["_user_id"] = name
        assert client.get("/replicated/").status_code == status


def test_observe(
    app: Flask, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the text configures observes, and what it prints is there."""
    names: dict[str, Any] = {"app": app, "replicated": FlaskReplicated()}
    configured, printed = blocks("observe")
    exec(configured, names)
    app.config["REPLICATED_CONTROL"] = str(tmp_path)
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    db = SQLAlchemy(app)
    names["replicated"].init_app(app)
    app.add_url_rule("/", "index", lambda: str(db.session.scalar(text("SELECT 1"))))
    assert app.test_client().get("/").text == "1"
    exec(printed, names)
    assert names["share"] == 1
    assert names["lines"] == []
    assert capsys.readouterr().out == "index 1 1 {} {}\n"


def test_every_document_is_run() -> None:
    """Code is printed only where a test runs it."""
    elsewhere = {"routing", "testing", "integrations"}
    here = {"balancers", "consistency", "failover", "fleet", "patroni", "poolers"}
    here |= {"observability", "observe", "page", "production", "operations"}
    printing = {
        path.stem for path in DOCS.glob("*.md") if BLOCK.search(path.read_text())
    }
    assert printing == elsewhere | here


@pytest.mark.parametrize("number", range(3))
def test_configurations_for_tests(app: Flask, number: int) -> None:
    """Each is taken, over a configuration that names production's servers."""
    pytest.importorskip("psycopg")
    app.config["SQLALCHEMY_BINDS"] = {"slave_1": f"{POSTGRESQL}@replica1.db/shop"}
    names: dict[str, Any] = {}
    exec(blocks("fleet")[number], names)
    app.config.update({key: one for key, one in names.items() if key.isupper()})
    db = SQLAlchemy(app)
    FlaskReplicated(app)
    with app.app_context():
        assert db.engine.dialect.name == "sqlite"


def test_replicas_come_and_go(app: Flask) -> None:
    """Replicas are added and removed as the text shows, within its limits."""
    pytest.importorskip("psycopg")
    url = f"{POSTGRESQL}@replica"
    app.config["SQLALCHEMY_DATABASE_URI"] = f"{POSTGRESQL}@primary.db/shop"
    app.config["SQLALCHEMY_BINDS"] = {
        "analytics": f"{POSTGRESQL}@primary.db/figures",
        "analytics_slave_1": f"{url}1.db/figures",
        "slave_1": f"{url}1.db/shop",
        "slave_2": f"{url}2.db/shop",
    }
    *_, changes, limit, many, discovery = blocks("fleet")
    exec(limit, {"app": app})
    exec(many, {"app": app})
    SQLAlchemy(app)
    replicated = FlaskReplicated(app)
    exec(changes, {"app": app, "replicated": replicated})
    with app.app_context():
        pools = [replicated.pool(key).members for key in (None, "analytics")]
    names = [sorted(member.name for member in pool) for pool in pools]
    assert names == [
        ["slave_2", "slave_4", "slave_5"],
        ["analytics_slave_1", "analytics_slave_2"],
    ]
    found = Flask("found")
    exec(discovery, {"app": found})
    found.config["SQLALCHEMY_DATABASE_URI"] = f"{POSTGRESQL}@primary.db/shop"
    found.config["SQLALCHEMY_BINDS"] = {"analytics": f"{POSTGRESQL}@primary.db/figures"}
    SQLAlchemy(found)
    FlaskReplicated(found)


def test_production(monkeypatch: pytest.MonkeyPatch) -> None:
    """The application is made, answers 503, and its status page lists its replicas."""
    pytest.importorskip("psycopg")
    factory, handlers, _, status = blocks("production")
    nowhere = f"{POSTGRESQL}@127.0.0.1:{free_port()}/shop"
    monkeypatch.setenv("SECRET_KEY", "a secret")
    for name in ("PRIMARY_URL", "REPLICA_1_URL", "REPLICA_2_URL"):
        monkeypatch.setenv(name, nowhere)
    names: dict[str, Any] = {"__name__": "shop"}
    exec(factory, names)
    names["app"] = app = names["create_app"]()
    exec(handlers, names)
    exec(status, names)
    found: Any = app.test_client().get("/status").json
    since = {found[name].pop("since") for name in ("slave_1", "slave_2")}
    assert all(0 <= time.time() - one < 60 for one in since)
    healthy = {"state": "closed", "reason": None, "live": True}
    expected = {**healthy, "retry_in": None, "last_error": None}
    assert found == {"slave_1": expected, "slave_2": expected}
    assert app.test_client().get("/unsubscribe/1").status_code == 503


def test_all_is_logged() -> None:
    """The configuration of logging prints INFO, with the logger's name."""
    block = blocks("production")[2]
    log = "logging.getLogger('flask_replicated').info('told')"
    done = subprocess.run(
        [sys.executable, "-c", f"{block}\n{log}"],
        capture_output=True,
        check=True,
        text=True,
    )
    assert done.stderr.endswith(" INFO flask_replicated: told\n")


def test_status_without_replicas() -> None:
    """The status page is an empty object where no replica is configured."""
    app = Flask("shop")
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    SQLAlchemy(app)
    exec(blocks("production")[-1], {"app": app, "replicated": FlaskReplicated(app)})
    assert app.test_client().get("/status").json == {}


def test_observability(
    app: Flask, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The line that is logged has the server and the reason; each reason is listed."""
    for name in ("one", "two"):
        sqlite3.connect(tmp_path / f"{name}.db").close()
    app.config.update(
        SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path / 'one.db'}",
        SQLALCHEMY_BINDS={"slave_1": f"sqlite:///{tmp_path / 'two.db'}"},
    )
    db = SQLAlchemy(app)
    names: dict[str, Any] = {"app": app, "replicated": FlaskReplicated(app)}
    for block in blocks("observability"):
        exec(block, names)
    app.add_url_rule("/", "index", lambda: str(db.session.scalar(text("SELECT 1"))))
    with caplog.at_level("INFO", "shop.access"):
        assert app.test_client().get("/").text == "1"
    assert "/ slave_1: GET only reads" in caplog.text
    assert 'replicated_reads_total{bind="",replica="slave_1"}' in (
        app.test_client().get("/metrics").text
    )
    shown = (DOCS / "observability.md").read_text().partition("## The reasons")[2]
    rows = re.findall(r"^\| `(\w+)` \|", shown, re.MULTILINE)
    assert set(rows) == set(get_args(Reason))
    assert all(reason in shown for reason in (WROTE, *FALLBACKS))


def test_operations(app: Flask, tmp_path: Path) -> None:
    """The receivers hear of an outage and of its end; each signal has its row."""
    for name in ("one", "two"):
        sqlite3.connect(tmp_path / f"{name}.db").close()
    app.config.update(
        SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path / 'one.db'}",
        SQLALCHEMY_BINDS={"slave_1": f"sqlite:///{tmp_path / 'two.db'}"},
    )
    SQLAlchemy(app)
    replicated = FlaskReplicated(app)
    lines: list[str] = []
    app.logger.critical = lambda text, *args: lines.append(text % args)  # type: ignore[method-assign]  # to be read here
    names: dict[str, Any] = {"app": app}
    (receivers,) = blocks("operations")
    exec(receivers, names)
    with app.app_context():
        pool = replicated.pool()
        pool.trip(pool.member("slave_1"), 9, ConnectionRefusedError("refused"))
        pool.recover(pool.member("slave_1"))
    assert lines == ["slave_1 is out: down", "slave_1 is back"]
    shown = (DOCS / "operations.md").read_text()
    assert [name for name in signals.__all__ if f"`{name}`" not in shown] == []
    words = set(re.findall(r"^\| `(\w+)` \| ", shown, re.MULTILINE))
    assert words >= set(get_args(Cause))


ALERT = re.compile(r"^\| (?:WARNING|ERROR) \| `([^`]+?)[ .]*`", re.MULTILINE)
# What stands in the examples for what a log line or an error fills in.
FILLED = {
    "'slave_1'": "%r",
    "'replica_out'": "%r",
    "view 'show'": "{place}",
    "'show'": "%r",
    "3 reads": "%s",
    "3 connections": "%s",
    "3": "%d",
    "postgresql": "%s",
    "RedisStore": "%s",
    "SQLALCHEMY_DATABASE_URI": "%s",
}


def test_alerts_are_what_is_logged() -> None:
    """Each line to alert on begins as one that the code logs."""
    sources = [path.read_text() for path in (ROOT / "flask_replicated").rglob("*.py")]
    # Strings that stand below each other are one.
    code = re.sub(r'"\s+f?"', "", "\n".join(sources))
    lines = ALERT.findall((DOCS / "production.md").read_text())
    assert lines
    for line in lines:
        start = line
        for example, field in FILLED.items():
            start = start.replace(example, field)
        assert f'"{start}' in code, line


def test_balancers(app: Flask) -> None:
    """A balancer of one's own is taken, and a pool of anything goes on to the next."""
    zones, own, asking, pool = blocks("balancers")
    names: dict[str, Any] = {"app": app}
    exec(own, names)
    members = [SimpleNamespace(name=name) for name in "ba"]
    pick = app.config["REPLICATED_BALANCER"](members)
    assert [pick().name for _ in range(3)] == ["a", "b", "a"]

    exec(zones, names)
    exec(asking, names)
    keys = ("REPLICATED_BALANCER", "REPLICATED_ZONE", "REPLICATED_ZONES")
    config = {key: app.config[key] for key in keys}
    found = read_settings(config, ["GET"], ["slave_1", "slave_2", "slave_3"])
    engines = {name: name for name in (*config["REPLICATED_ZONES"], "slave_4")}
    local = Pool(engines, balancer=found.balancer)
    assert local.pick().name in {"slave_1", "slave_2"}
    busy = local.pick()
    assert isinstance(busy.feedback, Feedback)
    busy.feedback.started()
    assert {local.pick().name for _ in range(9)} == {"slave_1", "slave_2"} - {busy.name}

    tried: list[str] = []

    def connect(address: str) -> str:
        tried.append(address)
        if len(tried) == 1:
            raise ConnectionRefusedError
        return address

    names = {"connect": connect}
    exec(pool, names)
    assert names["connection"] == tried[1] != tried[0]


def test_pin_stores(app: Flask) -> None:
    """Both stores that the text sets up can be made, and its own one works."""
    pytest.importorskip("redis")
    found = [block for block in blocks("consistency") if "PIN_STORE" in block]
    assert len(found) == 2
    for block in found:
        exec(block, {"app": app})
        safe = make_store(
            app.config["REPLICATED_PIN_STORE"],
            cookie=CookieStore(COOKIE, 5),
            header=HEADER,
            prefix="",
            find_key=app.config["REPLICATED_PIN_KEY"],
            merge=largest,
            seconds=300,
        )
    assert type(safe.store).__name__ == "UserStore"
    shop = make_app(safe)
    shop.before_request(lambda: setattr(g, "user_id", request.headers["X-User"]))
    client = Client(shop)
    assert HEADER not in client.write(5).headers
    assert client.read() == "5"


LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
ROOT = DOCS.parent
PAGES = [ROOT / "README.md", *sorted({*ROOT.glob("*.md")} - {ROOT / "README.md"})]
PAGES += sorted(DOCS.glob("*.md"))


def anchors(page: Path) -> set[str]:
    """Return what a page's headings are called in links."""
    kept = (
        re.sub(r"[^\w\- ]", "", one.lower())
        for one in HEADING.findall(page.read_text())
    )
    return {one.replace(" ", "-") for one in kept}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Each link between the documents leads to a file, and to a heading in it."""
    for name, anchor in LINK.findall(page.read_text()):
        target = page.parent / name if name else page
        assert target.exists(), name
        assert not anchor or anchor in anchors(target), f"{name}#{anchor}"


def test_readme_leads_to_all() -> None:
    """Every document is linked from the README."""
    linked = {name for name, _ in LINK.findall(PAGES[0].read_text())}
    assert linked >= {f"docs/{page.name}" for page in DOCS.glob("*.md")}


PATH = re.compile(r"`((?:[\w.-]+/)*[\w.-]+(?:/|\.(?:py|md|toml|html)))`")
LISTED = ("CONTRIBUTING.md", "SECURITY.md", "docs/design.md")


def test_the_map_is_complete() -> None:
    """Every module of both packages is named where contributors look for it."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    packages = [ROOT / "balancers", ROOT / "flask_replicated"]
    paths = [path for package in packages for path in package.rglob("*.py")]
    names = {f"{one.relative_to(ROOT)}" for one in paths if one.stem != "__init__"}
    assert {name for name in names if f"`{name}`" not in text} == set()


@pytest.mark.parametrize("page", LISTED)
def test_files_exist(page: str) -> None:
    """Every file or folder that a page names is there."""
    named = set(PATH.findall((ROOT / page).read_text()))
    assert named
    assert {name for name in named if not (ROOT / name).exists()} == set()
