"""What an operator is told of outages."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from balancers import Pool
from flask_replicated.failures import Verdict
from flask_replicated.listeners import PoolListener
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
        self.heard = PoolListener({}, "SQLALCHEMY_BINDS", self.clock)
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
    """A rest is told of once a minute, and its end not at all."""
    for _ in range(3):
        watched.pool.rest(watched.member(), 1, FULL)
        watched.pool.recover(watched.member())
    (line,) = watched.said()
    assert line.startswith("WARNING replica 'slave_1' is busy, and rests for 1.0 s: ")
    watched.clock.now += 60
    watched.pool.rest(watched.member(), 1, FULL)
    assert len(watched.said()) == 1
    watched.pool.rest(watched.member("slave_2"), 1, FULL)
    assert len(watched.said()) == 1


def test_what_kind(watched: Watched) -> None:
    """Load is told from outages, whoever is out for what."""
    assert not watched.heard.is_load(set())
    assert watched.heard.is_load({"slave_1"})
    watched.pool.rest(watched.member(), 1, FULL)
    assert watched.heard.is_load(set())
    assert watched.heard.is_load({"slave_2"})
    watched.pool.trip(watched.member("slave_2"), 1, DOWN)
    assert not watched.heard.is_load({"slave_1"})
    watched.pool.remove("slave_2")
    assert watched.heard.is_load(set())


def test_all_misconfigured() -> None:
    """Only where each of them was told of as such, and nothing else."""
    replicas: dict[str, object] = {"slave_1": None, "slave_2": None}
    heard = PoolListener(replicas)  # type: ignore[arg-type]  # only their names matter
    pool = Pool({"slave_1": 1, "slave_2": 2}, threshold=1, listeners=[heard])
    pool.trip(pool.member("slave_1"), 1, WRONG)
    assert not heard.all_misconfigured()
    pool.trip(pool.member("slave_2"), 1, WRONG)
    assert heard.all_misconfigured()
    heard.still_out("slave_2", DOWN)
    assert not heard.all_misconfigured()
    assert heard._out["slave_2"].verdicts == {Verdict.MISCONFIGURED, Verdict.DOWN}
