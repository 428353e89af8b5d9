"""The test kit with Flask-SQLAlchemy-Lite, and with async engines."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from flask import Flask, request

from flask_replicated import FlaskReplicated, WriteOnReplicaError, using_slave
from flask_replicated.testing import assert_served, mirror

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncEngine

pytest.importorskip("flask_sqlalchemy_lite")
from flask_sqlalchemy_lite import SQLAlchemy

GUEST = sa.Table(
    "guest",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(50)),
)
NAMES = sa.select(GUEST.c.name)


def make_app(**config: Any) -> tuple[Flask, SQLAlchemy]:
    """Return an application, and what has its engines."""
    app, db = Flask("lite"), SQLAlchemy()
    app.config.update(SECRET_KEY="not-a-secret", TESTING=True, **config)
    db.init_app(app)
    FlaskReplicated(app)
    return app, db


@pytest.mark.parametrize("replicas", [{}, {"slave": "none.db"}])
def test_isolation(tmp_path: Path, replicas: dict[str, str]) -> None:
    """Its own way to isolate tests works inside a mirror."""
    urls = {name: f"sqlite:///{tmp_path}/{file}" for name, file in replicas.items()}
    url = f"sqlite:///{tmp_path}/lite.db"
    app, db = make_app(SQLALCHEMY_ENGINES={"default": url, **urls})

    @app.route("/", methods=["GET", "POST"])
    def page() -> list[str]:
        if request.method == "POST":
            db.session.execute(sa.insert(GUEST).values(name="Ada"))
            db.session.commit()
        return list(db.session.scalars(NAMES))

    with app.app_context():
        _let_sqlalchemy_begin(db.engine)
        GUEST.metadata.create_all(db.engine)

    def visit() -> None:
        client = app.test_client()
        with assert_served(primary=2, app=app):
            assert client.post("/").json == client.get("/").json == ["Ada"]
        with assert_served(replica=1, app=app):
            assert app.test_client().get("/").json == ["Ada"]

    with mirror(app):
        for _ in range(2):
            with db.test_isolation():
                visit()
            assert app.test_client().get("/").json == []
    with app.app_context():
        for engine in db.engines.values():
            engine.dispose()


def _let_sqlalchemy_begin(engine: sa.Engine) -> None:
    @sa.event.listens_for(engine, "connect")
    def leave_transactions_to_us(driver: Any, _record: Any) -> None:
        driver.isolation_level = None

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN")


async def _change_tables(engine: AsyncEngine, change: Callable[..., None]) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(change)
    await engine.dispose()


@pytest.mark.parametrize("replicas", [{}, {"slave_1": "none.db"}])
def test_async_engines(tmp_path: Path, replicas: dict[str, str]) -> None:
    """Async sessions are mirrored as well."""
    pytest.importorskip("aiosqlite")
    at = f"sqlite+aiosqlite:///{tmp_path}/"
    urls = {name: f"{at}{file}" for name, file in replicas.items()}
    visit_async(f"{at}lite.db", urls)


def visit_async(primary: str, replicas: Mapping[str, str]) -> None:
    """Write and read under a mirror, by URLs of async engines."""
    for module in ("asgiref", "greenlet"):
        pytest.importorskip(module)
    app, db = make_app(SQLALCHEMY_ASYNC_ENGINES={"default": primary, **replicas})

    async def close() -> None:
        for engine in db.async_engines.values():
            await engine.dispose()

    @app.get("/")
    async def names() -> list[str]:
        found = list(await db.async_session.scalars(NAMES))
        await db.async_session.close()
        await close()  # each request of a test client has an event loop of its own
        return found

    @app.post("/")
    async def add() -> list[str]:
        await db.async_session.execute(sa.insert(GUEST).values(name="Ada"))
        await db.async_session.commit()
        return await names()

    @app.get("/report")
    async def report() -> str:
        try:
            with using_slave():
                await db.async_session.execute(sa.insert(GUEST).values(name="Ada"))
        finally:
            await close()
        return "written"

    with app.app_context():
        engine = db.async_engine

    asyncio.run(_change_tables(engine, GUEST.metadata.create_all))
    with mirror(app):
        client = app.test_client()
        with assert_served(primary=2, app=app):
            assert client.post("/").json == client.get("/").json == ["Ada"]
        with assert_served(replica=1, app=app):
            assert app.test_client().get("/").json == ["Ada"]
        with pytest.raises(WriteOnReplicaError):
            client.get("/report")
    asyncio.run(_change_tables(engine, GUEST.metadata.drop_all))
