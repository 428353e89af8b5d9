"""``Session.get_bind``: asks routing, then hands out a facade.

The facades pick a server when the session connects. From then until the end of
the session's transaction ``get_bind`` returns the real engine behind that
connection, so the session finds the connection that it already has.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, cast

import sqlalchemy as sa
from flask_sqlalchemy.session import Session as FlaskSession
from sqlalchemy import Select, orm
from sqlalchemy.exc import (
    DBAPIError,
    TimeoutError,  # noqa: A004 - not the built-in one
    UnboundExecutionError,
)

from flask_replicated._private import (
    ADD_EVENT,
    connections_of,
    current_app_context,
    current_request_context,
    has_no_options,
    selects_tables_only,
)
from flask_replicated.consistency.guarantees import blocks, current_guarantees
from flask_replicated.replica.failures import cause_of
from flask_replicated.routing.decision import BEHIND, LACKING, WROTE, Role
from flask_replicated.routing.hints import (
    ROLE_OPTION,
    carrying,
    reads_primary,
    wanted_role,
)
from flask_replicated.routing.overrides import (
    active_role,
    current_block,
    leaves_no_trace,
)
from flask_replicated.routing.state import current_app_state
from flask_replicated.sql.text import Kind

from .engines import RoutedEngine
from .primary_connection import PrimaryConnection
from .recovery import Facts, Step, decide, find_failure
from .replica_pool_engine import ReplicaPoolEngine
from .session_state import EMPTY, SessionState

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

    from .replica_connection import ReplicaConnection

__all__ = ["RoutedSession", "routed_session_class"]

# On Python 3.11 an enum's attribute takes ten times as long as a name of the module.
_READ = Kind.READ
_REPLICA = Role.REPLICA


class RoutedSession(orm.Session):
    """A session that reads from a replica and writes to the primary.

    Put it before another session class to route what that class would send to
    a bind that has replicas; see :func:`routed_session_class`.
    """

    _routing: SessionState | None = None

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
        routing = self._routing
        if routing is None:
            routing = self._routing = SessionState()
        transaction = self._transaction
        opened = None if transaction is None else transaction._connections  # noqa: SLF001 - a call for each statement would cost more
        if opened is not routing.connections or (
            opened is not None and len(opened) != routing.noted
        ):
            self._note_connections(routing)
        if bind is not None:
            return self._bind_given(routing, bind, mapper, clause)
        if (
            clause is not None
            and routing.wanted is None
            and not self._flushing
            and not routing.primary_connections
            and current_block.get() is None
        ):
            found = self._bind_of_plain_read(routing, mapper, clause)
            if found is not None:
                return found
        return self._find_bind(routing, mapper, clause, kwargs)

    def _note_connections(self, routing: SessionState) -> None:
        """Note what the transaction in progress, savepoints aside, has opened.

        Not by an event: most sessions close after their first statement, and to ask
        whether there is another connection costs less than to be told of each.
        """
        root = self.get_transaction()
        if root is None:
            routing.forget_connections()
        else:
            routing.note_connections(connections_of(root))

    def _bind_of_plain_read(
        self, routing: SessionState, mapper: Any, clause: Any
    ) -> Engine | sa.Connection | None:
        """Return where a read of the default bind in a request goes.

        Nearly every statement is one, so the cheapest questions come first. Without a
        mapper, what Flask-SQLAlchemy sends to another bind is a table or DML, and so
        no read.

        Returns:
            None if it is anything else; :meth:`_find_bind` decides on that.
        """
        try:
            known = (
                current_request_context().request is routing.request
                and current_app_context().app is routing.app
            )
        except (LookupError, RuntimeError):  # the request is over
            return None
        if not known and not (self._reads_bind_keys and routing.find_request()):
            return None
        state, default = routing.state, routing.default
        is_plain = (
            mapper is None
            or mapper in state.app.plain_mappers
            or routing.is_plain(mapper)
        )
        # The first question is what classify() asks first; nearly always that is all.
        if not is_plain or not (
            (type(clause) is Select and selects_tables_only(clause))
            or default.classify(clause) is _READ
        ):
            return None
        if (state.decided or state.decision_for(self)).role is _REPLICA:
            if blocks.were_opened and current_guarantees.get() is not routing.block:
                _leave_stale_replica(routing, default.replicas)
            return routing.target
        return default.primary

    def _bind_given(
        self,
        routing: SessionState,
        bind: Engine | sa.Connection,
        mapper: Any,
        clause: Any,
    ) -> Engine | sa.Connection:
        """Return where a statement goes that names its bind."""
        if isinstance(bind, RoutedEngine):
            return self._bind_of(routing, bind, mapper, clause)
        return routing.targets.get(bind, bind) if isinstance(bind, sa.Engine) else bind

    def _find_bind(
        self, routing: SessionState, mapper: Any, clause: Any, kwargs: dict[str, Any]
    ) -> Engine | sa.Connection:
        """Return where a statement goes by what the class behind this one says."""
        found = super().get_bind(mapper=mapper, clause=clause, **kwargs)
        routed = _routed(found)
        if routed is None:
            return found
        if clause is None and not routing.connecting and not self._flushing:
            # The program asks, for a use that is not known; or, with a mapper and
            # within a transaction, a bulk operation.
            if self._transaction is None and routed.app.role() is not _REPLICA:
                return routed  # which leads to the primary, and is db.engine
            if mapper is None:
                return routed if active_role() is _REPLICA else routed.primary
        return self._bind_of(routing, routed, mapper, clause)

    def _bind_of(
        self, routing: SessionState, routed: RoutedEngine, mapper: Any, clause: Any
    ) -> Engine | sa.Connection:
        """Return which server of a bind a statement goes to."""
        facade: Engine = routed.primary
        if self._role(routing, routed, mapper, clause) is _REPLICA:
            facade, state = routed.replicas, routed.app.request_state()
            if state is not None and state.decided is None:
                state.note_early(self)
                state.recall_early()
            if current_guarantees.get() is not routing.block:
                _leave_stale_replica(routing, routed.replicas)
        return routing.targets.get(facade, facade)

    def _role(
        self, routing: SessionState, routed: RoutedEngine, mapper: Any, clause: Any
    ) -> Role:
        if clause is not None and not self._flushing:
            kind = routed.classify(clause)
        else:
            # A flush, a bulk operation's second call, or connection(): what
            # will run is not known.
            kind = Kind.WRITE
        asked, why = routing.wanted, "execution_options(replicated=...)"
        if asked is None or self._flushing:
            asked, why = active_role(), "inside using_slave()"
        if kind is Kind.SETTING and asked is not _REPLICA and not leaves_no_trace():
            routed.app.latch(WROTE)
        # connection(): nothing is sent yet; the gate checks what it sends.
        if asked is _REPLICA and kind >= Kind.LOCK and not routing.connecting:
            cause = "block" if why.startswith("inside") else "option"
            routed.refuse("a flush" if clause is None else clause, why, cause)
            return Role.PRIMARY  # it is only observed
        if asked is not None:
            return asked
        if kind is not _READ or _needs_primary(routing, routed, mapper):
            return Role.PRIMARY
        return routed.app.role()

    def connection(self, *args: Any, **kwargs: Any) -> sa.Connection:
        """Return the connection of the current transaction, as any session does.

        Without a bind or a using_slave() that says otherwise it is the primary's,
        because its use is not known; the request's reads then stay there.
        """
        routing = self._routing
        if routing is None:
            routing = self._routing = SessionState()
        routing.connecting = True
        try:
            connection = super().connection(*args, **kwargs)
        finally:
            routing.connecting = False
        if isinstance(connection, PrimaryConnection) and active_role() is None:
            state = connection.facade.routed.app.request_state()
            if state is not None and (
                state.decision.role is _REPLICA
                or state.decision.word in {"pinned", "fallback"}
            ):
                # Once the primary was read, a replica would show an older state; and
                # neither a pin nor a fallback is why the request is there.
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
        """Execute a statement and return its first value; see :meth:`execute`."""
        return self._run(super().scalar, statement, params, options)

    def scalars(self, statement: Any, params: Any = None, **options: Any) -> Any:
        """Execute a statement and return its first column; see :meth:`execute`."""
        return self._run(super().scalars, statement, params, options)

    def _run(
        self,
        run: Callable[..., Any],
        statement: Any,
        params: Any,
        options: dict[str, Any],
    ) -> Any:
        """Run a statement, and again elsewhere if only its replica cannot answer."""
        routing = self._routing
        if routing is None:
            routing = self._routing = SessionState()
        wanted, given = None, options.get("execution_options")
        # Nearly no statement has options: this saves 0.2 % of a GET's instructions.
        if (
            type(statement) is not Select
            or not has_no_options(statement)
            or (given and ROLE_OPTION in given)
            or self.execution_options
        ):
            statement, wanted = self._prepare(statement, options)
        added = options.get(ADD_EVENT)
        if self.dispatch.do_orm_execute:
            # Called last: it sees what the program's handlers have made of it.
            options[ADD_EVENT] = functools.partial(self._after_handlers, added)
        outer, routing.wanted = routing.wanted, wanted
        failure: Exception | None = None
        try:
            try:
                return run(statement, params, **options)
            except Exception as error:  # noqa: BLE001 - it is raised again
                failure = error
            # Not above: a later error is not one of handling this one.
            return self._run_again(
                run, failure, statement, params, options=options, added=added
            )
        finally:
            routing.wanted = outer
            failure = None  # it has this frame

    def _run_again(
        self,
        run: Callable[..., Any],
        error: Exception,
        statement: Any,
        params: Any,
        *,
        options: dict[str, Any],
        added: Callable[[orm.ORMExecuteState], Any] | None,
    ) -> Any:
        """Run a statement that has failed once more elsewhere, while that may help."""
        routing = cast("SessionState", self._routing)
        try:
            while True:
                step, read = self._recover(routing, error)
                if step is Step.RAISE:
                    raise error
                if step is Step.READ_PRIMARY:
                    options[ADD_EVENT] = added  # stronger than what a handler asks for
                elif read is not None and step is Step.TRY_PRIMARY:
                    run = functools.partial(self._try_primary, read, error, run)
                try:
                    return run(statement, params, **options)
                except Exception as failure:  # noqa: BLE001 - it is raised again
                    error = failure
        finally:
            del run, error  # they have this frame

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

    def _after_handlers(
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
        statement, routing = state.statement, cast("SessionState", self._routing)
        if type(statement) is sa.CompoundSelect:
            state.bind_arguments.setdefault("clause", statement)
        routing.wanted = wanted_role(statement, state.local_execution_options)
        if routing.wanted is not None:
            state.statement = carrying(statement, routing.wanted)
        return None

    def _latch_early(self, write: sa.UpdateBase, options: dict[str, Any]) -> None:
        """Let a write's own reads, of the rows to change, see the primary."""
        if options.get("bind_arguments") or active_role() is not None:
            return
        try:
            routed = _routed(super().get_bind(clause=write))
        except UnboundExecutionError:  # the mapper will tell
            return
        if routed is None:
            return
        if routed.app.unpinned:
            # Perhaps it leaves no trace; what is sent will tell.
            given = options.get("execution_options") or {}
            options["execution_options"] = {**given, ROLE_OPTION: "master"}
        else:
            routed.app.latch(WROTE)

    def _recover(
        self, routing: SessionState, error: Exception
    ) -> tuple[Step, ReplicaConnection | None]:
        """Turn away from a replica that has not answered, if another server may.

        Returns:
            What to do with the statement, and the replica's connection.
        """
        if self.in_transaction():
            self._note_connections(routing)
        failure = find_failure(error, routing.replica_connections.values())
        if failure is None:
            return self._leave_primary(routing, error), None
        read = failure.read
        facts = Facts(failure.problem, option=routing.wanted, block=active_role())
        if read is None:
            step = decide(facts).step
            routing.wanted = Role.PRIMARY
            return step, None
        members = read.facade.replica_pool.members
        step, reason = decide(
            facts._replace(
                answered=failure.answered,
                aborted=read.aborted,
                may_be_continued=read.may_be_continued,
                primary_is_out=read.facade.primary_is_out,
                replicas_left=routing.losses < len(members),
            )
        )
        if step is not Step.RAISE and read.loss is not None:
            incidents = read.facade.routed.incidents
            incidents.failed_over(read.member.name, cause_of(read.loss))
            incidents.reran()
        read.forget_missing()  # should it be raised again, that is the answer
        if step is Step.NEXT_REPLICA:
            routing.losses += 1
            routing.drop(read)
            read.facade.release(read.member)
        elif step is Step.CONTINUE_ON_PRIMARY:
            _continue_on_primary(routing, read, reason)
        return step, read

    def _leave_primary(self, routing: SessionState, error: Exception) -> Step:
        """Let a read be answered elsewhere that fell back to a primary that is lost."""
        if not isinstance(error, DBAPIError) or not error.connection_invalidated:
            return Step.RAISE
        for primary in routing.primary_connections.values():
            facade = primary.facade
            if (
                isinstance(facade, ReplicaPoolEngine)
                and primary.invalidated
                and primary.only_reads
                and not primary.answered
                and not self.in_nested_transaction()
                and routing.losses < len(facade.replica_pool.members)
            ):
                routing.losses += 1
                primary.replaced = True
                routing.drop_primary(primary)
                if primary.fell_back is not None:
                    facade.routed.app.unlatch(primary.fell_back)
                facade.note_primary_failure()
                facade.routed.incidents.reran()
                return Step.NEXT_REPLICA
        return Step.RAISE

    def _try_primary(
        self,
        read: ReplicaConnection,
        error: Exception,
        run: Callable[..., Any],
        statement: Any,
        params: Any,
        **options: Any,
    ) -> Any:
        """Run a statement on the primary that names what a replica does not have yet.

        If the primary does not have it either, its error is raised, and all is as
        before: a page that asks for it again and again must not move its other reads
        there. If the primary cannot be reached, *error* is raised, the replica's.
        """
        app = read.facade.routed.app
        app.latch(LACKING)
        try:
            found = run(statement, params, **options)
        except BaseException as failure:
            app.unlatch(LACKING)
            if not _is_out_of_reach(failure):
                raise
            if not isinstance(failure, TimeoutError):  # load, not death
                read.facade.note_primary_failure()
        else:
            read.facade.lacking.note(read.member.name, error)
            _continue_on_primary(cast("SessionState", self._routing), read, LACKING)
            return found
        raise error  # not above, where it would get another context


def _routed(bind: object) -> RoutedEngine | None:
    """Return the routed engine that a bind is, or that it stands for in a test."""
    if isinstance(bind, RoutedEngine):
        return bind
    state = current_app_state()
    if state is None or state.kit is None:
        return None
    return cast("RoutedEngine | None", state.kit.routed_for(bind))


def _needs_primary(routing: SessionState, routed: RoutedEngine, mapper: Any) -> bool:
    """Whether a read needs the primary, whatever its request has done."""
    primary = routing.primary_connections.get(routed.real)
    if primary is not None and primary.has_local_changes:
        return True  # its own rows are nowhere else yet
    return mapper is not None and reads_primary(mapper)


def _leave_stale_replica(routing: SessionState, replicas: ReplicaPoolEngine) -> None:
    """Let the primary go on where an open transaction does not show enough any more.

    Another replica could show less than was read in it.
    """
    read = routing.replica_connections.get(replicas)
    if read is not None and not replicas.still_serves(read):
        _continue_on_primary(routing, read, BEHIND)
    routing.note_block(current_guarantees.get())


def _is_out_of_reach(failure: BaseException) -> bool:
    """Whether a server was not reached, or lost before it answered."""
    if isinstance(failure, DBAPIError):
        return failure.statement is None or failure.connection_invalidated
    return isinstance(failure, (TimeoutError, OSError))


def _continue_on_primary(
    routing: SessionState, read: ReplicaConnection, reason: str
) -> None:
    routing.continue_on_primary(read)
    read.facade.routed.app.latch(reason)


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
