"""What the page remembers of the last minutes, and how it draws that."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from flask_replicated.operations.page.decisions import Decisions
from flask_replicated.operations.page.graphs import HEIGHT, WIDTH, graph, rates
from flask_replicated.operations.page.recorder import Recorder
from flask_replicated.operations.page.view import ago, pool_view
from flask_replicated.operations.page.workers import Workers
from flask_replicated.routing.explanations import Explanation
from flask_replicated.routing.snapshots import ReplicaPoolSnapshot, ReplicaSnapshot
from flask_replicated.system.threads import EachSecond

WELL = ReplicaSnapshot(
    name="slave_1",
    weight=1,
    state="closed",
    drained=False,
    live=True,
    failures=0,
    last_error=None,
    opened_for=None,
    retry_in=None,
    reads=0,
    host="db1",
    port=5432,
    role="replica",
    lag_seconds=0.5,
    position=None,
    latency=0.002,
    connections_idle=1,
    connections_used=2,
    reason=None,
    since=100.0,
)
OUT = replace(
    WELL, state="open", live=False, reason="down", since=200.0, last_error="refused"
)
DRAINED = replace(
    WELL, state="drained", drained=True, live=False, reason="drained", since=200.0
)


class World:
    """A pool and a clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.members: tuple[ReplicaSnapshot, ...] = (WELL,)
        self.asked = 0
        self.recorder = Recorder(self.snapshots, lambda: self.now)

    def snapshots(self) -> dict[str | None, ReplicaPoolSnapshot]:
        """Return what the pool is like."""
        self.asked += 1
        return {None: pool(*self.members)}

    def see(self, *members: ReplicaSnapshot, after: float = 1.0) -> list[str]:
        """Look again, and return all that has happened, latest first."""
        self.now += after
        self.members = members
        self.recorder.look()
        return [f"{one.what} {one.detail}" for one in self.recorder.changes()]


def pool(*members: ReplicaSnapshot) -> ReplicaPoolSnapshot:
    """Return a pool of these."""
    return ReplicaPoolSnapshot(
        members=members,
        live=tuple(one.name for one in members if one.live),
        primary_reads={"method": 10},
        replica_reads={},
        writers=(),
        fallbacks=0,
        failovers={},
        reruns=0,
        refused_writes={},
        pins={},
    )


@pytest.fixture
def world() -> World:
    """Give a pool with one healthy replica, which was seen once."""
    made = World()
    made.see(WELL)
    return made


@pytest.mark.parametrize(
    ("seen", "happened"),
    [
        ([WELL], []),
        ([OUT], ["out down: refused"]),
        ([OUT, replace(OUT, state="half_open"), OUT], ["out down: refused"]),
        ([OUT, replace(WELL, since=260.0)], ["back after 60 s", "out down: refused"]),
        ([replace(WELL, since=150.0)], ["back after a moment"]),
        ([OUT, replace(OUT, since=300.0)], ["out down: refused"] * 2),
        ([DRAINED], ["drained "]),
        ([DRAINED, replace(WELL, since=300.0)], ["restored ", "drained "]),
        ([replace(WELL, weight=3)], ["weight from 1 to 3"]),
        ([], []),
    ],
)
def test_changes(
    world: World, seen: list[ReplicaSnapshot], happened: list[str]
) -> None:
    """Each change is noted once, with its cause."""
    found: list[str] = []
    for one in seen:
        found = world.see(one)
    assert found == happened


def test_coming_and_going(world: World) -> None:
    """A replica that comes or goes is noted."""
    second = replace(WELL, name="slave_2")
    assert world.see(WELL, second) == ["added "]
    assert world.see(second)[0] == "removed "


def test_nothing_grows(world: World) -> None:
    """Figures are kept for five minutes, changes up to a number."""
    for number in range(2000):
        world.see(OUT if number % 2 else replace(WELL, since=300.0), after=5.0)
    frames = world.recorder.frames(world.snapshots())
    assert len(frames) <= 61
    assert frames[-1].at - frames[0].at <= 300
    assert len(world.recorder.changes()) == 200


def test_looks_seldom(world: World) -> None:
    """Another look within the same second costs nothing."""
    before = world.asked
    world.recorder.look()
    world.recorder.look()
    assert world.asked == before


def test_fork(world: World) -> None:
    """A forked child begins anew."""
    assert world.see(OUT)
    world.recorder.begin_anew()
    assert world.recorder.changes() == []
    assert world.see(OUT) == []


def test_view(world: World) -> None:
    """Rates and shares are those of the last minutes, the primary's included."""
    for number in range(1, 13):
        world.see(replace(WELL, reads=10 * number), after=5.0)
    frames = world.recorder.frames(world.snapshots())
    shown = pool_view(0, None, pool(*world.members), frames, Workers())
    (row,) = shown.replicas
    assert (row.word, row.place, row.rate) == ("serving", "db1:5432", 2.0)
    assert row.share.percent == pytest.approx(100 * 120 / 130)
    assert shown.primary.percent == pytest.approx(100 * 10 / 130)
    assert (row.latency.highest, row.lag.highest, row.used.highest) == (2.0, 0.5, 2)
    assert [share.name for share in shown.shares] == ["slave_1", "primary"]


def test_decisions() -> None:
    """Like decisions share a line, the latest is first, and old lines go."""
    kept = Decisions()
    read = Explanation(None, "replica", "slave_1", "GET only reads")
    for replica in ("slave_1", "slave_2"):
        kept.note("GET", "cart", [read._replace(replica=replica)])
    kept.note("POST", "cart", [Explanation(None, "primary", None, "POST may write")])
    first, second = kept.latest(9)
    assert (first.method, first.server, first.reads) == ("POST", "primary", 1)
    assert (second.method, second.server, second.reads) == ("GET", "slave_2", 2)
    for number in range(500):
        kept.note("GET", f"view {number}", [read])
    assert [one.endpoint for one in kept.latest(2)] == ["view 499", "view 498"]
    assert len(kept.latest(1000)) == 200


def test_graph() -> None:
    """A line fills its box, has gaps where nothing is known, and begins in time."""
    figures: list[tuple[float, float | None]] = [(0, 9.0), (60, 5.0), (70, 10.0)]
    figures += [(80, None), (90, 0.0), (120, 5.0)]
    line = graph(figures, 60)
    assert line.path == f"M0 14L20 1M60 {HEIGHT - 1}M{WIDTH} 14"
    assert line.highest == 10.0
    assert graph([(0, None)], 60).path == ""
    assert list(rates([(0, 0), (5, 50), (10, 20)])) == [(0, None), (5, 10), (10, None)]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0 s"), (59.9, "59 s"), (61, "1 min"), (7320, "2 h 2 min"), (2e5, "2 d")],
)
def test_ago(seconds: float, text: str) -> None:
    """Spans of time read well."""
    assert ago(seconds) == text


def test_each_second(caplog: pytest.LogCaptureFixture) -> None:
    """One function that fails keeps no other from being called, and is logged once."""
    calls = SimpleNamespace(count=0)

    def fail() -> None:
        raise ZeroDivisionError

    def note() -> None:
        calls.count += 1

    every: Any = EachSecond(fail)
    every.add(note)
    every.add(note)
    every()
    every()
    assert calls.count == 2
    assert len(caplog.records) == 1
