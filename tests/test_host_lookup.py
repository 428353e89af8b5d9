"""Host names are looked up with a bound, whatever the name server does."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from examples.cluster import wait_until
from flask_replicated.replica.host_lookup import HostLookup
from flask_replicated.replica.throttle import limit_connecting

if TYPE_CHECKING:
    from collections.abc import Iterator

SHORT, LONG = 0.05, 30.0  # seconds


class Resolver:
    """Stands in for the system's: it knows some names, and may be silent on others.

    Attributes:
        known: The addresses by name.
        silent: The names whose server does not answer.
        gives_up: Those of which it says so.
        asked: Every name that it was asked for.
    """

    def __init__(self) -> None:
        self.known = {"db.test": ["10.0.0.1", "10.0.0.2"], "two.test": ["::1"]}
        self.silent, self.gives_up = {"silent.test"}, set[str]()
        self.asked: list[str] = []
        self.speak = threading.Event()

    def getaddrinfo(self, host: str, _port: object, **_: object) -> list[Any]:
        """Do as the function of this name does."""
        self.asked.append(host)
        if host in self.silent:
            self.speak.wait(LONG)
        if host in self.gives_up:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure")
        if host not in self.known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(2, 1, 6, "", (address, 0)) for address in self.known[host]]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    """Give the resolver, and let nobody wait for it afterwards."""
    made = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", made.getaddrinfo)
    yield made
    made.speak.set()
    wait_until(
        lambda: not [t for t in threading.enumerate() if "lookup" in t.name],
        "the threads to end",
    )


def dialect(driver: str) -> Any:
    """Return a driver's dialect, with the driver."""
    pytest.importorskip(driver.partition("+")[2])
    return sa.create_engine(f"{driver}://user@host/name").dialect


def look_up(driver: str, seconds: float = LONG, **arguments: Any) -> dict[str, Any]:
    """Return what a driver is told."""
    HostLookup().look_up(dialect(driver), arguments, time.monotonic() + seconds)
    return arguments


@pytest.mark.parametrize("driver", ["postgresql+psycopg", "postgresql+psycopg2"])
@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"host": "db.test", "port": "6432"},
            {
                "host": "db.test,db.test",
                "hostaddr": "10.0.0.1,10.0.0.2",
                "port": "6432,6432",
            },
        ),
        ({"host": "two.test"}, {"host": "two.test", "hostaddr": "::1"}),
        (
            {"host": "two.test,10.0.0.9,/run/pg", "port": "1,2,3"},
            {
                "host": "two.test,10.0.0.9,/run/pg",
                "hostaddr": "::1,,",
                "port": "1,2,3",
            },
        ),
        # A host that is not known, or not in time, is left out.
        (
            {"host": "nowhere.test,two.test", "port": "1,2"},
            {"host": "two.test", "hostaddr": "::1", "port": "2"},
        ),
    ],
)
def test_libpq(
    resolver: Resolver, driver: str, given: dict[str, Any], told: dict[str, Any]
) -> None:
    """The driver is told the addresses, and asks nobody again."""
    assert look_up(driver, **given) == told


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"host": ""},
        {"host": "127.0.0.1"},
        {"host": "::1"},
        {"host": "/var/run/postgresql"},
        {"host": "localhost"},
        {"host": "db.test", "hostaddr": "10.0.0.7"},
        {"host": "10.0.0.1,10.0.0.2", "port": 5432},
        {"host": "db.test,two.test", "port": "1,2,3"},  # which the driver refuses
        {"service": "shop"},
    ],
)
def test_nothing_to_look_up(resolver: Resolver, given: dict[str, Any]) -> None:
    """An address, a path, or what nobody but the driver understands costs nothing."""
    assert look_up("postgresql+psycopg", **given) == given
    assert not resolver.asked


def test_other_drivers(resolver: Resolver) -> None:
    """A driver that takes no addresses beside the name is told what it was."""
    given: dict[str, Any] = {"host": "db.test", "port": 3306}
    assert look_up("mysql+pymysql", **given) == given
    assert resolver.asked == ["db.test"]
    socketed: dict[str, Any] = {"host": "db.test", "unix_socket": "/run/mysqld.sock"}
    assert look_up("mysql+pymysql", **socketed) == socketed
    assert resolver.asked == ["db.test"]


@pytest.mark.parametrize("driver", ["postgresql+psycopg2", "mysql+pymysql"])
def test_silent(resolver: Resolver, driver: str) -> None:
    """Whoever waits for a silent name server gets the driver's own error."""
    module = dialect(driver).loaded_dbapi
    with pytest.raises(module.OperationalError, match="cannot be looked up"):
        look_up(driver, SHORT, host="silent.test")


def test_unknown(resolver: Resolver) -> None:
    """Where no host is known the error says so of each."""
    with pytest.raises(Exception, match=r"'a\.test' .*not known; .*'b\.test'"):
        look_up("postgresql+psycopg", host="a.test,b.test")


def test_no_host_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be no name of a host is an error like others."""

    def refuse(*_: object, **__: object) -> None:
        raise UnicodeError("label too long")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(Exception, match="label too long"):
        look_up("postgresql+psycopg", host="a" * 70)


def test_one_thread_for_a_name(resolver: Resolver) -> None:
    """Many who wait for one name are one question; when it is over there is another."""
    names, psycopg = HostLookup(), dialect("postgresql+psycopg")

    def ask(_: int) -> type[BaseException] | None:
        try:
            until = time.monotonic() + SHORT
            names.look_up(psycopg, {"host": "silent.test"}, until)
        except psycopg.loaded_dbapi.OperationalError as error:
            return type(error)
        return None

    with ThreadPoolExecutor(8) as threads:
        assert None not in set(threads.map(ask, range(24)))
    assert resolver.asked == ["silent.test"]
    resolver.speak.set()
    wait_until(lambda: not names._pending, "the answer")
    resolver.known["silent.test"] = ["10.0.0.3"]
    told = {"host": "silent.test"}
    names.look_up(psycopg, told, time.monotonic() + LONG)
    assert told["hostaddr"] == "10.0.0.3"


class TestLatest:
    """The latest answer, where the name server has become silent."""

    @pytest.mark.parametrize("driver", ["postgresql+psycopg", "postgresql+psycopg2"])
    def test_stands_in(self, resolver: Resolver, driver: str) -> None:
        """Whoever takes addresses connects by those that were told last."""
        names, libpq = HostLookup(), dialect(driver)
        names.look_up(libpq, {"host": "two.test"}, time.monotonic() + LONG)
        resolver.silent.add("two.test")
        for _ in range(2):
            told = {"host": "two.test"}
            names.look_up(libpq, told, time.monotonic() + SHORT)
            assert told["hostaddr"] == "::1"
        assert len(resolver.asked) == 2

    def test_resolver_gives_up(self, resolver: Resolver) -> None:
        """So where the system says that nobody has answered."""
        names, psycopg = HostLookup(), dialect("postgresql+psycopg")
        names.look_up(psycopg, {"host": "two.test"}, time.monotonic() + LONG)
        resolver.gives_up.add("two.test")
        told = {"host": "two.test"}
        names.look_up(psycopg, told, time.monotonic() + LONG)
        assert told["hostaddr"] == "::1"

    def test_late_answer(self, resolver: Resolver) -> None:
        """An answer that comes when nobody waits any more serves the next."""
        names, psycopg = HostLookup(), dialect("postgresql+psycopg")
        resolver.silent.add("two.test")
        with pytest.raises(psycopg.loaded_dbapi.OperationalError):
            names.look_up(psycopg, {"host": "two.test"}, time.monotonic() + SHORT)
        resolver.speak.set()
        wait_until(lambda: not names._pending, "the answer")
        resolver.speak.clear()
        told = {"host": "two.test"}
        names.look_up(psycopg, told, time.monotonic() + SHORT)
        assert told["hostaddr"] == "::1"

    def test_gone(self, resolver: Resolver) -> None:
        """A name that its server does not know any more is no name."""
        names, psycopg = HostLookup(), dialect("postgresql+psycopg")
        names.look_up(psycopg, {"host": "two.test"}, time.monotonic() + LONG)
        del resolver.known["two.test"]
        with pytest.raises(psycopg.loaded_dbapi.OperationalError, match="not known"):
            names.look_up(psycopg, {"host": "two.test"}, time.monotonic() + LONG)

    def test_old(self, resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
        """What was told too long ago is not believed."""
        names, psycopg = HostLookup(), dialect("postgresql+psycopg")
        names.look_up(psycopg, {"host": "two.test"}, time.monotonic() + LONG)
        resolver.silent.add("two.test")
        monkeypatch.setattr("flask_replicated.replica.host_lookup._OLDEST", 0)
        with pytest.raises(psycopg.loaded_dbapi.OperationalError, match="in time"):
            names.look_up(psycopg, {"host": "two.test"}, time.monotonic() + SHORT)

    def test_other_drivers(self, resolver: Resolver) -> None:
        """Who would ask again by itself is not let near a silent name server."""
        names, pymysql = HostLookup(), dialect("mysql+pymysql")
        names.look_up(pymysql, {"host": "two.test"}, time.monotonic() + LONG)
        resolver.silent.add("two.test")
        with pytest.raises(pymysql.loaded_dbapi.OperationalError, match="in time"):
            names.look_up(pymysql, {"host": "two.test"}, time.monotonic() + SHORT)

    def test_bounded(self, resolver: Resolver) -> None:
        """A program that makes names as it runs does not fill the memory."""
        names, psycopg = HostLookup(), dialect("postgresql+psycopg")
        resolver.known = {f"n{number}.test": ["10.0.0.1"] for number in range(250)}
        for name in resolver.known:
            names.look_up(psycopg, {"host": name}, time.monotonic() + LONG)
        assert len(names._known) <= 100


def test_in_a_forked_child(resolver: Resolver) -> None:
    """What a parent's thread was looking up is looked up anew."""
    names, psycopg = HostLookup(), dialect("postgresql+psycopg")
    with pytest.raises(psycopg.loaded_dbapi.OperationalError):
        names.look_up(psycopg, {"host": "silent.test"}, time.monotonic() + SHORT)
    names._pending["silent.test"].in_its_process = lambda: False
    resolver.silent.clear()
    resolver.known["silent.test"] = ["10.0.0.3"]
    told = {"host": "silent.test"}
    names.look_up(psycopg, told, time.monotonic() + LONG)
    assert told["hostaddr"] == "10.0.0.3"


def test_without_threads(resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where none can be started the driver looks up its hosts by itself."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    names, told = HostLookup(), {"host": "db.test"}
    names.look_up(dialect("postgresql+psycopg"), told, time.monotonic() + LONG)
    assert told == {"host": "db.test"}
    assert not names._pending


def test_in_a_loop(resolver: Resolver) -> None:
    """A coroutine that waits for a name server lets the loop run."""
    from sqlalchemy.util import greenlet_spawn

    asynchronous = dialect("postgresql+asyncpg")
    resolver.known["silent.test"] = ["10.0.0.3"]

    async def look_up(seconds: float) -> None:
        until = time.monotonic() + seconds
        await greenlet_spawn(
            HostLookup().look_up, asynchronous, {"host": "silent.test"}, until
        )

    async def speak() -> None:
        for _ in range(10):
            await asyncio.sleep(0)
        resolver.speak.set()

    async def main() -> None:
        with pytest.raises(
            asynchronous.loaded_dbapi.OperationalError, match="not answered in time"
        ):
            await look_up(SHORT)
        # It is answered only if the loop runs meanwhile.
        await asyncio.gather(look_up(LONG), speak())

    asyncio.run(main())


class TestConnect:
    """What an engine connects to."""

    def engine(self, told: list[Any], **limits: Any) -> sa.Engine:
        """Return one whose driver only notes what it is told."""
        engine = sa.create_engine("postgresql+psycopg://user@db.test/name")

        def connect(*_: Any, **arguments: Any) -> Any:
            told.append(arguments)
            raise engine.dialect.loaded_dbapi.OperationalError("noted")

        engine.dialect.connect = connect  # type: ignore[method-assign]  # no server is asked
        limit_connecting(engine, None, **limits)
        return engine

    def test_the_last_word(self, resolver: Resolver) -> None:
        """Whoever listens later may name another host, and that one is looked up."""
        told: list[Any] = []
        engine = self.engine(told, seconds=LONG)

        @sa.event.listens_for(engine, "do_connect")
        def move(_: Any, __: Any, ___: Any, arguments: dict[str, Any]) -> None:
            arguments["host"] = "two.test"

        with pytest.raises(OperationalError, match="noted"):
            engine.connect()
        assert resolver.asked == ["two.test"]
        assert told[0]["host"] == "two.test"
        assert told[0]["hostaddr"] == "::1"

    def test_bound(self, resolver: Resolver) -> None:
        """The driver is not even asked when the time is over."""
        told: list[Any] = []
        resolver.silent.add("db.test")
        engine = self.engine(told, seconds=SHORT)
        with pytest.raises(OperationalError, match="cannot be looked up"):
            engine.connect()
        assert not told

    @pytest.mark.parametrize("limit", [60, "60", "a minute"])
    def test_own_limit(self, resolver: Resolver, limit: Any) -> None:
        """A longer limit of the URL's own holds for the name as well."""
        told: list[Any] = []
        resolver.silent.add("db.test")
        engine = self.engine(told, seconds=SHORT, own_limit="connect_timeout")

        @sa.event.listens_for(engine, "do_connect")
        def allow(_: Any, __: Any, ___: Any, arguments: dict[str, Any]) -> None:
            arguments["connect_timeout"] = limit

        with ThreadPoolExecutor(1) as threads:
            connecting = threads.submit(engine.connect)
            if limit == "a minute":  # which is the driver's to refuse
                with pytest.raises(OperationalError, match="cannot be looked up"):
                    connecting.result(LONG)
                return
            wait_until(lambda: bool(resolver.asked), "the question")
            time.sleep(2 * SHORT)  # let the shorter limit pass
            resolver.speak.set()
            with pytest.raises(OperationalError, match="noted"):
                connecting.result(LONG)
