"""Listeners that make a PostgreSQL connection what it has to be."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, func, make_url, select, text
from sqlalchemy.exc import DataError
from sqlalchemy.pool import Pool

from flask_replicated import using_master, using_slave
from tests.postgres.support import STANDBYS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection, Engine

    from examples.cluster import Cluster
    from tests.postgres.support import Backend, Build, Site

pytestmark = pytest.mark.postgres
OWNER = text("select owner from account")
EVERYBODY = {"primary", *STANDBYS}


@pytest.fixture(scope="module")
def _tenants(cluster: Cluster) -> Iterator[None]:
    for schema in ("public", "tenant"):
        if schema != "public":
            cluster.primary.execute(f"create schema {schema}")
        cluster.primary.execute(f"create table {schema}.account (owner text)")
        cluster.primary.execute(f"insert into {schema}.account values ('{schema}')")
    cluster.wait_replicated()
    yield
    cluster.primary.execute("drop schema tenant cascade")
    cluster.primary.execute("drop table account")


def engine_of(site: Site) -> Engine:
    """Return ``db.engine``."""
    with site.app.app_context():
        return site.db.engine


def by_connect(engine: Engine) -> None:
    """Set it for each new connection, in the way that SQLAlchemy's manual shows."""

    @event.listens_for(engine, "connect", insert=True)
    def connect(driver: Any, _record: Any) -> None:
        before, driver.autocommit = driver.autocommit, True
        driver.cursor().execute("set session search_path = tenant")
        driver.autocommit = before


def by_committing(engine: Engine) -> None:
    """Set it for each new connection, and commit."""

    @event.listens_for(engine, "connect")
    def connect(driver: Any, _record: Any) -> None:
        driver.cursor().execute("set search_path = tenant")
        driver.commit()


def by_checkout(engine: Engine) -> None:
    """Set it for each use."""

    @event.listens_for(engine, "checkout")
    def checkout(driver: Any, _record: Any, _proxy: Any) -> None:
        driver.cursor().execute("set search_path = tenant")
        driver.commit()


def by_begin(engine: Engine) -> None:
    """Set it for each transaction."""

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("set local search_path = tenant")


def by_engine_connect(engine: Engine) -> None:
    """Set it for each connection that SQLAlchemy makes."""

    @event.listens_for(engine, "engine_connect")
    def connect(connection: Connection) -> None:
        connection.exec_driver_sql("set search_path = tenant")
        connection.commit()


def by_startup(engine: Engine) -> None:
    """Ask for it as the server is connected to."""

    @event.listens_for(engine, "do_connect")
    def connect(_dialect: Any, _record: Any, _cargs: Any, cparams: Any) -> None:
        cparams["options"] = "-c search_path=tenant"


def by_statement(engine: Engine) -> None:
    """Name the schema in each statement."""

    @event.listens_for(engine, "before_cursor_execute", retval=True)
    def name(*given: Any) -> Any:
        _connection, _cursor, statement, parameters, *_ = given
        return statement.replace("account", "tenant.account"), parameters


WAYS = (
    by_connect,
    by_committing,
    by_checkout,
    by_begin,
    by_engine_connect,
    by_startup,
    by_statement,
)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.usefixtures("_tenants")
def test_schema(build: Build, way: Callable[[Engine], None]) -> None:
    """A tenant's rows are served by every server, however its schema is set."""
    site = build()
    way(engine_of(site))
    seen: Counter[str] = Counter()
    for method in ("GET", "GET", "GET", "POST") * 2:
        with site.app.test_request_context(method=method):
            for _ in range(2):
                assert site.db.session.scalar(OWNER) == "tenant"
                assert site.db.session.scalar(OWNER) == "tenant"
                seen[site.who().server] += 1
                site.db.session.rollback()
    assert seen.keys() == EVERYBODY


@pytest.mark.usefixtures("_tenants")
@pytest.mark.parametrize("way", [by_begin, by_engine_connect])
def test_setting_costs_nothing(build: Build, way: Callable[[Engine], None]) -> None:
    """What is set for each user keeps no connection from the next, and no replica."""
    site = build()
    way(engine_of(site))
    seen: set[Backend] = set()
    for _ in range(9):
        with site.app.test_request_context():
            with using_master():
                assert site.db.session.scalar(OWNER) == "tenant"
                site.db.session.rollback()
            seen.add(site.who())
            assert site.db.session.scalar(OWNER) == "tenant"
    assert len(seen) == len(STANDBYS)
    assert {backend.server for backend in seen} == set(STANDBYS)


@pytest.mark.usefixtures("_tenants")
def test_setting_of_a_connection(build: Build) -> None:
    """What is set and committed stays set while the connection is in use, not after."""
    site = build()
    with site.app.test_request_context(), using_slave():
        with site.db.engine.connect() as connection:
            connection.execute(text("set search_path = tenant"))
            connection.commit()
            assert connection.scalar(OWNER) == "tenant"
        for _ in STANDBYS:
            with site.db.engine.connect() as connection:
                assert connection.scalar(OWNER) == "public"


def from_pool(engine: Engine, sql: list[str]) -> None:
    """Send it with a cursor of the connection that is taken from the pool."""

    @event.listens_for(engine, "checkout")
    def checkout(driver: Any, _record: Any, _proxy: Any) -> None:
        for one in sql:
            driver.cursor().execute(one)


def from_class(_engine: Engine, sql: list[str]) -> Callable[[], None]:
    """Do so for every connection pool."""

    def checkout(driver: Any, _record: Any, _proxy: Any) -> None:
        for one in sql:
            driver.cursor().execute(one)

    event.listen(Pool, "checkout", checkout)
    return lambda: event.remove(Pool, "checkout", checkout)


def before_cursor(engine: Engine, sql: list[str]) -> None:
    """Send it with the cursor of the statement that is next."""

    @event.listens_for(engine, "before_cursor_execute")
    def execute(_connection: Connection, cursor: Any, *_: object) -> None:
        for one in sql:
            cursor.execute(one)


def before_text(engine: Engine, sql: list[str]) -> None:
    """Send it in one text with the statement that is next."""

    @event.listens_for(engine, "before_cursor_execute", retval=True)
    def execute(*given: Any) -> Any:
        _connection, _cursor, statement, parameters, *_ = given
        return "; ".join([*sql, statement]), parameters


def for_dialect(engine: Engine, sql: list[str]) -> None:
    """Send it with the cursor that the dialect is about to use."""

    @event.listens_for(engine, "do_execute")
    @event.listens_for(engine, "do_execute_no_params")
    def execute(cursor: Any, *_: object) -> None:
        for one in sql:
            cursor.execute(one)


def for_dialect_first(engine: Engine, sql: list[str]) -> None:
    """Do so before any other listener."""

    @event.listens_for(engine, "do_execute", insert=True)
    def execute(cursor: Any, *_: object) -> None:
        for one in sql:
            cursor.execute(one)


PAST_SQLALCHEMY = (
    from_pool,
    from_class,
    before_cursor,
    before_text,
    for_dialect,
    for_dialect_first,
)


@pytest.mark.usefixtures("_tenants")
@pytest.mark.parametrize("words", ["set", "set local"])
@pytest.mark.parametrize("way", PAST_SQLALCHEMY)
@pytest.mark.parametrize("late", [False, True])
def test_setting_ends_with_its_user(
    build: Build,
    way: Callable[[Engine, list[str]], Callable[[], None] | None],
    words: str,
    driver: str,
    *,
    late: bool,
) -> None:
    """What a listener sets with the driver's cursor holds for one transaction."""
    if way is before_text and driver == "psycopg":
        pytest.skip("shows the rows of the first statement in a text")
    site, sql = build(), list[str]()
    if late:  # connections are in the pools already
        site.count(6)
    # The pool's class is heard before what ends autocommit, once.
    once = late and way is from_class and words == "set local"

    def visit(method: str, schema: str) -> None:
        sql[:] = [f"{words} search_path = tenant"] * (schema == "tenant")
        with site.app.test_request_context(method=method):
            if schema == "public" or not once:
                assert site.db.session.scalar(OWNER) == schema

    undo = way(engine_of(site), sql)
    try:
        for method in ("GET", "GET", "POST") * 3:
            visit(method, "tenant")
            visit(method, "public")
    finally:
        if undo is not None:
            undo()


@pytest.mark.usefixtures("_tenants")
def test_setting_of_a_late_listener(build: Build) -> None:
    """What a listener to one connection sets is not left to the next user."""
    site = build()
    for _ in range(2 * len(STANDBYS)):
        with site.app.test_request_context():
            connection = site.db.session.connection()
            assert site.db.session.scalar(OWNER) == "public"
            before_cursor(connection, ["set search_path = tenant"])  # type: ignore[arg-type]  # listens alike
            assert site.db.session.scalar(OWNER) == "tenant"
    for _ in STANDBYS:
        with site.app.test_request_context():
            assert site.db.session.scalar(OWNER) == "public"


def test_password(build: Build, healthy_cluster: Cluster) -> None:
    """A listener that has the password for each server lets all be reached."""
    site = build()
    asked: set[Any] = set()

    @event.listens_for(engine_of(site), "do_connect")
    def token(_dialect: Any, _record: Any, _cargs: Any, cparams: Any) -> None:
        asked.add(str(cparams["port"]))
        cparams["password"] = f"token for {cparams['port']}"

    assert site.count(6).keys() == set(STANDBYS)
    site.post("new")
    servers = (healthy_cluster.primary, *healthy_cluster.standbys)
    assert asked == {str(make_url(server.url()).port) for server in servers}


class OurError(Exception):
    """An application's own."""


def only_hear(engine: Engine, heard: list[object]) -> None:
    """Hear of errors."""

    @event.listens_for(engine, "handle_error")
    def handle(context: Any) -> None:
        heard.append(context.original_exception)


def replace(engine: Engine, heard: list[object]) -> None:
    """Hear of errors, and raise another one for each."""

    @event.listens_for(engine, "handle_error")
    def handle(context: Any) -> Exception:
        heard.append(context.original_exception)
        return OurError(str(context.original_exception))


@pytest.mark.parametrize("listen", [only_hear, replace])
class TestErrors:
    """Listeners to ``handle_error`` hear of replicas, and reads go on all the same."""

    @pytest.fixture
    def heard(self) -> list[object]:
        """Give the list of what was heard."""
        return []

    @pytest.fixture
    def site(
        self,
        build: Build,
        listen: Callable[[Engine, list[object]], None],
        heard: list[object],
    ) -> Site:
        """Give an application with such a listener."""
        site = build()
        listen(engine_of(site), heard)
        return site

    def test_loss(
        self, site: Site, heard: list[object], healthy_cluster: Cluster
    ) -> None:
        """A read whose replica is lost runs again elsewhere."""
        with site.app.test_request_context():
            server, pid = site.who()
            standby = next(s for s in healthy_cluster.standbys if s.name == server)
            site.db.session.rollback()
            assert site.who() == (server, pid)
            standby.execute(f"select pg_terminate_backend({pid})")
            assert site.texts() == []
        assert len(heard) == 1

    def test_hidden_write(self, site: Site, heard: list[object]) -> None:
        """A write that a replica refuses runs again on the primary."""
        with site.app.test_request_context():
            assert site.db.session.scalar(select(func.slip())) == 1
            assert site.who().server == "primary"
            site.db.session.commit()
        assert len(heard) == 1

    def test_write_stopped(self, site: Site) -> None:
        """So does one that is seen as it is about to be sent."""
        hidden = select(site.item.id).where(
            text("exists (select nextval('item_id_seq'))")
        )
        with site.app.test_request_context():
            assert site.db.session.scalars(hidden).all() == []
            assert site.who().server == "primary"

    def test_missing_table(self, site: Site, healthy_cluster: Cluster) -> None:
        """So does a read of what a replica does not have yet."""
        for standby in healthy_cluster.standbys:
            standby.execute("select pg_wal_replay_pause()")
        healthy_cluster.primary.execute("create table fresh (id int)")
        try:
            with site.app.test_request_context():
                counted = site.db.session.scalar(text("select count(*) from fresh"))
                assert counted == 0
        finally:
            healthy_cluster.primary.execute("drop table fresh")
            for standby in healthy_cluster.standbys:
                standby.execute("select pg_wal_replay_resume()")

    def test_of_the_statement(
        self,
        site: Site,
        heard: list[object],
        listen: Callable[[Engine, list[object]], None],
    ) -> None:
        """What is wrong everywhere is raised, as the listener has it."""
        right = OurError if listen is replace else DataError
        for method in ("GET", "POST"):
            with (
                site.app.test_request_context(method=method),
                pytest.raises(right, match="division by zero"),
            ):
                site.db.session.scalar(text("select 1 / 0"))
        assert len(heard) == 2


def test_loss_that_a_listener_tells(build: Build) -> None:
    """An error that a listener takes for the loss of a connection is one."""
    site = build()
    seen: list[str] = []

    @event.listens_for(engine_of(site), "handle_error")
    def handle(context: Any) -> None:
        context.is_disconnect = "division" in str(context.original_exception)

    @event.listens_for(engine_of(site), "before_cursor_execute", retval=True)
    def spoil(*given: Any) -> Any:
        connection, _cursor, statement, parameters, *_ = given
        if "divide" not in statement:
            return statement, parameters
        seen.append(str(connection.engine.url.port))
        divisor = 0 if len(seen) == 1 else 1
        return f"select 1 / {divisor}", parameters

    with site.app.test_request_context():
        assert site.db.session.scalar(text("select 'divide'")) == 1
    assert len(seen) == len(set(seen)) == 2
