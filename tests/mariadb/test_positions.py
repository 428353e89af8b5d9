"""What a client may rely on, over real MariaDB servers."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask, jsonify
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import text

from flask_replicated import FlaskReplicated, guarantee, using_slave
from flask_replicated.consistency.positions import LogPosition
from flask_replicated.consistency.tokens import Mark, Token, bind_id, decode, encode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flask.testing import FlaskClient

    from tests.mariadb.conftest import Servers
    from tests.mariadb.servers import Server

pytestmark = pytest.mark.mariadb

KEYS = ["not-a-secret"]
COOKIE = "replicated_pin"
DEFAULT = bind_id(None)
LOOK = text("SELECT @@report_host, COUNT(*) FROM item")
QUESTIONS = ("@@GLOBAL.gtid_binlog_pos", "@@GLOBAL.gtid_slave_pos")


class Site:
    """An application over the primary and its replica."""

    def __init__(self, servers: Servers, **config: Any) -> None:
        self.app = app = Flask("positions")
        app.testing = True
        app.config.update(
            SECRET_KEY=KEYS[0],
            SQLALCHEMY_DATABASE_URI=servers.primary.url(database="positions"),
            SQLALCHEMY_BINDS={"slave": servers.replica.url(database="positions")},
            REPLICATED_PROBE_INTERVAL=3600,
        )
        app.config.update(config)
        self.db = db = SQLAlchemy(app)
        FlaskReplicated(app)

        @app.get("/")
        def show() -> Any:
            return jsonify(list(db.session.execute(LOOK).one()))

        @app.get("/slave")
        def show_slave() -> Any:
            with using_slave():
                return jsonify(list(db.session.execute(LOOK).one()))

        @app.get("/recent")
        @guarantee(max_staleness=5)
        def recent() -> Any:
            return jsonify(list(db.session.execute(LOOK).one()))

        @app.post("/")
        def add() -> str:
            db.session.execute(text("INSERT INTO item VALUES (1)"))
            db.session.commit()
            return ""

    def client(self) -> FlaskClient:
        """Return a client that has no cookies yet."""
        return self.app.test_client()

    def get(self, client: FlaskClient | None = None, path: str = "/") -> Any:
        """Return who answers, and how many rows it shows."""
        response = (client or self.client()).get(path)
        assert response.status_code == 200, response.text
        return response.get_json()

    def write(self, client: FlaskClient) -> None:
        """Let a client add a row."""
        assert client.post("/").status_code == 200

    def position_of(self, client: FlaskClient) -> LogPosition:
        """Return the position that a client carries."""
        cookie = client.get_cookie(COOKIE)
        token = None if cookie is None else decode(cookie.value, KEYS)
        position = None if token is None else token[DEFAULT].position
        assert position is not None
        return position

    def dispose(self) -> None:
        """Close every pooled connection."""
        with self.app.app_context():
            for engine in self.db.engines.values():
                engine.dispose()


@pytest.fixture
def noted(servers: Servers) -> Iterator[Servers]:
    """Give the servers, with an empty table."""
    servers.primary.execute("CREATE DATABASE positions")
    servers.primary.execute("CREATE TABLE positions.item (n INT)")
    wait_shown(servers)
    yield servers
    servers.replica.execute("START SLAVE")
    servers.primary.execute("DROP DATABASE positions")
    wait_shown(servers)


@pytest.fixture
def site(noted: Servers) -> Iterator[Site]:
    """Give an application that has connected to each server."""
    made = Site(noted)
    made.get()
    made.write(made.client())
    noted.primary.execute("TRUNCATE positions.item")
    wait_shown(noted)
    yield made
    made.dispose()


def wait_shown(servers: Servers) -> None:
    """Wait until the replica shows what the primary has written."""
    ((position,),) = servers.primary.execute("SELECT @@gtid_binlog_pos")
    servers.replica.execute(f"SELECT MASTER_GTID_WAIT('{position}', 30)")


@contextmanager
def logged(*servers: Server) -> Iterator[list[list[str]]]:
    """Give the statements that each server gets in this block."""
    for server in servers:
        server.execute("SET GLOBAL log_output = 'TABLE'")
        server.execute("TRUNCATE mysql.general_log")
        server.execute("SET GLOBAL general_log = 1")
    found: list[list[str]] = []
    try:
        yield found
    finally:
        for server in servers:
            server.execute("SET GLOBAL general_log = 0")
    for server in servers:
        rows = server.execute(
            "SELECT argument FROM mysql.general_log WHERE command_type = 'Query'"
            " ORDER BY event_time"
        )
        sent = [one.decode() if isinstance(one, bytes) else str(one) for (one,) in rows]
        found.append([one for one in sent if "general_log" not in one])


def asked(sent: list[str]) -> int:
    """Return how many of a server's statements ask for its position."""
    return sum(any(question in one for question in QUESTIONS) for one in sent)


def test_statements(site: Site, noted: Servers) -> None:
    """A write is asked for once; a pinned read asks once, and others never."""
    primary, replica, _ = noted
    client = site.client()
    with logged(primary, replica) as sent:
        site.write(client)
    assert [asked(one) for one in sent] == [1, 0]
    wait_shown(noted)
    with logged(primary, replica) as sent:
        for _ in range(3):
            assert site.get(client) == ["standby_1", 1]
            assert site.get() == ["standby_1", 1]
    assert [asked(one) for one in sent] == [0, 1]
    assert not any("item" in one for one in sent[0])


def test_behind(site: Site, noted: Servers) -> None:
    """A replica that is behind serves all but the writer, with using_slave() too."""
    noted.replica.execute("STOP SLAVE SQL_THREAD")
    client = site.client()
    site.write(client)
    assert site.get(client) == ["primary", 1]
    assert site.get(client, "/slave") == ["primary", 1]
    assert site.get() == ["standby_1", 0]
    noted.replica.execute("START SLAVE")
    wait_shown(noted)
    assert site.get(client) == ["standby_1", 1]


def test_staleness(site: Site, noted: Servers) -> None:
    """A replica whose lag is unknown does not serve where the age is limited."""
    assert site.get(path="/recent") == ["standby_1", 0]
    noted.replica.execute("STOP SLAVE")
    state = site.app.extensions["replicated"].state(site.app)
    (server,) = state.routes[None].replicas._servers.values()
    server.history.judged_at -= 60
    assert site.get(path="/recent") == ["primary", 0]


def test_replica_goes_back(site: Site, noted: Servers) -> None:
    """What was learnt of a replica ends as a probe sees that it shows less."""
    noted.replica.execute("STOP SLAVE SQL_THREAD")
    client = site.client()
    site.write(client)
    state = site.app.extensions["replicated"].state(site.app)
    known = state.routes[None].known
    (member,) = state.routes[None].replicas.replica_pool.members
    # As if it had shown the write, before it was restored from a copy.
    with site.app.app_context(), member.target.connect() as connection:
        found = known.ask_replica(member, connection)
        assert found is not None
        learnt = known._learnt[member]
        known._learnt = {member: learnt._replace(position=site.position_of(client))}
        assert known.shown_by(member).covers(site.position_of(client))
        known.ask_staleness(member, connection)
        assert not known.shown_by(member).covers(site.position_of(client))
    assert site.get(client) == ["primary", 1]


def test_lost_positions(site: Site, noted: Servers) -> None:
    """A position beyond the primary's is ignored, and hides no later write."""
    client = site.client()
    site.write(client)
    wait_shown(noted)
    true = site.position_of(client)
    ahead = LogPosition(0, 0, {one: n + 1000 for one, n in true.streams.items()})
    client.set_cookie(COOKIE, encode(Token({DEFAULT: Mark(ahead, time.time())}), KEYS))
    assert site.get(client) == ["standby_1", 1]
    noted.replica.execute("STOP SLAVE SQL_THREAD")
    site.write(client)
    assert site.get(client) == ["primary", 2]


def test_restored_primary(site: Site) -> None:
    """What this process knew of a former primary is in no token of its successor."""
    known = site.app.extensions["replicated"].state(site.app).routes[None].known
    client = site.client()
    site.write(client)
    true = site.position_of(client)
    known._highest = LogPosition(0, 0, {o: n + 1000 for o, n in true.streams.items()})
    site.write(client)
    (number,) = site.position_of(client).streams.values()
    assert number == next(iter(true.streams.values())) + 1
