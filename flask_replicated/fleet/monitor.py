"""The background check: does each replica answer, is it one, and how far behind is it?

The primary is probed too, for the position of its log: that is what a replica's lag is
measured by. One thread per pool and process keeps the schedule. Each probe runs in a
short-lived thread of its own, over a connection of its own, so a probe that hangs holds
up no other. No request waits for any of this.
"""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import random
import threading
import time
import weakref
from typing import TYPE_CHECKING, NamedTuple

from balancers import Member, Permit
from balancers.errors import UnknownMemberError, error_text
from flask_replicated.errors import (
    ReplicaLagsError,
    ReplicaSilentError,
    UnansweredError,
)
from flask_replicated.replica.failures import Verdict, judge_connect, refuses_but_lives
from flask_replicated.replica.fitness import unfit_error
from flask_replicated.replica.lag import share_for_lag
from flask_replicated.replica.primary_status import PrimaryStatus
from flask_replicated.settings.sqlite_files import uses_given_connection
from flask_replicated.system.log_lines import counted
from flask_replicated.system.threads import call_at_exit, start_thread

from .probe import PrimaryProbe, ProbeRun, ReplicaProbe
from .stuck_statements import StuckStatements

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy import Engine

    from balancers import Pool
    from flask_replicated.engine.primary_reads import PrimaryReads
    from flask_replicated.replica.connection_events import ReplicaServer
    from flask_replicated.replica.dbapi_connections import Surroundings

    from .outage_log import OutageLog
    from .stuck_statements import WaitingStatement

__all__ = ["Monitor", "MonitoredPool", "ProbePolicy"]

logger = logging.getLogger("flask_replicated")

_LATE = 0.05
"""Seconds that this process may wake up late before deadlines are moved."""
_GLANCE = 0.25
"""How long the monitor sleeps at most while runs are under way, as a part of their
time: if this process is suspended meanwhile, that much may be lost of it."""
_LATE_CHECKS = 3
"""How often a run is found late before another one is started beside it."""
_STUCK = 2
"""How many runs that hang may be left alone, for each member."""
_PAUSE = 1.0
"""Seconds that a replica is left alone when some of its connections were silent."""
_UNREACHED = 2
"""Runs in a row without a connection after which open connections are ended."""


def _nothing() -> None:
    pass


class ProbePolicy(NamedTuple):
    """What the monitor checks, and how often.

    Attributes:
        interval: Seconds between two probes of one replica; 0 for no probes at all.
        timeout: Seconds that a probe may take.
        max_lag: Seconds that a replica may be behind; None for any.
        role_check: Whether a server that is no replica is left out.
        probed_primary: The primary's engine, where that is probed as well; or None.
        primary_reads: The reads that wait for the primary.
        status: Receives what a probe of the primary has found.
        answer_timeout: Seconds that a statement may wait for an answer before its
            server is asked whether it works on it.
        surroundings: Returns the block to connect in.
        each_second: Called about every second, and at each probe.
        halved_at: Seconds of lag that halve a replica's share; None for any.
    """

    interval: float
    timeout: float
    max_lag: float | None
    role_check: bool
    probed_primary: Engine | None = None
    primary_reads: PrimaryReads | None = None
    status: PrimaryStatus | None = None
    answer_timeout: float = math.inf
    surroundings: Surroundings = contextlib.nullcontext
    each_second: Callable[[], object] = _nothing
    halved_at: float | None = None

    @property
    def compared_primary(self) -> Engine | None:
        """The primary's engine, where a replica may have to be compared with it."""
        return self.probed_primary if self.role_check else None


class MonitoredPool(NamedTuple):
    """What a monitor looks at, and whom it tells.

    Attributes:
        pool: The replicas; told what each probe finds.
        replicas: What is known of each replica's server, by name.
        policy: What to check.
        outages: Told why a replica is still out.
    """

    pool: Pool[Engine]
    replicas: Mapping[str, ReplicaServer]
    policy: ProbePolicy
    outages: OutageLog


class Monitor:
    """Probes each replica of one pool, and tells the pool what it finds.

    It starts with the first routed read of a process, or of a forked child, and stops
    when its owner is garbage-collected.

    Args:
        monitored: The pool, and what belongs to it.

    Attributes:
        idle: Whether to call :meth:`start`. A plain attribute, as it is read at each
            connect.
    """

    def __init__(self, monitored: MonitoredPool) -> None:
        self._monitored = monitored
        self._lock = threading.Lock()
        self._loop: _MonitorLoop | None = None
        # An async driver cannot be asked outside its event loop.
        members = monitored.pool.members
        blocking = not any(one.target.dialect.is_async for one in members)
        self._wanted = monitored.policy.interval > 0 and blocking
        self.idle = self._wanted

    def start(self, owner: object) -> None:
        """Start the thread, unless it runs already.

        Args:
            owner: The thread stops when this is garbage-collected.
        """
        with self._lock:
            if not self.idle:
                return
            self.idle = False
            self._loop = _MonitorLoop(self._monitored, owner)
            call_at_exit(self, Monitor.stop)
        if not start_thread("monitor", self._loop.run):
            logger.warning("replicas are not monitored: no thread could be started")

    def stop(self) -> None:
        """Stop the thread and close its connections; the next read starts it again."""
        with self._lock:
            ended, self._loop = self._loop, None
            self.idle = self._wanted
        if ended is not None:
            ended.stop()

    def after_fork(self) -> None:
        """In a child process, forget the parent's thread and sockets."""
        self._lock = threading.Lock()
        self._monitored.outages.lines.flushed = False
        if self._loop is not None:
            self._loop.abandon()
            # To drop a driver's connection might end it, for the parent too.
            _inherited.append(self._loop)
        self._loop = None
        self.idle = self._wanted


_inherited: list[_MonitorLoop] = []


class _Watched:
    """All that the monitor keeps of one replica, or of the primary.

    Attributes:
        member: The member of the pool; one that is in no pool for the primary.
        server: What takes care of its connections; None for the primary. It is kept
            after the member's removal, as long as its connections are in use.
        reads: The reads that wait for it, if it is the primary.
        probe: The connection to it; None before the first run.
        run: The run under way, unless it was left alone because it hangs.
        due: When the next run is due, by the monotonic clock; None while the member is
            not probed.
        stuck: How many runs were left alone and have not ended.
        unreached: Runs in a row that could not connect.
        unmeasured: Whether it was logged that it does not report its lag.
        share: Which part of its share it takes, for its lag.
    """

    def __init__(self, member: Member[Engine]) -> None:
        self.share = 1.0
        self.member = member
        self.server: ReplicaServer | None = None
        self.reads: PrimaryReads | None = None
        self.probe: ReplicaProbe | None = None
        self.run: ProbeRun | None = None
        self.due: float | None = None
        self.stuck = 0
        self.unreached = 0
        self.unmeasured = False

    @property
    def in_use(self) -> bool:
        """Whether a connection to it is in use."""
        one = self.connections
        return one is not None and one.in_use

    @property
    def connections(self) -> ReplicaServer | PrimaryReads | None:
        """What knows of its connections and can end them."""
        return self.server or self.reads

    def stop(self) -> None:
        """Close its connection, and begin anew should it be probed again."""
        self.due = self.server = None
        self.unreached = 0
        probe, self.probe = self.probe, None
        if probe is not None:
            probe.end()


class _MonitorLoop:
    """The running monitor: the schedule, and the conclusions from each probe.

    Args:
        monitored: The pool, and what belongs to it.
        owner: The loop ends when this is garbage-collected.
    """

    def __init__(self, monitored: MonitoredPool, owner: object) -> None:
        self._pool, self._replicas, policy, self._outages = monitored
        self._policy = policy
        self._owner = weakref.ref(owner)
        # By its module's name: it may be gevent's by now, and the class that was there
        # when this was imported would block every greenlet.
        self._done: queue.SimpleQueue[ProbeRun | None] = queue.SimpleQueue()
        self._known: dict[Member[Engine], _Watched] = {}
        self._stuck_statements = StuckStatements(
            policy.answer_timeout,
            policy.timeout,
            self._done,
            self._lose_some,
            policy.surroundings,
        )
        self._threadless = False
        self._stopped = self._abandoned = False
        self._next_step = math.inf  # when it is to begin, by the monotonic clock
        self._status = policy.status or PrimaryStatus()
        primary = policy.probed_primary
        self._primary = None if primary is None else Member("primary", primary, 1)
        self._primary_lost = False

    def stop(self) -> None:
        """Let run() return soon."""
        self._stopped = True
        self._done.put(None)

    def abandon(self) -> None:
        """In a forked child, where greenlets go on: do nothing any more.

        Nothing is sent to a server, because open connections belong to the parent. The
        greenlets do not end either: ``threading`` has forgotten them, and would
        complain. They wait forever.
        """
        self._stopped = self._abandoned = True
        self._stuck_statements.abandon()
        for one in self._known.values():
            if one.probe is not None:
                one.probe.abandon()

    def run(self) -> None:
        """Probe every replica again and again, until stopped."""
        run: ProbeRun | None = None
        self._outages.lines.flushed = True
        while not self._is_over():
            try:
                self._conclude_all(run)
                if self._is_over():
                    break
                wait = self._step()
            except Exception:
                logger.exception("the monitor of replicas has failed and goes on")
                wait = self._policy.interval
                self._next_step = time.monotonic() + wait
            try:
                run = self._done.get(timeout=wait)
            except queue.Empty:
                run = None
            self._next_step = min(self._next_step, time.monotonic())
        while self._abandoned:
            self._done.get()
        lines = self._outages.lines
        lines.flushed = False
        lines.flush(all_of_them=True)
        self._stuck_statements.end()
        for one in self._known.values():
            if one.probe is not None:
                one.probe.end()

    def _move_deadlines(self, late: float) -> None:
        """Give each run the time during which this process could not read answers.

        A process that was suspended, starved of CPU, or whose greenlets were blocked by
        a driver has not seen answers that may have arrived.

        Args:
            late: Seconds by which a step comes later than it was to come.
        """
        if late > _LATE:
            for one in self._known.values():
                if one.run is not None:
                    one.run.deadline += late

    def _is_over(self) -> bool:
        return self._stopped or self._owner() is None

    def _conclude_all(self, run: ProbeRun | None) -> None:
        """Conclude a run, and all others that have ended: none of these is late."""
        while True:
            if run is not None:
                self._conclude(run)
            try:
                run = self._done.get_nowait()
            except queue.Empty:
                return

    def _step(self) -> float:
        """Start what is due, give up what is late; return seconds to the next step."""
        now = time.monotonic()
        self._move_deadlines(now - self._next_step)
        self._policy.each_second()
        self._outages.lines.flush()
        self._stuck_statements.finish_queries(now)
        for one in list(self._known.values()):
            if one.run is not None and now >= one.run.deadline:
                self._give_up(one, one.run, now)
        watched = self._watched()
        self._forget_others(watched)
        for one in watched:
            due = self._schedule(one, now)
            waiting = self._stuck_statements.scan(one.member, one.connections, now)
            if one.run is None and (waiting or now >= due):
                self._start(one, now, waiting)
        times = [one.due for one in watched if one.run is None and one.due is not None]
        times += self._stuck_statements.deadlines()
        runs = [one.run for one in self._known.values() if one.run]
        times += [run.deadline for run in runs]
        if not all(run.late for run in runs):
            times.append(now + self._policy.timeout * _GLANCE)
        # At most a second, to notice that the owner is gone.
        self._next_step = max(now, min([*times, now + 1.0]))
        return self._next_step - now

    def _watched(self) -> list[_Watched]:
        """Return who is probed: the primary first, so that its position is known.

        Then the replicas in rotation, and those that have left it while a connection to
        them is in use.
        """
        found = [] if self._primary is None else [self._entry(self._primary)]
        for one in found:
            one.reads = self._policy.primary_reads
        spares = set(self._pool.spares)
        for member in self._pool.members:
            # Spare ones are not in use, and should cost no connection. A connection
            # that is shared would be closed by the probe, for everyone.
            if member in spares or uses_given_connection(member.target):
                continue
            one = self._entry(member)
            server = self._replicas.get(member.name)
            if (
                one.server is None
                and server is not None
                and server.is_of(member.target)
            ):
                one.server = server
            found.append(one)
        others = self._known.keys() - {one.member for one in found}
        left = [self._known[member] for member in others]
        return found + [one for one in left if one.due is not None and one.in_use]

    def _entry(self, member: Member[Engine]) -> _Watched:
        one = self._known.get(member)
        if one is None:
            one = self._known[member] = _Watched(member)
        return one

    def _forget_others(self, watched: list[_Watched]) -> None:
        """Stop probing what is not watched any more, once its run has ended."""
        in_pool = set(self._pool.members)
        for member in self._known.keys() - {one.member for one in watched}:
            one = self._known[member]
            if one.run is not None:
                continue
            if one.due is not None:
                self._stuck_statements.forget(member)
                one.stop()
            # A run that hangs counts, should the member come back into rotation.
            if member not in in_pool and not one.stuck:
                del self._known[member]

    def _schedule(self, one: _Watched, now: float) -> float:
        """Return when the next run of this one is due."""
        primary = one.member is self._primary
        if one.due is None:
            # Spread from the start: many workers begin at the same moment.
            one.due = now + (
                self._spread(0.0, 0.1) if primary else self._spread(0.1, 0.3)
            )
        if primary and self._status.wants_probe:
            one.due = now
        return one.due

    def _spread(self, least: float, most: float) -> float:
        return self._policy.interval * random.uniform(least, most)  # noqa: S311 - no secret

    def _start(
        self, one: _Watched, now: float, waiting: list[WaitingStatement]
    ) -> None:
        member = one.member
        one.due = now + self._spread(0.8, 1.2)
        if one.probe is None:
            one.probe = self._new_probe(one)
        if member is self._primary:
            permit, anew = Permit(0), self._status.doubted
        else:
            permit = self._pool.permit(member)
            # Only a new connection can tell whether an outage is over.
            anew = not permit.quiet
        one.probe.checks_former = one.in_use
        run = ProbeRun(one.probe, permit, now + self._policy.timeout, anew=anew)
        run.waiting = waiting
        self._stuck_statements.mark_asked(waiting, now)
        one.run, one.probe.running = run, True
        if not start_thread(f"probe of {member.name}", run.run, self._done):
            # That says nothing of the replica.
            one.run, one.probe.running = None, False
            if not self._threadless:
                logger.warning("no thread could be started to look at a replica")
            self._threadless = True

    def _new_probe(self, one: _Watched) -> ReplicaProbe:
        policy = self._policy
        if one.member is self._primary:
            return PrimaryProbe(one.member, policy.surroundings)
        history = None if one.server is None else one.server.history
        return ReplicaProbe(
            one.member, history, policy.compared_primary, policy.surroundings
        )

    def _give_up(self, one: _Watched, run: ProbeRun, now: float) -> None:
        """Take out a replica that is silent, and end the waits for its answers."""
        silence = ReplicaSilentError(one.member.name, self._policy.timeout)
        if one.member is self._primary:
            # A pooler lets a client wait when it has no server connection for it.
            pooled = isinstance(run.probe, PrimaryProbe) and run.probe.pooled
            self._lose_primary(silence, lives=pooled)
        else:
            self._take_out(one, silence)
        run.given_up += 1
        # Again each time: it may have been connecting before, and wait for an answer
        # now.
        run.probe.wake()
        # Reads that have begun to wait meanwhile are released the next time.
        lives = one.member is self._primary and not self._status.out
        if not (run.probe.former_answers or lives):
            self._release(one)
        run.deadline = now + self._policy.interval
        if run.given_up >= _LATE_CHECKS and one.stuck < _STUCK:
            # Nothing ends it. The next one may find the server well again.
            one.stuck += 1
            one.run = None
            one.probe = run.probe.successor()
            run.probe.end()
            one.due = now

    def _lose_some(self, member: Member[Engine], error: UnansweredError) -> None:
        """Take out a replica some of whose connections are silent; probe it soon.

        The last one stays: new connections to it work.
        """
        one = self._entry(member)
        if member is self._primary:
            if one.reads is not None:
                one.reads.retire_connections()
            logger.warning("the primary: %s", error)
            return
        if any(other is not member for other in self._pool.live):
            self._take_out(one, error)
            one.due = time.monotonic() + _PAUSE
            return
        if one.server is not None:
            one.server.retire_connections()
        logger.warning("replica %r: %s", member.name, error)

    def _release(self, one: _Watched) -> None:
        """End every connection to a replica, so that its reads go on elsewhere."""
        known = one.connections
        released = 0 if known is None else known.hang_up()
        if released and one.member is self._primary:
            logger.warning(
                "the primary does not answer: ended %s that waited for it, to go on "
                "elsewhere where that is safe. Writes are left alone",
                counted(released, "read"),
            )
        elif released:
            self._outages.lines.warn(
                "reads_released",
                "replica %r does not answer: ended %s to it, and reads there go on "
                "elsewhere where that is safe",
                one.member.name,
                "silent",
                counted(released, "connection"),
            )

    def _conclude(self, run: ProbeRun) -> None:
        """Tell the pool what a run has found."""
        one = self._known[run.member]
        if one.run is not run:
            one.stuck -= 1  # it was left alone, and another one started beside it
            return
        one.run = None
        reached = not isinstance(run.found, Exception)
        if reached:
            one.unreached = 0
            if one.server is not None:
                one.server.history.latency = run.seconds
        primary = one.member is self._primary
        fault = None if primary else self._fault(one, run)
        self._stuck_statements.judge(
            one.member, run.waiting, run.backends, time.monotonic(), well=reached
        )
        if primary:
            self._conclude_primary(one, run)
            return
        try:
            if fault is not None:
                self._take_out(one, fault)
                if fault is run.found and self._is_in_vain(one, run, fault):
                    self._release(one)
            elif reached and not run.late and not _needs_more_than_a_probe(one.server):
                self._note_fault(one, None)
                self._weigh(one, run)
                self._pool.recover(one.member, run.permit)
        except UnknownMemberError:  # it has been removed meanwhile
            pass

    def _weigh(self, one: _Watched, run: ProbeRun) -> None:
        """Let a replica take the part of its share that its lag allows."""
        halved_at = self._policy.halved_at
        if halved_at is None or isinstance(run.found, Exception):
            return
        share = share_for_lag(one.share, run.found.lag, halved_at)
        if share != one.share:
            one.share = share
            self._pool.reduce(one.member, share)

    def _is_in_vain(self, one: _Watched, run: ProbeRun, error: Exception) -> bool:
        """Whether open connections hang too, where a run could not connect.

        A server may refuse new connections and serve the open ones: it shuts down
        gracefully, or a load balancer drains it. An old connection of the probe tells,
        or the server itself. Where neither does, nothing answers there.
        """
        if run.probe.former_answers or not one.in_use:
            return False
        if run.seconds > 0.9 * self._policy.timeout:
            return True
        if refuses_but_lives(error):
            return False
        one.unreached += 1
        return one.unreached >= _UNREACHED

    def _conclude_primary(self, one: _Watched, run: ProbeRun) -> None:
        """Keep what the primary has reported."""
        report = run.probe.report if isinstance(run.probe, PrimaryProbe) else None
        if isinstance(run.found, Exception):
            if not run.late:
                self._lose_primary(run.found)
                # Requests rely on this to learn of its return.
                one.due = min(one.due or math.inf, time.monotonic() + _PAUSE)
                if self._status.out and self._is_in_vain(one, run, run.found):
                    self._release(one)
        elif report is not None:
            if self._status.record_probe(report):
                self._find_primary()
            else:
                self._lose_primary(ConnectionError("its address leads to a standby"))

    def _find_primary(self) -> None:
        if self._primary_lost:
            self._primary_lost = False
            logger.warning("the primary answers again")

    def _lose_primary(self, error: Exception, *, lives: bool = False) -> None:
        """Note that the primary cannot be asked, and say so once."""
        # One that is busy lives; so does one that does not know the account.
        lives = lives or judge_connect(error) is not Verdict.DOWN
        self._status.mark_unreachable(lives=lives)
        if not lives and not self._primary_lost:
            self._primary_lost = True
            logger.warning(
                "the primary does not answer the probe: %s. Until it does, "
                "replicas are not judged by what it has written since",
                error_text(error),
            )

    def _fault(self, one: _Watched, run: ProbeRun) -> Exception | None:
        """Return why a replica must not be used, if so."""
        found, policy = run.found, self._policy
        if isinstance(found, Exception):
            # A busy server lives; and how a late run ended says nothing new.
            verdict = judge_connect(found)
            return None if run.late or verdict is Verdict.BUSY else found
        fault = unfit_error(
            one.member.name,
            found,
            role_check=policy.role_check,
            max_lag=policy.max_lag,
        )
        unmeasured = fault is None and policy.max_lag is not None and not found.measured
        if unmeasured and not one.unmeasured:
            one.unmeasured = True
            what = "replica %r does not tell how far it is behind"
            lines = self._outages.lines
            lines.log(logging.INFO, "lag_unknown", what, one.member.name, None)
        return fault

    def _note_fault(self, one: _Watched, error: Exception | None) -> None:
        if one.server is not None:
            one.server.history.lags = isinstance(error, ReplicaLagsError)

    def _take_out(self, one: _Watched, error: Exception) -> None:
        self._note_fault(one, error)
        # Until the next run has ended, with something to spare.
        seconds = 1.5 * self._policy.interval + 2 * self._policy.timeout
        with contextlib.suppress(UnknownMemberError):
            if not self._pool.trip(one.member, seconds, error):
                self._outages.still_out(one.member.name, error)


def _needs_more_than_a_probe(server: ReplicaServer | None) -> bool:
    """Whether a replica is out for what no probe sees, as the server answers."""
    return server is not None and (server.storage_fails or server.pool_exhausted)
