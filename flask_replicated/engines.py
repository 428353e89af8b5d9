"""Engine-shaped objects: they look like one engine and stand for several.

``Session`` and Core only ever call ``connect()`` on an engine, and then know
the connection by its real engine. So a replica is picked, and failed over,
exactly where a connection is made: before any statement was sent, and not when
somebody only asks for a dialect.
"""

from __future__ import annotations

import contextlib
import logging
import weakref
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import TimeoutError  # noqa: A004 - not the built-in one

from balancers.errors import error_text

from .connections import PrimaryConnection, ReplicaConnection
from .errors import AllReplicasOutError
from .failures import Verdict, judge_connect
from .routing import Role
from .scopes import active_role

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine.interfaces import PoolProxiedConnection
    from sqlalchemy.pool import Pool as ConnectionPool

    from balancers import Member, Permit, Pool

    from .state import AppState, RequestState

__all__ = ["PrimaryEngine", "ReplicaEngine", "RoutedEngine"]

logger = logging.getLogger("flask_replicated")

_REST = 1.0
"""Seconds for which a replica with no connection to spare is left alone."""


class _EngineShape(Engine):
    """Something that connects like an engine, over a real one.

    URL, dialect, connection pool and events are the real engine's, so a
    listener that is added here hears that engine's connections.
    """

    def __init__(self, real: Engine) -> None:
        self.real = real
        super().__init__(
            real.pool, real.dialect, real.url, hide_parameters=real.hide_parameters
        )

    # dispose() gives an engine another pool, so the pool is looked up each time.
    @property
    def pool(self) -> ConnectionPool:
        return self.real.pool

    @pool.setter
    def pool(self, pool: ConnectionPool) -> None:
        """Ignore what ``Engine`` wants to keep: the real engine keeps it."""

    @property
    def dispatch(self) -> Any:  # type: ignore[override]  # nobody sets it
        return self.real.dispatch

    @property
    def _has_events(self) -> bool:
        return self.real._has_events  # noqa: SLF001 - set by event.listen()

    @_has_events.setter
    def _has_events(self, value: bool) -> None:
        self.real._has_events = value  # noqa: SLF001 - the same

    def dispose(self, close: bool = True) -> None:
        self.real.dispose(close)


class PrimaryEngine(_EngineShape):
    """The primary; its connections report committed writes."""

    def __init__(self, real: Engine, routed: RoutedEngine) -> None:
        self.routed = routed
        super().__init__(real)

    def connect(self) -> PrimaryConnection:
        """Connect to the primary."""
        return _to_primary(self.real, self)


def _to_primary(
    real: Engine, shape: PrimaryEngine | ReplicaEngine
) -> PrimaryConnection:
    connection = PrimaryConnection(real)
    connection.shape = shape
    return connection


class ReplicaEngine(_EngineShape):
    """The pool of replicas as one engine: ``connect()`` picks and fails over."""

    def __init__(self, replicas: Pool[Engine], routed: RoutedEngine) -> None:
        self.replicas = replicas
        self.routed = routed
        self._all_out = False
        super().__init__(replicas.members[0].target)

    def connect(self) -> Connection:
        """Connect to this request's replica, or pick one; try each once.

        Raises:
            AllReplicasOutError: None took the connection, and
                ``REPLICATED_FALLBACK`` is ``'error'``.
        """
        state = self.routed.app.request_state()
        kept = None if state is None else state.kept.get(self)
        causes: dict[str, str] = {}
        for picked in self.replicas.candidates(kept):
            member = picked
            if state is not None and kept is None and not causes:
                # Another thread or task of the request may have picked meanwhile.
                member = state.kept.setdefault(self, picked)
            connection = self._try(member, causes)
            if connection is not None:
                if state is not None:
                    state.kept[self] = member
                return connection
        return self._without_replicas(causes, state)

    def _try(
        self, member: Member[Engine], causes: dict[str, str]
    ) -> ReplicaConnection | None:
        """Connect to one replica, or note why not."""
        permit = self.replicas.permit(member)
        try:
            connection = ReplicaConnection(member.target)
        except TimeoutError as error:  # its pool is exhausted: load, not death
            causes[member.name] = error_text(error)
            return None
        except Exception as error:  # noqa: BLE001 - a creator may raise anything
            causes[member.name] = self._report(member, error, permit)
            return None
        self.replicas.succeeded(member, permit)
        if self._all_out:
            self._all_out = False
            logger.warning("replicas serve reads again")
        connection.shape, connection.member = self, member
        return connection

    def _report(self, member: Member[Engine], error: Exception, permit: Permit) -> str:
        """Tell the breaker that a connect failed; return why, without passwords."""
        cause = error_text(error)
        verdict = judge_connect(error)
        if verdict is Verdict.BUSY:
            self.replicas.rest(member, _REST, error, permit)
        else:
            self.replicas.failed(member, error, permit)
        if verdict is Verdict.MISCONFIGURED:
            logger.error("replica %r is not configured right: %s", member.name, cause)
        return cause

    def _without_replicas(
        self, causes: dict[str, str], state: RequestState | None
    ) -> Connection:
        if self.routed.app.settings.fall_back:
            if not self._all_out:
                self._all_out = True
                logger.error(
                    "every replica is out, and the primary serves their reads "
                    "(REPLICATED_FALLBACK = 'master'): %s",
                    self.replicas.causes() | causes,
                )
            if state is not None:
                # Once the primary was read, a replica would show an older state.
                state.latch("every replica is out")
            return _to_primary(self.routed.real, self)
        raise AllReplicasOutError(self.replicas.causes() | causes)

    def lost(self, member: Member[Engine]) -> None:
        """Let the running request go on with another replica."""
        state = self.routed.app.request_state()
        if state is not None and state.kept.get(self) is member:
            del state.kept[self]


class _Alias(_EngineShape):
    """A real engine under the name of the shape that a caller holds.

    A plain Session keeps its connections by their engines, and looks for them
    by its bind. For its dictionary the two are equal; everything else is real.
    """

    def __init__(self, real: Engine, shape: Engine) -> None:
        self._shape = weakref.ref(shape)
        self._hash = hash(shape)
        super().__init__(real)

    def __eq__(self, other: object) -> bool:
        return other is self or other is self._shape()

    def __hash__(self) -> int:
        return self._hash


class _PrimaryWithOptions(PrimaryEngine):
    """The primary with execution options of its own, for a caller to hold."""

    def connect(self) -> PrimaryConnection:
        connection = super().connect()
        connection.engine = _Alias(self.real, self)
        return connection


class RoutedEngine(_EngineShape):
    """What stands in ``db.engines`` for a bind that has replicas.

    ``connect()`` goes where a read of the running request would go, and to the
    primary outside a request. ``begin()`` announces a write; ``raw_connection()``
    and ``execution_options()`` do not tell; so all three mean the primary. Only
    ``begin()`` inside ``using_slave()`` is a replica's.

    Attributes:
        app: The application's state.
        primary: The primary, as a session uses it for writes.
        replicas: The replicas, as a session uses them for reads.
    """

    def __init__(self, app: AppState, real: Engine, replicas: Pool[Engine]) -> None:
        super().__init__(real)
        self.app = app
        self.primary = PrimaryEngine(real, self)
        self.replicas = ReplicaEngine(replicas, self)
        self._aliases: dict[Engine, _Alias] = {}

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
        real = connection.engine
        alias = self._aliases.get(real)
        if alias is None:
            alias = self._aliases[real] = _Alias(real, self)
        connection.engine = alias
        return connection

    @contextlib.contextmanager
    def begin(self) -> Iterator[Connection]:
        """Connect to the primary and begin a transaction.

        Inside ``using_slave()`` it is a replica's, and cannot write.
        """
        reads = active_role() is Role.REPLICA
        shape: Engine = self.replicas if reads else self.primary
        with shape.connect() as connection, connection.begin():
            yield connection

    def execution_options(self, **options: Any) -> PrimaryEngine:  # type: ignore[override]  # an engine all the same
        """Return the primary with execution options of its own."""
        return _PrimaryWithOptions(self.real.execution_options(**options), self)

    def update_execution_options(self, **options: Any) -> None:
        """Change the execution options of the primary's engine."""
        self.real.update_execution_options(**options)

    def raw_connection(self) -> PoolProxiedConnection:
        """Return a DBAPI connection to the primary."""
        return self.real.raw_connection()

    def dispose(self, close: bool = True) -> None:
        """Dispose of the connection pools of the primary and of every replica."""
        self.real.dispose(close)
        for member in self.replicas.replicas.members:
            member.target.dispose(close)

    def after_fork(self) -> None:
        """Leave inherited sockets to the parent, and pick from another start."""
        self.dispose(close=False)
        self.replicas.replicas.reshuffle()
