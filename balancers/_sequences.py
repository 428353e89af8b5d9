"""Sequences that are computed in advance and then repeated.

Threads: with the GIL they share one ``itertools.cycle``, whose step is atomic.
Without the GIL a cycle is not safe to share; there they share an ``itertools.count``
and use it as an index, which is a little slower.
"""

from __future__ import annotations

import random
import sys
from heapq import heappop, heappush
from itertools import chain, count, cycle, repeat
from math import gcd
from typing import TYPE_CHECKING, TypeVar

from .errors import NoMemberAvailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ._member import Member

__all__ = [
    "MAX_STEPS",
    "able",
    "rotation",
    "shared_rotation",
    "shuffled_by_weight",
    "spread",
    "spread_by_weight",
]

T = TypeVar("T")

MAX_STEPS = 4096
"""Length of the longest sequence computed in advance; see :class:`Weighted`."""


def able(members: Sequence[Member[T]]) -> dict[Member[T], int]:
    """Return the members that take traffic, at least one, each with its weight.

    Read once: a weight may be changed meanwhile.

    Raises:
        NoMemberAvailableError: There is none.
    """
    found = {member: weight for member in members if (weight := member.weight) > 0}
    if not found:
        raise NoMemberAvailableError({member.name: "weight 0" for member in members})
    return found


def rotation(sequence: Sequence[T]) -> Callable[[], T]:
    """Return a function that repeats *sequence*, from a random position on."""
    start = random.randrange(len(sequence))  # noqa: S311 - no secret
    if _has_gil():
        return cycle((*sequence[start:], *sequence[:start])).__next__
    return shared_rotation(tuple(sequence), start)


def spread_by_weight(weights: Iterable[int]) -> list[int]:
    """Return a cycle of smooth weighted round robin.

    Args:
        weights: By index, each above 0.

    Returns:
        Indices of *weights*.
    """
    return spread(_shares([*weights]))


def shuffled_by_weight(weights: Iterable[int]) -> list[int]:
    """Return a random sequence that has each index exactly in its weight's share.

    Args:
        weights: By index, each above 0.
    """
    shares = _shares([*weights])
    repeats = max(1, MAX_STEPS // sum(shares))
    sequence = [*chain(*map(repeat, range(len(shares)), shares))] * repeats
    random.shuffle(sequence)
    return sequence


def shared_rotation(sequence: tuple[T, ...], start: int) -> Callable[[], T]:
    """Return a rotation by a shared counter, for interpreters without the GIL."""
    step, length = count(start).__next__, len(sequence)

    def pick() -> T:
        return sequence[step() % length]

    return pick


def spread(shares: Sequence[int]) -> list[int]:
    """Return a cycle with each index as often as its share, spread evenly.

    After any number of steps from the start, the count of each index differs by less
    than 1 from its exact part. The algorithm is that of R. Tijdeman, "The chairman
    assignment problem" (Discrete Mathematics 32, 1980): each turn of an index has a
    first and a last step; at each step, of the turns that may come, the one with the
    earliest last step comes. A step costs one push and one pop of a heap.
    """
    total, parts = sum(shares), max(1, 2 * len(shares) - 2)
    beginning: list[list[tuple[float, int]]] = [[] for _ in range(total + 1)]
    for index, share in enumerate(shares):
        unit = share * parts
        for turn in range(share):
            first = -(-(turn * parts + 1) * total // unit)
            last = ((turn + 1) * parts - 1) * total / unit
            beginning[first].append((last, index))
    sequence = []
    waiting: list[tuple[float, int]] = []
    for begin in beginning[1:]:
        for one in begin:
            heappush(waiting, one)
        sequence.append(heappop(waiting)[1])
    return sequence


def _has_gil() -> bool:
    return bool(getattr(sys, "_is_gil_enabled", lambda: True)())


def _shares(weights: Sequence[int]) -> list[int]:
    """Return *weights* in lowest terms, scaled down to a sum of about MAX_STEPS."""
    total = sum(weights)
    if total // gcd(*weights) > MAX_STEPS:
        weights = [max(1, round(w * MAX_STEPS / total)) for w in weights]
    divisor = gcd(*weights)
    return [w // divisor for w in weights]
