"""Nothing that operators see has a secret in it, whatever a driver says."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import literal, select
from sqlalchemy.exc import SQLAlchemyError

from flask_replicated.operations.control import CONTROL
from tests.support import Build, Site, build_fixture

if TYPE_CHECKING:
    from pathlib import Path

build = build_fixture

SECRET = "hunter2"
COMMANDS = ("status", "status --json", "check", "check --json", "explain GET /")
URL = "postgresql+psycopg://ann@127.0.0.1:1/shop"
PRIMARY = f"postgresql+psycopg://ann:{SECRET}@127.0.0.1:2/shop"
SAID = (
    f"connection failed: host=db password={SECRET} dbname=shop",
    f"connection failed: postgresql://ann:{SECRET}@db/shop",
    f"Login failed: Server=db;PWD={SECRET};UID=ann",
    f"connect(host='db', passwd=b'{SECRET}')",
    f"the server takes no token: {SECRET}",
    f"host=db AccountKey={SECRET}",
)


def failing(text: str) -> dict[str, Any]:
    """Return a replica whose driver says a text instead of connecting."""

    def creator(*_: object, **__: object) -> Any:
        raise sqlite3.OperationalError(text)

    return {"url": "sqlite:///nowhere.db", "creator": creator}


BINDS = {
    **{text: failing(text) for text in SAID},
    "url": URL.replace("ann", f"ann:{SECRET}"),
    "query": f"{URL}?password={SECRET}&sslpassword={SECRET}",
    "connect_args": {"url": URL, "connect_args": {"password": SECRET}},
}


def shown(site: Site, place: Path) -> dict[str, str]:
    """Return all that operators see, by where they see it."""
    metrics = pytest.importorskip("flask_replicated.metrics")
    client = pytest.importorskip("prometheus_client")
    registry = client.CollectorRegistry()
    metrics.register(registry, site.app)
    extension, runner = site.app.extensions["replicated"], site.app.test_cli_runner()
    visitor = site.client()
    visitor.set_cookie("session", SECRET)
    headers = ""
    with suppress(SQLAlchemyError):  # the primary of some is not there
        headers = str(visitor.get("/named").headers)
    site.app.extensions[CONTROL].look_now()
    with site.app.app_context():
        snapshot = repr(extension.snapshot())
    commands = {
        one: runner.invoke(args=["replicated", *one.split()]).output for one in COMMANDS
    }
    return {
        **commands,
        "header": headers,
        "metrics": client.generate_latest(registry).decode(),
        "page": visitor.get("/replicated/").text,
        "place": "".join(one.read_text() for one in place.iterdir()),
        "snapshot": snapshot,
    }


@pytest.mark.parametrize("which", BINDS)
def test_no_secret_is_shown(
    build: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture, which: str
) -> None:
    """Neither a password, nor a cookie, nor what a statement asks for."""
    caplog.set_level(logging.DEBUG, "flask_replicated")
    place = tmp_path / "control"
    primary: dict[str, Any] = (
        {} if which in SAID else {"SQLALCHEMY_DATABASE_URI": PRIMARY}
    )
    site = build(
        (),
        binds={"slave_1": BINDS[which]},
        SECRET_KEY=SECRET,
        REPLICATED_CONTROL=str(place),
        REPLICATED_EXPLAIN=True,
        REPLICATED_BREAKER_THRESHOLD=1,
        REPLICATED_CONNECT_TIMEOUT=1,
        **primary,
    )
    site.app.register_blueprint(site.app.extensions["replicated"].page(lambda: True))
    statement = select(literal(SECRET))

    @site.app.get("/named")
    def named() -> str:
        return str(site.db.session.scalar(statement))

    for _ in range(3):
        with suppress(SQLAlchemyError):
            site.client().get("/named")
    found = {**shown(site, place), "log": caplog.text}
    assert [where for where, text in found.items() if SECRET in text] == []
    assert all("slave_1" in found[one] for one in found.keys() - {"header"})
    site.app.extensions[CONTROL].end()
