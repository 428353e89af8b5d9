"""A replica's SQLite file is opened where it is, and never made."""

from __future__ import annotations

import logging
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.pool import NullPool

from examples.cluster import wait_until
from flask_replicated import FlaskReplicated, replicated_engine, using_slave
from tests.pools import live, read
from tests.support import (
    Build,
    Site,
    build_fixture,
    make_file,
    make_models,
    sqlite_url,
)

if TYPE_CHECKING:
    from pathlib import Path

build = build_fixture


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged at ERROR."""
    return [one.getMessage() for one in caplog.records if one.levelno == logging.ERROR]


def urls(folder: Path) -> list[sa.URL]:
    """Return URLs of one file that is not there."""
    path = str(folder / "no where#1.db")
    escaped = path.replace(" ", "%20").replace("#", "%23")
    return [
        sa.URL.create("sqlite", database=path),
        *(
            sa.URL.create("sqlite", database=name, query={"uri": "true", **query})
            for name, query in (
                (f"file:{escaped}", {}),
                (f"file://{escaped}", {"cache": "private"}),
                (f"file:{escaped}", {"mode": "ro"}),
            )
        ),
    ]


@pytest.mark.parametrize("number", range(4))
def test_missing(tmp_path: Path, number: int, caplog: pytest.LogCaptureFixture) -> None:
    """One that is not there is left out, and named: each read goes elsewhere."""
    engine = replicated_engine(
        sa.create_engine(sqlite_url(make_file(tmp_path, "master"))),
        {
            "slave_1": sa.create_engine(urls(tmp_path)[number]),
            "slave_2": sa.create_engine(sqlite_url(make_file(tmp_path, "slave_2"))),
        },
        REPLICATED_PROBE_INTERVAL=0,
    )
    for _ in range(6):
        with using_slave(), engine.connect() as connection:
            found = connection.scalar(sa.text("SELECT name FROM marker"))
        assert found == "slave_2"
    assert live(engine) == {"slave_2"}
    (said,) = errors(caplog)
    assert "'slave_1' is not configured right" in said
    assert str(tmp_path / "no where#1.db") in said
    assert {path.name for path in tmp_path.iterdir()} == {"master.db", "slave_2.db"}
    engine.dispose()


def test_comes_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One that is put there later is found by the probe, which has named it once."""
    engine = replicated_engine(
        sa.create_engine(sqlite_url(make_file(tmp_path, "master"))),
        {
            name: sa.create_engine(sqlite_url(tmp_path / f"{name}.db"))
            for name in ("slave_1", "slave_2")
        },
        REPLICATED_PROBE_INTERVAL=0.02,
        REPLICATED_BREAKER_RESET=60,
        REPLICATED_BREAKER_MAX_RESET=60,
    )
    make_file(tmp_path, "slave_2")
    read(engine)
    wait_until(lambda: live(engine) == {"slave_2"}, "slave_1 to be out")
    make_file(tmp_path, "slave_1")
    wait_until(lambda: live(engine) == {"slave_1", "slave_2"}, "slave_1 to be back")
    assert len(errors(caplog)) == 1
    engine.dispose()


def test_of_an_application(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A relative path is one of the instance folder, which the message shows."""
    app = Flask("shop", instance_path=str(tmp_path))
    app.config["SQLALCHEMY_DATABASE_URI"] = sqlite_url(make_file(tmp_path, "master"))
    app.config["SQLALCHEMY_BINDS"] = {"slave_1": "sqlite:///never.db"}
    db = SQLAlchemy(app)
    marker, entry = make_models(db)
    site = Site(app, db, marker, entry, tmp_path)
    FlaskReplicated(app)
    with app.test_request_context():
        assert site.who() == "master"
    (said,) = [one for one in errors(caplog) if "not configured right" in one]
    assert repr(str(tmp_path / "never.db")) in said
    site.dispose()


def test_the_primary_is_made(build: Build, tmp_path: Path) -> None:
    """The primary's file is made as ever, and its replicas are found from then on."""
    file = sqlite_url(tmp_path / "new.db")
    site = build([], binds={"slave_1": file}, SQLALCHEMY_DATABASE_URI=file)
    with site.app.app_context():
        site.db.create_all()
        site.db.session.add(site.marker(name="made"))
        site.db.session.commit()
    assert site.get() == "made"


def test_a_creator_of_ones_own(tmp_path: Path) -> None:
    """A function that connects is not told what to open."""
    path = tmp_path / "made.db"
    options: dict[str, Any] = {"creator": lambda: sqlite3.connect(path)}
    engine = replicated_engine(
        sa.create_engine(sqlite_url(path)),
        {"slave_1": sa.create_engine("sqlite://", poolclass=NullPool, **options)},
        REPLICATED_PROBE_INTERVAL=0,
    )
    read(engine)
    assert path.exists()
    engine.dispose()


def test_added(build: Build, tmp_path: Path) -> None:
    """Nor does add() make one."""
    extension = FlaskReplicated()
    site = build(["slave_1"], extension=extension)
    with site.app.app_context():
        extension.add("slave_2", sqlite_url(tmp_path / "absent.db"))
    assert site.count(4) == {"slave_1": 4}
    assert not (tmp_path / "absent.db").exists()
