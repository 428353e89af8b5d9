"""What the simulated fleet shows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.fleet import Plan
from benchmarks.scenarios import SCENARIOS, simulate

SMALL = Plan(workers=8, seconds=12.0)


def test_same_seed() -> None:
    """A seed gives the same figures again, and another one gives others."""
    scenario = SCENARIOS["refused"]
    first = simulate(scenario, "random", seed=3, plan=SMALL)
    assert simulate(scenario, "random", seed=3, plan=SMALL) == first
    assert simulate(scenario, "random", seed=4, plan=SMALL) != first


@pytest.mark.parametrize(("slow_start", "least", "most"), [(0, 500, 9999), (30, 1, 60)])
def test_slow_start(slow_start: float, least: float, most: float) -> None:
    """A cold replica is felt, unless it starts with a tenth of its share."""
    scenario = replace(
        SCENARIOS["cold"], changes={"seconds": 75.0, "pool": {"slow_start": slow_start}}
    )
    assert least <= simulate(scenario, "round_robin").p99 <= most


def test_slow_server() -> None:
    """Beside a slow server, what goes by latency or load is ahead of taking turns."""
    ways = ("round_robin", "least_outstanding", "peak_ewma", "latency_window")
    found = {
        one: simulate(SCENARIOS["slow"], one, plan=Plan(workers=12, seconds=25.0))
        for one in ways
    }
    well = simulate(SCENARIOS["well"], "round_robin", plan=Plan(seconds=25.0))
    assert found["round_robin"].p99 > 100 * well.p99
    assert found["round_robin"].rate < well.rate / 2
    for one in ("least_outstanding", "peak_ewma"):
        assert found[one].p99 <= 1.3 * well.p99, one
        assert found[one].rate >= 0.8 * well.rate, one
    assert found["latency_window"].p99 < found["round_robin"].p99 / 10


@pytest.mark.parametrize("balancer", ["least_outstanding", "peak_ewma"])
def test_failing_server(balancer: str) -> None:
    """A server that fails at once attracts nothing."""
    found = simulate(SCENARIOS["failing"], balancer, plan=Plan(seconds=20.0))
    turns = simulate(SCENARIOS["failing"], "round_robin", plan=Plan(seconds=20.0))
    assert found.retried < turns.retried / 5
