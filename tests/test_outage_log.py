"""What an operator is told of outages."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from balancers import Pool
from flask_replicated.errors import DivergedReplicaError, WrongRoleError
from flask_replicated.fleet.outage_log import OutageLog
from flask_replicated.replica.failures import Verdict
from tests.balancers.support import FakeClock

if TYPE_CHECKING:
    from balancers import Member

DOWN = ConnectionRefusedError("refused")
WRONG = TypeError("unexpected keyword argument 'nope'")
FULL = OSError("sorry, too many clients already")


class Watched:
    """A pool of two, and what is said of it."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.clock = FakeClock()
        self.heard = OutageLog({}, "SQLALCHEMY_BINDS", self.clock)
        self.pool = Pool(
            {"slave_1": 1, "slave_2": 2},
            threshold=1,
            clock=self.clock,
            listeners=[self.heard],
        )
        self._caplog = caplog
        caplog.set_level(logging.WARNING, "flask_replicated")

    def member(self, name: str = "slave_1") -> Member[int]:
        """Return a member."""
        return self.pool.member(name)

    def said(self) -> list[str]:
        """Return what was said since the last time."""
        records = [f"{r.levelname} {r.getMessage()}" for r in self._caplog.records]
        self._caplog.clear()
        return records


@pytest.fixture
def watched(caplog: pytest.LogCaptureFixture) -> Watched:
    """Give a pool of two."""
    return Watched(caplog)


def test_once_for_an_outage(watched: Watched) -> None:
    """One line when it begins, none for trials that fail, one when it ends."""
    watched.pool.trip(watched.member(), 1, DOWN)
    assert watched.said() == [
        "WARNING replica 'slave_1' is out: ConnectionRefusedError: refused"
    ]
    watched.clock.now += 1
    while watched.pool.pick() is not watched.member():
        pass
    watched.pool.failed(watched.member(), DOWN, watched.pool.permit(watched.member()))
    assert watched.said() == []
    watched.pool.recover(watched.member())
    assert watched.said() == ["WARNING replica 'slave_1' is back"]


def test_misconfigured(watched: Watched) -> None:
    """It is an ERROR, with what to do, and no other line."""
    watched.pool.trip(watched.member(), 1, WRONG)
    (line,) = watched.said()
    assert line.startswith("ERROR replica 'slave_1' is not configured right")
    assert "keyword argument 'nope'. Correct that option" in line
    assert "SQLALCHEMY_BINDS['slave_1']" in line
    watched.heard.still_out("slave_1", WRONG)
    assert watched.said() == []
    watched.pool.recover(watched.member())
    assert watched.said() == ["WARNING replica 'slave_1' is back"]


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("slave_1", "SQLALCHEMY_BINDS['slave_1']"),
        ("analytics_replica_2", "SQLALCHEMY_BINDS['analytics_replica_2']"),
        ("slave_10.0.0.1:5432", "REPLICATED_DISCOVERY['slave']"),
        ("analytics_slave_db.test", "REPLICATED_DISCOVERY['analytics_slave']"),
        ("reader", "SQLALCHEMY_BINDS['reader']"),
    ],
)
def test_setting(name: str, setting: str) -> None:
    """What is to be corrected is called what it is called in the configuration."""
    assert OutageLog({}, "SQLALCHEMY_BINDS").setting(name) == setting


def test_another_cause(watched: Watched) -> None:
    """A server that was down, and is not configured right when it is up, is told of."""
    watched.pool.trip(watched.member(), 1, DOWN)
    watched.said()
    watched.heard.still_out("slave_1", WRONG)
    (line,) = watched.said()
    assert line.startswith("ERROR replica 'slave_1' is not configured right")
    for again in (DOWN, WRONG):
        watched.heard.still_out("slave_1", again)
    assert watched.said() == []


def test_not_out(watched: Watched) -> None:
    """What is said late of a replica that is in rotation again is no news."""
    watched.heard.still_out("slave_1", WRONG)
    assert watched.said() == []


def test_load(watched: Watched) -> None:
    """A pause is told of once a minute, and its end not at all."""
    for _ in range(3):
        watched.pool.pause(watched.member(), 1, FULL)
        watched.pool.recover(watched.member())
    (line,) = watched.said()
    said = "WARNING replica 'slave_1' is busy, and is paused for 1.0 s: "
    assert line.startswith(said)
    watched.clock.now += 60
    watched.pool.pause(watched.member(), 1, FULL)
    assert len(watched.said()) == 1
    watched.pool.pause(watched.member("slave_2"), 1, FULL)
    assert len(watched.said()) == 1


def test_what_kind(watched: Watched) -> None:
    """Load is told from outages, whatever each replica is out for."""
    assert not watched.heard.is_load(set())
    assert watched.heard.is_load({"slave_1"})
    watched.pool.pause(watched.member(), 1, FULL)
    assert watched.heard.is_load(set())
    assert watched.heard.is_load({"slave_2"})
    watched.pool.trip(watched.member("slave_2"), 1, DOWN)
    assert not watched.heard.is_load({"slave_1"})
    watched.pool.remove("slave_2")
    assert watched.heard.is_load(set())


def test_all_misconfigured() -> None:
    """Only where each of them was told of as such, and nothing else."""
    replicas: dict[str, object] = {"slave_1": None, "slave_2": None}
    heard = OutageLog(replicas)  # type: ignore[arg-type]  # only their names matter
    pool = Pool({"slave_1": 1, "slave_2": 2}, threshold=1, listeners=[heard])
    pool.trip(pool.member("slave_1"), 1, WRONG)
    assert not heard.all_misconfigured()
    pool.trip(pool.member("slave_2"), 1, WRONG)
    assert heard.all_misconfigured()
    heard.still_out("slave_2", DOWN)
    assert not heard.all_misconfigured()
    assert heard._out["slave_2"].verdicts == {Verdict.MISCONFIGURED, Verdict.DOWN}


class TestPrimaryAmongThem:
    """A replica that is a primary, where every node may be a bind."""

    @pytest.fixture
    def watched(self, watched: Watched, caplog: pytest.LogCaptureFixture) -> Watched:
        """Give the same pool, its replicas known, and what is said at INFO."""
        replicas: dict[str, object] = {"slave_1": None, "slave_2": None}
        watched.heard._replicas = replicas  # type: ignore[assignment]  # only their names matter
        caplog.set_level(logging.INFO, "flask_replicated")
        return watched

    def test_own(self, watched: Watched) -> None:
        """That it is the primary itself is said once; its return is no news."""
        own = WrongRoleError("slave_1", own=True)
        watched.pool.trip(watched.member(), 1, own)
        (line,) = watched.said()
        assert line.startswith("INFO replica 'slave_1' is the primary itself")
        assert "SQLALCHEMY_BINDS['slave_1']" in line
        watched.heard.still_out("slave_1", own)
        watched.pool.recover(watched.member())
        watched.pool.trip(
            watched.member("slave_2"), 1, WrongRoleError("slave_2", own=True)
        )
        watched.pool.recover(watched.member("slave_2"))
        assert watched.said() == []

    def test_not_known_yet(self, watched: Watched) -> None:
        """While it is unknown, nothing is said, for half a minute."""
        unknown = WrongRoleError("slave_1")
        watched.pool.trip(watched.member(), 100, unknown)
        watched.clock.now += 29
        watched.heard.still_out("slave_1", unknown)
        assert watched.said() == []
        watched.clock.now += 1
        watched.heard.still_out("slave_1", unknown)
        (line,) = watched.said()
        assert line.startswith("WARNING replica 'slave_1' is out: WrongRoleError: ")
        watched.heard.still_out("slave_1", unknown)
        assert watched.said() == []

    def test_another_primary(self, watched: Watched) -> None:
        """One that writes do not go to is an outage at once, with its own advice."""
        watched.pool.trip(watched.member(), 1, WrongRoleError("slave_1", own=False))
        (line,) = watched.said()
        assert line.startswith("WARNING replica 'slave_1' is out: ")
        assert "writes go to another one" in line
        watched.pool.recover(watched.member())
        assert watched.said() == ["WARNING replica 'slave_1' is back"]

    @pytest.mark.parametrize(
        "first", [WrongRoleError("slave_1", own=True), DivergedReplicaError("", "")]
    )
    def test_finds_its_role(self, watched: Watched, first: Exception) -> None:
        """A node that restarts, or is cut off, is no news; one that stays so is."""
        watched.pool.trip(watched.member(), 100, first)
        watched.said()
        for later in (0, 14):
            watched.clock.now += later
            watched.heard.still_out("slave_1", DOWN)
        assert watched.said() == []
        watched.clock.now += 1
        watched.heard.still_out("slave_1", DOWN)
        watched.heard.still_out("slave_1", DOWN)
        assert watched.said() == [
            "WARNING replica 'slave_1' is out: ConnectionRefusedError: refused"
        ]

    def test_no_other_replica(self, watched: Watched) -> None:
        """Where no other one serves nothing is as it should be; others say that."""
        watched.pool.trip(watched.member("slave_2"), 1, DOWN)
        watched.said()
        watched.pool.trip(watched.member(), 1, WrongRoleError("slave_1", own=True))
        assert watched.said() == []

    @pytest.mark.parametrize("own", [True, False, None])
    def test_the_only_one(self, watched: Watched, own: bool | None) -> None:
        """A replica that is the only one, and none, is an outage at once."""
        watched.heard._replicas = {"slave_1": None}  # type: ignore[dict-item]  # the same
        watched.pool.trip(watched.member(), 1, WrongRoleError("slave_1", own))
        (line,) = watched.said()
        assert line.startswith("WARNING replica 'slave_1' is out: ")
        assert "REPLICATED_ROLE_CHECK = False" in line

    def test_is_no_part_of_load(self, watched: Watched) -> None:
        """Where all others are busy that is load."""
        watched.pool.trip(watched.member(), 1, WrongRoleError("slave_1", own=True))
        assert not watched.heard.is_load(set())
        watched.pool.pause(watched.member("slave_2"), 1, FULL)
        assert watched.heard.is_load(set())
