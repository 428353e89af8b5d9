"""The background probes of real standbys: dead, silent, lagging, promoted."""

from __future__ import annotations

import gc
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError

from balancers import Pool
from examples.cluster import wait_until
from flask_replicated.system.sockets import fileno_of, hang_up
from tests.chaos.proxy import Proxy
from tests.postgres.support import CLIENTS, bind

if TYPE_CHECKING:
    from examples.cluster import Cluster
    from tests.postgres.support import Build, Site

pytestmark = pytest.mark.postgres

BINDS = ("slave_1", "slave_2", "slave_3")
OFTEN: dict[str, Any] = {
    "REPLICATED_PROBE_INTERVAL": 0.3,
    "REPLICATED_CONNECT_TIMEOUT": 1,
}
# Where no server falls silent: on a busy machine one may be late with an answer.
PATIENT = {**OFTEN, "REPLICATED_CONNECT_TIMEOUT": 10}


def settle(site: Site, *binds: str) -> None:
    """Wait until the monitor alone has left these in rotation: no request asks."""
    wait_until(lambda: site.live() == set(binds), f"only {binds} to be live", 20)


def why(site: Site, name: str) -> str:
    """Return why a replica is out."""
    return site.pool.causes()[name]


class TestReachability:
    """A standby that is gone is found before any request meets it."""

    def test_dead_and_back(self, build: Build, healthy_cluster: Cluster) -> None:
        """It leaves and returns though no request asks it anything."""
        site = build(**OFTEN)
        site.get()
        healthy_cluster.standbys[0].kill()
        settle(site, "slave_2", "slave_3")
        healthy_cluster.standbys[0].start()
        settle(site, *BINDS)
        assert site.count(6).keys() == {"standby_1", "standby_2", "standby_3"}

    def test_restarted(self, build: Build, healthy_cluster: Cluster) -> None:
        """An old connection of the monitor's own is no evidence of an outage."""
        site = build(**PATIENT)
        site.get()
        time.sleep(1)  # so that it was probed, and keeps its connections
        for standby in healthy_cluster.standbys:
            standby.execute(f"select pg_terminate_backend(pid) {CLIENTS}")
        time.sleep(1)
        assert site.live() == set(BINDS)

    def test_silent(self, build: Build, healthy_cluster: Cluster) -> None:
        """A frozen standby is left out, and comes back when it thaws."""
        site = build(**OFTEN)
        site.get()
        healthy_cluster.standbys[1].freeze()
        settle(site, "slave_1", "slave_3")
        assert site.count(6).keys() == {"standby_1", "standby_3"}
        healthy_cluster.standbys[1].thaw()
        settle(site, *BINDS)

    def test_waiting_requests_are_released(
        self, build: Build, healthy_cluster: Cluster
    ) -> None:
        """A request that waits on a frozen standby is answered by another server."""
        site = build(**OFTEN)
        for _ in range(3):
            site.get()  # each standby has a pooled connection
        for standby in healthy_cluster.standbys[:2]:
            standby.freeze()
        found: list[str] = []
        waiting = [
            threading.Thread(target=lambda: found.append(site.get().servers[0]))
            for _ in range(3)
        ]
        for thread in waiting:
            thread.start()
        for thread in waiting:
            thread.join(timeout=20)
        assert len(found) == 3
        assert set(found) <= {"standby_3", "primary"}
        for standby in healthy_cluster.standbys[:2]:
            standby.thaw()
        settle(site, *BINDS)

    def test_connections_are_counted_once(
        self,
        build: Build,
        healthy_cluster: Cluster,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """While a standby is silent, what was ended before is no news."""
        site = build(**OFTEN)
        site.at_once(6)
        trips: list[str] = []
        trip = Pool.trip

        def noted(pool: Pool[Any], member: Any, *rest: Any) -> bool:
            trips.append(member.name)
            return trip(pool, member, *rest)

        monkeypatch.setattr(Pool, "trip", noted)
        healthy_cluster.standbys[1].freeze()
        wait_until(lambda: trips.count("slave_2") > 5, "some probes in vain", 30)
        told = [line for line in caplog.messages if "does not answer: ended" in line]
        assert len(told) == 1
        assert "'slave_2' does not answer: ended 2 connections" in told[0]
        healthy_cluster.standbys[1].thaw()
        settle(site, *BINDS)

    # SQLAlchemy leaves a connection that fails in its own hooks to the collector.
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    def test_silent_after_the_log_in(
        self, build: Build, healthy_cluster: Cluster
    ) -> None:
        """A request that is still getting its connection ready is released, too."""
        with Proxy(healthy_cluster.standbys[0].port) as proxy:
            standbys = healthy_cluster.standbys
            urls = [bind(standby, "psycopg") for standby in standbys]
            urls[0] = urls[0].replace(str(standbys[0].port), str(proxy.port))
            site = build(dict(zip(BINDS, urls, strict=True)), **OFTEN)
            site.count(3)
            with site.app.app_context():
                engine = site.db.engines["slave_1"]
            engine.dispose()
            event.listen(engine, "connect", lambda *_: proxy.silence(), insert=True)
            assert [site.get().servers[0] for _ in range(4)]
            settle(site, "slave_2", "slave_3")
            proxy.speak()
        gc.collect()

    def test_new_ones_are_turned_away(
        self, build: Build, healthy_cluster: Cluster
    ) -> None:
        """A standby that takes no new connection may finish what it is doing."""
        site = build(**OFTEN)
        standby = healthy_cluster.standbys[0]
        site.wait_live(*BINDS)

        def stop(backend: object) -> None:
            if backend.server == standby.name:  # type: ignore[attr-defined]  # a Backend
                process: Any = standby._process
                process.send_signal(signal.SIGTERM)  # a smart shutdown
                # As the requests do that connect anew.
                site.pool.trip(site.pool.member("slave_1"), 0.1, OSError("refused"))
                wait_until(lambda: "shut" in why(site, "slave_1"), "a probe of it")

        site.between = stop
        servers = [site.get().servers for _ in range(3)]
        assert [standby.name] * 2 in [list(pair[:2]) for pair in servers]
        site.between = lambda _: None
        standby.stop("fast")
        standby.start()
        settle(site, *BINDS)

    def test_released_in_mid_transaction(
        self, build: Build, healthy_cluster: Cluster
    ) -> None:
        """Where rows had been seen, the primary answers the rest."""
        site = build(**OFTEN)
        held: list[str] = []

        def freeze(backend: object) -> None:
            name = backend.server  # type: ignore[attr-defined]  # a Backend
            held.append(name)
            for standby in healthy_cluster.standbys:
                if standby.name == name:
                    standby.freeze()

        site.between = freeze
        answer = site.get()
        assert answer.servers == [held[0], "primary"]


class TestRole:
    """A standby that was promoted, or never was one, is left out and said so."""

    def test_promoted(self, build: Build, healthy_cluster: Cluster) -> None:
        """It takes no more reads, for it may go its own way."""
        site = build(**OFTEN)
        site.get()
        healthy_cluster.standbys[2].promote()
        settle(site, "slave_1", "slave_2")
        assert "no replica but a primary" in why(site, "slave_3")
        assert site.count(6).keys() == {"standby_1", "standby_2"}

    def test_at_connect(
        self, build: Build, healthy_cluster: Cluster, driver: str
    ) -> None:
        """Without a monitor a new connection tells."""
        primary, standby = healthy_cluster.primary, healthy_cluster.standbys[0]
        site = build(
            {"slave_1": bind(primary, driver), "slave_2": bind(standby, driver)},
            REPLICATED_PROBE_INTERVAL=0,
        )
        assert site.count(12) == {"standby_1": 12}
        assert site.live() == {"slave_2"}
        assert "REPLICATED_ROLE_CHECK" in why(site, "slave_1")

    def test_switched_off(
        self, build: Build, healthy_cluster: Cluster, driver: str
    ) -> None:
        """A server that replicates logically is taken as it is."""
        site = build(
            {"slave_1": bind(healthy_cluster.primary, driver)},
            REPLICATED_ROLE_CHECK=False,
            **PATIENT,
        )
        site.get()
        time.sleep(1)
        assert site.live() == {"slave_1"}


class TestLag:
    """A standby that is too far behind is left out for everyone."""

    def test_paused(self, build: Build, healthy_cluster: Cluster) -> None:
        """It leaves when it has more to replay than it may, and returns after that."""
        site = build(REPLICATED_MAX_LAG=1, **OFTEN)
        site.post("seen by all")
        healthy_cluster.wait_replicated()
        site.get()
        healthy_cluster.standbys[0].pause_replay()
        site.post("not replayed")
        settle(site, "slave_2", "slave_3")
        assert "REPLICATED_MAX_LAG = 1" in why(site, "slave_1")
        healthy_cluster.standbys[0].resume_replay()
        settle(site, *BINDS)

    def test_idle_primary(self, build: Build, healthy_cluster: Cluster) -> None:
        """A primary that writes nothing makes no standby late."""
        site = build(REPLICATED_MAX_LAG=0.5, **PATIENT)
        site.get()
        time.sleep(2)
        assert site.live() == set(BINDS)

    def test_any(self, build: Build, healthy_cluster: Cluster) -> None:
        """With None a standby may be as late as it likes."""
        site = build(REPLICATED_MAX_LAG=None, **PATIENT)
        site.get()
        healthy_cluster.standbys[0].pause_replay()
        site.post("not replayed")
        time.sleep(1.5)
        assert site.live() == set(BINDS)


def test_primary_is_demoted(
    build: Build, healthy_cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """Writes recover when another server takes the primary's name."""
    first, second = healthy_cluster.primary, healthy_cluster.standbys[0]
    site = build()
    port = [first.port]
    with site.app.app_context():
        primary = site.db.engine.real  # type: ignore[attr-defined]  # a RoutedEngine

    @event.listens_for(primary, "do_connect")
    def by_name(_dialect: Any, _record: Any, _args: Any, options: Any) -> None:
        options["port"] = port[0]

    site.post("before")
    try:
        first.execute("alter system set default_transaction_read_only = on")
        first.execute("select pg_reload_conf()")
        wait_until(
            lambda: first.execute("show default_transaction_read_only") == [("on",)],
            "the primary to be read only",
        )
        with pytest.raises(DBAPIError, match="read-only"):
            site.post("refused")
        second.promote()
        port[0] = second.port
        assert site.post("after").texts == ["before", "after"]
        assert "refused a write as read only" in caplog.text
    finally:
        first.execute("alter system reset default_transaction_read_only")
        first.execute("select pg_reload_conf()")


def test_read_timeout(build: Build, healthy_cluster: Cluster) -> None:
    """A statement that takes too long is cancelled, and no replica is blamed."""
    site = build(REPLICATED_READ_TIMEOUT=0.2)

    def slow() -> str:
        with pytest.raises(Exception, match="statement timeout"):
            site.db.session.execute(text("select pg_sleep(5)"))
        return "cancelled"

    site.app.add_url_rule("/slow", "slow", slow)
    assert site.client().get("/slow").text == "cancelled"
    assert site.live() == set(BINDS)


def test_hang_up(build: Build, healthy_cluster: Cluster) -> None:
    """A thread that waits on a socket is woken; a connection that is closed is not."""
    site = build()
    with site.app.app_context():
        engine = site.db.engines["slave_1"]
        connection = engine.raw_connection()
        raced: list[type[BaseException]] = []

        def wait() -> None:
            try:
                connection.cursor().execute("select pg_sleep(3)")
            except Exception as error:  # noqa: BLE001 - drivers differ
                raced.append(type(error))

        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.3)
        assert hang_up(connection.dbapi_connection)
        thread.join(timeout=10)
        assert raced
        driver = connection.dbapi_connection
        connection.invalidate()
        assert fileno_of(driver) is None
        assert not hang_up(driver)
