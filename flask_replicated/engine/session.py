"""``Session.get_bind``: asks routing, then hands out an Engine-shaped object.

The facades pick a server when the session connects. From then until the end of
the session's transaction ``get_bind`` returns the real engine behind that
connection, so the session finds the connection that it already has.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, cast

import sqlalchemy as sa
from flask_sqlalchemy.session import Session as FlaskSession
from sqlalchemy import orm
from sqlalchemy.exc import (
    DBAPIError,
    PendingRollbackError,
    TimeoutError,  # noqa: A004 - not the built-in one
    UnboundExecutionError,
)

from flask_replicated.errors import StaleReadError, WriteOnReplicaError
from flask_replicated.routing.decision import LACKING, LOST, PINNED, WROTE, Role
from flask_replicated.routing.flask_context import (
    running_endpoint,
    this_app,
    this_request,
)
from flask_replicated.routing.hints import (
    ROLE_OPTION,
    asks_nothing,
    carrying,
    reads_primary,
    wanted_role,
)
from flask_replicated.routing.overrides import (
    active_role,
    current_block,
    leaves_no_trace,
)
from flask_replicated.sql.text import Kind

from .connections import PrimaryConnection
from .engines import RoutedEngine
from .session_state import EMPTY, SessionState

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

    from .connections import ReplicaConnection

__all__ = ["RoutedSession", "routed_session_class"]

# An enum's attribute costs as much as a question.
_READ = Kind.READ
_REPLICA = Role.REPLICA
_MAY_RECOVER = (DBAPIError, PendingRollbackError, WriteOnReplicaError, StaleReadError)


class RoutedSession(orm.Session):
    """A session that reads from a replica and writes to the primary.

    Put it before another session class to route what that class would send to
    a bind that has replicas; see :func:`routed_session_class`.
    """

    _known: SessionState | None = None

    if not hasattr(orm.Session, "execution_options"):  # in SQLAlchemy 2.0
        execution_options: Any = EMPTY

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
            WriteOnReplicaError: It writes or locks, and ``using_slave()`` or its own
                option asks for a replica.
            ConfigurationError: A model's ``__replicated__`` is no name of the primary.
        """
        known = self._known
        if known is None:
            known = self._known = SessionState()
        if self._transaction is None:
            if known.connections is not None:
                known.forget()
        elif (
            self._transaction._connections is not known.connections  # noqa: SLF001
            or len(known.connections) != known.noted
        ):
            self._note_connections(known)
        if bind is not None:
            return self._given(known, bind, mapper, clause)
        # Every statement comes through here, and nearly every one is a read of
        # the default bind in a request. Its way is laid out flat, cheapest
        # questions first: calls would double the price. (Without a mapper, what
        # Flask-SQLAlchemy sends elsewhere is a table or DML, and so no read.)
        if (
            clause is not None
            and not self._flushing
            and known.wanted is None
            and not known.primaries
            and current_block.get() is None
        ):
            try:
                goes_on = (
                    known.request is not None
                    and this_request() is known.request
                    and this_app() is known.app
                )
            except RuntimeError:  # the request is over
                goes_on = False
            if (
                (goes_on or (self._reads_bind_keys and known.serve()))
                and (
                    mapper is None
                    or mapper in known.state.app.plain_mappers
                    or known.finds_plain(mapper)
                )
                and known.routed.classify(clause) is _READ  # type: ignore[union-attr]  # set by serve()
            ):
                if (
                    known.state.decided or known.state.decision_for(self)
                ).role is _REPLICA:
                    return known.target or known.routed.replicas  # type: ignore[union-attr]  # set by serve()
                return known.routed.primary  # type: ignore[union-attr]  # the same
        return self._find_bind(known, mapper, clause, kwargs)

    def _note_connections(self, known: SessionState) -> None:
        """Note what the transaction in progress, savepoints aside, has opened.

        Not by an event: most sessions close after their first statement, and to ask
        whether there is another connection costs less than to be told of each.
        """
        root = self.get_transaction()
        if root is not None:
            known.note(root._connections)  # noqa: SLF001

    def _given(
        self,
        known: SessionState,
        bind: Engine | sa.Connection,
        mapper: Any,
        clause: Any,
    ) -> Engine | sa.Connection:
        if isinstance(bind, RoutedEngine):
            return self._target(known, bind, self._role(known, bind, mapper, clause))
        return known.targets.get(bind, bind) if isinstance(bind, sa.Engine) else bind

    def _find_bind(
        self, known: SessionState, mapper: Any, clause: Any, kwargs: dict[str, Any]
    ) -> Engine | sa.Connection:
        routed = super().get_bind(mapper=mapper, clause=clause, **kwargs)
        if not isinstance(routed, RoutedEngine):
            return routed
        if clause is None and not known.connecting and not self._flushing:
            # Somebody asks, for a use that nobody knows; or, with a mapper and within
            # a transaction, a bulk operation.
            if self._transaction is None and routed.app.role() is not _REPLICA:
                return routed  # which leads to the primary, and is db.engine
            if mapper is None:
                return routed if active_role() is _REPLICA else routed.primary
        return self._target(known, routed, self._role(known, routed, mapper, clause))

    def _target(
        self, known: SessionState, routed: RoutedEngine, role: Role
    ) -> Engine | sa.Connection:
        facade: Engine = routed.primary
        if role is _REPLICA:
            facade, state = routed.replicas, routed.app.request_state()
            if state is not None and state.decided is None:
                state.note_early(self)
        return known.targets.get(facade, facade)

    def _role(
        self, known: SessionState, routed: RoutedEngine, mapper: Any, clause: Any
    ) -> Role:
        if clause is not None and not self._flushing:
            kind = routed.classify(clause)
        else:
            # A flush, a bulk operation's second call, or connection(): what
            # will run is not known.
            kind = Kind.WRITE
        asked, why = known.wanted, "execution_options(replicated=...)"
        if asked is None or self._flushing:
            asked, why = active_role(), "inside using_slave()"
        if kind is Kind.SETTING and asked is not _REPLICA and not leaves_no_trace():
            routed.app.latch(WROTE)
        if asked is not None:
            # connection(): nothing is sent yet; the gate looks at what it sends.
            if asked is _REPLICA and kind >= Kind.LOCK and not known.connecting:
                raise WriteOnReplicaError(
                    "a flush" if clause is None else clause, running_endpoint(), why
                )
            return asked
        if kind is not _READ:
            return Role.PRIMARY
        primary = known.primaries.get(routed.real)
        if primary is not None and primary.unshared:
            return Role.PRIMARY  # its own rows are nowhere else yet
        if mapper is not None and reads_primary(mapper):
            return Role.PRIMARY
        return routed.app.role()

    def connection(self, *args: Any, **kwargs: Any) -> sa.Connection:
        """Return the connection of the current transaction, as any session does.

        Without a bind or a using_slave() that says otherwise it is the primary's,
        because nobody knows what it is for; the request's reads then stay there.
        """
        known = self._known
        if known is None:
            known = self._known = SessionState()
        known.connecting = True
        try:
            connection = super().connection(*args, **kwargs)
        finally:
            known.connecting = False
        if isinstance(connection, PrimaryConnection) and active_role() is None:
            state = connection.facade.routed.app.request_state()
            if state is not None and (
                state.decision.role is _REPLICA or state.decision is PINNED
            ):
                # Once the primary was read, a replica would show an older state; and
                # its client's pin is not why the request is there.
                state.latch("the session's connection was asked for")
        return connection

    # --- statements, and what may happen to them ------------------------------

    def execute(self, statement: Any, params: Any = None, **options: Any) -> Any:
        """Execute a statement, as any session does.

        Raises:
            WriteOnReplicaError: It writes or locks where only a replica may serve it.
            AllReplicasOutError: No replica serves it, and the primary must not.
            ConfigurationError: Its option ``replicated`` is no name of a role.
        """
        return self._run(super().execute, statement, params, options)

    def scalar(self, statement: Any, params: Any = None, **options: Any) -> Any:
        """Execute a statement and return its first value; it raises the same."""
        return self._run(super().scalar, statement, params, options)

    def scalars(self, statement: Any, params: Any = None, **options: Any) -> Any:
        """Execute a statement and return its first column; it raises the same."""
        return self._run(super().scalars, statement, params, options)

    def _run(
        self,
        run: Callable[..., Any],
        statement: Any,
        params: Any,
        options: dict[str, Any],
    ) -> Any:
        """Run a statement, and again elsewhere if only its replica cannot answer.

        Args:
            run: What runs it.
            statement: The statement.
            params: Its parameters.
            options: The other arguments of *run*.
        """
        known = self._known
        if known is None:
            known = self._known = SessionState()
        wanted = None
        # Nearly every statement is a plain one, and to see that costs least.
        if (
            not asks_nothing(statement, options.get("execution_options"))
            or self.execution_options
        ):
            statement, wanted = self._prepare(statement, options)
        added = options.get("_add_event")
        if self.dispatch.do_orm_execute:
            # Ours is the last of its handlers: it sees what the others have made of it.
            options["_add_event"] = functools.partial(self._heed, added)
        outer, known.wanted = known.wanted, wanted
        try:
            while True:
                try:
                    return run(statement, params, **options)
                except Exception as error:
                    run = self._again(known, error, run)  # type: ignore[assignment]  # None is not run
                    if run is None:
                        raise
                    if isinstance(_as_noted(known, error), StaleReadError):
                        # Stronger than what a handler asks for.
                        options["_add_event"] = added
        finally:
            known.wanted = outer
            del run  # it may have an error, which has this frame

    def _prepare(
        self, statement: Any, options: dict[str, Any]
    ) -> tuple[Any, Role | None]:
        """Make ready what is more than a plain read; return the role it asks for."""
        if type(statement) is sa.CompoundSelect:
            # The one read that SQLAlchemy does not show to get_bind().
            given = options.get("bind_arguments") or {}
            options["bind_arguments"] = {"clause": statement, **given}
        given = options.get("execution_options")
        wanted = wanted_role(statement, given, self.execution_options)
        if wanted is not None:
            return carrying(statement, wanted), wanted
        if isinstance(statement, sa.UpdateBase):
            self._latch_early(statement, options)
        return statement, None

    def _heed(
        self,
        added: Callable[[orm.ORMExecuteState], Any] | None,
        state: orm.ORMExecuteState,
    ) -> Any:
        """Note what role a statement asks for when all its handlers are done with it.

        Args:
            added: A handler that its caller has added, or None.
            state: The statement.
        """
        result = added(state) if added is not None else None
        if result:
            return result
        statement, known = state.statement, cast("SessionState", self._known)
        if type(statement) is sa.CompoundSelect:
            state.bind_arguments.setdefault("clause", statement)
        known.wanted = wanted_role(statement, state.local_execution_options)
        if known.wanted is not None:
            state.statement = carrying(statement, known.wanted)
        return None

    def _latch_early(self, write: sa.UpdateBase, options: dict[str, Any]) -> None:
        """Let a write's own reads, of the rows to change, see the primary."""
        if options.get("bind_arguments") or active_role() is not None:
            return
        try:
            routed = super().get_bind(clause=write)
        except UnboundExecutionError:  # the mapper will tell
            return
        if not isinstance(routed, RoutedEngine):
            return
        if routed.app.unpinned:
            # Perhaps it leaves no trace; what is sent will tell.
            given = options.get("execution_options") or {}
            options["execution_options"] = {**given, ROLE_OPTION: "master"}
        else:
            routed.app.latch(WROTE)

    def _again(
        self, known: SessionState, error: Exception, run: Callable[..., Any]
    ) -> Callable[..., Any] | None:
        """Return what runs a statement once more that has failed; None if nothing may.

        The primary may have what a replica lacks. It may answer under the same rules as
        after a loss: what was read before must have promised no fixed snapshot, and no
        ``SET`` must get lost.
        """
        self._note_connections(known)
        noted = _as_noted(known, error)
        lacking = next((r for r in known.reads.values() if r.lacks is noted), None)
        if lacking is None:
            return run if self._recovers(known, noted) else None
        lacking.lacks = None  # should it be raised again, that is the answer
        if _REPLICA in (active_role(), known.wanted):
            return None
        if lacking.sent > 1 and not lacking.may_be_continued:
            return None
        if lacking.facade.primary_is_out:
            return None
        return functools.partial(self._run_on_primary, lacking, error, run)

    def _run_on_primary(
        self,
        lacking: ReplicaConnection,
        error: Exception,
        run: Callable[..., Any],
        statement: Any,
        params: Any,
        **options: Any,
    ) -> Any:
        """Run a statement on the primary that names what a replica does not have yet.

        If the primary does not have it either, its error is raised, and all is as
        before: whoever asks for it again and again must not move a request's other
        reads there. If the primary cannot be reached, *error* is raised, the replica's.
        """
        app = lacking.facade.routed.app
        app.latch(LACKING)
        try:
            found = run(statement, params, **options)
        except BaseException as failure:
            app.unlatch()
            if not _is_out_of_reach(failure):
                raise
            if not isinstance(failure, TimeoutError):  # load, not death
                lacking.facade.primary_failed()
        else:
            _continue_on_primary(cast("SessionState", self._known), lacking, LACKING)
            return found
        raise error  # not above, where it would get another context

    def _recovers(self, known: SessionState, error: Exception) -> bool:
        """Turn away from a replica that cannot answer; whether another server may."""
        if isinstance(error, StaleReadError):
            again, known.wanted = known.wanted is not Role.PRIMARY, Role.PRIMARY
            return again
        if isinstance(error, WriteOnReplicaError):
            return self._repair(known)
        # A primary that is lost may have done what it was asked.
        for read in known.reads.values():
            if not read.invalidated:
                continue
            if read.loss is error:
                return self._leave(known, read, answered=read.sent > 1)
            if isinstance(error, PendingRollbackError):
                # The end of a savepoint kept quiet that a read was lost.
                return self._leave(known, read, answered=read.sent > 0)
        return False

    def _repair(self, known: SessionState) -> bool:
        """Turn to the primary after a write that only showed on the replica.

        Where the server had to refuse it, only as the first statement there:
        nothing was seen yet, and the transaction takes no more.
        """
        read = next((r for r in known.reads.values() if r.refused), None)
        if read is None or _REPLICA in (active_role(), known.wanted):
            return False
        if read.aborted and read.sent > 1:
            return False
        reason = WROTE if not read.aborted else "a replica has refused its write"
        _continue_on_primary(known, read, reason)
        return True

    def _leave(
        self, known: SessionState, lost: ReplicaConnection, *, answered: bool
    ) -> bool:
        """Turn away from a lost replica; return whether reads may go on elsewhere.

        If it had answered nothing yet, any replica may answer instead, and each
        is tried once. If it had, only the primary is sure to know all that was
        seen, and only where the transaction promised no fixed snapshot.
        """
        replica_pool = lost.facade.replica_pool
        if not answered and known.losses < len(replica_pool.members):
            known.losses += 1
            known.leave(lost)
            lost.facade.lost(lost.member)
            return True
        if answered and not lost.may_be_continued:
            return False
        _continue_on_primary(known, lost, LOST)
        return True


def _is_out_of_reach(failure: BaseException) -> bool:
    """Whether a server was not reached, or lost before it answered."""
    if isinstance(failure, DBAPIError):
        return failure.statement is None or failure.connection_invalidated
    return isinstance(failure, (TimeoutError, OSError))


def _as_noted(known: SessionState, error: Exception) -> Exception:
    """Return what a replica has failed with, whatever a listener has made of it."""
    if isinstance(error, _MAY_RECOVER):
        return error
    cause = error.__cause__
    if isinstance(cause, _MAY_RECOVER):
        return cause
    for read in known.reads.values():
        if read.failure is not None and read.failure[0] is cause:
            return read.failure[1]
    return error


def _continue_on_primary(
    known: SessionState, read: ReplicaConnection, reason: str
) -> None:
    routed = read.facade.routed
    known.leave(read)
    known.targets[read.facade] = known.targets.get(routed.primary, routed.primary)
    routed.app.latch(reason)


def routed_session_class(base: type[orm.Session]) -> type[orm.Session]:
    """Return a session class that routes what ``base`` would send to the primary.

    ``base`` may be any session class; its own ``get_bind`` is respected.
    """
    if issubclass(base, RoutedSession):
        return base
    attributes = {
        "_reads_bind_keys": base.get_bind is FlaskSession.get_bind,
        "__module__": base.__module__,
    }
    return type(base.__name__, (RoutedSession, base), attributes)
