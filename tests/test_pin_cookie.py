"""The cookie that carries a pin: its attributes, and its enemies."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from hypothesis import given
from hypothesis import strategies as st
from itsdangerous import Signer, URLSafeSerializer, URLSafeTimedSerializer
from werkzeug.http import parse_cookie

from flask_replicated import FlaskReplicated
from flask_replicated.consistency.tokens import Mark, Token, bind_id, decode, encode
from tests.support import (
    COOKIE,
    REPLICAS,
    SECRET,
    Build,
    Site,
    build_fixture,
    get_with_pin,
    pin_of,
    unhurried,
)

if TYPE_CHECKING:
    from collections.abc import Callable

build = build_fixture

SALT = "flask-replicated.token"


@pytest.fixture
def site(build: Build) -> Site:
    """Give an application with three replicas."""
    return build()


def attributes(site: Site) -> dict[str, str | bool]:
    """Return the attributes of the cookie that a write sets, but for its value."""
    headers = site.client().post("/write").headers.getlist("Set-Cookie")
    (header,) = (line for line in headers if line.startswith(f"{COOKIE}="))
    found: dict[str, str | bool] = {}
    for part in header.split(";")[1:]:
        name, _, value = part.strip().partition("=")
        found[name] = value or True
    found.pop("Expires", None)
    return found


class TestAttributes:
    """Like the session cookie's."""

    def test_default(self, site: Site) -> None:
        """The cookie is HttpOnly, SameSite=Lax, and ends with the pin."""
        assert attributes(site) == {
            "HttpOnly": True,
            "SameSite": "Lax",
            "Path": "/",
            "Max-Age": "5",
        }

    def test_as_the_session_cookie(self, build: Build) -> None:
        """Path, domain and Secure are the session cookie's."""
        site = build(
            SESSION_COOKIE_PATH="/app",
            SESSION_COOKIE_DOMAIN="example.org",
            SESSION_COOKIE_SECURE=True,
        )
        found = attributes(site)
        assert found["Path"] == "/app"
        assert found["Domain"] == "example.org"
        assert found["Secure"] is True

    def test_application_root(self, build: Build) -> None:
        """An application under a prefix keeps its pins to itself."""
        assert attributes(build(APPLICATION_ROOT="/shop"))["Path"] == "/shop"

    @pytest.mark.parametrize(("seconds", "age"), [(0.2, "1"), (5, "5"), (7.5, "8")])
    def test_age(self, build: Build, seconds: float, age: str) -> None:
        """The browser keeps the cookie as long as the pin, in whole seconds."""
        assert attributes(build(REPLICATED_PIN_SECONDS=seconds))["Max-Age"] == age

    def test_name(self, build: Build) -> None:
        """REPLICATED_PIN_COOKIE names the cookie."""
        site = build(REPLICATED_PIN_COOKIE="wrote")
        client = site.client()
        assert client.post("/write").headers["Set-Cookie"].startswith("wrote=")
        assert client.get("/").text == "master"

    def test_signed(self, site: Site) -> None:
        """With a SECRET_KEY the cookie is signed."""
        pin = pin_of(site.client().post("/write"))
        assert pin is not None
        token = decode(pin, [SECRET])
        assert token is not None
        assert abs(token.latest_untold - time.time()) < 60
        assert decode(pin, ["another"]) is None

    def test_new_key(self, build: Build) -> None:
        """A pin that was signed with the key before last still counts."""
        old = build()
        pin = pin_of(old.client().post("/write"))
        new = build(SECRET_KEY_FALLBACKS=[SECRET])
        new.app.secret_key = "another"
        assert get_with_pin(new.app, pin) == "master"


def signed(text: object, *, key: str = SECRET, salt: str = SALT) -> str:
    """Return a cookie with a good signature of any text."""
    return Signer(key, salt=salt).sign(str(text).encode()).decode("latin-1")


def now(later: float = 0) -> str:
    """Return an unsigned cookie of a client that wrote so many seconds from now."""
    return encode(Token({bind_id(None): Mark(untold=time.time() + later)}), [])


HOSTILE: dict[str, Callable[[], str]] = {
    "empty": lambda: "",
    "forged": now,
    "unsigned": lambda: signed(now()).rpartition(".")[0],
    "truncated": lambda: signed(now())[:-1],
    "half": lambda: signed(now())[: len(signed(now())) // 2],
    "altered": lambda: "x" + signed(now())[1:],
    "swollen": lambda: signed(now()) + "A" * 100,
    "huge": lambda: "A" * 3_000_000,
    "other key": lambda: signed(now(), key="of another application"),
    "other salt": lambda: signed(now(), salt="cookie-session"),
    "timed": lambda: URLSafeTimedSerializer(SECRET, salt=SALT).dumps(now()),
    "former": lambda: URLSafeSerializer(SECRET, salt=SALT).dumps(f"{time.time()}"),
    "future": lambda: signed(now(3600)),
    "far future": lambda: signed("9" * 30),
    "expired": lambda: signed(now(-3600)),
    "negative": lambda: signed("-5"),
    "nan": lambda: signed("nan"),
    "inf": lambda: signed("inf"),
    "minus inf": lambda: signed("-inf"),
    "too large": lambda: signed("1e999"),
    "text": lambda: signed("yesterday"),
    "list": lambda: signed([1]),
    "null": lambda: signed(None),
    "dict": lambda: signed({"now": 1}),
    "true": lambda: signed(True),
    "huge integer": lambda: signed(10**150),
    "deep": lambda: "[" * 150,
    "control": lambda: "\x01\x7f",
    "latin": lambda: "\xe9\xff",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_cookie(site: Site, name: str) -> None:
    """A cookie that this application did not just set changes nothing."""
    assert get_with_pin(site.app, HOSTILE[name]()) in REPLICAS


@pytest.mark.parametrize(
    "value",
    [
        "",
        "!",
        "!,!",
        "nan",
        "inf",
        "-inf",
        "1e999",
        "x",
        "9" * 30,
        "9" * 5000,
        "-1",
        "١٢",
    ],
)
def test_hostile_cookie_without_key(build: Build, value: str) -> None:
    """Without a SECRET_KEY nonsense is ignored just so."""
    site = build(SECRET_KEY=None)
    assert get_with_pin(site.app, value.encode().decode("latin-1")) in REPLICAS


def test_without_key(build: Build) -> None:
    """An application without sessions pins its clients as well, unsigned."""
    site = build(SECRET_KEY=None)
    client = site.client()
    pin = pin_of(client.post("/write"))
    assert pin is not None
    assert decode(pin, [])
    assert client.get("/").text == "master"


@functools.cache
def reader(key: str | None) -> Flask:
    """Return an application that says whether it believes a pin."""
    app = Flask("reader")
    app.config.update(
        SQLALCHEMY_DATABASE_URI="sqlite:////nowhere/shop.db",
        SQLALCHEMY_BINDS={"slave_1": "sqlite:////nowhere/shop.db"},
        SECRET_KEY=key,
    )
    db = SQLAlchemy(app)
    extension = FlaskReplicated(app)

    @app.get("/")
    def decision() -> str:
        state = extension.state(app)
        assert state is not None
        running = state.request_state()
        assert running is not None
        return running.decision.role.value

    del db
    return app


@pytest.mark.parametrize("key", [SECRET, None])
@unhurried
@given(value=st.text(st.characters(codec="latin-1", exclude_characters="\r\n\0")))
def test_arbitrary_cookie(key: str | None, value: str) -> None:
    """No text at all in the cookie is an error or, unsigned by us, a pin."""
    assert get_with_pin(reader(key), value) == "replica"


@unhurried
@given(
    payload=st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists)
)
def test_arbitrary_signed_payload(payload: Any) -> None:
    """Even what is signed with the right key may say anything without an error."""
    assert get_with_pin(reader(SECRET), signed(payload)) in {"replica", "primary"}


def test_cookie_survives_parsing(site: Site) -> None:
    """The cookie has no character that needs quoting."""
    pin = pin_of(site.client().post("/write"))
    assert pin is not None
    assert parse_cookie(f"{COOKIE}={pin}")[COOKIE] == pin


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("name", [name for name in HOSTILE if name != "huge"])
def test_a_second_cookie(site: Site, name: str, last: bool) -> None:
    """A browser may send two of one name: a good one counts, whatever the other is."""
    bad, good = HOSTILE[name](), signed(now())
    value = f"{bad}; {COOKIE}={good}" if last else f"{good}; {COOKIE}={bad}"
    assert get_with_pin(site.app, value) == "master"


def test_too_many_cookies(site: Site) -> None:
    """Only so many signatures are looked at."""
    many = f"; {COOKIE}=".join([*["x"] * 3000, signed(now())])
    assert get_with_pin(site.app, many) in REPLICAS


@pytest.mark.parametrize("name", ["empty", "forged", "deep"])
def test_two_bad_cookies(site: Site, name: str) -> None:
    """Two that mean nothing mean nothing."""
    bad = HOSTILE[name]()
    assert get_with_pin(site.app, f"{bad}; {COOKIE}={bad}") in REPLICAS
