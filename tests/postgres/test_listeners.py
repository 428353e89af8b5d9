"""Listeners that make a PostgreSQL connection what it has to be."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, make_url, text

from flask_replicated import using_master, using_slave
from tests.postgres.support import STANDBYS

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection, Engine

    from examples.cluster import Cluster
    from tests.postgres.support import Backend, Build, Site

pytestmark = pytest.mark.postgres
OWNER = text("select owner from account")
EVERYBODY = {"primary", *STANDBYS}


@pytest.fixture(scope="module")
def _tenants(cluster: Cluster) -> None:
    for schema in ("public", "tenant"):
        if schema != "public":
            cluster.primary.execute(f"create schema {schema}")
        cluster.primary.execute(f"create table {schema}.account (owner text)")
        cluster.primary.execute(f"insert into {schema}.account values ('{schema}')")
    cluster.wait_replicated()


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


def test_loss_is_heard(build: Build, healthy_cluster: Cluster) -> None:
    """A replica's failure is heard, and the read goes on elsewhere all the same."""
    site = build()
    heard: list[Any] = []

    @event.listens_for(engine_of(site), "handle_error")
    def handle(context: Any) -> None:
        heard.append(context.is_disconnect)

    with site.app.test_request_context():
        server, pid = site.who()
        standby = next(s for s in healthy_cluster.standbys if s.name == server)
        site.db.session.rollback()
        site.who()
        standby.execute(f"select pg_terminate_backend({pid})")
        site.texts()
    assert heard == [True]
