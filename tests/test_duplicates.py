"""Replicas whose URL is the primary's, or another replica's."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from flask_replicated import FlaskReplicated, replicated_engine

PRIMARY = "postgresql+psycopg://shop:hunter2@primary.internal/shop"
FIRST = "postgresql+psycopg://shop@one.internal/shop"
SECOND = "postgresql+psycopg://shop@two.internal/shop"
BOTH = "postgresql+psycopg://shop@/shop?host=one:5432&host=two"
WRITER = "&target_session_attrs=read-write"


@pytest.fixture(autouse=True)
def _everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "flask_replicated")


def start(binds: list[Any], primary: str = PRIMARY, **config: Any) -> None:
    """Register an application that never connects."""
    app = Flask("shop")
    app.config.update(
        SQLALCHEMY_DATABASE_URI=primary,
        SQLALCHEMY_BINDS={f"slave_{i}": one for i, one in enumerate(binds, start=1)},
        REPLICATED_CONNECT_TIMEOUT=4,  # for two hosts
        **config,
    )
    SQLAlchemy(app)
    FlaskReplicated(app)


@pytest.mark.parametrize(
    ("primary", "copied"),
    [
        (PRIMARY, PRIMARY),
        (PRIMARY, {"url": PRIMARY, "pool_size": 2}),
        (PRIMARY, "postgresql+psycopg://reader@Primary.Internal:5432/shop?sslmode=off"),
        (PRIMARY, {"url": PRIMARY, "connect_args": {"connect_timeout": 3}}),
        (PRIMARY, "postgresql+psycopg://shop@/shop?host=primary.internal"),
        ("mysql+pymysql://a@127.0.0.1/s", "mysql+pymysql://b@localhost:3306/s"),
        (BOTH, "postgresql+psycopg://shop@/shop?host=one,two&port=5432,5432"),
        (BOTH + WRITER, "postgresql+psycopg://@/shop?host=two,one" + WRITER),
    ],
)
def test_of_the_primary(
    primary: str, copied: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The primary's URL in the place of a replica's is one WARNING, with both names."""
    start([copied], primary)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    for name in ("SQLALCHEMY_BINDS['slave_1']", "SQLALCHEMY_DATABASE_URI"):
        assert name in record.getMessage()
    assert "hunter2" not in caplog.text


def test_beside_another(caplog: pytest.LogCaptureFixture) -> None:
    """So it is beside a single other one, or twice beside others."""
    for binds in ([FIRST, PRIMARY], [PRIMARY, FIRST, SECOND, PRIMARY]):
        caplog.clear()
        start(binds)
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert f"SQLALCHEMY_BINDS['slave_{len(binds)}']" in record.getMessage()


def test_every_node(caplog: pytest.LogCaptureFixture) -> None:
    """Among two others it is a cluster whose nodes are all binds: INFO."""
    start([FIRST, PRIMARY, SECOND])
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert "SQLALCHEMY_BINDS['slave_2']" in record.getMessage()


def test_of_each_other(caplog: pytest.LogCaptureFixture) -> None:
    """Two replicas with one URL are one WARNING that names both."""
    start([FIRST, SECOND, FIRST])
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    for name in ("SQLALCHEMY_BINDS['slave_1']", "SQLALCHEMY_BINDS['slave_3']"):
        assert name in record.getMessage()
    assert "slave_2" not in record.getMessage()


def connect() -> Any:
    """Stand for a creator, which may connect to any server."""
    raise RuntimeError("no server is there")


@pytest.mark.parametrize(
    "other",
    [
        FIRST,
        "postgresql+psycopg://shop@primary.internal:5433/shop",
        "postgresql+psycopg://shop@primary.internal/shop_copy",
        {"url": PRIMARY, "connect_args": {"host": "one.internal"}},
        {"url": PRIMARY, "connect_args": {"service": "copy"}},
        {"url": PRIMARY, "creator": connect},
        PRIMARY + "?service=copy",
        PRIMARY + "?target_session_attrs=standby",
    ],
)
def test_another_server(other: Any, caplog: pytest.LogCaptureFixture) -> None:
    """What names another server, or does not tell which, is not accused."""
    start([other])
    assert not caplog.records


@pytest.mark.parametrize("url", ["postgresql+psycopg:///shop", "sqlite:////tmp/x.db"])
def test_no_server(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Nor are URLs without a host, such as those of a developer's one file."""
    start([url, url], url)
    assert not caplog.records


def test_each_with_the_others_behind(caplog: pytest.LogCaptureFixture) -> None:
    """Two replicas may each have the other's server to fall back on."""
    url = "postgresql+psycopg://shop@/shop?host="
    start([f"{url}one,two", f"{url}two,one"])
    assert not caplog.records


@pytest.mark.parametrize("key", ["REPLICATED_ROLE_CHECK", "AUTO_READ_ON_SLAVE"])
def test_on_purpose(key: str, caplog: pytest.LogCaptureFixture) -> None:
    """Tests have one server for all, and say so with a setting."""
    setting: dict[str, Any] = {key: False}
    start([PRIMARY, FIRST, FIRST], **setting)
    assert not caplog.records


def test_without_an_application(caplog: pytest.LogCaptureFixture) -> None:
    """Engines of a program's own are compared as well."""
    made = [sa.create_engine(url) for url in (PRIMARY, FIRST, FIRST)]
    replicated_engine(made[0], {"a": made[1], "b": made[2]})
    (record,) = caplog.records
    assert "replicas['a'] and replicas['b']" in record.getMessage()
