"""An application over a real PostgreSQL primary and its standbys."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from flask import Flask, jsonify, request
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import event, make_url, select, text

from examples.cluster import wait_until
from flask_replicated import FlaskReplicated
from tests.background import Background

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from flask import Response
    from flask.testing import FlaskClient
    from sqlalchemy import QueuePool

    from balancers import Pool
    from examples.cluster import Server, Standby

DRIVERS = ("psycopg", "psycopg2")
STANDBYS = ("standby_1", "standby_2", "standby_3")
CLIENTS = (
    "from pg_stat_activity "
    "where backend_type = 'client backend' and pid <> pg_backend_pid()"
)
"""What serves other connections than the one that asks."""
WHO = text("select current_setting('cluster_name'), pg_backend_pid()")


class Backend(NamedTuple):
    """Who answers: a server, and its process for this connection."""

    server: str
    pid: int


class Answer(NamedTuple):
    """What a page says.

    Attributes:
        servers: Who answered the first statement and the last.
        texts: The items that the page saw.
    """

    servers: list[str]
    texts: list[str]


def _do_nothing(_backend: Backend) -> None:
    pass


@dataclass
class Site:
    """An application and short ways to ask who serves.

    Attributes:
        between: Called by ``/`` between two statements, with the first one's backend.
        held: The connections in somebody's hands, of pools that were replaced too.
    """

    app: Flask
    db: SQLAlchemy
    item: Any
    between: Callable[[Backend], None] = field(default=_do_nothing)
    held: set[object] = field(default_factory=set)

    def who(self) -> Backend:
        """Return which backend a read of the session goes to."""
        server, pid = self.db.session.execute(WHO).one()
        return Backend(server, pid)

    def texts(self) -> list[str]:
        """Return the items that the session sees."""
        ordered = select(self.item).order_by(self.item.id)
        return [item.text for item in self.db.session.scalars(ordered)]

    def show(self) -> Response:
        """Read three times: who serves, the items, and who serves by then."""
        first = self.who()
        self.between(first)
        texts = self.texts()
        return jsonify(servers=[first.server, self.who().server], texts=texts)

    def add(self) -> Response:
        """Commit an item, then read."""
        self.db.session.add(self.item(text=request.args["text"]))
        self.db.session.commit()
        return self.show()

    def client(self) -> FlaskClient:
        """Return a client that has no cookies yet."""
        return self.app.test_client()

    def get(self, client: FlaskClient | None = None, path: str = "/") -> Answer:
        """Return what a GET answers, by default to a fresh client."""
        response = (client or self.client()).get(path)
        assert response.status_code == 200, response.text
        return Answer(**response.get_json())

    def post(self, item: str, client: FlaskClient | None = None) -> Answer:
        """Return what the POST of an item answers."""
        query = {"text": item}
        response = (client or self.client()).post("/", query_string=query)
        assert response.status_code == 200, response.text
        return Answer(**response.get_json())

    def count(self, requests: int) -> Counter[str]:
        """Return who served the first statement of so many GETs by fresh clients."""
        return Counter(self.get().servers[0] for _ in range(requests))

    def at_once(self, requests: int) -> list[Answer]:
        """Return the answers to GETs that all hold their connections together."""
        barrier = threading.Barrier(requests, timeout=30)
        self.between = lambda _: (barrier.wait(), None)[1]
        with ThreadPoolExecutor(requests) as threads:
            answers = list(threads.map(lambda _: self.get(), range(requests)))
        self.between = _do_nothing
        return answers

    @property
    def pool(self) -> Pool[Any]:
        """The pool of replicas of the default bind."""
        state = self.app.extensions["replicated"].state(self.app)
        pool: Pool[Any] = state.routes[None].replicas.replica_pool
        return pool

    def live(self) -> set[str]:
        """Return the binds that reads go to."""
        return {member.name for member in self.pool.live}

    def wait_live(self, *binds: str) -> None:
        """Read until these binds, and no others, take reads."""

        def settled() -> bool:
            self.get()
            return self.live() == set(binds)

        wait_until(settled, f"reads to go to {binds}", timeout=20)

    def watch(self) -> None:
        """Note from here on which connections are checked out of any pool."""
        with self.app.app_context():
            for engine in self.db.engines.values():
                event.listen(engine, "checkout", lambda _, one, __: self.held.add(one))
                event.listen(engine, "checkin", lambda _, one: self.held.discard(one))

    def checked_out(self) -> int:
        """Return how many connections are in somebody's hands."""
        with self.app.app_context():
            pools = [cast("QueuePool", one.pool) for one in self.db.engines.values()]
        return max(len(self.held), *(pool.checkedout() for pool in pools))

    def dispose(self) -> None:
        """Close every pooled connection."""
        with self.app.app_context():
            for engine in self.db.engines.values():
                engine.dispose()


class Build(Protocol):
    """Make an application over a primary and standbys."""

    def __call__(
        self,
        binds: Mapping[str, Any] | None = None,
        *,
        twophase: bool = False,
        **config: Any,
    ) -> Site:
        """Return the site.

        Args:
            binds: Replaces or adds binds; ``slave_1`` … name the standbys else.
            twophase: Whether sessions commit in two phases.
            config: Settings.
        """


def bind(server: Server, driver: str, password: str = "") -> str:
    """Return the URL of a server, which takes any password."""
    url = make_url(server.url(f"postgresql+{driver}"))
    return url.set(password=password or None).render_as_string(hide_password=False)


def make_site(
    primary: str, binds: Mapping[str, Any], *, twophase: bool = False, **config: Any
) -> Site:
    """Make an application with ``/``, which shows and adds items."""
    app = Flask("site")
    app.testing = True
    app.config.update(
        {
            "SECRET_KEY": "not-a-secret",
            "SQLALCHEMY_DATABASE_URI": primary,
            "SQLALCHEMY_BINDS": dict(binds),
            "REPLICATED_BREAKER_RESET": 0.1,
            "REPLICATED_BREAKER_MAX_RESET": 0.4,
            **config,
        }
    )
    db = SQLAlchemy(app, session_options={"twophase": twophase})
    columns = {
        "id": db.Column(db.Integer, primary_key=True),
        "text": db.Column(db.String, nullable=False),
    }
    item = type("Item", (db.Model,), {"__tablename__": "item", **columns})
    FlaskReplicated(app)
    site = Site(app, db, item)
    site.watch()
    app.add_url_rule("/", "show", site.show)
    app.add_url_rule("/", "add", site.add, methods=["POST"])
    return site


class Load(Background):
    """Steady requests from several threads, for as long as it is entered.

    Attributes:
        failures: What any request raised.
        written: The items whose POST was answered.
    """

    def __init__(self, site: Site, threads: int = 8) -> None:
        super().__init__()
        self.failures: list[BaseException] = []
        self.written: list[str] = []
        self._site = site
        # Who answered the first statement of each GET, by when the GET began.
        self._rounds: list[list[str]] = [[]]
        self._threads = [
            threading.Thread(target=self._run, args=(number,))
            for number in range(threads)
        ]

    def _run(self, number: int) -> None:
        turn = 0
        while not self._over.is_set():
            turn += 1
            current = self._rounds[-1]
            try:
                if turn % 20:
                    current.append(self._site.get().servers[0])
                else:
                    self._site.post(f"{number}-{turn}")
                    self.written.append(f"{number}-{turn}")
            except Exception as error:  # noqa: BLE001 - the test looks at them
                self.failures.append(error)

    def next(self, requests: int) -> Counter[str]:
        """Return who served so many GETs that began after this call, or some more."""
        current: list[str] = []
        self._rounds.append(current)
        wait_until(lambda: len(current) >= requests, "the load", timeout=30)
        return Counter(current)

    def wait_live(self, *binds: str) -> None:
        """Wait until these binds, and no others, take reads."""
        wait_until(lambda: self._site.live() == set(binds), f"{binds}", timeout=20)


def spread(counts: Mapping[str, int], names: Sequence[str]) -> float:
    """Return the ratio of the largest share to the smallest."""
    shares = [counts.get(name, 0) for name in names]
    return max(shares) / max(1, min(shares))


def named(servers: Sequence[Standby]) -> Iterator[tuple[str, Standby]]:
    """Return standbys with the binds that stand for them."""
    return ((f"slave_{n}", server) for n, server in enumerate(servers, start=1))


def end_backends(standby: Standby) -> None:
    """Terminate a standby's client connections, and wait until they are gone."""
    found = standby.execute(f"select pid {CLIENTS}")
    pids = ", ".join(str(pid) for (pid,) in found) or "0"
    activity = f"from pg_stat_activity where pid in ({pids})"
    standby.execute(f"select pg_terminate_backend(pid) {activity}")
    left = f"select count(*) {activity}"
    wait_until(lambda: standby.execute(left) == [(0,)], "backends to end")


def run_greenlets(
    script: str, arguments: Sequence[str], meanwhile: Callable[[], None]
) -> tuple[str, str]:
    """Run a program that patches its process, and return what it has printed.

    Args:
        script: The program. It says ``ready`` in a line, and goes on with another.
        arguments: Its arguments.
        meanwhile: Called in between.

    Returns:
        Its output after that, and its errors.
    """
    with subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
        meanwhile()
        output, errors = process.communicate("\n", timeout=60)
    assert process.returncode == 0, errors
    return output, errors
