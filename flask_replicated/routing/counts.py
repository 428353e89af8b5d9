"""How many reads each server got, and why.

A read is a transaction that a reading statement began; the statements after it in the
same transaction are not counted, and nothing of a transaction that a write began.
Counting takes no lock, since the next step of an ``itertools.count`` is atomic.
"""

from __future__ import annotations

import sys
from itertools import count
from logging import DEBUG
from threading import Lock
from typing import TYPE_CHECKING, TypeVar

from .decision import Role
from .explanations import MAX_KEPT, TRACING, logger, tell

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy import Engine

    from balancers import Member

    from .decision import Decision, Reason
    from .explanations import Noted

__all__ = ["ReadCounts"]


_K = TypeVar("_K")


class _Counter:
    """Counts, from any number of threads at once.

    Attributes:
        add: Adds one.
    """

    __slots__ = ("_own_steps", "add")

    def __init__(self) -> None:
        self.add = count().__next__
        self._own_steps = 0

    def value(self) -> int:
        """Return the count so far. One thread at a time may call it."""
        found = self.add() - self._own_steps  # to find out takes a step, too
        self._own_steps += 1
        return found


class _Counters(dict[_K, _Counter]):
    """Counters by what they count; one that is asked for is made."""

    def __missing__(self, key: _K) -> _Counter:
        # Another thread may add one at the same moment.
        return self.setdefault(key, _Counter())


class _CountsByReason(dict[str, int]):
    """Counts by reason; 0 for a reason that is not there.

    No :class:`collections.Counter`, which ``dataclasses.asdict()`` copies wrongly.
    """

    def __missing__(self, _reason: str) -> int:
        return 0


class ReadCounts:
    """Counts the reads of one bind in this process, and notes why they went there.

    Attributes:
        bind: The bind's key; None is the default one.
    """

    bind: str | None = None

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Start at zero, as in a forked child: the counts so far are its parent's."""
        self._replicas: _Counters[Member[Engine]] = _Counters()
        self._primary: _Counters[Reason] = _Counters()
        self._why_replica: _Counters[Reason] = _Counters()
        self._removed = 0  # reads of replicas that are no more
        self._reading = Lock()

    def on_replica(
        self,
        member: Member[Engine],
        decision: Decision,
        kept: list[Noted] | None,
    ) -> None:
        """Count a read on a replica, and note why it went there.

        Args:
            member: The replica.
            decision: What has brought it there.
            kept: What its request keeps of its reads; None outside a request.
        """
        self._replicas[member].add()
        self._why_replica[decision.word].add()
        # Not in a function of its own: each read would pay for the call.
        if kept is not None and len(kept) < MAX_KEPT:
            kept.append((self.bind, member.name, decision))
        if TRACING in sys.modules or logger.isEnabledFor(DEBUG):
            tell((self.bind, member.name, decision))

    def on_primary(
        self, decision: Decision, kept: list[Noted] | None, *, begins: bool = True
    ) -> None:
        """Count a read on the primary, and note why it went there.

        Args:
            decision: What has brought it there.
            kept: What its request keeps of its reads; None outside a request.
            begins: Whether it begins its transaction; no other counts.
        """
        if begins:
            self._primary[decision.word].add()
        noted = (self.bind, None, decision)
        if kept is not None and len(kept) < MAX_KEPT:
            kept.append(noted)
        if TRACING in sys.modules or logger.isEnabledFor(DEBUG):
            tell(noted)

    def of(self, member: Member[Engine]) -> int:
        """Return how many a replica got."""
        with self._reading:
            counter = self._replicas.get(member)
            return 0 if counter is None else counter.value()

    def by_reason(self, role: Role) -> dict[str, int]:
        """Return how many the primary, or the replicas, got by the reasons for it."""
        with self._reading:
            why = self._primary if role is Role.PRIMARY else self._why_replica
            counters = why.copy()
            return _CountsByReason(
                (reason, counters[reason].value()) for reason in sorted(counters)
            )

    def totals(self) -> tuple[int, int]:
        """Return how many reads were no fallback to the primary, and how many were.

        Neither ever falls, except in a forked child.
        """
        with self._reading:
            primary = {why: one.value() for why, one in self._primary.copy().items()}
            fallbacks = primary.pop("fallback", 0)
            replicas = sum(one.value() for one in self._replicas.copy().values())
            return self._removed + replicas + sum(primary.values()), fallbacks

    def keep(self, members: Collection[Member[Engine]]) -> None:
        """Forget replicas other than these; their reads stay in the totals."""
        for member in self._replicas.keys() - set(members):
            with self._reading:
                counter = self._replicas.pop(member, None)
                self._removed += 0 if counter is None else counter.value()
