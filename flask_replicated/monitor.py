"""The background check: does each replica answer, is it one, and how far behind?

One thread for each pool and process keeps the times; each look runs in a short-lived
thread of its own, over a connection of its own, so one that hangs holds up nothing.
A request waits for none of this.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import random
import threading
import time
import weakref
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakSet

from balancers.errors import UnknownMember, error_text

from .connecting import unlimited
from .errors import ReplicaLagsError, ReplicaSilentError, WrongRoleError
from .failures import Verdict, judge_connect
from .positions import Observation, observer_of, sees_it_answer
from .sockets import hang_up

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy import Engine

    from balancers import Member, Permit, Pool

    from .positions import Observer
    from .replicas import Replica

__all__ = ["Monitor", "Policy"]

logger = logging.getLogger("flask_replicated")


class Policy(NamedTuple):
    """What the monitor asks of a replica, and how often.

    Attributes:
        interval: Seconds between two looks at one replica; 0 for none at all.
        timeout: Seconds that a look may take.
        max_lag: Seconds that a replica may be behind; None for any.
        role_check: Whether a server that is no replica is left out.
    """

    interval: float
    timeout: float
    max_lag: float | None
    role_check: bool


class _Look:
    """One look at one replica, in a thread of its own.

    Attributes:
        member: The replica.
        permit: What the breaker knew when it began.
        deadline: The clock's reading at which it is given up; after that, at which
            this is said again.
        late: Whether it was given up.
        found: What it saw, or the error.
    """

    def __init__(
        self, probe: _Probe, permit: Permit, deadline: float, *, anew: bool
    ) -> None:
        self.member = probe.member
        self.permit = permit
        self.deadline = deadline
        self.late = False
        self.found: Observation | Exception = Observation()
        self._probe = probe
        self._anew = anew

    def run(self, done: SimpleQueue[_Look | None]) -> None:
        """Look, then say so."""
        probe = self._probe
        try:
            self.found = probe.look(anew=self._anew)
        except Exception as error:  # noqa: BLE001 - drivers raise what they like
            self.found = error
        # In this order, and the other way round in end(): whichever thread comes
        # second sees that it has to close the connection.
        probe.looking = False
        if probe.over:
            probe.close()
        done.put(self)


class _Probe:
    """The monitor's own connection to one replica.

    It is kept from one look to the next. Where only a new one can vouch for the
    server (after an outage), or keeping one costs more than it saves (a file), it is
    opened anew.

    Attributes:
        member: The replica.
        looking: Whether a look goes on.
        over: Whether nobody will look any more.
    """

    def __init__(self, member: Member[Engine]) -> None:
        self.member = member
        engine = member.target
        # The pool's own way to a new connection, past the pool: the same driver and
        # options, and nobody who counts the application's connections sees this one.
        pool: Any = engine.pool
        self._connect: Callable[[], Any] = pool._creator  # noqa: SLF001 - its one name
        self._observe = observer_of(engine.dialect.name)
        self._keep = engine.dialect.name != "sqlite"
        self._connection: Any = None
        self.looking = self.over = False

    def look(self, *, anew: bool) -> Observation:
        """Ask the server."""
        if anew:
            self.close()
        kept = self._connection is not None
        try:
            return self._ask()
        except Exception:
            self.close()
            if not kept:
                raise
        return self._ask()  # the kept one may just have been old

    def _ask(self) -> Observation:
        if self._connection is None:
            with unlimited():
                self._connection = self._connect()
        connection = self._connection
        try:
            found = _asked(connection, self._observe)
        except Exception:  # noqa: BLE001 - should it have died, the next line says so
            # A server that lives need not know what it is asked, nor may the account.
            connection.rollback()
            found = _asked(connection, sees_it_answer)
        connection.rollback()  # or it would stay idle in a transaction
        if not self._keep:
            self.close()
        return found

    def close(self) -> None:
        """Close the connection, if there is one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.close()

    def end(self) -> None:
        """Close the connection for good; a look that goes on does it when it ends."""
        self.over = True
        if self.looking:
            self.wake()
        else:
            self.close()

    def wake(self) -> None:
        """End a look that hangs, if it waits on a socket that can be known."""
        connection = self._connection
        if connection is not None:
            hang_up(connection)


def _asked(connection: Any, observe: Observer) -> Observation:
    cursor = connection.cursor()
    try:
        return observe(cursor)
    finally:
        cursor.close()


class Monitor:
    """Looks at each replica of one pool, and tells the pool.

    It begins with the first routed read of a process, or of a forked child, and ends
    with its owner.

    Args:
        pool: The replicas.
        replicas: What takes care of each replica's connections, by name.
        policy: What to ask of them.

    Attributes:
        idle: Whether it should be started. Asked at each connect, so it costs nothing.
    """

    def __init__(
        self, pool: Pool[Engine], replicas: Mapping[str, Replica], policy: Policy
    ) -> None:
        self._pool = pool
        self._replicas = replicas
        self._policy = policy
        self._lock = threading.Lock()
        self._round: _Round | None = None
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
            self._round = _Round(self._pool, self._replicas, self._policy, owner)
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
            # To drop a driver's connection might end it, for the parent too.
            _inherited.append(self._round)
        self._round = None
        self.idle = self._wanted


_inherited: list[_Round] = []
_running: WeakSet[Monitor] = WeakSet()


@atexit.register
def _stop_all() -> None:
    for monitor in list(_running):
        monitor.stop()


class _Round:
    """The running monitor: a schedule, and what it makes of each look."""

    def __init__(
        self,
        pool: Pool[Engine],
        replicas: Mapping[str, Replica],
        policy: Policy,
        owner: object,
    ) -> None:
        self._pool = pool
        self._replicas = replicas
        self._policy = policy
        self._owner = weakref.ref(owner)
        self._done: SimpleQueue[_Look | None] = SimpleQueue()
        self._looks: dict[Member[Engine], _Look] = {}
        self._probes: dict[Member[Engine], _Probe] = {}
        self._due: dict[Member[Engine], float] = {}
        self._unmeasured: set[str] = set()
        self._stopped = False

    def stop(self) -> None:
        """Let run() return soon."""
        self._stopped = True
        self._done.put(None)

    def run(self) -> None:
        """Look at every replica again and again."""
        look: _Look | None = None
        while not self._stopped and self._owner() is not None:
            try:
                if look is not None:
                    self._conclude(look)
                wait = self._step()
            except Exception:
                logger.exception("the monitor of replicas has failed and goes on")
                wait = self._policy.interval
            try:
                look = self._done.get(timeout=wait)
            except Empty:
                look = None
        for probe in self._probes.values():
            probe.end()

    def _step(self) -> float:
        """Begin what is due, give up what is late; return seconds to the next step."""
        now = time.monotonic()
        # Spare ones are not in use, and should cost no connection.
        spares = self._pool.spares
        members = [one for one in self._pool.members if one not in spares]
        for gone in self._due.keys() - set(members) - self._looks.keys():
            del self._due[gone]
            probe = self._probes.pop(gone, None)
            if probe is not None:
                probe.end()
        for member in members:
            # Spread from the start: many workers begin in one moment.
            due = self._due.setdefault(member, now + self._spread(0.5, 1.0))
            look = self._looks.get(member)
            if look is not None:
                if now >= look.deadline:
                    self._give_up(look, now)
            elif now >= due:
                self._begin(member, now)
        times = [self._due[m] for m in members if m not in self._looks]
        times += [look.deadline for look in self._looks.values()]
        # An owner that is gone is noticed within a second.
        return max(0.0, min([*times, now + 1.0]) - now)

    def _spread(self, least: float, most: float) -> float:
        return self._policy.interval * random.uniform(least, most)  # noqa: S311 - no secret

    def _begin(self, member: Member[Engine], now: float) -> None:
        self._due[member] = now + self._spread(0.8, 1.2)
        probe = self._probes.get(member)
        if probe is None:
            probe = self._probes[member] = _Probe(member)
        # Only a new connection can tell whether an outage is over.
        permit = self._pool.permit(member)
        look = _Look(probe, permit, now + self._policy.timeout, anew=not permit.quiet)
        self._looks[member] = look
        probe.looking = True
        threading.Thread(
            target=look.run,
            args=(self._done,),
            name=f"flask_replicated look at {member.name}",
            daemon=True,
        ).start()

    def _give_up(self, look: _Look, now: float) -> None:
        """Take out a replica that says nothing, and release who waits for it."""
        self._unfit(
            look.member, ReplicaSilentError(look.member.name, self._policy.timeout)
        )
        if not look.late:
            look.late = True
            self._probes[look.member].wake()
        # Whoever has begun to wait meanwhile is released at the next word.
        self._release(look.member)
        look.deadline = now + self._policy.interval

    def _release(self, member: Member[Engine]) -> None:
        replica = self._replicas.get(member.name)
        released = replica.hang_up() if replica is not None else 0
        if released:
            logger.warning(
                "replica %r does not answer: %d connections to it were ended, and "
                "their reads go on elsewhere where that is safe",
                member.name,
                released,
            )

    def _conclude(self, look: _Look) -> None:
        """Tell the pool what a look has found."""
        if self._looks.get(look.member) is not look:
            return
        del self._looks[look.member]
        fault = self._fault(look)
        try:
            if fault is not None:
                self._unfit(look.member, fault)
                if fault is look.found and judge_connect(fault) is Verdict.DOWN:
                    # Where a connect failed, older connections may hang.
                    self._release(look.member)
            elif not (
                look.late
                or isinstance(look.found, Exception)
                or self._ails(look.member)
            ):
                self._pool.recover(look.member, look.permit)
        except UnknownMember:  # it has been removed meanwhile
            pass

    def _ails(self, member: Member[Engine]) -> bool:
        """Whether it takes more than an answer to say that a replica is well."""
        replica = self._replicas.get(member.name)
        return replica is not None and replica.ails

    def _fault(self, look: _Look) -> Exception | None:
        """Return why a replica must not be used, if so."""
        name, found = look.member.name, look.found
        if isinstance(found, Exception):
            # One that is busy lives; and how a late look ended says nothing more.
            verdict = judge_connect(found)
            return None if look.late or verdict is Verdict.BUSY else found
        if found.primary and self._policy.role_check:
            return WrongRoleError(name)
        limit = self._policy.max_lag
        if limit is None:
            return None
        if not found.measured:
            self._say_unmeasured(name)
            return None
        if found.lag is None or found.lag > limit:
            return ReplicaLagsError(name, found.lag, limit)
        return None

    def _say_unmeasured(self, name: str) -> None:
        if name not in self._unmeasured:
            self._unmeasured.add(name)
            logger.info("replica %r does not tell how far it is behind", name)

    def _unfit(self, member: Member[Engine], error: Exception) -> None:
        # Until the next word, with something to spare.
        seconds = 1.5 * self._policy.interval + 2 * self._policy.timeout
        with contextlib.suppress(UnknownMember):
            news = self._pool.trip(member, seconds, error)
            if news and judge_connect(error) is Verdict.MISCONFIGURED:
                logger.error(
                    "replica %r is not configured right: %s",
                    member.name,
                    error_text(error),
                )
