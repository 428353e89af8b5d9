"""No password is shown, wherever somebody has put it."""

from __future__ import annotations

import pickle
from typing import Any
from urllib.parse import quote_plus

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import URL

from flask_replicated import ConfigurationError, FlaskReplicated
from tests.support import Build, build_fixture, unhurried

build = build_fixture

# Letters that nothing else in a message has, and what may disturb a parser.
passwords = st.text("QZ0 \t:/?#[]&=%'\"\\", min_size=1, max_size=12).map(
    "QZQ{}QZQ".format
)
urls = st.sampled_from(
    [
        "postgresql://u:{}@h/d",
        "postgresql+psycopg://u:{}@h:5432/d?sslmode=require",
        "postgresql://u@h/d?password={quoted}",
        "postgresql//u:{}@h/d",
        "u:{}@h/d",
        "mysql+pymysql://u:{}@/d",
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
    ]
)


@unhurried
@given(password=passwords, url=urls, place=places)
def test_errors(password: str, url: str, place: Any) -> None:
    """An error keeps no password of the value that it complains about."""
    given = url.format(password, quoted=quote_plus(password))
    error = ConfigurationError("REPLICATED_X", place(given), "be right.")
    again = pickle.loads(pickle.dumps(error))
    for shown in (str(error), repr(error), repr(error.value), str(again)):
        assert "QZQ" not in shown


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
    ["postgresql+none://u:QZQ pw@h/d", "postgresql//u:QZQ@h/d", "x://u:QZQ\tpw@h/d"],
)
def test_when_added(build: Build, url: str) -> None:
    """So it is with a replica that is added later."""
    site = build()
    replicated = site.app.extensions["replicated"]
    for bind in (url, {"url": url}):
        with site.app.app_context(), pytest.raises(ConfigurationError) as caught:
            replicated.add("slave_9", bind)
        assert "QZQ" not in f"{caught.value} {caught.value!r}"


def test_what_can_be_shown() -> None:
    """What holds no secret is shown as it is."""
    url = URL.create("postgresql", "u", "QZQ", "h", database="d")
    for value, shown in (
        (3, "3"),
        ({"slave_1": -1}, "{'slave_1': -1}"),
        ("round_robins", "'round_robins'"),
        (url, "'postgresql://u:***@h/d'"),
        (10**400, "<a very long number>"),
    ):
        assert repr(ConfigurationError("KEY", value, "").value) == shown
