"""Metrics for Prometheus, from the snapshot of the pools at each scrape.

Needs prometheus-client, the extra ``metrics``. Nothing is counted for it: a snapshot
has all of it anyway. In the client's multiprocess mode, whose files are the only way
from one worker to another, each worker writes its snapshot there about every second.
"""

from __future__ import annotations

import math
import os
import weakref
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple, get_args
from weakref import WeakSet

from flask import Flask, has_app_context
from prometheus_client import Counter, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector

from .errors import ConfigurationError
from .routing.decision import REPLICA_REASONS, Reason, Role
from .routing.flask_context import this_app
from .routing.snapshots import ReplicaState
from .routing.state import state_of
from .system.forks import ForkAware

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric, Sample

    from .routing.snapshots import ReplicaPoolSnapshot
    from .routing.state import AppState

    Snapshots = Mapping[str | None, ReplicaPoolSnapshot]
    Values = Iterator[tuple[tuple[str, ...], float]]

__all__ = ["METRICS", "MetricSpec", "PresentReplicasCollector", "register"]

_MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
# Whose metrics are in this process's files, which know no registry.
_publishing: WeakSet[AppState] = WeakSet()


def register(registry: CollectorRegistry, app: Flask | None = None) -> None:
    """Add an application's metrics to a registry.

    The registry does not keep the application alive. Where ``PROMETHEUS_MULTIPROC_DIR``
    is set, the metrics of all workers come out of a :class:`PresentReplicasCollector`,
    and the registry keeps their names alone.

    Args:
        registry: The registry, such as ``prometheus_client.REGISTRY``.
        app: The application; None is the current one.

    Raises:
        ConfigurationError: The extension is not registered on the application, or the
            registry, or the multiprocess mode, has these metrics already, of this
            application or another one.
        RuntimeError: There is no application context, and *app* is None.
    """
    if app is None and not has_app_context():
        raise RuntimeError(
            "register(registry) needs an application context, or register(registry, "
            "app)."
        )
    app = this_app() if app is None else app
    state = state_of(app)
    if state is None:
        raise ConfigurationError(
            "app.extensions['replicated']",
            None,
            "register the extension first: FlaskReplicated(app).",
        )
    shared = _MULTIPROCESS in os.environ
    if shared and len(_publishing):
        raise ConfigurationError(
            _MULTIPROCESS,
            os.environ[_MULTIPROCESS],
            "is one place for each process, and has this one's metrics already. Let "
            "each application have processes of its own, or register one of them.",
        )
    try:
        registry.register(_Collector(state, shown=not shared))
    except ValueError:
        raise ConfigurationError(
            "registry",
            registry,
            "has these metrics already. Register each application once, and give each "
            "a registry of its own: prometheus_client.CollectorRegistry().",
        ) from None
    if shared:
        _publishing.add(state)
        state.each_second.add(_Published(state).update)


class MetricSpec(NamedTuple):
    """One metric.

    Attributes:
        name: Its name.
        kind: ``'counter'`` or ``'gauge'``.
        meaning: Its help.
        labels: The names of its labels.
        values: Returns the values that a snapshot has, by the values of the labels.
        workers: How the gauges of several workers become one: a mode of the client.
    """

    name: str
    kind: str
    meaning: str
    labels: tuple[str, ...]
    values: Callable[[Snapshots], Values]
    workers: str = ""


def _reads(binds: Snapshots) -> Values:
    for bind, pool in binds.items():
        for one in pool.members:
            yield (bind or "", one.name), one.reads
        yield (bind or "", "primary"), sum(pool.primary_reads.values())


def _decisions(binds: Snapshots) -> Values:
    for reason in REPLICA_REASONS:
        count = sum(pool.replica_reads[reason] for pool in binds.values())
        yield (Role.REPLICA.value, reason), count
    for reason in get_args(Reason):
        count = sum(pool.primary_reads[reason] for pool in binds.values())
        yield (Role.PRIMARY.value, reason), count


def _states(binds: Snapshots) -> Values:
    for bind, pool in binds.items():
        for one in pool.members:
            for state in get_args(ReplicaState):
                yield (bind or "", one.name, state), float(one.state == state)


def _lags(binds: Snapshots) -> Values:
    for bind, pool in binds.items():
        for one in pool.members:
            lag = math.nan if one.lag_seconds is None else one.lag_seconds
            yield (bind or "", one.name), lag


def _failovers(binds: Snapshots) -> Values:
    for bind, pool in binds.items():
        for replica, causes in pool.failovers.items():
            for cause, count in causes.items():
                yield (bind or "", replica, cause), count


def _fallbacks(binds: Snapshots) -> Values:
    for bind, pool in binds.items():
        yield (bind or "",), pool.fallbacks


def _refused_writes(binds: Snapshots) -> Values:
    found: dict[str, int] = {}
    for pool in binds.values():
        for endpoint, count in pool.refused_writes.items():
            found[endpoint] = found.get(endpoint, 0) + count
    for endpoint, count in found.items():
        yield (endpoint,), count


def _connections(binds: Snapshots) -> Values:
    for bind, pool in binds.items():
        for one in pool.members:
            if one.connections_idle is not None:
                yield (bind or "", one.name, "idle"), one.connections_idle
            if one.connections_used is not None:
                yield (bind or "", one.name, "used"), one.connections_used


METRICS = (
    MetricSpec(
        "replicated_reads_total",
        "counter",
        "Transactions that a read has begun, by server.",
        ("bind", "replica"),
        _reads,
    ),
    MetricSpec(
        "replicated_decisions_total",
        "counter",
        "The same, by role and by the rule that decided.",
        ("role", "reason"),
        _decisions,
    ),
    MetricSpec(
        "replicated_replica_state",
        "gauge",
        "1 for the state that a replica is in.",
        ("bind", "replica", "state"),
        _states,
        "livemax",
    ),
    MetricSpec(
        "replicated_replica_lag_seconds",
        "gauge",
        "How far a replica is behind the primary; NaN if unknown.",
        ("bind", "replica"),
        _lags,
        "livemax",
    ),
    MetricSpec(
        "replicated_failovers_total",
        "counter",
        "Reads that a replica should have served and did not.",
        ("bind", "replica", "cause"),
        _failovers,
    ),
    MetricSpec(
        "replicated_fallbacks_total",
        "counter",
        "Reads that the primary got because no replica served them.",
        ("bind",),
        _fallbacks,
    ),
    MetricSpec(
        "replicated_refused_writes_total",
        "counter",
        "Writes that were kept from replicas.",
        ("endpoint",),
        _refused_writes,
    ),
    MetricSpec(
        "replicated_pool_connections",
        "gauge",
        "Open connections to a replica.",
        ("bind", "replica", "state"),
        _connections,
        "livesum",
    ),
)
"""All metrics; ``bind=""`` is the default one."""


class _Collector:
    """What a registry asks at each scrape.

    Args:
        state: The application's state, which is not kept alive.
        shown: Whether there is something to collect; otherwise the names are taken
            alone.
    """

    def __init__(self, state: AppState, *, shown: bool) -> None:
        self._state = weakref.ref(state)
        self._shown = shown

    def describe(self) -> Iterator[Metric]:
        """Return the metrics without their values."""
        return (_family(one) for one in METRICS)

    def collect(self) -> Iterator[Metric]:
        """Return the metrics."""
        state = self._state()
        if state is None or not self._shown:
            return
        found = state.snapshot()
        for one in METRICS:
            family = _family(one)
            for labels, value in one.values(found):
                family.add_metric(labels, value)
            yield family


def _family(one: MetricSpec) -> CounterMetricFamily | GaugeMetricFamily:
    family = CounterMetricFamily if one.kind == "counter" else GaugeMetricFamily
    return family(one.name, one.meaning, labels=one.labels)


class PresentReplicasCollector(MultiProcessCollector):
    """The client's ``MultiProcessCollector`` without series of removed replicas.

    No series can be removed from the files. One of a replica is left out where workers
    tell states, and none that lives tells one of this replica.

    Args:
        registry: Where it registers itself; None for nowhere.
        path: The directory; by default ``PROMETHEUS_MULTIPROC_DIR``.

    Raises:
        ValueError: There is no such directory.
    """

    def __init__(
        self, registry: CollectorRegistry | None, path: str | None = None
    ) -> None:
        super().__init__(registry, path)  # type: ignore[no-untyped-call]  # the client's

    def collect(self) -> Iterable[Metric]:
        """Return the metrics of all workers, also those that are not this package's."""
        families = list(super().collect())  # type: ignore[no-untyped-call]  # as above
        states = [one for one in _samples(families) if one.name == _STATE]
        present = {_replica_of(one) for one in states if one.value}
        for family in families if states else ():
            family.samples = [
                one
                for one in family.samples
                if one.name not in _OF_REPLICAS
                or one.labels["replica"] == "primary"
                or _replica_of(one) in present
            ]
        return families


_STATE = "replicated_replica_state"
_OF_REPLICAS = {one.name for one in METRICS if "replica" in one.labels}


def _samples(families: Iterable[Metric]) -> Iterator[Sample]:
    for family in families:
        yield from family.samples


def _replica_of(sample: Sample) -> tuple[str, str]:
    return sample.labels["bind"], sample.labels["replica"]


class _Published(ForkAware):
    """What one worker writes into the files of the multiprocess mode.

    Args:
        state: The application's state, which is not kept alive.
    """

    def __init__(self, state: AppState) -> None:
        self._state = weakref.ref(state)
        # In no registry, which would show this worker's beside those of all.
        self._metrics = {one.name: _metric(one) for one in METRICS}
        self.begin_anew()
        super().__init__()

    def begin_anew(self) -> None:
        """Forget, in a child process, the counts that were its parent's."""
        self._lock = Lock()
        self._before: dict[tuple[str, tuple[str, ...]], float] = {}

    def update(self) -> None:
        """Write what is known now."""
        self.notice_fork()
        with self._lock:  # each bind's probes call this
            self._update()

    def _update(self) -> None:
        state = self._state()
        if state is None:
            return
        found, gone = state.snapshot(), set(self._before)
        for one in METRICS:
            metric = self._metrics[one.name]
            for labels, value in one.values(found):
                gone.discard((one.name, labels))
                before = self._before.get((one.name, labels), 0.0)
                self._before[one.name, labels] = value
                if isinstance(metric, Gauge):
                    metric.labels(*labels).set(value)
                else:
                    # Less than before is another replica of the same name.
                    metric.labels(*labels).inc(
                        value - before if value >= before else value
                    )
        for name, labels in gone:
            self._forget(name, labels)

    def _forget(self, name: str, labels: tuple[str, ...]) -> None:
        """Let a removed replica's gauges say nothing: its series cannot be removed.

        That it is in no state tells :class:`PresentReplicasCollector` to leave it out.
        """
        del self._before[name, labels]
        metric = self._metrics[name]
        if isinstance(metric, Gauge):
            lag = name == "replicated_replica_lag_seconds"
            metric.labels(*labels).set(math.nan if lag else 0)


def _metric(one: MetricSpec) -> Counter | Gauge:
    if one.kind == "counter":
        return Counter(one.name, one.meaning, one.labels, registry=None)
    return Gauge(
        one.name,
        one.meaning,
        one.labels,
        registry=None,
        multiprocess_mode=one.workers,  # type: ignore[arg-type]  # one of its modes
    )
