"""One pick out of three healthy members, by this project and by its peers."""

from __future__ import annotations

import itertools
import random
import statistics
import warnings
from timeit import Timer
from typing import TYPE_CHECKING, Any, Final

import circuitbreaker
import purgatory
import pybreaker
from advanced_alchemy.routing import RandomSelector, RoundRobinSelector
from aws_advanced_python_wrapper.host_selector import (
    RandomHostSelector,
    RoundRobinHostSelector,
    WeightedRandomHostSelector,
)
from aws_advanced_python_wrapper.hostinfo import HostInfo, HostRole
from aws_advanced_python_wrapper.utils.properties import Properties
from django.conf import settings

from balancers import Pool
from balancers.strategies import BALANCERS

from .report import FLOOR

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["measure_picks"]

NAMES: Final = ("slave_1", "slave_2", "slave_3")
_ROUNDS: Final = 60
_SECONDS: Final = 0.002


class Floor:
    """The least that a call on an object can cost."""

    def pick(self) -> None:
        """Do nothing."""


def _ours() -> dict[str, tuple[str, Any]]:
    """Return a pool for each balancer; it is called as an application calls it."""
    return {
        f"flask_replicated, {name}": (
            "it.pick()",
            Pool({one: one for one in NAMES}, balancer=name),
        )
        for name in BALANCERS
    }


def _django() -> dict[str, tuple[str, Any]]:
    # In memory, so that no network counts: django-replicated opens a cursor each time.
    database = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
    settings.configure(
        DATABASES={name: dict(database) for name in ("default", *NAMES)},
        REPLICA_DATABASES=list(NAMES),
        REPLICATED_DATABASE_SLAVES=list(NAMES),
        REPLICATED_DATABASE_DOWNTIME=60,
        REPLICATED_CHECK_STATE_ON_WRITE=False,
        REPLICATED_CACHE_BACKEND="default",
    )
    import multidb  # noqa: PLC0415 - they read the settings
    from django_replicated.router import ReplicationRouter  # noqa: PLC0415

    class Router(ReplicationRouter):  # type: ignore[misc]  # it has no types
        def pick(self) -> str:
            """Choose for a new request: within one it keeps to its choice."""
            self.init("slave")
            return str(self.db_for_read())

    return {
        "django-multidb-router": ("it.get_replica()", multidb),
        "django-replicated": ("it.pick()", Router()),
    }


def _aws() -> dict[str, tuple[str, Any]]:
    hosts = tuple(HostInfo(name, role=HostRole.READER) for name in NAMES)
    properties = Properties({})
    kinds = {
        "round robin": RoundRobinHostSelector,
        "random": RandomHostSelector,
        "weighted random": WeightedRandomHostSelector,
    }
    return {
        f"aws-advanced-python-wrapper, {name}": (
            "it[0].get_host(it[1], it[2], it[3])",
            (kind(), hosts, HostRole.READER, properties),
        )
        for name, kind in kinds.items()
    }


class _Guarded:
    """What one writes to learn from failures: a turn through a circuit breaker."""

    def __init__(self, call: Callable[[Callable[[], str]], str]) -> None:
        self._call = call
        self._next = itertools.cycle(NAMES).__next__

    def pick(self) -> str:
        """Return the next name."""
        return self._call(self._next)


def _breakers() -> dict[str, tuple[str, Any]]:
    factory = purgatory.SyncCircuitBreakerFactory()

    def by_purgatory(call: Callable[[], str]) -> str:
        with factory.get_breaker("replica"):
            return call()

    step = itertools.cycle(NAMES).__next__

    decorated: Callable[[], str] = circuitbreaker.circuit(step)

    class Decorated:
        def pick(self) -> str:
            """Return the next name."""
            return decorated()

    return {
        "itertools.cycle through pybreaker": (
            "it.pick()",
            _Guarded(pybreaker.CircuitBreaker().call),
        ),
        "itertools.cycle through circuitbreaker": ("it.pick()", Decorated()),
        "itertools.cycle through purgatory": ("it.pick()", _Guarded(by_purgatory)),
    }


def _pickers() -> dict[str, tuple[str, Any]]:
    engines: list[Any] = list(NAMES)
    return {
        FLOOR: ("it.pick()", Floor()),
        **_ours(),
        "itertools.cycle": ("next(it)", itertools.cycle(NAMES)),
        "random.choice": ("it[0].choice(it[1])", (random, NAMES)),
        "advanced-alchemy, round robin": ("it.next()", RoundRobinSelector(engines)),
        "advanced-alchemy, random": ("it.next()", RandomSelector(engines)),
        **_django(),
        **_aws(),
        **_breakers(),
    }


def measure_picks(note: Callable[[str], None]) -> dict[str, dict[str, float]]:
    """Time every pick in turn, a round of each, again and again.

    Args:
        note: Told each step.

    Returns:
        By name: the ``median`` of all rounds in nanoseconds, its quartiles ``low`` and
        ``high``, and ``ratio``, the median of all ratios to an empty method call that
        was timed just before.
    """
    timers = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peers warn of this Python's or of theirs
        for name, (statement, it) in _pickers().items():
            timer = Timer(statement, globals={"it": it})
            calls, took = 10, 0.0
            while took < _SECONDS:
                calls *= 2
                took = timer.timeit(calls)
            timers[name] = timer, calls
        note(f"pick: {len(timers)} ways, {_ROUNDS} rounds of each")
        times: dict[str, list[float]] = {name: [] for name in timers}
        ratios: dict[str, list[float]] = {name: [] for name in timers}
        for _ in range(_ROUNDS):
            for name, one in timers.items():
                floor = _nanoseconds(*timers[FLOOR])
                times[name].append(_nanoseconds(*one))
                ratios[name].append(times[name][-1] / floor)
    return {
        name: {**quartiles(found), "ratio": statistics.median(ratios[name])}
        for name, found in times.items()
    }


def _nanoseconds(timer: Timer, calls: int) -> float:
    return timer.timeit(calls) / calls * 1e9


def quartiles(values: list[float]) -> dict[str, float]:
    """Return the median and the quartiles."""
    low, median, high = statistics.quantiles(values, n=4)
    return {"median": median, "low": low, "high": high}
