"""Replicas that answer, and whose storage does not: a full disk, a damaged file.

A connect succeeds there and so does a look in the background. Only reads can tell.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, NamedTuple

from balancers import UnknownMemberError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

    from balancers import Member, Pool

__all__ = ["StorageFailures"]

_MEMORY = 5.0  # seconds; errors that lie further apart cost little, and tell little
_GOES_ON = 2  # errors


class _Seen(NamedTuple):
    times: int
    last: float


class StorageFailures:
    """Takes a replica out while its storage fails, and that of no other does.

    What fails on several of them is a matter of the statement or of the data: it
    would fail anywhere, and must not take out one replica after the other. For the
    same reason the last one stays.

    Args:
        clock: Returns seconds that never go backwards.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[Member[Engine], _Seen] = {}

    def note(
        self,
        member: Member[Engine],
        error: BaseException,
        pool: Pool[Engine],
        seconds: float,
    ) -> bool:
        """Hear that a replica's storage has failed a read; return whether it must rest.

        Args:
            member: The replica.
            error: What it said.
            pool: Its pool.
            seconds: For how long it is taken out at least, should it be.
        """
        if not self._goes_on_here(member):
            return False
        if all(other is member for other in pool.live):
            return False
        with contextlib.suppress(UnknownMemberError):  # it has been removed meanwhile
            pool.trip(member, seconds, error)
        return True

    def _goes_on_here(self, member: Member[Engine]) -> bool:
        """Note an error; whether it is not the first, and all others have none."""
        now = self._clock()
        seen = {m: what for m, what in self._seen.items() if now - what.last < _MEMORY}
        times = 1 + (seen[member].times if member in seen else 0)
        seen[member] = _Seen(times, now)
        # Without a lock, which a forked child might inherit closed: what two threads
        # note in one moment may count once.
        self._seen = seen
        return times >= _GOES_ON and len(seen) == 1
