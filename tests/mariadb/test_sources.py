"""What MariaDB's servers say of their log positions, and what it costs to ask."""

from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from examples.cluster import wait_until
from flask_replicated.consistency.sources import (
    from_primary_report,
    from_replica_report,
    position_source,
)
from flask_replicated.replica.primary_status import ask_primary
from flask_replicated.replica.queries import query_server
from flask_replicated.replica.replica_status import report_queries

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flask_replicated.consistency.positions import LogPosition
    from flask_replicated.consistency.sources import PositionSource
    from tests.mariadb.conftest import Servers
    from tests.mariadb.servers import Server

pytestmark = pytest.mark.mariadb

WRITE = "insert into noted.one values (1)"


@pytest.fixture(params=["mariadb", "mysql"])
def source(request: pytest.FixtureRequest) -> PositionSource:
    """Give what asks MariaDB, by either name of its dialect."""
    found = position_source(request.param)
    assert found is not None
    return found


@pytest.fixture
def noted(servers: Servers) -> Servers:
    """Give the servers, with a table to write to."""
    servers.primary.execute("create database if not exists noted")
    servers.primary.execute("create or replace table noted.one (n int)")
    wait_shown(servers)
    return servers


def wait_shown(servers: Servers) -> None:
    """Wait until the replica shows what the primary has written."""
    ((position,),) = servers.primary.execute("select @@gtid_binlog_pos")
    servers.replica.execute(f"select master_gtid_wait('{position}', 30)")


@contextmanager
def connected(
    server: Server, user: str = "root", **options: Any
) -> Iterator[sa.Connection]:
    """Give a connection, and close it for good."""
    engine = sa.create_engine(server.url(user), **options)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def raw(connection: sa.Connection) -> Any:
    """Return the DBAPI connection."""
    return connection.connection.dbapi_connection


def known(position: LogPosition | None) -> LogPosition:
    """Return a position that is known."""
    assert position is not None
    return position


def in_transaction(connection: sa.Connection) -> bool:
    """Whether the server has begun a transaction for this session."""
    with raw(connection).cursor() as cursor:
        cursor.execute("select @@in_transaction")
        return bool(cursor.fetchone()[0])


@contextmanager
def logged(server: Server, connection: sa.Connection) -> Iterator[list[str]]:
    """Give what the server was sent over a connection in this block."""
    thread = raw(connection).thread_id()
    server.execute("set global log_output = 'TABLE'")
    server.execute("truncate mysql.general_log")
    server.execute("set global general_log = 1")
    found: list[str] = []
    try:
        yield found
    finally:
        server.execute("set global general_log = 0")
    rows = server.execute(
        f"select argument from mysql.general_log where thread_id = {thread}"
        " and command_type = 'Query' order by event_time"
    )
    for (sent,) in rows:
        text = sent.decode() if isinstance(sent, bytes) else str(sent)
        found.append(text.split()[0].upper())


def test_one_statement_after_a_commit(noted: Servers, source: PositionSource) -> None:
    """After a commit one statement is sent, and no transaction is begun or ended."""
    with connected(noted.primary) as connection:
        raw(connection)
        with logged(noted.primary, connection) as sent:
            connection.exec_driver_sql(WRITE)
            connection.commit()
            assert source.position(raw(connection)) is not None
            assert not in_transaction(connection)
        assert sent == ["INSERT", "COMMIT", "SELECT", "SELECT"]
        assert raw(connection).get_autocommit() is False


def test_within_a_transaction(noted: Servers, source: PositionSource) -> None:
    """A transaction goes on as it was, with its writes."""
    with connected(noted.primary) as connection:
        connection.exec_driver_sql(WRITE)
        with logged(noted.primary, connection) as sent:
            before = known(source.position(raw(connection)))
        assert sent == ["SELECT"]
        assert in_transaction(connection)
        assert connection.exec_driver_sql("select * from noted.one").all() == [(1,)]
        connection.rollback()
        assert connection.exec_driver_sql("select * from noted.one").all() == []
        connection.exec_driver_sql(WRITE)
        connection.commit()
        after = known(source.position(raw(connection)))
    assert after.covers(before)
    assert not before.covers(after)


def test_reader_has_seen_more_than_it_wrote(
    noted: Servers, source: PositionSource
) -> None:
    """A session that wrote long ago, or never, gets what it may have read."""
    with connected(noted.primary) as one, connected(noted.primary) as other:
        for connection in (one, other):
            connection.exec_driver_sql(WRITE)
            connection.commit()
        wanted = known(source.position(raw(other)))
        assert known(source.position(raw(one))).covers(wanted)
    with connected(noted.primary) as reader:
        assert known(source.position(raw(reader))).covers(wanted)


def test_shown(noted: Servers, source: PositionSource) -> None:
    """A replica covers a commit once it shows it, and no earlier."""
    noted.replica.execute("stop slave sql_thread")
    with connected(noted.primary) as connection:
        connection.exec_driver_sql(WRITE)
        connection.commit()
        wanted = known(source.position(raw(connection)))
    with connected(noted.replica) as connection:
        assert not known(source.replayed(raw(connection))).covers(wanted)
        noted.replica.execute("start slave sql_thread")
        wait_until(
            lambda: known(source.replayed(raw(connection))).covers(wanted),
            "the replica to show it",
        )
        assert not in_transaction(connection)
        assert connection.exec_driver_sql("select * from noted.one").all() == [(1,)]


def test_shows_what_it_covers(noted: Servers, source: PositionSource) -> None:
    """Under load, a replica that covers a commit shows it to the next statement."""
    positions: list[tuple[int, LogPosition]] = []
    done = threading.Event()

    def write() -> None:
        with connected(noted.primary) as connection:
            for number in itertools.count(1):
                connection.exec_driver_sql(f"insert into noted.one values ({number})")
                connection.commit()
                positions.append((number, known(source.position(raw(connection)))))
                if done.is_set():
                    break

    seen: set[int] = set()
    turns, over = 0, time.monotonic() + 30  # it may follow slowly
    with ThreadPoolExecutor(1) as threads, connected(noted.replica) as connection:
        writing = threads.submit(write)
        try:
            while turns < 500 or (len(seen) <= 10 and time.monotonic() < over):
                turns += 1
                shown = known(source.replayed(raw(connection)))
                read = "select coalesce(max(n), 0) from noted.one"
                most = connection.exec_driver_sql(read).scalar()
                connection.rollback()
                latest = positions[-200:]
                covered = max((n for n, one in latest if shown.covers(one)), default=0)
                assert covered <= int(most or 0)
                seen.add(covered)
        finally:
            done.set()
        writing.result()
    assert len(seen) > 10


def test_domains(noted: Servers, source: PositionSource) -> None:
    """Each domain is a stream of its own."""
    with connected(noted.primary) as connection:
        connection.exec_driver_sql("set session gtid_domain_id = 7")
        before = known(source.position(raw(connection)))
        connection.exec_driver_sql(WRITE)
        connection.commit()
        wanted = known(source.position(raw(connection)))
        assert wanted.streams[0] == before.streams[0]
        assert wanted.streams[7] == before.streams.get(7, 0) + 1
        assert not before.covers(wanted)
    wait_shown(noted)
    with connected(noted.replica) as connection:
        assert known(source.replayed(raw(connection))).covers(wanted)


@pytest.mark.parametrize("level", ["REPEATABLE READ", "READ COMMITTED"])
def test_snapshot(noted: Servers, source: PositionSource, level: str) -> None:
    """A transaction that reads an old snapshot does not tell what is shown by now."""
    read = "select count(*) from noted.one"
    with connected(noted.replica, isolation_level=level) as connection:
        assert source.replayed(raw(connection)) is not None
        before = connection.exec_driver_sql(read).scalar()
        assert in_transaction(connection)
        noted.primary.execute(WRITE)
        wait_shown(noted)
        told = source.replayed(raw(connection)) is not None
        assert told is (connection.exec_driver_sql(read).scalar() != before)
        assert told is (level == "READ COMMITTED")
        assert in_transaction(connection)


def test_without_a_position(noted: Servers, source: PositionSource) -> None:
    """A primary has replayed nothing, and one that has written nothing has none."""
    with connected(noted.primary) as connection:
        assert source.replayed(raw(connection)) is None
    noted.other.execute("reset master")
    with connected(noted.other) as connection:
        assert source.position(raw(connection)) is None
        assert source.replayed(raw(connection)) is None


def test_no_privilege_is_needed(noted: Servers, source: PositionSource) -> None:
    """Every account may ask both, and cursors may return rows as dictionaries."""
    noted.primary.execute("create user if not exists teller")
    wait_shown(noted)
    cursors = pytest.importorskip("pymysql.cursors")
    rows: dict[str, Any] = {"cursorclass": cursors.DictCursor}
    for server, ask in (
        (noted.primary, source.position),
        (noted.replica, source.replayed),
    ):
        with connected(server, "teller") as connection:
            assert ask(raw(connection)) is not None
        connect = connection.dialect.loaded_dbapi.connect
        with connect(host="127.0.0.1", port=server.port, user="teller", **rows) as one:
            assert ask(one) is not None


def test_lost(noted: Servers, source: PositionSource) -> None:
    """The driver's error is raised where the connection is lost."""
    with connected(noted.primary) as connection:
        thread = raw(connection).thread_id()
        noted.primary.execute(f"kill {thread}")
        with pytest.raises(connection.dialect.loaded_dbapi.Error):
            source.position(raw(connection))
        connection.invalidate()


def test_reports(noted: Servers, source: PositionSource) -> None:
    """A probe's reports become the positions that asking for them gives."""
    noted.primary.execute(WRITE)
    wait_shown(noted)
    with connected(noted.primary) as connection:
        wanted = source.position(raw(connection))
        report = ask_primary(raw(connection), "mariadb", whole=True)
        assert from_primary_report(report) == wanted
    with connected(noted.replica) as connection:
        shown = source.replayed(raw(connection))
        found = query_server(raw(connection), *report_queries("mariadb"))
        assert from_replica_report(found, None) == shown
    assert known(shown).covers(known(wanted))


def test_own_writes(noted: Servers, source: PositionSource) -> None:
    """What was written to the replica itself does not pass for its primary's."""
    noted.primary.execute(WRITE)
    wait_shown(noted)
    noted.replica.execute("stop slave sql_thread")
    try:
        noted.replica.execute("analyze table noted.one")
        with connected(noted.primary) as connection:
            connection.exec_driver_sql(WRITE)
            connection.commit()
            wanted = known(source.position(raw(connection)))
        with connected(noted.replica) as connection:
            report = query_server(raw(connection), *report_queries("mariadb"))
            assert report.gtids is not None
            assert report.gtids["0"] == wanted.streams[0]
            assert not known(source.replayed(raw(connection))).covers(wanted)
            assert not known(from_replica_report(report, None)).covers(wanted)
    finally:
        noted.replica.execute("start slave sql_thread")
    wait_shown(noted)
    with connected(noted.replica) as connection:
        assert known(source.replayed(raw(connection))).covers(wanted)
