"""What a new connection to the primary finds out on MariaDB: is it a standby's?"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from flask_replicated import PrimaryUnavailableError, replicated_engine
from tests.chaos.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flask_replicated.engine.engines import RoutedEngine
    from tests.mariadb.conftest import Servers
    from tests.mariadb.servers import Server

pytestmark = pytest.mark.mariadb

WHO = sa.text("SELECT @@report_host")


@pytest.fixture
def proxy(servers: Servers) -> Iterator[Proxy]:
    """Give an address that leads to the primary, at first."""
    with Proxy(servers.primary.port) as one:
        yield one


@pytest.fixture
def engine(servers: Servers, proxy: Proxy) -> Iterator[RoutedEngine]:
    """Give a pool whose primary is behind the proxy, and keeps no connection."""
    url = sa.make_url(servers.primary.url()).set(port=proxy.port)
    made = replicated_engine(
        sa.create_engine(url, poolclass=sa.NullPool),
        {"slave_1": sa.create_engine(servers.replica.url())},
        REPLICATED_PROBE_INTERVAL=0,
    )
    yield made
    made.dispose()


@contextmanager
def read_only(server: Server) -> Iterator[None]:
    """Let a server take no writes."""
    server.execute("SET GLOBAL read_only = ON")
    try:
        yield
    finally:
        server.execute("SET GLOBAL read_only = OFF")


def who(engine: RoutedEngine) -> str:
    """Return which server the primary's address leads to."""
    with engine.primary.connect() as connection:
        return str(connection.scalar(WHO))


def test_a_standby(engine: RoutedEngine, servers: Servers, proxy: Proxy) -> None:
    """One that replicates and is read only is not used; the primary is, later."""
    assert who(engine) == "primary"
    with read_only(servers.replica):
        proxy.target = servers.replica.port
        with pytest.raises(PrimaryUnavailableError, match="is a standby") as caught:
            who(engine)
        assert caught.value.setting == "primary"
        proxy.target = servers.primary.port
        assert who(engine) == "primary"


def test_a_standby_at_first(
    engine: RoutedEngine, servers: Servers, proxy: Proxy
) -> None:
    """So it is where the process has never seen the primary."""
    proxy.target = servers.replica.port
    with read_only(servers.replica), pytest.raises(PrimaryUnavailableError):
        who(engine)


def test_made_read_only(engine: RoutedEngine, servers: Servers) -> None:
    """A primary that takes no writes for a while serves reads."""
    with read_only(servers.primary):
        assert who(engine) == "primary"


def test_replicates(engine: RoutedEngine, servers: Servers, proxy: Proxy) -> None:
    """A primary may itself replicate from another server, and be made read only."""
    proxy.target = servers.replica.port
    assert who(engine) == "standby_1"
    with read_only(servers.replica):
        assert who(engine) == "standby_1"


def test_takes_writes(
    engine: RoutedEngine,
    servers: Servers,
    proxy: Proxy,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A replica that is not read only is used, with one warning that names it."""
    assert who(engine) == "primary"
    said = "primary leads to a server (server_id "
    for _ in range(2):
        proxy.target = servers.replica.port
        assert who(engine) == "standby_1"
        proxy.target = servers.primary.port
        assert who(engine) == "primary"
    assert caplog.text.count(said) == 1
    (number,) = servers.replica.execute("SELECT @@server_id")[0]
    assert f"{said}{number})" in caplog.text


def test_may_not_ask(engine: RoutedEngine, servers: Servers, proxy: Proxy) -> None:
    """Where the account may not ask for the source, nothing is held against it."""
    servers.primary.execute("CREATE OR REPLACE USER few@localhost")
    servers.primary.execute("CREATE OR REPLACE USER few@'127.0.0.1'")
    position = servers.primary.execute("SELECT @@gtid_binlog_pos")[0][0]
    servers.replica.execute(f"SELECT MASTER_GTID_WAIT('{position}', 30)")

    @sa.event.listens_for(engine.real, "do_connect")
    def by_few(_d: object, _r: object, _a: object, options: dict[str, object]) -> None:
        options["user"] = "few"

    proxy.target = servers.replica.port
    with read_only(servers.replica):
        assert who(engine) == "standby_1"
