"""Facades over real engines: each looks like one engine and stands for several.

``Session`` and Core only ever call ``connect()`` on an engine, and then know
the connection by its real engine. So a replica is picked, and failed over,
exactly where a connection is made: before any statement was sent, and not where only
a dialect is asked for.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import TimeoutError  # noqa: A004 - not the built-in one

from balancers.errors import error_text
from flask_replicated.errors import (
    MORE_AT_A_TIME,
    AllReplicasOutError,
    PrimaryUnavailableError,
    ReplicaSilentError,
    UnfitReplicaError,
)
from flask_replicated.replica.admission import accept_any_lag
from flask_replicated.replica.failures import Verdict, judge_connect
from flask_replicated.routing.decision import ALL_BUSY, ALL_OUT, SPENT, Role
from flask_replicated.routing.overrides import active_role, leaves_no_trace

from .capacity import ReplicaCapacity, is_full
from .connections import PrimaryConnection, ReplicaConnection
from .events import Listeners, raised_by_listener
from .facade import (
    Alias,
    EngineFacade,
    ReplicasFacade,
    RoutedFacade,
    ServerFacade,
    shown_by,
)
from .least_lagged import least_lagged

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy import Connection, Engine
    from sqlalchemy.engine.interfaces import PoolProxiedConnection

    from balancers import Member, Permit
    from flask_replicated.replica.connection_events import ReplicaServer
    from flask_replicated.routing.counts import ReadCounts, ReplicaPool
    from flask_replicated.routing.state import AppState, RequestState

    from .background import FleetLike, MonitorLike, OutagesLike
    from .primary import Primary

__all__ = ["PrimaryEngine", "ReplicaPoolEngine", "RoutedEngine"]

logger = logging.getLogger("flask_replicated")

_PAUSE = 1.0
"""Seconds for which a replica with no connection to spare is left alone."""
_LOAD_LOG_INTERVAL = 60.0
"""Seconds in which load on all replicas is logged once."""
_ALL_OUT, _LAGGED = "every replica is out", "a replica that lags serves"
"""Conditions that are logged once."""


class PrimaryEngine(ServerFacade):
    """The primary; its connections report committed writes.

    It equals the real engine: any session keeps its connections by their engines and
    looks for them by its bind.

    Args:
        real: The primary's engine.
        routed: The engine that it is part of.
        fallback_for: The replicas, where the primary serves a read of theirs.
    """

    def __init__(
        self,
        real: Engine,
        routed: RoutedEngine,
        fallback_for: ReplicaPoolEngine | None = None,
    ) -> None:
        self.routed: RoutedEngine = routed
        self._facade = fallback_for or self
        super().__init__(real)

    # As the routed engine's, since session.get_bind() returns either; connections have
    # the real ones.
    dispatch = shown_by("routed.listeners", "dispatch")
    pool = shown_by("routed.listeners", "pool")
    dialect = shown_by("routed.listeners", "dialect")

    def __eq__(self, other: object) -> bool:
        return other is self or other is self.real

    def __hash__(self) -> int:
        return hash(self.real)

    def execution_options(self, **options: Any) -> PrimaryEngine:  # type: ignore[override]  # an engine all the same
        """Return the primary with execution options of its own."""
        return _PrimaryWithOptions(self.real.execution_options(**options), self.routed)

    def connect(self) -> Connection:
        """Connect to the primary."""
        routed = self.routed
        routed.app.notice_fork()
        # A request's read that hangs here is ended by what goes on in the background.
        if routed.monitor.idle and routed.app.request_state() is not None:
            routed.wake()
        with self._trial():
            return self._connect()

    def _trial(self) -> contextlib.AbstractContextManager[object]:
        """Return a block in which to connect; while the primary is out, a trial."""
        routed = self.routed
        return routed.checks.trial() if routed.status.out else contextlib.nullcontext()

    def _connect(self) -> Connection:
        # SQLAlchemy's own, which others may have wrapped to hear of each connect.
        try:
            return super().connect()
        except PrimaryUnavailableError as error:
            if not error.standby:
                raise
        # Where its address stands for several servers, the next one may be another.
        return super().connect()

    def _connection_cls(self, _engine: Engine) -> PrimaryConnection:  # type: ignore[override]  # called like the class that it is in Engine
        return PrimaryConnection(self.real, self._facade)

    def raw_connection(self) -> PoolProxiedConnection:
        """Return a DBAPI connection to the primary.

        What is done with it cannot be followed, so it counts as a write.
        """
        app = self.routed.app
        app.notice_fork()
        with self._trial():
            connection = self.real.raw_connection()
        if not leaves_no_trace():
            app.note_raw_connection()
        return connection


class _PickedEngine(EngineFacade):
    """One replica's engine, whose connections know that it was picked."""

    def __init__(self, member: Member[Engine], facade: ReplicaPoolEngine) -> None:
        self._member = member
        self._facade = facade
        super().__init__(member.target)

    def _connection_cls(self, _engine: Engine) -> ReplicaConnection:  # type: ignore[override]  # the same
        return ReplicaConnection(self.real, self._facade, self._member)


class _Failures:
    """Why replicas have given no connection, of one attempt to connect.

    Args:
        seconds: For how long after the first failure others are tried.

    Attributes:
        causes: Why, by name.
        busy: The names of those that had no connection to spare.
        over: Whether the time is over. At least one other replica is tried.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._until = math.inf
        self.causes: dict[str, str] = {}
        self.busy: set[str] = set()
        self.over = False

    def add(self, name: str, cause: str, *, busy: bool) -> None:
        """Add one that was tried."""
        now = time.monotonic()
        self.over = now >= self._until
        if not self.causes:
            self._until = now + self._seconds
        self.causes[name] = cause
        if busy:
            self.busy.add(name)

    def skip_full(self, name: str) -> None:
        """Add one that was not tried, as its connection pool is exhausted."""
        self.causes[name] = "it has no connection to spare"
        self.busy.add(name)


class _LoggedConditions(dict[str, object]):
    """The conditions that were logged and last still, so that each is logged once.

    A dictionary, because it is asked at each connect whether there is any.
    """

    def begin(self, condition: str) -> bool:
        """Note that a condition is there; return whether it was not until now."""
        mine = object()
        return self.setdefault(condition, mine) is mine

    def end(self, condition: str) -> bool:
        """Note that a condition is over; return whether it was there until now."""
        return self.pop(condition, None) is not None


class ReplicaPoolEngine(ReplicasFacade):
    """The pool of replicas as one engine: ``connect()`` picks and fails over.

    Args:
        replica_pool: The replicas.
        routed: The engine that they are part of.
        servers: What is known of each replica's server, by name; kept up to date.

    Attributes:
        replica_pool: The same.
        routed: The same.
        reads: Counts how many reads each server got.
    """

    routed: RoutedEngine

    dispatch = shown_by("routed.listeners", "dispatch")  # as the primary's

    def __init__(
        self,
        replica_pool: ReplicaPool,
        routed: RoutedEngine,
        servers: Mapping[str, ReplicaServer],
    ) -> None:
        self.replica_pool = replica_pool
        self.reads = routed.reads
        self.routed = routed
        self._servers = servers
        settings = routed.app.settings
        self._capacity = ReplicaCapacity(
            replica_pool,
            servers,
            settings.balancer,
            bearable=settings.connect_timeout,
            longest=settings.breaker_max_reset,
            bind=routed.outages.setting,
        )
        self._logged = _LoggedConditions()
        self._primary_failed_at = -math.inf
        self._load_logged_from = 0.0  # when it is logged again
        self._fallback = PrimaryEngine(routed.real, routed, self)
        self._picked: dict[Member[Engine], _PickedEngine] = {}
        members = replica_pool.members
        # A fleet keeps this up to date.
        super().__init__(members[0].target if members else routed.real)

    def connect(self) -> Connection:
        """Connect to this request's replica, or pick one; try each once.

        None is tried any more when ``REPLICATED_FAILOVER_TIMEOUT`` is over.

        Raises:
            AllReplicasOutError: None took the connection, and
                ``REPLICATED_FALLBACK`` is ``'error'``.
        """
        routed, pool = self.routed, self.replica_pool
        if routed.monitor.idle or routed.fleet.idle or routed.app.was_forked():
            routed.wake()
        state = routed.app.request_state()
        kept = None if state is None else state.kept.get(self)
        member, failures = self._first(kept, state), None
        while member is not None:
            permit = pool.permit(member)
            picked = self._picked.get(member) or self._add_picked(member)
            try:
                connection = picked.connect()
            except Exception as error:  # noqa: BLE001 - a creator may raise anything
                cause, busy = self._report_failure(member, error, permit)
                if failures is None:
                    if busy and member is kept:
                        return self._without_kept(state)
                    failures = _Failures(routed.app.settings.failover_timeout)
                    others = self._others(member, failures)
                failures.add(member.name, cause, busy=busy)
                member = next(others, None)
                continue
            if not permit.quiet or self._logged or self._capacity.exhausted:
                self._report_success(member, permit)
            if state is not None and failures is not None:
                state.kept[self] = member
            return connection
        return self._without_replicas(failures, state)

    def _first(
        self, kept: Member[Engine] | None, state: RequestState | None
    ) -> Member[Engine] | None:
        """Return the replica to try first: the request's own, or one that has room.

        Args:
            kept: The request's own, or None.
            state: Of the running request, or None.
        """
        first = self.replica_pool.first(kept)
        if first is None or first is kept:
            return first
        first = self._capacity.choose(first)
        if state is None:
            return first
        if kept is None:
            # Another thread or task of the request may have picked meanwhile.
            return state.kept.setdefault(self, first)
        state.kept[self] = first  # before it is connected to: for the others
        return first

    def _others(
        self, first: Member[Engine], failures: _Failures
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
        lagged, all_out = self._logged.end(_LAGGED), self._logged.end(_ALL_OUT)
        if lagged or all_out:
            logger.warning("replicas serve reads again")

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
        return self._fallback.connect()

    def _without_replicas(
        self, failures: _Failures | None, state: RequestState | None
    ) -> Connection:
        """Connect to the primary, or if that is out, to a replica that only lags.

        Args:
            failures: What came of the replicas that were tried, or None.
            state: Of the running request, or None.
        """
        failures = failures or _Failures(0)
        causes = self.replica_pool.causes() | failures.causes
        busy, outages = failures.busy, self.routed.outages
        load = busy == failures.causes.keys() and outages.is_load(busy)
        if not self.routed.app.settings.fall_back:
            raise AllReplicasOutError(causes, load=load)
        if self.primary_is_out:
            lagged = self._connect_to_least_lagged(causes, state)
            if lagged is not None:
                return lagged
        try:
            connection = self._fallback.connect()
        except TimeoutError:
            raise  # its connection pool is exhausted: load, not death
        except Exception:
            self.note_primary_failure()
            lagged = self._connect_to_least_lagged(causes, state)
            if lagged is None:
                raise
            return lagged
        self._log_fallback(causes, load=load)
        if state is not None:
            # Once the primary was read, a replica would show an older state.
            reason = ALL_BUSY if load else ALL_OUT
            if state.latched is None and isinstance(connection, PrimaryConnection):
                connection.fell_back = reason
            state.latch(reason)
        return connection

    @property
    def primary_is_out(self) -> bool:
        """Whether it is known that the primary does not answer now."""
        since = time.monotonic() - self._primary_failed_at
        return self.routed.status.out or since < self.routed.app.settings.breaker_reset

    def note_primary_failure(self) -> None:
        """Note that the primary could not be reached in place of a replica."""
        self._primary_failed_at = time.monotonic()

    def _log_fallback(self, causes: dict[str, str], *, load: bool) -> None:
        """Log once that the primary serves the replicas' reads."""
        again = self._logged.end(_LAGGED)
        if load:
            self._log_load(causes)
        # With none at all yet, as DNS has not answered, there is no news either.
        elif self.replica_pool.members and self._logged.begin(_ALL_OUT):
            if not self.routed.outages.all_misconfigured():  # each was logged
                logger.error(
                    "every replica is out, and the primary serves their reads "
                    "(REPLICATED_FALLBACK = 'master'): %s",
                    causes,
                )
        elif again:
            logger.warning("the primary connects again, and serves the replicas' reads")

    def _log_load(self, causes: dict[str, str]) -> None:
        now = time.monotonic()
        if now >= self._load_logged_from:
            self._load_logged_from = now + _LOAD_LOG_INTERVAL
            logger.warning(
                "every replica is busy, and the primary serves the reads that none has "
                "a connection for (REPLICATED_FALLBACK = 'master'): %s. If it goes on, "
                "%s.",
                causes,
                MORE_AT_A_TIME,
            )

    def _connect_to_least_lagged(
        self, causes: dict[str, str], state: RequestState | None
    ) -> Connection | None:
        """Connect to a replica that is out for its lag alone, if there is one."""
        kept = None if state is None else state.kept.get(self)
        for member in least_lagged(self.replica_pool, self._servers, kept):
            permit = self.replica_pool.permit(member)
            picked = self._picked.get(member) or self._add_picked(member)
            token = accept_any_lag.set(True)
            try:
                connection = picked.connect()
            except Exception as error:  # noqa: BLE001 - a creator may raise anything
                self._report_failure(member, error, permit)
                continue
            finally:
                accept_any_lag.reset(token)
            if self._logged.begin(_LAGGED):
                logger.error(
                    "the primary does not connect, and every replica is out; %r, which "
                    "only lags, and less than others, serves reads: %s",
                    member.name,
                    causes,
                )
            if state is not None:
                state.kept[self] = member
            return connection
        return None

    def _add_picked(self, member: Member[Engine]) -> _PickedEngine:
        """Return what connects to a replica that was not picked before."""
        self.forget_removed()
        picked = self._picked[member] = _PickedEngine(member, self)
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


class _PrimaryWithOptions(PrimaryEngine):
    """The primary with execution options of its own, for a caller to hold.

    As with any such engine, its listeners are its own.
    """

    dispatch = shown_by("real", "dispatch")
    pool = shown_by("real", "pool")
    dialect = shown_by("real", "dialect")

    def _connection_cls(self, engine: Engine) -> PrimaryConnection:  # type: ignore[override]  # the same
        connection = super()._connection_cls(engine)
        connection.ask_by_name()
        connection.engine = Alias(self.real, self)
        return connection


class RoutedEngine(RoutedFacade):
    """What stands in ``db.engines`` for a bind that has replicas.

    ``connect()`` goes where a read of the running request would go, and to the
    primary outside a request. ``begin()`` announces a write; ``raw_connection()``
    and ``execution_options()`` do not tell; so all three mean the primary. Only
    ``begin()`` inside ``using_slave()`` is a replica's.

    Attributes:
        app: The application's state.
        classifier: Tells what a statement does.
        classify: The classifier's own ``kind``, at hand for each statement.
        reads: Counts how many reads each server got.
        monitor: What probes the replicas in the background.
        primary: The primary, as a session uses it for writes.
        replicas: The replicas, as a session uses them for reads.
        checks: The checks of the primary's connections.
        listeners: The listeners that every server has.
        status: What is known of the primary.
        outages: What knows of the replicas' outages, and logs them.
        fleet: Takes in new replicas and lets others go.
    """

    primary: PrimaryEngine
    replicas: ReplicaPoolEngine
    fleet: FleetLike

    # Like the primary's, but what is listened to here is heard by every server.
    dispatch = shown_by("listeners", "dispatch")
    pool = shown_by("listeners", "pool")
    dialect = shown_by("listeners", "dialect")

    def __init__(
        self,
        app: AppState,
        real: Engine,
        replicas: ReplicaPool,
        *,
        reads: ReadCounts,
        monitor: MonitorLike,
        checks: Primary,
        outages: OutagesLike,
        servers: Mapping[str, ReplicaServer],
    ) -> None:
        super().__init__(real)
        self.app = app
        self.classifier = app.classifier(real.dialect.name)
        self.classify = self.classifier.kind
        self.reads = reads
        self.monitor = monitor
        self.checks = checks
        self.status = checks.status
        self.outages = outages
        self.primary = PrimaryEngine(real, self)
        self.replicas = ReplicaPoolEngine(replicas, self, servers)
        self._aliases: dict[Engine, Alias] = {}
        self._shared_options: dict[str, Any] = {}
        self.listeners = Listeners(self)

    def wake(self) -> None:
        """Begin what goes on in the background, in a forked child all of it anew."""
        self.app.notice_fork()
        if self.monitor.idle:
            self.monitor.start(self)
        if self.fleet.idle:
            self.fleet.start_discovery()

    def role(self) -> Role:
        """Return where a read goes now."""
        role = active_role()
        if role is not None:
            return role
        return self.app.role()

    def connect(self) -> Connection:
        """Connect to the primary or to a replica, whichever a read would use."""
        if self.role() is Role.REPLICA:
            return self._alias(self.replicas.connect())
        return self._alias(self.primary.connect())

    def _alias(self, connection: Connection) -> Connection:
        if isinstance(connection, ReplicaConnection):
            connection.disown()
        real = connection.engine
        alias = self._aliases.get(real)
        if alias is None:
            alias = self._aliases[real] = Alias(real, self)
            self.forget_removed()
        connection.engine = alias
        return connection

    @contextlib.contextmanager
    def begin(self) -> Iterator[Connection]:
        """Connect to the primary and begin a transaction.

        Inside ``using_slave()`` it is a replica's, and cannot write.
        """
        reads = active_role() is Role.REPLICA
        facade: Engine = self.replicas if reads else self.primary
        with facade.connect() as connection:
            if isinstance(connection, ReplicaConnection):
                connection.disown()
            elif isinstance(connection, PrimaryConnection):
                connection.ask_by_name()
            with connection.begin():
                yield connection

    def execution_options(self, **options: Any) -> PrimaryEngine:  # type: ignore[override]  # an engine all the same
        """Return the primary with execution options of its own."""
        return self.primary.execution_options(**options)

    def update_execution_options(self, **options: Any) -> None:
        """Change the execution options of the primary and of every replica."""
        self._shared_options = {**self._shared_options, **options}
        for engine in self.engines():
            engine.update_execution_options(**options)

    @property
    def echo(self) -> Any:
        """What the primary logs; to set it sets it for every replica too."""
        return self.real.echo

    @echo.setter
    def echo(self, value: Any) -> None:
        for engine in self.engines():
            engine.echo = value

    def share(self, engine: Engine) -> None:
        """Give a new replica the options and the listeners that all have."""
        if self._shared_options:
            engine.update_execution_options(**self._shared_options)
        if self.real.echo:
            engine.echo = self.real.echo
        self.listeners.share(engine)

    def forget_removed(self) -> None:
        """Let go of replicas that have been removed."""
        self.replicas.forget_removed()
        self.reads.keep(self.replicas.replica_pool.members)
        there = set(self.engines())
        self._aliases = {real: a for real, a in self._aliases.items() if real in there}

    def engines(self) -> list[Engine]:
        """Return the engines behind it, the primary's first."""
        return [
            self.real,
            *(member.target for member in self.replicas.replica_pool.members),
        ]

    def raw_connection(self) -> PoolProxiedConnection:
        """Return a DBAPI connection to the primary; it counts as a write."""
        return self.primary.raw_connection()

    def dispose(self, close: bool = True) -> None:
        """Dispose of the connection pools of the primary and of every replica."""
        self.monitor.stop()
        self.fleet.stop()
        for engine in self.engines():
            engine.dispose(close)

    def after_fork(self) -> None:
        """Leave inherited sockets to the parent, and pick from another start."""
        self.monitor.after_fork()
        self.fleet.renew_locks()
        self.dispose(close=False)
        self.replicas.replica_pool.reshuffle()
        self.reads.renew()
        self.fleet.after_fork()
