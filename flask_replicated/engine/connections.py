"""Connections that know which kind of server they talk to.

A connection to the primary notes whether its transaction wrote, so that a
commit can pin the client. A connection to a replica keeps what the gate has noted
of it, and its end cannot fail.
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.sql.elements import SavepointClause

from flask_replicated.errors import WriteOnReplicaError
from flask_replicated.routing.decision import WROTE, Reason, Role
from flask_replicated.routing.flask_context import running_endpoint
from flask_replicated.routing.hints import wanted_role
from flask_replicated.routing.housekeeping import Sent
from flask_replicated.routing.overrides import active_role, leaves_no_trace
from flask_replicated.sql.session_settings import is_local
from flask_replicated.sql.text import Kind

from .lazy_begin import PICKED, WITH_BLOCKS, begin_block, leave_out_block
from .transactions import (
    ReadSavepoint,
    ReadTransaction,
    ReadTwoPhase,
    ReportedTransaction,
    ReportedTwoPhase,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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

    from .engines import PrimaryEngine, ReplicaPoolEngine

__all__ = ["PrimaryConnection", "ReplicaConnection"]

_T = TypeVar("_T")
_FEW = 8  # statements that are remembered of a transaction

# Levels at which each statement sees the newest data.
_STATEMENT_SNAPSHOTS = frozenset({"READ COMMITTED", "READ UNCOMMITTED", "AUTOCOMMIT"})
# Those that take a driver's connection out of a Connection for their own work.
_SQLALCHEMY = ("sqlalchemy.engine.", "sqlalchemy.dialects.")


class _LateJoined(Connection):
    """A connection that asks who listens to it when there is something to tell.

    To find that out at once, as SQLAlchemy does, is a fifth of what it costs to
    connect; and nearly always nobody listens. Who does is heard all the same, whenever
    they began.
    """

    if not hasattr(Connection, "_has_events"):  # in the oldest of SQLAlchemy 2.0
        _has_events = False

    def __init__(self, engine: Engine) -> None:
        # Said explicitly, so that it is not asked.
        super().__init__(engine, None, self._has_events)

    @functools.cached_property
    def dispatch(self) -> Any:  # type: ignore[override]  # SQLAlchemy's is a descriptor too
        """Who listens to this connection, and to its engine."""
        return super().dispatch._join(self.engine.dispatch)  # noqa: SLF001 - as Connection's own constructor does


class PrimaryConnection(_LateJoined):
    """A connection to the primary that reports committed writes.

    Attributes:
        facade: The Engine-shaped object whose ``connect()`` made it; ``engine`` is the
            real engine.
        wrote: Whether the transaction in progress has written, housekeeping aside.
        suspected: Whether it may have, by what its text calls or by who has the
            driver's connection in hand.
        doubtful: Whether it may have, by what the text calls of a statement that
            is here as any read of its request is.
        announced: Whether the primary was asked for by name.
        unshared: Whether it has rows, or settings, that no other server can have.
        begun: Whether the transaction in progress has sent a statement.
        read: Whether one of these, with using_master(pin=False) around none of them,
            was no mere write.
        undecided: What the statement that is being executed does, until it is sent;
            None if that is no news.
        writes: The beginning of what was written, as it was sent.
        guesses: The same of what may have been.
        preparing: Whether listeners may be at work that prepare a connection, or a
            transaction.
    """

    wrote = suspected = doubtful = unshared = begun = read = False
    announced = preparing = False
    undecided: Kind | None = None
    writes: tuple[str, ...] = ()
    guesses: tuple[str, ...] = ()

    def __init__(
        self, engine: Engine, facade: PrimaryEngine | ReplicaPoolEngine
    ) -> None:
        self.facade = facade  # first: listeners may execute something
        self.preparing = True
        super().__init__(engine)
        self.preparing = False

    @property
    def connection(self) -> PoolProxiedConnection:
        """The driver's connection. What is done with it cannot be followed.

        So whoever asks for it may write, and even commit.
        """
        # SQLAlchemy asks at each begin and commit, and for other ends of its own.
        caller = sys._getframe().f_back  # noqa: SLF001 - a public function of sys
        module = "" if caller is None else caller.f_globals.get("__name__", "")
        if not (self.preparing or module.startswith(_SQLALCHEMY)):
            self.unshared = True
            if not leaves_no_trace(self):
                self.suspected = True
                self.facade.routed.app.note_raw_connection()
        return super().connection

    # The overloads of Connection differ in the type of their result alone.
    def execute(
        self, statement: Any, parameters: Any = None, *, execution_options: Any = None
    ) -> CursorResult[Any]:
        """Execute a statement, as any connection does."""
        return self._noted(super().execute, statement, parameters, execution_options)

    def scalar(
        self, statement: Any, parameters: Any = None, *, execution_options: Any = None
    ) -> Any:
        """Execute a statement and return its first value."""
        return self._noted(super().scalar, statement, parameters, execution_options)

    def exec_driver_sql(
        self, statement: str, parameters: Any = None, execution_options: Any = None
    ) -> CursorResult[Any]:
        """Execute a string on the driver's own cursor."""
        return self._noted(
            super().exec_driver_sql, statement, parameters, execution_options
        )

    def _noted(
        self,
        execute: Callable[..., _T],
        statement: Any,
        parameters: Any,
        execution_options: Any,
    ) -> _T:
        """Execute a statement, with a note of what it does until it is sent.

        A default or a listener may execute others before.
        """
        outer, self.undecided = self.undecided, self._shown(statement)
        try:
            result = execute(statement, parameters, execution_options=execution_options)
            # It was sent by a listener of the program's own.
            if self.undecided is Kind.WRITE:
                self.wrote = True
        finally:
            self.undecided = outer
        return result

    def _shown(self, statement: Any) -> Kind | None:
        """Return what a statement does as far as it shows; None if that is no news."""
        kind = self.facade.routed.classify(statement)
        if kind is Kind.READ:
            if self.read and self._transaction is not None:
                return None  # the first read of a transaction says why it is here
            if self.preparing or isinstance(statement, SavepointClause):
                return None
        stands_in = self.facade is not self.facade.routed.primary
        if stands_in and kind >= Kind.LOCK and active_role() is Role.REPLICA:
            raise WriteOnReplicaError(
                statement, running_endpoint(), "inside using_slave()"
            )
        return kind

    def judge(self, sql: str, context: ExecutionContext) -> None:
        """Judge what is about to be sent, by what it says in full.

        Args:
            sql: The text, as it is the same each time.
            context: How it is sent.
        """
        kind, self.undecided = self.undecided, None
        if kind is Kind.SETTING and self.preparing:
            return  # listeners set the same on each server
        routed, forgotten = self.facade.routed, leaves_no_trace(self)
        app = routed.app
        if kind is Kind.READ and not self.begun:
            routed.reads.on_primary(self._why(context))
        if kind is Kind.SETTING:
            self._note_setting(sql, context, forgotten=forgotten)
        else:
            self.begun = True
        self.unshared = self.unshared or kind is Kind.WRITE
        if forgotten:
            return
        self.read = self.read or kind in {Kind.READ, Kind.LOCK}
        if kind is Kind.LOCK:
            app.latch(WROTE)
        if kind in {Kind.WRITE, None} or routed.classifier.text.may_write(sql):
            self._note_write(sql, context, sure=kind is Kind.WRITE)

    def _why(self, context: ExecutionContext) -> Reason:
        """Return what has brought a read here."""
        if self.announced:
            return "bind"
        if self.facade is not self.facade.routed.primary:
            return "fallback"
        if active_role() is not None:
            return "block"
        statement = getattr(context, "invoked_statement", None)
        if wanted_role(statement, context.execution_options) is not None:
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
            not self.begun
            and self.dialect.name == "postgresql"
            and is_local(sql, context.parameters)
        )
        self.unshared = True
        if not (prepares or forgotten):
            self.facade.routed.app.latch(WROTE)

    def _note_write(self, sql: str, context: ExecutionContext, *, sure: bool) -> None:
        """Note what writes, or may: the request, and its client, must see it."""
        app = self.facade.routed.app
        if app.is_unpinned(sql, self.dialect):
            self.unshared = True
            return
        if not sure:
            if len(self.guesses) < _FEW and sql not in self.writes:
                self.guesses += (sql,)
            self.suspect(context.execution_options)
            return
        app.latch(WROTE)
        self.wrote = True
        if len(self.writes) < _FEW:
            self.writes += (sql,)
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

    def suspect(self, options: Mapping[str, Any]) -> None:
        """Note that what is being sent may write, though it looks like a read.

        Args:
            options: The execution options of the statement.
        """
        if (
            self.announced
            or active_role() is not None
            or wanted_role(None, options) is not None
        ):
            self.suspected = True
        else:
            self.doubtful = True
        if self._in_autocommit():
            self.committed()

    def committed(self) -> None:
        """Report that what this transaction wrote is, or may be, visible now."""
        app = self.facade.routed.app
        wrote = (
            self.wrote
            or self.suspected
            # Or a pin would renew itself, for as long as its client reads.
            or (self.doubtful and not app.only_pinned())
        )
        self.wrote = self.suspected = self.doubtful = False
        if wrote or (self.read and app.decider.in_known_writer()):
            app.committed()
        if self.writes or self.guesses:
            name = self.dialect.name
            guesses = [Sent(sql, name, sure=False) for sql in self.guesses]
            app.note_writes([*guesses, *(Sent(sql, name) for sql in self.writes)])
            self.writes = self.guesses = ()

    def begin(self) -> RootTransaction:
        """Begin a transaction whose commit is reported, if it wrote."""
        if self.in_transaction():
            return super().begin()  # raises what every connection raises
        return self._begun(lambda: ReportedTransaction(self))

    def begin_twophase(self, xid: Any | None = None) -> TwoPhaseTransaction:
        """Begin a two-phase transaction whose commit is reported, if it wrote."""
        if self.in_transaction():
            return super().begin_twophase(xid)
        xid = self.dialect.create_xid() if xid is None else xid
        return self._begun(lambda: ReportedTwoPhase(self, xid))

    def _begun(self, begin: Callable[[], _T]) -> _T:
        self.wrote = self.suspected = self.doubtful = self.unshared = False
        self.begun = self.read = False
        self.writes = self.guesses = ()
        before, self.preparing = self.preparing, True
        try:
            return begin()
        finally:
            self.preparing = before  # a listener may have begun it


class ReplicaConnection(_LateJoined):
    """A connection to one replica; it reads, and it harms nobody when lost.

    A :class:`.gate.Gate` looks at what it sends, and notes here what came of it.

    Attributes:
        facade: The Engine-shaped object whose ``connect()`` made it; ``engine`` is the
            real engine.
        member: The replica.
        sent: How many statements of this transaction have been sent.
        refused: Whether a write was stopped in it, here or by the server.
        aborted: Whether it was by the server, which then takes no more.
        changed: Whether it has changed its session with a ``SET``.
        bound: Whether code has done so that has asked for a replica; what listeners set
            for a transaction, they set for the next one, too.
        loss: The error that the loss of the connection was known by, if it is lost.
        failure: What the driver has raised last, and what it is known as; or None.
        lacks: The error by which the server has said that it does not have what a
            statement names, or None.
        begins: Whether a transaction is being begun, of which nobody is told.
        preparing: Whether listeners may be at work that prepare it for its user.
        of_session: Whether it is a session's, which will close it when it has closed
            its transaction; no more once it is being closed.
    """

    sent = 0
    refused = aborted = changed = bound = False
    loss: DBAPIError | None = None
    failure: tuple[BaseException, Exception] | None = None
    lacks: DBAPIError | None = None
    begins = preparing = False
    of_session = True

    def __init__(
        self, engine: Engine, facade: ReplicaPoolEngine, member: Member[Engine]
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
        """The driver's connection, in the hands of somebody who may need a block."""
        if not self.begins:
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
        return not self.bound and level in _STATEMENT_SNAPSHOTS

    def begin(self) -> RootTransaction:
        """Begin a transaction that ends without failing."""
        if self._transaction is not None:  # in_transaction(), at no call's price
            return super().begin()
        transaction = ReadTransaction(self)
        if self.sent or self.refused:
            self.sent, self.refused, self.aborted = 0, False, False
        return transaction

    def close(self) -> None:
        """End the transaction, whoever began it, and give the connection back."""
        self.of_session = False
        super().close()

    def begin_twophase(self, xid: Any | None = None) -> TwoPhaseTransaction:
        """Begin a plain transaction: a read has nothing to prepare."""
        if self.in_transaction():
            return super().begin_twophase(xid)
        transaction = ReadTwoPhase(self, xid)
        self.sent, self.refused, self.aborted = 0, False, False
        return transaction

    def begin_nested(self) -> NestedTransaction:
        """Begin a savepoint that ends without failing."""
        if not self.in_transaction():
            return super().begin_nested()
        sent, self.sent = self.sent, self.sent + 1
        try:
            return ReadSavepoint(self)
        finally:
            self.sent = sent  # a savepoint shows nothing to anybody
