"""From live members to a pick function, even if a custom strategy is faulty."""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

from .errors import InvalidPickError, NoMemberAvailableError
from .strategies import BALANCERS, RoundRobin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from .strategies import Member, Pick, Strategy

__all__ = ["Ramp", "RotationBuilder", "weighted_shuffle"]

T = TypeVar("T")

Ramp: TypeAlias = tuple[float, float]
"""Start and length of a slow start, as a clock reading and in seconds."""

FIRST_SHARE = 0.1
"""Part of the full share with which a slow start begins."""

logger = logging.getLogger("balancers")


class RotationBuilder(Generic[T]):
    """Applies a strategy, and a slow start to members that have just become live.

    Where the strategy picks a member in slow start, that pick stands with a
    probability that grows with time; otherwise a second rotation over all other
    members picks. This works with every strategy, gives the member its exact share on
    average, and spreads the remainder as the strategy spreads all picks.

    Args:
        strategy: The strategy.
        clock: Returns seconds.
        causes: Returns why each member is out, for the error when none is live.
    """

    def __init__(
        self,
        strategy: Strategy[T],
        *,
        clock: Callable[[], float],
        causes: Callable[[], Mapping[str, str]],
    ) -> None:
        self._strategy = strategy
        self._clock = clock
        self._causes = causes

    def build(self, live: tuple[Member[T], ...]) -> Pick[T]:
        """Return the strategy's pick function; an error of the strategy propagates.

        That of a strategy of this package is returned unchanged, any other one with a
        fallback around it.

        Raises:
            InvalidPickError: The strategy returned something that cannot be called.
        """
        if not live:
            return self._raise_none_available
        strategy = self._strategy
        pick: object = strategy(live)
        if not callable(pick):
            raise InvalidPickError(strategy, pick)
        own = type(strategy) in BALANCERS.values()
        return pick if own else _with_fallback(pick, live, strategy)

    def ignores_weights(self, live: tuple[Member[T], ...]) -> bool:
        """Return whether weights are given that the strategy does not read."""
        return (
            not getattr(self._strategy, "reads_weights", True)
            and len({member.weight for member in live}) > 1
        )

    def rebuild(
        self, live: tuple[Member[T], ...], ramps: Mapping[Member[T], Ramp]
    ) -> Pick[T]:
        """Return a pick function; round robin if the strategy raises.

        Args:
            live: The live members.
            ramps: Those in slow start, each with its start and length.
        """
        rotation = self._build_safely(live)
        steady = tuple(member for member in live if member not in ramps)
        if len(steady) == len(live) or not steady:
            return rotation
        return self._with_slow_starts(rotation, self._build_safely(steady), ramps)

    def _build_safely(self, live: tuple[Member[T], ...]) -> Pick[T]:
        try:
            return self.build(live)
        except Exception:  # a custom strategy must not stop all picks
            logger.exception("%r failed; round robin takes its place", self._strategy)
            return RoundRobin()(live)

    def _with_slow_starts(
        self, rotation: Pick[T], steady: Pick[T], ramps: Mapping[Member[T], Ramp]
    ) -> Pick[T]:
        clock = self._clock

        def pick() -> Member[T]:
            member = rotation()
            ramp = ramps.get(member)
            if ramp is None:
                return member
            share = max(FIRST_SHARE, (clock() - ramp[0]) / ramp[1])
            return member if random.random() < share else steady()  # noqa: S311

        return pick

    def _raise_none_available(self) -> Member[T]:
        raise NoMemberAvailableError(self._causes())


def _with_fallback(
    pick: Pick[T], live: tuple[Member[T], ...], strategy: Strategy[T]
) -> Pick[T]:
    """Return a pick function that falls back to round robin where *pick* fails.

    That is where *pick* raises or returns something other than one of *live*. The
    first failure is logged.
    """
    members, rotation = frozenset(live), RoundRobin()(live)
    failed = False

    def guarded() -> Member[T]:
        nonlocal failed
        try:
            member = pick()
            if member in members:
                return member
            raise InvalidPickError(strategy, member)  # noqa: TRY301 - logged as any other
        except Exception:  # nor must its pick function
            if not failed:
                failed = True
                logger.exception(
                    "%r failed to pick a live member; they take turns instead", strategy
                )
        return rotation()

    return guarded


def weighted_shuffle(members: Iterable[Member[T]]) -> list[Member[T]]:
    """Return *members* in random order; heavier ones tend to come first.

    P. Efraimidis and P. Spirakis, "Weighted random sampling with a reservoir" (2006):
    sorted by ``random ** (1 / weight)``, each position is drawn by weight.
    """

    def key(member: Member[T]) -> float:
        return float(random.random() ** (1 / member.weight))  # noqa: S311

    return sorted(members, key=key, reverse=True)
