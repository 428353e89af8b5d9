"""Replicas behind PgBouncer: read-only and limited, and nobody else is."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError

from flask_replicated import WriteOnReplicaError, using_slave
from tests.pgbouncer import DRIVER_OPTIONS, PROGRAM, pgbouncer
from tests.postgres.support import end_backends

if TYPE_CHECKING:
    from collections.abc import Iterator

    from examples.cluster import Cluster
    from tests.postgres.support import Build, Site

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.skipif(PROGRAM is None, reason="PgBouncer is not installed"),
]

MODES = ("transaction", "session")
STATE = text(
    "select current_setting('transaction_read_only'),"
    " current_setting('statement_timeout')"
)


@pytest.fixture(params=MODES)
def port(request: pytest.FixtureRequest, healthy_cluster: Cluster) -> Iterator[int]:
    """Give a pooler before a server that would take writes, two connections wide."""
    with pgbouncer(healthy_cluster.primary.port, request.param, size=2) as port:
        yield port


def through(port: int, driver: str) -> dict[str, Any]:
    """Return a bind that leads through a pooler."""
    options = DRIVER_OPTIONS if driver == "psycopg" else {}
    return {
        "url": f"postgresql+{driver}://postgres@127.0.0.1:{port}/postgres",
        **options,
    }


def make(build: Build, port: int, driver: str, **options: Any) -> Site:
    """Make an application whose replica is behind the pooler."""
    return build(
        {"slave_1": {**through(port, driver), **options}},
        REPLICATED_ROLE_CHECK=False,  # for it is no standby
        REPLICATED_PROBE_INTERVAL=0,
        REPLICATED_READ_TIMEOUT=1.5,
    )


@pytest.fixture
def site(build: Build, port: int, driver: str) -> Site:
    """Give an application whose replica is behind the pooler."""
    return make(build, port, driver)


class Client:
    """Another program that uses the same pooler."""

    def __init__(self, port: int) -> None:
        where = f"host=127.0.0.1 port={port} user=postgres dbname=postgres"
        self._connection = psycopg.connect(where, prepare_threshold=None)

    def ask(self, sql: str) -> Any:
        """Return the first row of one transaction."""
        with self._connection.transaction():
            return self._connection.execute(sql.encode()).fetchone()

    def close(self) -> None:
        """Go."""
        self._connection.close()


@pytest.fixture
def client(port: int) -> Iterator[Client]:
    """Give another program that uses the same pooler."""
    client = Client(port)
    yield client
    client.close()


def states(site: Site, times: int = 3) -> list[tuple[str, ...]]:
    """Return what holds in so many transactions of one session."""
    found = []
    for _ in range(times):
        found.append(tuple(site.db.session.execute(STATE).one()))
        site.db.session.rollback()
    return found


def test_each_transaction_is_read_only(site: Site, client: Client) -> None:
    """Each is read-only and limited, whatever other clients do in between."""
    with site.app.test_request_context("/"):
        assert states(site) == [("on", "1500ms")] * 3
        client.ask("select set_config('statement_timeout', '0', false)")
        assert states(site) == [("on", "1500ms")] * 3


@pytest.mark.parametrize(
    "options",
    [{}, {"pool_pre_ping": True}, {"isolation_level": "AUTOCOMMIT"}],
    ids=["default", "pre_ping", "autocommit"],
)
def test_nothing_leaks(
    build: Build, port: int, driver: str, client: Client, options: dict[str, Any]
) -> None:
    """Another client of the same connections can write, and has no limit."""
    site = make(build, port, driver, **options)
    state = "current_setting('default_transaction_read_only')"
    limit = "current_setting('statement_timeout')"
    for _ in range(6):
        assert site.get().servers[0] == "primary"  # which stands in for a replica
        assert client.ask(f"select {state}, {limit}") == ("off", "0")
        assert client.ask("insert into item (text) values ('other') returning text")
    assert len(site.get().texts) == 6


def test_writes_are_refused(site: Site) -> None:
    """A write that no look recognises is refused by the server, past sessions too."""
    with site.app.test_request_context("/"), using_slave():
        with pytest.raises(WriteOnReplicaError, match="'slave_1' refused it"):
            site.db.session.execute(text("select slip()"))
        site.db.session.rollback()
        engine = site.db.engines["slave_1"]
        for _ in range(2):
            with (
                engine.connect() as connection,
                pytest.raises(DBAPIError, match="read-only"),
            ):
                connection.exec_driver_sql("insert into item (text) values ('x')")
    assert site.get().texts == []


def test_savepoints_and_streams(site: Site) -> None:
    """A transaction that begins with a savepoint or a stream is read-only too."""
    with site.app.test_request_context("/"), using_slave():
        with site.db.session.begin_nested():
            assert site.db.session.execute(STATE).one() == ("on", "1500ms")
        site.db.session.rollback()
        streamed = STATE.execution_options(stream_results=True)
        assert site.db.session.execute(streamed).all() == [("on", "1500ms")]


def test_operator_is_told_once(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """That there is a pooler is said at INFO, with the replica's name."""
    caplog.set_level(logging.INFO, "flask_replicated")
    site.at_once(2)
    told = [one.message for one in caplog.records if "connection pooler" in one.message]
    assert len(told) == 1
    assert "replica 'slave_1'" in told[0]


def test_loss_at_the_first_word(
    build: Build, healthy_cluster: Cluster, driver: str
) -> None:
    """Who loses the connection as its transaction begins is served elsewhere."""
    standby, other = healthy_cluster.standbys[:2]
    with pgbouncer(standby.port) as port, pgbouncer(other.port) as second:
        site = build(
            {"slave_1": through(port, driver), "slave_2": through(second, driver)},
            REPLICATED_READ_TIMEOUT=5,
        )
        site.count(4)
        ended: list[str] = []

        def end_once(_connection: Any) -> None:
            if not ended:
                ended.append(standby.name)
                end_backends(standby)

        with site.app.app_context():
            event.listen(site.db.engines["slave_1"], "begin", end_once)
        assert site.count(8)[other.name] >= 4
        assert ended
        site.dispose()


def test_direct_connections_are_set_once(build: Build) -> None:
    """Without a pooler the whole session is set, in the words that ask for it."""
    site = build(REPLICATED_READ_TIMEOUT=1.5)
    with site.app.test_request_context("/"):
        default = "current_setting('default_transaction_read_only')"
        asked = text(f"select {default}, current_setting('statement_timeout')")
        assert site.db.session.execute(asked).one() == ("on", "1500ms")
