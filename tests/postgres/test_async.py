"""Flask-SQLAlchemy-Lite's async sessions over real servers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask
from sqlalchemy import func, select, text

from flask_replicated import FlaskReplicated
from tests.postgres.support import WHO, bind, named

if TYPE_CHECKING:
    from examples.cluster import Cluster

pytest.importorskip("flask_sqlalchemy_lite")
from flask_sqlalchemy_lite import SQLAlchemy

pytestmark = pytest.mark.postgres


@pytest.fixture(params=["psycopg", "asyncpg"])
def app(
    _schema: None, healthy_cluster: Cluster, request: pytest.FixtureRequest
) -> Flask:
    """Give an application whose every engine is async."""
    driver = pytest.importorskip(request.param).__name__
    app = Flask("async")
    engines = {"default": bind(healthy_cluster.primary, driver)}
    for name, server in named(healthy_cluster.standbys):
        engines[name] = bind(server, driver)
    app.config["SECRET_KEY"] = "not-a-secret"
    app.config["SQLALCHEMY_ASYNC_ENGINES"] = engines
    db = SQLAlchemy(app)
    FlaskReplicated(app)

    async def ask() -> list[Any]:
        session = db.async_session
        first = (await session.execute(WHO)).one()
        times = {await session.scalar(select(func.now())) for _ in range(2)}
        async with session.begin_nested():
            second = (await session.execute(WHO)).one()
        rows = await session.stream(text("select generate_series(1, 20)"))
        many = [row async for row in rows]
        await session.commit()
        return [first[0], second[0], len(times), len(many)]

    @app.route("/", methods=["GET", "POST"])
    async def show() -> list[Any]:
        try:
            return await ask()
        finally:
            # Each request of a test client has an event loop of its own.
            for engine in db.async_engines.values():
                await engine.dispose()

    return app


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_transactions(app: Flask, method: str) -> None:
    """Transactions, savepoints and streams work, on one server for each request."""
    for _ in range(4):
        response = app.test_client().open("/", method=method)
        first, second, times, rows = response.get_json()
        assert first == second
        assert (first == "primary") is (method == "POST")
        assert (times, rows) == (1, 20)


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_restarted_primary(healthy_cluster: Cluster, driver: str) -> None:
    """A write gets no pooled connection that the primary's restart has ended."""
    pytest.importorskip(driver)
    app = Flask("async")
    app.config["SQLALCHEMY_ASYNC_ENGINES"] = {
        "default": bind(healthy_cluster.primary, driver),
        "slave_1": bind(healthy_cluster.standbys[0], driver),
    }
    db = SQLAlchemy(app)
    FlaskReplicated(app)

    async def ask() -> str:
        async with db.async_sessionmaker() as session:
            await session.execute(text("select pg_sleep(0.2)"))
            return str((await session.execute(WHO)).one()[0])

    async def main() -> set[str]:
        await asyncio.gather(*(ask() for _ in range(3)))
        await asyncio.to_thread(healthy_cluster.primary.restart, "fast")
        try:
            return set(await asyncio.gather(*(ask() for _ in range(3))))
        finally:
            for engine in db.async_engines.values():
                await engine.dispose()

    with app.app_context():
        assert asyncio.run(main()) == {"primary"}


def test_lost(app: Flask, healthy_cluster: Cluster) -> None:
    """A standby that is gone is left out, and no request notices."""
    lost, *others = healthy_cluster.standbys
    lost.kill()
    answers = [app.test_client().get("/").get_json() for _ in range(4)]
    assert {answer[0] for answer in answers} == {other.name for other in others}
