"""Reads that a MariaDB replica cannot answer, though it takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from flask_replicated import FlaskReplicated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.mariadb.conftest import Servers
    from tests.mariadb.servers import Server

pytestmark = pytest.mark.mariadb

WHO = text("SELECT @@report_host")


class Shop:
    """An application over some of the servers."""

    def __init__(self, primary: Server, *replicas: Server, **options: Any) -> None:
        self.app = Flask("shop")
        self.app.testing = True
        self.app.config["SQLALCHEMY_DATABASE_URI"] = primary.url(database="shop")
        self.app.config["REPLICATED_BREAKER_RESET"] = 60
        self.app.config["REPLICATED_BREAKER_MAX_RESET"] = 60
        self.app.config["SQLALCHEMY_BINDS"] = {
            f"slave_{number}": {"url": one.url(database="shop"), **options}
            for number, one in enumerate(replicas, start=1)
        }
        self.db = SQLAlchemy(self.app)
        FlaskReplicated(self.app)

    def get(self, *statements: str) -> list[Any]:
        """Return what a GET that executes these has seen, and who served it last."""
        with self.app.test_request_context("/"):
            seen = [self.db.session.scalar(text(one)) for one in statements]
            return [*seen, self.db.session.scalar(WHO)]

    def live(self) -> set[str]:
        """Return the replicas in rotation."""
        with self.app.app_context():
            return set(self.app.extensions["replicated"].pool().snapshot().live)


@pytest.fixture
def build(servers: Servers) -> Iterator[Callable[..., Shop]]:
    """Give a function that makes applications; each server has its database."""
    made: list[Shop] = []
    for server in (servers.primary, servers.other):
        server.execute("CREATE DATABASE shop")
    servers.primary.execute("CREATE TABLE shop.item (n INT)")
    servers.primary.execute("INSERT INTO shop.item VALUES (1)")
    _follow(servers)

    def build(primary: Server, *replicas: Server, **options: Any) -> Shop:
        made.append(Shop(primary, *replicas, **options))
        return made[-1]

    yield build
    for shop in made:
        with shop.app.app_context():
            for engine in shop.db.engines.values():
                engine.dispose()
    for server in (servers.primary, servers.other):
        server.execute("DROP DATABASE shop")
    _follow(servers)


def _follow(servers: Servers) -> None:
    ((position,),) = servers.primary.execute("SELECT @@gtid_binlog_pos")
    servers.replica.execute(f"SELECT MASTER_GTID_WAIT('{position}', 30)")


class TestMissing:
    """The replica has the table of an earlier version, and nothing of the new one."""

    @pytest.fixture
    def shop(self, build: Callable[..., Shop], servers: Servers) -> Shop:
        """Give an application whose replica is behind a migration."""
        return self.make(build, servers)

    def make(
        self, build: Callable[..., Shop], servers: Servers, **options: Any
    ) -> Shop:
        """Make it, with these options of its bind."""
        servers.other.execute("CREATE TABLE shop.item (n INT)")
        for statement in (
            "ALTER TABLE shop.item ADD COLUMN stars INT DEFAULT 1",
            "CREATE INDEX by_stars ON shop.item (stars)",
            "CREATE TABLE shop.label AS SELECT 1 AS n",
            "CREATE FUNCTION shop.stars() RETURNS INT DETERMINISTIC RETURN 1",
        ):
            servers.primary.execute(statement)
        return build(servers.primary, servers.other, **options)

    @pytest.mark.parametrize(
        "statement",
        [
            "SELECT n FROM label",
            "SELECT stars FROM item",
            "SELECT stars()",
            "SELECT count(*) FROM item FORCE INDEX (by_stars)",
        ],
        ids=["table", "column", "function", "index"],
    )
    def test_first(self, shop: Shop, statement: str) -> None:
        """The primary answers, for the rest of the request."""
        assert shop.get(statement) == [1, "primary"]
        assert shop.get() == ["other"]

    def test_fixed_snapshot(self, shop: Shop) -> None:
        """A transaction that has read is one snapshot, of the replica."""
        with pytest.raises(DBAPIError, match=r"1146.*shop\.label"):
            shop.get("SELECT count(*) FROM item", "SELECT n FROM label")

    def test_newest_data(self, build: Callable[..., Shop], servers: Servers) -> None:
        """Where each statement sees the newest data, the primary may go on."""
        shop = self.make(build, servers, isolation_level="READ COMMITTED")
        seen = shop.get("SELECT count(*) FROM item", "SELECT n FROM label")
        assert seen == [0, 1, "primary"]

    def test_nowhere(self, shop: Shop) -> None:
        """What is nowhere is the primary's to say."""
        with pytest.raises(DBAPIError, match=r"1146.*nowhere") as caught:
            shop.get("SELECT n FROM nowhere")
        assert caught.value.__context__ is caught.value.orig


def signal(server: Server, code: int, words: str) -> None:
    """Let a function of one server fail with an error of the server's own."""
    server.execute(
        "CREATE OR REPLACE FUNCTION shop.f() RETURNS INT DETERMINISTIC BEGIN SIGNAL "
        f"SQLSTATE '08S01' SET MYSQL_ERRNO = {code}, MESSAGE_TEXT = '{words}'; "
        "RETURN 0; END"
    )


class TestCannotServe:
    """A replica answers with what only its own condition can explain."""

    @pytest.fixture
    def shop(self, build: Callable[..., Shop], servers: Servers) -> Shop:
        """Give an application with two replicas."""
        servers.primary.execute(
            "CREATE FUNCTION shop.f() RETURNS INT DETERMINISTIC RETURN 1"
        )
        _follow(servers)
        return build(servers.primary, servers.replica, servers.other)

    @pytest.mark.parametrize(
        ("code", "words"),
        [
            (1047, "WSREP has not yet prepared node for application use"),
            (1041, "Out of memory"),
            (1053, "Server shutdown in progress"),
            (1927, "Connection was killed"),
        ],
    )
    def test_runs_again(
        self, shop: Shop, servers: Servers, code: int, words: str
    ) -> None:
        """The read runs again on another one, and nobody notices."""
        signal(servers.other, code, words)
        answers = [shop.get("SELECT f()") for _ in range(8)]
        assert answers == [[1, "standby_1"]] * 8

    def test_goes_on(self, shop: Shop, servers: Servers) -> None:
        """A node that has left its cluster takes no more reads."""
        signal(servers.other, 1047, "WSREP has not yet prepared node")
        for _ in range(4):
            shop.get("SELECT f()")
        assert shop.live() == {"slave_1"}
