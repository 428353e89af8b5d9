"""Strategies: live members in, pick function out.

A strategy is any callable that takes the tuple of live members (never empty, every
weight at least 1) and returns a function without arguments that returns one of them.
It is called again whenever membership or a weight changes, so it need not check health.

It may have, besides:

- ``reads_weights``: False if it ignores weights other than 0. A pool warns of such
  weights then, and refuses to change them.
- ``feedback(member)``: returns a :class:`balancers.Feedback` for this member, or None.
  A pool asks once for each member. Only then is the member's use measured.
- ``prefer(members, given)``: returns the members in the order in which a pool with a
  limit uses them; by default that is *members*, a random order. *given* is their own.

Fork: a child process continues its parent's rotation at the same position, as its
siblings do; :meth:`balancers.Pool.reshuffle` in the child starts a new one.
"""

from __future__ import annotations

from importlib import import_module
from itertools import repeat
from operator import attrgetter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, TypeVar, cast

from ._measured import LatencyWindow, LeastOutstanding, PeakEwma
from ._member import Member, Pick, Strategy
from ._sequences import (
    MAX_STEPS,
    able,
    rotation,
    shuffled_by_weight,
    spread_by_weight,
)
from .errors import InvalidSettingError, UnknownBalancerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from .feedback import Feedback

__all__ = [
    "BALANCERS",
    "MAX_STEPS",
    "Balancer",
    "First",
    "LatencyWindow",
    "LeastOutstanding",
    "Member",
    "PeakEwma",
    "Pick",
    "Random",
    "RoundRobin",
    "Strategy",
    "Weighted",
    "Zoned",
    "is_shipped",
    "reads_weights",
    "resolve_balancer",
]

T = TypeVar("T")

Balancer: TypeAlias = str | type[Any] | Strategy[T]


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
        return rotation([*able(members)])


class _ByWeight(_Plain):
    """Base of those that repeat a sequence which has each member by its weight."""

    __slots__ = ()

    _order: ClassVar[staticmethod[[Iterable[int]], list[int]]]

    def __call__(self, members: tuple[Member[T], ...]) -> Pick[T]:
        """Return a pick function over *members*.

        Raises:
            NoMemberAvailableError: None of *members* takes traffic.
        """
        weights = able(members)
        order = [*weights]
        return rotation([order[i] for i in self._order(weights.values())])


class Random(_ByWeight):
    """At random, in proportion to weight.

    Picks come from a shuffled sequence of about :data:`MAX_STEPS` entries, which
    contains every member exactly in proportion and is repeated. So a pick draws no
    random number, processes do not pick in step, and shares are exact over one
    sequence. Weights are scaled as for :class:`Weighted`.
    """

    __slots__ = ()

    _order = staticmethod(shuffled_by_weight)


class Weighted(_ByWeight):
    """Smooth weighted round robin, from a random position on.

    A cycle has ``sum(weights) / gcd(weights)`` picks and gives every member exactly
    its weight, spread out rather than in bursts: from the start of a cycle, no member
    is ever a whole pick ahead or behind. The cycle is computed in advance, so a pick
    costs the same whatever the weights. If it would be longer than
    :data:`MAX_STEPS`, weights are scaled down to about that sum: shares are then
    right to half a step, and a small weight rounds up to one step, never to zero.
    """

    __slots__ = ()

    _order = staticmethod(spread_by_weight)


class First(_Plain):
    """The first live member, in the order given: the others stand by.

    It ignores weights other than 0.
    """

    __slots__ = ()

    reads_weights = False

    def __call__(self, members: tuple[Member[T], ...]) -> Pick[T]:
        """Return a pick function over *members*.

        Raises:
            NoMemberAvailableError: None of *members* takes traffic.
        """
        return repeat(next(iter(able(members)))).__next__

    def prefer(
        self, _members: Sequence[Member[T]], given: Sequence[Member[T]]
    ) -> list[Member[T]]:
        """Return the members in the order given."""
        return [*given]


class Zoned:
    """Any strategy over the members of one zone; over all others while none is live.

    Args:
        strategy: Anything that :func:`resolve_balancer` takes.
        zone: The local zone.
        zones: The zone of each member, by name. One that is not there is not local.

    Raises:
        UnknownBalancerError: *strategy* neither is nor names one.
        InvalidSettingError: *zone* is no text.

    Attributes:
        strategy: The strategy.
    """

    __slots__ = ("_zone", "_zones", "strategy")

    def __init__(
        self, strategy: Balancer[Any], zone: str, zones: Mapping[str, str]
    ) -> None:
        if not isinstance(zone, str) or not zone:
            raise InvalidSettingError("zone", zone, "the name of the local zone")
        self.strategy: Strategy[Any] = resolve_balancer(strategy)
        self._zone = zone
        self._zones = dict(zones)

    def __repr__(self) -> str:
        return f"Zoned({self.strategy!r}, {self._zone!r}, {self._zones!r})"

    @property
    def reads_weights(self) -> bool:
        """Whether the strategy does."""
        return reads_weights(self.strategy)

    @property
    def feedback(self) -> Callable[[Member[Any]], Feedback | None]:
        """The strategy's own; without one it has no such attribute."""
        found: Callable[[Member[Any]], Feedback | None] = attrgetter("feedback")(
            self.strategy
        )
        return found

    def __call__(self, members: tuple[Member[T], ...]) -> Pick[T]:
        """Return the strategy's pick function over *members*; its errors propagate."""
        local = tuple(one for one in members if self._is_local(one) and one.weight > 0)
        others = tuple(one for one in members if not self._is_local(one))
        pick: Pick[T] = self.strategy(local or others or members)
        return pick

    def prefer(
        self, members: Sequence[Member[T]], given: Sequence[Member[T]]
    ) -> list[Member[T]]:
        """Return local members first, each group as the strategy has it."""
        prefer = getattr(self.strategy, "prefer", None)
        order = members if prefer is None else prefer(members, given)
        return sorted(order, key=lambda one: not self._is_local(one))

    def _is_local(self, member: Member[Any]) -> bool:
        return self._zones.get(member.name) == self._zone


BALANCERS: Mapping[str, type[Strategy[Any]]] = MappingProxyType(
    {
        "round_robin": RoundRobin,
        "random": Random,
        "weighted": Weighted,
        "least_outstanding": LeastOutstanding,
        "peak_ewma": PeakEwma,
        "latency_window": LatencyWindow,
        "first": First,
    }
)
"""The strategies that have a short name."""


def is_shipped(strategy: object) -> bool:
    """Whether *strategy* is one of this package, over a zone or not."""
    if type(strategy) is Zoned:
        return is_shipped(strategy.strategy)
    return type(strategy) in BALANCERS.values()


def reads_weights(strategy: object) -> bool:
    """Whether *strategy* shares by weight; any does that does not say otherwise."""
    return bool(getattr(strategy, "reads_weights", True))


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
