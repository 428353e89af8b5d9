"""One pick out of a healthy pool, beside an empty method call.

The alternatives are what one would write without the pool: they know nothing of
members that are out.
"""

from __future__ import annotations

import random
from itertools import accumulate
from threading import Lock, Thread
from typing import TYPE_CHECKING

import pytest

from balancers import Pool
from balancers.strategies import BALANCERS
from benchmarks.pairs import Bound, Loop

if TYPE_CHECKING:
    from benchmarks.conftest import Compare

SIZES = (2, 8, 64, 1000)
PLAIN = Bound(1.35)
MEASURED = Bound(40)
THREADS = 8


class Floor:
    """The least that a call on an object can cost."""

    def pick(self) -> None:
        """Do nothing."""


class LockedCounter:
    """Round robin by a counter under a lock."""

    def __init__(self, names: list[str]) -> None:
        self._names = names
        self._lock = Lock()
        self._count = 0

    def pick(self) -> str:
        """Return the next name."""
        with self._lock:
            self._count += 1
            return self._names[self._count % len(self._names)]


class Choices:
    """Weighted choice by ``random.choices``."""

    def __init__(self, names: list[str]) -> None:
        self._names = names
        self._weights = weights(names)

    def pick(self) -> str:
        """Return a name by chance."""
        return random.choices(self._names, [*self._weights.values()])[0]


class CumulatedChoices(Choices):
    """The same, with the sums of the weights made once."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(names)
        self._sums = [*accumulate(self._weights.values())]

    def pick(self) -> str:
        """Return a name by chance."""
        return random.choices(self._names, cum_weights=self._sums)[0]


ALTERNATIVES = {
    "lock and counter": LockedCounter,
    "choices(weights)": Choices,
    "choices(cum_weights)": CumulatedChoices,
}


def weights(names: list[str]) -> dict[str, int]:
    """Return weights from 1 to 5."""
    return {name: 1 + place % 5 for place, name in enumerate(names)}


def _members(size: int) -> list[str]:
    return [f"slave_{number}" for number in range(1, size + 1)]


def _compare(compare: Compare, case: str, picker: object, bound: Bound | None) -> None:
    compare(
        ("pick", case, "an empty call"),
        Loop("it.pick()", {"it": picker}),
        Loop("it.pick()", {"it": Floor()}),
        bound=bound,
    )


def _pool(balancer: str, size: int) -> Pool[str]:
    """Return a pool whose members have all been used, if that is measured."""
    names = _members(size)
    unequal = weights(names) if balancer == "weighted" else None
    pool = Pool({name: name for name in names}, balancer=balancer, weights=unequal)
    for number, member in enumerate(pool.members):
        if member.feedback is not None:
            for _ in range(2):
                member.feedback.started()
                member.feedback.finished(0.005 + 0.0001 * (number % 7))
    return pool


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("balancer", sorted(BALANCERS))
def bench_balancer(compare: Compare, balancer: str, size: int) -> None:
    """Measure a pick by each balancer."""
    pool = _pool(balancer, size)
    measured = pool.members[0].feedback is not None
    _compare(compare, f"{balancer} of {size}", pool, MEASURED if measured else PLAIN)


def _by_threads(pool: Pool[str], count: int, picks: int) -> None:
    """Let threads pick, so many times all together."""

    def work() -> None:
        for _ in range(picks // count):
            pool.pick()

    threads = [Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("balancer", sorted(BALANCERS))
def bench_threads(compare: Compare, balancer: str) -> None:
    """Measure picks by eight threads, beside as many by one."""
    names = {"run": _by_threads, "pool": _pool(balancer, 8)}
    compare(
        ("pick", f"{balancer} of 8, {THREADS} threads", "one thread"),
        Loop(f"run(pool, {THREADS}, 200_000)", names, unroll=1),
        Loop("run(pool, 1, 200_000)", names, unroll=1),
        bound=Bound(1.25),
        seconds=0,
        pairs=12,
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("alternative", ALTERNATIVES)
def bench_alternative(compare: Compare, alternative: str, size: int) -> None:
    """Measure a pick as one would write it by hand."""
    picker = ALTERNATIVES[alternative](_members(size))
    _compare(compare, f"{alternative} of {size}", picker, None)
