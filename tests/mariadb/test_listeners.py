"""Listeners that make a connection to MariaDB what it has to be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from flask_replicated import RoutedSession, replicated_engine, using_slave

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.mariadb.conftest import Servers

pytestmark = pytest.mark.mariadb
SETTING = sa.text("SELECT @@sql_select_limit, @@port")


def by_connect(engine: sa.Engine) -> None:
    """Set it for each new connection."""

    @event.listens_for(engine, "connect")
    def connect(driver: Any, _record: Any) -> None:
        driver.cursor().execute("SET SESSION sql_select_limit = 1000")


def by_engine_connect(engine: sa.Engine) -> None:
    """Set it for each connection that SQLAlchemy makes."""

    @event.listens_for(engine, "engine_connect")
    def connect(connection: sa.Connection) -> None:
        connection.execute(sa.text("SET SESSION sql_select_limit = 1000"))
        connection.commit()


def by_init_command(engine: sa.Engine) -> None:
    """Let the driver set it."""

    @event.listens_for(engine, "do_connect")
    def connect(_dialect: Any, _record: Any, _cargs: Any, cparams: Any) -> None:
        cparams["init_command"] = "SET SESSION sql_select_limit = 1000"


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("way", [by_connect, by_engine_connect, by_init_command])
def test_setting(
    servers: Servers, way: Callable[[sa.Engine], None], *, before: bool
) -> None:
    """A setting holds on every server, and keeps no connection from the next user."""
    primary = sa.create_engine(servers.primary.url())
    if before:
        way(primary)
    replica = sa.create_engine(servers.replica.url())
    engine = replicated_engine(primary, {"slave_1": replica})
    if not before:
        way(engine)
    opened: list[object] = []
    event.listen(engine, "connect", lambda *_: opened.append(1))
    seen: set[tuple[int, ...]] = set()
    for _ in range(3):
        with using_slave(), RoutedSession(engine) as session:
            seen.add(tuple(session.execute(SETTING).one()))
        with RoutedSession(engine) as session:
            seen.add(tuple(session.execute(SETTING).one()))
            session.commit()
    engine.dispose()
    ports = {sa.make_url(one.url()).port for one in (servers.primary, servers.replica)}
    assert seen == {(1000, port) for port in ports}
    assert len(opened) == 2
