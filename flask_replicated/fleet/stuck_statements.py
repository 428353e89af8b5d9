"""Statements that wait in vain, while a replica is well for who looks at it.

A firewall may forget some flows and not others; of several servers behind one address
one may hang. A look over its own connection sees nothing of that. So whoever has waited
for long has the server asked whether it works for them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flask_replicated.errors import UnansweredError
from flask_replicated.replica.activity import ActivityQuery, works_on

if TYPE_CHECKING:
    from collections.abc import Callable
    from queue import SimpleQueue

    from sqlalchemy import Engine

    from balancers import Member
    from flask_replicated.replica.activity import Backend
    from flask_replicated.replica.connection_events import ReplicaServer
    from flask_replicated.replica.dbapi_connections import Surroundings
    from flask_replicated.replica.in_flight import PendingAnswer

__all__ = ["StuckStatements", "WaitingStatement"]

_SLOW = 0.2
"""Seconds without a word after which an answer is slow."""
_MEMORY = 5.0
"""Seconds for which a replica that was slow is taken to be slow."""
_GRACE = 0.25
"""Seconds for an answer that may be under way when its server has done its work."""


@dataclass(eq=False)
class WaitingStatement:
    """A wait that goes on, with readings of the clock.

    Attributes:
        wait: As it was when it was first seen.
        since: When something was last sent or received.
        sent: When something was last sent.
        ask: When its server is to be asked, should it have waited for long.
        end: When it is to be ended, should it still be there.
    """

    wait: PendingAnswer
    since: float
    sent: float
    ask: float = 0.0
    end: float = math.inf


class StuckStatements:
    """Over the waits of a pool's replicas. For one thread.

    Args:
        bound: Seconds that a statement may wait before its server is asked, and until
            it is asked again.
        timeout: Seconds for an inquiry.
        done: Gets something when an inquiry is done.
        unfit: Told which replica must not be used for a while, and why, before who
            waits there goes elsewhere.
        surroundings: Returns the block to connect in.
    """

    def __init__(
        self,
        bound: float,
        timeout: float,
        done: SimpleQueue[Any],
        unfit: Callable[[Member[Engine], UnansweredError], None],
        surroundings: Surroundings,
    ) -> None:
        self._bound = bound
        self._timeout = timeout
        self._done = done
        self._unfit = unfit
        self._surroundings = surroundings
        self._suspects: dict[
            Member[Engine], dict[tuple[int, int], WaitingStatement]
        ] = {}
        self._inquiries: dict[
            ActivityQuery, tuple[Member[Engine], list[WaitingStatement]]
        ] = {}

    def see(
        self, member: Member[Engine], replica: ReplicaServer | None, now: float
    ) -> list[WaitingStatement]:
        """Look who waits, and end what is to be ended; return whom to ask about."""
        known, found = self._suspects.pop(member, {}), {}
        for wait in () if replica is None else replica.waits():
            key = (id(wait.connection), wait.received)
            one = known.get(key)
            if one is None:
                one = WaitingStatement(wait, now - wait.silent, now - wait.sent)
            found[key] = one
        if not found or replica is None:
            return []
        if any(now - one.since >= _SLOW for one in found.values()):
            replica.slow_until = now + _MEMORY
        self._suspects[member] = found
        ended = [one for one in found.values() if now >= one.end]
        if ended:
            self._end(member, replica, ended)
        return [one for one in found.values() if now >= self._due(one)]

    def _due(self, one: WaitingStatement) -> float:
        return max(one.since + self._bound, one.ask)

    def times(self) -> list[float]:
        """Return the readings of the clock at which there is something to do."""
        suspects = [one for found in self._suspects.values() for one in found.values()]
        inquiries = [inquiry.deadline for inquiry in self._inquiries]
        return [min(self._due(one), one.end) for one in suspects] + inquiries

    def forget(self, member: Member[Engine]) -> None:
        """Forget a replica that nobody uses any more."""
        self._suspects.pop(member, None)

    def asked(self, suspects: list[WaitingStatement], now: float) -> None:
        """Note that these are being asked about."""
        for one in suspects:
            one.ask = now + self._bound

    def judge(
        self,
        member: Member[Engine],
        suspects: list[WaitingStatement],
        backends: list[Backend] | None,
        now: float,
        *,
        well: bool,
    ) -> None:
        """Decide over waits, by what one server of a replica's address says.

        Args:
            member: The replica.
            suspects: The waits.
            backends: What the server does; None if none could be asked.
            now: The clock's reading.
            well: Whether new connections to the replica can be had.
        """
        if backends is None:
            return
        left = self._decide(member, suspects, backends, now)
        if not left:
            return
        if not well:
            self._condemn(left, now)
            return
        until = now + self._timeout
        inquiry = ActivityQuery(member.target, until, self._surroundings)
        self._inquiries[inquiry] = member, left
        inquiry.begin(self._done)

    def conclude(self, now: float) -> None:
        """Decide over waits whose inquiries are done, or have taken too long."""
        for inquiry, (member, suspects) in list(self._inquiries.items()):
            if inquiry.done or now >= inquiry.deadline:
                del self._inquiries[inquiry]
                inquiry.end()
                left = self._decide(member, suspects, list(inquiry.backends), now)
                self._condemn(left, now)

    def _decide(
        self,
        member: Member[Engine],
        suspects: list[WaitingStatement],
        backends: list[Backend],
        now: float,
    ) -> list[WaitingStatement]:
        """Return those of which this server knows nothing."""
        driver, left = member.target.dialect.driver, []
        for one in suspects:
            works = works_on(one.wait, one.sent, driver, backends)
            if works is None:
                left.append(one)
            elif works:
                one.ask = now + self._bound
            else:
                self._condemn([one], now)
        return left

    def _condemn(self, suspects: list[WaitingStatement], now: float) -> None:
        for one in suspects:
            one.end = now + _GRACE

    def _end(
        self,
        member: Member[Engine],
        replica: ReplicaServer,
        suspects: list[WaitingStatement],
    ) -> None:
        # First: who is released picks another replica at once.
        self._unfit(member, UnansweredError(member.name, len(suspects), self._bound))
        for one in suspects:
            replica.end(one.wait)

    def end(self) -> None:
        """End the inquiries."""
        for inquiry in self._inquiries:
            inquiry.end()

    def abandon(self) -> None:
        """Leave their connections to the parent of this process, for good."""
        for inquiry in self._inquiries:
            inquiry.abandon()
