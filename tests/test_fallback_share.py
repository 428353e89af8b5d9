"""The share of the reads that may fall on the primary, over a sliding window."""

from __future__ import annotations

from typing import Literal, TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine

from balancers import Member
from flask_replicated.routing.counts import ReadCounts
from flask_replicated.routing.decision import NO_REPLICA, Decision, Role
from flask_replicated.routing.fallback_share import FallbackShare
from tests.balancers.support import FakeClock
from tests.support import unhurried

Step: TypeAlias = tuple[float, Literal["other", "read", "demand"]]
STEPS = st.lists(
    st.tuples(
        st.floats(0, 1), st.sampled_from(["other", "other", "read", "read", "demand"])
    ),
    max_size=150,
)
METHOD = Decision(Role.PRIMARY, "POST may write", "method", by_method=True)
INEXACT = 1.5  # seconds between two samples at most, at these steps


class Traffic:
    """Reads of one process, and when each was, to compare with."""

    def __init__(self, share: float) -> None:
        self.clock = FakeClock()
        self.counts = ReadCounts()
        self.share = FallbackShare(share, self.clock)
        self.share.watch(self.counts)
        self.reads: list[float] = []
        self.fallen: list[float] = []

    def other(self) -> None:
        """Read where the primary is asked for."""
        self.counts.on_primary(METHOD, None)
        self.reads.append(self.clock())

    def read(self, *, demanded: bool = False) -> bool:
        """Read without a replica; return whether the primary serves it."""
        admitted = self.share.admit(demanded=demanded)
        self.reads.append(self.clock())
        if admitted:
            self.counts.on_primary(NO_REPLICA, None)
            self.fallen.append(self.clock())
        else:
            self.share.count_refused()
        return admitted

    def since(self, times: list[float], seconds: float) -> int:
        """Return how many of these were not longer ago."""
        return sum(at > self.clock() - seconds for at in times)


@given(STEPS, st.floats(0, 0.99))
@unhurried
def test_window(steps: list[Step], share: float) -> None:
    """What is admitted keeps to the share of the window; what is refused exceeds it."""
    traffic = Traffic(share)
    for seconds, kind in steps:
        traffic.clock.advance(seconds)
        traffic.share.sample()
        if kind == "other":
            traffic.other()
            continue
        admitted = traffic.read(demanded=kind == "demand")
        few, many = 10 - INEXACT, 10 + INEXACT
        if kind == "demand":
            assert admitted
        elif admitted:
            fallen = traffic.since(traffic.fallen, few)
            assert fallen <= share * traffic.since(traffic.reads, many) + 1e-6
        else:
            fallen = traffic.since(traffic.fallen, many) + 1
            assert fallen > share * traffic.since(traffic.reads, few) - 1e-6
        assert len(traffic.share._samples) <= 23


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.1, 10), (0.5, 50)])
def test_nothing_but_fallbacks(share: float, expected: int) -> None:
    """Where no replica is left, this share of the reads is served."""
    traffic = Traffic(share)
    assert sum(traffic.read() for _ in range(100)) == expected


def test_everything() -> None:
    """A share of 1 admits everything, and keeps nothing."""
    traffic = Traffic(1)
    for _ in range(50):
        traffic.clock.advance(1)
        assert traffic.read()
    assert len(traffic.share._samples) == 1
    assert not traffic.share.binds


def test_other_reads_count() -> None:
    """What others have served a moment ago leaves room for some reads in a row."""
    traffic = Traffic(0.1)
    for _ in range(90):
        traffic.other()
    assert [traffic.read() for _ in range(11)] == [True] * 10 + [False]


def test_demands_count() -> None:
    """Reads with a demand are never refused, and take the place of others."""
    traffic = Traffic(0.5)
    assert all(traffic.read(demanded=True) for _ in range(10))
    assert [traffic.read() for _ in range(12)] == [False] * 11 + [True]


def test_is_forgotten() -> None:
    """Ten seconds later a burst counts no more."""
    traffic = Traffic(0.5)
    for _ in range(10):
        traffic.read(demanded=True)
    traffic.read()
    refused = traffic.share.binds
    traffic.clock.advance(1)
    traffic.share.sample()
    traffic.clock.advance(10)
    traffic.share.sample()
    assert (refused, traffic.share.binds) == (True, False)
    traffic.other()
    assert traffic.read()


def test_unseen_reads_came_evenly() -> None:
    """Where nothing has looked for long, only a part counts as of the last 10 s."""
    traffic = Traffic(0.1)
    for _ in range(1000):
        traffic.other()
    traffic.clock.advance(100)
    admitted = sum(traffic.read() for _ in range(100))
    assert 10 <= admitted <= 22  # a tenth of about a hundred, and of these


def test_further_transactions_count() -> None:
    """A request that stays on the primary counts with each of its transactions."""
    traffic = Traffic(0.5)
    assert [traffic.read(), traffic.read()] == [False, True]
    for _ in range(10):
        traffic.counts.on_primary(NO_REPLICA, None)
    assert not any(traffic.read() for _ in range(8))


def test_removed_replica() -> None:
    """The totals never fall, also where a replica is removed; a child begins anew."""
    member = Member("slave_1", create_engine("sqlite://"), 1)
    traffic = Traffic(0.1)
    for _ in range(90):
        traffic.counts.on_replica(member, METHOD, None)
    traffic.counts.keep([])
    assert traffic.counts.totals() == (90, 0)
    assert traffic.counts.of(member) == 0
    assert sum(traffic.read() for _ in range(11)) == 10
    traffic.counts.renew()
    traffic.share.renew()
    assert traffic.counts.totals() == (0, 0)
    assert not traffic.share.binds
    assert not traffic.read()
