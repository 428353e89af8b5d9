"""Replicas that DNS names, asked of a real server of a few lines."""

from __future__ import annotations

import gc
import logging
import os
import socket
import sys
import threading
import time
import weakref
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from flask_replicated import ConfigurationError, FlaskReplicated
from flask_replicated.fleet.discovery import Address, Discovery, DNSAnswer
from flask_replicated.settings.config import DiscoverySource
from tests.support import Build, Site, build_fixture, make_file, sqlite_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytest.importorskip("dns")
import dns.flags
import dns.message
import dns.rcode
import dns.resolver
import dns.rrset

build = build_fixture
HOST = "replicas.internal."
SERVICE = "_pg._tcp.replicas.internal."
EVERY = 0.05


class Server:
    """Answers over UDP.

    Attributes:
        records: What it knows, by name and type.
        broken: Whether it answers that it cannot.
        names_one: Whether it names one server at a time, each in its turn.
        asked: How many questions it has had.
    """

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], list[str]] = {}
        self.broken = self.names_one = False
        self.asked = 0
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        """Answer until an empty message comes."""
        while True:
            wire, sender = self.socket.recvfrom(4096)
            if not wire:
                return
            self.asked += 1
            self.socket.sendto(self.answer(wire), sender)

    def answer(self, wire: bytes) -> bytes:
        """Return what is known, NXDOMAIN for another name, or a failure."""
        query = dns.message.from_wire(wire)
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        (question,) = query.question
        name = question.name.to_text()
        kind = dns.rdatatype.to_text(question.rdtype)
        found = self.records.get((name, kind))
        if found and self.names_one:
            found = [found[self.asked % len(found)]]
        if self.broken:
            answer.set_rcode(dns.rcode.SERVFAIL)
        elif found:
            answer.answer.append(dns.rrset.from_text(name, 0, "IN", kind, *found))
        elif not any(known == name for known, _ in self.records):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        wired: bytes = answer.to_wire()
        return wired

    def close(self) -> None:
        """End."""
        self.socket.sendto(b"", ("127.0.0.1", self.port))
        self.thread.join()
        self.socket.close()


@pytest.fixture
def server() -> Iterator[Server]:
    """Give a server that the resolver asks."""
    server = Server()
    resolver = dns.resolver.Resolver(configure=False)
    resolver.nameservers = ["127.0.0.1"]
    resolver.port = server.port
    before = dns.resolver.default_resolver
    dns.resolver.default_resolver = resolver
    yield server
    dns.resolver.default_resolver = before
    server.close()


class Places(SQLAlchemy):
    """Makes an SQLite engine in place of each server, named after its address."""

    folder: Any
    made: list[tuple[str, sa.URL]]

    def _make_engine(self, bind_key: Any, options: Any, app: Flask) -> sa.Engine:
        url = sa.make_url(options["url"])
        if url.host:
            self.made.append((bind_key, url))
            name = f"{url.host}-{url.port}".replace(":", "_")
            options = {**options, "url": sqlite_url(make_file(self.folder, name))}
        return super()._make_engine(bind_key, options, app)


URL = "postgresql+psycopg://shop:hunter2@{}/shop"


class Found:
    """A site whose replicas DNS names."""

    def __init__(
        self, build: Build, source: Any, replicas: Any = (), **config: Any
    ) -> None:
        self.extension = FlaskReplicated()
        self.db = Places()
        self.db.made = []
        self.site: Site = build(
            replicas,
            db=self.db,
            extension=self.extension,
            REPLICATED_DISCOVERY={"slave": source},
            **config,
        )
        self.db.folder = self.site.folder

    def live(self) -> set[str]:
        """Return the replicas in rotation, once a request has read."""
        self.site.get()
        with self.site.app.app_context():
            return set(self.extension.pool().snapshot().live)

    def soon(self, *names: str) -> None:
        """Wait until these are in rotation."""
        wait_for(lambda: self.live() == set(names))


def wait_for(happened: Callable[[], bool]) -> None:
    """Wait until something is so, for ten seconds at the most."""
    until = time.monotonic() + 10
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.01)


def by_host(**options: Any) -> dict[str, Any]:
    """Return a source of addresses."""
    return {"url": URL.format("replicas.internal:6432"), "every": EVERY, **options}


class TestAddresses:
    """A host with A or AAAA records."""

    def test_come_and_go(self, build: Build, server: Server) -> None:
        """Servers that DNS names serve, and those it names no more do not."""
        server.records[HOST, "A"] = ["10.0.0.1", "10.0.0.2"]
        found = Found(build, by_host())
        assert not server.asked
        found.soon("slave_10.0.0.1:6432", "slave_10.0.0.2:6432")
        assert set(found.site.count(4)) == {"10.0.0.1-6432", "10.0.0.2-6432"}
        server.records[HOST, "A"] = ["10.0.0.2", "10.0.0.3"]
        found.soon("slave_10.0.0.2:6432", "slave_10.0.0.3:6432")
        with found.site.app.app_context():
            assert set(found.db.engines) == {
                None,
                "slave_10.0.0.2:6432",
                "slave_10.0.0.3:6432",
            }
        name, url = found.db.made[0]
        assert name.startswith("slave_10.0.0.")
        assert (url.username, url.password, url.port) == ("shop", "hunter2", 6432)

    def test_are_heard(self, build: Build, server: Server) -> None:
        """What is listened to on ``db.engine`` is heard for those that DNS names."""
        server.records[HOST, "A"] = ["10.0.0.1"]
        found = Found(build, by_host())
        heard: list[str] = []

        def listen(connection: sa.Connection, *_: Any) -> None:
            heard.append(Path(connection.engine.url.database or "").stem)

        with found.site.app.app_context():
            sa.event.listen(found.db.engine, "before_cursor_execute", listen)
        found.soon("slave_10.0.0.1:6432")
        server.records[HOST, "A"] = ["10.0.0.1", "10.0.0.2"]
        found.soon("slave_10.0.0.1:6432", "slave_10.0.0.2:6432")
        heard.clear()
        assert found.site.count(4) == Counter(heard)
        assert set(heard) == {"10.0.0.1-6432", "10.0.0.2-6432"}

    def test_of_the_sixth_version(self, build: Build, server: Server) -> None:
        """Where there is no A record, AAAA ones count; a port may be left out."""
        server.records[HOST, "AAAA"] = ["fd00::1"]
        found = Found(build, {"url": URL.format("replicas.internal"), "every": EVERY})
        found.soon("slave_[fd00::1]")
        assert found.db.made[0][1].host == "fd00::1"

    def test_beside_configured_ones(self, build: Build, server: Server) -> None:
        """Configured replicas stay, whatever DNS says; options are the engines'."""
        server.records[HOST, "A"] = ["10.0.0.1"]
        found = Found(build, by_host(pool_size=2), ["slave_1"])
        found.soon("slave_1", "slave_10.0.0.1:6432")
        with found.site.app.app_context():
            pool: Any = found.db.engines["slave_10.0.0.1:6432"].pool
        assert pool.size() == 2

    def test_a_part_at_a_time(self, build: Build, server: Server) -> None:
        """Servers that are named now and then stay, with the connections to them."""
        server.records[HOST, "A"] = ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
        server.names_one = True
        found = Found(build, by_host())
        names = [f"slave_10.0.0.{number}:6432" for number in (1, 2, 3)]
        found.soon(*names)
        asked = server.asked
        wait_for(lambda: server.asked > asked + 9)
        assert found.live() == set(names)
        assert len(found.db.made) == 3
        server.records[HOST, "A"] = ["10.0.0.2", "10.0.0.3"]
        found.soon(*names[1:])

    @pytest.mark.parametrize("trouble", ["broken", "empty", "unknown"])
    def test_no_answer_keeps_them(
        self,
        build: Build,
        server: Server,
        trouble: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """An error or an empty answer is logged once and changes nothing."""
        server.records[HOST, "A"] = ["10.0.0.1"]
        found = Found(build, by_host())
        found.soon("slave_10.0.0.1:6432")
        if trouble == "broken":
            server.broken = True
        elif trouble == "empty":
            server.records[HOST, "A"] = []
        else:
            server.records.clear()
        asked = server.asked
        with caplog.at_level(logging.INFO, "flask_replicated"):
            wait_for(lambda: server.asked > asked + 12)
            assert found.live() == {"slave_10.0.0.1:6432"}
            said = [r for r in caplog.records if "cannot be looked up" in r.message]
            assert len(said) == 1
            assert "hunter2" not in caplog.text
            server.broken = False
            server.records[HOST, "A"] = ["10.0.0.7"]
            found.soon("slave_10.0.0.7:6432")
        assert "DNS answers again" in caplog.text

    def test_nothing_known_yet(
        self, build: Build, server: Server, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Until DNS has answered, the primary serves, without an alarm."""
        server.broken = True
        found = Found(build, by_host())
        assert found.site.count(5) == {"master": 5}
        assert not [r for r in caplog.records if r.levelno >= logging.ERROR]
        server.broken = False
        server.records[HOST, "A"] = ["10.0.0.1"]
        found.soon("slave_10.0.0.1:6432")


class Taken:
    """What a discovery does to a fleet."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def add_discovered(self, name: str, _bind: object, _weight: int) -> None:
        """Take one in."""
        self.names.add(name)

    def remove(self, name: str) -> None:
        """Let one go."""
        self.names.remove(name)


class TestMissing:
    """When a server that is not named is let go."""

    def found(
        self, monkeypatch: pytest.MonkeyPatch, ttl: float, seconds: float
    ) -> list[int]:
        """Return at which answers without it one server was still there."""
        now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: now)
        source = DiscoverySource(sa.make_url("postgresql://replicas.internal"), {}, 30)
        fleet: Any = Taken()
        discovery = Discovery("slave", source)
        one, two = Address("one", None, 1), Address("two", None, 1)
        discovery.found(fleet, DNSAnswer([one, two], ttl))
        there = []
        for number in range(1, 12):
            now += seconds
            discovery.found(fleet, DNSAnswer([one], ttl))
            if "slave_two" in fleet.names:
                there.append(number)
        assert "slave_one" in fleet.names
        return there

    def test_third_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It goes with the third answer in a row that does not name it."""
        assert self.found(monkeypatch, ttl=0, seconds=30) == [1, 2]
        assert self.found(monkeypatch, ttl=30, seconds=30) == [1, 2]

    def test_what_a_cache_repeats(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The same answer, out of a cache, counts once."""
        assert self.found(monkeypatch, ttl=30, seconds=10) == [1, 2, 3, 4, 5, 6, 7, 8]

    def test_kept_for_days(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """However long an answer may be kept, in a minute it is a new one."""
        assert self.found(monkeypatch, ttl=86_400, seconds=30) == [1, 2, 3, 4, 5]

    def test_named_in_between(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A server that is named again has missed nothing."""
        source = DiscoverySource(sa.make_url("postgresql://replicas.internal"), {}, 30)
        fleet: Any = Taken()
        discovery = Discovery("slave", source)
        one, two = Address("one", None, 1), Address("two", None, 1)
        for places in ([one, two], [one], [one], [two], [one], [one], [two]):
            discovery.found(fleet, DNSAnswer(places))
        assert fleet.names == {"slave_one", "slave_two"}


class TestServices:
    """A host with SRV records."""

    def test_ports_weights_and_priority(self, build: Build, server: Server) -> None:
        """The first priority's servers serve, by weight, at their ports."""
        server.records[SERVICE, "SRV"] = [
            "10 3 6001 one.internal.",
            "10 1 6002 two.internal.",
            "20 9 6003 reserve.internal.",
        ]
        source = {"url": URL.format("_pg._tcp.replicas.internal"), "every": EVERY}
        found = Found(build, source)
        found.soon("slave_one.internal:6001", "slave_two.internal:6002")
        assert found.site.count(40) == {
            "one.internal-6001": 30,
            "two.internal-6002": 10,
        }
        server.records[SERVICE, "SRV"] = [
            "10 1 6001 one.internal.",
            "10 1 6002 two.internal.",
        ]
        wait_for(lambda: found.site.count(8)["one.internal-6001"] == 4)

    def test_not_available(self, build: Build, server: Server) -> None:
        """A service that is said to be not available is no answer."""
        server.records[SERVICE, "SRV"] = ["0 0 0 ."]
        source = {"url": URL.format("_pg._tcp.replicas.internal"), "every": EVERY}
        found = Found(build, source)
        assert found.site.count(3) == {"master": 3}


class TestLife:
    """The thread."""

    def test_ends_with_its_application(self, build: Build, server: Server) -> None:
        """Disposed of it rests, and begins again at the next read."""
        server.records[HOST, "A"] = ["10.0.0.1"]
        found = Found(build, by_host())
        found.soon("slave_10.0.0.1:6432")
        found.site.dispose()
        wait_for(lambda: not running())
        server.records[HOST, "A"] = ["10.0.0.2"]
        found.soon("slave_10.0.0.2:6432")

    def test_keeps_nothing_alive(self, tmp_path: Any, server: Server) -> None:
        """An application that is dropped is garbage, and its thread ends."""
        server.records[HOST, "A"] = ["10.0.0.1"]

        def used() -> weakref.ref[Any]:
            app = Flask("site")
            app.config["SQLALCHEMY_DATABASE_URI"] = sqlite_url(
                make_file(tmp_path, "master")
            )
            app.config["REPLICATED_DISCOVERY"] = {"slave": by_host()}
            app.config["REPLICATED_MAX_POOLS"] = 2
            db = Places()
            db.made, db.folder = [], tmp_path
            db.init_app(app)
            extension = FlaskReplicated(app)
            read = sa.text("SELECT name FROM marker")

            def served() -> bool:
                with app.test_request_context():
                    found = db.session.scalar(read)
                    db.session.remove()
                    return bool(found == "10.0.0.1-6432")

            wait_for(served)
            with app.app_context():
                assert extension.pool().snapshot().live == ("slave_10.0.0.1:6432",)
                for engine in list(db.engines.values()):
                    engine.dispose()
            served()  # and so both threads run again
            assert running()
            with app.app_context():
                db.engines["slave_10.0.0.1:6432"].dispose()
            return weakref.ref(app)

        left = used()

        def gone() -> bool:
            gc.collect()
            return left() is None and not running()

        wait_for(gone)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
    @pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
    def test_a_child_queries_too(self, build: Build, server: Server) -> None:
        """A forked child has a thread of its own, and goes on from what was known."""
        server.records[HOST, "A"] = ["10.0.0.1"]
        found = Found(build, by_host())
        found.soon("slave_10.0.0.1:6432")
        child = os.fork()
        if child == 0:
            code = 2
            try:
                # The server's thread is the parent's, and so answers.
                found.soon("slave_10.0.0.2:6432")
                code = 0
            finally:
                os._exit(code)
        server.records[HOST, "A"] = ["10.0.0.2"]
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        found.soon("slave_10.0.0.2:6432")


def running() -> list[str]:
    """Return the names of threads that query DNS."""
    return [t.name for t in threading.enumerate() if "discovery" in t.name]


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ("slave", "REPLICATED_DISCOVERY"),
        ({"reserve": by_host()}, "REPLICATED_DISCOVERY['reserve']"),
        ({"slave_1": by_host()}, "REPLICATED_DISCOVERY['slave_1']"),
        ({"slave": {}}, "REPLICATED_DISCOVERY['slave']"),
        ({"slave": {"url": "hunter2"}}, "REPLICATED_DISCOVERY['slave']"),
        ({"slave": "sqlite:///x.db"}, "REPLICATED_DISCOVERY['slave']"),
        ({"slave": by_host(every=0)}, "REPLICATED_DISCOVERY['slave']['every']"),
        ({"other_slave": by_host()}, "REPLICATED_DISCOVERY['other_slave']"),
    ],
)
def test_errors(build: Build, value: Any, key: str) -> None:
    """What is wrong is named at start, without passwords."""
    with pytest.raises(ConfigurationError) as caught:
        build(REPLICATED_DISCOVERY=value)
    assert caught.value.key == key
    assert "hunter2" not in str(caught.value)


def test_without_dnspython(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install, in words that any shell takes."""
    monkeypatch.setitem(sys.modules, "dns.resolver", None)
    with pytest.raises(ConfigurationError, match="pip install dnspython") as caught:
        Found(build, by_host())
    assert "[" not in caught.value.remedy
