"""The pool of replicas as one engine, which picks one and fails over.

``Session`` and Core only ever call ``connect()`` on an engine, and then know the
connection by its real engine. So a replica is picked, and failed over, exactly where a
connection is made: before any statement was sent, and not where only a dialect is asked
for.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from os import getpid
from typing import TYPE_CHECKING

from sqlalchemy.exc import TimeoutError  # noqa: A004 - not the built-in one

from balancers.errors import NoMemberAvailableError, error_text
from flask_replicated.consistency.guarantees import current_guarantees
from flask_replicated.errors import ReplicaSilentError, UnfitReplicaError
from flask_replicated.replica.admission import accept_any_lag
from flask_replicated.replica.dbapi_connections import UnpooledConnections
from flask_replicated.replica.failures import Verdict, cause_of, judge_connect
from flask_replicated.replica.host_lookup import poll_in_loop
from flask_replicated.routing.decision import BEHIND, SPENT

from .capacity import ReplicaCapacity, is_full
from .events import raised_by_listener
from .facade import ReplicasFacade, shown_by
from .fallback import ConnectFailures, Fallback
from .freshness import Freshness
from .lacking import LackingLog
from .picked_engine import MeasuredEngine, PickedEngine
from .primary_engine import PrimaryEngine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sqlalchemy import Connection, Engine

    from balancers import Member, Permit
    from flask_replicated.consistency.positions import LogPosition
    from flask_replicated.consistency.tokens import Token
    from flask_replicated.replica.connection_events import ReplicaServer
    from flask_replicated.routing.request_state import RequestState
    from flask_replicated.routing.snapshots import ReplicaPool

    from .facade import RoutedFacade
    from .replica_connection import ReplicaConnection

__all__ = ["ReplicaPoolEngine"]

logger = logging.getLogger("flask_replicated")

_POLL = 0.01
"""Seconds between two questions to a replica that is waited for."""
_PAUSE = 1.0
"""Seconds for which a replica with no connection to spare is left alone."""


class ReplicaPoolEngine(ReplicasFacade):
    """The pool of replicas as one engine: ``connect()`` picks and fails over.

    Args:
        replica_pool: The replicas.
        routed: The engine that they are part of.
        servers: What is known of each replica's server, by name; kept up to date.

    Attributes:
        lacking: Tells of replicas that go on lacking what reads name.
    """

    dispatch = shown_by("routed.listeners", "dispatch")  # as the primary's

    def __init__(
        self,
        replica_pool: ReplicaPool,
        routed: RoutedFacade,
        servers: Mapping[str, ReplicaServer],
    ) -> None:
        self.replica_pool = replica_pool
        self.reads = routed.reads
        self.routed = routed
        self.lacking = LackingLog(routed.outages.setting)
        self._servers = servers
        settings = routed.app.settings
        self._capacity = ReplicaCapacity(
            replica_pool,
            servers,
            settings.balancer,
            max_exhausted=settings.connect_timeout,
            longest=settings.breaker_max_reset,
            bind=routed.outages.setting,
        )
        primary = PrimaryEngine(routed.real, routed, self)
        self._fallback = Fallback(
            self,
            primary,
            servers,
            status=routed.status,
            outages=routed.outages,
            connect_to=self._connect_to,
        )
        self._logged = self._fallback.logged
        self._picked: dict[Member[Engine], PickedEngine] = {}
        members = replica_pool.members
        # A fleet keeps this up to date.
        super().__init__(members[0].target if members else routed.real)

    def connect(self) -> Connection:
        """Connect to this request's replica, or pick one; try each once.

        Raises:
            AllReplicasOutError: None took the connection within
                ``REPLICATED_FAILOVER_TIMEOUT``, and the settings leave nothing else.
        """
        routed, failures = self.routed, None
        if routed.monitor.idle or routed.fleet.idle or routed.app.process != getpid():
            routed.wake()
        state = routed.app.request_state()
        kept = None if state is None else state.kept.get(self)
        fresh, block = None, current_guarantees.get()
        if block is not None or (state and state.may_demand):
            fresh = self._freshness(state, block)
        member = self._first(kept, state, fresh)
        while member is not None:
            picked = self._picked.get(member) or self._add_picked(member)
            permit = picked.permit()
            try:
                connection = picked.connect()
            except Exception as error:  # noqa: BLE001 - a creator may raise anything
                cause, busy = self._report_failure(member, error, permit)
                routed.incidents.failed_over(member.name, word := cause_of(error))
                if busy and member is kept and failures is None:
                    return self._without_kept(state)
                failures = failures or self._begin_failover(member)
                failures.add(member.name, cause, busy=busy, word=word)
                member = next(failures.others, None)
                continue
            if not permit.quiet or self._logged or self._capacity.exhausted:
                self._report_success(member, permit)
            if not (
                fresh is None
                or fresh.is_shown_by(connection)
                or _is_met(fresh, member, connection)
            ):
                connection.close()
                failures = failures or self._begin_failover(member, fresh)
                failures.add_behind(member.name)
                # Another could show less than the request has read from its own.
                member = None if member is kept else next(failures.others, None)
                continue
            if state is not None and failures is not None:
                state.kept[self] = member
            connection.state, connection.fresh_in = state, block
            if fresh is not None:
                connection.met = fresh.demand
            return connection
        return self._without_replicas(failures, state, fresh)

    def _first(
        self,
        kept: Member[Engine] | None,
        state: RequestState | None,
        fresh: Freshness | None,
    ) -> Member[Engine] | None:
        """Return the replica to try first: the request's own, or one that has room."""
        behind = state is not None and state.latched is BEHIND
        if fresh is not None and (behind or fresh.demand.primary):
            return None
        pool = self.replica_pool
        if kept is None:
            try:
                first = pool.pick()
            except NoMemberAvailableError:
                return None
        else:
            found = pool.first(kept)
            if found is None or found is kept:
                return found
            first = found
        if fresh is not None and fresh.demand.replica:
            first = fresh.preferred(first, pool.live)
        first = self._capacity.choose(first)
        if state is None:
            return first
        if kept is None:
            # Another thread or task of the request may have picked meanwhile.
            return state.kept.setdefault(self, first)
        state.kept[self] = first  # before it is connected to: for the others
        return first

    def _begin_failover(
        self, first: Member[Engine], fresh: Freshness | None = None
    ) -> ConnectFailures:
        """Return what takes failures and has the replicas to try after the first one.

        Args:
            first: The one that did not serve.
            fresh: What it does not show; those that are known to show it come first.
        """
        failures = ConnectFailures(self.routed.app.settings.failover_timeout)
        others = self._others(first, failures)
        failures.others = others if fresh is None else fresh.known_first(others)
        return failures

    def _others(
        self, first: Member[Engine], failures: ConnectFailures
    ) -> Iterator[Member[Engine]]:
        """Return the replicas to try after the first one: those that have room.

        Last a full one, to wait for its connection; not if the first one was waited for
        already.

        Args:
            first: The one that has failed.
            failures: What came of those that were tried; takes those that are full.
        """
        waits, full = not failures.busy, []
        for member in self.replica_pool.others(first):
            if failures.over:
                return
            if is_full(member.target):
                self._capacity.note_full(member, self.replica_pool.permit(member))
                failures.skip_full(member.name)
                full.append(member)
            else:
                yield member
        if waits and not failures.over:
            yield from full[:1]

    def _report_success(self, member: Member[Engine], permit: Permit) -> None:
        """Tell the breaker that a connect succeeded, and the operator."""
        self.replica_pool.succeeded(member, permit)
        self._capacity.note_connected(member)
        self._fallback.note_served()

    def _report_failure(
        self, member: Member[Engine], error: Exception, permit: Permit
    ) -> tuple[str, bool]:
        """Tell the breaker that a connect failed.

        Returns:
            Why, without passwords; and whether the replica is only busy.

        Raises:
            Exception: It did connect, and a listener of the program has failed.
        """
        if raised_by_listener(error, member.target):
            self._report_success(member, permit)
            raise error
        cause = error_text(error)
        if isinstance(error, TimeoutError):  # load, not death
            if is_full(member.target):
                self._capacity.note_full(member, permit)
            return cause, True
        verdict = judge_connect(error)
        # A silence may be that of one server of several: it counts as a failure.
        unfit = isinstance(error, UnfitReplicaError)
        unfit = unfit and not isinstance(error, ReplicaSilentError)
        if verdict is Verdict.MISCONFIGURED or unfit:
            # The server itself has said so: once is enough.
            reset = self.routed.app.settings.breaker_reset
            self.replica_pool.trip(member, reset, error)
            return cause, False
        if verdict is Verdict.BUSY:
            self.replica_pool.pause(member, _PAUSE, error, permit)
        else:
            self.replica_pool.failed(member, error, permit)
        return cause, verdict is Verdict.BUSY

    def _without_kept(self, state: RequestState | None) -> Connection:
        """Connect to the primary: the request's replica lives, and is too busy.

        Another replica could show an older state than this request has seen.
        """
        if state is not None:
            state.latch(SPENT)
        return self._fallback.primary.connect()

    def _without_replicas(
        self,
        failures: ConnectFailures | None,
        state: RequestState | None,
        fresh: Freshness | None,
    ) -> Connection:
        """Connect where a read goes that no replica has taken."""
        if fresh is None:
            return self._fallback.connect(failures, state)
        if failures is not None and failures.behind:
            waited_for = self._wait(failures, state, fresh)
            if waited_for is not None:
                return waited_for
        connection = self._fallback.connect(failures, state, demands=True)
        if not fresh.is_impossible(connection):
            return connection
        # A token claims more than the primary has ever had: it cannot be read.
        if not self.routed.app.ignore(self.routed.bind, state) or state is None:
            return connection
        connection.close()
        state.unlatch(BEHIND)
        return self.connect()

    def _wait(
        self, failures: ConnectFailures, state: RequestState | None, fresh: Freshness
    ) -> Connection | None:
        """Wait for a replica to show what the read must see; None if none does.

        A request waits once: afterwards it stays on the primary.
        """
        seconds = self.routed.app.settings.wait
        waited = state is not None and state.waited
        behind = [
            member
            for member in self.replica_pool.live
            if member.name in failures.behind and not is_full(member.target)
        ]
        # A token without a signature could be forged to let requests wait.
        signed = bool(self.routed.app.keys())
        if not (seconds and behind and signed) or waited:
            return None
        if state is not None:
            state.waited = True
        until = min(time.monotonic() + seconds, failures.until)
        member = fresh.nearest(behind)
        connection = self._connect_to(member)
        if connection is None:
            return None
        met = partial(_is_met, fresh, member, connection)
        poll = poll_in_loop if connection.dialect.is_async else _poll
        if not poll(met, until):
            connection.close()
            return None
        if state is not None:
            state.kept[self] = member
        return connection

    def still_serves(self, read: ReplicaConnection) -> bool:
        """Whether an open transaction shows what the next read in it must be shown.

        A block that was entered since it began may ask for more.

        Args:
            read: Its connection.
        """
        block = current_guarantees.get()
        if read.fresh_in is block:
            return True
        state = self.routed.app.request_state()
        fresh = None
        if block is not None or (state and state.may_demand):
            fresh = self._freshness(state, block)
        if fresh is not None:
            # An old snapshot does not show what its server has got since.
            if read.sent and not read.may_be_continued:
                shown = fresh.is_met_by_snapshot(read.member, read.met)
            else:
                shown = not fresh.demand.primary and fresh.is_met(read.member, read)
            if not shown:
                return False
        read.fresh_in = block
        return True

    def _freshness(self, state: RequestState | None, block: object) -> Freshness | None:
        """Return what a read must be shown; None if any replica will do."""
        carried = None if state is None or block is not None else state.positions
        if state is None or carried is None or state.pending.has_news:
            return self._find_freshness(state)
        derived: dict[object, Freshness | None] = carried.derived
        try:
            return derived[self]
        except KeyError:
            return derived.setdefault(self, self._find_freshness(state, carried.token))

    def _find_freshness(
        self, state: RequestState | None, carried: Token | None = None
    ) -> Freshness | None:
        """Return the same, found out anew.

        Args:
            state: Of the running request, or None.
            carried: What its client carries, if that is all.
        """
        routed = self.routed
        demand = routed.app.demand(routed.bind, routed.rules, state, carried)
        if demand is None:
            return None
        note = None
        if demand.monotonic and state is not None:
            note = partial(state.note_seen, routed.bind)
        return Freshness(demand, routed.known, self.ask_primary, note)

    def ask_primary(self) -> LogPosition | None:
        """Ask the primary for its position; None if it does not tell.

        It waits for no connection: this request may have the last one itself.
        """
        known, real = self.routed.known, self.routed.real
        if not known.may_ask_primary:
            return None
        try:
            if is_full(real):
                with UnpooledConnections().connect(real) as driver:
                    return known.ask_primary(driver)
            with self.routed.primary.connect() as connection:
                return known.of_primary(connection)
        except Exception:
            logger.debug("the primary cannot be asked", exc_info=True)
            return None

    @property
    def primary_is_out(self) -> bool:
        """Whether it is known that the primary does not answer now."""
        return self._fallback.primary_is_out

    def note_primary_failure(self) -> None:
        """Note that the primary could not be reached in place of a replica."""
        self._fallback.note_primary_failure()

    def _connect_to(self, member: Member[Engine]) -> Connection | None:
        """Connect to one replica that is out, whatever its lag; None if that fails."""
        picked = self._picked.get(member) or self._add_picked(member)
        permit = picked.permit()
        token = accept_any_lag.set(True)
        try:
            return picked.connect()
        except Exception as error:  # noqa: BLE001 - a creator may raise anything
            self._report_failure(member, error, permit)
            return None
        finally:
            accept_any_lag.reset(token)

    def _add_picked(self, member: Member[Engine]) -> PickedEngine:
        """Return what connects to a replica that was not picked before."""
        self.forget_removed()
        feedback = member.feedback
        picked = self._picked[member] = (
            PickedEngine(member, self)
            if feedback is None
            else MeasuredEngine(member, self, feedback)
        )
        return picked

    def forget_removed(self) -> None:
        """Let go of replicas that have been removed."""
        there = self.replica_pool.members
        self._picked = {m: one for m, one in self._picked.items() if m in there}

    def release(self, member: Member[Engine]) -> None:
        """Let the running request go on with another replica."""
        state = self.routed.app.request_state()
        if state is not None and state.kept.get(self) is member:
            del state.kept[self]


def _poll(ready: Callable[[], bool], until: float) -> bool:
    """Wait for something; return whether it has come true in time.

    Args:
        ready: Returns whether it has.
        until: When to give up, by the monotonic clock.
    """
    while not ready():
        if time.monotonic() >= until:
            return False
        time.sleep(_POLL)
    return True


def _is_met(fresh: Freshness, member: Member[Engine], connection: Connection) -> bool:
    """Whether a replica meets a demand; its connection is closed if that fails."""
    try:
        return fresh.is_met(member, connection)
    except BaseException:
        connection.invalidate()  # an answer may be on its way
        connection.close()
        raise
