"""Another database than the primary's behind a replica's URL, on MariaDB."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from examples.cluster import wait_until
from flask_replicated import replicated_engine, using_slave
from flask_replicated.replica.primary_status import PrimaryReport, PrimaryStatus
from flask_replicated.replica.same_database import PrimaryIdentity, SameDatabaseCheck
from tests.pools import live

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flask_replicated.engine.engines import RoutedEngine
    from tests.mariadb.conftest import Servers

pytestmark = pytest.mark.mariadb

WHERE = sa.text("SELECT DATABASE()")


@pytest.fixture(autouse=True)
def _databases(servers: Servers) -> Iterator[None]:
    for server in (servers.primary, servers.other):
        for name in ("market", "attic"):
            server.execute(f"CREATE DATABASE IF NOT EXISTS {name}")
    wait_until(
        lambda: ("attic",) in servers.replica.execute("SHOW DATABASES"),
        "them to be replicated",
    )
    yield
    for server in (servers.primary, servers.other):
        for name in ("market", "attic", "Market"):
            server.execute(f"DROP DATABASE IF EXISTS {name}")


def build(made: list[RoutedEngine], primary: str, replica: str) -> RoutedEngine:
    """Make a pool of one replica."""
    replicas = {"slave_1": sa.create_engine(replica)}
    made.append(
        replicated_engine(
            sa.create_engine(primary), replicas, REPLICATED_PROBE_INTERVAL=0.2
        )
    )
    return made[-1]


def where(engine: RoutedEngine) -> Any:
    """Return the name of the database that a read finds."""
    with using_slave(), engine.connect() as connection:
        return connection.scalar(WHERE)


def said(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    """Return what was logged at a level."""
    return [one.getMessage() for one in caplog.records if one.levelno == level]


@pytest.mark.parametrize("user", ["root", "few"])
def test_another_database(
    servers: Servers,
    made: list[RoutedEngine],
    user: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is left out, whatever its account may ask, and the primary reads."""
    servers.primary.execute("CREATE OR REPLACE USER few@'127.0.0.1'")
    servers.primary.execute("GRANT SELECT ON attic.* TO few@'127.0.0.1'")
    wait_until(
        lambda: ("few",) in servers.replica.execute("SELECT user FROM mysql.user"),
        "the account to be replicated",
    )
    primary = servers.primary.url(database="market")
    engine = build(made, primary, servers.replica.url(user, "attic"))
    assert [where(engine) for _ in range(4)] == ["market"] * 4
    assert not live(engine)
    (line, *_) = [one for one in said(caplog, logging.ERROR) if "configured" in one]
    assert "'slave_1' is not configured right" in line
    assert "its database is 'attic', and the primary's is 'market'" in line


def test_on_the_primary(
    servers: Servers, made: list[RoutedEngine], caplog: pytest.LogCaptureFixture
) -> None:
    """So is another database of the primary's own server."""
    primary = servers.primary
    engine = build(made, primary.url(database="market"), primary.url(database="attic"))
    assert where(engine) == "market"
    assert any("not configured right" in one for one in said(caplog, logging.ERROR))


@pytest.mark.parametrize("where_to", ["replica", "primary"])
def test_no_database(
    servers: Servers,
    made: list[RoutedEngine],
    where_to: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """So is a replica whose URL names none, where the primary's does."""
    url = getattr(servers, where_to).url()
    engine = build(made, servers.primary.url(database="market"), url)
    assert [where(engine) for _ in range(4)] == ["market"] * 4
    assert not live(engine)
    (line, *_) = [one for one in said(caplog, logging.ERROR) if "configured" in one]
    assert "it names no database, and the primary's is 'market'" in line


def test_neither_names_one(
    servers: Servers, made: list[RoutedEngine], caplog: pytest.LogCaptureFixture
) -> None:
    """Where the primary has none either, all tables are named in full."""
    engine = build(made, servers.primary.url(), servers.replica.url())
    assert where(engine) is None
    assert live(engine) == {"slave_1"}
    assert not caplog.records


def test_capital_letters(
    servers: Servers, made: list[RoutedEngine], caplog: pytest.LogCaptureFixture
) -> None:
    """No replica is refused for a name that may be the same to a server."""
    servers.primary.execute("CREATE DATABASE IF NOT EXISTS Market")
    wait_until(
        lambda: ("Market",) in servers.replica.execute("SHOW DATABASES"),
        "it to be replicated",
    )
    urls = (
        servers.primary.url(database="market"),
        servers.replica.url(database="Market"),
    )
    assert where(build(made, *urls)) == "Market"
    assert not caplog.records


def test_renamed_on_the_way(
    servers: Servers, made: list[RoutedEngine], caplog: pytest.LogCaptureFixture
) -> None:
    """A database that replication gives another name is no mistake."""
    for sql in ("STOP SLAVE", "SET GLOBAL replicate_rewrite_db = 'market->attic'"):
        servers.replica.execute(sql)
    servers.replica.execute("START SLAVE")
    wait_until(servers.replica.follows, "it to replicate")
    primary = servers.primary.url(database="market")
    try:
        engine = build(made, primary, servers.replica.url(database="attic"))
        assert [where(engine) for _ in range(4)] == ["attic"] * 4
        assert live(engine) == {"slave_1"}
        assert not caplog.records
    finally:
        servers.replica.execute("STOP SLAVE")
        servers.replica.execute("SET GLOBAL replicate_rewrite_db = ''")
        servers.replica.execute("START SLAVE")
        wait_until(servers.replica.follows, "it to replicate")


class Old:
    """A connection to a server that is older, and does not tell of its rules."""

    def cursor(self) -> Old:
        """Return what executes."""
        return self

    def execute(self, sql: str) -> None:
        """Know no question but one."""
        if "STATUS" in sql:
            raise RuntimeError("access denied")
        self._row = ("attic",) if "DATABASE()" in sql else None

    def fetchone(self) -> tuple[str] | None:
        """Return a row."""
        return self._row

    def close(self) -> None:
        """End."""

    def rollback(self) -> None:
        """End what has begun."""


def test_where_it_cannot_be_told(caplog: pytest.LogCaptureFixture) -> None:
    """It is used, and a WARNING, once, says what to check."""
    status = PrimaryStatus()
    status.accept(PrimaryReport(database="market"))
    primary = PrimaryIdentity(sa.create_engine("mysql+pymysql://h/market"), status, 1)
    check = SameDatabaseCheck("slave_1", "mysql", primary)
    for _ in range(2):
        check.check(Old())
    (line,) = said(caplog, logging.WARNING)
    assert "replicate-rewrite-db" in line
    assert "'attic'" in line
