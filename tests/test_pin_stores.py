"""What every pin store holds, and what those at the client hold besides."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask, Response, request, session
from flask.sessions import SecureCookieSessionInterface
from hypothesis import given
from hypothesis import strategies as st

from flask_replicated.consistency.shared_stores import CacheStore, RedisStore
from flask_replicated.consistency.stores import (
    MAX_TOKEN,
    MAX_TOKENS,
    CookieStore,
    HeaderStore,
    NotStoredError,
    SessionStore,
    before_session_is_saved,
)
from tests import pin_stores
from tests.pin_stores import COOKIE, HEADER, Client, current_user, largest, make_app
from tests.support import unhurried

if TYPE_CHECKING:
    from pathlib import Path

    from flask_replicated.consistency.stores import PinStore

redis_url = pin_stores.redis_url
redis_client = pin_stores.redis_client
prefix = pin_stores.prefix


class Contract:
    """What every store holds; a subclass makes one."""

    @pytest.fixture
    def store(self) -> PinStore:
        """Give the store."""
        raise NotImplementedError

    @pytest.fixture
    def app(self, store: PinStore) -> Flask:
        """Give an application around the store."""
        return make_app(store)

    def test_nothing(self, app: Flask) -> None:
        """Who has not written need not see anything."""
        assert Client(app).read() == ""

    def test_recalled(self, app: Flask) -> None:
        """What was remembered is recalled, and again."""
        client = Client(app)
        client.write(5)
        assert [client.read(), client.read()] == ["5", "5"]

    def test_another_client(self, app: Flask) -> None:
        """One client's token is not another's."""
        Client(app, "ann").write(5)
        assert Client(app, "bob").read() == ""

    @pytest.mark.parametrize("tokens", [(3, 5), (5, 3), (5, 5), (9, 10), (10, 9)])
    def test_maximum(self, app: Flask, tokens: tuple[int, int]) -> None:
        """Of two tokens the greater is recalled, whichever came first."""
        client = Client(app)
        for one in tokens:
            client.write(one)
        assert client.read() == str(max(tokens))

    def test_a_kilobyte(self, app: Flask) -> None:
        """A token of ten binds comes back as it was."""
        client = Client(app)
        client.write("7" * 1000)
        assert client.read() == "7" * 1000

    def test_alphabet(self, app: Flask, store: PinStore) -> None:
        """Each character of a URL-safe token comes back."""
        token = "AZaz09-_.~"

        @app.post("/raw")
        def write_raw() -> Response:
            response = Response()
            with before_session_is_saved():
                store.remember(response, token)
            return response

        client = app.test_client()
        given = client.post("/raw", headers={"X-User": "ann"}).headers
        headers = {"X-User": "ann", HEADER: given.get(HEADER, "")}
        assert client.get("/", headers=headers).text == token

    def test_threads(self, app: Flask) -> None:
        """Clients on several threads do not get in each other's way."""

        def run(number: int) -> str:
            client = Client(app, f"user {number}")
            client.write(number)
            return client.read()

        with ThreadPoolExecutor(8) as threads:
            found = list(threads.map(run, range(40)))
        assert found == [str(number) for number in range(40)]


class TestCookie(Contract):
    """The cookie."""

    @pytest.fixture
    def store(self) -> PinStore:
        """Give the store."""
        return CookieStore(COOKIE, 5)

    def test_attributes(self, app: Flask) -> None:
        """By default it is HttpOnly and SameSite=Lax."""
        assert cookie_attributes(app) == {
            "HttpOnly": "",
            "SameSite": "Lax",
            "Path": "/",
            "Max-Age": "5",
        }

    def test_as_the_session_cookie(self, app: Flask) -> None:
        """Path, domain, Secure, SameSite and Partitioned are the session cookie's."""
        app.config.update(
            SESSION_COOKIE_PATH="/app",
            SESSION_COOKIE_DOMAIN="example.org",
            SESSION_COOKIE_SECURE=True,
            SESSION_COOKIE_SAMESITE="None",
            SESSION_COOKIE_PARTITIONED=True,
        )
        found = cookie_attributes(app)
        if not hasattr(SecureCookieSessionInterface, "get_cookie_partitioned"):
            found["Partitioned"] = ""  # Flask 3.0 and older do not know it
        assert found == {
            "Secure": "",
            "HttpOnly": "",
            "Path": "/app",
            "Domain": "example.org",
            "SameSite": "None",
            "Partitioned": "",
            "Max-Age": "5",
        }

    def test_name_is_found_once(self) -> None:
        """A function that finds the name is called once, when there is a request."""
        names = iter(["wrote"])
        client = Client(make_app(CookieStore(lambda: next(names), 5)))
        assert client.write(5).headers["Set-Cookie"].startswith("wrote=5;")
        assert client.read() == "5"
        assert list(names) == []

    def test_lifetime_by_token(self) -> None:
        """How long it is kept may depend on the token; parts of a second count."""
        app = make_app(CookieStore(COOKIE, lambda token: float(token) / 2))
        assert cookie_attributes(app, "15")["Max-Age"] == "8"

    def test_several(self, app: Flask) -> None:
        """A browser may send several of that name: each is recalled, once."""
        cookies = "; ".join(f"{COOKIE}={one}" for one in ("3", "5", "3", "4"))
        assert raw_recall(app, Cookie=cookies) == "3,5,4"

    def test_a_longer_name(self, app: Flask) -> None:
        """A cookie whose name only contains the pin's is another."""
        assert raw_recall(app, Cookie=f"x{COOKIE}=5; {COOKIE}s=6") == ""

    @pytest.mark.parametrize("text", ["A" * 3_000_000, "1,2", "\xe9\xff", "", " "])
    def test_hostile(self, app: Flask, text: str) -> None:
        """What can be no token is left out, and hides no other."""
        assert raw_recall(app, Cookie=f"{COOKIE}={text}") == ""
        assert raw_recall(app, Cookie=f"{COOKIE}={text}; {COOKIE}=5") == "5"

    def test_very_many(self, app: Flask) -> None:
        """Only so many are looked at."""
        many = "; ".join(f"{COOKIE}={number}" for number in range(5000))
        assert raw_recall(app, Cookie=many).split(",") == [
            str(number) for number in range(MAX_TOKENS)
        ]


class TestHeader(Contract):
    """The header."""

    @pytest.fixture
    def store(self) -> PinStore:
        """Give the store."""
        return HeaderStore(HEADER)

    def test_vary(self, app: Flask) -> None:
        """The response says that it depends on the header."""
        response = Client(app).write(5)
        assert response.headers[HEADER] == "5"
        assert HEADER.lower() in response.vary

    def test_vary_stays(self, app: Flask) -> None:
        """What the response varies by already stays."""

        @app.after_request
        def vary(response: Response) -> Response:
            response.vary.add("Accept")
            return response

        vary_by = Client(app).write(5).vary
        assert {"accept", HEADER.lower()} <= {one.lower() for one in vary_by}

    def test_repeated(self, app: Flask) -> None:
        """Several tokens, separated by commas or repeated, are all recalled."""
        assert raw_recall(app, **{HEADER: "3, 5,, 3 ,4"}) == "3,5,4"
        client = app.test_client()
        found = client.get("/", headers=[(HEADER, "3"), (HEADER, "5")]).text
        assert largest(found.split(",")) == "5"

    @pytest.mark.parametrize("text", ["A" * 100_000, "\xe9\xff", "", " , ,"])
    def test_hostile(self, app: Flask, text: str) -> None:
        """What can be no token is left out, and hides no other."""
        assert raw_recall(app, **{HEADER: text}) == ""
        assert raw_recall(app, **{HEADER: f"{text},5"}) == "5"

    def test_very_many(self, app: Flask) -> None:
        """Only so many are looked at."""
        many = ",".join(map(str, range(5000)))
        found = raw_recall(app, **{HEADER: many}).split(",")
        assert found == [str(number) for number in range(MAX_TOKENS)]


class TestSession(Contract):
    """Flask's session."""

    @pytest.fixture
    def store(self) -> PinStore:
        """Give the store."""
        return SessionStore()

    def test_too_late(self, app: Flask) -> None:
        """Once the session may be saved, it refuses: the cookie must take over."""
        with app.test_request_context(), pytest.raises(NotStoredError):
            SessionStore().remember(Response(), "5")

    def test_without_a_request(self, app: Flask) -> None:
        """Where the request is over, it refuses as well."""
        environ = app.test_request_context().request
        with app.app_context(), before_session_is_saved():
            with pytest.raises(NotStoredError):
                SessionStore().remember(Response(), "5")
            with pytest.raises(NotStoredError):
                SessionStore().recall(environ)

    def test_no_session(self, app: Flask) -> None:
        """A client without a session gets pages that a shared cache may keep."""
        assert "Vary" not in app.test_client().get("/").headers

    def test_same_token(self, app: Flask) -> None:
        """A token that the session has already is no reason to save it again."""
        client = Client(app)
        assert "Set-Cookie" in client.write(5).headers
        assert "Set-Cookie" not in client.write(4).headers

    def test_another_value(self, app: Flask) -> None:
        """What is no text is an error."""
        with app.test_request_context(headers={"Cookie": "session=x"}):
            session["_replicated_pin"] = 5
            with pytest.raises(TypeError, match="int, not str"):
                SessionStore().recall(request)

    def test_server_side(self, tmp_path: Path) -> None:
        """A session that is kept at the server is as good."""
        cachelib = pytest.importorskip("cachelib")
        flask_session = pytest.importorskip("flask_session")
        app = make_app(SessionStore())
        cache = cachelib.FileSystemCache(str(tmp_path), threshold=0)
        app.config.update(SESSION_TYPE="cachelib", SESSION_CACHELIB=cache)
        flask_session.Session(app)
        client = Client(app)
        client.write(5)
        assert client.read() == "5"


class SharedContract(Contract):
    """What a store at the server holds besides."""

    def test_older_alone(self, app: Flask, store: PinStore) -> None:
        """Who remembers an older token without looking first replaces no newer one."""
        for token in ("5", "9", "7"):
            with app.test_request_context(headers={"X-User": "ann"}):
                store.remember(Response(), token)
        assert Client(app, "ann").read() == "9"

    def test_nobody(self, app: Flask, store: PinStore) -> None:
        """Without a user it refuses: the cookie must take over."""
        with app.test_request_context():
            with pytest.raises(NotStoredError):
                store.remember(Response(), "5")
            with pytest.raises(NotStoredError):
                store.recall(request)

    def test_another_device(self, app: Flask) -> None:
        """The same user sees what another client of the user has written."""
        Client(app, "ann").write(5)
        assert Client(app, "ann").read() == "5"


class TestRedis(SharedContract):
    """Redis."""

    @pytest.fixture
    def store(self, redis_client: Any, prefix: str) -> PinStore:
        """Give the store."""
        return RedisStore(redis_client, prefix, current_user, largest, 300)


class TestSimpleCache(SharedContract):
    """A cache in memory."""

    @pytest.fixture
    def store(self) -> PinStore:
        """Give the store."""
        cachelib = pytest.importorskip("cachelib")
        return CacheStore(cachelib.SimpleCache(), "pin:", current_user, largest, 300)


class TestFileSystemCache(SharedContract):
    """A cache in files."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> PinStore:
        """Give the store."""
        cachelib = pytest.importorskip("cachelib")
        cache = cachelib.FileSystemCache(str(tmp_path))
        return CacheStore(cache, "pin:", current_user, largest, 300)


class TestFlaskCaching(SharedContract):
    """Flask-Caching."""

    @pytest.fixture
    def cache(self) -> Any:
        """Give the cache."""
        return pytest.importorskip("flask_caching").Cache()

    @pytest.fixture
    def store(self, cache: Any) -> PinStore:
        """Give the store."""
        return CacheStore(cache, "pin:", current_user, largest, 300)

    @pytest.fixture
    def app(self, store: PinStore, cache: Any) -> Flask:
        """Give an application that has the cache."""
        app = make_app(store)
        cache.init_app(app, {"CACHE_TYPE": "SimpleCache"})
        return app


def cookie_attributes(app: Flask, token: str = "5") -> dict[str, str]:
    """Return the attributes of the cookie that a write sets."""
    (header,) = app.test_client().post(f"/{token}").headers.getlist("Set-Cookie")
    parts = [part.strip().partition("=") for part in header.split(";")]
    assert parts[0] == (COOKIE, "=", token)
    return {name: value for name, _, value in parts[1:] if name != "Expires"}


def raw_recall(app: Flask, **headers: str) -> str:
    """Return what is recalled of a request with just these headers."""
    client = app.test_client(use_cookies=False)
    response = client.get("/", headers=headers)
    assert response.status_code == 200
    return response.text


@pytest.mark.parametrize("store", [CookieStore(COOKIE, 5), HeaderStore(HEADER)])
@unhurried
@given(texts=st.lists(st.text(st.characters(codec="latin-1", exclude_characters="\0"))))
def test_whatever_a_client_sends(store: PinStore, texts: list[str]) -> None:
    """No text in cookies or headers is an error; what is recalled stays small."""
    app = Flask("shop")
    sent = "; ".join(f"{COOKIE}={text}" for text in texts)
    environ = {"HTTP_COOKIE": sent, "HTTP_REPLICATED_POSITION": ",".join(texts)}
    with app.test_request_context(environ_overrides=environ):
        found = store.recall(request)
    assert found.isascii()
    parts = found.split(",") if found else []
    assert all(parts)
    assert len(parts) <= MAX_TOKENS
    assert all(len(part) <= MAX_TOKEN for part in parts)
