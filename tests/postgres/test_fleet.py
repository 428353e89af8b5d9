"""Replicas that come and go, on real servers."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from examples.cluster import wait_until
from flask_replicated import FlaskReplicated

if TYPE_CHECKING:
    from examples.cluster import Cluster

pytestmark = pytest.mark.postgres

PORT = sa.text("SELECT inet_server_port()")
COUNT = sa.text(
    "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'fleet'"
)


def backends(url: str) -> int:
    """Return how many connections of the application a server has."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        return int(connection.scalar(COUNT) or 0)


def test_members_change_under_load(cluster: Cluster) -> None:
    """Reads go on while a standby comes and goes, and none of its backends stays."""
    urls = [standby.url() for standby in cluster.standbys[:2]]
    app = Flask("fleet")
    app.config["SQLALCHEMY_DATABASE_URI"] = cluster.primary.url()
    app.config["REPLICATED_PROBE_INTERVAL"] = 0

    def bind(url: str) -> dict[str, object]:
        return {"url": url, "connect_args": {"application_name": "fleet"}}

    app.config["SQLALCHEMY_BINDS"] = {"slave_1": bind(urls[0])}
    db = SQLAlchemy(app)
    replicated = FlaskReplicated(app)
    app.add_url_rule("/", "port", lambda: str(db.session.scalar(PORT)))
    done = Event()
    served: set[str] = set()
    first, second = (str(sa.make_url(url).port) for url in urls)

    def come_and_go() -> None:
        with app.app_context():
            replicated.add("slave_2", bind(urls[1]))
        served.discard(second)
        wait_until(lambda: second in served, "reads to go there")
        time.sleep(0.1)
        with app.app_context():
            replicated.remove("slave_2")

    def read(_: int) -> None:
        while not done.is_set():
            answer = app.test_client().get("/")
            assert answer.status_code == 200
            served.add(answer.text)

    with ThreadPoolExecutor(6) as threads:
        reads = [threads.submit(read, number) for number in range(6)]
        try:
            for _ in range(10):
                come_and_go()
        finally:
            done.set()
        assert [one.result() for one in reads] == [None] * 6
    assert served == {first, second}
    wait_until(lambda: backends(urls[1]) == 0, "its backends to end", 20)
    assert 0 < backends(urls[0]) <= 6
    with app.app_context():
        for engine in db.engines.values():
            engine.dispose()
