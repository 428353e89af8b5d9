"""A replica's URL that names several hosts: each has its share of the time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import sqlalchemy as sa

from flask_replicated.replica.connection_events import ReplicaServer
from tests.support import connect_arguments_of

if TYPE_CHECKING:
    from sqlalchemy import Engine

PASSWORD = "hunter2"
TWO = "host=a:5432&host=b:5433"
THREE = "host=a,b,c&port=1,2,3"
STANDBY = "&target_session_attrs=prefer-standby"


class Short(NamedTuple):
    """Hosts for whose driver the time is too short.

    Attributes:
        libpq: The version that psycopg2 has.
        seconds: What a connect may take.
        each: What the driver is told for each host.
        longest: What a connect may take all the same.
    """

    driver: str
    libpq: int
    query: str
    seconds: int
    each: int
    longest: int


def engine_of(driver: str, query: str = "", **arguments: Any) -> Engine:
    """Return an engine of a driver."""
    pytest.importorskip(driver)
    url = f"postgresql+{driver}://u:{PASSWORD}@/db?{query}"
    return sa.create_engine(url, connect_args=arguments)


def told(engine: Engine, seconds: float) -> object:
    """Return the seconds that the driver is told to connect in."""
    ReplicaServer("slave_1", engine, seconds)
    return connect_arguments_of(engine)["connect_timeout"]


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
@pytest.mark.parametrize(
    ("query", "seconds", "each"),
    [
        ("host=a", 2, 2),
        ("host=a", 1.5, 2),
        ("host=/run/postgresql", 5, 5),
        ("", 5, 5),
        (TWO, 4, 2),
        (TWO, 9, 4),
        (THREE, 6, 2),
        (THREE, 11.5, 4),
        ("host=a&hostaddr=192.0.2.1,192.0.2.2", 6, 3),
        (TWO + STANDBY, 12, 3),
        ("host=a" + STANDBY, 6, 3),
    ],
)
def test_shares_that_suffice(
    driver: str,
    query: str,
    seconds: float,
    each: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """All hosts together take no longer than one may, and nothing is said."""
    assert told(engine_of(driver, query), seconds) == each
    assert not caplog.records


@pytest.mark.parametrize(
    "short",
    [
        Short("psycopg", 170000, TWO, 2, 2, 4),
        Short("psycopg", 170000, TWO, 3, 2, 4),
        Short("psycopg", 170000, THREE, 2, 2, 6),
        Short("psycopg", 170000, "host=a" + STANDBY, 2, 2, 4),
        Short("psycopg2", 160009, TWO, 2, 2, 4),
        Short("psycopg2", 170000, THREE, 2, 1, 3),
        Short("psycopg2", 170000, TWO + STANDBY, 2, 1, 4),
    ],
)
def test_shares_that_do_not(
    short: Short, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no driver takes less, a warning says how long it takes, and what to do."""
    engine = engine_of(short.driver, short.query)
    if short.driver == "psycopg2":
        monkeypatch.setattr(engine.dialect.dbapi, "__libpq_version__", short.libpq)
    assert told(engine, short.seconds) == short.each
    (record,) = caplog.records
    message = record.getMessage()
    assert record.levelname == "WARNING"
    assert "replica 'slave_1'" in message
    assert f"tries {short.longest // short.each} times" in message
    assert f"no less than {short.each} seconds" in message
    assert f"may take {short.longest} seconds" in message
    assert "a bind of its own" in message
    assert f"set REPLICATED_CONNECT_TIMEOUT = {short.longest}." in message
    assert PASSWORD not in message


def test_newer_libpq_takes_a_second(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hosts have a second each where the driver takes one."""
    engine = engine_of("psycopg2", TWO)
    monkeypatch.setattr(engine.dialect.dbapi, "__libpq_version__", 170000)
    assert told(engine, 2) == 1
    assert not caplog.records


def test_advice_helps(caplog: pytest.LogCaptureFixture) -> None:
    """With the timeout that a warning names, there is none."""
    assert told(engine_of("psycopg", THREE + STANDBY), 2) == 2
    (record,) = caplog.records
    assert "REPLICATED_CONNECT_TIMEOUT = 12." in record.getMessage()
    caplog.clear()
    assert told(engine_of("psycopg", THREE + STANDBY), 12) == 2
    assert not caplog.records


def test_own_limit_is_stronger(caplog: pytest.LogCaptureFixture) -> None:
    """A limit in the bind's URL or arguments is left alone."""
    assert told(engine_of("psycopg", TWO + "&connect_timeout=7"), 2) == "7"
    assert not caplog.records
    assert told(engine_of("psycopg", "host=a", host="a,b", connect_timeout=7), 2) == 7


def test_hosts_in_the_arguments() -> None:
    """Hosts that stand in the bind's ``connect_args`` share the time, too."""
    assert told(engine_of("psycopg", "host=a", host="a,b", port="1,2"), 8) == 4


def test_other_drivers() -> None:
    """What knows one host alone has all the time, and no commas are counted."""
    pytest.importorskip("pymysql")
    engine = sa.create_engine("mysql+pymysql://u@a,b/db")
    assert told(engine, 2) == 2
