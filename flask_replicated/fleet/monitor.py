"""The background check: does each replica answer, is it one, and how far behind?

The primary is asked, too, how far it has written: beside that a replica's lag counts.
One thread for each pool and process keeps the times; each look runs in a short-lived
thread of its own, over a connection of its own, so one that hangs holds up nothing.
A request waits for none of this.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import queue
import random
import threading
import time
import weakref
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakSet

from balancers import Member, Permit
from balancers.errors import UnknownMemberError, error_text
from flask_replicated.errors import (
    ReplicaLagsError,
    ReplicaSilentError,
    UnansweredError,
)
from flask_replicated.replica.failures import Verdict, judge_connect, refuses_but_lives
from flask_replicated.replica.fitness import unfit_error
from flask_replicated.replica.primary_status import PrimaryStatus
from flask_replicated.settings.sqlite_files import is_handed_one

from .probe import PrimaryProbe, ProbeRun, ReplicaProbe
from .stuck_statements import StuckStatements

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Engine

    from balancers import Pool
    from flask_replicated.replica.connection_events import ReplicaServer
    from flask_replicated.replica.dbapi_connections import Surroundings

    from .outage_log import OutageLog
    from .stuck_statements import WaitingStatement

__all__ = ["Monitor", "ProbePolicy"]

logger = logging.getLogger("flask_replicated")

_LATE = 0.05
"""Seconds that a process may wake too late before it doubts its own clock."""
_PATIENCE = 3
"""How often a look is given up before another one is begun beside it."""
_STUCK = 2
"""How many looks at one replica may be left to themselves."""
_REST = 1.0
"""Seconds without a replica some of whose connections were silent."""
_IN_VAIN = 2
"""After how many looks without a connection nobody waits for an answer any more."""


class ProbePolicy(NamedTuple):
    """What the monitor asks of a replica, and how often.

    Attributes:
        interval: Seconds between two looks at one replica; 0 for none at all.
        timeout: Seconds that a look may take.
        max_lag: Seconds that a replica may be behind; None for any.
        role_check: Whether a server that is no replica is left out.
        primary: The primary's engine, where it has to be asked for that; or None.
        watched: The primary's engine, where that is looked at as well; or None.
        status: Told what a look at the primary has found.
        bound: Seconds that a statement may wait for an answer before its server is
            asked whether it works on it.
        surroundings: Returns the block to connect in.
    """

    interval: float
    timeout: float
    max_lag: float | None
    role_check: bool
    primary: Engine | None = None
    watched: Engine | None = None
    status: PrimaryStatus | None = None
    bound: float = math.inf
    surroundings: Surroundings = contextlib.nullcontext


class Monitor:
    """Looks at each replica of one pool, and tells the pool.

    It begins with the first routed read of a process, or of a forked child, and ends
    with its owner.

    Args:
        pool: The replicas.
        replicas: What takes care of each replica's connections, by name.
        policy: What to ask of them.
        outages: Told why a replica is still out.

    Attributes:
        idle: Whether it should be started. Asked at each connect, so it costs nothing.
    """

    def __init__(
        self,
        pool: Pool[Engine],
        replicas: Mapping[str, ReplicaServer],
        policy: ProbePolicy,
        outages: OutageLog,
    ) -> None:
        self._pool = pool
        self._replicas = replicas
        self._policy = policy
        self._outages = outages
        self._lock = threading.Lock()
        self._round: _MonitorLoop | None = None
        # An async driver cannot be asked outside its event loop.
        blocking = not any(m.target.dialect.is_async for m in pool.members)
        self._wanted = policy.interval > 0 and blocking
        self.idle = self._wanted

    def start(self, owner: object) -> None:
        """Begin, unless it has begun already.

        Args:
            owner: It ends when nobody keeps this any more.
        """
        with self._lock:
            if not self.idle:
                return
            self.idle = False
            self._round = _MonitorLoop(
                self._pool, self._replicas, self._policy, self._outages, owner
            )
            _running.add(self)
        thread = threading.Thread(
            target=self._round.run, name="flask_replicated monitor", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:  # the interpreter is shutting down, or out of threads
            logger.warning("replicas are not monitored: no thread could be started")

    def stop(self) -> None:
        """End, close its connections, and begin again when there is a reason to."""
        with self._lock:
            ended, self._round = self._round, None
            self.idle = self._wanted
        if ended is not None:
            ended.stop()

    def after_fork(self) -> None:
        """Forget, in a child process, what is the parent's: its thread, its sockets."""
        self._lock = threading.Lock()
        if self._round is not None:
            self._round.abandon()
            # To drop a driver's connection might end it, for the parent too.
            _inherited.append(self._round)
        self._round = None
        self.idle = self._wanted


_inherited: list[_MonitorLoop] = []
_running: WeakSet[Monitor] = WeakSet()


@atexit.register
def _stop_all() -> None:
    for monitor in list(_running):
        monitor.stop()


class _MonitorLoop:
    """The running monitor: a schedule, and what it makes of each look."""

    def __init__(
        self,
        pool: Pool[Engine],
        replicas: Mapping[str, ReplicaServer],
        policy: ProbePolicy,
        outages: OutageLog,
        owner: object,
    ) -> None:
        self._pool = pool
        self._replicas = replicas
        self._policy = policy
        self._outages = outages
        self._owner = weakref.ref(owner)
        # By its module's name: it may be gevent's by now, and the class that was there
        # when this was imported would hold up every greenlet.
        self._done: queue.SimpleQueue[ProbeRun | None] = queue.SimpleQueue()
        self._looks: dict[Member[Engine], ProbeRun] = {}
        self._probes: dict[Member[Engine], ReplicaProbe] = {}
        self._due: dict[Member[Engine], float] = {}
        # Also of those that were removed, as long as somebody waits for them.
        self._cared: dict[Member[Engine], ReplicaServer] = {}
        self._stuck: Counter[Member[Engine]] = Counter()
        self._unreached: Counter[Member[Engine]] = Counter()
        self._unmeasured: WeakSet[Member[Engine]] = WeakSet()
        self._watch = StuckStatements(
            policy.bound,
            policy.timeout,
            self._done,
            self._lose_some,
            policy.surroundings,
        )
        self._threadless = False
        self._stopped = self._abandoned = False
        self._status = policy.status or PrimaryStatus()
        watched = policy.watched
        # In no pool: nobody picks it.
        self._primary = None if watched is None else Member("primary", watched, 1)
        self._primary_lost = False

    def stop(self) -> None:
        """Let run() return soon."""
        self._stopped = True
        self._done.put(None)

    def abandon(self) -> None:
        """Do nothing any more in a forked child, where greenlets go on.

        Nothing is sent to a server: what is open belongs to the parent. Nor do they
        end, for ``threading`` has forgotten them and would say so; they wait for
        nothing.
        """
        self._stopped = self._abandoned = True
        self._watch.abandon()
        for probe in self._probes.values():
            probe.abandon()

    def run(self) -> None:
        """Look at every replica again and again."""
        look: ProbeRun | None = None
        while not self._stopped and self._owner() is not None:
            try:
                if look is not None:
                    self._conclude(look)
                wait = self._step()
            except Exception:
                logger.exception("the monitor of replicas has failed and goes on")
                wait = self._policy.interval
            asleep = time.monotonic()
            try:
                look = self._done.get(timeout=wait)
            except queue.Empty:
                look = None
            self._forgive(time.monotonic() - asleep - wait)
        while self._abandoned:
            self._done.get()
        self._watch.end()
        for probe in self._probes.values():
            probe.end()

    def _forgive(self, seconds: float) -> None:
        """Hold no silence against a replica while which nobody here could listen.

        A process that is stopped, starved, or whose greenlets a driver holds up, has
        not heard the answer that may be there.
        """
        if seconds > _LATE:
            for look in self._looks.values():
                look.deadline += seconds

    def _step(self) -> float:
        """Begin what is due, give up what is late; return seconds to the next step."""
        now = time.monotonic()
        self._watch.conclude(now)
        for look in list(self._looks.values()):
            if now >= look.deadline:
                self._give_up(look, now)
        members = self._watched()
        for gone in self._due.keys() - members - self._looks.keys():
            self._forget(gone)
        if self._primary is not None:
            # First, so that replicas are seen beside it.
            self._due.setdefault(self._primary, now + self._spread(0.0, 0.1))
            if self._status.wants_look:
                self._due[self._primary] = now
        for member in members:
            # Spread from the start: many workers begin in one moment.
            due = self._due.setdefault(member, now + self._spread(0.1, 0.3))
            suspects = self._watch.see(member, self._cared.get(member), now)
            if member not in self._looks and (suspects or now >= due):
                self._begin(member, now, suspects)
        times = [self._due[m] for m in members if m not in self._looks]
        times += self._watch.times()
        times += [look.deadline for look in self._looks.values()]
        # An owner that is gone is noticed within a second.
        return max(0.0, min([*times, now + 1.0]) - now)

    def _watched(self) -> set[Member[Engine]]:
        """Return those in use, and those that have gone while somebody has them."""
        # Spare ones are not in use, and should cost no connection. One that is shared
        # would be closed by the look, for everybody.
        members = {
            member
            for member in set(self._pool.members) - set(self._pool.spares)
            if not is_handed_one(member.target)
        }
        for member in members - self._cared.keys():
            replica = self._replicas.get(member.name)
            if replica is not None and replica.is_of(member.target):
                self._cared[member] = replica
        if self._primary is not None:
            members.add(self._primary)
        gone = self._due.keys() - members
        return members | {one for one in gone if self._is_waited_for(one)}

    def _is_waited_for(self, member: Member[Engine]) -> bool:
        replica = self._cared.get(member)
        return replica is not None and replica.in_use

    def _forget(self, gone: Member[Engine]) -> None:
        del self._due[gone]
        self._cared.pop(gone, None)
        del self._unreached[gone]
        self._watch.forget(gone)
        probe = self._probes.pop(gone, None)
        if probe is not None:
            probe.end()

    def _spread(self, least: float, most: float) -> float:
        return self._policy.interval * random.uniform(least, most)  # noqa: S311 - no secret

    def _begin(
        self, member: Member[Engine], now: float, suspects: list[WaitingStatement]
    ) -> None:
        self._due[member] = now + self._spread(0.8, 1.2)
        probe = self._probes.get(member)
        if probe is None:
            probe = self._probes[member] = self._new_probe(member)
        if member is self._primary:
            permit, anew = Permit(0), self._status.doubted
        else:
            permit = self._pool.permit(member)
            # Only a new connection can tell whether an outage is over.
            anew = not permit.quiet
        probe.heeds = self._is_waited_for(member)
        look = ProbeRun(probe, permit, now + self._policy.timeout, anew=anew)
        look.suspects = suspects
        self._watch.asked(suspects, now)
        thread = threading.Thread(
            target=look.run,
            args=(self._done,),
            name=f"flask_replicated look at {member.name}",
            daemon=True,
        )
        self._looks[member], probe.looking = look, True
        try:
            thread.start()
        except RuntimeError:  # no more threads: that says nothing of the replica
            del self._looks[member]
            probe.looking = False
            if not self._threadless:
                logger.warning("no thread could be started to look at a replica")
            self._threadless = True

    def _new_probe(self, member: Member[Engine]) -> ReplicaProbe:
        if member is self._primary:
            return PrimaryProbe(member, self._policy.surroundings)
        replica = self._cared.get(member)
        history = None if replica is None else replica.history
        return ReplicaProbe(
            member, history, self._policy.primary, self._policy.surroundings
        )

    def _give_up(self, look: ProbeRun, now: float) -> None:
        """Take out a replica that says nothing, and release who waits for it."""
        member = look.member
        silence = ReplicaSilentError(member.name, self._policy.timeout)
        if member is self._primary:
            # A pooler lets wait whom it has no connection for.
            pooled = isinstance(look.probe, PrimaryProbe) and look.probe.pooled
            self._lose_primary(silence, lives=pooled)
        else:
            self._unfit(member, silence)
        look.given_up += 1
        # Again and again: it may have been connecting, and wait for an answer by now.
        look.probe.wake()
        # Whoever has begun to wait meanwhile is released at the next word.
        if not look.probe.serves:
            self._release(member)
        look.deadline = now + self._policy.interval
        if look.given_up >= _PATIENCE and self._stuck[member] < _STUCK:
            # Nothing ends it. The next one may find the server well again.
            self._stuck[member] += 1
            del self._looks[member]
            self._probes[member] = look.probe.successor()
            look.probe.end()
            self._due[member] = now

    def _lose_some(self, member: Member[Engine], error: UnansweredError) -> None:
        """Take out a replica some of whose connections are silent; look soon.

        The last one stays: new connections to it are well.
        """
        if any(other is not member for other in self._pool.live):
            self._unfit(member, error)
            self._due[member] = time.monotonic() + _REST
            return
        replica = self._cared.get(member)
        if replica is not None:
            replica.retire_connections()
        logger.warning("replica %r: %s", member.name, error)

    def _release(self, member: Member[Engine]) -> None:
        replica = self._cared.get(member)
        released = replica.hang_up() if replica is not None else 0
        if released:
            logger.warning(
                "replica %r does not answer: %d connections to it were ended, and "
                "their reads go on elsewhere where that is safe",
                member.name,
                released,
            )

    def _conclude(self, look: ProbeRun) -> None:
        """Tell the pool what a look has found."""
        if self._looks.get(look.member) is not look:
            # It was left to itself, and another was begun beside it.
            self._stuck[look.member] -= 1
            if self._stuck[look.member] <= 0:
                del self._stuck[look.member]
            return
        del self._looks[look.member]
        if look.member is self._primary:
            self._hear_primary(look)
            return
        fault = self._fault(look)
        reached = not isinstance(look.found, Exception)
        if reached:
            del self._unreached[look.member]
        self._watch.judge(
            look.member, look.suspects, look.backends, time.monotonic(), well=reached
        )
        try:
            if fault is not None:
                self._unfit(look.member, fault)
                if fault is look.found and self._is_in_vain(look, fault):
                    self._release(look.member)
            elif not (
                look.late
                or isinstance(look.found, Exception)
                or self._ails(look.member)
            ):
                self._note_fault(look.member, None)
                self._pool.recover(look.member, look.permit)
        except UnknownMemberError:  # it has been removed meanwhile
            pass

    def _is_in_vain(self, look: ProbeRun, error: Exception) -> bool:
        """Whether older connections hang as well, where a look could not connect.

        A server may turn new ones away and serve those it has: it shuts down and lets
        them finish, or is drained by what balances. An old one of the look's own tells,
        or the server itself. Where neither does, nothing answers there.
        """
        if look.probe.serves or not self._is_waited_for(look.member):
            return False
        if look.seconds > 0.9 * self._policy.timeout:
            return True
        if refuses_but_lives(error):
            return False
        self._unreached[look.member] += 1
        return self._unreached[look.member] >= _IN_VAIN

    def _ails(self, member: Member[Engine]) -> bool:
        """Whether it takes more than an answer to say that a replica is well."""
        replica = self._cared.get(member)
        return replica is not None and (replica.storage_fails or replica.pool_exhausted)

    def _hear_primary(self, look: ProbeRun) -> None:
        """Keep what the primary has said of itself."""
        answer = look.probe.answer if isinstance(look.probe, PrimaryProbe) else None
        if isinstance(look.found, Exception):
            if not look.late:
                self._lose_primary(look.found)
        elif answer is not None:
            if self._status.heard(answer):
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
        self._status.lost(lives=lives)
        if not lives and not self._primary_lost:
            self._primary_lost = True
            logger.warning(
                "the primary does not answer the background look: %s. Until it does, "
                "replicas are not judged by what it has written since",
                error_text(error),
            )

    def _fault(self, look: ProbeRun) -> Exception | None:
        """Return why a replica must not be used, if so."""
        found = look.found
        if isinstance(found, Exception):
            # One that is busy lives; and how a late look ended says nothing more.
            verdict = judge_connect(found)
            return None if look.late or verdict is Verdict.BUSY else found
        policy = self._policy
        fault = unfit_error(
            look.member.name,
            found,
            role_check=policy.role_check,
            max_lag=policy.max_lag,
        )
        if fault is None and policy.max_lag is not None and not found.measured:
            self._say_unmeasured(look.member)
        return fault

    def _say_unmeasured(self, member: Member[Engine]) -> None:
        if member not in self._unmeasured:
            self._unmeasured.add(member)
            logger.info("replica %r does not tell how far it is behind", member.name)

    def _note_fault(self, member: Member[Engine], error: Exception | None) -> None:
        replica = self._cared.get(member)
        if replica is not None:
            replica.history.lags = isinstance(error, ReplicaLagsError)

    def _unfit(self, member: Member[Engine], error: Exception) -> None:
        self._note_fault(member, error)
        # Until the next word, with something to spare.
        seconds = 1.5 * self._policy.interval + 2 * self._policy.timeout
        with contextlib.suppress(UnknownMemberError):
            if not self._pool.trip(member, seconds, error):
                self._outages.still_out(member.name, error)
