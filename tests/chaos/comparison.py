"""Whether requests are slower than in quiet times, on a machine that has its moods.

A p99 is made by the worst moments, and a shared machine has worse ones than any fault:
two quiet times in a row may differ by a factor of two. So quiet times lie between all
the faults, and what could be chance is worked out: the seconds of both are drawn anew,
with repetition, again and again ("bootstrap": B. Efron, 1979, of whole seconds, because
requests of one moment are slow together).
"""

from __future__ import annotations

import random
from collections import defaultdict
from itertools import chain
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from .load import Record

__all__ = ["Comparison", "compare", "percentile", "seconds_of"]

_DRAWS: Final = 400
_TAIL: Final = 0.05

Second = list[float]
"""How long the requests took that began in one second of the clock."""


class Comparison(NamedTuple):
    """Two 99th percentiles, in seconds, and how many times as large one is.

    Attributes:
        quiet: Of the quiet times.
        busy: Of what is compared with them.
        least: What the ratio is at least, with 95% confidence.
        most: What it is at most, with the same.
        requests: How many there were at the time that had fewer.
    """

    quiet: float
    busy: float
    least: float
    most: float
    requests: int

    @property
    def ratio(self) -> float:
        """How many times as large the busy one is; 0 without any request."""
        return self.busy / self.quiet if self.quiet else 0.0


def seconds_of(records: Iterable[Record]) -> list[Second]:
    """Return how long requests took, by the second in which they began."""
    found: dict[int, Second] = defaultdict(list)
    for record in records:
        found[int(record.began)].append(record.seconds)
    return list(found.values())


def compare(quiet: Sequence[Second], busy: Sequence[Second]) -> Comparison:
    """Compare the 99th percentiles of two times."""
    if not (quiet and busy):
        return Comparison(_p99(quiet), _p99(busy), 0.0, 0.0, 0)
    chance = random.Random(0)
    ratios = sorted(
        _p99(chance.choices(busy, k=len(busy)))
        / _p99(chance.choices(quiet, k=len(quiet)))
        for _ in range(_DRAWS)
    )
    tail = int(_TAIL * _DRAWS)
    requests = min(sum(map(len, quiet)), sum(map(len, busy)))
    least, most = ratios[tail], ratios[-tail - 1]
    return Comparison(_p99(quiet), _p99(busy), least, most, requests)


def _p99(seconds: Iterable[Second]) -> float:
    return percentile(list(chain.from_iterable(seconds)))


def percentile(seconds: Collection[float], share: float = 0.99) -> float:
    """Return what so large a share of some durations does not exceed."""
    ordered = sorted(seconds)
    return ordered[int(share * (len(ordered) - 1))] if ordered else 0.0
