"""The code in ``docs/poolers.md`` and ``docs/patroni.md``, executed as printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import make_url, text

from examples.servers import free_port
from flask_replicated import FlaskReplicated

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def run(document: str, app: Flask) -> dict[str, Any]:
    """Run all of a document's code, and return the names that are known then."""
    blocks = BLOCK.findall((DOCS / f"{document}.md").read_text())
    assert blocks
    names: dict[str, Any] = {"app": app}
    for block in blocks:
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
    blocks = BLOCK.findall((DOCS / "patroni.md").read_text())
    names: dict[str, Any] = {"app": app}
    for block in blocks[:2]:
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
