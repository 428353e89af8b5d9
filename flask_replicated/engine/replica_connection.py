"""Connections to replicas, and their transactions, whose end cannot fail.

``SessionTransaction.commit()`` commits the connections of a session in no
particular order. A replica that was lost must not stop it between two of them,
or the primary's commit would happen by chance.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import (
    Connection,
    NestedTransaction,
    RootTransaction,
    Transaction,
    TwoPhaseTransaction,
)
from sqlalchemy.engine.default import DefaultDialect

from flask_replicated._private import drop_transaction, is_observed
from flask_replicated.replica.connection_events import CHANGED
from flask_replicated.routing.decision import BY_NAME, Decision, Role
from flask_replicated.routing.hints import ROLE_OPTION
from flask_replicated.routing.overrides import current_block
from flask_replicated.sql.session_settings import is_local

from .connections import LazyDispatchConnection, asked_for, for_role
from .lazy_begin import PICKED, WITH_BLOCKS, begin_block, has_block, leave_out_block

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine
    from sqlalchemy.engine import ExecutionContext
    from sqlalchemy.engine.interfaces import PoolProxiedConnection
    from sqlalchemy.exc import DBAPIError

    from balancers import Member
    from flask_replicated.consistency.demands import Demand
    from flask_replicated.routing.state import RequestState

    from .facade import ReplicasFacade

__all__ = ["ReplicaConnection"]

logger = logging.getLogger("flask_replicated")

# On Python 3.11 an enum's attribute takes ten times as long as a name of the module.
_REPLICA = Role.REPLICA
# Levels at which each statement sees the newest data.
_STATEMENT_SNAPSHOTS = frozenset({"READ COMMITTED", "READ UNCOMMITTED", "AUTOCOMMIT"})


class ReplicaConnection(LazyDispatchConnection):
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
        fresh_in: The innermost block of ``guarantee()`` or ``using_token()`` in which
            it was found to show what a read must be shown; or None.
        met: What that was; None if there was nothing.
        state: Of the request that it was opened for, where that is known; or None.
    """

    sent = 0
    state: RequestState | None = None
    fresh_in: object = None
    met: Demand | None = None
    refused = aborted = changed_by_program = False
    error: tuple[BaseException, Exception] | None = None
    loss: DBAPIError | None = None
    missing: DBAPIError | None = None
    preparing = changed = _keeps_blocks_out = False
    session_owned = True

    def __init__(
        self, facade: ReplicasFacade, member: Member[Engine], _picked: Engine
    ) -> None:
        engine = member.target
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
            # If a listener has failed, there is one to close: no wait for a collection.
            with contextlib.suppress(Exception):
                self.close()
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
        if self._transaction is not None:
            return super().begin()
        transaction = _ReadTransaction(self)
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
        transaction = _ReadTwoPhase(self)
        self._forget_transaction()
        return cast("TwoPhaseTransaction", transaction)  # it has the same methods

    def begin_nested(self) -> NestedTransaction:
        """Begin a savepoint that ends without failing."""
        if not self.in_transaction():
            return super().begin_nested()
        sent, self.sent = self.sent, self.sent + 1
        try:
            return _ReadSavepoint(self)
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

    def count_statement(self, context: ExecutionContext) -> None:
        """Note that a statement is sent; a transaction's first one counts as a read.

        Args:
            context: How it is sent.
        """
        if not self.sent and self._transaction is not None:
            state, decision = self.state, None
            # Nearly each read is its request's own: that costs no call here.
            if (
                state is not None
                and current_block.get() is None
                and ROLE_OPTION not in context.execution_options
            ):
                decision = state.decided or state.decision
            if decision is None or decision.role is not _REPLICA:
                state = state or self.facade.routed.app.request_state()
                decision = self._why(context, state)
            kept = None if state is None else state.reads
            self.facade.reads.on_replica(self.member, decision, kept)
        self.sent += 1

    def _why(self, context: ExecutionContext, state: RequestState | None) -> Decision:
        """Return what has brought a read here."""
        asked, by_name = asked_for(context), BY_NAME[Role.REPLICA]
        if asked is not None:
            return asked
        return by_name if state is None else for_role(state.decision, by_name)

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


class _QuietEnd(Transaction):
    """A read's transaction: its end gives the connection back, whatever happens.

    The loss of a replica reaches the breaker through the next connect, and the
    user through the statement that it interrupts; never through the end of a
    transaction that has nothing to lose.
    """

    __slots__ = ()

    def commit(self) -> None:
        self.rollback()

    def rollback(self) -> None:
        try:
            super().rollback()
        except Exception:
            logger.debug("a read did not end well", exc_info=True)

    def close(self) -> None:
        try:
            super().close()
        except Exception:
            logger.debug("a read did not end well", exc_info=True)
            _give_up(self.connection)


def _give_up(connection: Connection) -> None:
    """Close a connection whose transaction may not have ended.

    Its connection pool would take a closed transaction for one that has ended.
    """
    if not connection.closed:
        connection.invalidate()


class _ReadTransaction(_QuietEnd, RootTransaction):
    """A replica's transaction.

    A session that is done closes its transaction and then its connection. To close the
    connection ends both at once, and spares the pool a second rollback; so the first
    of the two does nothing yet.
    """

    __slots__ = ()
    connection: ReplicaConnection

    def commit(self) -> None:
        """End it; what it has set stays set while the connection is in use."""
        if self.connection.changed:
            try:
                RootTransaction.commit(self)
            except Exception:
                logger.debug("a read did not end well", exc_info=True)
            else:
                return
        self.rollback()

    def close(self) -> None:
        """End it, now or with the session's connection."""
        connection = self.connection
        if connection.session_owned:
            return
        if self._leave_out():
            return
        try:
            RootTransaction.close(self)
        except Exception:
            logger.debug("a read did not end well", exc_info=True)
            _give_up(connection)

    def _connection_begin_impl(self) -> None:
        connection = self.connection
        own = type(connection.dialect).do_begin is not DefaultDialect.do_begin
        if own or is_observed(connection):
            if connection.dispatch.before_cursor_execute:  # it may send anything
                begin_block(connection)
            # The dialect looks at the driver's connection then, which is no reason for
            # a block. But a listener to ``begin`` may send anything as well.
            listened = connection.dispatch.begin
            with contextlib.nullcontext() if listened else connection.without_block():
                super()._connection_begin_impl()

    def rollback(self) -> None:
        """Roll it back, if there is anything to."""
        if not self._leave_out():
            super().rollback()

    def _leave_out(self) -> bool:
        """End it without a rollback, where none is needed; return whether that is so.

        Most reads have begun no block, and to ask the driver whether there is one costs
        less than a rollback. But listeners and the log are told.
        """
        connection = self.connection
        if not self.is_active or has_block(connection):
            return False
        self.is_active = not drop_transaction(connection)
        return not self.is_active


class _ReadTwoPhase(_ReadTransaction):
    """A replica's part in two phases: a plain transaction, with nothing to prepare."""

    __slots__ = ()

    def prepare(self) -> None:
        """Do nothing: there is nothing to prepare."""


class _ReadSavepoint(_QuietEnd, NestedTransaction):
    """A savepoint on a replica."""

    __slots__ = ()

    def commit(self) -> None:
        """Release the savepoint, if the connection is still there."""
        try:
            NestedTransaction.commit(self)
        except Exception:
            logger.debug("a savepoint of reads did not end well", exc_info=True)
