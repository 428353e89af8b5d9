"""One pick out of a healthy pool, beside an empty method call.

The alternatives are what one would write without the pool: they know nothing of
members that are out.
"""

from __future__ import annotations

import random
from itertools import accumulate
from threading import Lock
from typing import TYPE_CHECKING

import pytest

from balancers import Pool
from balancers.strategies import BALANCERS
from benchmarks.pairs import Bound, Loop

if TYPE_CHECKING:
    from benchmarks.conftest import Compare

SIZES = (2, 8, 64, 256)
BOUND = Bound(2.5)


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


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("balancer", sorted(BALANCERS))
def bench_balancer(compare: Compare, balancer: str, size: int) -> None:
    """Measure a pick by each balancer."""
    names = _members(size)
    unequal = weights(names) if balancer == "weighted" else None
    pool = Pool({name: name for name in names}, balancer=balancer, weights=unequal)
    _compare(compare, f"{balancer} of {size}", pool, BOUND)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("alternative", ALTERNATIVES)
def bench_alternative(compare: Compare, alternative: str, size: int) -> None:
    """Measure a pick as one would write it by hand."""
    picker = ALTERNATIVES[alternative](_members(size))
    _compare(compare, f"{alternative} of {size}", picker, None)
