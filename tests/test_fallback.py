"""What serves when no replica does, by the settings."""

from __future__ import annotations

import logging
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from flask_replicated import AllReplicasOutError, using_slave
from flask_replicated.engine.primary_connection import PrimaryConnection
from flask_replicated.errors import ReplicaLagsError
from flask_replicated.replica.replica_status import ReplicaReport
from flask_replicated.routing.decision import FALLBACKS
from tests.balancers.support import FakeClock
from tests.support import REPLICAS, Build, Site, build_fixture

if TYPE_CHECKING:
    from flask_replicated.engine.replica_pool_engine import ReplicaPoolEngine
    from flask_replicated.routing.request_state import RequestState
    from flask_replicated.routing.state import AppState

build = build_fixture

LONG = 1000.0  # seconds until a trial


def state_of(site: Site) -> AppState:
    """Return the application's state."""
    found: AppState = site.app.extensions["replicated"].state(site.app)
    return found


def replicas_of(site: Site) -> ReplicaPoolEngine:
    """Return the replicas as one engine."""
    found: ReplicaPoolEngine = state_of(site).routes[None].replicas
    return found


def lag(site: Site, **seconds: float) -> None:
    """Let replicas be out for their lag, as a probe leaves them."""
    replicas = replicas_of(site)
    for member in replicas.replica_pool.members:
        if member.name in seconds:
            history = replicas._servers[member.name].history
            history.lags = True
            history.latest = ReplicaReport(lag=seconds[member.name])
            error = ReplicaLagsError(member.name, seconds[member.name], 30)
            replicas.replica_pool.trip(member, LONG, error)


def lose(site: Site, *names: str) -> None:
    """Let replicas be out for another cause."""
    pool = replicas_of(site).replica_pool
    for member in pool.members:
        if member.name in names:
            pool.trip(member, LONG, ConnectionRefusedError("connection refused"))


def recover(site: Site) -> None:
    """Let all replicas be back."""
    replicas = replicas_of(site)
    for member in replicas.replica_pool.members:
        replicas._servers[member.name].history.lags = False
        replicas.replica_pool.recover(member)


def make(build: Build, **config: Any) -> Site:
    """Return a site that nothing in the background looks at."""
    return build(REPLICATED_PROBE_INTERVAL=0, **config)


def all_lag(site: Site) -> None:
    """Let all replicas lag, the second one least."""
    lag(site, slave_1=60, slave_2=40, slave_3=50)


def error_of(site: Site) -> AllReplicasOutError:
    """Return the error of a read."""
    with (
        site.app.test_request_context(),
        pytest.raises(AllReplicasOutError) as caught,
    ):
        site.who()
    return caught.value


def served(site: Site) -> str | None:
    """Return who serves a GET; None if that fails."""
    with site.app.test_request_context():
        try:
            return site.who()
        except AllReplicasOutError:
            return None


class TestLagFallback:
    """All replicas lag."""

    def test_master(self, build: Build) -> None:
        """By default the primary serves."""
        site = make(build)
        all_lag(site)
        assert site.count(4) == {"master": 4}

    def test_least_lagged(self, build: Build, caplog: pytest.LogCaptureFixture) -> None:
        """The one that lags least serves, one WARNING says so, and one ends it."""
        site = make(build, REPLICATED_LAG_FALLBACK="least_lagged")
        site.count(3)
        all_lag(site)
        caplog.clear()
        assert site.count(4) == {"slave_2": 4}
        assert site.client().post("/").text == "master"
        with site.app.app_context(), using_slave():
            assert site.who() == "slave_2"
        said = [one.message for one in caplog.records]
        assert [one for one in said if "every replica that answers lags" in one] == said
        assert len(said) == 1
        recover(site)
        assert set(site.count(9)) == set(REPLICAS)
        assert caplog.text.count("replicas serve reads again") == 1
        assert not [one for one in caplog.records if one.levelno > logging.WARNING]

    def test_error(self, build: Build) -> None:
        """A read raises, the error names the setting, and writes go on."""
        site = make(build, REPLICATED_LAG_FALLBACK="error")
        all_lag(site)
        error = error_of(site)
        assert error.setting == "REPLICATED_LAG_FALLBACK"
        assert error.share is None
        assert list(error.causes) == list(REPLICAS)
        assert "REPLICATED_LAG_FALLBACK = 'master'" in str(error)
        assert "'least_lagged'" in str(error)
        assert site.client().post("/write").text == "master"

    @pytest.mark.parametrize(
        ("value", "expected"),
        [("master", "master"), ("least_lagged", "slave_3"), ("error", None)],
    )
    def test_some_are_down(
        self, build: Build, value: str, expected: str | None
    ) -> None:
        """What is down cannot serve, so those that lag are all that answer."""
        site = make(build, REPLICATED_LAG_FALLBACK=value)
        lose(site, "slave_1", "slave_2")
        lag(site, slave_3=50)
        assert served(site) == expected

    @pytest.mark.parametrize("value", ["least_lagged", "error"])
    def test_all_are_down(self, build: Build, value: str) -> None:
        """Where none lags it does not apply."""
        site = make(build, REPLICATED_LAG_FALLBACK=value)
        lose(site, *REPLICAS)
        assert served(site) == "master"

    def test_reads_fail(self, build: Build, caplog: pytest.LogCaptureFixture) -> None:
        """One ERROR says that reads fail, and one WARNING that they do no more."""
        site = make(build, REPLICATED_FALLBACK="error")
        site.count(3)
        lose(site, *REPLICAS)
        caplog.clear()
        for _ in range(3):
            assert error_of(site).setting == "REPLICATED_FALLBACK"
        (record,) = caplog.records
        assert record.levelno == logging.ERROR
        assert record.getMessage().startswith("every replica is out, and their reads ")
        assert record.__dict__["replicated_event"] == "all_replicas_out"
        assert record.__dict__["replicated_cause"] == "down"
        recover(site)
        assert set(site.count(9)) == set(REPLICAS)
        assert caplog.messages[-1] == "replicas serve reads again"

    def test_never_the_primary(self, build: Build) -> None:
        """With REPLICATED_FALLBACK = 'error', old rows are read, and else none."""
        config = {"REPLICATED_LAG_FALLBACK": "least_lagged"}
        site = make(build, REPLICATED_FALLBACK="error", **config)
        all_lag(site)
        assert served(site) == "slave_2"
        lose(site, *REPLICAS)
        for one in replicas_of(site)._servers.values():
            one.history.lags = False
        assert error_of(site).setting == "REPLICATED_FALLBACK"

    def test_one_request(self, build: Build) -> None:
        """A request keeps to the replica that it began with."""
        site = make(build, REPLICATED_LAG_FALLBACK="least_lagged")
        all_lag(site)
        with site.app.test_request_context():
            assert site.who() == "slave_2"
            site.db.session.rollback()
            lag(site, slave_1=35)
            assert site.who() == "slave_2"


def connect_with_demand(site: Site) -> tuple[bool, RequestState]:
    """Connect for a read that no replica may serve; return if that is the primary."""
    with site.app.test_request_context():
        state = state_of(site).request_state()
        assert state is not None
        replicas = replicas_of(site)
        with replicas._fallback.connect(None, state, demands=True) as connection:
            return isinstance(connection, PrimaryConnection), state


class TestDemands:
    """A read must see what replicas may not have yet."""

    def test_all_serve(self, build: Build, caplog: pytest.LogCaptureFixture) -> None:
        """Replicas that serve others and lack this are no outage."""
        site = make(
            build,
            REPLICATED_FALLBACK="error",
            REPLICATED_LAG_FALLBACK="error",
            REPLICATED_FALLBACK_SHARE=0,
        )
        caplog.clear()
        primary, state = connect_with_demand(site)
        assert primary
        assert state.latched == "no replica has yet what a read must see"
        assert state.latched in FALLBACKS
        assert not caplog.records

    @pytest.mark.parametrize("share", [0, 1])
    def test_all_lag(self, build: Build, share: float) -> None:
        """No replica that lags serves it, and no share refuses it."""
        config = {"REPLICATED_FALLBACK_SHARE": share}
        site = make(build, REPLICATED_LAG_FALLBACK="least_lagged", **config)
        all_lag(site)
        assert connect_with_demand(site)[0]
        assert served(site) == "slave_2"

    @pytest.mark.parametrize("key", ["REPLICATED_FALLBACK", "REPLICATED_LAG_FALLBACK"])
    def test_error(self, build: Build, key: str) -> None:
        """Where all are out, a setting that says error holds for it as well."""
        site = make(build, **{key: "error"})
        all_lag(site)
        with pytest.raises(AllReplicasOutError) as caught:
            connect_with_demand(site)
        assert caught.value.setting == key

    def test_counts(self, build: Build) -> None:
        """It counts, so others are refused."""
        site = make(build, REPLICATED_FALLBACK_SHARE=0.5)
        lose(site, *REPLICAS)
        for _ in range(3):
            connect_with_demand(site)
        assert [served(site) for _ in range(5)] == [None] * 4 + ["master"]


class TestShare:
    """Only a share of the reads may fall on the primary."""

    def test_none(self, build: Build, caplog: pytest.LogCaptureFixture) -> None:
        """With 0 every read raises; the error says why, and one WARNING does."""
        site = make(build, REPLICATED_FALLBACK_SHARE=0)
        site.count(3)
        lose(site, *REPLICAS)
        caplog.clear()
        for _ in range(5):
            error = error_of(site)
            assert (error.setting, error.share) == ("REPLICATED_FALLBACK_SHARE", 0.0)
            assert list(error.causes) == list(REPLICAS)
            assert "REPLICATED_FALLBACK_SHARE = 0" in str(error)
        assert site.client().post("/write").text == "master"
        assert [one.levelname for one in caplog.records] == ["WARNING"]
        assert "REPLICATED_FALLBACK_SHARE = 0 of this process's" in caplog.text
        recover(site)
        assert "master" not in site.count(6)
        assert caplog.text.count("replicas serve reads again") == 1

    def test_a_replica_that_lags(self, build: Build) -> None:
        """Beyond the share a replica that lags serves, and the request keeps to it."""
        site = make(build, REPLICATED_FALLBACK_SHARE=0.25)
        lose(site, "slave_1", "slave_3")
        lag(site, slave_2=40)
        found = site.count(100)
        assert set(found) == {"master", "slave_2"}
        assert 24 <= found["master"] <= 25

    @pytest.mark.parametrize("key", ["REPLICATED_FALLBACK", "REPLICATED_LAG_FALLBACK"])
    def test_error(self, build: Build, key: str) -> None:
        """Where a setting says error, that comes first, and nothing old is read."""
        site = make(build, REPLICATED_FALLBACK_SHARE=0.5, **{key: "error"})
        all_lag(site)
        assert {error_of(site).setting for _ in range(4)} == {key}

    def test_all(self, build: Build) -> None:
        """With 1 the primary serves everything."""
        site = make(build, REPLICATED_FALLBACK_SHARE=1)
        all_lag(site)
        assert site.count(20) == {"master": 20}

    @pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
    def test_at_once(self, build: Build, share: float) -> None:
        """It holds for many threads at once, but for those that are on their way."""
        site = make(build, REPLICATED_FALLBACK_SHARE=share)
        lose(site, *REPLICAS)
        with ThreadPoolExecutor(8) as threads:
            found = Counter(threads.map(lambda _: served(site), range(400)))
        assert found.keys() <= {"master", None}
        assert share * 400 - 16 <= found["master"] <= share * 400

    def test_reads_of_replicas_count(self, build: Build) -> None:
        """After an outage begins, reads of the last 10 s leave room for some."""
        site = make(build, REPLICATED_FALLBACK_SHARE=0.1)
        clock = FakeClock()
        share = state_of(site).fallback_share
        share._clock = clock
        share.renew()
        clock.advance(1)
        assert "master" not in site.count(90)
        lose(site, *REPLICAS)
        assert [served(site) for _ in range(11)] == ["master"] * 10 + [None]

    def test_end(self, build: Build, caplog: pytest.LogCaptureFixture) -> None:
        """One line says when no read was refused for 10 s, while replicas are out."""
        site = make(build, REPLICATED_FALLBACK_SHARE=0.5)
        clock = FakeClock()
        share = state_of(site).fallback_share
        share._clock = clock
        share.renew()
        lose(site, *REPLICAS)
        assert [served(site), served(site)] == [None, "master"]
        for _ in range(40):
            clock.advance(0.5)
            site.client().post("/")
            share.sample()
        assert "stay within" not in caplog.text
        assert [served(site), served(site)] == ["master", "master"]
        assert caplog.text.count("REPLICATED_FALLBACK_SHARE = 0.5 again") == 1
        assert caplog.text.count("would fall on the primary") == 1

    def test_forked(self, build: Build) -> None:
        """A child process begins with nothing counted."""
        site = make(build, REPLICATED_FALLBACK_SHARE=0.1)
        assert "master" not in site.count(90)
        lose(site, *REPLICAS)
        assert served(site) == "master"
        with site.app.app_context():
            state_of(site).begin_anew()
        assert served(site) is None

    def test_two_applications(self, build: Build) -> None:
        """Each application has a share of its own reads."""
        site = make(build, REPLICATED_FALLBACK_SHARE=0.1)
        other = make(build, REPLICATED_FALLBACK_SHARE=0.1)
        assert "master" not in site.count(90)
        lose(site, *REPLICAS)
        lose(other, *REPLICAS)
        assert served(other) is None
        assert served(site) == "master"
