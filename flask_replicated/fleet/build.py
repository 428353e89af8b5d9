"""Builds one routed engine from a primary and its replicas."""

from __future__ import annotations

import logging
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from balancers import Zoned
from balancers.strategies import BALANCERS
from flask_replicated.engine.engines import RoutedEngine
from flask_replicated.engine.gate import Gate
from flask_replicated.engine.lazy_begin import leave_out_blocks
from flask_replicated.engine.primary import Primary, watch_primary, watch_statements
from flask_replicated.errors import ConfigurationError
from flask_replicated.replica.connection_events import ReplicaServer
from flask_replicated.replica.primary_status import can_probe
from flask_replicated.replica.same_database import PrimaryIdentity, SameDatabaseCheck
from flask_replicated.replica.throttle import limit_connecting, limit_pool_wait
from flask_replicated.routing.announcer import Announcer
from flask_replicated.routing.counts import ReadCounts
from flask_replicated.routing.incidents import Incidents
from flask_replicated.routing.snapshots import ReplicaPool
from flask_replicated.routing.state import AppState
from flask_replicated.settings.compatibility import PrimaryBind
from flask_replicated.settings.config import read_settings
from flask_replicated.settings.duplicates import log_duplicates
from flask_replicated.settings.sqlite_files import (
    require_existing_file,
    shares_connection,
)

from .description import describe
from .fleet import Fleet
from .monitor import Monitor, MonitoredPool, ProbePolicy
from .outage_log import OutageLog

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy import Engine

    from balancers import Listener
    from flask_replicated.engine.primary_reads import PrimaryReads
    from flask_replicated.routing.observation import Observation
    from flask_replicated.settings.config import Settings

__all__ = ["replicated_engine", "routed_engine"]

logger = logging.getLogger("flask_replicated")


# SQLAlchemy's warnings name the first line outside its own modules, which it knows by
# their names. These modules call it on behalf of the program, whose line the warning is
# to name.
for _between in (
    "engine.connections",
    "engine.engines",
    "engine.events",
    "engine.picked_engine",
    "engine.primary_connection",
    "engine.primary_engine",
    "engine.replica_connection",
    "engine.replica_pool_engine",
    "engine.session",
    "replica.throttle",
):
    _module = import_module(f"flask_replicated.{_between}")
    _module.__name__ = f"sqlalchemy.ext.flask_replicated.{_between}"
del _between, _module

_LONGEST_WAIT = 5.0
"""Seconds at most that a statement waits before its server is asked about it."""


def routed_engine(
    app: AppState,
    primary: Engine,
    replicas: Mapping[str, Engine],
    setting: str = "primary",
    binds: str = "replicas",
) -> RoutedEngine:
    """Put replicas into a pool and return it with its primary as one engine.

    Args:
        app: The application's state.
        primary: The engine that writes.
        replicas: The engines that read, by name.
        setting: The setting or bind that names the primary, in Python syntax.
        binds: What has the replicas' binds by name, in Python syntax.
    """
    settings = app.settings
    _warn_of_binds(settings, primary, setting, replicas, binds)
    asked = bool(replicas) or app.observation is None
    checks, identity, gate = _prepare_primary(app, primary, setting, asked=asked)
    prepare = partial(_prepare_replica, settings, gate, identity)
    prepared: dict[str, ReplicaServer] = {}
    fleet = Fleet(prepare, prepared, limited=settings.max_pools is not None)
    for name, engine in replicas.items():
        prepared[name] = fleet.prepare(name, engine)
    announcer = Announcer(app.find_app)
    outages = OutageLog(prepared, binds, announcer=announcer)
    (kind, reads), incidents = _kind(app), Incidents()
    writers = app.decider.writers if settings.learn_writers else ()
    known = partial(describe, prepared, outages)
    make = partial(ReplicaPool, replicas, reads, writers, incidents, known)
    pool = _make_pool(settings, make, replicas, [outages, fleet.listener()])
    outages.live = lambda: pool.live
    policy = _probe_policy(app, identity, checks.reads, asked=asked)
    monitor = Monitor(MonitoredPool(pool, prepared, policy, outages))
    fleet.routed = kind(
        app,
        primary,
        pool,
        reads=reads,
        incidents=incidents,
        announcer=announcer,
        monitor=monitor,
        checks=checks,
        outages=outages,
        servers=prepared,
    )
    fleet.routed.fleet = fleet
    fleet.close_spares()
    return fleet.routed


def _prepare_primary(
    app: AppState, primary: Engine, setting: str, *, asked: bool
) -> tuple[Primary, PrimaryIdentity, Gate]:
    """Set up the primary's engine, before its first connection.

    Args:
        app: The application's state.
        primary: The engine.
        setting: The setting or bind that names it, in Python syntax.
        asked: Whether its server is asked what it is, if the settings have it so.

    Returns:
        The checks of its connections, what tells its database from another, and the
        gate to its replicas.
    """
    settings = app.settings
    watch_primary(primary)
    checks = Primary(
        primary,
        setting,
        settings.connect_timeout,
        role_check=settings.role_check and asked,
        max_connecting=settings.max_connecting,
    )
    classifier = app.classifier(primary.dialect.name)
    watch_statements(primary, classifier)
    identity = PrimaryIdentity(
        primary, checks.status, settings.connect_timeout, app.surroundings()
    )
    return checks, identity, Gate(app, classifier)


def _kind(app: AppState) -> tuple[type[RoutedEngine], ReadCounts]:
    """Return the class of a routed engine, and what counts its reads."""
    if app.observation is None:
        return RoutedEngine, ReadCounts()
    # Only here, as few need them.
    from flask_replicated.engine.observed import ObservedEngine  # noqa: PLC0415
    from flask_replicated.routing.observation import ObservedCounts  # noqa: PLC0415

    return ObservedEngine, ObservedCounts(cast("Observation", app.observation))


def _prepare_replica(
    settings: Settings,
    gate: Gate,
    identity: PrimaryIdentity,
    name: str,
    engine: Engine,
) -> ReplicaServer:
    """Set up a replica's new engine, before its first connection."""
    primary = identity.engine
    replica = ReplicaServer(
        name,
        engine,
        settings.connect_timeout,
        settings.read_timeout,
        role_check=settings.role_check,
        max_lag=settings.max_lag,
        watched=settings.probe_interval > 0 and not engine.dialect.is_async,
        primary=_probed(settings, primary) if settings.role_check else None,
        same_database=SameDatabaseCheck(name, engine.dialect.name, identity)
        if settings.role_check
        else None,
        shared=shares_connection(engine, primary),
        status=identity.status,
        surroundings=identity.surroundings,
    )
    limit_connecting(
        engine,
        settings.max_connecting,
        # Half of it: a wait for a slot comes on top of the connect, whose timeout
        # cannot be shortened by that, as drivers take whole seconds.
        settings.connect_timeout / 2,
        lambda: replica.outages,
    )
    if engine.pool is not primary.pool:
        limit_pool_wait(engine, settings.connect_timeout)
        require_existing_file(name, engine)
    if settings.lazy_begin:
        leave_out_blocks(engine)
    gate.guard(engine, replica)
    return replica


def _probe_policy(
    app: AppState, identity: PrimaryIdentity, reads: PrimaryReads, *, asked: bool
) -> ProbePolicy:
    """Return what the monitor checks; nothing if no server is to be asked."""
    settings, primary = app.settings, identity.engine
    return ProbePolicy(
        interval=settings.probe_interval if asked else 0,
        halved_at=settings.lag_weights,
        timeout=settings.connect_timeout,
        max_lag=settings.max_lag,
        role_check=settings.role_check,
        probed_primary=_probed(settings, primary),
        primary_reads=reads,
        status=identity.status,
        answer_timeout=_answer_timeout(settings),
        surroundings=identity.surroundings,
        each_second=app.each_second,
    )


def _answer_timeout(settings: Settings) -> float:
    """Return how long a statement may wait before its server is asked about it.

    Together with the question, no longer than the default probe takes to find a server
    silent. Where the server itself ends a statement sooner, a second more than that.
    """
    bound = min(max(1.0, settings.probe_interval), _LONGEST_WAIT)
    return min(bound, (settings.read_timeout or bound) + 1)


def _probed(settings: Settings, primary: Engine) -> Engine | None:
    """Return the primary, if it is probed too."""
    matters = settings.role_check or settings.max_lag is not None
    return primary if matters and can_probe(primary) else None


def _make_pool(
    settings: Settings,
    make: Callable[..., ReplicaPool],
    replicas: Mapping[str, Engine],
    listeners: list[Listener],
) -> ReplicaPool:
    return make(
        balancer=settings.balancer,
        weights={n: w for n, w in settings.weights.items() if n in replicas},
        threshold=settings.breaker_threshold,
        reset=settings.breaker_reset,
        max_reset=settings.breaker_max_reset,
        slow_start=settings.slow_start,
        # A trial that is still connecting must not count as lost.
        lease=max(10.0, 3 * settings.connect_timeout),
        listeners=listeners,
        limit=settings.max_pools,
        weights_unread=partial(_warn_of_unread_weights, settings.balancer),
    )


def _warn_of_binds(
    settings: Settings,
    primary: Engine,
    setting: str,
    replicas: Mapping[str, Engine],
    binds: str,
) -> None:
    """Log binds that name one server twice, and that all replicas weigh 0.

    The latter not where DNS may name more of them.
    """
    if settings.role_check and settings.read_on_replica:
        log_duplicates(primary, setting, replicas, binds)
    shares = [settings.weights.get(name, 1) for name in replicas]
    if shares and not any(shares) and not settings.discovery:
        logger.warning(
            "REPLICATED_WEIGHTS gives 0 to every replica of the bind (%s): none of "
            "them gets reads. Give at least one of them 1 or more.",
            ", ".join(f"{binds}[{name!r}]" for name in replicas),
        )


def _warn_of_unread_weights(balancer: Callable[..., Any]) -> None:
    names: dict[type, str] = {kind: name for name, kind in BALANCERS.items()}
    balancer = balancer.strategy if isinstance(balancer, Zoned) else balancer
    logger.warning(
        "REPLICATED_BALANCER = %r reads no weights, neither those of "
        "REPLICATED_WEIGHTS nor one that add() is given; set it to 'weighted' or "
        "'random', or leave it out beside REPLICATED_WEIGHTS.",
        names.get(type(balancer), balancer),
    )


def replicated_engine(
    primary: Engine, replicas: Mapping[str, Engine], **settings: Any
) -> RoutedEngine:
    """Return one engine for a primary and its replicas, without any application.

    For ``sessionmaker(engine, class_=RoutedSession)``: such sessions read from
    the primary, and from a replica inside ``using_slave()``.

    Args:
        primary: The engine that writes.
        replicas: The engines that read, by name.
        settings: The settings of ``app.config``, as ``REPLICATED_WEIGHTS={...}``.

    Raises:
        ConfigurationError: A setting cannot be right, there is no replica, or one
            that cannot be a copy of the primary's database.
    """
    if not replicas:
        raise ConfigurationError("replicas", {}, "name at least one engine that reads.")
    primary_bind = PrimaryBind(primary, "primary", "use the primary's engine alone")
    for name, engine in replicas.items():
        primary_bind.require_compatible(f"replicas[{name!r}]", engine)
    read = read_settings(settings, ("GET", "HEAD"), replicas)
    return routed_engine(AppState(read), primary, replicas)
