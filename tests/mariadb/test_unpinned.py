"""Housekeeping on MariaDB, in its own words."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.dialects.mysql import insert

from flask_replicated import FlaskReplicated
from tests.support import pin_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.mariadb

URL = sa.URL.create("mariadb+pymysql", "root", host="127.0.0.1", port=3306)
META = sa.MetaData()
VISIT = sa.Table(
    "visit",
    META,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("at", sa.Text),
)
GUEST = sa.Table(
    "guest",
    META,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("seen", sa.Integer),
    sa.Column("name", sa.Text),
)
NAME = f"unpinned_{os.getpid()}"

NO_TRACE: dict[str, Any] = {
    "insert": sa.insert(VISIT).values(at="x"),
    "update": sa.update(GUEST).values(seen=1),
    "update of two tables": sa.update(GUEST)
    .values({GUEST.c.seen: 1, VISIT.c.at: "x"})
    .where(GUEST.c.id == VISIT.c.id),
    "delete using another": sa.delete(VISIT).where(VISIT.c.id == GUEST.c.id),
    "on duplicate key": insert(VISIT).values(id=1).on_duplicate_key_update(at="x"),
    "on duplicate key, listed columns": sa.text(
        "INSERT INTO guest (seen) VALUES (1), (2) ON DUPLICATE KEY UPDATE seen = 3"
    ),
    "replace": sa.text("REPLACE INTO `visit` VALUES (1, 'x')"),
    "insert ignore": sa.text("INSERT IGNORE visit SET at = NOW()"),
    "text of two tables": sa.text(
        "UPDATE guest AS g JOIN visit v ON v.id = g.id SET g.SEEN = 2, v.at = 'y'"
    ),
    "its database by name": sa.text(f"DELETE FROM {NAME}.visit LIMIT 1"),
}
TRACE: dict[str, Any] = {
    "update of another column": sa.update(GUEST).values(name="x"),
    "insert": sa.insert(GUEST).values(seen=1),
    "on duplicate key": insert(GUEST).values(id=1).on_duplicate_key_update(seen=1),
    "update of two tables": sa.update(GUEST)
    .values({GUEST.c.name: "x", VISIT.c.at: "x"})
    .where(GUEST.c.id == VISIT.c.id),
    "replace": sa.text("REPLACE INTO guest VALUES (1, 2, 'x')"),
    "a comment that is run": sa.text("UPDATE guest SET seen = 1 /*! , name = 'x' */"),
    "quotes that may be none": sa.text("UPDATE guest SET seen = LENGTH('it\\\\')"),
}


@pytest.fixture(scope="module")
def database() -> Iterator[sa.URL]:
    """Give a database with its tables."""
    pytest.importorskip("pymysql")
    engine = sa.create_engine(URL, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            connection.execute(sa.text(f"CREATE DATABASE {NAME}"))
    except sa.exc.OperationalError:
        pytest.skip("no MariaDB server takes root on port 3306")
    url = URL.set(database=NAME)
    inside = sa.create_engine(url)
    META.create_all(inside)
    inside.dispose()
    yield url
    with engine.connect() as connection:
        connection.execute(sa.text(f"DROP DATABASE {NAME}"))
    engine.dispose()


@pytest.fixture
def leaves_trace(database: sa.URL) -> Iterator[Callable[[Any], bool]]:
    """Give a function that tells whether a GET that writes is pinned."""
    app = Flask("site")
    app.testing = True
    app.config.update(
        SQLALCHEMY_DATABASE_URI=database,
        SQLALCHEMY_BINDS={"slave_1": database},
        REPLICATED_ROLE_CHECK=False,  # it is one server
        REPLICATED_UNPINNED={"visit": "*", "guest": ["seen"]},
    )
    db = SQLAlchemy(app)
    FlaskReplicated(app)
    done: list[Any] = []

    @app.get("/")
    def act() -> str:
        db.session.execute(done.pop())
        db.session.commit()
        return "done"

    def leaves_trace(statement: Any) -> bool:
        done.append(statement)
        return pin_of(app.test_client().get("/")) is not None

    yield leaves_trace
    with app.app_context():
        for engine in db.engines.values():
            engine.dispose()


@pytest.mark.parametrize("what", NO_TRACE)
def test_no_trace(leaves_trace: Callable[[Any], bool], what: str) -> None:
    """Housekeeping leaves no trace, however it is written."""
    assert not leaves_trace(NO_TRACE[what])


@pytest.mark.parametrize("what", TRACE)
def test_trace(leaves_trace: Callable[[Any], bool], what: str) -> None:
    """Any other write counts as ever."""
    assert leaves_trace(TRACE[what])
