"""Connections that know which kind of server they talk to.

A connection to the primary notes whether its transaction wrote, so that a
commit can pin the client. A connection to a replica keeps what the gate has noted
of it, and its end cannot fail.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import weakref
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.sql.elements import SavepointClause

from flask_replicated._private import joined_dispatch
from flask_replicated.errors import WriteOnReplicaError
from flask_replicated.replica.connection_events import CHANGED
from flask_replicated.routing.decision import WROTE, Reason, Role
from flask_replicated.routing.flask_context import running_endpoint
from flask_replicated.routing.hints import wanted_role
from flask_replicated.routing.housekeeping import Sent
from flask_replicated.routing.overrides import active_role, leaves_no_trace
from flask_replicated.sql.session_settings import is_local
from flask_replicated.sql.text import Kind

from .lazy_begin import PICKED, WITH_BLOCKS, begin_block, leave_out_block
from .transactions import (
    ReadConnection,
    ReadSavepoint,
    ReadTransaction,
    ReadTwoPhase,
    ReportedTransaction,
    ReportedTwoPhase,
    ReportingConnection,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import (
        CursorResult,
        Engine,
        NestedTransaction,
        RootTransaction,
        TwoPhaseTransaction,
    )
    from sqlalchemy.engine import ExecutionContext
    from sqlalchemy.engine.interfaces import PoolProxiedConnection
    from sqlalchemy.exc import DBAPIError

    from balancers import Member

    from .facade import ReplicasFacade, ServerFacade

__all__ = ["USER", "PrimaryConnection", "ReplicaConnection"]

USER = "flask_replicated.user"
"""Key in a pooled connection's ``info``: a reference to the PrimaryConnection."""

_T = TypeVar("_T")
_FEW = 8  # statements that are remembered of a transaction

# Levels at which each statement sees the newest data.
_STATEMENT_SNAPSHOTS = frozenset({"READ COMMITTED", "READ UNCOMMITTED", "AUTOCOMMIT"})
# Those that take a driver's connection out of a Connection for their own work.
_SQLALCHEMY = ("sqlalchemy.engine.", "sqlalchemy.dialects.")


class _LazyDispatch(Connection):
    """A connection that looks for its listeners at the first event.

    SQLAlchemy looks for them at once, which is a fifth of what it costs to connect;
    and nearly always there are none. All are called, whenever they were added.
    """

    if not hasattr(Connection, "_has_events"):  # in the oldest of SQLAlchemy 2.0
        _has_events = False

    def __init__(self, engine: Engine) -> None:
        # Said explicitly, so that it is not asked.
        super().__init__(engine, None, self._has_events)

    @functools.cached_property
    def dispatch(self) -> Any:  # type: ignore[override]  # SQLAlchemy's is a descriptor too
        """The listeners of this connection, and of its engine."""
        return joined_dispatch(super().dispatch, self.engine)


class PrimaryConnection(_LazyDispatch, ReportingConnection):
    """A connection to the primary that reports committed writes.

    Attributes:
        facade: The facade whose ``connect()`` made it; ``engine`` is the real engine.
        explicit: Whether the primary was asked for by name.
        preparing: Whether listeners may be at work that prepare a connection, or a
            transaction.
        pending_kind: What the statement that is being executed does, until it is sent;
            None if that is no news.

    These are about the transaction in progress:

    Attributes:
        has_sent: Whether it has sent a statement.
        has_read: Whether one of these, with using_master(pin=False) around none of
            them, was no mere write.
        has_local_changes: Whether it has rows, or settings, that no other server can
            have.
        wrote: Whether it has written, housekeeping aside.
        maybe_wrote: Whether it may have, by what its text calls or because the program
            has the driver's connection. What is here for its client's pin alone, or in
            place of a replica, does not count.
        written: The first statements that wrote, as they were sent.
        maybe_written: The first of those that may have.
        sure_reads: Whether it has sent nothing but what is surely a read.
        answered: Whether a statement was sent after its first read.
        replaced: Whether it was lost while it only read, and another server goes on.
        fell_back: Why its request was latched to the primary as it was opened, if so.
    """

    explicit = preparing = False
    sure_reads = answered = replaced = False
    fell_back: str | None = None
    pending_kind: Kind | None = None
    has_sent = has_read = has_local_changes = False
    wrote = maybe_wrote = False
    written: tuple[str, ...] = ()
    maybe_written: tuple[str, ...] = ()

    def __init__(self, engine: Engine, facade: ServerFacade) -> None:
        self.facade = facade  # first: listeners may execute something
        self.preparing = True
        super().__init__(engine)
        self.preparing = False
        pooled = self._dbapi_connection
        if pooled is not None:
            pooled.info[USER] = weakref.ref(self)

    @property
    def only_reads(self) -> bool:  # type: ignore[override]  # it is asked seldom
        """Whether its transaction only reads, so that to lose it does no harm."""
        return self.sure_reads and not self.has_local_changes

    @property
    def connection(self) -> PoolProxiedConnection:
        """The driver's connection. What is done with it cannot be followed.

        So the program may write with it, and even commit.
        """
        # SQLAlchemy asks at each begin and commit, and for other ends of its own.
        caller = sys._getframe().f_back  # noqa: SLF001 - a public function of sys
        module = "" if caller is None else caller.f_globals.get("__name__", "")
        if not (self.preparing or module.startswith(_SQLALCHEMY)):
            self.has_local_changes, app = True, self.facade.routed.app
            asked_for = self.explicit or active_role() is not None
            if not leaves_no_trace(self) and (asked_for or not app.only_pinned()):
                self.maybe_wrote = True
                app.note_raw_connection()
        return super().connection

    # The overloads of Connection differ in the type of their result alone.
    def execute(
        self, statement: Any, parameters: Any = None, *, execution_options: Any = None
    ) -> CursorResult[Any]:
        """Execute a statement, as any connection does."""
        return self._execute_noted(
            super().execute, statement, parameters, execution_options
        )

    def scalar(
        self, statement: Any, parameters: Any = None, *, execution_options: Any = None
    ) -> Any:
        """Execute a statement and return its first value."""
        return self._execute_noted(
            super().scalar, statement, parameters, execution_options
        )

    def exec_driver_sql(
        self, statement: str, parameters: Any = None, execution_options: Any = None
    ) -> CursorResult[Any]:
        """Execute a string on the driver's own cursor."""
        return self._execute_noted(
            super().exec_driver_sql, statement, parameters, execution_options
        )

    def _execute_noted(
        self,
        execute: Callable[..., _T],
        statement: Any,
        parameters: Any,
        execution_options: Any,
    ) -> _T:
        """Execute a statement, with a note of what it does until it is sent.

        A default or a listener may execute others before.
        """
        outer, self.pending_kind = self.pending_kind, self._kind_of(statement)
        try:
            result = execute(statement, parameters, execution_options=execution_options)
            # It was sent by a listener of the program's own.
            if self.pending_kind is Kind.WRITE:
                self.wrote = True
        finally:
            self.pending_kind = outer
        return result

    def _kind_of(self, statement: Any) -> Kind | None:
        """Return what a statement does as far as it shows; None if that is no news."""
        kind = self.facade.routed.classify(statement)
        if kind is Kind.READ:
            if self.has_read and self._transaction is not None:
                self.answered = True
                return None  # the first read of a transaction says why it is here
            if self.preparing or isinstance(statement, SavepointClause):
                return None
        instead_of_replica = self.facade is not self.facade.routed.primary
        if instead_of_replica and kind >= Kind.LOCK and active_role() is Role.REPLICA:
            raise WriteOnReplicaError(
                statement, running_endpoint(), "inside using_slave()"
            )
        return kind

    def note_sent(self, sql: str, context: ExecutionContext) -> None:
        """Note what is about to be sent, by what its whole text says.

        Args:
            sql: The text, as it is the same each time.
            context: How it is sent.
        """
        kind, self.pending_kind = self.pending_kind, None
        if kind is Kind.SETTING and self.preparing:
            return  # listeners set the same on each server
        routed, forgotten = self.facade.routed, leaves_no_trace(self)
        app = routed.app
        if kind is not Kind.READ or routed.classifier.text.may_write(sql):
            self.sure_reads = False
        self.answered = self.answered or self.has_sent
        if kind is Kind.READ and not self.has_sent:
            routed.reads.on_primary(self._why(context))
        if kind is Kind.SETTING:
            self._note_setting(sql, context, forgotten=forgotten)
        else:
            self.has_sent = True
        self.has_local_changes = self.has_local_changes or kind is Kind.WRITE
        if forgotten:
            return
        self.has_read = self.has_read or kind in {Kind.READ, Kind.LOCK}
        if kind is Kind.LOCK:
            app.latch(WROTE)
        if kind in {Kind.WRITE, None} or routed.classifier.text.may_write(sql):
            self._note_write(sql, context, sure=kind is Kind.WRITE)

    def _why(self, context: ExecutionContext) -> Reason:
        """Return what has brought a read here."""
        if self.explicit:
            return "bind"
        if self.facade is not self.facade.routed.primary:
            return "fallback"
        if active_role() is not None:
            return "block"
        if _wanted_role(context) is not None:
            return "option"
        state = self.facade.routed.app.request_state()
        if state is None:
            return "outside"
        # Its decision is on all reads; only what a model says is stronger.
        decision = state.decision
        return decision.word if decision.role is Role.PRIMARY else "model"

    def _note_setting(
        self, sql: str, context: ExecutionContext, *, forgotten: bool
    ) -> None:
        # What listeners set for a transaction as it begins is a part of it.
        prepares = (
            not self.has_sent
            and self.dialect.name == "postgresql"
            and is_local(sql, context.parameters)
        )
        self.has_local_changes = True
        if not (prepares or forgotten):
            self.facade.routed.app.latch(WROTE)

    def _note_write(self, sql: str, context: ExecutionContext, *, sure: bool) -> None:
        """Note what writes, or may: the request, and its client, must see it."""
        app = self.facade.routed.app
        if app.is_unpinned(sql, self.dialect):
            self.has_local_changes = True
            return
        if not sure:
            if len(self.maybe_written) < _FEW and sql not in self.written:
                self.maybe_written += (sql,)
            self._suspect(sql, context)
            return
        app.latch(WROTE)
        self.wrote = True
        if len(self.written) < _FEW:
            self.written += (sql,)
        if self._in_autocommit():  # the statement is its own transaction
            self.committed()

    def _in_autocommit(self) -> bool:
        level = self.get_execution_options().get("isolation_level")
        if level is None:
            # Newer versions of SQLAlchemy can ask the driver.
            detect = getattr(self.dialect, "detect_autocommit_setting", None)
            driver = super().connection.dbapi_connection
            # A BEGIN of the program's own is stronger than the driver's setting.
            if detect is None or getattr(driver, "in_transaction", False):
                return False
            try:
                return bool(detect(driver))
            except NotImplementedError:
                return False
        return bool(level == "AUTOCOMMIT")

    def _suspect(self, sql: str, context: ExecutionContext) -> None:
        """Note that what is being sent may write, though it looks like a read.

        It counts where it would have come here without a pin, without housekeeping in
        its transaction, and with all replicas well. Else a replica would have answered
        it, and a pin would renew itself for as long as its client reads.

        Args:
            sql: The text.
            context: How it is sent.
        """
        app, role = self.facade.routed.app, _wanted_role(context) or active_role()
        if role is None:
            asked_for = self.explicit or app.reads_primary_anyway(sql)
        else:
            asked_for = role is Role.PRIMARY
        self.maybe_wrote = self.maybe_wrote or asked_for
        if self._in_autocommit():
            self.committed()

    def committed(self) -> None:
        """Report that what this transaction wrote is, or may be, visible now."""
        app = self.facade.routed.app
        wrote = self.wrote or self.maybe_wrote
        self.wrote = self.maybe_wrote = False
        if wrote or (self.has_read and app.decider.in_known_writer()):
            app.committed()
        if self.written or self.maybe_written:
            name = self.dialect.name
            guesses = [Sent(sql, name, sure=False) for sql in self.maybe_written]
            app.note_writes([*guesses, *(Sent(sql, name) for sql in self.written)])
            self.written = self.maybe_written = ()

    def ask_by_name(self) -> None:
        """Note that the primary was asked for by name."""
        self.explicit = True

    def begin(self) -> RootTransaction:
        """Begin a transaction whose commit is reported, if it wrote."""
        if self.in_transaction():
            return super().begin()  # raises what every connection raises
        return self._begin_noted(lambda: ReportedTransaction(self))

    def begin_twophase(self, xid: Any | None = None) -> TwoPhaseTransaction:
        """Begin a two-phase transaction whose commit is reported, if it wrote."""
        if self.in_transaction():
            return super().begin_twophase(xid)
        xid = self.dialect.create_xid() if xid is None else xid
        return self._begin_noted(lambda: ReportedTwoPhase(self, xid))

    def _begin_noted(self, begin: Callable[[], _T]) -> _T:
        self.has_sent = self.has_read = self.has_local_changes = False
        self.sure_reads, self.answered = True, False
        self.wrote = self.maybe_wrote = False
        self.written = self.maybe_written = ()
        before, self.preparing = self.preparing, True
        try:
            return begin()
        finally:
            self.preparing = before  # a listener may have begun it


def _wanted_role(context: ExecutionContext) -> Role | None:
    """Return the role that the options of a statement that is being sent ask for."""
    statement = getattr(context, "invoked_statement", None)
    return wanted_role(statement, context.execution_options)


class ReplicaConnection(_LazyDispatch, ReadConnection):
    """A connection to one replica. It only reads, and its loss does no harm.

    A :class:`.gate.Gate` checks what it sends, and tells it what has come of that.

    Attributes:
        facade: The facade whose ``connect()`` made it; ``engine`` is the real engine.
        member: The replica.
        sent: How many statements of this transaction have been sent.
        refused: Whether a write was stopped in it, here or by the server.
        aborted: Whether it was by the server, which then takes no more.
        changed: Whether a ``SET`` has changed its session.
        changed_by_program: Whether code has done so that has asked for a replica; what
            listeners set for a transaction, they set for the next one, too.
        error: What the driver has raised last, and what the program gets; or None.
        loss: The error with which the connection was lost, if it is lost.
        missing: The error by which the server has said that it does not have what a
            statement names, or None.
        preparing: Whether listeners may be at work that prepare it for its user.
        session_owned: Whether it is a session's, which will close it when it has closed
            its transaction; no more once it is being closed.
    """

    sent = 0
    refused = aborted = changed_by_program = False
    error: tuple[BaseException, Exception] | None = None
    loss: DBAPIError | None = None
    missing: DBAPIError | None = None
    preparing = _keeps_blocks_out = False

    def __init__(
        self, engine: Engine, facade: ReplicasFacade, member: Member[Engine]
    ) -> None:
        # First: listeners may execute something.
        self.facade, self.member, self.preparing = facade, member, True
        # Past the class between, which would only add a call.
        try:
            if engine.dialect.name != WITH_BLOCKS:  # there is nothing to tell its pool
                Connection.__init__(self, engine, None, self._has_events)
            else:
                PICKED.set(True)
                try:
                    Connection.__init__(self, engine, None, self._has_events)
                finally:
                    PICKED.set(False)
                leave_out_block(self)
        except BaseException:
            fairy = getattr(self, "_dbapi_connection", None)
            if fairy is not None:  # a listener has failed: no wait for a collection
                fairy.close()
            raise
        self.preparing = False
        if self.sent:  # by listeners, which another connection has as well
            self.sent, self.changed = 0, False

    @property
    def connection(self) -> PoolProxiedConnection:
        """The driver's connection. Its user may need a transaction block."""
        if not self._keeps_blocks_out:
            begin_block(self)
        return super().connection

    @property
    def may_be_continued(self) -> bool:
        """Whether the primary may answer the rest of this transaction's reads.

        True where each statement sees the newest data anyway, and no ``SET`` of the
        program's own was lost with the connection.
        """
        level = self.get_execution_options().get(
            "isolation_level", self.dialect.default_isolation_level
        )
        return not self.changed_by_program and level in _STATEMENT_SNAPSHOTS

    def begin(self) -> RootTransaction:
        """Begin a transaction that ends without failing."""
        if self._transaction is not None:  # what in_transaction() asks, without a call
            return super().begin()
        transaction = ReadTransaction(self)
        if self.sent or self.refused:
            self._forget_transaction()
        return transaction

    def close(self) -> None:
        """End the transaction, if one is open, and give the connection back."""
        self.session_owned = False
        super().close()

    def begin_twophase(self, xid: Any | None = None) -> TwoPhaseTransaction:
        """Begin a plain transaction: a read has nothing to prepare."""
        if self.in_transaction():
            return super().begin_twophase(xid)
        transaction = ReadTwoPhase(self, xid)
        self._forget_transaction()
        return transaction

    def begin_nested(self) -> NestedTransaction:
        """Begin a savepoint that ends without failing."""
        if not self.in_transaction():
            return super().begin_nested()
        sent, self.sent = self.sent, self.sent + 1
        try:
            return ReadSavepoint(self)
        finally:
            self.sent = sent  # a savepoint reads nothing

    def _forget_transaction(self) -> None:
        self.sent, self.refused, self.aborted = 0, False, False

    # --- what others tell it --------------------------------------------------

    def disown(self) -> None:
        """Note that it is no session's."""
        self.session_owned = False

    @contextlib.contextmanager
    def without_block(self) -> Iterator[None]:
        """Return a block in which a look at the driver's connection begins none."""
        self._keeps_blocks_out = True
        try:
            yield
        finally:
            self._keeps_blocks_out = False

    def count_statement(self) -> None:
        """Note that a statement is sent; a transaction's first one counts as a read."""
        # What in_transaction() asks, without a call.
        if not self.sent and self._transaction is not None:
            self.facade.reads.on_replica(self.member)
        self.sent += 1

    def note_setting(self, sql: str, parameters: Any) -> None:
        """Note a ``SET``. If it outlives its transaction, the session is not reused."""
        self.changed = True
        if self.preparing:  # its next user has it set again
            return
        if not (self.dialect.name == "postgresql" and is_local(sql, parameters)):
            self.info[CHANGED] = True

    def note_setting_of_program(self) -> None:
        """Note that the ``SET`` was sent by code that has asked for a replica."""
        self.changed_by_program = True

    def note_stopped_write(self) -> None:
        """Note that a write was not sent."""
        self.refused = True

    def note_refused_write(self, raised: BaseException, refusal: Exception) -> None:
        """Note that the server has refused a write.

        Args:
            raised: What the driver has raised.
            refusal: What the program gets.
        """
        self.refused = self.aborted = True
        self.error = raised, refusal

    def note_error(self, raised: BaseException, error: DBAPIError) -> None:
        """Note an error, which may turn out to be the loss of the connection.

        Args:
            raised: What the driver has raised.
            error: What the program gets.
        """
        self.error, self.loss = (raised, error), error

    def note_missing(self, error: DBAPIError) -> None:
        """Note that the server does not have what a statement names."""
        self.missing = error

    def forget_missing(self) -> None:
        """Note that it is decided what follows from that."""
        self.missing = None
