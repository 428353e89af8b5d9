"""No password is shown, wherever somebody has put it."""

from __future__ import annotations

import pickle
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import URL

from flask_replicated import ConfigurationError, FlaskReplicated
from flask_replicated.settings.config import DEFAULTS as KNOWN
from flask_replicated.settings.config import read_settings
from tests.support import Build, build_fixture, unhurried

build = build_fixture

# Letters that nothing else in a message has, and what may disturb a parser.
passwords = st.text("QZ0 \t\n@;:/?#[]&=%'\"\\é", max_size=12).map("QZQ{}QZQ".format)
urls = st.sampled_from(
    [
        "postgresql://u:{}@h/d",
        "postgresql+psycopg://u:{}@h:5432/d?sslmode=require",
        "postgresql://u@h/d?password={}",
        "postgresql//u:{}@h/d",
        "u:{}@h/d",
        "mysql+pymysql://u:{}@/d",
        "mysql+pymysql://h/d?ssl_key={}&charset=utf8",
        "mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3D{}",
        "u/{}@h",
        "postgresql://company/u:{}@h/d",
        "host=h user=u password={} port=5432",
        "https://x?token={}",
    ]
)
places: st.SearchStrategy[Any] = st.sampled_from(
    [
        lambda url: url,
        lambda url: [url],
        lambda url: {"slave": url},
        lambda url: {"slave": {"url": url}},
        lambda url: {url: 1},
        lambda url: {(url, 1): url},
        lambda url: (url, {url}),
        lambda url: {"host": "h", "password": url},
        lambda url: [[[[[[[url]]]]]]],
        lambda url: {"slave": [{"hosts": {url: (url,)}}]},
        lambda url: url.encode(),
        lambda url: SimpleNamespace(url=url),
        lambda url: partial(print, url),
        lambda url: [("password", url.rpartition("/")[2])],
        lambda url: {url: 1}.items(),
    ]
)


@unhurried
@given(password=passwords, url=urls, place=places)
def test_errors(password: str, url: str, place: Any) -> None:
    """An error keeps no password of the value that it complains about."""
    given = url.format(password)
    error = ConfigurationError("REPLICATED_X", place(given), "be right.")
    again = pickle.loads(pickle.dumps(error))
    for shown in (str(error), repr(error), repr(error.value), str(error.__dict__)):
        assert "QZQ" not in shown
    assert (str(again), repr(again)) == (str(error), repr(error))


@unhurried
@given(password=passwords, url=urls, place=places, key=st.sampled_from(sorted(KNOWN)))
def test_settings(password: str, url: str, place: Any, key: str) -> None:
    """Whichever setting somebody puts a password into, it is not shown."""
    try:
        read_settings({key: place(url.format(password))}, ["GET"], ["slave_1"])
    except ConfigurationError as error:
        told: BaseException | None = error
        while told is not None:
            assert "QZQ" not in f"{told} {told!r}"
            told = told.__cause__ or told.__context__


@pytest.mark.parametrize("key", ["REPLICATED_PASSWORD", "REPLICATED_REDIS_TOKEN"])
def test_a_secret_by_its_name(key: str) -> None:
    """What a key calls a secret is none to show."""
    assert "QZQ" not in str(ConfigurationError(key, "QZQ", "no such setting."))


def test_what_holds_itself() -> None:
    """A value without an end is shown as far as it makes sense."""
    value: list[object] = [1]
    value.append(value)
    assert str(ConfigurationError("KEY", value, "x")).startswith("KEY = [1, [1, [1")


KEYS = ("REPLICATED_DISCOVERYS", "REPLICATED_WEIGHTS", "REPLICATED_WRITE_FUNCTIONS")


@pytest.mark.parametrize("key", KEYS)
def test_at_start(key: str) -> None:
    """A setting that cannot be right is named, and what secret it has is not."""
    app = Flask("site")
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    app.config["SQLALCHEMY_BINDS"] = {"slave_1": "sqlite://"}
    app.config[key] = {"slave": {"url": "postgresql://u:QZQ pw@h/d"}, 1: "//u:QZQ@h"}
    SQLAlchemy(app)
    with pytest.raises(ConfigurationError, match=key) as caught:
        FlaskReplicated(app)
    assert "QZQ" not in f"{caught.value} {caught.value!r}"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+none://u:QZQ pw@h/d",
        "postgresql//u:QZQ@h/d",
        "postgresql//u:p QZQ@h/d",
        "x://u:QZQ\tpw@h/d",
        "postgresql://u:QZQ",
        "postgresql+none://u@h/d?password=pw&QZQ=1",
        "postgresql+none://company/u:QZQ@h/d",
    ],
)
def test_when_added(build: Build, url: str) -> None:
    """So it is with a replica that is added later."""
    site = build()
    replicated = site.app.extensions["replicated"]
    for bind in (url, {"url": url}):
        with site.app.app_context(), pytest.raises(ConfigurationError) as caught:
            replicated.add("slave_9", bind)
        assert "QZQ" not in f"{caught.value} {caught.value!r}"
        assert "QZQ" not in f"{caught.value.__cause__} {caught.value.__context__}"


@pytest.mark.parametrize("url", ["postgresql//u:QZQ@h/d", "postgresql://u:QZQ"])
def test_discovery(url: str) -> None:
    """So it is with a URL that DNS is to complete."""
    with pytest.raises(ConfigurationError, match="must be a URL") as caught:
        read_settings({"REPLICATED_DISCOVERY": {"slave": url}}, [], [])
    assert "QZQ" not in f"{caught.value} {caught.value.__context__}"


def test_what_was_read() -> None:
    """The settings themselves may be logged."""
    source = {
        "url": "postgresql://u:QZQ@h/d?sslpassword=QZQ",
        "connect_args": {"password": "QZQ"},
    }
    settings = read_settings({"REPLICATED_DISCOVERY": {"slave": source}}, [], [])
    assert "url='postgresql://u:***@h/d?***'" in repr(settings)
    assert "QZQ" not in repr(settings)


def test_what_can_be_shown() -> None:
    """What holds no secret is shown as it is."""
    url = URL.create("postgresql", "u", "QZQ", "h", database="d")
    for value, shown in (
        (3, "3"),
        ({"slave_1": -1}, "{'slave_1': -1}"),
        ("round_robins", "'round_robins'"),
        (url, "'postgresql://u:***@h/d'"),
        (10**400, "<a very long number>"),
        ("shop.tokens.Balancer", "'shop.tokens.Balancer'"),
        ("postgresql://u:QZQ@h/d?sslmode=x", "'postgresql://u:***@h/d?sslmode=x'"),
        ("postgresql://u@h/d?password=QZQ", "'postgresql://u@h/d?***'"),
        ("postgresql://u:Q@ZQ@h/d", "<no URL>"),
        ("postgresql://company/u:QZQ@h/d", "<no URL>"),
        (URL.create("postgresql", host="h", database="u:QZQ@h"), "<no URL>"),
        (b"slave_1", "b'slave_1'"),
    ):
        assert repr(ConfigurationError("KEY", value, "").value) == shown
