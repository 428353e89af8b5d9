"""A pin store that is down, slow or wrong fails no request."""

from __future__ import annotations

import importlib
import shutil
import signal
import subprocess
import sys
import time
from threading import Barrier, Thread
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask, Response, request

from examples.servers import free_port
from flask_replicated.consistency.safe_store import UNREADABLE, SafeStore
from flask_replicated.consistency.shared_stores import (
    CacheStore,
    RedisStore,
    connect_redis,
)
from flask_replicated.consistency.stores import (
    MAX_TOKEN,
    CookieStore,
    HeaderStore,
    NotStoredError,
    SessionStore,
)
from tests.pin_stores import (
    COOKIE,
    HEADER,
    Client,
    Hand,
    current_user,
    largest,
    make_app,
    warnings,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from flask import Request


class Shelf:
    """A store of one token, which fails as a test says.

    Attributes:
        token: The token.
        fails: What is called before anything else; it may raise.
        calls: Which methods were called.
    """

    def __init__(self, fails: Callable[[], object] = list) -> None:
        self.token: Any = ""
        self.fails = fails
        self.calls: list[str] = []

    def remember(self, _response: Response, token: str) -> None:
        """Keep the token."""
        self.calls.append("remember")
        self.fails()
        self.token = token

    def recall(self, _request: Request) -> str:
        """Return the token."""
        self.calls.append("recall")
        self.fails()
        token: str = self.token
        return token


def down() -> None:
    """Be down."""
    raise ConnectionError("redis://user:secret@db refused")


def misused() -> None:
    """Have nobody to keep anything for."""
    raise NotStoredError("nobody")


class Shop:
    """An application whose store can fail.

    Args:
        store: The store.
        find_key: Returns the user.
        from_client: Whether the store's text is what the client sent.
    """

    def __init__(
        self,
        store: Any,
        find_key: Callable[[], object] | None = None,
        *,
        from_client: bool = False,
    ) -> None:
        self.clock = Hand()
        self.safe = SafeStore(
            store,
            (CookieStore(COOKIE, 5), HeaderStore(HEADER)),
            largest,
            find_key=find_key,
            from_client=from_client,
            clock=self.clock,
        )
        self.client = Client(make_app(self.safe))

    def pass_time(self) -> None:
        """Let so much time pass that a breaker tries again."""
        self.clock.now += 31

    def recall(self, **headers: str) -> str:
        """Return all that is recalled of a request with these headers."""
        with Flask("shop").test_request_context(headers=headers):
            return self.safe.recall(request)


@pytest.fixture
def shelf() -> Shelf:
    """Give a store."""
    return Shelf()


@pytest.fixture
def shop(shelf: Shelf) -> Shop:
    """Give an application with that store."""
    return Shop(shelf)


class TestHealthy:
    """A store that works."""

    def test_is_used(self, shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
        """The store keeps the token; client and log know of nothing."""
        response = shop.client.write(5)
        assert COOKIE not in str(response.headers)
        assert HEADER not in response.headers
        assert shop.client.read() == "5"
        assert warnings(caplog) == []

    def test_maximum_with_the_client(self, shop: Shop, shelf: Shelf) -> None:
        """What the client carries counts besides, in cookie and header."""
        shelf.token = "5"
        cookie = {"Cookie": f"{COOKIE}=7"}
        assert shop.recall(**cookie) == "5,7"
        assert shop.recall(**cookie, **{HEADER: "9"}) == "5,9"

    def test_nonsense_of_the_client(self, shop: Shop, shelf: Shelf) -> None:
        """What a client sends and cannot be read does not look like the store's."""
        shelf.token = "5"
        sent = {"Cookie": f"{COOKIE}=nonsense", HEADER: "A" * 10_000}
        assert shop.recall(**sent) == "5"
        shelf.token = "damaged"
        assert shop.recall(**sent) == "damaged"

    def test_nothing_to_keep(self, shop: Shop, shelf: Shelf) -> None:
        """An empty token is not worth a call."""
        response = Response()
        shop.safe.remember(response, "")
        assert shelf.calls == []
        assert "Set-Cookie" not in response.headers


class TestFailing:
    """A store that fails."""

    def test_the_client_takes_over(self, shop: Shop, shelf: Shelf) -> None:
        """The same response sets cookie and header, and they are recalled."""
        shelf.fails = down
        headers = shop.client.write(5).headers
        assert headers["Set-Cookie"].startswith(f"{COOKIE}=5;")
        assert headers[HEADER] == "5"
        assert shop.client.read() == "5"

    def test_afterwards(self, shop: Shop, shelf: Shelf) -> None:
        """When it works again, the store and what clients carry add up."""
        shelf.token, shelf.fails = "7", down
        shop.client.write(5)
        assert shop.client.read() == "5"
        shelf.fails = list
        shop.pass_time()
        assert shop.client.read() == "7"

    def test_one_warning(
        self, shop: Shop, shelf: Shelf, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An outage is logged once, and its end once, however long it takes."""
        shelf.fails = down
        for _ in range(20):
            shop.client.write(5)
            shop.client.read()
            shop.pass_time()
        (said,) = warnings(caplog)
        assert "the pin store Shelf fails: recall(): ConnectionError" in said
        assert "secret" not in said
        caplog.clear()
        shelf.fails = list
        for _ in range(20):
            shop.client.write(5)
            shop.client.read()
            shop.pass_time()
        assert warnings(caplog) == ["the pin store Shelf works again"]

    def test_the_next_outage(
        self, shop: Shop, shelf: Shelf, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Each outage is logged, also the one that comes soon after."""
        for _ in range(3):
            shelf.fails = down
            for _ in range(3):
                shop.client.read()
            shelf.fails = list
            shop.clock.now += 15
            shop.client.read()
        assert len(warnings(caplog)) == 6

    def test_threads(
        self, shop: Shop, shelf: Shelf, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is logged once, also where several threads find out together."""
        barrier = Barrier(8, timeout=30)

        def fail_together() -> None:
            barrier.wait()
            down()

        shelf.fails = fail_together
        threads = [Thread(target=shop.recall) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(shelf.calls) == 8
        assert len(warnings(caplog)) == 1

    def test_late_success(
        self, shop: Shop, shelf: Shelf, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An answer that was asked for before the outage does not end it."""

        def fail_meanwhile() -> None:
            shelf.fails = down
            shop.recall()

        shelf.token, shelf.fails = "5", fail_meanwhile
        assert shop.recall() == "5"
        assert len(warnings(caplog)) == 1

    def test_without_stand_ins(self, caplog: pytest.LogCaptureFixture) -> None:
        """Where nothing can take over, the log says so."""
        safe = SafeStore(Shelf(down), (), largest, from_client=True)
        safe.remember(Response(), "5")
        (said,) = warnings(caplog)
        assert "The client is not pinned" in said

    def test_left_alone(self, shop: Shop, shelf: Shelf) -> None:
        """After two failures in a row it is not asked until a trial is due."""
        shelf.fails = down
        for _ in range(10):
            shop.recall()
        assert shelf.calls == ["recall"] * 2
        shop.clock.now += 1.1
        for _ in range(10):
            shop.recall()
        assert shelf.calls == ["recall"] * 3

    def test_one_user_only(
        self, shop: Shop, shelf: Shelf, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Single failures between successes are logged once a minute at most."""
        for turn in range(200):
            shelf.fails = down if turn % 2 else list
            shop.recall()
            shop.clock.now += 0.1
        assert len(warnings(caplog)) == 2
        assert len(shelf.calls) == 200

    def test_reads_only(
        self, shop: Shop, shelf: Shelf, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A store that can be read but not written does not seem to work again."""
        for _ in range(50):
            shelf.fails = list
            shop.client.read()
            shelf.fails = down
            with shop.client.http.application.app_context():
                shop.safe.remember(Response(), "5")
            shop.clock.now += 2
        assert len(warnings(caplog)) == 1

    @pytest.mark.parametrize("found", [None, b"5", 5, ["5"], True])
    def test_wrong_type(
        self, shop: Shop, shelf: Shelf, caplog: pytest.LogCaptureFixture, found: object
    ) -> None:
        """What is no text counts as a failure, and as unknown."""
        shelf.token = found
        assert shop.recall() == UNREADABLE
        (said,) = warnings(caplog)
        assert f"recall() returned {type(found).__name__}, not str" in said

    def test_async(self, caplog: pytest.LogCaptureFixture) -> None:
        """Coroutines count as failures, and none is left behind."""

        class Async:
            async def remember(self, _response: Response, _token: str) -> None:
                pass

            async def recall(self, _request: Request) -> str:
                return "5"

        shop = Shop(Async())
        shop.client.write(5)
        assert shop.client.read() == "5"
        assert len(warnings(caplog)) == 1

    def test_megabytes(self, shop: Shop, shelf: Shelf) -> None:
        """Text of any length is cut to what cannot be read."""
        shelf.token = "9" * 3_000_000
        assert MAX_TOKEN < len(shop.recall()) < 100_000

    def test_slow(
        self, shop: Shop, shelf: Shelf, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What a slow store says counts, but then it is left alone."""

        def slow() -> None:
            shop.clock.now += 0.6

        shelf.token, shelf.fails = "5", slow
        assert [shop.recall() for _ in range(5)] == ["5", "5", *[UNREADABLE] * 3]
        (said,) = warnings(caplog)
        assert "it took 0.6 s" in said

    def test_not_for_this_request(
        self, shop: Shop, shelf: Shelf, caplog: pytest.LogCaptureFixture
    ) -> None:
        """To have nobody is no outage; the client carries the token."""
        shelf.fails = misused
        for _ in range(5):
            assert shop.client.write(5).headers[HEADER] == "5"
        assert warnings(caplog) == []
        assert shop.safe.breaker.state == "closed"

    def test_not_for_this_trial(self, shop: Shop, shelf: Shelf) -> None:
        """Nor does it tell whether the store works again: the next one tries."""
        shelf.fails = down
        for _ in range(3):
            shop.recall()
        shop.clock.now += 1.1
        shelf.fails = misused
        shop.recall()
        shelf.fails = list
        shop.clock.now += 0.1
        shelf.token = "5"
        assert shop.recall() == "5"

    def test_the_client_fails_too(
        self, shop: Shop, shelf: Shelf, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A session interface that raises fails no request either."""

        class Interface:
            def __getattr__(self, name: str) -> Any:
                raise RuntimeError(name)

        shelf.fails = down
        app = Flask("shop")
        app.session_interface = Interface()  # type: ignore[assignment]  # it fails
        with app.app_context():
            for _ in range(10):
                shop.safe.remember(Response(), "5")
        assert len(warnings(caplog)) == 2  # the store's, and the cookie's

    def test_interrupt(self, shop: Shop, shelf: Shelf) -> None:
        """What ends the process is no failure of a store."""

        def stop() -> None:
            raise KeyboardInterrupt

        shelf.fails = stop
        with pytest.raises(KeyboardInterrupt):
            shop.recall()

    def test_kept_by_the_client(self, caplog: pytest.LogCaptureFixture) -> None:
        """One client's broken session keeps no other's from being used."""
        shelf = Shelf(down)
        shop = Shop(shelf, from_client=True)
        for _ in range(10):
            shop.recall()
        assert len(shelf.calls) == 10
        assert len(warnings(caplog)) == 1
        shelf.fails, shelf.token = list, "5"
        assert shop.recall() == "5"


class TestUser:
    """REPLICATED_PIN_KEY."""

    def test_raises(self, caplog: pytest.LogCaptureFixture) -> None:
        """What it raises counts as a failure of the store."""
        cache: Any = pytest.importorskip("cachelib").SimpleCache()
        store = CacheStore(cache, "pin:", down, largest, 300)
        shop = Shop(store, down)
        assert shop.client.write(5).headers[HEADER] == "5"
        assert shop.client.read() == "5"
        assert len(warnings(caplog)) == 1

    def test_takes_long(self, caplog: pytest.LogCaptureFixture) -> None:
        """How long it takes says nothing about the store."""
        cache: Any = pytest.importorskip("cachelib").SimpleCache()
        users: list[str] = []
        clock: list[Hand] = []

        def slow() -> str:  # and once a request, as whoever hands it over sees to
            if not users:
                clock[0].now += 3
                users.append("ann")
            return users[0]

        shop = Shop(CacheStore(cache, "pin:", slow, largest, 300), slow)
        clock.append(shop.clock)
        assert shop.recall() == ""
        assert users == ["ann"]
        assert warnings(caplog) == []

    def test_nobody(self, caplog: pytest.LogCaptureFixture) -> None:
        """Visitors who are not logged in carry their own tokens."""
        cache: Any = pytest.importorskip("cachelib").SimpleCache()
        shop = Shop(CacheStore(cache, "pin:", current_user, largest, 300))
        shop.client.headers = {}
        shop.client.write(5)
        assert shop.client.read() == "5"
        assert warnings(caplog) == []


class TestSession:
    """The session, where the token comes too late, or there is none."""

    def test_too_late(self, caplog: pytest.LogCaptureFixture) -> None:
        """The cookie takes over once the session is saved."""
        shop = Shop(SessionStore(), from_client=True)
        response = Response()
        with Flask("shop").test_request_context():
            shop.safe.remember(response, "5")
        assert response.headers["Set-Cookie"].startswith(f"{COOKIE}=5;")
        assert warnings(caplog) == []

    def test_without_a_secret_key(self, caplog: pytest.LogCaptureFixture) -> None:
        """Without SECRET_KEY there is no session: the cookie, and one warning."""
        shop = Shop(SessionStore(), from_client=True)
        shop.client.http.application.secret_key = None
        for _ in range(5):
            shop.client.write(5)
            assert shop.client.read() == "5"
        (said,) = warnings(caplog)
        assert "secret key" in said


class RedisServer:
    """A Redis server that may stop, hang and start again."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.folder = folder
        self._refused = importlib.import_module("redis").RedisError
        self.client = connect_redis(f"redis://127.0.0.1:{self.port}")
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.process = subprocess.Popen(
            [
                *("redis-server", "--port", str(self.port), "--bind", "127.0.0.1"),
                *("--save", "", "--dir", str(self.folder)),
            ],
            stdout=subprocess.DEVNULL,
        )
        until = time.monotonic() + 30
        while True:
            try:
                self.client.ping()
            except self._refused:
                assert time.monotonic() < until
                time.sleep(0.02)
            else:
                return

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def stop(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """Give a Redis server of the test's own."""
    pytest.importorskip("redis")
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    server = RedisServer(tmp_path)
    yield server
    server.stop()
    server.client.close()


class TestRedisServer:
    """A real server that goes away."""

    @pytest.fixture
    def shop(self, server: RedisServer) -> Shop:
        """Give an application with that server."""
        store = RedisStore(server.client, "pin:", current_user, largest, 300)
        return Shop(store)

    def test_killed(
        self, shop: Shop, server: RedisServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        """While it is down clients carry their tokens; a new server is used again."""
        shop.client.write(3)
        server.stop()
        assert shop.client.write(5).headers[HEADER] == "5"
        assert shop.client.read() == "5"
        server.start()
        shop.pass_time()
        assert HEADER not in shop.client.write(7).headers
        assert Client(shop.client.http.application).read() == "7"
        assert len(warnings(caplog)) == 2

    def test_hangs(
        self, shop: Shop, server: RedisServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        """One that accepts and never answers is given up, and used again later."""
        shop.client.write(3)
        server.signal(signal.SIGSTOP)
        assert shop.client.write(5).headers[HEADER] == "5"
        assert shop.client.read() == "5"
        server.signal(signal.SIGCONT)
        shop.pass_time()
        assert shop.client.read() == "5"
        assert len(warnings(caplog)) == 2
        assert "Timeout" in warnings(caplog)[0]

    def test_takes_no_writes(
        self, shop: Shop, server: RedisServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        """One without memory for writes is read; clients carry what it refuses."""
        shop.client.write(3)
        server.client.config_set("maxmemory", "1")
        assert shop.client.write(5).headers[HEADER] == "5"
        assert shop.client.read() == "5"
        assert Client(shop.client.http.application).read() == "3"
        (said,) = warnings(caplog)
        assert "maxmemory" in said

    def test_restarted(self, shop: Shop, server: RedisServer) -> None:
        """Connections that a restart has cut are replaced without a failure."""
        shop.client.write(3)
        server.stop()
        server.start()
        assert HEADER not in shop.client.write(5).headers


def test_fork_with_locks_held() -> None:
    """A child that is forked while a thread holds the locks does not wait for it."""
    command = [sys.executable, "-c", FORKED]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "recalled '!'\n"), done.stderr


FORKED = """
import os, signal
from flask import Flask, request
from flask_replicated.consistency.safe_store import SafeStore
from tests.pin_stores import largest
class Down:
    def recall(self, request):
        raise OSError
    remember = None
safe = SafeStore(Down(), (), largest)
with safe.breaker._lock, safe._outage._lock:
    child = os.fork()
    if not child:
        signal.alarm(20)
        with Flask("shop").test_request_context():
            print("recalled", repr(safe.recall(request)), flush=True)
        os._exit(0)
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
