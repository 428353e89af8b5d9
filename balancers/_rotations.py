"""From live members to a pick function, whatever a strategy does."""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

from .errors import InvalidPickError, NoMemberAvailableError
from .strategies import BALANCERS, RoundRobin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from .strategies import Member, Pick, Strategy

T = TypeVar("T")

Ramp: TypeAlias = tuple[float, float]
"""Start and length of a slow start, as a clock reading and in seconds."""

FIRST_SHARE = 0.1
"""Part of its full share with which a recovered member's slow start begins."""

_log = logging.getLogger(__name__)


class RotationBuilder(Generic[T]):
    """Applies a strategy, and a slow start to those that have just recovered.

    A slow start passes picks on: one that falls on a ramping member stands with a
    probability that grows with time, and otherwise goes to a rotation over the
    rest. So it works for every strategy, keeps the ramping member's share exact on
    average, and spreads what it leaves as the others share everything else.

    Args:
        strategy: the strategy.
        clock: returns seconds.
        causes: says why each member is out, when there is nobody.
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
        """Return the strategy's pick function; what the strategy raises goes through.

        That of a strategy of this package is returned as it is, any other one with a
        guard around it.

        Raises:
            InvalidPickError: the strategy returned something else.
        """
        if not live:
            return self._nobody
        strategy = self._strategy
        pick: object = strategy(live)
        if not callable(pick):
            raise InvalidPickError(strategy, pick)
        own = type(strategy) in BALANCERS.values()
        return pick if own else _guarded(pick, live, strategy)

    def ignores_weights(self, live: tuple[Member[T], ...]) -> bool:
        """Whether weights were given in vain."""
        return (
            isinstance(self._strategy, RoundRobin)
            and len({member.weight for member in live}) > 1
        )

    def rebuild(
        self, live: tuple[Member[T], ...], ramps: Mapping[Member[T], Ramp]
    ) -> Pick[T]:
        """Return a pick function in any case.

        Args:
            live: the live members.
            ramps: those of them in slow start, each with its start and length.

        Returns:
            the strategy's pick function, or round robin if the strategy fails.
        """
        rotation = self._build_anyhow(live)
        steady = tuple(member for member in live if member not in ramps)
        if len(steady) == len(live) or not steady:
            return rotation
        return self._thin_out(rotation, self._build_anyhow(steady), ramps)

    def _build_anyhow(self, live: tuple[Member[T], ...]) -> Pick[T]:
        try:
            return self.build(live)
        except Exception:  # noqa: BLE001 - a foreign strategy must not take reads down
            _log.exception("%r failed; round robin takes its place", self._strategy)
            return RoundRobin()(live)

    def _thin_out(
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

    def _nobody(self) -> Member[T]:
        raise NoMemberAvailableError(self._causes())


def _guarded(
    pick: Pick[T], live: tuple[Member[T], ...], strategy: Strategy[T]
) -> Pick[T]:
    """Return a pick function that cannot fail, whatever *pick* does.

    Where *pick* raises or returns something other than one of *live*, it is their
    turn, one after the other; the first time is logged.
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
        except Exception:  # noqa: BLE001 - a foreign function must not take reads down
            if not failed:
                failed = True
                _log.exception(
                    "%r failed to pick a live member; they take turns instead", strategy
                )
        return rotation()

    return guarded


def by_chance(members: Iterable[Member[T]]) -> list[Member[T]]:
    """Return *members* in a random order in which heavier ones tend to come first.

    P. Efraimidis and P. Spirakis, "Weighted random sampling with a reservoir" (2006):
    sorted by ``random ** (1 / weight)``, each position is drawn by weight.
    """

    def key(member: Member[T]) -> float:
        return float(random.random() ** (1 / member.weight))  # noqa: S311

    return sorted(members, key=key, reverse=True)
