"""The servers that the operations run on, each with the same tables and rows."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import event

from tests.operations.models import Account, Author, Book, Country, db
from tests.operations.world import World, make_app

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from sqlalchemy import Connection, Engine

    from examples.cluster import Cluster

REPLICAS = ("slave_1", "slave_2")
COPIES = {None: REPLICAS, "analytics": ("analytics_slave_1",)}
MARIADB_URL = sa.URL.create("mariadb+pymysql", "root", host="127.0.0.1", port=3306)

SCRATCH = "CREATE TABLE scratch (id INTEGER PRIMARY KEY)"
_POSTGRESQL_FUNCTION = (
    "CREATE FUNCTION {0}() RETURNS int LANGUAGE sql AS"
    " $$ INSERT INTO book (title) VALUES ('{0}') RETURNING id $$"
)
POSTGRESQL_OBJECTS = (
    SCRATCH,
    "CREATE SEQUENCE numbers",
    _POSTGRESQL_FUNCTION.format("slip"),
    _POSTGRESQL_FUNCTION.format("declared"),
    "CREATE PROCEDURE store() LANGUAGE sql AS $$ DELETE FROM book $$",
    "CREATE MATERIALIZED VIEW titles AS SELECT title FROM book",
)
_MARIADB_FUNCTION = (
    "CREATE FUNCTION {0}() RETURNS int MODIFIES SQL DATA BEGIN"
    " INSERT INTO book (title) VALUES ('{0}'); RETURN 1; END"
)
MARIADB_OBJECTS = (
    SCRATCH,
    "CREATE SEQUENCE numbers",
    _MARIADB_FUNCTION.format("slip"),
    _MARIADB_FUNCTION.format("declared"),
    "CREATE PROCEDURE store() DELETE FROM book",
)


def fill(connection: Connection) -> None:
    """Insert the same rows everywhere."""
    rows: tuple[tuple[type[Any], list[dict[str, Any]]], ...] = (
        (Author, [{"name": f"author {n}", "about": "x"} for n in (1, 2)]),
        (Book, [{"title": f"book {n}", "author_id": 1} for n in (1, 2)]),
        (Account, [{"balance": 5, "author_id": 1}]),
        (Country, [{"name": "Ghana"}]),
    )
    for model, values in rows:
        connection.execute(sa.insert(model), values)


def create(bind: str | None, engine: Engine, objects: tuple[str, ...]) -> None:
    """Create the tables of one bind, their rows, and what else they need."""
    db.metadatas[bind].create_all(engine)
    with engine.begin() as connection:
        if bind is None:
            fill(connection)
            for statement in objects:
                connection.exec_driver_sql(statement)
    engine.dispose()


def make_world(server: str, urls: Mapping[str | None, str]) -> World:
    """Make the applications over servers that are ready."""
    apps = {
        name: make_app(urls, switch=name == "usual")
        for name in ("usual", "switched off")
    }
    return World(server, apps)


@contextlib.contextmanager
def sqlite(folder: Path) -> Iterator[World]:
    """Give a world of SQLite files, all of them different files."""
    urls: dict[str | None, str] = {}
    for bind in (None, "analytics", "drafts"):
        for name in (bind, *COPIES.get(bind, ())):
            urls[name] = f"sqlite:///{folder / (name or 'primary')}.db"
            engine = sa.create_engine(urls[name])
            create(bind, engine, (SCRATCH,))
    world = make_world("sqlite", urls)
    for app in world.apps.values():
        with app.app_context():
            for engine in db.engines.values():
                event.listen(engine, "connect", _prepare)
    world.close()  # what is open already was not prepared
    yield world
    world.close()


def _prepare(connection: Any, _record: object) -> None:
    connection.execute("PRAGMA synchronous = OFF")
    connection.create_function("declared", 0, lambda: 1)


@contextlib.contextmanager
def postgresql(cluster: Cluster) -> Iterator[World]:
    """Give a world of a primary with standbys, one database for each bind."""
    name = f"operations_{os.getpid()}"
    databases = {bind: f"{name}_{bind or 'main'}" for bind in (None, "analytics")}
    databases["drafts"] = f"{name}_drafts"
    urls: dict[str | None, str] = {}
    for bind, database in databases.items():
        cluster.primary.execute(f"create database {database}")
        servers = (cluster.primary, *cluster.standbys)
        for key, server in zip((bind, *COPIES.get(bind, ())), servers, strict=False):
            url = sa.make_url(server.url("postgresql+psycopg")).set(database=database)
            urls[key] = url.render_as_string(hide_password=False)
        create(bind, sa.create_engine(urls[bind]), POSTGRESQL_OBJECTS)
    cluster.wait_replicated()
    world = make_world("postgresql", urls)
    yield world
    world.close()
    for database in databases.values():
        cluster.primary.execute(f"drop database {database}")


def mariadb_answers() -> bool:
    """Whether a MariaDB server is where the tests look for one."""
    engine = sa.create_engine(MARIADB_URL, connect_args={"connect_timeout": 2})
    try:
        engine.connect().close()
    except sa.exc.OperationalError:
        return False
    finally:
        engine.dispose()
    return True


@contextlib.contextmanager
def mariadb() -> Iterator[World]:
    """Give a world of databases on one server; its replicas are read-only sessions."""
    server = sa.create_engine(MARIADB_URL)
    urls: dict[str | None, str] = {}
    with server.connect() as connection:
        for bind in (None, "analytics", "drafts"):
            for key in (bind, *COPIES.get(bind, ())):
                database = f"operations_{os.getpid()}_{key or 'main'}"
                connection.exec_driver_sql(f"CREATE OR REPLACE DATABASE {database}")
                urls[key] = MARIADB_URL.set(database=database).render_as_string()
                create(bind, sa.create_engine(urls[key]), MARIADB_OBJECTS)
    world = make_world("mariadb", urls)
    yield world
    world.close()
    with server.connect() as connection:
        for url in urls.values():
            database = str(sa.make_url(url).database)
            connection.exec_driver_sql(f"DROP DATABASE {database}")
    server.dispose()
