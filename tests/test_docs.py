"""The code in ``docs``, executed as printed.

``routing.md``, ``testing.md`` and ``integrations.md`` have tests of their own.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import make_url, text

from examples.servers import free_port
from flask_replicated import FlaskReplicated

DOCS = Path(__file__).parent.parent / "docs"
POSTGRESQL = "postgresql+psycopg://shop:secret"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(document: str) -> list[str]:
    """Return the code that a document prints."""
    found = BLOCK.findall((DOCS / f"{document}.md").read_text())
    assert found
    return found


def run(document: str, app: Flask) -> dict[str, Any]:
    """Run all of a document's code, and return the names that are known then."""
    names: dict[str, Any] = {"app": app}
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


def test_every_document_is_run() -> None:
    """Code is printed only where a test runs it."""
    elsewhere = {"routing", "testing", "integrations"}
    here = {"balancers", "fleet", "patroni", "poolers", "production"}
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
    *_, changes, limit, discovery = blocks("fleet")
    exec(limit, {"app": app})
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
    factory, handlers, status = blocks("production")
    nowhere = f"{POSTGRESQL}@127.0.0.1:{free_port()}/shop"
    monkeypatch.setenv("SECRET_KEY", "a secret")
    for name in ("PRIMARY_URL", "REPLICA_1_URL", "REPLICA_2_URL"):
        monkeypatch.setenv(name, nowhere)
    names: dict[str, Any] = {"__name__": "shop"}
    exec(factory, names)
    names["app"] = app = names["create_app"]()
    exec(handlers, names)
    exec(status, names)
    healthy = {"state": "closed", "drained": False, "live": True}
    expected = {**healthy, "retry_in": None, "last_error": None}
    assert app.test_client().get("/status").json == {
        "slave_1": expected,
        "slave_2": expected,
    }
    assert app.test_client().get("/unsubscribe/1").status_code == 503


def test_status_without_replicas() -> None:
    """The status page is an empty object where no replica is configured."""
    app = Flask("shop")
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    SQLAlchemy(app)
    exec(blocks("production")[-1], {"app": app, "replicated": FlaskReplicated(app)})
    assert app.test_client().get("/status").json == {}


ALERT = re.compile(r"^\| (?:WARNING|ERROR) \| `([^`]+?)[ .]*`", re.MULTILINE)
# What stands in the examples for what a log line or an error fills in.
FILLED = {
    "'slave_1'": "%r",
    "view 'show'": "{place}",
    "'show'": "%r",
    "3": "%d",
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
    own, pool = blocks("balancers")
    names: dict[str, Any] = {"app": app}
    exec(own, names)
    members = [SimpleNamespace(name=name) for name in "ba"]
    pick = app.config["REPLICATED_BALANCER"](members)
    assert [pick().name for _ in range(3)] == ["a", "b", "a"]

    tried: list[str] = []

    def connect(address: str) -> str:
        tried.append(address)
        if len(tried) == 1:
            raise ConnectionRefusedError
        return address

    names = {"connect": connect}
    exec(pool, names)
    assert names["connection"] == tried[1] != tried[0]


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
