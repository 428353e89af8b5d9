"""Which replica has room for one more read, so that none waits behind others.

A rotation knows nothing of the connections in use. Where one replica is slow or stuck,
its turn would come all the same, and one after the other all would wait there. While
none is, the rotation is obeyed to the letter.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

from sqlalchemy.pool import QueuePool

from balancers import Random, RoundRobin, UnknownMemberError, Weighted
from flask_replicated.errors import ExhaustedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy import Engine

    from balancers import Member, Permit, Pool
    from flask_replicated.replica.connection_events import ReplicaServer

__all__ = ["Capacity", "in_use", "is_full"]

_REST = 1.0
"""Seconds of the first rest of a replica whose connection pool is exhausted."""
_TWICE, _LEAST = 2, 2
"""How often as many connections are in use where others have room; and how many."""
_COMPARED = 4
"""With how many others a replica is compared, where there are more."""


def in_use(engine: Engine) -> int:
    """Return how many connections of an engine's pool are in use, or being opened."""
    # What checkedout() returns, without its lock: it is asked at each connect.
    pool: Any = engine.pool
    try:
        free = pool._pool  # noqa: SLF001 - as said
        used: int = free.maxsize + pool._overflow - len(free.queue)  # noqa: SLF001 - the same
    except AttributeError:  # of asyncio, or of another kind
        return pool.checkedout() if isinstance(pool, QueuePool) else 0
    return used


def is_full(engine: Engine) -> bool:
    """Whether one more would have to wait for a connection of an engine's pool."""
    pool: Any = engine.pool
    if not isinstance(pool, QueuePool):
        return False
    most = pool._max_overflow  # noqa: SLF001 - it has no other name
    return most > -1 and in_use(engine) >= pool.size() + most


class Capacity:
    """Finds a replica with room, and lets those rest that give no connection back.

    Args:
        pool: The replicas.
        replicas: What takes care of each of them, by name.
        balancer: What picks. Those that spread reads evenly need not be obeyed where a
            replica has a queue and another has none; others may have their reasons.
        bearable: Seconds for which a connection pool may be exhausted without giving
            one connection back.
        longest: Seconds of the longest rest.
        bind: Returns a replica's bind by its name, in Python syntax.
        clock: Returns seconds that never go backwards.

    Attributes:
        exhausted: Those with no connection to spare, each with the time since when and
            how often it has rested for it. While there is one, :meth:`relieved` is to
            be called.
    """

    def __init__(
        self,
        pool: Pool[Engine],
        replicas: Mapping[str, ReplicaServer],
        balancer: object,
        *,
        bearable: float,
        longest: float,
        bind: Callable[[str], str] = str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = pool
        self._replicas = replicas
        self._spreads = isinstance(balancer, RoundRobin | Random | Weighted)
        self._bearable = bearable
        self._longest = longest
        self._bind = bind
        self._clock = clock
        # Replaced, never changed: what two threads note in one moment may count once.
        self.exhausted: dict[Member[Engine], tuple[float, int]] = {}

    def choose(self, picked: Member[Engine]) -> Member[Engine]:
        """Return the replica that was picked, or another one that has more room."""
        if is_full(picked.target):
            return self._instead(picked)
        replica = self._replicas.get(picked.name)
        if replica is None or self._clock() >= replica.slow_until:
            return picked
        return self._less_used(picked) if self._spreads else picked

    def _instead(self, full: Member[Engine]) -> Member[Engine]:
        """Return one where nobody has to wait, or else where it may be soonest over."""
        self.found_full(full, self._pool.permit(full))
        others = self._others(full)
        free = [one for one in others if not is_full(one.target)]
        return min(free, key=_share) if free else self._soonest([full, *others])

    def _less_used(self, slow: Member[Engine]) -> Member[Engine]:
        """Return another one, if this one has a queue and that one has none."""
        if self._pool.permit(slow).trial or in_use(slow.target) < _LEAST:
            return slow
        others = self._others(slow)[:_COMPARED]
        other = min(others, key=_share, default=slow)
        return other if _share(slow) > _TWICE * _share(other) else slow

    def _others(self, than: Member[Engine]) -> list[Member[Engine]]:
        """Return the others in rotation, in an order by chance."""
        others = [one for one in self._pool.live if one is not than]
        random.shuffle(others)
        return others

    def _soonest(self, full: list[Member[Engine]]) -> Member[Engine]:
        """Return where somebody has got a connection latest: the next may come soon."""
        known, now = self.exhausted, self._clock()
        return max(full, key=lambda one: known.get(one, (now, 0))[0])

    def found_full(self, member: Member[Engine], permit: Permit) -> None:
        """Hear that somebody finds no connection to spare; let the replica rest for it.

        If none was given back for long, or a trial has found it so; not the last one.

        Args:
            member: The replica.
            permit: From when it was picked.
        """
        now = self._clock()
        since, rests = self.exhausted.get(member, (now, 0))
        others = any(one is not member for one in self._pool.live)
        rest = permit.trial or (others and now - since >= self._bearable)
        self._note(member, (since, rests + rest))
        if rest:
            self._rest(member, min(self._longest, _REST * 2.0**rests), permit)

    def _rest(self, member: Member[Engine], seconds: float, permit: Permit) -> None:
        replica = self._replicas.get(member.name)
        if replica is not None:
            replica.pool_exhausted = True  # first: a look must not bring it back
        many = in_use(member.target)
        error = ExhaustedError(
            member.name, many, self._bearable, self._bind(member.name)
        )
        try:
            self._pool.pause(member, seconds, error, permit)
        except UnknownMemberError:  # it has been removed meanwhile
            pass

    def relieved(self, member: Member[Engine]) -> None:
        """Hear that somebody has got a connection."""
        if member in self.exhausted:
            self._note(member, None)

    def _note(self, member: Member[Engine], known: tuple[float, int] | None) -> None:
        there = self._pool.members
        noted = {m: one for m, one in self.exhausted.items() if m in there}
        if known is None:
            noted.pop(member, None)
        else:
            noted[member] = known
        self.exhausted = noted


def _share(member: Member[Engine]) -> float:
    return in_use(member.target) / member.weight
