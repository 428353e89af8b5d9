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
from sqlalchemy.exc import DBAPIError

from .connections import PrimaryConnection, ReplicaConnection, write_refused
from .engines import RoutedEngine
from .errors import WriteOnReplicaError
from .options import carrying, preference, wanted_role
from .routing import Role
from .scopes import Using, active_role, current_block
from .sqltext import Kind
from .state import current_app_state, this_request

if TYPE_CHECKING:
    from collections.abc import Callable

    from flask import Request
    from sqlalchemy import Engine

    from .engines import PrimaryEngine, ReplicaEngine
    from .state import AppState, RequestState

__all__ = ["RoutedSession", "routed_session_class"]

# An enum's attribute costs as much as a question.
_READ = Kind.READ
_PRIMARY, _REPLICA = Role.PRIMARY, Role.REPLICA
_TABLE_OR_DML = (sa.Table, sa.UpdateBase)


class RoutedSession(orm.Session):
    """A session that reads from a replica and writes to the primary.

    Put it before another session class to route what that class would send to
    a bind that has replicas; see :func:`routed_session_class`.
    """

    _app: AppState | None = None
    _default: RoutedEngine | None = None
    _primary: PrimaryEngine
    _replicas: ReplicaEngine
    # The request that this session serves and, for the default bind, its state.
    _request: Request | None = None
    _state: RequestState | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._reset()
        app = current_app_state()
        if app is not None:
            self._app = app
            self._classify = app.classify
            self._plain = app.plain_mappers
            default = app.routes.get(None)
            if default is not None and self._reads_bind_keys:
                self._default = default
                self._primary, self._replicas = default.primary, default.replicas
        super().__init__(*args, **kwargs)

    def _reset(self) -> None:
        """Forget the connections of a transaction that has ended."""
        self._lanes: dict[Engine, Engine | sa.Connection] = {}
        self._primaries: dict[Engine, PrimaryConnection] = {}
        self._reads: dict[Engine, ReplicaConnection] = {}
        # The default bind's read lane once more, for the way of nearly all.
        self._lane: Engine | None = None
        self._losses = 0

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
            return bind  # type: ignore[no-any-return]  # it is what the caller gave
        # Every statement comes through here, and nearly every one is a read of
        # the default bind in a request whose role is settled. Its way is laid
        # out flat, cheapest questions first: calls would double the price.
        state = self._state
        if (
            state is not None
            and clause is not None
            and not self._flushing
            and current_block.get() is None
            and (mapper is None or mapper in self._plain)
            and self._serves_this_request()
            and self._classify(clause) is _READ
        ):
            if state.settled is _REPLICA:
                return self._lane or self._replicas
            if state.settled is _PRIMARY:
                return self._lanes.get(self._primary, self._primary)
        return self._find_bind(mapper, clause, kwargs)

    def _serves_this_request(self) -> bool:
        try:
            return this_request() is self._request
        except RuntimeError:  # dearer than to ask first, and seldom
            return False

    def _find_bind(
        self, mapper: Any, clause: Any, kwargs: dict[str, Any]
    ) -> Engine | sa.Connection:
        routed: Any = self._default
        if routed is None or not _on_default_bind(mapper, clause):
            routed = super().get_bind(mapper, clause=clause, **kwargs)
            if not isinstance(routed, RoutedEngine):
                return routed  # type: ignore[no-any-return]  # another's engine
        shape = routed.shapes[self._role(routed, mapper, clause)]
        lane: Engine | sa.Connection = self._lanes.get(shape, shape)
        return lane

    def _role(self, routed: RoutedEngine, mapper: Any, clause: Any) -> Role:
        if clause is not None and not self._flushing:
            kind = routed.app.classify(clause)
        else:
            # A flush, a bulk operation's second call, or connection(): what
            # will run is not known.
            kind = Kind.WRITE
        block = active_role()
        if block is not None:
            return self._role_in_block(block, kind, mapper, clause)
        if kind is not Kind.READ:
            return Role.PRIMARY
        state = self._request_state(routed.app)
        if mapper is not None:
            preferred = preference(mapper)
            if preferred is not None and not (state and state.latched):
                return preferred
            if preferred is None and routed is self._default:
                self._plain[mapper] = True
        return Role.PRIMARY if state is None else state.decision.role

    def _role_in_block(self, block: Role, kind: Kind, mapper: Any, clause: Any) -> Role:
        if block is Role.REPLICA and kind >= Kind.LOCK:
            if clause is None and mapper is None and not self._flushing:
                return block  # connection(): the connection watches what it is sent
            raise write_refused(
                "a flush" if clause is None else clause, "inside using_slave()"
            )
        return block

    def _request_state(self, app: AppState) -> RequestState | None:
        if not has_request_context():
            return None
        state = app.request_state()
        if self._default is not None and app is self._app:
            self._request, self._state = this_request(), state
        return state

    def _note_replica(self, connection: ReplicaConnection) -> None:
        shape = connection.shape
        self._reads[shape] = connection
        self._lanes[shape] = connection.engine
        if self._default is not None and shape is self._replicas:
            self._lane = connection.engine

    def _note_primary(self, connection: PrimaryConnection) -> None:
        routed = connection.shape.routed
        earlier = self._primaries.setdefault(connection.engine, connection)
        # Where every replica is out the primary serves their reads. Should this
        # transaction have written there already, the earlier connection goes on:
        # two on one server would wait for each other's locks.
        lane = connection.engine if earlier is connection else earlier
        self._lanes[connection.shape] = self._lanes[routed.primary] = lane

    def connection(self, *args: Any, **kwargs: Any) -> sa.Connection:
        """Return the connection of the current transaction, as any session does.

        Without a bind that says otherwise it is the primary's, because nobody
        knows what it is for; the request's reads then stay there.
        """
        connection = super().connection(*args, **kwargs)
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
        if wanted is None:
            return self._survive(run, statement, args, kwargs)
        with Using(wanted):
            return self._survive(run, carrying(statement, wanted), args, kwargs)

    def _survive(
        self,
        run: Callable[..., Any],
        statement: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Run a statement; once more elsewhere if its replica cannot answer."""
        while True:
            try:
                return run(statement, *args, **kwargs)
            except WriteOnReplicaError:
                if not self._repair():
                    raise
            except DBAPIError as error:
                # A primary that is lost may have done what it was asked.
                lost = next((r for r in self._reads.values() if r.invalidated), None)
                if lost is None or not error.connection_invalidated:
                    raise
                if not self._leave(lost):
                    raise

    def _repair(self) -> bool:
        """Turn to the primary after a write that only the replica recognised.

        Only where it was the first statement there: nothing was seen yet.
        """
        read = next((r for r in self._reads.values() if r.refused), None)
        if read is None or read.used or active_role() is Role.REPLICA:
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
        state = routed.app.request_state()
        if state is not None:
            state.latch(reason)


def _on_default_bind(mapper: Any, clause: Any) -> bool:
    """Whether Flask-SQLAlchemy would send this to the default engine."""
    if mapper is None:
        # Of clauses without a mapper it looks at tables and DML only.
        return not isinstance(clause, _TABLE_OR_DML)
    try:
        return mapper.local_table.metadata.info.get("bind_key") is None
    except AttributeError:  # a class, an alias, a join: the slow way knows
        return False


@event.listens_for(RoutedSession, "after_begin")
def _note_connection(
    session: RoutedSession, _: orm.SessionTransaction, connection: sa.Connection
) -> None:
    if isinstance(connection, ReplicaConnection):
        session._note_replica(connection)  # noqa: SLF001 - a listener of this class
    elif isinstance(connection, PrimaryConnection):
        session._note_primary(connection)  # noqa: SLF001


@event.listens_for(RoutedSession, "after_transaction_end")
def _let_go(session: RoutedSession, transaction: orm.SessionTransaction) -> None:
    if transaction.parent is None:
        session._reset()  # noqa: SLF001 - a listener of this class


def routed_session_class(base: type[orm.Session]) -> type[orm.Session]:
    """Return a session class that routes what ``base`` would send to the primary.

    ``base`` may be any session class; its own ``get_bind`` is respected.
    """
    if issubclass(base, RoutedSession):
        return base
    attributes = {"_reads_bind_keys": base.get_bind is FlaskSession.get_bind}
    return type(base.__name__, (RoutedSession, base), attributes)
