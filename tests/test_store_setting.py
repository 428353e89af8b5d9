"""REPLICATED_PIN_STORE: which store it is or names."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask, request

from flask_replicated.consistency.shared_stores import CacheStore, RedisStore
from flask_replicated.consistency.store_setting import make_store
from flask_replicated.consistency.stores import CookieStore, HeaderStore, SessionStore
from flask_replicated.errors import ConfigurationError
from tests import pin_stores
from tests.pin_stores import COOKIE, HEADER, Client, current_user, largest, make_app

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flask import Request, Response

    from flask_replicated.consistency.safe_store import SafeStore

redis_url = pin_stores.redis_url
redis_client = pin_stores.redis_client
prefix = pin_stores.prefix


class OwnStore:
    """A store of the program's own."""

    def remember(self, response: Response, token: str) -> None:
        """Tell the client."""
        response.set_cookie("own", token)

    def recall(self, request: Request) -> str:
        """Ask the client."""
        return request.cookies.get("own", "")


class OwnCache(dict[str, Any]):
    """A cache of the program's own."""

    def set(self, key: str, value: Any, timeout: int) -> None:
        """Keep a value."""
        self[key] = value


def make(
    setting: object, find_key: Callable[[], object] | None = current_user
) -> SafeStore:
    """Return the store that a setting stands for."""
    return make_store(
        setting,
        cookie=CookieStore(COOKIE, 5),
        header=HEADER,
        prefix="flask_replicated:test:",
        find_key=find_key,
        merge=largest,
        seconds=300,
    )


@pytest.fixture(autouse=True)
def shop_stores() -> Iterator[None]:
    """Let a module have stores that a dotted path can name."""
    module: Any = ModuleType("shop_stores")
    module.OwnStore, module.own = OwnStore, OwnStore()
    module.inner = OwnCache
    module.number = 5

    def broken() -> None:
        raise RuntimeError("password=secret")

    module.Broken = type("Broken", (), {"__init__": lambda self: broken()})
    sys.modules["shop_stores"] = module
    yield
    del sys.modules["shop_stores"]


@pytest.mark.parametrize(
    ("setting", "kind", "from_client"),
    [
        ("cookie", CookieStore, True),
        ("header", HeaderStore, True),
        ("session", SessionStore, True),
        ("shop_stores.OwnStore", OwnStore, False),
        ("shop_stores:own", OwnStore, False),
        ("shop_stores.inner", CacheStore, False),
        (OwnStore, OwnStore, False),
        (OwnStore(), OwnStore, False),
        (OwnCache(), CacheStore, False),
    ],
)
def test_right(setting: object, kind: type, from_client: bool) -> None:
    """Each way to say it gives a store that works."""
    safe = make(setting)
    assert type(safe.store) is kind
    assert safe.from_client is from_client
    client = Client(make_app(safe))
    client.write(5)
    client.write(3)
    assert client.read() == "5"


def test_caches() -> None:
    """The usual caches are taken as they are."""
    cachelib = pytest.importorskip("cachelib")
    flask_caching = pytest.importorskip("flask_caching")
    for cache in (cachelib.SimpleCache(), flask_caching.Cache()):
        assert type(make(cache).store) is CacheStore


@pytest.mark.parametrize("as_client", [False, True])
def test_redis(redis_url: str, redis_client: Any, prefix: str, as_client: bool) -> None:
    """A URL of Redis and a client of Redis both work."""
    safe = make_store(
        redis_client if as_client else redis_url,
        cookie=CookieStore(COOKIE, 5),
        header=HEADER,
        prefix=prefix,
        find_key=current_user,
        merge=largest,
        seconds=300,
    )
    assert isinstance(safe.store, RedisStore)
    app = make_app(safe)
    Client(app).write(5)
    assert Client(app).read() == "5"
    safe.store._client.close()


def test_nothing_is_asked_at_once() -> None:
    """A Redis server that is down does not keep an application from starting."""
    pytest.importorskip("redis")
    assert isinstance(make("redis://127.0.0.1:1/0").store, RedisStore)


@pytest.mark.parametrize("setting", ["redis://localhost", OwnCache()])
def test_without_a_key(setting: object) -> None:
    """What all clients share needs to know whose writes it keeps."""
    pytest.importorskip("redis")
    with pytest.raises(ConfigurationError, match="needs REPLICATED_PIN_KEY"):
        make(setting, None)


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        (None, "neither remember and recall nor get and set"),
        (5, "neither remember"),
        ("", "no store has this name"),
        ("cookies", "did you mean 'cookie'?"),
        ("nowhere.store", "ModuleNotFoundError"),
        ("shop_stores.missing", "AttributeError"),
        ("shop_stores.number", "neither remember"),
        ("shop_stores.Broken", "RuntimeError"),
        ("memcached://user:secret@cache/0", "no URL of Redis"),
        ({}, "neither remember"),
        (object, "neither remember"),
        (type("A", (), {"get": len, "set": lambda _self, _k, _v: 1}), "a timeout"),
        (type("B", (), {"remember": lambda _s, _r: 1, "recall": len}), "2 argument"),
        (
            type("C", (), {"remember": print, "recall": lambda _s: ""}),
            "does not take 1 argument",
        ),
    ],
)
def test_wrong(setting: object, why: str) -> None:
    """Anything else is an error that says what would be right, and why."""
    with pytest.raises(ConfigurationError) as caught:
        make(setting)
    assert caught.value.key == "REPLICATED_PIN_STORE"
    assert why in str(caught.value)
    assert "must be 'cookie', 'session', 'header'" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["redis://u:secret@h:secret/0", "redis://u:secret@h?socket_timeout=secret"]
)
def test_wrong_url(url: str) -> None:
    """A URL that Redis's library refuses is an error without its password."""
    pytest.importorskip("redis")
    with pytest.raises(ConfigurationError) as caught:
        make(url)
    assert "secret" not in f"{caught.value}{caught.value.__cause__}"


def test_async() -> None:
    """What would have to be awaited is refused at once."""

    class Async(OwnStore):
        async def recall(self, request: Request) -> str:  # type: ignore[override]
            return ""

    class AsyncCache(OwnCache):
        async def get(self, key: str) -> None:  # type: ignore[override]
            pass

    for setting in (Async(), AsyncCache()):
        with pytest.raises(ConfigurationError, match="async"):
            make(setting)


def test_redis_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without redis-py the error says what to install."""
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ConfigurationError, match="pip install redis"):
        make("redis://localhost")


def test_cookie_beside_the_header() -> None:
    """The cookie counts besides any other store."""
    safe = make("header")
    cookies = {"Cookie": f"{COOKIE}=7", HEADER: "5"}
    with Flask("shop").test_request_context(headers=cookies):
        assert safe.recall(request) == "5,7"
