"""Strategies: live members in, pick function out.

A strategy is any callable that takes the tuple of live members (never empty, every
weight at least 1) and returns a function without arguments that returns one of them.
It is called again whenever membership changes, so it need not check health.

Fork: a child process continues its parent's rotation at the same position, as its
siblings do; :meth:`balancers.Pool.reshuffle` in the child starts a new one.

Threads: with the GIL they share one ``itertools.cycle``, whose step is atomic.
Without the GIL a cycle is not safe to share; there they share an ``itertools.count``
and use it as an index, which is a little slower.
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
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeAlias, TypeVar, cast

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
"""Length of the longest sequence computed in advance; see :class:`Weighted`."""


@dataclass(frozen=True, eq=False, repr=False)
class Member(Generic[T]):
    """One thing to pick; equal only to itself.

    Attributes:
        name: Its name in the pool.
        target: The thing itself; not shown by ``repr``, as it may hold a password.
        weight: Its share relative to the others; 0 takes no traffic.
    """

    # Not dataclass(slots=True): before Python 3.12 Member[int](...) fails with it.
    # A pool keeps weak references to removed members.
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
        NoMemberAvailableError: There is none.
    """
    able = [member for member in members if member.weight > 0]
    if not able:
        raise NoMemberAvailableError({member.name: "weight 0" for member in members})
    return able


def _rotation(sequence: Sequence[Member[T]]) -> Pick[T]:
    """Return a pick function that repeats *sequence*, from a random position on."""
    start = random.randrange(len(sequence))  # noqa: S311 - no secret
    if _has_gil():
        return cycle((*sequence[start:], *sequence[:start])).__next__
    return _shared_rotation(tuple(sequence), start)


def _shared_rotation(sequence: tuple[Member[T], ...], start: int) -> Pick[T]:
    """Return the same with a shared counter, for interpreters without the GIL."""
    step, length = count(start).__next__, len(sequence)

    def pick() -> Member[T]:
        return sequence[step() % length]

    return pick


def _shares(weights: Sequence[int]) -> list[int]:
    """Return *weights* in lowest terms, scaled down to a sum of about MAX_STEPS."""
    total = sum(weights)
    if total // gcd(*weights) > MAX_STEPS:
        weights = [max(1, round(w * MAX_STEPS / total)) for w in weights]
    divisor = gcd(*weights)
    return [w // divisor for w in weights]


def _spread(shares: Sequence[int]) -> list[int]:
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


class _Plain:
    """Base of the strategies here: no arguments, no state, a short repr.

    Attributes:
        reads_weights: Whether it shares by weight. Where it does not, a pool warns of
            weights other than 0.
    """

    __slots__ = ()

    reads_weights: ClassVar[bool] = True

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class RoundRobin(_Plain):
    """Each live member in turn, starting with a random one.

    Over any window, counts differ by at most 1. It ignores weights other than 0;
    :class:`Weighted` and :class:`Random` read them.
    """

    __slots__ = ()

    reads_weights = False

    def __call__(self, members: tuple[Member[T], ...]) -> Pick[T]:
        """Return a pick function over *members*.

        Raises:
            NoMemberAvailableError: None of *members* takes traffic.
        """
        return _rotation(_able(members))


class Random(_Plain):
    """At random, in proportion to weight.

    Picks come from a shuffled sequence of about :data:`MAX_STEPS` entries, which
    contains every member exactly in proportion and is repeated. So a pick draws no
    random number, processes do not pick in step, and shares are exact over one
    sequence. Weights are scaled as for :class:`Weighted`.
    """

    __slots__ = ()

    def __call__(self, members: tuple[Member[T], ...]) -> Pick[T]:
        """Return a pick function over *members*.

        Raises:
            NoMemberAvailableError: None of *members* takes traffic.
        """
        able = _able(members)
        shares = _shares([member.weight for member in able])
        repeats = max(1, MAX_STEPS // sum(shares))
        sequence = [*chain(*map(repeat, able, shares))] * repeats
        random.shuffle(sequence)
        return _rotation(sequence)


class Weighted(_Plain):
    """Smooth weighted round robin, from a random position on.

    A cycle has ``sum(weights) / gcd(weights)`` picks and gives every member exactly
    its weight, spread out rather than in bursts: from the start of a cycle, no member
    is ever a whole pick ahead or behind. The cycle is computed in advance, so a pick
    costs the same whatever the weights. If it would be longer than
    :data:`MAX_STEPS`, weights are scaled down to about that sum: shares are then
    right to half a step, and a small weight rounds up to one step, never to zero.
    """

    __slots__ = ()

    def __call__(self, members: tuple[Member[T], ...]) -> Pick[T]:
        """Return a pick function over *members*.

        Raises:
            NoMemberAvailableError: None of *members* takes traffic.
        """
        able = _able(members)
        shares = _shares([member.weight for member in able])
        return _rotation([able[index] for index in _spread(shares)])


BALANCERS: Mapping[str, type[RoundRobin | Random | Weighted]] = MappingProxyType(
    {"round_robin": RoundRobin, "random": Random, "weighted": Weighted}
)
"""The strategies that have a short name."""


def resolve_balancer(value: Balancer[T] | object) -> Strategy[T]:
    """Return the strategy that *value* is or names.

    Args:
        value: A name in :data:`BALANCERS`; a dotted path, ``'package.module.name'``
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
