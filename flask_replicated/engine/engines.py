"""Engine-shaped objects: they look like one engine and stand for several.

``Session`` and Core only ever call ``connect()`` on an engine, and then know
the connection by its real engine. So a replica is picked, and failed over,
exactly where a connection is made: before any statement was sent, and not when
somebody only asks for a dialect.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import TimeoutError  # noqa: A004 - not the built-in one

from balancers import NoMemberAvailableError
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

from .capacity import Capacity, in_use, is_full
from .connections import PrimaryConnection, ReplicaConnection
from .events import Listeners, raised_by_listener
from .facade import Alias, EngineFacade, shown_by
from .least_stale import Notices, least_stale

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy import Connection, Engine
    from sqlalchemy.engine.interfaces import PoolProxiedConnection

    from balancers import Member, Permit
    from flask_replicated.fleet.fleet import Fleet
    from flask_replicated.fleet.monitor import Monitor
    from flask_replicated.fleet.outage_log import OutageLog
    from flask_replicated.replica.connection_events import ReplicaServer
    from flask_replicated.replica.primary_status import PrimaryStatus
    from flask_replicated.routing.counts import ReadCounts, ReplicaPool
    from flask_replicated.routing.state import AppState, RequestState

__all__ = ["PrimaryEngine", "ReplicaPoolEngine", "RoutedEngine"]

logger = logging.getLogger("flask_replicated")

_REST = 1.0
"""Seconds for which a replica with no connection to spare is left alone."""
_PAUSE = 60.0
"""Seconds in which load on all replicas is told of once."""
_ALL_OUT, _STALE = "every replica is out", "the least stale serves"
"""What a log line says once."""


class PrimaryEngine(EngineFacade):
    """The primary; its connections report committed writes.

    It equals the real engine: a session, whoever made it, keeps its connections by
    their engines and looks for them by its bind.

    Args:
        real: The primary's engine.
        routed: The engine that it is part of.
        stands_in_for: The replicas, where the primary serves a read of theirs.
    """

    def __init__(
        self,
        real: Engine,
        routed: RoutedEngine,
        stands_in_for: ReplicaPoolEngine | None = None,
    ) -> None:
        self.routed = routed
        self._facade = stands_in_for or self
        super().__init__(real)

    def __eq__(self, other: object) -> bool:
        return other is self or other is self.real

    def __hash__(self) -> int:
        return hash(self.real)

    def connect(self) -> Connection:
        """Connect to the primary."""
        app = self.routed.app
        app.notice_fork()
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


class ReplicaPoolEngine(EngineFacade):
    """The pool of replicas as one engine: ``connect()`` picks and fails over."""

    def __init__(
        self,
        replica_pool: ReplicaPool,
        routed: RoutedEngine,
        replicas: Mapping[str, ReplicaServer],
    ) -> None:
        self.replica_pool = replica_pool
        self.reads = routed.reads
        self.routed = routed
        self._replicas = replicas
        settings = routed.app.settings
        self._room = Capacity(
            replica_pool,
            replicas,
            settings.balancer,
            bearable=settings.connect_timeout,
            longest=settings.breaker_max_reset,
            bind=routed.outages.setting,
        )
        self._told = Notices()
        self._primary_failed = -math.inf
        self._load_from = 0.0  # when load is told of again
        self._instead = PrimaryEngine(routed.real, routed, self)
        self._picked: dict[Member[Engine], _PickedEngine] = {}
        members = replica_pool.members
        # A fleet keeps this up to date.
        super().__init__(members[0].target if members else routed.real)

    def connect(self) -> Connection:
        """Connect to this request's replica, or pick one; try each once.

        Raises:
            AllReplicasOutError: None took the connection, and
                ``REPLICATED_FALLBACK`` is ``'error'``.
        """
        routed = self.routed
        if routed.monitor.idle or routed.fleet.idle or routed.app.was_forked():
            routed.wake()
        state = routed.app.request_state()
        pool = self.replica_pool
        kept = None
        try:
            if state is None:
                member = pool.pick()
            elif self not in state.kept:
                # Another thread or task of the request may pick meanwhile.
                member = state.kept.setdefault(self, pool.pick())
            else:
                kept = state.kept[self]
                member = pool.first(kept) or pool.pick()
                if member is not kept:
                    state.kept[self] = member
        except NoMemberAvailableError:
            return self._without_replicas({}, set(), state)
        if member is not kept and in_use(member.target):
            member = self._where_room_is(member, state)
        permit = pool.permit(member)
        try:
            connection = (self._picked.get(member) or self._note(member)).connect()
        except Exception as error:  # noqa: BLE001 - a creator may raise anything
            cause, lost = self._report(member, error, permit)
            if member is kept and state is not None and not lost:
                return self._stand_in(state)
            causes = {member.name: cause}
            return self._elsewhere(
                member, causes, set() if lost else set(causes), state
            )
        if not permit.quiet or self._told or self._room.exhausted:
            self._welcome(member, permit)
        return connection

    def _where_room_is(
        self, picked: Member[Engine], state: RequestState | None
    ) -> Member[Engine]:
        """Return the replica that was picked, unless others have more room."""
        member = self._room.choose(picked)
        if member is not picked and state is not None:
            state.kept[self] = member
        return member

    def _elsewhere(
        self,
        failed: Member[Engine],
        causes: dict[str, str],
        busy: set[str],
        state: RequestState | None,
    ) -> Connection:
        """Connect to another replica than the one that failed; try each once.

        None is tried any more when ``REPLICATED_FAILOVER_TIMEOUT`` is over.

        Args:
            failed: The one that failed.
            causes: Why, by its name; it takes those of the others.
            busy: Those of them that had no connection to spare; the same.
            state: Of the running request, or None.
        """
        until = time.monotonic() + self.routed.app.settings.failover_timeout
        # Whoever has waited already waits no more.
        for member in self._others(failed, causes, busy, wait=not busy):
            permit = self.replica_pool.permit(member)
            try:
                connection = (self._picked.get(member) or self._note(member)).connect()
            except Exception as error:  # noqa: BLE001 - the same
                causes[member.name], lost = self._report(member, error, permit)
                if not lost:
                    busy.add(member.name)
                if time.monotonic() >= until:
                    break
                continue
            self._welcome(member, permit)
            if state is not None:
                state.kept[self] = member
            return connection
        return self._without_replicas(causes, busy, state)

    def _others(
        self,
        failed: Member[Engine],
        causes: dict[str, str],
        busy: set[str],
        *,
        wait: bool,
    ) -> Iterator[Member[Engine]]:
        """Return whom to try: those with room; at last one that is to be waited for."""
        full = []
        for member in self.replica_pool.others(failed):
            if is_full(member.target):
                self._room.found_full(member, self.replica_pool.permit(member))
                causes[member.name] = "it has no connection to spare"
                busy.add(member.name)
                full.append(member)
            else:
                yield member
        if wait:
            yield from full[:1]

    def _stand_in(self, state: RequestState) -> Connection:
        """Connect to the primary: the request's replica lives, and has no time for it.

        Another replica could show an older state than this request has seen.
        """
        state.latch(SPENT)
        return self._instead.connect()

    def _welcome(self, member: Member[Engine], permit: Permit) -> None:
        """Tell the breaker that a connect succeeded, and the operator."""
        self.replica_pool.succeeded(member, permit)
        self._room.relieved(member)
        stale, all_out = self._told.end(_STALE), self._told.end(_ALL_OUT)
        if stale or all_out:
            logger.warning("replicas serve reads again")

    def _report(
        self, member: Member[Engine], error: Exception, permit: Permit
    ) -> tuple[str, bool]:
        """Tell the breaker that a connect failed.

        Returns:
            Why, without passwords; and whether the replica is lost to its callers.

        Raises:
            Exception: It did connect, and a listener of the program has failed.
        """
        if raised_by_listener(error, member.target):
            self._welcome(member, permit)
            raise error
        cause = error_text(error)
        if isinstance(error, TimeoutError):  # load, not death
            if is_full(member.target):
                self._room.found_full(member, permit)
            return cause, False
        verdict = judge_connect(error)
        # A silence may be that of one server of several: it counts as a failure.
        unfit = isinstance(error, UnfitReplicaError)
        unfit = unfit and not isinstance(error, ReplicaSilentError)
        if verdict is Verdict.MISCONFIGURED or unfit:
            # Somebody has said so who knows: one word is enough.
            reset = self.routed.app.settings.breaker_reset
            self.replica_pool.trip(member, reset, error)
            return cause, True
        if verdict is Verdict.BUSY:
            self.replica_pool.pause(member, _REST, error, permit)
        else:
            self.replica_pool.failed(member, error, permit)
        return cause, verdict is not Verdict.BUSY

    def _without_replicas(
        self, causes: dict[str, str], busy: set[str], state: RequestState | None
    ) -> Connection:
        """Connect to the primary, or if that is out, to a replica that only lags."""
        settings = self.routed.app.settings
        shown = self.replica_pool.causes() | causes
        load = busy == causes.keys() and self.routed.outages.is_load(busy)
        if not settings.fall_back:
            raise AllReplicasOutError(shown, load=load)
        if self.primary_is_out:
            stale = self._least_stale(shown, state)
            if stale is not None:
                return stale
        try:
            connection = self._instead.connect()
        except TimeoutError:
            raise  # its connection pool is exhausted: load, not death
        except Exception:
            self.primary_failed()
            stale = self._least_stale(shown, state)
            if stale is None:
                raise
            return stale
        self._say_who_serves(shown, load=load)
        if state is not None:
            # Once the primary was read, a replica would show an older state.
            state.latch(ALL_BUSY if load else ALL_OUT)
        return connection

    @property
    def primary_is_out(self) -> bool:
        """Whether it is known that the primary does not answer now."""
        rested = time.monotonic() - self._primary_failed
        return self.routed.status.out or rested < self.routed.app.settings.breaker_reset

    def primary_failed(self) -> None:
        """Hear that the primary could not be reached in place of a replica."""
        self._primary_failed = time.monotonic()

    def _say_who_serves(self, causes: dict[str, str], *, load: bool) -> None:
        """Say once that it is the primary."""
        again = self._told.end(_STALE)
        if load:
            self._say_load(causes)
        # With none at all yet, as DNS has not answered, there is no news either.
        elif self.replica_pool.members and self._told.begin(_ALL_OUT):
            if not self.routed.outages.all_misconfigured():  # each was told of
                logger.error(
                    "every replica is out, and the primary serves their reads "
                    "(REPLICATED_FALLBACK = 'master'): %s",
                    causes,
                )
        elif again:
            logger.warning("the primary connects again, and serves the replicas' reads")

    def _least_stale(
        self, causes: dict[str, str], state: RequestState | None
    ) -> Connection | None:
        """Connect to a replica that is out for its lag alone, if there is one."""
        kept = None if state is None else state.kept.get(self)
        for member in least_stale(self.replica_pool, self._replicas, kept):
            permit = self.replica_pool.permit(member)
            token = accept_any_lag.set(True)
            try:
                connection = (self._picked.get(member) or self._note(member)).connect()
            except Exception as error:  # noqa: BLE001 - a creator may raise anything
                self._report(member, error, permit)
                continue
            finally:
                accept_any_lag.reset(token)
            if self._told.begin(_STALE):
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

    def _say_load(self, causes: dict[str, str]) -> None:
        now = time.monotonic()
        if now >= self._load_from:
            self._load_from = now + _PAUSE
            logger.warning(
                "every replica is busy, and the primary serves the reads that none has "
                "a connection for (REPLICATED_FALLBACK = 'master'): %s. If it goes on, "
                "%s.",
                causes,
                MORE_AT_A_TIME,
            )

    def _note(self, member: Member[Engine]) -> _PickedEngine:
        """Return what connects to a replica that was not picked before."""
        self.forget_removed()
        engine = self._picked[member] = _PickedEngine(member, self)
        return engine

    def forget_removed(self) -> None:
        """Let go of replicas that have been removed."""
        there = self.replica_pool.members
        self._picked = {m: one for m, one in self._picked.items() if m in there}

    def lost(self, member: Member[Engine]) -> None:
        """Let the running request go on with another replica."""
        state = self.routed.app.request_state()
        if state is not None and state.kept.get(self) is member:
            del state.kept[self]


class _PrimaryWithOptions(PrimaryEngine):
    """The primary with execution options of its own, for a caller to hold."""

    def _connection_cls(self, engine: Engine) -> PrimaryConnection:  # type: ignore[override]  # the same
        connection = super()._connection_cls(engine)
        connection.announced = True
        connection.engine = Alias(self.real, self)
        return connection


class RoutedEngine(EngineFacade):
    """What stands in ``db.engines`` for a bind that has replicas.

    ``connect()`` goes where a read of the running request would go, and to the
    primary outside a request. ``begin()`` announces a write; ``raw_connection()``
    and ``execution_options()`` do not tell; so all three mean the primary. Only
    ``begin()`` inside ``using_slave()`` is a replica's.

    Attributes:
        app: The application's state.
        classifier: Tells what a statement does.
        classify: The classifier's own ``kind``, at hand for each statement.
        reads: Counts who got how many reads.
        monitor: What looks at the replicas in the background.
        primary: The primary, as a session uses it for writes.
        replicas: The replicas, as a session uses them for reads.
        status: What is known of the primary.
        outages: Tells of the replicas' outages, and so knows of them.
        fleet: Takes in new replicas and lets others go.
    """

    fleet: Fleet

    # Like the primary's, but what is listened to here is heard by every server.
    dispatch = shown_by("_listeners", "dispatch")
    pool = shown_by("_listeners", "pool")
    dialect = shown_by("_listeners", "dialect")

    def __init__(
        self,
        app: AppState,
        real: Engine,
        replicas: ReplicaPool,
        *,
        reads: ReadCounts,
        monitor: Monitor,
        status: PrimaryStatus,
        outages: OutageLog,
        cared: Mapping[str, ReplicaServer],
    ) -> None:
        super().__init__(real)
        self.app = app
        self.classifier = app.classifier(real.dialect.name)
        self.classify = self.classifier.kind
        self.reads = reads
        self.monitor = monitor
        self.status = status
        self.outages = outages
        self.primary = PrimaryEngine(real, self)
        self.replicas = ReplicaPoolEngine(replicas, self, cared)
        self._aliases: dict[Engine, Alias] = {}
        self._shared_options: dict[str, Any] = {}
        self._listeners = Listeners(self)

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
            return self._named(self.replicas.connect())
        return self._named(self.primary.connect())

    def _named(self, connection: Connection) -> Connection:
        if isinstance(connection, ReplicaConnection):
            connection.of_session = False
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
                connection.of_session = False
            elif isinstance(connection, PrimaryConnection):
                connection.announced = True
            with connection.begin():
                yield connection

    def execution_options(self, **options: Any) -> PrimaryEngine:  # type: ignore[override]  # an engine all the same
        """Return the primary with execution options of its own."""
        return _PrimaryWithOptions(self.real.execution_options(**options), self)

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
        self._listeners.share(engine)

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
