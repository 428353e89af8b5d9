"""The primary's own connections: dead, silent, and led to a standby."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event, make_url
from sqlalchemy.exc import (
    OperationalError,
    TimeoutError,  # noqa: A004 - not the built-in one
)

from examples.cluster import wait_until
from flask_replicated import PrimaryUnavailableError, using_master
from flask_replicated._private import has_own_creator, invoke_creator, set_creator
from flask_replicated.replica.primary_status import PrimaryReport
from flask_replicated.replica.throttle import limit_connecting
from tests.chaos.proxy import Proxy
from tests.postgres.support import CLIENTS, bind, make_site, named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from examples.cluster import Cluster, Server
    from flask_replicated.replica.primary_status import PrimaryStatus
    from tests.postgres.support import Build, Site

    Behind = Callable[..., Site]

pytestmark = pytest.mark.postgres

PROBED: dict[str, Any] = {
    "REPLICATED_PROBE_INTERVAL": 0.5,
    "REPLICATED_CONNECT_TIMEOUT": 2,
}
QUIET: dict[str, Any] = {"REPLICATED_PROBE_INTERVAL": 0, "REPLICATED_PIN_SECONDS": 0}


@pytest.fixture
def proxy(healthy_cluster: Cluster) -> Iterator[Proxy]:
    """Give an address that leads to the primary, at first."""
    with Proxy(healthy_cluster.primary.port) as one:
        yield one


@pytest.fixture
def behind(
    build: Build, healthy_cluster: Cluster, driver: str, proxy: Proxy
) -> Iterator[Behind]:
    """Give a function that makes an application whose primary is behind the proxy."""
    made: list[Site] = []

    def behind(**config: Any) -> Site:
        primary = make_url(bind(healthy_cluster.primary, driver)).set(port=proxy.port)
        standbys = named(healthy_cluster.standbys)
        binds = {name: bind(standby, driver) for name, standby in standbys}
        shown = primary.render_as_string(hide_password=False)
        made.append(make_site(shown, binds, **{**QUIET, **config}))
        return made[-1]

    yield behind
    for site in made:
        site.dispose()


def status(site: Site) -> PrimaryStatus:
    """Return what is known of the primary."""
    state = site.app.extensions["replicated"].state(site.app)
    known: PrimaryStatus = state.routes[None].status
    return known


def kill_idle(server: Server) -> None:
    """End every client's connection, as a restart does, and wait until it is gone."""
    server.execute(f"select pg_terminate_backend(pid) {CLIENTS}")
    wait_until(
        lambda: server.execute(f"select count(*) {CLIENTS}") == [(0,)], "them to end"
    )


class TestStale:
    """Pooled connections whose server has ended them."""

    def test_a_write(self, build: Build, healthy_cluster: Cluster) -> None:
        """A write has a connection that lives."""
        site = build(**QUIET)
        site.post("before")
        kill_idle(healthy_cluster.primary)
        assert site.post("after").texts == ["before", "after"]

    def test_a_read_that_falls_back(
        self, build: Build, healthy_cluster: Cluster
    ) -> None:
        """Each of many that read from the primary at once is answered."""
        site = build(**QUIET)
        site.post("kept")
        for standby in healthy_cluster.standbys:
            standby.kill()
        assert {one.servers[0] for one in site.at_once(8)} == {"primary"}
        healthy_cluster.primary.restart("fast")
        assert [one.texts for one in site.at_once(8)] == [["kept"]] * 8


class TestSilent:
    """A primary that takes connections, and says nothing."""

    def test_frozen(self, behind: Behind, healthy_cluster: Cluster) -> None:
        """Who needs it has an error in time; replicas serve all the others."""
        site = behind(REPLICATED_CONNECT_TIMEOUT=1)
        site.count(3)
        healthy_cluster.primary.freeze()
        with ThreadPoolExecutor(8) as threads:
            began = time.monotonic()
            writes = [threads.submit(site.post, "lost") for _ in range(4)]
            reads = threads.submit(site.count, 30).result(20)
            errors = [write.exception(20) for write in writes]
            took = time.monotonic() - began
        healthy_cluster.primary.thaw()
        assert "primary" not in reads
        assert all(isinstance(error, OperationalError) for error in errors)
        # For some drivers two seconds are the least.
        assert took < 8

    def test_after_the_log_in(self, behind: Behind, proxy: Proxy) -> None:
        """First words that do not come are waited for no longer than a connect."""
        site = behind(REPLICATED_CONNECT_TIMEOUT=1)
        with site.app.app_context():
            engine = site.db.engine.real  # type: ignore[attr-defined]  # a RoutedEngine
        event.listen(engine, "connect", lambda *_: proxy.silence(), insert=True)
        began = time.monotonic()
        with pytest.raises(OperationalError):
            site.post("lost")
        assert time.monotonic() - began < 8
        proxy.speak()
        wait_until(
            lambda: not [t for t in threading.enumerate() if "time limit" in t.name],
            "no limit to be left",
        )

    def test_is_named(self, behind: Behind, proxy: Proxy) -> None:
        """The error says what was waited for, and which setting bounds it."""
        site = behind(REPLICATED_CONNECT_TIMEOUT=1)
        site.post("first")
        site.dispose()
        with site.app.app_context():
            engine = site.db.engine.real  # type: ignore[attr-defined]  # the same
        event.listen(engine, "connect", lambda *_: proxy.silence(), insert=True)
        with pytest.raises(PrimaryUnavailableError) as caught:
            site.post("lost")
        assert "said nothing for 1 s (REPLICATED_CONNECT_TIMEOUT)" in str(caught.value)
        assert not caught.value.standby
        assert caught.value.__cause__ is not None
        proxy.speak()


def test_listener_of_a_replica(healthy_cluster: Cluster) -> None:
    """One that was added before the extension, and hangs, is counted as well."""
    server = healthy_cluster.standbys[0]
    engine = sa.create_engine(bind(server, "psycopg"), pool_size=8)
    over, waiting = threading.Event(), []

    def hang(*_: object) -> None:
        waiting.append(threading.current_thread())
        over.wait(20)

    event.listen(engine, "do_connect", hang)
    limit_connecting(engine, 3, 0.5)
    with ThreadPoolExecutor(5) as threads:
        connects = [threads.submit(engine.connect) for _ in range(5)]
        try:
            wait_until(lambda: sum(one.done() for one in connects) == 2, "the others")
        finally:
            over.set()
        errors = [one.exception(20) for one in connects]
    for one, error in zip(connects, errors, strict=True):
        if error is None:
            one.result().close()
    engine.dispose()
    assert len(waiting) == 3
    assert sum(isinstance(one, TimeoutError) for one in errors) == 2


@pytest.mark.parametrize("listens", [False, True])
def test_own_connects(build: Build, listens: bool) -> None:
    """Those of a creator, or a listener, are counted; others go on or fail soon."""
    site = build(**QUIET, REPLICATED_MAX_CONNECTING=2, REPLICATED_CONNECT_TIMEOUT=1)
    over, waiting = threading.Event(), []

    def hang(*_: object) -> None:
        waiting.append(threading.current_thread())
        over.wait(20)

    with site.app.app_context():
        engine = site.db.engine.real  # type: ignore[attr-defined]  # a RoutedEngine
    assert listens or not has_own_creator(engine.pool)
    if listens:
        event.listen(engine, "do_connect", hang)
    else:
        connect = invoke_creator(engine.pool)

        def create(record: object) -> Any:
            hang()
            return connect(record)

        set_creator(engine.pool, create)
        limit_connecting(engine, None, 1, foreign=2)
    with ThreadPoolExecutor(6) as threads:
        try:
            writes = [threads.submit(site.post, "late") for _ in range(6)]
            wait_until(lambda: sum(one.done() for one in writes) == 4, "the others", 10)
            assert len(waiting) == 2
            assert "primary" not in site.count(6)
        finally:
            over.set()
        errors = [one.exception(20) for one in writes]
    assert sum(isinstance(one, TimeoutError) for one in errors) == 4
    assert errors.count(None) == 2


class TestFallsSilent:
    """A primary that hangs while connections to it are open."""

    def test_known_to_be_out(self, behind: Behind, healthy_cluster: Cluster) -> None:
        """Its open connections keep one thread at a time waiting, and not for long."""
        site = behind(**PROBED)
        site.at_once(4)
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(site.post, "abcd"))
        healthy_cluster.primary.freeze()
        wait_until(lambda: status(site).out, "that to be known", 20)
        began = time.monotonic()
        with ThreadPoolExecutor(2) as threads:
            writes = [threads.submit(site.post, "lost") for _ in range(20)]
            try:
                errors = [write.exception(20) for write in writes]
            finally:
                took = time.monotonic() - began
                healthy_cluster.primary.thaw()
        assert took < 10
        assert all(isinstance(error, OperationalError) for error in errors)
        assert any("does not answer" in str(error) for error in errors)
        wait_until(lambda: not status(site).out, "it to be back", 10)
        assert "found" in site.post("found").texts

    def test_a_trial(self, behind: Behind) -> None:
        """What is out by mistake is found well by the next write."""
        site = behind(**PROBED, REPLICATED_MAX_LAG=None)
        site.get()
        status(site).mark_unreachable()
        site.post("anew")
        assert not status(site).out

    def test_some_connections(
        self, behind: Behind, proxy: Proxy, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Where new ones are well, a read ends, and a write is left alone."""
        site = behind(**PROBED)
        site.get()
        with ThreadPoolExecutor(2) as threads, site.app.app_context(), using_master():
            began, go = threading.Event(), threading.Event()

            def write() -> None:
                with site.app.app_context():
                    site.db.session.add(site.item(text="late"))
                    site.db.session.flush()
                    began.set()
                    go.wait(20)
                    site.db.session.commit()

            writing = threads.submit(write)
            assert began.wait(20)
            site.who()
            proxy.silence_open()
            go.set()
            started = time.monotonic()
            try:
                with pytest.raises(OperationalError):
                    site.who()
                took = time.monotonic() - started
                site.db.session.rollback()
                server, ended = site.who().server, writing.done()
            finally:
                proxy.speak()
            writing.result(20)
            site.db.session.rollback()
            assert (took < 8, server, ended) == (True, "primary", False)
            # By the probe, if its own connection is silent, or by the watch over reads.
            told = caplog.text
            assert "ended 1 read" in told or "no answer has come over 1 of" in told
            assert site.texts() == ["late"]


class TestStandby:
    """An address that leads to a standby while a failover goes on."""

    def test_is_not_used(
        self, behind: Behind, healthy_cluster: Cluster, proxy: Proxy
    ) -> None:
        """Neither a write nor an own read is given to it; then the primary serves."""
        site = behind(REPLICATED_PIN="time", REPLICATED_PIN_SECONDS=5)
        client = site.client()
        site.post("mine", client)
        proxy.target = healthy_cluster.standbys[0].port
        proxy.reset()
        wait_until(lambda: not proxy._flows, "the pooled connections to be cut")
        for ask in (site.get, partial(site.post, "lost")):
            with pytest.raises(PrimaryUnavailableError) as caught:
                ask(client=client)
            assert caught.value.setting == "SQLALCHEMY_DATABASE_URI"
            assert "is a standby" in str(caught.value)
        assert site.get().servers[0] != "primary"
        proxy.target = healthy_cluster.primary.port
        assert site.get(client).servers == ["primary", "primary"]
        assert site.post("later", client).texts == ["mine", "later"]
        assert not site.checked_out()

    def test_another_try(
        self, behind: Behind, healthy_cluster: Cluster, proxy: Proxy
    ) -> None:
        """Where the next connection leads to the primary, nobody notices."""
        site = behind()
        proxy.target = healthy_cluster.standbys[0].port
        with site.app.app_context():
            engine = site.db.engine.real  # type: ignore[attr-defined]  # the same

        tries: list[int] = []

        @event.listens_for(engine, "do_connect")
        def move(*_: object) -> None:
            if tries:
                proxy.target = healthy_cluster.primary.port
            tries.append(proxy.target)

        assert site.post("written").servers == ["primary", "primary"]
        assert tries[:2] == [
            healthy_cluster.standbys[0].port,
            healthy_cluster.primary.port,
        ]

    def test_role_is_not_checked(
        self, behind: Behind, healthy_cluster: Cluster, proxy: Proxy
    ) -> None:
        """With REPLICATED_ROLE_CHECK = False any server will do."""
        proxy.target = healthy_cluster.standbys[0].port
        site = behind(REPLICATED_ROLE_CHECK=False)

        def own() -> str:
            with site.db.engine.execution_options().connect() as connection:
                return str(connection.exec_driver_sql("show cluster_name").scalar())

        site.app.add_url_rule("/own", "own", own)
        assert site.client().get("/own").text == "standby_1"


def test_identity(build: Build, healthy_cluster: Cluster) -> None:
    """Any account learns with its first connection what the primary is."""
    primary = healthy_cluster.primary
    primary.execute("drop role if exists newcomer")
    primary.execute("create role newcomer login")
    site = build(**QUIET)
    with site.app.app_context():
        routed: Any = site.db.engine
        url = routed.real.url
    assert routed.status.report == PrimaryReport()

    @event.listens_for(routed.real, "do_connect")
    def by_newcomer(_dialect: Any, _record: Any, _args: Any, options: Any) -> None:
        options["user"] = "newcomer"

    with routed.real.connect():
        pass
    ((system,),) = primary.execute("select system_identifier from pg_control_system()")
    ((timeline,),) = primary.execute("select timeline_id from pg_control_checkpoint()")
    facts = routed.status.report
    assert facts.system_identifier == system
    assert facts.database == url.database
    assert facts.timeline == timeline
    assert facts.standby is False
