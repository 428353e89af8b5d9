"""What MariaDB's servers are found to be, though none of them says so."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from examples.cluster import wait_until
from flask_replicated import replicated_engine
from flask_replicated.fleet.probe import ReplicaProbe
from flask_replicated.replica.same_server import SameServerCheck
from tests.pools import live, monitor_of, read

if TYPE_CHECKING:
    from collections.abc import Callable

    from flask_replicated.engine.engines import RoutedEngine
    from tests.mariadb.conftest import Servers
    from tests.mariadb.servers import Server

    Build = Callable[..., RoutedEngine]

pytestmark = pytest.mark.mariadb


@pytest.fixture
def build(made: list[RoutedEngine]) -> Build:
    """Give a function that makes pools which are probed often."""

    def build(
        primary: Server, *replicas: Server, user: str = "root", **settings: Any
    ) -> RoutedEngine:
        engine = replicated_engine(
            sa.create_engine(primary.url(), pool_size=1, max_overflow=0),
            {
                f"slave_{number}": sa.create_engine(one.url(user))
                for number, one in enumerate(replicas, start=1)
            },
            **{"REPLICATED_PROBE_INTERVAL": 0.2, **settings},
        )
        made.append(engine)
        return engine

    return build


def settle(engine: RoutedEngine, *names: str) -> None:
    """Wait until the monitor alone has left these in rotation: no request asks."""
    wait_until(lambda: live(engine) == set(names), f"only {names} to be live", 20)


def why(engine: RoutedEngine, name: str) -> str:
    """Return why a replica is out."""
    return engine.replicas.replica_pool.causes()[name]


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Give the answers to every question whether two servers are one."""
    found: list[bool] = []
    is_same_server = SameServerCheck.is_same_server

    def noted(comparison: SameServerCheck) -> bool:
        found.append(is_same_server(comparison))
        return found[-1]

    monkeypatch.setattr(SameServerCheck, "is_same_server", noted)
    return found


class TestTwin:
    """A bind that names the primary by mistake."""

    def test_is_left_out(self, build: Build, servers: Servers) -> None:
        """It takes no reads, and the operator is told."""
        engine = build(servers.primary, servers.primary, servers.replica)
        with engine.primary.connect():  # which has no second connection to give
            read(engine)
            settle(engine, "slave_2")
        assert "REPLICATED_ROLE_CHECK" in why(engine, "slave_1")

    def test_whatever_the_account_may_ask(self, build: Build, servers: Servers) -> None:
        """It takes no privilege to find out."""
        servers.primary.execute("CREATE OR REPLACE USER few@'127.0.0.1'")
        servers.primary.execute("CREATE OR REPLACE USER few@localhost")
        engine = build(servers.primary, servers.primary, user="few")
        read(engine)
        settle(engine)
        assert "no replica but a primary" in why(engine, "slave_1")

    def test_whoever_makes_the_connections(
        self, servers: Servers, compared: list[bool]
    ) -> None:
        """A creator that takes the pool's record is given one, on either side."""
        import pymysql

        url = sa.make_url(servers.primary.url())
        _, arguments = url.get_dialect()().create_connect_args(url)

        def create(record: Any) -> Any:
            record.info["token"] = "fresh"
            return pymysql.connect(**arguments)

        engines = [sa.create_engine("mysql+pymysql://", creator=create) for _ in "12"]
        comparison = SameServerCheck(*engines)
        assert comparison.is_same_server()
        assert compared == [True]

    def test_another_server(
        self, build: Build, servers: Servers, compared: list[bool]
    ) -> None:
        """A server that replicates from no other may be one of a cluster."""
        engine = build(servers.primary, servers.other)
        read(engine)
        wait_until(lambda: compared == [False], "them to be compared")
        seen = engine.replicas.replica_pool.member("slave_1")
        assert seen in engine.replicas.replica_pool.live

    def test_asked_once(
        self,
        build: Build,
        servers: Servers,
        compared: list[bool],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The primary is asked about those that leave it open, and once."""
        probes: list[str] = []
        compare = ReplicaProbe.compare

        def noted(probe: ReplicaProbe) -> None:
            compare(probe)
            probes.append(probe.member.name)

        monkeypatch.setattr(ReplicaProbe, "compare", noted)
        engine = build(servers.primary, servers.other, servers.replica)
        read(engine)
        wait_until(lambda: bool(compared), "them to be compared")
        began = len(probes)
        wait_until(lambda: len(probes) > began + 6, "some more probes")
        assert compared == [False]
        assert live(engine) == {"slave_1", "slave_2"}

    def test_primary_that_is_out(self, build: Build, servers: Servers) -> None:
        """Where the primary cannot be asked, nothing is held against a replica."""
        engine = build(servers.primary, servers.other)
        failed = threading.Event()

        @sa.event.listens_for(engine.real, "do_connect")
        def refuse(*_: Any) -> None:
            failed.set()
            raise sa.exc.OperationalError("", None, Exception("refused"))

        read(engine)
        assert failed.wait(20)
        assert live(engine) == {"slave_1"}

    def test_switched_off(
        self, build: Build, servers: Servers, compared: list[bool]
    ) -> None:
        """With REPLICATED_ROLE_CHECK = False any server will do."""
        settings: dict[str, Any] = {"REPLICATED_ROLE_CHECK": False}
        engine = build(servers.primary, servers.primary, **settings)
        read(engine)
        loop = monitor_of(engine)._loop
        assert loop is not None
        assert loop._policy.compared_primary is None
        assert not compared


class TestPromotion:
    """A replica that becomes a primary."""

    def test_leaves_and_returns(self, build: Build, servers: Servers) -> None:
        """It takes no more reads, until it replicates again."""
        engine = build(
            servers.primary,
            servers.replica,
            servers.other,
            REPLICATED_MAX_LAG=None,  # or it may go out sooner, as it stops
        )
        read(engine)
        history = engine.servers["slave_1"].history
        wait_until(lambda: history._replicated, "it to be seen to replicate")
        servers.replica.promote()
        settle(engine, "slave_2")
        assert "no replica but a primary" in why(engine, "slave_1")
        servers.replica.follow(servers.primary)
        settle(engine, "slave_1", "slave_2")

    def test_named_source(self, build: Build, servers: Servers) -> None:
        """A source that was given a name is a source."""
        servers.replica.promote()
        # Or it would be known to lack nothing.
        servers.primary.execute("CREATE OR REPLACE DATABASE missed")
        servers.replica.execute(
            "CHANGE MASTER 'north' TO MASTER_HOST='127.0.0.1', "
            f"MASTER_PORT={servers.primary.port}, MASTER_USER='root'"
        )
        try:
            engine = build(servers.primary, servers.replica)
            read(engine)
            # It has not been started, so that its lag is not known.
            settle(engine)
            assert "lag is unknown" in why(engine, "slave_1")
        finally:
            servers.replica.execute("RESET SLAVE 'north' ALL")


class TestAtConnect:
    """What a new connection hears, where there is no probe."""

    def test_promoted(self, build: Build, servers: Servers) -> None:
        """A replica that has replicated, and does no more, is refused."""
        engine = build(
            servers.primary,
            servers.replica,
            servers.other,
            REPLICATED_PROBE_INTERVAL=0,
        )
        for _ in range(2):
            read(engine)
        servers.replica.promote()
        pool = engine.replicas.replica_pool
        pool.member("slave_1").target.dispose()
        for _ in range(2):
            read(engine)
        assert live(engine) == {"slave_2"}
        assert "no replica but a primary" in why(engine, "slave_1")

    def test_twin(self, build: Build, servers: Servers, compared: list[bool]) -> None:
        """A bind that names the primary by mistake is refused, once that is known."""
        engine = build(
            servers.primary,
            servers.primary,
            servers.replica,
            REPLICATED_PROBE_INTERVAL=0,
        )
        for _ in range(2):
            read(engine)  # which no caller has to wait for
        history = engine.servers["slave_1"].history
        wait_until(lambda: history.same_server, "it to be compared")
        engine.replicas.replica_pool.member("slave_1").target.dispose()
        for _ in range(4):
            read(engine)
        assert live(engine) == {"slave_2"}
        assert "no replica but a primary" in why(engine, "slave_1")
        assert compared == [True]

    def test_behind(self, build: Build, servers: Servers) -> None:
        """So is one whose lag is unknown, though the server could tell."""
        servers.replica.execute("STOP SLAVE SQL_THREAD")
        try:
            engine = build(
                servers.primary, servers.replica, REPLICATED_PROBE_INTERVAL=0
            )
            read(engine)
            assert not live(engine)
            assert "lag is unknown" in why(engine, "slave_1")
        finally:
            servers.replica.execute("START SLAVE")


def test_ended_while_it_asks(servers: Servers) -> None:
    """A comparison that is not wanted any more ends, and closes what it opened."""
    engines = [sa.create_engine(one.url()) for one in (servers.primary, servers.other)]
    comparison = SameServerCheck(*engines)

    @sa.event.listens_for(engines[0], "do_connect")
    def end(*_: Any) -> None:
        comparison.connections.end()

    with pytest.raises(RuntimeError, match="not needed any more"):
        comparison.is_same_server()
    assert not comparison.connections._open
    with pytest.raises(RuntimeError, match="not needed any more"):
        comparison.is_same_server()
