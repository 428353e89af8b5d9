"""What the primary's connections have of the care that replicas' have."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from flask_replicated import PrimaryUnavailableError, ReplicatedError
from flask_replicated.engine.primary import Primary
from flask_replicated.replica.connect_timeout import _TIMEOUT_ARGUMENT
from flask_replicated.replica.primary_status import (
    PrimaryReport,
    PrimaryStatus,
    ask_primary,
)
from tests.support import Build, build_fixture, connect_arguments_of

build = build_fixture

URLS = {
    "psycopg": "postgresql+psycopg://u:hunter2@db.example/shop",
    "psycopg2": "postgresql+psycopg2://u:hunter2@db.example/shop",
    "asyncpg": "postgresql+asyncpg://u:hunter2@db.example/shop",
    "pymysql": "mysql+pymysql://u:hunter2@db.example/shop",
}


def engine_of(driver: str, query: str = "", **arguments: Any) -> sa.Engine:
    """Return an engine of a driver, which is not connected."""
    pytest.importorskip(driver)
    return sa.create_engine(URLS[driver] + query, connect_args=arguments)


def told(engine: sa.Engine, seconds: float = 3) -> dict[str, Any]:
    """Return what the driver is told when a primary connects."""
    Primary(engine, "SQLALCHEMY_DATABASE_URI", seconds, role_check=True)
    return connect_arguments_of(engine)


class TestConnectTimeout:
    """``REPLICATED_CONNECT_TIMEOUT`` holds for the primary, too."""

    @pytest.mark.parametrize("driver", URLS)
    def test_limit(self, driver: str) -> None:
        """Each driver is told, in whole seconds."""
        assert told(engine_of(driver), 2.5)[_TIMEOUT_ARGUMENT[driver]] == 3

    @pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "pymysql"])
    def test_own_limit_is_stronger(self, driver: str) -> None:
        """What the URL or ``connect_args`` say stays."""
        by_url = told(engine_of(driver, "?connect_timeout=11"))
        assert int(by_url["connect_timeout"]) == 11
        by_arguments = told(engine_of(driver, connect_timeout=12))
        assert by_arguments["connect_timeout"] == 12

    def test_host_that_is_gone(self) -> None:
        """The kernel is told when to give up, unless the URL says so itself."""
        said = told(engine_of("psycopg"))
        assert (said["keepalives_idle"], said["tcp_user_timeout"]) == (4, 7000)
        said = told(engine_of("psycopg", "?tcp_user_timeout=60000"))
        assert said["tcp_user_timeout"] == "60000"

    def test_several_hosts(self, caplog: pytest.LogCaptureFixture) -> None:
        """They share the time; where it is too short, a warning says what to name."""
        engine = sa.create_engine("postgresql+psycopg://u:hunter2@/shop?host=a&host=b")
        assert told(engine, 6)["connect_timeout"] == 3
        assert not caplog.records
        engine = sa.create_engine("postgresql+psycopg://u:hunter2@/shop?host=a&host=b")
        assert told(engine, 2)["connect_timeout"] == 2
        (record,) = caplog.records
        assert "SQLALCHEMY_DATABASE_URI" in record.getMessage()
        assert "?connect_timeout=2" in record.getMessage()
        assert "may take 4 seconds" in record.getMessage()
        assert "hunter2" not in record.getMessage()

    def test_without_replicas(self, build: Build) -> None:
        """An application without replicas is left as it is."""
        site = build(replicas=())
        with site.app.app_context():
            engine = site.db.engine
        assert not engine.dialect.dispatch.do_connect
        assert not engine.pool.dispatch.checkout


class Server:
    """A connection, and its cursor, to a server that has its answers ready.

    Each answer is a row, several rows, or an error.
    """

    def __init__(self, *answers: Any) -> None:
        self._answers = list(answers)
        self._row: Any = None
        self.ended: list[str] = []

    @property
    def description(self) -> list[tuple[str]]:
        """Name the columns of a row that is given as a dictionary."""
        return [(name,) for name in self._row]

    def cursor(self) -> Server:
        """Return itself."""
        return self

    def execute(self, _sql: str) -> None:
        """Take the next answer."""
        self._row = self._answers.pop(0)
        if isinstance(self._row, Exception):
            raise self._row

    def fetchone(self) -> Any:
        """Return the answer."""
        return self._row

    def commit(self) -> None:
        """Note it."""
        self.ended.append("commit")

    def rollback(self) -> None:
        """Note it."""
        self.ended.append("rollback")

    def close(self) -> None:
        """Do nothing."""


UNKNOWN = RuntimeError("no such thing")


class TestFacts:
    """What servers say that are rarely at hand, and what is made of it."""

    @pytest.mark.parametrize(
        ("dialect", "answers", "facts"),
        [
            (
                "postgresql",
                [(False, "shop", 77, "0000000C")],
                PrimaryReport(False, True, None, 77, "shop", 12),
            ),
            (
                "postgresql",
                [(True, "shop", 77, None)],
                PrimaryReport(True, True, None, 77, "shop"),
            ),
            (
                "postgresql",
                [UNKNOWN, (True, "shop", None, None)],
                PrimaryReport(True, True, database="shop"),
            ),
            ("postgresql", [UNKNOWN, UNKNOWN], PrimaryReport()),
            ("mysql", [UNKNOWN], PrimaryReport()),
            (
                "mysql",
                [("shop", 4, 0)],
                PrimaryReport(False, server=4, database="shop"),
            ),
            ("mariadb", [(None, 4, "OFF")], PrimaryReport(False, server=4)),
            ("mysql", [(None, 4, 1), {}], PrimaryReport(False, server=4)),
            ("mysql", [(None, 4, 1), UNKNOWN, UNKNOWN], PrimaryReport(False, server=4)),
            (
                "mariadb",
                [(None, 4, "READ_ONLY"), {"Slave_IO_Running": "Connecting"}],
                PrimaryReport(True, server=4),
            ),
            (
                "mysql",
                [
                    {"DATABASE()": "shop", "@@GLOBAL.server_id": 4, "x": 1},
                    {"Replica_IO_Running": "Yes"},
                ],
                PrimaryReport(True, server=4, database="shop"),
            ),
            (
                "mysql",
                [(None, 4, 1), {"Replica_IO_Running": "No"}],
                PrimaryReport(False, server=4),
            ),
            ("other", [], PrimaryReport()),
        ],
    )
    def test_answers(
        self, dialect: str, answers: list[Any], facts: PrimaryReport
    ) -> None:
        """Only what is sure makes a standby, and what is not known is left open."""
        server = Server(*answers)
        assert ask_primary(server, dialect) == facts
        assert server.ended[-1] == "commit"

    def test_a_dead_connection(self) -> None:
        """Whoever does not answer at all is not taken for one that tells nothing."""
        server = Server(ConnectionError("gone"))

        def dead() -> None:
            raise ConnectionError("gone, too")

        server.rollback = dead  # type: ignore[method-assign]  # as a driver's would
        with pytest.raises(ConnectionError, match="gone, too"):
            ask_primary(server, "postgresql")

    def test_postgresql_standby(self) -> None:
        """It is never the primary, and what it says is not kept."""
        status = PrimaryStatus()
        assert status.accept(PrimaryReport(False, True, database="shop", timeline=3))
        assert not status.accept(PrimaryReport(True, True, database="other"))
        assert status.report.database == "shop"

    def test_mysql_made_read_only(self) -> None:
        """The server that took writes stays the primary, until another one does."""
        status = PrimaryStatus()
        assert not status.accept(PrimaryReport(True, server=2))
        assert status.accept(PrimaryReport(False, server=1))
        assert status.accept(PrimaryReport(True, server=1))
        assert not status.accept(PrimaryReport(True, server=2))
        assert status.accept(PrimaryReport(False, server=2))


def test_error() -> None:
    """It is SQLAlchemy's kind of error as well as this package's, and pickles."""
    assert {ReplicatedError, OperationalError} < set(PrimaryUnavailableError.__mro__)
    error = PrimaryUnavailableError("SQLALCHEMY_BINDS['x']", "is none.", standby=True)
    again = pickle.loads(pickle.dumps(error))
    for one in (error, again):
        assert str(one) == "SQLALCHEMY_BINDS['x']: is none."
        assert (one.setting, one.why, one.standby) == (
            "SQLALCHEMY_BINDS['x']",
            "is none.",
            True,
        )
        assert str(one.orig) == str(one)
