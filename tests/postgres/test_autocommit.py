"""A read has a transaction block around it only where that makes a difference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, func, select, text

from examples.cluster import wait_until
from flask_replicated import using_slave
from tests.postgres.support import bind, end_backends

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection
    from sqlalchemy.orm import Session

    from examples.cluster import Cluster, Standby
    from tests.postgres.support import Build, Site

pytestmark = pytest.mark.postgres

ROWS = text("select generate_series(1, 50)")
STREAMED = {"stream_results": True}
ONE = {"pool_size": 1, "max_overflow": 0}


@pytest.fixture
def standby(healthy_cluster: Cluster) -> Standby:
    """Give the one server that all reads go to."""
    return healthy_cluster.standbys[0]


@pytest.fixture
def make(build: Build, standby: Standby, driver: str) -> Callable[..., Site]:
    """Give a function that makes an application with one replica connection."""

    def make(config: dict[str, Any] | None = None, **options: Any) -> Site:
        one = {"url": bind(standby, driver), **ONE, **options}
        return build({"slave_1": one}, **(config or {}))

    return make


def state_of(standby: Standby, pid: int) -> str:
    """Return what a server says that a backend does."""
    rows = standby.execute(f"select state from pg_stat_activity where pid = {pid}")
    return str(rows[0][0])


def in_block(site: Site, standby: Standby, read: Callable[[Session], object]) -> bool:
    """Return whether a backend is in a block after a read by a request of its own."""
    with site.app.test_request_context():
        pid = site.who().pid
        before = state_of(standby, pid)
        read(site.db.session())
        after = state_of(standby, pid)
        site.db.session.remove()
        assert state_of(standby, pid) == "idle"
    assert before == "idle"
    return after == "idle in transaction"


def by_text(sql: str) -> Callable[[Session], object]:
    """Return what reads with a textual statement."""
    return lambda session: session.execute(text(sql)).all()


def in_savepoint(session: Session) -> None:
    """Read in a savepoint."""
    with session.begin_nested():
        session.execute(select(1))


def by_driver(session: Session) -> None:
    """Read past SQLAlchemy."""
    session.connection().connection.cursor().execute("select 1")


ALONE = {
    "text": by_text("select id, text from item where text = 'know'"),
    "an ORM query": lambda session: session.execute(select(1)).all(),
    "a known function": by_text("select count(*), max(upper(text)) from item"),
    "a CTE": by_text("with x as (select 1 as y) select y from x"),
    "an end of text": lambda session: session.scalar(select(func.coalesce(1, 2))),
}
BLOCKS = {
    "the transaction's time": by_text("select now()"),
    "the same, as SQLAlchemy calls it": lambda s: s.scalar(select(func.now())),
    "the same, as a word": by_text("select current_timestamp"),
    "the same, as a literal": by_text("select 'today'::date"),
    "a function that is not known": by_text(
        "select information_schema._pg_char_max_length(25, 4)"
    ),
    "a setting": lambda session: session.execute(text("set local work_mem = 1000")),
    "several statements": by_text("select 1; select 2"),
    "a savepoint": in_savepoint,
    "a cursor of the server's": lambda session: session.execute(
        ROWS, execution_options=STREAMED
    ).all(),
    "the driver's connection": by_driver,
}


@pytest.mark.parametrize("what", ALONE)
def test_reads_alone(make: Callable[..., Site], standby: Standby, what: str) -> None:
    """A plain read leaves no block open, however often it comes."""
    site = make()
    for _ in range(2):
        assert not in_block(site, standby, ALONE[what])


@pytest.mark.parametrize("what", BLOCKS)
def test_begins_a_block(make: Callable[..., Site], standby: Standby, what: str) -> None:
    """What depends on its transaction begins one, and its end ends it."""
    site = make()
    for _ in range(2):
        with using_slave():
            assert in_block(site, standby, BLOCKS[what])
        assert not in_block(site, standby, ALONE["text"])


def test_time_stands_still(make: Callable[..., Site]) -> None:
    """Within one transaction it is always the same time, and in the next another."""
    site = make()
    seen: list[Any] = []
    for _ in range(2):
        with site.app.test_request_context():
            site.who()
            times = {site.db.session.scalar(select(func.now())) for _ in range(3)}
            assert len(times) == 1
            seen += times
    assert seen[0] < seen[1]


def test_server_side_cursors(make: Callable[..., Site]) -> None:
    """Rows are streamed, though a server's cursor lives in a block alone."""
    site = make()
    for _ in range(2):
        with site.app.test_request_context():
            assert len(site.db.session.execute(ROWS).all()) == 50
            streamed = site.db.session.execute(ROWS, execution_options=STREAMED)
            assert [len(part) for part in streamed.partitions(7)] == [7] * 7 + [1]


def test_driver_own_cursor(make: Callable[..., Site]) -> None:
    """A named cursor that is asked of the driver works as with any connection."""
    site = make()
    with using_slave(), site.app.test_request_context():
        driver = site.db.session.connection().connection
        cursor: Any = driver.cursor(name="mine")
        cursor.execute("select generate_series(1, 5)")
        assert len(cursor.fetchall()) == 5
        cursor.close()


def snapshots(site: Site, cluster: Cluster, **arguments: Any) -> tuple[int, int]:
    """Return how many items one transaction sees before and after another's commit."""
    how_many = text("select count(*) from item")
    with site.app.test_request_context(), using_slave():
        session = site.db.session
        session.connection(**arguments)
        before: int = session.scalar(how_many)
        cluster.primary.execute("insert into item (text) values ('new')")
        cluster.wait_replicated()
        after: int = session.scalar(how_many)
    return before, after


def test_level_of_a_connection(
    make: Callable[..., Site], healthy_cluster: Cluster, standby: Standby
) -> None:
    """A level that is asked for once holds once."""
    site = make()
    levels = {"isolation_level": "REPEATABLE READ"}
    for _ in range(2):
        before, after = snapshots(site, healthy_cluster, execution_options=levels)
        assert before == after
        before, after = snapshots(site, healthy_cluster)
        assert before + 1 == after
        assert not in_block(site, standby, ALONE["text"])


def test_level_of_a_bind(make: Callable[..., Site], healthy_cluster: Cluster) -> None:
    """A bind's own level holds for all that is read there."""
    site = make(isolation_level="REPEATABLE READ")
    for _ in range(2):
        before, after = snapshots(site, healthy_cluster)
        assert before == after


def test_named_level_keeps_its_blocks(
    make: Callable[..., Site], healthy_cluster: Cluster, standby: Standby
) -> None:
    """Who names the level, were it the usual one, has the driver's transactions."""
    site = make(isolation_level="READ COMMITTED")
    with site.app.test_request_context():
        assert state_of(standby, site.who().pid) == "idle in transaction"


def test_switched_off(make: Callable[..., Site], standby: Standby) -> None:
    """REPLICATED_LAZY_BEGIN = False leaves transactions to the driver."""
    site = make({"REPLICATED_LAZY_BEGIN": False})
    with site.app.test_request_context():
        assert state_of(standby, site.who().pid) == "idle in transaction"


def test_primary_has_its_blocks(
    make: Callable[..., Site], healthy_cluster: Cluster
) -> None:
    """On the primary every transaction is one from its first statement on."""
    site = make()
    with site.app.test_request_context(method="POST"):
        pid = site.who().pid
        activity = f"select state from pg_stat_activity where pid = {pid}"
        rows = healthy_cluster.primary.execute(activity)
        assert rows == [("idle in transaction",)]


def test_core_connection(make: Callable[..., Site], standby: Standby) -> None:
    """A connection of the engine's begins its block as late, and again each time."""
    site = make()
    with (
        site.app.test_request_context(),
        using_slave(),
        site.db.engine.connect() as connection,
    ):
        pid = connection.scalar(text("select pg_backend_pid()"))
        for _ in range(2):
            connection.execute(text("select now()"))
            assert state_of(standby, pid) == "idle in transaction"
            connection.rollback()
            assert state_of(standby, pid) == "idle"


def test_listeners_hear_of_each_end(make: Callable[..., Site]) -> None:
    """Who listens for the beginning and the end of transactions hears of all."""
    site = make()
    heard = []
    with site.app.test_request_context(), using_slave():
        engine = site.db.engines["slave_1"]
        for name in ("begin", "rollback"):
            event.listen(engine, name, lambda _, name=name: heard.append(name))
        site.who()
        site.db.session.rollback()
        site.who()
        site.db.session.commit()
    assert heard == ["begin", "rollback"] * 2


def test_own_engine(make: Callable[..., Site], standby: Standby) -> None:
    """Who names a replica has the driver's transactions there, and nobody else."""
    site = make()
    for _ in range(2):
        assert not in_block(site, standby, ALONE["text"])
        with site.app.test_request_context():
            engine = site.db.engines["slave_1"]
        with site.app.test_request_context(), engine.connect() as connection:
            now = {connection.scalar(select(func.now())) for _ in range(3)}
            assert len(now) == 1
            with connection.begin_nested():
                streamed = connection.execute(ROWS, execution_options=STREAMED)
                assert len(streamed.all()) == 50


def test_driver_of_own_engine(make: Callable[..., Site], standby: Standby) -> None:
    """A driver's connection that is taken from a replica has its transactions."""
    site = make()
    for _ in range(2):
        assert not in_block(site, standby, ALONE["text"])
        with site.app.test_request_context():
            driver = site.db.engines["slave_1"].raw_connection()
            cursor: Any = driver.cursor()
            cursor.execute("select pg_backend_pid()")
            assert state_of(standby, cursor.fetchone()[0]) == "idle in transaction"
            driver.close()


def test_closed_by_hand(make: Callable[..., Site], standby: Standby) -> None:
    """A session's connection that somebody closes leaves no block behind."""
    site = make()
    with site.app.test_request_context(), using_slave():
        with site.db.session.connection() as connection:
            pid = connection.scalar(text("select pg_backend_pid()"))
            connection.scalar(select(func.now()))
            assert state_of(standby, pid) == "idle in transaction"
        assert state_of(standby, pid) == "idle"


def test_an_end_that_fails(make: Callable[..., Site], standby: Standby) -> None:
    """A connection whose transaction could not be ended goes to nobody else."""
    site = make()
    with site.app.test_request_context():
        session, engine = site.db.session, site.db.engines["slave_1"]

        def fail(_: object) -> None:
            raise ValueError("somebody's listener")

        event.listen(engine, "rollback", fail)
        session.scalar(select(func.now()))
        pid = site.who().pid
        session.remove()
        event.remove(engine, "rollback", fail)
        assert site.who() != (standby.name, pid)
        found = f"select count(*) from pg_stat_activity where pid = {pid}"
        wait_until(lambda: standby.execute(found) == [(0,)], "the backend to end")


def test_begun_by_a_listener(make: Callable[..., Site]) -> None:
    """What a listener to the beginning sets for a transaction holds in it."""
    site = make()
    tenant = text("select current_setting('site.tenant', true)")

    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("set local site.tenant = 'one'")

    with site.app.test_request_context(), using_slave():
        event.listen(site.db.engines["slave_1"], "begin", begin)
        for _ in range(2):
            assert site.db.session.scalar(tenant) == "one"
            assert site.db.session.scalar(tenant) == "one"
            site.db.session.remove()


def test_driver_before_its_transaction(make: Callable[..., Site]) -> None:
    """The driver's connection has a block also before SQLAlchemy begins one."""
    site = make()
    with site.app.test_request_context(), using_slave():
        for _ in range(2):
            with site.db.engine.connect() as connection:
                cursor: Any = connection.connection.cursor(name="mine")
                cursor.execute("select generate_series(1, 5)")
                assert len(cursor.fetchall()) == 5
                cursor.close()


def test_hearing_begins_nothing(make: Callable[..., Site], standby: Standby) -> None:
    """Who listens to statements makes no read dearer."""
    site = make()
    with site.app.test_request_context():
        engine = site.db.engines["slave_1"]
        event.listen(engine, "after_cursor_execute", lambda *_: None)
    assert not in_block(site, standby, ALONE["text"])


def test_cursors_that_are_heard(make: Callable[..., Site], standby: Standby) -> None:
    """While a listener is given cursors every read has its block, and no longer."""
    site = make()
    with site.app.test_request_context():
        engine = site.db.engine

    def hear(*_: object) -> None:
        """Do nothing."""

    for name in ("before_cursor_execute", "do_execute", "do_executemany"):
        assert not in_block(site, standby, ALONE["text"])
        event.listen(engine, name, hear)
        with site.app.test_request_context():
            assert state_of(standby, site.who().pid) == "idle in transaction"
        event.remove(engine, name, hear)
    assert not in_block(site, standby, ALONE["text"])


def test_lost_before_its_block(
    make: Callable[..., Site], standby: Standby, healthy_cluster: Cluster
) -> None:
    """A connection lost before a block begins is replaced by the primary's."""
    site = make()
    with site.app.test_request_context():
        assert site.who().server == standby.name
        end_backends(standby)
        assert site.db.session.scalar(select(func.now())) is not None
        assert site.who().server == "primary"
