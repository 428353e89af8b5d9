"""Strategies: live members in, pick function out.

A strategy is any callable that takes the tuple of live members (never empty, every
weight at least 1) and returns a function without arguments that returns one of them.
It is called again whenever membership changes, so it need not look at health.

Forked processes: a child continues its parent's rotation at the same place, and so
do its siblings; :meth:`balancers.Pool.reshuffle` in the child starts a new one.
Threads: with the interpreter lock one ``itertools.cycle`` is shared, whose step is
atomic. Without the lock a cycle is not safe to share; there the threads share an
``itertools.count`` and index by it, which is a little slower.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from importlib import import_module
from itertools import chain, count, cycle, repeat
from math import gcd
from operator import attrgetter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar, cast

from .errors import NoMemberAvailableError, UnknownBalancerError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "BALANCERS",
    "MAX_STEPS",
    "Balancer",
    "Member",
    "Pick",
    "Random",
    "RoundRobin",
    "Strategy",
    "Weighted",
    "resolve_balancer",
]

T = TypeVar("T")

MAX_STEPS = 4096
"""Longest sequence that is computed in advance; see :class:`Weighted`."""


@dataclass(frozen=True, eq=False, repr=False)
class Member(Generic[T]):
    """One thing to pick; equal only to itself.

    Attributes:
        name: its name in the pool.
        target: the thing itself; not shown by ``repr``, as it may hold a password.
        weight: its share relative to the others; 0 takes no traffic.
    """

    # Not dataclass(slots=True): before Python 3.12 Member[int](...) fails with it.
    # A pool remembers members that were removed as long as anybody else does.
    __slots__ = ("__weakref__", "name", "target", "weight")

    name: str
    target: T
    weight: int

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r}, weight={self.weight!r})"

    def __reduce__(self) -> tuple[type[Member[T]], tuple[str, T, int]]:
        return type(self), (self.name, self.target, self.weight)


Pick: TypeAlias = Callable[[], Member[T]]
Strategy: TypeAlias = Callable[[tuple[Member[T], ...]], Pick[T]]
Balancer: TypeAlias = str | type[Any] | Strategy[T]


def _has_gil() -> bool:
    return bool(getattr(sys, "_is_gil_enabled", lambda: True)())


def _able(members: Sequence[Member[T]]) -> Sequence[Member[T]]:
    """Return the members that take traffic, at least one.

    Raises:
        NoMemberAvailableError: there is none.
    """
    able = [member for member in members if member.weight > 0]
    if not able:
        raise NoMemberAvailableError({member.name: "weight 0" for member in members})
    return able


def _rotation(sequence: Sequence[Member[T]]) -> Pick[T]:
    """Return a pick function that walks *sequence* for ever from a random place."""
    start = random.randrange(len(sequence))  # noqa: S311 - no secret
    if _has_gil():
        return cycle((*sequence[start:], *sequence[:start])).__next__
    return _shared_rotation(tuple(sequence), start)


def _shared_rotation(sequence: tuple[Member[T], ...], start: int) -> Pick[T]:
    """Do the same by a shared counter, for interpreters without a global lock."""
    step, length = count(start).__next__, len(sequence)

    def pick() -> Member[T]:
        return sequence[step() % length]

    return pick


def _shares(weights: Sequence[int]) -> list[int]:
    """Return *weights* in lowest terms and scaled down to about MAX_STEPS in sum."""
    total = sum(weights)
    if total // gcd(*weights) > MAX_STEPS:
        weights = [max(1, round(w * MAX_STEPS / total)) for w in weights]
    divisor = gcd(*weights)
    return [w // divisor for w in weights]


def _spread(shares: Sequence[int]) -> list[int]:
    """Return one cycle in which each index comes as often as its share, spread evenly.

    After any number of steps from the beginning each count differs by less than 1
    from its exact part of them. R. Tijdeman, "The chairman assignment problem"
    (Discrete Mathematics 32, 1980): a turn may begin once its part has grown to
    ``1 / (2n - 2)`` of a step and must before it lacks less than that of a whole one;
    of those that may, the most urgent goes first. Each step costs a heap's push and
    pop, however many members there are.
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


class _Plain:
    """What the strategies here share: no arguments, no state, a short repr."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class RoundRobin(_Plain):
    """Each live member in turn, from a random one on.

    Over any window, counts differ by at most 1. Weights other than 0 are not looked
    at; :class:`Weighted` does that.
    """

    __slots__ = ()

    def __call__(self, members: tuple[Member[T], ...]) -> Pick[T]:
        """Return a pick function over *members*.

        Raises:
            NoMemberAvailableError: none of *members* takes traffic.
        """
        return _rotation(_able(members))


class Random(_Plain):
    """By chance, in proportion to weight.

    Picks come from a shuffled deck of about :data:`MAX_STEPS` cards, which holds
    every member exactly in proportion and is gone through again and again. So a pick
    costs no random number, processes do not march in step, and shares even out over
    one deck. Weights are scaled as for :class:`Weighted`.
    """

    __slots__ = ()

    def __call__(self, members: tuple[Member[T], ...]) -> Pick[T]:
        """Return a pick function over *members*.

        Raises:
            NoMemberAvailableError: none of *members* takes traffic.
        """
        able = _able(members)
        shares = _shares([member.weight for member in able])
        repeats = max(1, MAX_STEPS // sum(shares))
        deck = [*chain(*map(repeat, able, shares))] * repeats
        random.shuffle(deck)
        return _rotation(deck)


class Weighted(_Plain):
    """Smooth weighted round robin, from a random place on.

    A cycle has ``sum(weights) / gcd(weights)`` picks and gives every member exactly
    its weight, spread out rather than in bursts: from its beginning on, nobody is ever
    a whole pick ahead or behind. The cycle is computed in advance, and so a pick costs
    the same whatever the weights. If it would be longer than :data:`MAX_STEPS`,
    weights are scaled down to about that sum: shares are then right to half a step,
    and a tiny weight rounds up to one step, never to nothing.
    """

    __slots__ = ()

    def __call__(self, members: tuple[Member[T], ...]) -> Pick[T]:
        """Return a pick function over *members*.

        Raises:
            NoMemberAvailableError: none of *members* takes traffic.
        """
        able = _able(members)
        shares = _shares([member.weight for member in able])
        return _rotation([able[index] for index in _spread(shares)])


BALANCERS: Mapping[str, type[RoundRobin | Random | Weighted]] = MappingProxyType(
    {"round_robin": RoundRobin, "random": Random, "weighted": Weighted}
)
"""The strategies that have a short name."""


def resolve_balancer(value: Balancer[T] | object) -> Strategy[T]:
    """Return the strategy that *value* stands for.

    Args:
        value: a name in :data:`BALANCERS`; a dotted path, ``'package.module.name'``
            or ``'package.module:name'``, to any of what follows; a class, which is
            instantiated without arguments; or any callable that takes the members.

    Raises:
        UnknownBalancerError: *value* is none of these.
    """
    found = _find(value) if isinstance(value, str) else value
    if isinstance(found, type):
        try:
            found = found()
        except TypeError as error:
            raise UnknownBalancerError(value, BALANCERS, f"{error}") from error
    if not callable(found):
        raise UnknownBalancerError(value, BALANCERS, "it cannot be called")
    return cast("Strategy[T]", found)


def _find(path: str) -> object:
    """Return what a name or dotted path stands for."""
    if path in BALANCERS:
        return BALANCERS[path]
    module, _, name = path.partition(":") if ":" in path else path.rpartition(".")
    if not (module and name):
        raise UnknownBalancerError(path, BALANCERS, "no balancer has this name")
    try:
        return cast("object", attrgetter(name)(import_module(module)))
    except (ImportError, AttributeError, TypeError) as error:
        raise UnknownBalancerError(path, BALANCERS, f"{error}") from error
