"""Asks the servers themselves how they are, where no worker can be asked."""

from __future__ import annotations

import contextlib
import queue
import time
from typing import TYPE_CHECKING, Any

from balancers import Member, Permit
from flask_replicated.errors import ReplicaSilentError
from flask_replicated.fleet.probe import PrimaryProbe, ProbeRun, ReplicaProbe
from flask_replicated.replica.failures import cause_of
from flask_replicated.replica.fitness import unfit_error
from flask_replicated.replica.primary_status import can_probe
from flask_replicated.settings.sqlite_files import uses_given_connection
from flask_replicated.system.threads import start_thread

from .accounts import replicas_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from flask_replicated.engine.engines import RoutedEngine

    from .accounts import ReplicaRecord

__all__ = ["ask_servers"]


def ask_servers(
    routes: Mapping[str | None, RoutedEngine],
) -> dict[str, list[ReplicaRecord]]:
    """Return how each replica is, by bind, as far as it can be learnt from here.

    Each server has the connect timeout to answer in; all are asked at the same time,
    after their primaries, whose log positions tell how far the others are behind.
    Replicas that cannot be asked outside an event loop are left out. Nothing that is
    found changes anything in this process: its receivers hear of no outage.
    """
    seconds = max((r.app.settings.connect_timeout for r in routes.values()), default=0)
    _ask_primaries(routes.values(), seconds)
    probes = {
        member: ReplicaProbe(member, routed.servers[member.name].history)
        for routed in routes.values()
        for member in routed.replicas.replica_pool.members
        if _can_be_asked(member)
    }
    answers = _run(probes.values(), seconds)
    pools = {b: routed.replicas.replica_pool for b, routed in routes.items()}
    found = replicas_of({bind: pool.snapshot() for bind, pool in pools.items()})
    return {
        bind or "": [
            {**one, **_judged(routes[bind], pool.member(one["name"]), answers)}
            for one in found[bind or ""]
            if pool.member(one["name"]) in probes
        ]
        for bind, pool in pools.items()
    }


def _can_be_asked(member: Member[Any]) -> bool:
    engine = member.target
    return not (engine.dialect.is_async or uses_given_connection(engine))


def _ask_primaries(routes: Collection[RoutedEngine], seconds: float) -> None:
    probes = {
        PrimaryProbe(Member("primary", routed.real, 1)): routed
        for routed in routes
        if can_probe(routed.real)
    }
    _run(probes, seconds)
    for probe, routed in probes.items():
        if probe.report is not None:
            routed.status.record_probe(probe.report)


def _run(probes: Collection[ReplicaProbe], seconds: float) -> dict[Member[Any], Any]:
    """Ask all at a time; return what each has answered in time, or its error."""
    done: queue.SimpleQueue[ProbeRun | None] = queue.SimpleQueue()
    until, waiting = time.monotonic() + seconds, 0
    answers: dict[Member[Any], Any] = {}
    for probe in probes:
        run = ProbeRun(probe, Permit(0), until, anew=True)
        probe.running = True  # before it runs: it says itself when it has ended
        if start_thread(f"look at {probe.member.name}", run.run, done):
            waiting += 1
        else:
            probe.running = False
    with contextlib.suppress(queue.Empty):
        while waiting:
            ended = done.get(timeout=max(0.0, until - time.monotonic()))
            waiting -= 1
            if ended is not None:
                answers[ended.member] = ended.found
    for probe in probes:
        probe.end()
    return answers


def _judged(
    routed: RoutedEngine, member: Member[Any], answers: Mapping[Member[Any], Any]
) -> ReplicaRecord:
    """Return what an answer says of a replica; none says that it is silent."""
    settings, found = routed.app.settings, answers.get(member)
    error: Exception | None
    lag = None
    if found is None:
        error = ReplicaSilentError(member.name, settings.connect_timeout)
    elif isinstance(found, Exception):
        error = found
    else:
        lag = found.lag
        error = unfit_error(
            member.name,
            found,
            role_check=settings.role_check,
            max_lag=settings.max_lag,
        )
    reason = None if member.weight else "weight 0"
    if error is not None:
        reason = cause_of(error)
    return {
        "state": "closed" if error is None else "open",
        "reason": reason,
        "workers": {},
        "since": None,  # this process has only just begun to look
        "lag_seconds": lag,
    }
