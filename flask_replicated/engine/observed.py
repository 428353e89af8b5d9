"""The engines of ``REPLICATED_MODE = 'observe'``: all leads to the primary.

Routing decides as in the other mode. A session has one connection for what would have
gone to the primary and what would have gone to a replica, and that connection counts
both.
"""

from __future__ import annotations

import time
from os import getpid
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy.sql.elements import SavepointClause

from flask_replicated.consistency.guarantees import current_guarantees
from flask_replicated.routing.decision import (
    ALL_OUT,
    BEHIND,
    BY_NAME,
    MODEL,
    OUTSIDE,
    OWN_WRITE,
    PINNED,
    Decision,
    Role,
    observed,
)
from flask_replicated.routing.housekeeping import Sent
from flask_replicated.routing.observation import quietly
from flask_replicated.sql.text import Kind

from .connections import asked_for, for_role
from .engines import RoutedEngine
from .facade import Alias
from .primary_connection import PrimaryConnection
from .primary_engine import PrimaryEngine
from .replica_pool_engine import ReplicaPoolEngine

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Connection, Engine
    from sqlalchemy.engine import ExecutionContext

    from flask_replicated.routing.observation import Observation
    from flask_replicated.routing.request_state import RequestState

    from .freshness import Freshness

__all__ = ["ObservedEngine"]


class _ObservedConnection(PrimaryConnection):
    """A connection to the primary that knows what a replica would have served.

    Args:
        engine: The primary's engine.
        facade: The replicas, so that a session uses it for them, too.
        role: What it was opened for.

    Attributes:
        replica_reads: Whether its transaction has read what a replica would serve.
        mixed: Whether it has written after that.
    """

    only_reads = False  # so a lost one is lost, as without this extension
    facade: _ObservedReplicas
    replica_reads = mixed = False

    def __init__(self, engine: Engine, facade: _ObservedReplicas, role: Role) -> None:
        self._opened_for = role
        super().__init__(engine, facade)

    def _begin_noted(self, begin: Any) -> Any:
        self.replica_reads = self.mixed = False
        return super()._begin_noted(begin)

    def _kind_of(self, statement: Any) -> Kind | None:
        kind = self.facade.routed.classify(statement)
        if kind is Kind.READ:
            unnoted = self.preparing or isinstance(statement, SavepointClause)
            return None if unnoted else kind
        if self._is_core and self._opened_for is Role.REPLICA and kind >= Kind.LOCK:
            self.facade.routed.refuse(statement, "connected to a replica", "connection")
        return kind

    @property
    def _is_core(self) -> bool:
        """Whether the program has connected itself, so that one server serves all."""
        return isinstance(self.engine, Alias)

    def note_sent(self, sql: str, context: ExecutionContext) -> None:
        """Note what is about to be sent, to whichever server it would have been."""
        if self.pending_kind is Kind.READ:
            state = self.facade.routed.app.request_state()
            decision = self._why_replica(sql, context, state)
            if decision is not None:
                self.pending_kind = None
                if not self.replica_reads:
                    self.replica_reads = True
                    self._count_read(decision, state)
                return
        super().note_sent(sql, context)

    def _why_replica(
        self, sql: str, context: ExecutionContext, state: RequestState | None
    ) -> Decision | None:
        """Return what would have brought a read to a replica; None if nothing."""
        asked = asked_for(context)
        known = None if state is None else state.decision
        if self.explicit or (self._is_core and self._opened_for is Role.PRIMARY):
            return None
        if self._is_core:
            by_name = BY_NAME[Role.REPLICA]
            return asked or (for_role(known, by_name) if known else by_name)
        if asked is None and not self.has_local_changes:
            names_primary = self.facade.routed.app.names_primary_table
            asked = None if known is None or names_primary(sql) else known
        return asked if asked is not None and asked.role is Role.REPLICA else None

    def _count_read(self, decision: Decision, state: RequestState | None) -> None:
        """Count a read that a replica would have served, if it was up to date."""
        held = None
        with quietly():
            held = self.facade.judge(state)
        reads = self.facade.routed.reads
        kept = None if state is None else state.reads
        if held is None:
            reads.on_primary(observed(decision), kept)
            return
        reads.on_primary(held, kept, begins=not self.has_sent)
        self.has_sent = True

    def _why(self, context: ExecutionContext, state: RequestState | None) -> Decision:
        """Return what would have brought a read to the primary."""
        if self.explicit:
            return BY_NAME[Role.PRIMARY]
        asked, decision = asked_for(context), OUTSIDE
        if asked is not None:
            return asked
        if state is not None:
            stronger = OWN_WRITE if self.has_local_changes else MODEL
            decision = for_role(state.decision, stronger)
        if decision is PINNED and not self.has_sent:
            with quietly():
                self.facade.compare(state)
        return decision

    def _note_write(self, sql: str, context: ExecutionContext, *, sure: bool) -> None:
        routed = self.facade.routed
        if sure and not routed.app.is_unpinned(sql, self.dialect):
            state = routed.app.request_state()
            routed.observation.note_written(state, Sent(sql, self.dialect.name))
            if self.replica_reads and not self.mixed:
                self.mixed = True
                routed.observation.note_mixed()
        super()._note_write(sql, context, sure=sure)

    def committed(self, *, sent: bool = True) -> None:
        """Report what is visible now, and to whose writes that is due."""
        written = [Sent(sql, self.dialect.name) for sql in self.written]
        super().committed(sent=sent)
        if written:
            routed = self.facade.routed
            routed.observation.note_pin(routed.app.request_state(), written)


class _ObservedPrimary(PrimaryEngine):
    """The primary, for what would have gone to a server of one role.

    Attributes:
        role: The role.
    """

    role = Role.PRIMARY

    def connect(self) -> Connection:
        """Connect to the primary."""
        routed = self.routed
        if routed.fleet.idle or routed.app.process != getpid():
            routed.wake()
        return super().connect()

    def _connection_cls(self, _engine: Engine) -> PrimaryConnection:  # type: ignore[override]  # called like the class that it is in Engine
        replicas = cast("_ObservedReplicas", self.routed.replicas)
        return _ObservedConnection(self.real, replicas, self.role)


class _PrimaryForReplicas(_ObservedPrimary):
    """The primary in place of replicas."""

    role = Role.REPLICA


class _ObservedReplicas(ReplicaPoolEngine):
    """The replicas, if there are any: the primary serves in their place."""

    routed: ObservedEngine

    def connect(self) -> Connection:
        """Connect to the primary."""
        return _PrimaryForReplicas(self.routed.real, self.routed).connect()

    def judge(self, state: RequestState | None) -> Decision | None:
        """Return why no replica would serve a read now; None if one would.

        If one would have to be asked, it counts as what it is likely to answer.
        """
        if state is not None and state.latched in {BEHIND, ALL_OUT}:
            return state.decision
        pool, block, fresh = self.replica_pool, current_guarantees.get(), None
        if pool.members and not pool.live:
            return _latched(state, ALL_OUT)
        if block is not None or (state and state.may_demand):
            fresh = self._freshness(state, block)
        if fresh is None:
            return None
        if fresh.demand.primary:
            return _latched(state, BEHIND)
        age = self._age(state)
        shown = _any(fresh.likely_met(one, age) for one in pool.live)
        self.routed.observation.note_demand(shown=shown)
        if shown is not False or self._waits(state, fresh, age):
            return None
        return _latched(state, BEHIND)

    def _waits(
        self, state: RequestState | None, fresh: Freshness, age: float | None
    ) -> bool:
        """Whether a read would wait for a replica (``REPLICATED_WAIT``), not in vain.

        A request waits once, and its later reads go to the same replica.
        """
        seconds = self.routed.app.settings.wait
        if age is None or not seconds or not self.routed.app.keys():
            return False
        if state is not None and state.waited:
            return True
        later = age + seconds
        live = self.replica_pool.live
        met = bool(_any(fresh.likely_met(one, later) for one in live))
        if state is not None:
            state.waited = met
        return met

    def compare(self, state: RequestState | None) -> None:
        """Note whether a replica would have been up to date for a pinned client."""
        age, known = self._age(state), self.routed.known
        shown = None
        if age is not None:
            live = self.replica_pool.live
            shown = _any(known.likely_shows(one, age) for one in live)
        self.routed.observation.note_demand(shown=shown)

    def _age(self, state: RequestState | None) -> float | None:
        """Return how long ago the client has written; None if it has not."""
        if state is None:
            return None
        mark = state.carried()[0].of(self.routed.bind)
        at = max(mark.untold, mark.at)
        return time.time() - at if at else None


def _any(answers: Iterable[bool | None]) -> bool | None:
    """Return True if any answer is; else False, or None if all are unknown."""
    known = [one for one in answers if one is not None]
    return any(known) if known else None


def _latched(state: RequestState | None, reason: str) -> Decision:
    if state is not None:
        state.latch(reason)
        return state.decision
    return Decision(Role.PRIMARY, reason, "fallback")


class ObservedEngine(RoutedEngine):
    """A bind whose reads are only observed.

    Attributes:
        observation: What is counted.
    """

    primary_class = _ObservedPrimary
    replicas_class = _ObservedReplicas

    @property
    def observation(self) -> Observation:
        """What is counted."""
        return cast("Observation", self.app.observation)

    def refuse(self, statement: object, why: str, cause: str) -> None:
        """Note a write that would have been refused; it is sent to the primary."""
        del statement, why, cause
        self.observation.note_refused()
