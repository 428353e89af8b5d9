"""From live members to a pick function, even if a custom strategy is faulty."""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING, Generic, TypeVar

from .errors import InvalidPickError, NoMemberAvailableError
from .strategies import RoundRobin, is_shipped, reads_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from ._member import Member, Pick, Strategy
    from ._records import Standing

__all__ = ["RotationBuilder", "weighted_shuffle"]

T = TypeVar("T")

FIRST_SHARE = 0.1
"""Part of the full share with which a slow start begins."""

logger = logging.getLogger("balancers")


class RotationBuilder(Generic[T]):
    """Applies a strategy, and shares that are lower for the time being.

    Where the strategy picks a member in slow start, that pick stands with a
    probability that grows with time; otherwise a second rotation over all other
    members picks. So it is, with a constant probability, where a member's share is
    lower than that of others. This works with every strategy, gives the member its
    exact share on average, and spreads the remainder as the strategy spreads all picks.

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
        if is_shipped(strategy):
            return pick
        return _with_fallback(pick, live, strategy)

    def ignores_weights(self, live: tuple[Member[T], ...]) -> bool:
        """Return whether weights are given that the strategy does not read."""
        return (
            not reads_weights(self._strategy)
            and len({member.weight for member in live}) > 1
        )

    def rebuild(
        self, live: tuple[Member[T], ...], standings: Mapping[Member[T], Standing]
    ) -> Pick[T]:
        """Return a pick function; round robin if the strategy raises.

        Args:
            live: The live members.
            standings: What each may take.
        """
        rotation = self._build_safely(live)
        shares = [standings[one].share for one in live if not standings[one].ramp]
        if not shares:  # all are in slow start
            return rotation
        best = max(shares)
        reduced = {
            one: standings[one]._replace(share=min(1.0, standings[one].share / best))
            for one in live
            if standings[one].ramp or standings[one].share < best
        }
        if not reduced:
            return rotation
        steady = tuple(member for member in live if member not in reduced)
        return self._with_shares(rotation, self._build_safely(steady), reduced)

    def _build_safely(self, live: tuple[Member[T], ...]) -> Pick[T]:
        try:
            return self.build(live)
        except Exception as error:  # a custom strategy must not stop all picks
            try:
                rotation = RoundRobin()(live)
            except NoMemberAvailableError:
                # Their weights were set to 0 just now, so this rotation is outdated.
                return self._raise_none_available
            if not isinstance(error, NoMemberAvailableError):
                logger.exception(
                    "%r failed; round robin takes its place", self._strategy
                )
            return rotation

    def _with_shares(
        self, rotation: Pick[T], steady: Pick[T], reduced: Mapping[Member[T], Standing]
    ) -> Pick[T]:
        clock = self._clock

        def pick() -> Member[T]:
            member = rotation()
            found = reduced.get(member)
            if found is None:
                return member
            share, ramp = found.share, found.ramp
            if ramp is not None:
                share *= min(1.0, max(FIRST_SHARE, (clock() - ramp[0]) / ramp[1]))
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
        return float(random.random() ** (1 / max(1, member.weight)))  # noqa: S311

    return sorted(members, key=key, reverse=True)
