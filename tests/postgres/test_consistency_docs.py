"""The code in ``docs/consistency.md`` about guarantees and tokens, on real servers."""

from __future__ import annotations

import re
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import configure_mappers
from werkzeug.serving import make_server

from flask_replicated import FlaskReplicated
from tests.postgres.support import bind, named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from examples.cluster import Cluster

    Jobs = list[tuple[Callable[..., list[str]], tuple[str, ...]]]

pytestmark = pytest.mark.postgres

DOCUMENT = Path(__file__).parents[2] / "docs" / "consistency.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def code(heading: str) -> str:
    """Return the code below a heading."""
    below = DOCUMENT.read_text().partition(f"{heading}\n")[2]
    found = BLOCK.search(below.partition("\n## ")[0])
    assert found
    return found[1]


class Shop:
    """The application that the text assumes, with its code for guarantees and jobs.

    Attributes:
        names: What the code has defined.
        jobs: What was enqueued.
    """

    def __init__(self, cluster: Cluster, **config: Any) -> None:
        self.app = app = Flask("shop")
        replicas = {name: bind(one, "psycopg") for name, one in named(cluster.standbys)}
        app.config.update(
            SECRET_KEY="a secret",
            SQLALCHEMY_DATABASE_URI=bind(cluster.primary, "psycopg"),
            SQLALCHEMY_BINDS=replicas,
            **config,
        )
        self.db = db = SQLAlchemy(app)
        self.replicated = FlaskReplicated(app)

        class Guest(db.Model):  # type: ignore[name-defined,misc]  # as users write it
            __tablename__ = "documented_guest"
            id = db.Column(db.Integer, primary_key=True)
            name = db.Column(db.String)

        configure_mappers()
        self.jobs: Jobs = []
        self.names: dict[str, Any] = {
            "app": app,
            "db": db,
            "replicated": self.replicated,
            "Guest": Guest,
            "enqueue": lambda job, *arguments: self.jobs.append((job, arguments)),
        }
        for heading in ("### In code", "## Tokens for jobs"):
            exec(compile(code(heading), DOCUMENT, "exec"), self.names)
        with app.app_context():
            db.drop_all()
            db.create_all()
        cluster.heal()

    def reads(self) -> Counter[str]:
        """Return how many reads each server got."""
        with self.app.app_context():
            shown = self.replicated.pool().snapshot()
        found = Counter({one.name: one.reads for one in shown.members if one.reads})
        return found + Counter(primary=sum(shown.primary_reads.values()))

    def dispose(self) -> None:
        """Close what it has opened."""
        with self.app.app_context():
            self.db.drop_all()
            for engine in self.db.engines.values():
                engine.dispose()


@pytest.fixture
def shop(healthy_cluster: Cluster) -> Iterator[Shop]:
    """Give the application, whose standbys are in step."""
    shop = Shop(healthy_cluster)
    yield shop
    shop.dispose()


def pause(cluster: Cluster, count: int) -> None:
    """Let so many standbys fall behind."""
    for standby in cluster.standbys[:count]:
        standby.pause_replay()


def test_guarantees(shop: Shop, healthy_cluster: Cluster) -> None:
    """Each view answers as the text says, while one standby of three is up to date."""
    writer, other = shop.app.test_client(), shop.app.test_client()
    pause(healthy_cluster, 2)
    writer.post("/guests/Ada")
    healthy_cluster.standbys[2].wait_replayed()
    before = shop.reads()
    assert [writer.get("/guests").json for _ in range(6)] == [["Ada"]] * 6
    assert shop.reads() - before == {"slave_3": 6}
    assert writer.get("/count").json == [1]
    # Any replica for this read, whatever its client has written.
    assert [] in [writer.get("/names").json for _ in range(3)]
    assert [] in [other.get("/names").json for _ in range(3)]


def test_the_cookie_of_monotonic_reads(shop: Shop) -> None:
    """It is set by the first read, and not again while nothing is written."""
    client = shop.app.test_client()
    first, second = client.get("/guests"), client.get("/guests")
    assert first.headers["Cache-Control"] == "private"
    assert first.headers["Vary"] == "Cookie"
    assert "Set-Cookie" in first.headers
    assert "Set-Cookie" not in second.headers
    assert "Cache-Control" not in second.headers
    assert "Set-Cookie" not in shop.app.test_client().get("/names").headers


def test_jobs(shop: Shop, healthy_cluster: Cluster) -> None:
    """A job sees what its request wrote: on a replica in step, or on the primary."""
    client = shop.app.test_client()
    client.post("/guests/Ada")
    healthy_cluster.wait_replicated()
    pause(healthy_cluster, 3)
    client.post("/guests/Bob")
    (early, (ada, first)), (late, (bob, second)) = shop.jobs
    before = shop.reads()
    assert early(ada, first) == ["Ada"]
    assert "primary" not in shop.reads() - before
    assert late(bob, "") == []
    assert late(bob, second) == ["Bob"]
    assert (shop.reads() - before)["primary"] == 1


def test_api_client(healthy_cluster: Cluster) -> None:
    """The client in the text reads its own writes, and another one does not."""
    shop = Shop(healthy_cluster, REPLICATED_PIN_STORE="header")
    names: dict[str, Any] = {}
    exec(compile(code("## API clients"), DOCUMENT, "exec"), names)
    server = make_server("127.0.0.1", 0, shop.app)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        api, other = (names["Api"](f"http://127.0.0.1:{server.port}") for _ in "12")
        pause(healthy_cluster, 3)
        api.send("/guests/Ada", "POST")
        assert api.send("/names") != api.send("/guests") == b'["Ada"]\n'
        assert other.send("/names") == b"[]\n"
    finally:
        server.shutdown()
        thread.join(30)
        server.server_close()
        for standby in healthy_cluster.standbys:
            standby.resume_replay()
        shop.dispose()


def test_all_code_is_run() -> None:
    """Each piece of code on the page is run here, or where positions or stores are."""
    found = BLOCK.findall(DOCUMENT.read_text())
    headings = ("### In code", "## Tokens for jobs", "## API clients")
    here = {code(heading) for heading in headings}
    elsewhere = [one for one in found if "PIN_STORE" in one or "register_" in one]
    assert here.isdisjoint(elsewhere)
    assert len(found) == len(here) + len(elsewhere) == 6
