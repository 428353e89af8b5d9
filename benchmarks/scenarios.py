"""What happens to the simulated fleet, and which settings are tried."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import product
from statistics import mean
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import patch

from balancers.strategies import BALANCERS
from benchmarks.fleet import Fleet, Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from benchmarks.fleet import State

__all__ = [
    "SCENARIOS",
    "SWEEPS",
    "Result",
    "Scenario",
    "balancers",
    "compared",
    "simulate",
    "swept",
]

# Not compared: one gives all reads to the first, the other needs weights.
_LEFT_OUT: Final = {"first", "weighted"}


@dataclass(frozen=True)
class Scenario:
    """Something that happens to a fleet.

    Attributes:
        what: In a few words.
        strike: Arranges it.
        began: When it strikes, in seconds; requests count from then on.
        over: When it is repaired, if it is.
        changes: Of the plan.
    """

    what: str
    strike: Callable[[Fleet], None] = lambda _: None
    began: float = 5.0
    over: float | None = None
    changes: Mapping[str, Any] | None = None

    def plan(self, plan: Plan) -> Plan:
        """Return the plan that it needs."""
        return plan.changed(**(self.changes or {}))


@dataclass(frozen=True)
class Result:
    """What one scenario has shown of one balancer.

    Attributes:
        p50: Milliseconds that half of the requests do not exceed; so the next two.
        p99: Of 99 %.
        p999: Of 99.9 %.
        rate: Requests answered in a second.
        imbalance: What the busiest replica has served, by the mean of all.
        noticed: Seconds until the struck replica got less than half its share.
        recovered: Seconds from its repair until it served nine tenths of its share.
        connections: Of all workers to one replica, at the most.
        herd: Connections opened to the struck replica in the worst tenth of a second
            after its repair.
        retried: Percent of requests that needed a second replica.
        primary: Percent of requests that went to the primary.
        probes: Of one replica, by all workers, in a second.
    """

    p50: float
    p99: float
    p999: float
    rate: float
    imbalance: float
    noticed: float | None
    recovered: float | None
    connections: int
    herd: int
    retried: float
    primary: float
    probes: float


def _strike(
    state: State, began: float, over: float, *, cold: bool = False
) -> Callable[[Fleet], None]:
    def strike(fleet: Fleet) -> None:
        fleet.at(began, fleet.set_state, 0, state)
        fleet.at(over, fleet.set_state, 0, "up")
        if cold:
            fleet.at(over, fleet.cool, 0)

    return strike


def _slow(factor: float, late: float) -> Callable[[Fleet], None]:
    return lambda fleet: fleet.at(5.0, fleet.slow_down, 0, factor, late)


def _flap(fleet: Fleet) -> None:
    for turn in range(8):
        fleet.at(5.0 + 4 * turn, fleet.set_state, 0, "refusing")
        fleet.at(6.0 + 4 * turn, fleet.set_state, 0, "up")


SCENARIOS: Final[Mapping[str, Scenario]] = {
    "well": Scenario("all are equal and well"),
    "slow": Scenario("one takes ten times as long", _slow(10.0, 0.0)),
    "late": Scenario("one answers half a second late", _slow(1.0, 0.5)),
    "refused": Scenario(
        "one refuses connections for ten seconds",
        _strike("refusing", 5.0, 15.0),
        over=15.0,
    ),
    "silent": Scenario(
        "one is silent for ten seconds",
        _strike("silent", 5.0, 15.0),
        over=15.0,
        changes={"seconds": 100.0},
    ),
    "failing": Scenario(
        "one fails every query at once, for ten seconds",
        _strike("failing", 5.0, 15.0),
        over=15.0,
    ),
    "flapping": Scenario("one is down for one second in four", _flap),
    "cold": Scenario(
        "one returns with cold caches after ten seconds; seconds after that",
        _strike("refusing", 5.0, 15.0, cold=True),
        began=15.0,
        over=15.0,
        changes={"seconds": 75.0, "pool": {"slow_start": 30.0}},
    ),
}


def simulate(
    scenario: Scenario, balancer: Any, *, seed: int = 1, plan: Plan | None = None
) -> Result:
    """Run a scenario with one balancer, and return what it shows."""
    base = (plan or Plan()).changed(balancer=balancer)
    fleet = Fleet(scenario.plan(base), seed)
    scenario.strike(fleet)
    fleet.run()
    return _conclude(fleet, scenario)


def _conclude(fleet: Fleet, scenario: Scenario) -> Result:
    records = [one for one in fleet.records if one.began >= scenario.began]
    taken = sorted(one.seconds for one in records)
    # A request that is still unanswered has taken at least so long.
    waited = fleet.waiting(scenario.began)
    taken = sorted([*taken, *waited])
    first = int(scenario.began * 10)
    served = [
        sum(n for at, n in replica.answers.items() if at >= first)
        for replica in fleet.replicas
    ]
    struck, share = fleet.replicas[0], fleet.plan.rate / len(fleet.replicas)
    over = scenario.over
    repaired = math.inf if over is None else over * 10
    herd = [n for at, n in struck.opened.items() if at >= repaired]
    count = max(1, len(records))
    return Result(
        p50=_percentile(taken, 0.5),
        p99=_percentile(taken, 0.99),
        p999=_percentile(taken, 0.999),
        rate=len(records) / (fleet.plan.seconds - scenario.began),
        imbalance=max(served) / mean(served),
        noticed=_first(struck.attempts, first, lambda n: n < share / 2),
        recovered=None
        if over is None
        else _first(struck.answers, int(over * 10), lambda n: n >= 0.9 * share),
        connections=max(one.most_connections for one in fleet.replicas),
        herd=max(herd, default=0),
        retried=100 * sum(one.attempts > 1 for one in records) / count,
        primary=100 * sum(not one.server for one in records) / count,
        probes=fleet.probes / fleet.plan.seconds / len(fleet.replicas),
    )


def _percentile(ordered: Sequence[float], share: float) -> float:
    return 1000 * ordered[int(share * (len(ordered) - 1))]


def _first(
    counts: Mapping[int, int], start: int, found: Callable[[int], bool]
) -> float | None:
    """Return seconds from *start* to the first whole second whose count is found."""
    last = max(counts, default=start)
    for at in range(start, last - 8):
        if found(sum(counts.get(at + tenth, 0) for tenth in range(10))):
            return (at - start) / 10
    return None


def _slow_servers(fleet: Fleet) -> None:
    for number in range(0, len(fleet.replicas), 20):
        fleet.at(0.0, fleet.slow_down, number, 10.0)


FLEET: Final = Scenario(
    "200 replicas, of which ten take ten times as long, and 2,000 workers",
    _slow_servers,
    began=14.0,  # until then each worker meets most of them for the first time
    changes={
        "replicas": 200,
        "workers": 2000,
        "threads": 4,
        "load": 0.2,
        "seconds": 24.0,
    },
)

_MANY: Final = Scenario(
    "48 workers and 24 replicas, of which one takes ten times as long",
    _slow(10.0, 0.0),
    changes={"replicas": 24, "workers": 48, "seconds": 25.0},
)
_BLIP: Final = Scenario(
    "one refuses connections for a tenth of a second",
    _strike("refusing", 5.0, 5.1),
    over=5.1,
)
_LONG: Final = Scenario(
    "one refuses connections for a minute, and nobody probes it",
    _strike("refusing", 5.0, 65.0),
    over=65.0,
    changes={"seconds": 130.0, "probe": 0.0},
)


@dataclass(frozen=True)
class Sweep:
    """One setting, and what it changes.

    Attributes:
        setting: Its key in ``app.config``, or what it is.
        name: Its name in ``Pool``; or, with a dot in it, of constants, by commas.
        values: What is tried.
        scenario: What happens meanwhile.
        balancers: Which balancers.
    """

    setting: str
    name: str
    values: Sequence[Any]
    scenario: Scenario
    balancers: Sequence[str] = ("round_robin",)


_DECAY: Final = Sweep(
    "the seconds for which a latency counts",
    "balancers.feedback.DECAY,balancers._measured.DECAY",
    (1.0, 3.0, 10.0, 30.0),
    SCENARIOS["silent"],
    balancers=("peak_ewma", "least_outstanding"),
)

SWEEPS: Final[Mapping[str, Sweep]] = {
    "threshold": Sweep(
        "REPLICATED_BREAKER_THRESHOLD",
        "threshold",
        (1, 2, 3, 5, 10),
        SCENARIOS["refused"],
    ),
    "blip": Sweep("REPLICATED_BREAKER_THRESHOLD", "threshold", (1, 2, 3, 5, 10), _BLIP),
    "reset": Sweep(
        "REPLICATED_BREAKER_RESET", "reset", (0.25, 0.5, 1.0, 2.0, 5.0), _LONG
    ),
    "max_reset": Sweep(
        "REPLICATED_BREAKER_MAX_RESET", "max_reset", (5.0, 10.0, 30.0, 60.0), _LONG
    ),
    "slow_start": Sweep(
        "REPLICATED_SLOW_START",
        "slow_start",
        (0.0, 5.0, 10.0, 20.0, 30.0, 60.0),
        SCENARIOS["cold"],
    ),
    "slow_start-load": Sweep(
        "REPLICATED_SLOW_START",
        "slow_start",
        (0.0, 30.0),
        SCENARIOS["cold"],
        balancers=("least_outstanding", "peak_ewma"),
    ),
    "decay": _DECAY,
    "decay-slow": replace(_DECAY, scenario=SCENARIOS["slow"]),
    "choices": Sweep(
        "the most members of which all are compared, and not two",
        "balancers._measured._COMPARED",
        (8, 1000),
        _MANY,
        balancers=("least_outstanding",),
    ),
    "fleet": Sweep(
        "REPLICATED_MAX_POOLS",
        "limit",
        (3, 10, None),
        FLEET,
        balancers=("round_robin", "least_outstanding", "peak_ewma"),
    ),
}


def balancers() -> list[str]:
    """Return the names of those that are compared."""
    return [name for name in BALANCERS if name not in _LEFT_OUT]


def compared(seed: int, name: str) -> dict[str, Result]:
    """Run a scenario with each balancer."""
    scenario = SCENARIOS[name]
    return {one: simulate(scenario, one, seed=seed) for one in balancers()}


def swept(seed: int, name: str, note: Callable[[str], None]) -> dict[str, Result]:
    """Run a sweep's scenario with each value, and tell each step."""
    sweep, found = SWEEPS[name], {}
    for balancer, value in product(sweep.balancers, sweep.values):
        label = f"{balancer} {value}" if len(sweep.balancers) > 1 else str(value)
        note(f"{name}: {sweep.setting}: {value}, {balancer}")
        scenario, constants = sweep.scenario, sweep.name.split(",")
        if "." not in sweep.name:
            changes, constants = dict(scenario.changes or {}), []
            changes["pool"] = {**changes.get("pool", {}), sweep.name: value}
            scenario = replace(scenario, changes=changes)
        with ExitStack() as stack:
            for constant in constants:
                stack.enter_context(patch(constant, value))
            found[label] = simulate(scenario, balancer, seed=seed)
    return found
