"""Releases statements that wait for an answer which will never come.

A firewall may drop some connections and not others; of several servers behind one
address, one may hang. A probe over its own connection sees nothing of that. So once a
statement has waited for long, its server is asked whether it works on it.
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
    from typing import TypeAlias

    from sqlalchemy import Engine

    from balancers import Member
    from flask_replicated.engine.primary_reads import PrimaryReads
    from flask_replicated.replica.activity import Backend
    from flask_replicated.replica.connection_events import ReplicaServer
    from flask_replicated.replica.dbapi_connections import Surroundings
    from flask_replicated.replica.in_flight import PendingAnswer

    _Connections: TypeAlias = ReplicaServer | PrimaryReads

__all__ = ["StuckStatements", "WaitingStatement"]

_SLOW = 0.2
"""Seconds without traffic after which an answer is slow."""
_MEMORY = 5.0
"""Seconds for which a replica that was slow is taken to be slow."""
_GRACE = 0.25
"""Seconds for an answer that may be under way when its server has done its work."""


@dataclass(eq=False)
class WaitingStatement:
    """A statement that waits for an answer; times are by the monotonic clock.

    Attributes:
        pending: The wait as it was first seen.
        since: When something was last sent or received.
        sent: When something was last sent.
        ask_at: When to ask its server, if it has waited for long.
        end_at: When to end its connection, if it still waits.
    """

    pending: PendingAnswer
    since: float
    sent: float
    ask_at: float = 0.0
    end_at: float = math.inf


class StuckStatements:
    """Watches the statements that wait on a pool's replicas. For one thread.

    Args:
        bound: Seconds that a statement may wait before its server is asked, and again
            before it is asked once more.
        timeout: Seconds for an activity query.
        done: Receives something when an activity query is done.
        take_out: Told which replica must not be used for a while, and why, before its
            waiting statements are released.
        surroundings: Returns the block to connect in.
    """

    def __init__(
        self,
        bound: float,
        timeout: float,
        done: SimpleQueue[Any],
        take_out: Callable[[Member[Engine], UnansweredError], None],
        surroundings: Surroundings,
    ) -> None:
        self._bound = bound
        self._timeout = timeout
        self._done = done
        self._take_out = take_out
        self._surroundings = surroundings
        # By the connection, and what it has received: with more it is another wait.
        self._waiting: dict[
            Member[Engine], dict[tuple[int, int], WaitingStatement]
        ] = {}
        self._queries: dict[
            ActivityQuery, tuple[Member[Engine], list[WaitingStatement]]
        ] = {}

    def scan(
        self, member: Member[Engine], server: _Connections | None, now: float
    ) -> list[WaitingStatement]:
        """See which statements wait, and end those whose time has come.

        Returns:
            The statements that the server is to be asked about.
        """
        known, found = self._waiting.pop(member, {}), {}
        for pending in () if server is None else server.pending_answers():
            key = (id(pending.connection), pending.received)
            one = known.get(key)
            if one is None:
                one = WaitingStatement(
                    pending, now - pending.silent, now - pending.sent
                )
            found[key] = one
        if not found or server is None:
            return []
        if any(now - one.since >= _SLOW for one in found.values()):
            server.slow_until = now + _MEMORY
        self._waiting[member] = found
        ended = [one for one in found.values() if now >= one.end_at]
        if ended:
            self._end(member, server, ended)
        return [one for one in found.values() if now >= self._due(one)]

    def _due(self, one: WaitingStatement) -> float:
        return max(one.since + self._bound, one.ask_at)

    def deadlines(self) -> list[float]:
        """Return the times at which there is something to do."""
        waiting = [one for found in self._waiting.values() for one in found.values()]
        queries = [query.deadline for query in self._queries]
        return [min(self._due(one), one.end_at) for one in waiting] + queries

    def forget(self, member: Member[Engine]) -> None:
        """Forget a replica that is not used any more."""
        self._waiting.pop(member, None)

    def mark_asked(self, waiting: list[WaitingStatement], now: float) -> None:
        """Note that a server is being asked about these."""
        for one in waiting:
            one.ask_at = now + self._bound

    def judge(
        self,
        member: Member[Engine],
        waiting: list[WaitingStatement],
        backends: list[Backend] | None,
        now: float,
        *,
        well: bool,
    ) -> None:
        """Decide over statements, by what one server of a replica's address says.

        Args:
            member: The replica.
            waiting: The statements.
            backends: What the server does; None if none could be asked.
            now: The time.
            well: Whether the replica takes new connections.
        """
        if backends is None:
            return
        left = self._decide(member, waiting, backends, now)
        if not left:
            return
        if not well:
            _end_soon(left, now)
            return
        until = now + self._timeout
        query = ActivityQuery(member.target, until, self._surroundings)
        self._queries[query] = member, left
        query.begin(self._done)

    def finish_queries(self, now: float) -> None:
        """Decide over statements whose activity queries are done or have timed out."""
        for query, (member, waiting) in list(self._queries.items()):
            if query.done or now >= query.deadline:
                del self._queries[query]
                query.connections.end()
                left = self._decide(member, waiting, list(query.backends), now)
                _end_soon(left, now)

    def _decide(
        self,
        member: Member[Engine],
        waiting: list[WaitingStatement],
        backends: list[Backend],
        now: float,
    ) -> list[WaitingStatement]:
        """Return the statements of which these backends know nothing."""
        driver, left = member.target.dialect.driver, []
        for one in waiting:
            works = works_on(one.pending, one.sent, driver, backends)
            if works is None:
                left.append(one)
            elif works:
                one.ask_at = now + self._bound
            else:
                _end_soon([one], now)
        return left

    def _end(
        self,
        member: Member[Engine],
        server: _Connections,
        waiting: list[WaitingStatement],
    ) -> None:
        # First: a read that is released picks another replica at once.
        self._take_out(member, UnansweredError(member.name, len(waiting), self._bound))
        for one in waiting:
            server.end_connection(one.pending)

    def end(self) -> None:
        """End the activity queries."""
        for query in self._queries:
            query.connections.end()

    def abandon(self) -> None:
        """In a forked child, leave their connections to the parent process."""
        for query in self._queries:
            query.connections.abandon()


def _end_soon(waiting: list[WaitingStatement], now: float) -> None:
    for one in waiting:
        one.end_at = now + _GRACE
