"""The engine that stands in ``db.engines`` for a primary and its replicas."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

from flask_replicated.consistency.demands import Rules
from flask_replicated.consistency.tokens import Mark, Token, bind_id
from flask_replicated.replica.replica_status import can_measure_lag
from flask_replicated.routing.decision import Role
from flask_replicated.routing.overrides import active_role

from .events import Listeners
from .facade import Alias, RoutedFacade, shown_by
from .known import Known
from .primary_connection import PrimaryConnection
from .primary_engine import PrimaryEngine
from .replica_connection import ReplicaConnection
from .replica_pool_engine import ReplicaPoolEngine

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy import Connection, Engine
    from sqlalchemy.engine.interfaces import PoolProxiedConnection

    from flask_replicated.replica.connection_events import ReplicaServer
    from flask_replicated.routing.announcer import Announcer
    from flask_replicated.routing.counts import ReadCounts
    from flask_replicated.routing.incidents import Incidents
    from flask_replicated.routing.snapshots import ReplicaPool
    from flask_replicated.routing.state import AppState
    from flask_replicated.settings.config import Settings

    from .background import MonitorLike, OutagesLike
    from .primary import Primary

__all__ = ["RoutedEngine"]


class RoutedEngine(RoutedFacade):
    """What stands in ``db.engines`` for a bind that has replicas.

    ``connect()`` goes where a read of the running request would go, and to the
    primary outside a request. ``begin()`` announces a write; ``raw_connection()``
    and ``execution_options()`` do not tell which; so all three mean the primary. Only
    ``begin()`` inside ``using_slave()`` is a replica's.

    Attributes, beside those of a :class:`.RoutedFacade`:
        checks: The checks of the primary's connections.
        listeners: The listeners that every server has.
        servers: What is known of each replica's server, by name; kept up to date.
    """

    primary: PrimaryEngine
    replicas: ReplicaPoolEngine
    bind = bind_id(None)
    primary_class = PrimaryEngine
    replicas_class = ReplicaPoolEngine

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
        incidents: Incidents,
        announcer: Announcer,
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
        self.incidents = incidents
        self.announcer = announcer
        self.monitor = monitor
        self.checks = checks
        self.status = checks.status
        self.outages = outages
        self.servers = servers
        self.known = Known(app.settings, real.dialect.name, self.status, servers)
        self.rules = _rules(app.settings, real.dialect.name)
        self.primary = self.primary_class(real, self)
        self.replicas = self.replicas_class(replicas, self, servers)
        if self.known.lacks_positions:
            # Raised at the first use. In this way no other connect has to check.
            for facade in (self.primary, self.replicas):
                vars(facade)["connect"] = self.known.refuse
        self._aliases: dict[Engine, Alias] = {}
        self._shared_options: dict[str, Any] = {}
        self.listeners = Listeners(self)

    def untold(self) -> Token:
        """Return a token for what was written by now, whose position is not known."""
        return Token({self.bind: Mark(untold=time.time())})

    def token_of(self, connection: Connection) -> Token:
        """Return a token for what was just committed.

        Args:
            connection: The primary's connection that has committed it.
        """
        position = self.known.of_primary(connection)
        if position is None:
            if not connection.invalidated:
                self.known.note_untold()
            return self.untold()
        return Token({self.bind: Mark(position, time.time())})

    def told(self, mark: Mark) -> Mark:
        """Return a mark with a position in place of a time.

        Args:
            mark: Whose position was not asked for when something was committed. If the
                primary does not tell it now either, it stays as it is.
        """
        position = None
        if self.known.source is not None:
            position = self.replicas.ask_primary()
        if position is None:
            return mark
        return mark._replace(untold=0.0).merged(Mark(position, time.time()))

    def trial(self) -> contextlib.AbstractContextManager[object]:
        """Return a block in which to connect to the primary."""
        return self.checks.trial() if self.status.out else contextlib.nullcontext()

    def wake(self) -> None:
        """Begin what goes on in the background, in a forked child all of it anew."""
        self.app.notice_fork()
        if self.monitor.idle:
            self.monitor.start(self)
        if self.fleet.idle:
            self.fleet.start()

    def obey_orders(self) -> None:
        """Obey what is ordered by now, unless that goes on in the background."""
        self.app.notice_fork()
        if self.fleet.idle:
            self.fleet.start_control()

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
        self.incidents.renew()
        self.fleet.after_fork()


def _rules(settings: Settings, dialect: str) -> Rules:
    """Return what the settings say of what reads of a bind must be shown.

    A replica may lag for longer than a pin by time lasts. So that time goes on to count
    until no replica that may be used can lag so far.
    """
    seconds, lag = settings.pin_seconds, settings.max_lag
    if seconds and can_measure_lag(dialect):
        seconds = max(seconds, settings.position_seconds if lag is None else lag)
    return Rules(settings.guarantee, settings.pin_seconds, seconds)
