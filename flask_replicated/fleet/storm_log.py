"""Log lines about single replicas, summed up where there would be very many at once."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from itertools import count, islice
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from flask_replicated.routing.announcer import Announcer

__all__ = ["StormLog"]

logger = logging.getLogger("flask_replicated")

_WINDOW = 5.0
"""Seconds in which lines of a kind are counted."""
_SINGLE = 3
"""How many of them are logged one by one."""
_HOLD = 1.0
"""Seconds for which the others are held back, to be summed up."""
_MOST = 10_000
"""How many are held back at most; they are taken within seconds."""
_PLURAL = {
    "lag_unknown": "do not tell how far they are behind",
    "reads_released": "do not answer, and their reads go on elsewhere",
    "replica_back": "are back",
    "replica_out": "are out",
}
"""What a sum says, by the kind of line."""
_NAMED = 10
"""How many replicas a summary names."""


class _Held(NamedTuple):
    """A line that is held back.

    Attributes:
        name: The replica.
        cause: Why, in one word.
        since: When it was held back.
        what: The line's form.
        more: What that takes besides the name.
    """

    name: str
    cause: str | None
    since: float
    what: str
    more: tuple[object, ...]


class _Kind:
    """The lines of one event and level.

    Attributes:
        until: When they are counted anew.
        number: Returns how many there were before in this time.
        held: Those that are to be summed up.
    """

    def __init__(self) -> None:
        self.until = 0.0
        self.number = count().__next__
        self.held: deque[_Held] = deque(maxlen=_MOST)


class StormLog:
    """Logs lines about single replicas; of many at once the first few, then their sum.

    A lock would be in the way of a forked child: two threads at one moment may log one
    line more.

    Args:
        announcer: Says in each record what it is about.
        clock: Returns monotonic seconds.

    Attributes:
        flushed: Whether :meth:`flush` is called about every second. If not, each
            line is logged at once.
    """

    def __init__(
        self, announcer: Announcer, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.flushed = False
        self._announcer = announcer
        self._clock = clock
        self._kinds: dict[tuple[str, int], _Kind] = {}

    def warn(
        self, event: str, what: str, name: str, cause: str | None, *more: object
    ) -> None:
        """Log a WARNING about a replica, as :meth:`log` does."""
        self.log(logging.WARNING, event, what, name, cause, *more)

    def log(
        self,
        level: int,
        event: str,
        what: str,
        name: str,
        cause: str | None,
        *more: object,
    ) -> None:
        """Log a line about a replica, now or in a sum.

        Args:
            level: The logging module's level.
            event: The signal's name, or another kind of line; see ``_PLURAL``.
            what: The line's form, which begins ``replica %r``.
            name: The replica.
            cause: Why, in one word.
            more: What else the line's form takes.
        """
        now = self._clock()
        one = _Held(name, cause, now, what, more)
        kind = self._kinds.setdefault((event, level), _Kind())
        if now >= kind.until:
            kind.until, kind.number = now + _WINDOW, count().__next__
        if self.flushed and kind.number() >= _SINGLE:
            kind.held.append(one)
        else:
            self._log_one(event, level, one)

    def flush(self, *, all_of_them: bool = False) -> None:
        """Sum up what was held back for long enough, or all of it."""
        now = self._clock()
        for (event, level), kind in list(self._kinds.items()):
            held = kind.held
            if held and (all_of_them or now - held[0].since >= _HOLD):
                # One that goes out again and again is still one.
                every = [held.popleft() for _ in range(len(held))]
                taken = list({one.name: one for one in every}.values())
                if len(taken) == 1:
                    self._log_one(event, level, taken[0])
                else:
                    self._sum_up(event, level, taken)

    def _log_one(self, event: str, level: int, one: _Held) -> None:
        extra = self._announcer.record(event, one.name, one.cause)
        logger.log(level, one.what, one.name, *one.more, extra=extra)

    def _sum_up(self, event: str, level: int, held: list[_Held]) -> None:
        names, causes = [one.name for one in held], Counter(one.cause for one in held)
        counts = causes.most_common()
        shown = ", ".join(f"{cause}: {n}" for cause, n in counts if cause)
        logger.log(
            level,
            "%d more replicas %s%s: %s",
            len(held),
            _PLURAL[event],
            f" ({shown})" if shown else "",
            _few(names),
            extra=self._announcer.record(
                event, ",".join(islice(names, _NAMED)), counts[0][0]
            ),
        )


def _few(names: Iterable[str]) -> str:
    """Return a list of names, cut if it is long."""
    every = list(names)
    shown = ", ".join(map(repr, every[:_NAMED]))
    more = len(every) - _NAMED
    return f"{shown} and {more} more" if more > 0 else shown
