"""Which replica has capacity for one more read, so that none waits behind others.

A rotation knows nothing of the connections in use. Where one replica is slow or stuck,
its turn would come all the same, and one request after the other would wait there.
While none is, the rotation is followed exactly.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from sqlalchemy.pool import QueuePool

from balancers import First, UnknownMemberError
from balancers.strategies import BALANCERS
from flask_replicated._private import max_overflow_of
from flask_replicated.errors import ExhaustedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy import Engine

    from balancers import Member, Permit, Pool
    from flask_replicated.replica.connection_events import ReplicaServer

__all__ = ["ReplicaCapacity", "in_use", "is_full"]

_PAUSE = 1.0
"""Seconds of the first pause of a replica whose connection pool is exhausted."""
_QUEUE_RATIO, _QUEUE_LEAST = 2, 2
"""A slow replica has a queue where it has more than so many times another's connections
in use, and at least so many."""
_COMPARED = 4
"""With how many others a replica is compared, where there are more."""


def in_use(engine: Engine) -> int:
    """Return how many connections of an engine's pool are in use, or being opened."""
    pool = engine.pool
    return pool.checkedout() if isinstance(pool, QueuePool) else 0


def is_full(engine: Engine) -> bool:
    """Whether one more would have to wait for a connection of an engine's pool."""
    pool = engine.pool
    if not isinstance(pool, QueuePool):
        return False
    # The first question takes no lock, and nearly always it is the only one.
    return -1 < max_overflow_of(pool) <= pool.overflow() and not pool.checkedin()


class ReplicaCapacity:
    """Finds a replica with room, and pauses those that give no connection back.

    Args:
        pool: The replicas.
        servers: What is known of each replica's server, by name.
        balancer: What picks. One that has a name and spreads reads need not be followed
            where a replica has a queue and another has none; others may have their
            reasons.
        max_exhausted: Seconds for which a connection pool may be exhausted and give
            no connection back.
        longest: Seconds of the longest pause.
        bind: Returns a replica's bind by its name, in Python syntax.
        clock: Returns seconds that never go backwards.

    Attributes:
        exhausted: Those with no connection to spare, each with the time since when and
            how often it was paused for it. While there is one, :meth:`note_connected`
            is to be called.
    """

    def __init__(
        self,
        pool: Pool[Engine],
        servers: Mapping[str, ReplicaServer],
        balancer: object,
        *,
        max_exhausted: float,
        longest: float,
        bind: Callable[[str], str] = str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = pool
        self._servers = servers
        self._spreads = (
            type(balancer) in BALANCERS.values() and type(balancer) is not First
        )
        # One that knows who waits where has picked well, also where all are exhausted.
        self._knows_queues = hasattr(balancer, "feedback")
        self._prefer = getattr(balancer, "prefer", None)
        self._max_exhausted = max_exhausted
        self._longest = longest
        self._bind = bind
        self._clock = clock
        # Replaced, never changed: what two threads note in one moment may count once.
        self.exhausted: dict[Member[Engine], tuple[float, int]] = {}

    def choose(self, picked: Member[Engine]) -> Member[Engine]:
        """Return the replica that was picked, or another one that has more room."""
        if is_full(picked.target):
            return self._replace_full(picked)
        server = self._servers.get(picked.name)
        if server is None or self._clock() >= server.slow_until:
            return picked
        return self._less_used(picked) if self._spreads else picked

    def _replace_full(self, full: Member[Engine]) -> Member[Engine]:
        """Return one with room; if there is none, the likeliest to have some soon."""
        self.note_full(full, self._pool.permit(full))
        others = self._others(full)
        free = [one for one in others if not is_full(one.target)]
        if free:
            return free[0] if self._prefer else min(free, key=_share)
        return full if self._knows_queues else self._latest_free([full, *others])

    def _less_used(self, slow: Member[Engine]) -> Member[Engine]:
        """Return another one, if this one has a queue and that one has none."""
        if self._pool.permit(slow).trial or in_use(slow.target) < _QUEUE_LEAST:
            return slow
        others = self._others(slow)[:_COMPARED]
        other = min(others, key=_share, default=slow)
        return other if _share(slow) > _QUEUE_RATIO * _share(other) else slow

    def _others(self, than: Member[Engine]) -> list[Member[Engine]]:
        """Return the others in rotation, in random order or the balancer's."""
        given = [one for one in self._pool.live if one is not than]
        others = random.sample(given, len(given))
        return [*self._prefer(others, given)] if self._prefer else others

    def _latest_free(self, full: list[Member[Engine]]) -> Member[Engine]:
        """Return the one that has had a connection to spare most recently."""
        known, now = self.exhausted, self._clock()
        return max(full, key=lambda one: known.get(one, (now, 0))[0])

    def note_full(self, member: Member[Engine], permit: Permit) -> None:
        """Note that a replica has no connection to spare; pause it if that lasts.

        It is paused if none was given back for long, or if a trial has found it so; but
        not the last one.

        Args:
            member: The replica.
            permit: From when it was picked.
        """
        now = self._clock()
        since, pauses = self.exhausted.get(member, (now, 0))
        others = any(one is not member for one in self._pool.live)
        pause = permit.trial or (others and now - since >= self._max_exhausted)
        self._note(member, (since, pauses + pause))
        if pause:
            self._pause(member, min(self._longest, _PAUSE * 2.0**pauses), permit)

    def _pause(self, member: Member[Engine], seconds: float, permit: Permit) -> None:
        server = self._servers.get(member.name)
        if server is not None:
            server.pool_exhausted = True  # first: a probe must not bring it back
        many = in_use(member.target)
        error = ExhaustedError(
            member.name, many, self._max_exhausted, self._bind(member.name)
        )
        try:
            self._pool.pause(member, seconds, error, permit)
        except UnknownMemberError:  # it has been removed meanwhile
            pass

    def note_connected(self, member: Member[Engine]) -> None:
        """Note that a connection to a replica was had."""
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
    # Its weight may have become 0 a moment ago: it leaves the rotation then.
    return in_use(member.target) / max(1, member.weight)
