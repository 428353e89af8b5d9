"""Stores at the server: writers at the same moment, forks, and foreign values."""

from __future__ import annotations

import socket
import subprocess
import sys
from hashlib import sha256
from threading import Barrier, Event, Thread
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask, Response, request

from flask_replicated.consistency.shared_stores import (
    CacheStore,
    RedisStore,
    connect_redis,
)
from flask_replicated.consistency.stores import MAX_TOKEN, NotStoredError
from tests import pin_stores
from tests.pin_stores import Hand, largest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

redis_url = pin_stores.redis_url
redis_client = pin_stores.redis_client
prefix = pin_stores.prefix

ANN = sha256(b"ann").hexdigest()


def ann() -> str:
    """Return a user."""
    return "ann"


@pytest.fixture
def store(redis_client: Any, prefix: str) -> RedisStore:
    """Give a store in Redis."""
    return RedisStore(redis_client, prefix, ann, largest, 300)


def recall(store: RedisStore | CacheStore) -> str:
    """Return what is kept for the user."""
    with Flask("shop").test_request_context():
        return store.recall(request)


class TestRedis:
    """Redis."""

    def test_two_threads(self, store: RedisStore) -> None:
        """What one thread has remembered is never replaced by what is older."""
        barrier, lost = Barrier(2), []

        def write(first: int) -> None:
            barrier.wait()
            for number in range(first, 600, 2):
                store.remember(Response(), str(number))
                if int(recall(store)) < number:
                    lost.append(number)

        threads = [Thread(target=write, args=(first,)) for first in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert lost == []
        assert recall(store) == "599"

    def test_two_processes(
        self, store: RedisStore, redis_url: str, prefix: str
    ) -> None:
        """Nor is it by another process."""
        command = [sys.executable, "-c", WRITER, redis_url, prefix]
        writers = [
            subprocess.Popen(
                [*command, first],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for first in ("0", "1")
        ]
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
        # Both wait for their input to end.
        found = [writer.communicate(timeout=60)[0] for writer in reversed(writers)]
        assert found == ["lost []\n", "lost []\n"]
        assert recall(store) == "599"

    def test_a_write_in_between(self, redis_client: Any, prefix: str) -> None:
        """A write between looking and replacing is merged, too."""
        others = iter(["7", "9"])

        def merge(texts: Iterable[str]) -> str:
            merged = largest(texts)
            redis_client.set(f"{prefix}{ANN}", next(others, merged))
            return merged

        redis_client.set(f"{prefix}{ANN}", "3")
        store = RedisStore(redis_client, prefix, ann, merge, 300)
        store.remember(Response(), "8")
        assert recall(store) == "9"

    def test_always_others(self, redis_client: Any, prefix: str) -> None:
        """Whoever never gets a turn gives up after a second."""
        clock = Hand()

        def merge(texts: Iterable[str]) -> str:
            merged = largest(texts)
            clock.now += 0.3
            redis_client.set(f"{prefix}{ANN}", int(merged) + 1)
            return merged

        redis_client.set(f"{prefix}{ANN}", "3")
        store = RedisStore(redis_client, prefix, ann, merge, 300, clock=clock)
        with pytest.raises(TimeoutError):
            store.remember(Response(), "8")

    def test_expiry(self, redis_client: Any, prefix: str) -> None:
        """A token lasts as long as is said for it, and each write begins anew."""
        store = RedisStore(redis_client, prefix, ann, largest, float)
        store.remember(Response(), "20")
        assert 10_000 < redis_client.pttl(f"{prefix}{ANN}") <= 20_000
        redis_client.pexpire(f"{prefix}{ANN}", 1000)
        store.remember(Response(), "5")
        assert 10_000 < redis_client.pttl(f"{prefix}{ANN}") <= 20_000

    def test_no_trace_of_the_user(self, store: RedisStore, redis_client: Any) -> None:
        """Keys do not show who the users are."""
        store.remember(Response(), "5")
        assert not list(redis_client.scan_iter("*ann*", count=10_000))

    @pytest.mark.parametrize(
        ("value", "shown"),
        [
            (b"\xff\xfe\x00", "\ufffd\ufffd\x00"),
            (b"A" * 3_000_000, "A" * (MAX_TOKEN + 1)),
            (b"nonsense", "nonsense"),
            (b"", ""),
        ],
    )
    def test_foreign_value(
        self, store: RedisStore, redis_client: Any, prefix: str, value: Any, shown: str
    ) -> None:
        """What is no token is shown, so that it is noticed, until it is overwritten."""
        redis_client.set(f"{prefix}{ANN}", value)
        assert recall(store) == shown
        store.remember(Response(), "5")
        assert recall(store) == "5"

    def test_long_value(self, redis_client: Any, prefix: str) -> None:
        """What is too long for a token is overwritten where it is, not fetched."""
        merged: list[str] = []

        def merge(texts: Iterable[str]) -> str:
            merged.extend(texts)
            return ""

        redis_client.set(f"{prefix}{ANN}", "9" * (MAX_TOKEN + 1))
        store = RedisStore(redis_client, prefix, ann, merge, 300)
        store.remember(Response(), "5")
        assert recall(store) == "5"
        assert merged == []
        redis_client.set(f"{prefix}{ANN}", "9" * MAX_TOKEN)
        store.remember(Response(), "5")
        assert merged == ["9" * MAX_TOKEN, "5"]

    def test_foreign_type(
        self, store: RedisStore, redis_client: Any, prefix: str
    ) -> None:
        """A list under that key is an error, in both ways."""
        redis = pytest.importorskip("redis")
        redis_client.rpush(f"{prefix}{ANN}", "5")
        with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
            recall(store)
        with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
            store.remember(Response(), "5")

    def test_two_applications(self, redis_client: Any, prefix: str) -> None:
        """Two applications with the same users keep theirs apart."""
        one, other = (
            RedisStore(redis_client, f"{prefix}{name}:", ann, largest, 300)
            for name in ("shop", "forum")
        )
        one.remember(Response(), "5")
        assert recall(other) == ""

    def test_client_that_decodes(self, redis_url: str, prefix: str) -> None:
        """A client that returns text serves as well."""
        redis = pytest.importorskip("redis")
        client = redis.Redis.from_url(redis_url, decode_responses=True)
        store = RedisStore(client, prefix, ann, largest, 300)
        for number in ("5", "3"):
            store.remember(Response(), number)
        assert recall(store) == "5"
        client.close()

    def test_fork(self, redis_url: str, prefix: str) -> None:
        """A forked child opens a connection of its own; its parent's goes on."""
        command = [sys.executable, "-c", FORKED, redis_url, prefix]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=60
        )
        assert (done.stdout, done.stderr) == ("another connection, 0 wrong\n", "")


SETUP = """
import os, sys
from flask import Flask, Response, request
from flask_replicated.consistency.shared_stores import RedisStore, connect_redis
from tests.pin_stores import largest
client = connect_redis(sys.argv[1])
user = "ann"
store = RedisStore(client, sys.argv[2], lambda: user, largest, 300)
app = Flask("shop")
def recall():
    with app.test_request_context():
        return store.recall(request)
"""

WRITER = f"""{SETUP}
recall()
print("ready", flush=True)
sys.stdin.read()
lost = []
for number in range(int(sys.argv[3]), 600, 2):
    store.remember(Response(), str(number))
    if int(recall()) < number:
        lost.append(number)
print("lost", lost)
client.close()
"""

FORKED = f"""{SETUP}
def run(start):
    # Answers that the other one asked for would be out of this range.
    wrong = 0
    for number in range(start, start + 500):
        store.remember(Response(), str(number))
        wrong += recall() != str(number)
    return wrong
store.remember(Response(), "1")
mine = client.client_id()
reading, writing = os.pipe()
child = os.fork()
if not child:
    user = "bob"
    os.write(writing, f"{{client.client_id()}} {{run(10_000)}}".encode())
    os._exit(0)
wrong = run(100)
os.waitpid(child, 0)
theirs, wrong_there = map(int, os.read(reading, 100).split())
assert client.client_id() == mine
print("the same" if theirs == mine else "another", "connection,", end=" ")
print(wrong + wrong_there, "wrong")
client.close()
"""


class Fickle:
    """A cache that does what a test tells it after each set()."""

    def __init__(self, then: Callable[[dict[str, Any], str], None]) -> None:
        self.kept: dict[str, Any] = {}
        self.timeouts: list[int] = []
        self.then = then

    def get(self, key: str) -> Any:
        """Return what is kept."""
        return self.kept.get(key)

    def set(self, key: str, value: Any, *, timeout: int) -> None:
        """Keep a value, or not."""
        self.kept[key] = value
        self.timeouts.append(timeout)
        self.then(self.kept, key)


def in_cache(cache: Any) -> CacheStore:
    """Return a store in a cache."""
    return CacheStore(cache, "pin:", ann, largest, 7.5)


class TestCache:
    """A cache."""

    def test_lost_race(self) -> None:
        """Another's older token, written at the same moment, is written over."""
        others = iter(["3"])
        cache = Fickle(lambda kept, key: kept.update({key: next(others, kept[key])}))
        store = in_cache(cache)
        store.remember(Response(), "5")
        assert recall(store) == "5"

    def test_won_race(self) -> None:
        """Another's newer token stays."""
        cache = Fickle(lambda kept, key: kept.update({key: "9"}))
        store = in_cache(cache)
        store.remember(Response(), "5")
        assert recall(store) == "9"
        assert len(cache.timeouts) == 1

    def test_keeps_nothing(self) -> None:
        """A cache that is switched off is an error, not a pin that is lost."""
        store = in_cache(Fickle(lambda kept, key: kept.clear()))
        with pytest.raises(LookupError, match="Fickle does not keep"):
            store.remember(Response(), "5")

    def test_null_cache(self) -> None:
        """So is that of Flask-Caching, which is its default."""
        flask_caching = pytest.importorskip("flask_caching")
        app = Flask("shop")
        cache = flask_caching.Cache(
            app, config={"CACHE_TYPE": "NullCache", "CACHE_NO_NULL_WARNING": True}
        )
        with app.app_context(), pytest.raises(LookupError):
            in_cache(cache).remember(Response(), "5")

    def test_refuses(self, tmp_path: Any) -> None:
        """A cache that says it has failed is believed."""
        cachelib = pytest.importorskip("cachelib")
        folder = tmp_path / "cache"
        cache = cachelib.FileSystemCache(str(folder))
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        with pytest.raises(LookupError):
            in_cache(cache).remember(Response(), "5")

    def test_foreign_value(self) -> None:
        """What is no text is an error."""
        cache = Fickle(lambda kept, key: None)
        cache.kept[f"pin:{ANN}"] = b"5"
        with pytest.raises(TypeError, match="bytes, not str"):
            recall(in_cache(cache))

    def test_timeout(self) -> None:
        """The timeout is a whole number, and not shorter than said."""
        cache = Fickle(lambda kept, key: None)
        in_cache(cache).remember(Response(), "5")
        assert cache.timeouts == [9]


class TestUser:
    """Whose token it is."""

    @pytest.mark.parametrize("user", [None, ""])
    def test_nobody(self, user: object) -> None:
        """Without a user the store is not asked, and that is told."""
        cache = Fickle(lambda kept, key: None)
        store = CacheStore(cache, "pin:", lambda: user, largest, 300)
        with pytest.raises(NotStoredError):
            store.remember(Response(), "5")
        with pytest.raises(NotStoredError):
            recall(store)
        assert cache.kept == {}

    @pytest.mark.parametrize("user", ["ann", 1, 0, "x" * 100_000, "\ud800", "a b\n"])
    def test_any_text(self, user: object) -> None:
        """Text of any length and kind is a user, and so is a number."""
        cache = Fickle(lambda kept, key: None)
        store = CacheStore(cache, "pin:", lambda: user, largest, 300)
        store.remember(Response(), "5")
        assert recall(store) == "5"
        (key,) = cache.kept
        assert len(key) == len("pin:") + 64

    @pytest.mark.parametrize("user", [b"ann", True, 1.5, ["ann"], object()])
    def test_wrong_type(self, user: object) -> None:
        """Anything else is an error that names the setting."""
        store = CacheStore(Fickle(print), "pin:", lambda: user, largest, 300)
        with pytest.raises(TypeError, match="REPLICATED_PIN_KEY returned"):
            recall(store)

    def test_async(self) -> None:
        """An async function is an error, and leaves no coroutine behind."""

        async def user() -> str:
            return "ann"

        store = CacheStore(Fickle(print), "pin:", user, largest, 300)
        with pytest.raises(TypeError, match="coroutine"):
            recall(store)


class TestConnecting:
    """How Redis is reached."""

    def test_one_attempt(self) -> None:
        """A command is sent once: the circuit breaker decides when to try again."""
        redis = pytest.importorskip("redis")
        tried: list[int] = []

        def hang_up() -> None:
            while True:
                connection, _ = listener.accept()
                with connection:
                    if stopped.is_set():
                        return
                    tried.append(1)

        stopped = Event()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = listener.getsockname()
            server = Thread(target=hang_up)
            server.start()
            client = connect_redis(f"redis://{address[0]}:{address[1]}")
            with pytest.raises(redis.ConnectionError):
                client.get("a key")
            stopped.set()
            socket.create_connection(address).close()
            server.join()
            client.close()
        assert tried == [1]

    def test_timeouts(self) -> None:
        """They are short, and a URL may set others."""
        pytest.importorskip("redis")
        url = "redis://localhost"
        options = connect_redis(url).connection_pool.connection_kwargs
        assert options["socket_timeout"] == options["socket_connect_timeout"] == 0.2
        options = connect_redis(f"{url}?socket_timeout=0.5").connection_pool
        assert options.connection_kwargs["socket_timeout"] == 0.5
