"""What a client may rely on with Flask-SQLAlchemy-Lite's async sessions."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask
from sqlalchemy import text

from flask_replicated import FlaskReplicated, guarantee
from tests.postgres.support import STANDBYS, bind, named

if TYPE_CHECKING:
    from collections.abc import Callable

    from examples.cluster import Cluster

pytest.importorskip("flask_sqlalchemy_lite")
from flask_sqlalchemy_lite import SQLAlchemy

pytestmark = pytest.mark.postgres

READ = text("select current_setting('cluster_name'), count(*) from item")


@pytest.fixture(params=["psycopg", "asyncpg"])
def build(
    _schema: None, healthy_cluster: Cluster, request: pytest.FixtureRequest
) -> Callable[..., Flask]:
    """Give a function that makes applications whose every engine is async."""
    driver = pytest.importorskip(request.param).__name__
    healthy_cluster.primary.execute("truncate item restart identity")
    healthy_cluster.wait_replicated()

    def build(**config: Any) -> Flask:
        app = Flask("async")
        engines = {"default": bind(healthy_cluster.primary, driver)}
        for name, server in named(healthy_cluster.standbys):
            engines[name] = bind(server, driver)
        app.config.update(
            SECRET_KEY="not-a-secret", SQLALCHEMY_ASYNC_ENGINES=engines, **config
        )
        add_views(app)
        return app

    return build


def add_views(app: Flask) -> None:
    """Add views that read and write, and leave no connection to their event loop."""
    db = SQLAlchemy(app)
    FlaskReplicated(app)

    async def read() -> list[Any]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticking = asyncio.create_task(tick())
        try:
            found = (await db.async_session.execute(READ)).one()
            await db.async_session.commit()
            return [*found, ticks]
        finally:
            ticking.cancel()
            for engine in db.async_engines.values():
                await engine.dispose()

    app.get("/")(read)
    app.get("/recent", endpoint="recent")(guarantee(max_staleness=5)(read))

    @app.post("/")
    async def write() -> list[Any]:
        session = db.async_session
        await session.execute(text("insert into item (text) values ('mine')"))
        await session.commit()
        for engine in db.async_engines.values():
            await engine.dispose()
        return []


def test_own_write(build: Callable[..., Flask], healthy_cluster: Cluster) -> None:
    """A writer is served by a replica that shows its write, else by the primary."""
    app = build()
    for standby in healthy_cluster.standbys:
        standby.pause_replay()
    client = app.test_client()
    assert client.post("/").status_code == 200
    assert client.get("/").get_json()[:2] == ["primary", 1]
    server, count, _ = app.test_client().get("/").get_json()
    assert (server in STANDBYS, count) == (True, 0)
    healthy_cluster.standbys[1].resume_replay()
    healthy_cluster.standbys[1].wait_replayed()
    assert client.get("/").get_json()[:2] == ["standby_2", 1]
    server, _, _ = client.get("/recent").get_json()
    assert server in {"standby_2", "primary"}


def test_wait(build: Callable[..., Flask], healthy_cluster: Cluster) -> None:
    """A read that waits for a replica leaves the event loop to others."""
    app = build(REPLICATED_WAIT=30, REPLICATED_FAILOVER_TIMEOUT=30)
    for standby in healthy_cluster.standbys:
        standby.pause_replay()
    client = app.test_client()
    client.post("/")

    def resume() -> None:
        for standby in healthy_cluster.standbys:
            standby.resume_replay()

    timer = threading.Timer(1, resume)
    timer.start()
    server, count, ticks = client.get("/").get_json()
    timer.join()
    assert server in STANDBYS
    assert count == 1
    assert ticks > 20


def test_in_step(build: Callable[..., Flask], healthy_cluster: Cluster) -> None:
    """A replica in step serves where the age of what is read is limited."""
    app = build(REPLICATED_PROBE_INTERVAL=3600)
    for _ in range(4):
        server, _, _ = app.test_client().get("/recent").get_json()
        assert server in STANDBYS
