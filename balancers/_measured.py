"""Strategies that go by feedback: how busy each member is, and how slow."""

from __future__ import annotations

import time
from math import exp, inf
from operator import truediv
from random import random
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from ._checks import is_number
from ._sequences import able, rotation, shuffled_by_weight, spread_by_weight
from .errors import InvalidSettingError
from .feedback import DECAY, Feedback, PeakFeedback

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ._member import Member, Pick

__all__ = ["LatencyWindow", "LeastOutstanding", "PeakEwma"]

T = TypeVar("T")

_COMPARED = 8
"""Above so many members, two random ones are compared, and not all."""
_SLOW = 3.0
"""How many times slower than another one a member is slow."""
_SLOW_LEAST = 0.001
"""Seconds by which it must be slower besides."""
_FRESH = 0.1
"""Seconds for which a latency window over many members is not computed anew."""


class _Measured:
    """Base of the strategies here.

    Args:
        clock: Returns seconds that never go backwards.
    """

    __slots__ = ("_clock",)

    reads_weights: ClassVar[bool] = True
    feedback_class: ClassVar[type[Feedback]] = Feedback

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def feedback(self, _member: Member[Any]) -> Feedback:
        """Return what is to be told of a member's use."""
        return self.feedback_class(clock=self._clock)

    def __call__(self, members: tuple[Member[T], ...]) -> Pick[T]:
        """Return a pick function over *members*.

        Raises:
            NoMemberAvailableError: None of *members* takes traffic.
        """
        weights = able(members)
        order = [*weights]
        if len(order) == 1:
            return rotation(order)
        # A member without feedback counts as unused.
        states = [one.feedback or Feedback() for one in order]
        return self._pick_of(order, states, [*weights.values()])

    def _pick_of(
        self, order: list[Member[T]], states: list[Feedback], shares: list[int]
    ) -> Pick[T]:
        """Return a pick function over several members.

        Args:
            order: The members.
            states: What is known of each.
            shares: The weight of each.
        """
        raise NotImplementedError


class LeastOutstanding(_Measured):
    """The member with the fewest uses in flight, by weight; ties in rotation.

    Above 8 members, the better of two random ones: M. Mitzenmacher, "The power of two
    choices in randomized load balancing" (2001). A use that has failed counts as in
    flight for some seconds more.

    A slow member may have few uses in flight because it is given few. So where one is
    more than three times slower than another, and more than a millisecond, it is taken
    only if the other one is that much busier, by the square of their latencies.
    """

    __slots__ = ()

    def _pick_of(
        self, order: list[Member[T]], states: list[Feedback], shares: list[int]
    ) -> Pick[T]:
        few = len(order) <= _COMPARED
        return (_of_all if few else _of_two)(order, states, shares)


class PeakEwma(_Measured):
    """The better of two random members, by latency times uses in flight and one more.

    The latency is sensitive to peaks: it rises at once with a slow result, and falls
    with faster ones over some ten seconds. A member that has not been tried, or is left
    alone for long, is tried by one use at a time. A use that has failed counts as in
    flight for some seconds more.

    Weights say how often a member is the first of the two, and how many uses in flight
    count as one.
    """

    __slots__ = ()

    feedback_class = PeakFeedback

    def _pick_of(
        self, order: list[Member[T]], states: list[Feedback], shares: list[int]
    ) -> Pick[T]:
        turn, clock = rotation(shuffled_by_weight(shares)), self._clock
        steps, count = len(order) - 1, len(order)

        def pick() -> Member[T]:
            one = turn()
            other = (one + 1 + int(random() * steps)) % count  # noqa: S311 - no secret
            now = clock()
            mine = _cost(states[one], shares[one], now)
            theirs = _cost(states[other], shares[other], now)
            return order[other if theirs < mine else one]

        return pick


class LatencyWindow(_Measured):
    """At random, by weight, among the members about as fast as the fastest.

    A member that is slower is left alone, and tried again by one use at a time. So is
    one that has failed lately. Above 8 members, who is in the window is found out every
    tenth of a second.

    Args:
        milliseconds: How much slower than the fastest a member may be.
        clock: Returns seconds that never go backwards.

    Raises:
        InvalidSettingError: *milliseconds* is no number above 0.
    """

    __slots__ = ("_milliseconds",)

    def __init__(
        self, milliseconds: float = 10, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if not is_number(milliseconds) or not 0 < milliseconds < inf:
            raise InvalidSettingError(
                "milliseconds", milliseconds, "a number of milliseconds above 0"
            )
        super().__init__(clock=clock)
        self._milliseconds = milliseconds

    def __repr__(self) -> str:
        return f"{type(self).__name__}(milliseconds={self._milliseconds!r})"

    def _pick_of(
        self, order: list[Member[T]], states: list[Feedback], shares: list[int]
    ) -> Pick[T]:
        turn = rotation(shuffled_by_weight(shares))
        seconds, clock = self._milliseconds / 1000, self._clock
        many = len(order) > _COMPARED
        latest = -inf, inf  # when the end of the window was found, and it

        def pick() -> Member[T]:
            nonlocal latest
            one = turn()
            if many:
                now = clock()
                if not 0 <= now - latest[0] < _FRESH:
                    latest = now, _fastest(states) + seconds
                most = latest[1]
            else:
                most = _fastest(states) + seconds
            state = states[one]
            if state.count and state.seconds <= most and not state.failed:
                return order[one]
            for _ in range(_COMPARED):
                if _is_within(states[one], most):
                    return order[one]
                one = turn()
            # Seldom: those within are few, or weigh little.
            fast = [i for i, state in enumerate(states) if _is_within(state, most)]
            return order[fast[int(random() * len(fast))] if fast else turn()]  # noqa: S311 - no secret

        return pick


def _of_all(
    order: list[Member[T]], states: list[Feedback], shares: list[int]
) -> Pick[T]:
    """Return a function that picks the least busy one; ties in rotation."""
    flights, alike = [state.flights for state in states], len({*shares}) == 1
    turn, tries = rotation(spread_by_weight(shares)), range(2 * len(states))
    steps, count = len(order) - 1, len(order)

    def least_busy(busy: Sequence[float], one: int) -> int:
        if not alike:
            busy = [*map(truediv, busy, shares)]
        least = min(busy)
        for _ in tries:
            if busy[one] == least:
                return one
            one = turn()
        return busy.index(least)

    def pick() -> Member[T]:
        one = least_busy([*map(len, flights)], turn())
        if states[one].failed:
            one = least_busy([state.load for state in states], one)
        state = states[one]
        other = (one + 1 + int(random() * steps)) % count  # noqa: S311 - no secret
        if state.seconds > _SLOW * states[other].seconds + _SLOW_LEAST:
            one = _faster(states, shares, one, other)
        return order[one]

    return pick


def _of_two(
    order: list[Member[T]], states: list[Feedback], shares: list[int]
) -> Pick[T]:
    """Return a function that picks the less busy of two.

    The first is drawn by weight, the second among all others.
    """
    turn = rotation(shuffled_by_weight(shares))
    steps, count = len(states) - 1, len(states)

    def pick() -> Member[T]:
        one = turn()
        other = (one + 1 + int(random() * steps)) % count  # noqa: S311 - no secret
        mine, theirs = states[one], states[other]
        if mine.failed or theirs.failed:
            busy, others = mine.load, theirs.load
        else:
            busy, others = len(mine.flights), len(theirs.flights)
        if others * shares[one] < busy * shares[other]:
            one, other, mine, theirs = other, one, theirs, mine
        if mine.seconds > _SLOW * theirs.seconds + _SLOW_LEAST:
            one = _faster(states, shares, one, other)
        return order[one]

    return pick


def _faster(states: list[Feedback], shares: list[int], one: int, other: int) -> int:
    """Return the index of the one to use, where the first is busy less and slower."""
    slow, fast = states[one], states[other]
    expected = slow.expected() or 0.0
    if not fast.count or expected <= _SLOW * fast.seconds + _SLOW_LEAST:
        return one
    # By the square: one read of twenty that is ten times slower is the 95th percentile.
    slower = expected**2 * (slow.load / shares[one] + 1)
    return other if fast.seconds**2 * (fast.load / shares[other] + 1) < slower else one


def _cost(state: Feedback, weight: int, now: float) -> float:
    """Return the latency to expect, times the uses in flight and one more."""
    load = state.load if state.failed else len(state.flights)
    if not state.count:
        return inf if load else 0.0
    if load:
        return state.seconds * (load / weight + 1)
    return state.seconds * exp((state.noted - now) / DECAY)


def _fastest(states: list[Feedback]) -> float:
    """Return the least latency that is known, in seconds; infinity if none is."""
    return min([state.seconds for state in states if state.count], default=inf)


def _is_within(state: Feedback, most: float) -> bool:
    """Whether a member is so fast, or is to be tried."""
    if state.failed and round(state.failures):
        return False
    if not state.count:
        return not state.flights
    return state.seconds <= most or (state.expected() or 0.0) <= most
