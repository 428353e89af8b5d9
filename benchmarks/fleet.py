"""A fleet of workers and replicas, as a discrete-event simulation.

Each worker has a real :class:`balancers.Pool`, driven by a clock that jumps from event
to event. The servers, the network and the visitors are models; what picks, fails over,
opens, tries again and starts slowly is the code that an application runs.

A replica has some slots, each of which executes one query at a time; the others queue,
first come, first served. A query's work is drawn from a lognormal distribution: most
are short, a few are many times as long. While its caches are cold each query takes
longer, ever less so the more it has served. A new connection costs work, too.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from balancers import Pool
from balancers.strategies import BALANCERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from balancers import Member, Permit

__all__ = ["Fleet", "Plan", "Record", "Replica", "State"]

State = Literal["up", "refusing", "silent", "failing"]
"""Whether a replica serves; turns connections away; takes them and says nothing; or
answers every query with an error, at once."""


@dataclass(frozen=True)
class Plan:
    """The numbers of a fleet.

    Attributes:
        replicas: How many there are.
        slots: Queries that one executes at a time.
        workers: Processes, each with a pool of its own.
        threads: Requests that a worker serves at a time; the others queue.
        load: What is asked for, as a part of what all replicas can do.
        work: Seconds of one query on a warm replica, on average.
        spread: Sigma of their lognormal distribution.
        cold: How many times as long the first query after a restart takes.
        warm: Queries after which a replica is nearly warm.
        connect: Seconds of a replica's work for one new connection.
        trip: Seconds of the network, there and back.
        connect_timeout: Seconds.
        read_timeout: Seconds after which a silent replica is given up.
        probe: Seconds between two probes of a replica by a worker; 0 for none.
        balancer: Of each pool: a name, or a class of strategies.
        pool: More for ``Pool``.
        seconds: How long it runs.
    """

    replicas: int = 6
    slots: int = 4
    workers: int = 24
    threads: int = 8
    load: float = 0.4
    work: float = 0.005
    spread: float = 1.0
    cold: float = 7.0
    warm: float = 1000.0
    connect: float = 0.003
    trip: float = 0.0005
    connect_timeout: float = 2.0
    read_timeout: float = 5.0
    probe: float = 5.0
    balancer: Any = "round_robin"
    pool: Mapping[str, Any] = field(
        default_factory=lambda: {"threshold": 2, "reset": 1.0, "max_reset": 30.0}
    )
    seconds: float = 40.0

    def changed(self, **changes: Any) -> Plan:
        """Return this plan with some other numbers; ``pool`` is added to."""
        pool = {**self.pool, **changes.pop("pool", {})}
        return replace(self, **changes, pool=pool)

    @property
    def rate(self) -> float:
        """Requests in a second, of the whole fleet."""
        return self.load * self.replicas * self.slots / self.work


class Replica:
    """A server that executes queries, a few at a time.

    Attributes:
        name: Its name in each pool.
        state: What it does at present.
        factor: How many times as long its queries take.
        late: Seconds that each answer takes longer, without work.
        served: Queries since its last start; infinity if it has always been warm.
        attempts: How often it was asked in each tenth of a second.
        answers: How often it has answered well, likewise.
        opened: How many connections were opened, likewise.
        connections: How many are open.
        most_connections: The most there were.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.state: State = "up"
        self.factor = 1.0
        self.late = 0.0
        self.served = math.inf
        self.busy = 0
        self.starts = 0
        self.queue: deque[_Request] = deque()
        self.attempts: Counter[int] = Counter()
        self.answers: Counter[int] = Counter()
        self.opened: Counter[int] = Counter()
        self.connections = 0
        self.most_connections = 0


class Record:
    """One request that was answered.

    Attributes:
        began: When it came.
        seconds: From then to its answer, all waits included.
        attempts: How many replicas it has tried.
        server: Who answered; empty for the primary.
    """

    __slots__ = ("attempts", "began", "seconds", "server")

    def __init__(
        self, began: float, seconds: float, attempts: int, server: str
    ) -> None:
        self.began = began
        self.seconds = seconds
        self.attempts = attempts
        self.server = server


class _Worker:
    __slots__ = ("busy", "idle", "pool", "queue")

    def __init__(self, pool: Pool[Replica]) -> None:
        self.pool = pool
        self.busy = 0
        self.queue: deque[_Request] = deque()
        # By replica: idle connections, and the start of the server they belong to.
        self.idle: dict[Replica, tuple[int, int]] = {}


class _Request:
    __slots__ = (
        "attempts",
        "began",
        "feedback",
        "fresh",
        "member",
        "others",
        "permit",
        "since",
        "work",
        "worker",
    )

    worker: _Worker
    member: Member[Replica]
    permit: Permit
    others: Iterator[Member[Replica]] | None
    feedback: Any

    def __init__(self, worker: _Worker, began: float, work: float) -> None:
        self.worker = worker
        self.began = began
        self.work = work
        self.attempts = 0
        self.others = None
        self.fresh = False
        self.since = began


class Fleet:
    """Replicas, workers and visitors; :meth:`run` lets time pass.

    Args:
        plan: Its numbers.
        seed: Of all chance. Arrivals and work are the same for every balancer.

    Attributes:
        replicas: The servers.
        records: The requests, in the order of their answers.
        now: Seconds since the beginning.
        probes: How many were sent.
    """

    def __init__(self, plan: Plan, seed: int = 1) -> None:
        self.plan = plan
        self.now = 0.0
        self.records: list[Record] = []
        self.probes = 0
        self._chance = random.Random(seed)
        self._seed = seed
        self._order = itertools.count()
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.replicas = [Replica(f"slave_{n + 1}") for n in range(plan.replicas)]
        self._unwell: set[Replica] = set()
        self._workers: list[_Worker] = []
        self._open: set[_Request] = set()
        mean = math.log(plan.work) - plan.spread**2 / 2
        self._draw_work: Callable[[], float] = partial(
            self._chance.lognormvariate, mean, plan.spread
        )

    def _clock(self) -> float:
        return self.now

    def at(self, when: float, what: Callable[..., None], *args: Any) -> None:
        """Let something happen at a time."""
        heapq.heappush(self._events, (when, next(self._order), what, args))

    def run(self) -> Fleet:
        """Let the plan's seconds pass, and return this fleet."""
        kept = random.getstate()
        random.seed(self._seed)  # strategies and breakers use the shared generator
        try:
            self._begin()
            while self._events and self._events[0][0] < self.plan.seconds:
                self.now, _, what, args = heapq.heappop(self._events)
                what(*args)
        finally:
            random.setstate(kept)
        return self

    def _begin(self) -> None:
        plan, targets = self.plan, {one.name: one for one in self.replicas}
        for _ in range(plan.workers):
            balancer = _strategy(plan.balancer, self._clock)
            pool = Pool(targets, balancer=balancer, clock=self._clock, **plan.pool)
            self._workers.append(_Worker(pool))
        self.at(0.0, self._arrive)
        if plan.probe:
            for worker in self._workers:
                self.at(random.random() * plan.probe, self._probe, worker)

    def waiting(self, since: float) -> list[float]:
        """Return how long requests have waited so far that have no answer yet.

        Args:
            since: Only those that came at this time or later.
        """
        return [self.now - one.began for one in self._open if one.began >= since]

    # What strikes, and ends.

    def set_state(self, number: int, state: State) -> None:
        """Let a replica serve no more, or again."""
        replica = self.replicas[number]
        replica.state = state
        self._unwell.add(replica)
        if state == "refusing":
            replica.starts += 1
            replica.connections = replica.busy = 0
            lost, replica.queue = replica.queue, deque()
            for request in lost:
                self._lost(request, "connection reset")

    def cool(self, number: int) -> None:
        """Let a replica's caches be cold."""
        self.replicas[number].served = 0.0

    def slow_down(self, number: int, factor: float = 1.0, late: float = 0.0) -> None:
        """Let a replica's queries take longer from now on."""
        self.replicas[number].factor = factor
        self.replicas[number].late = late

    # Visitors and workers.

    def _arrive(self) -> None:
        worker = self._workers[int(self._chance.random() * len(self._workers))]
        request = _Request(worker, self.now, self._draw_work())
        self._open.add(request)
        if worker.busy < self.plan.threads:
            worker.busy += 1
            self._start(request)
        else:
            worker.queue.append(request)
        self.at(self.now + self._chance.expovariate(self.plan.rate), self._arrive)

    def _start(self, request: _Request) -> None:
        self._attempt(request, request.worker.pool.first())

    def _attempt(self, request: _Request, member: Member[Replica] | None) -> None:
        if member is None:  # the primary answers
            self.at(self.now + self.plan.trip + request.work, self._end, request, "")
            return
        replica, worker, plan = member.target, request.worker, self.plan
        request.member, request.since = member, self.now
        request.attempts += 1
        request.permit = worker.pool.permit(member)
        request.feedback = getattr(member, "feedback", None)
        if request.feedback is not None:
            request.feedback.started()
        replica.attempts[int(self.now * 10)] += 1
        start, idle = worker.idle.get(replica, (0, 0))
        request.fresh = start != replica.starts or not idle
        if not request.fresh:
            worker.idle[replica] = start, idle - 1
        if replica.state == "up":
            self._reach(replica, request)
        elif replica.state == "silent":
            wait = plan.connect_timeout if request.fresh else plan.read_timeout
            self.at(self.now + wait, self._lost, request, "timeout")
        else:
            self.at(self.now + plan.trip, self._lost, request, replica.state)

    def _lost(self, request: _Request, cause: str) -> None:
        error, pool = ConnectionError(cause), request.worker.pool
        if request.feedback is not None:
            request.feedback.finished(self.now - request.since, error)
        if cause != "failing":  # an error of a statement is none of a connect
            pool.failed(request.member, error, request.permit)
        if request.others is None:
            request.others = pool.others(request.member)
        self._attempt(request, next(request.others, None))

    def _end(self, request: _Request, server: str) -> None:
        took = self.now - request.began
        self._open.discard(request)
        self.records.append(Record(request.began, took, request.attempts, server))
        worker = request.worker
        if worker.queue:
            self._start(worker.queue.popleft())
        else:
            worker.busy -= 1

    # Replicas.

    def _reach(self, replica: Replica, request: _Request) -> None:
        if request.fresh:
            replica.connections += 1
            replica.opened[int(self.now * 10)] += 1
            most = max(replica.most_connections, replica.connections)
            replica.most_connections = most
        if replica.busy < self.plan.slots:
            self._execute(replica, request)
        else:
            replica.queue.append(request)

    def _execute(self, replica: Replica, request: _Request) -> None:
        plan = self.plan
        replica.busy += 1
        cold = 1.0
        if replica.served < 8 * plan.warm:
            cold += (plan.cold - 1.0) * math.exp(-replica.served / plan.warm)
        replica.served += 1
        work = request.work * replica.factor * cold + request.fresh * plan.connect
        self.at(self.now + work, self._executed, replica, request, replica.starts)

    def _executed(self, replica: Replica, request: _Request, start: int) -> None:
        if start != replica.starts:  # it has died meanwhile
            self._lost(request, "connection reset")
            return
        replica.busy -= 1
        if replica.queue:
            self._execute(replica, replica.queue.popleft())
        self.at(
            self.now + replica.late + self.plan.trip, self._answered, replica, request
        )

    def _answered(self, replica: Replica, request: _Request) -> None:
        worker = request.worker
        start, idle = worker.idle.get(replica, (replica.starts, 0))
        idle = idle if start == replica.starts else 0
        worker.idle[replica] = replica.starts, idle + 1
        replica.answers[int(self.now * 10)] += 1
        if request.feedback is not None:
            request.feedback.finished(self.now - request.since)
        if request.fresh:
            worker.pool.succeeded(request.member, request.permit)
        self._end(request, replica.name)

    # Probes.

    def _probe(self, worker: _Worker) -> None:
        """Probe what this worker uses; only what was ever unwell can tell anything."""
        plan, pool = self.plan, worker.pool
        self.probes += len(pool.live)
        for replica in self._unwell:
            member = pool.member(replica.name)
            permit = pool.permit(member)
            wait = plan.connect_timeout if replica.state == "silent" else plan.trip
            self.at(self.now + wait, self._probed, worker, member, permit)
        pause = plan.probe * (0.8 + 0.4 * random.random())
        self.at(self.now + pause, self._probe, worker)

    def _probed(self, worker: _Worker, member: Member[Replica], permit: Permit) -> None:
        if member.target.state in ("up", "failing"):
            worker.pool.recover(member, permit)
        else:
            pause = 2 * self.plan.probe
            worker.pool.trip(member, pause, ConnectionError("probe"))


def _strategy(balancer: Any, clock: Callable[[], float]) -> Any:
    """Return a strategy; one that measures gets this clock."""
    found: Any = BALANCERS[balancer] if isinstance(balancer, str) else balancer
    return found(clock=clock) if hasattr(found, "feedback") else found
