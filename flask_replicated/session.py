"""``Session.get_bind``: asks routing, then hands out an Engine-shaped object.

The shapes pick a server when the session connects. From then until the end of
the session's transaction ``get_bind`` returns the real engine behind that
connection, so the session finds the connection that it already has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from flask import has_request_context
from flask_sqlalchemy.session import Session as FlaskSession
from sqlalchemy import event, orm
from sqlalchemy.exc import DBAPIError, PendingRollbackError, UnboundExecutionError

from .connections import PrimaryConnection, ReplicaConnection, write_refused
from .engines import RoutedEngine
from .errors import WriteOnReplicaError
from .options import carrying, reads_primary, wanted_role
from .routing import WROTE, Role
from .scopes import active_role, current_block
from .sqltext import Kind
from .state import current_app_state, this_request

if TYPE_CHECKING:
    from collections.abc import Callable

    from flask import Request
    from sqlalchemy import Engine

    from .engines import PrimaryEngine, ReplicaEngine
    from .state import RequestState

__all__ = ["RoutedSession", "routed_session_class"]

# An enum's attribute costs as much as a question.
_READ = Kind.READ
_REPLICA = Role.REPLICA
_MANY = 2000
_EMPTY: dict[Any, Any] = {}  # never written to


class RoutedSession(orm.Session):
    """A session that reads from a replica and writes to the primary.

    Put it before another session class to route what that class would send to
    a bind that has replicas; see :func:`routed_session_class`.
    """

    # What is known once the first statement of a request has come; see _serve().
    _default: RoutedEngine | None = None
    _request: Request | None = None
    _state: RequestState
    _primary: PrimaryEngine
    _replicas: ReplicaEngine
    _plain_mappers: set[Any]
    _classify: Callable[[Any], Kind]

    # The connections of the transaction in progress: the real engine behind each
    # shape (the default bind's replica once more in _lane, for the way of nearly
    # all), the primary's and the replicas' connections, the replicas lost so far.
    _lanes: dict[Engine, Engine | sa.Connection] = _EMPTY
    _lane: Engine | None = None
    _primaries: dict[Engine, PrimaryConnection] = _EMPTY
    _reads: dict[Engine, ReplicaConnection] = _EMPTY
    _losses = 0

    # What the statement that is being executed asks for itself.
    _wanted: Role | None = None

    # Whether connection() was called, and so nothing is being executed.
    _connecting = False

    # Whether the class behind this one chooses engines by bind key alone, as
    # Flask-SQLAlchemy's does; then the default bind is known without asking it.
    _reads_bind_keys = False

    def get_bind(
        self,
        mapper: Any | None = None,
        clause: Any | None = None,
        bind: Any | None = None,
        **kwargs: Any,
    ) -> Engine | sa.Connection:
        """Return where a statement goes: an explicit bind, a replica, the primary.

        Raises:
            WriteOnReplicaError: It writes or locks inside ``using_slave()``.
        """
        if bind is not None:
            return self._given(bind, mapper, clause)
        # Every statement comes through here, and nearly every one is a read of
        # the default bind in a request. Its way is laid out flat, cheapest
        # questions first: calls would double the price. (Without a mapper, what
        # Flask-SQLAlchemy sends elsewhere is a table or DML, and so no read.)
        if (
            clause is not None
            and not self._flushing
            and self._wanted is None
            and not self._primaries
            and current_block.get() is None
            and has_request_context()
            and (this_request() is self._request or self._serve())
            and (
                mapper is None
                or mapper in self._plain_mappers
                or self._is_plain(mapper)
            )
            and self._classify(clause) is _READ
        ):
            if (self._state.settled or self._state.decision.role) is _REPLICA:
                return self._lane or self._replicas
            return self._primary
        return self._find_bind(mapper, clause, kwargs)

    def _given(
        self, bind: Engine | sa.Connection, mapper: Any, clause: Any
    ) -> Engine | sa.Connection:
        if not isinstance(bind, RoutedEngine):
            return bind
        return self._lane_of(bind, self._role(bind, mapper, clause))

    def _serve(self) -> bool:
        """Learn which request this session serves; whether it may go the short way."""
        app = current_app_state()
        default = app.routes.get(None) if app and self._reads_bind_keys else None
        state = app.request_state() if app and default else None
        if app is None or default is None or state is None:
            return False
        if app.engines.get(None) is not default:  # a test has put in another
            return False
        self._default, self._classify = default, app.classify
        self._primary, self._replicas = default.primary, default.replicas
        self._plain_mappers = app.plain_mappers
        self._request, self._state = this_request(), state
        return True

    def _is_plain(self, mapper: Any) -> bool:
        """Whether a mapped class is on the default bind and prefers no role."""
        plain = _on_default_bind(mapper) and not reads_primary(mapper)
        if plain:
            if len(self._plain_mappers) > _MANY:
                self._plain_mappers.clear()  # a program that makes models as it runs
            self._plain_mappers.add(mapper)
        return plain

    def _find_bind(
        self, mapper: Any, clause: Any, kwargs: dict[str, Any]
    ) -> Engine | sa.Connection:
        routed = super().get_bind(mapper=mapper, clause=clause, **kwargs)
        if not isinstance(routed, RoutedEngine):
            return routed
        return self._lane_of(routed, self._role(routed, mapper, clause))

    def _lane_of(self, routed: RoutedEngine, role: Role) -> Engine | sa.Connection:
        shape: Engine = routed.replicas if role is _REPLICA else routed.primary
        return self._lanes.get(shape, shape)

    def _role(self, routed: RoutedEngine, mapper: Any, clause: Any) -> Role:
        if clause is not None and not self._flushing:
            kind = routed.app.classify(clause)
        else:
            # A flush, a bulk operation's second call, or connection(): what
            # will run is not known.
            kind = Kind.WRITE
        if self._wanted is not None and not self._flushing:
            return self._asked(
                self._wanted, "execution_options(replicated=...)", kind, clause
            )
        block = active_role()
        if block is not None:
            return self._asked(block, "inside using_slave()", kind, clause)
        if kind is not Kind.READ:
            return Role.PRIMARY
        primary = self._primaries.get(routed.real)
        if primary is not None and primary.wrote:
            return Role.PRIMARY  # its own rows are nowhere else yet
        if mapper is not None and reads_primary(mapper):
            return Role.PRIMARY
        return routed.app.role()

    def _asked(self, role: Role, why: str, kind: Kind, clause: Any) -> Role:
        """Return the role that code asked for, unless a write would meet a replica."""
        # connection(): nothing is sent yet; the connection watches what it is sent.
        if role is Role.REPLICA and kind >= Kind.LOCK and not self._connecting:
            raise write_refused("a flush" if clause is None else clause, why)
        return role

    def _note(self, connection: sa.Connection) -> None:
        """Remember which connection a transaction has begun on."""
        if not self._lanes:
            self._lanes, self._reads, self._primaries = {}, {}, {}
        if isinstance(connection, ReplicaConnection):
            shape = connection.shape
            self._reads[shape] = connection
            self._lanes[shape] = connection.engine
            if shape.routed is self._default:
                self._lane = connection.engine
        elif isinstance(connection, PrimaryConnection):
            self._note_primary(connection)

    def _note_primary(self, connection: PrimaryConnection) -> None:
        routed = connection.shape.routed
        earlier = self._primaries.setdefault(connection.engine, connection)
        # Where every replica is out the primary serves their reads. Should this
        # transaction have written there already, the earlier connection goes on:
        # two on one server would wait for each other's locks.
        # So by connection, not by engine: a savepoint that ends leaves the engine's
        # name with whichever connection came last.
        self._lanes[connection.shape] = self._lanes[routed.primary] = earlier

    def _forget(self) -> None:
        """Forget the connections of a transaction that has ended."""
        self._lanes = self._reads = self._primaries = _EMPTY
        self._lane = None
        self._losses = 0

    def connection(self, *args: Any, **kwargs: Any) -> sa.Connection:
        """Return the connection of the current transaction, as any session does.

        Without a bind or a using_slave() that says otherwise it is the primary's,
        because nobody knows what it is for; the request's reads then stay there.
        """
        self._connecting = True
        try:
            connection = super().connection(*args, **kwargs)
        finally:
            self._connecting = False
        if isinstance(connection, PrimaryConnection) and active_role() is None:
            state = connection.shape.routed.app.request_state()
            if state is not None and state.decision.role is Role.REPLICA:
                # Once the primary was read, a replica would show an older state.
                state.latch("the session's connection was asked for")
        return connection

    # --- statements, and what may happen to them ------------------------------

    def execute(self, statement: Any, *args: Any, **kwargs: Any) -> Any:
        """Execute a statement, as any session does."""
        return self._run(super().execute, statement, args, kwargs)

    def scalar(self, statement: Any, *args: Any, **kwargs: Any) -> Any:
        """Execute a statement and return its first value."""
        return self._run(super().scalar, statement, args, kwargs)

    def scalars(self, statement: Any, *args: Any, **kwargs: Any) -> Any:
        """Execute a statement and return its first column."""
        return self._run(super().scalars, statement, args, kwargs)

    def _run(
        self,
        run: Callable[..., Any],
        statement: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if type(statement) is sa.CompoundSelect:
            # The one read that SQLAlchemy does not show to get_bind().
            given = kwargs.get("bind_arguments") or {}
            kwargs["bind_arguments"] = {"clause": statement, **given}
        wanted = wanted_role(statement, kwargs.get("execution_options"))
        if wanted is not None:
            statement = carrying(statement, wanted)
        elif isinstance(statement, sa.UpdateBase):
            self._latch_early(statement, kwargs.get("bind_arguments"))
        outer, self._wanted = self._wanted, wanted
        try:
            while True:
                try:
                    return run(statement, *args, **kwargs)
                except (
                    DBAPIError,
                    PendingRollbackError,
                    WriteOnReplicaError,
                ) as error:
                    # Once more elsewhere, if only its replica cannot answer.
                    if not self._recovers(error):
                        raise
        finally:
            self._wanted = outer

    def _latch_early(self, write: sa.UpdateBase, bound: Any) -> None:
        """Let a write's own reads, of the rows to change, see the primary."""
        if bound or active_role() is not None:
            return
        try:
            routed = super().get_bind(clause=write)
        except UnboundExecutionError:  # the mapper will tell
            return
        if isinstance(routed, RoutedEngine):
            routed.app.latch(WROTE)

    def _recovers(
        self, error: DBAPIError | PendingRollbackError | WriteOnReplicaError
    ) -> bool:
        """Turn away from a replica that cannot answer; whether another server may."""
        if isinstance(error, WriteOnReplicaError):
            return self._repair()
        lost = next((r for r in self._reads.values() if r.invalidated), None)
        # A primary that is lost may have done what it was asked. What is pending
        # is the loss of a read that the end of a savepoint kept quiet.
        if lost is None or not (
            isinstance(error, PendingRollbackError) or error.connection_invalidated
        ):
            return False
        return self._leave(lost)

    def _repair(self) -> bool:
        """Turn to the primary after a write that only the replica recognised.

        Only where it was the first statement there: nothing was seen yet.
        """
        read = next((r for r in self._reads.values() if r.refused), None)
        if read is None or read.used or _REPLICA in (active_role(), self._wanted):
            return False
        self._continue_on_primary(read, "a replica has refused its write")
        return True

    def _leave(self, lost: ReplicaConnection) -> bool:
        """Turn away from a lost replica; return whether reads may go on elsewhere.

        If it had answered nothing yet, any replica may answer instead, and each
        is tried once. If it had, only the primary is sure to know all that was
        seen, and only where the transaction promised no fixed snapshot.
        """
        routed = lost.shape.routed
        if not lost.used and self._losses < len(routed.replicas.replicas.members):
            self._losses += 1
            self._lane = None
            del self._lanes[lost.shape], self._reads[lost.shape]
            routed.replicas.lost(lost.member)
            return True
        if lost.used and not lost.may_be_continued:
            return False
        self._continue_on_primary(lost, "its replica was lost")
        return True

    def _continue_on_primary(self, read: ReplicaConnection, reason: str) -> None:
        routed = read.shape.routed
        self._lane = None
        del self._reads[read.shape]
        self._lanes[read.shape] = self._lanes.get(routed.primary, routed.primary)
        routed.app.latch(reason)


def _on_default_bind(mapper: Any) -> bool:
    """Whether Flask-SQLAlchemy would send this mapped class to the default engine."""
    try:
        return mapper.local_table.metadata.info.get("bind_key") is None
    except AttributeError:  # a class, an alias, a join: the slow way knows
        return False


@event.listens_for(RoutedSession, "after_begin")
def _note_connection(
    session: RoutedSession, _: orm.SessionTransaction, connection: sa.Connection
) -> None:
    session._note(connection)  # noqa: SLF001 - a listener of this class


# The end is where it belongs; the beginning is for an end that an error skipped.
@event.listens_for(RoutedSession, "after_transaction_create")
@event.listens_for(RoutedSession, "after_transaction_end")
def _forget_connections(
    session: RoutedSession, transaction: orm.SessionTransaction
) -> None:
    if transaction.parent is None:
        session._forget()  # noqa: SLF001 - a listener of this class


def routed_session_class(base: type[orm.Session]) -> type[orm.Session]:
    """Return a session class that routes what ``base`` would send to the primary.

    ``base`` may be any session class; its own ``get_bind`` is respected.
    """
    if issubclass(base, RoutedSession):
        return base
    attributes = {"_reads_bind_keys": base.get_bind is FlaskSession.get_bind}
    return type(base.__name__, (RoutedSession, base), attributes)
