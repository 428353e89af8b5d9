"""Connections to the primary, and their transactions.

A connection notes whether its transaction wrote, so that a commit can pin the client.
"""

from __future__ import annotations

import logging
import sys
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import RootTransaction, Transaction, TwoPhaseTransaction
from sqlalchemy.sql.elements import SavepointClause

from flask_replicated._private import pooled_connection
from flask_replicated.routing.decision import (
    BY_NAME,
    MODEL,
    NO_REPLICA,
    OUTSIDE,
    OWN_WRITE,
    WROTE,
    Decision,
    Role,
)
from flask_replicated.routing.housekeeping import Sent
from flask_replicated.routing.overrides import active_role, leaves_no_trace
from flask_replicated.signals import pinned
from flask_replicated.sql.session_settings import is_local
from flask_replicated.sql.text import Kind

from .connections import (
    ExecutingConnection,
    LazyDispatchConnection,
    asked_for,
    asked_role,
    for_role,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine
    from sqlalchemy.engine import ExecutionContext
    from sqlalchemy.engine.interfaces import PoolProxiedConnection

    from flask_replicated.consistency.positions import LogPosition
    from flask_replicated.consistency.tokens import Token
    from flask_replicated.routing.request_state import RequestState

    from .facade import ServerFacade

__all__ = ["USER", "PrimaryConnection"]

logger = logging.getLogger("flask_replicated")

USER = "flask_replicated.user"
"""Key in a pooled connection's ``info``: a reference to the PrimaryConnection."""

_T = TypeVar("_T")
_FEW = 8  # statements that are remembered of a transaction

# Those that take a driver's connection out of a Connection for their own work.
# SQLAlchemy-Continuum only compares it with others.
_HARMLESS = ("sqlalchemy.engine.", "sqlalchemy.dialects.", "sqlalchemy_continuum.")


class PrimaryConnection(LazyDispatchConnection, ExecutingConnection):
    """A connection to the primary that reports committed writes.

    Attributes:
        facade: The facade whose ``connect()`` made it; ``engine`` is the real engine.
        explicit: Whether the primary was asked for by name.
        preparing: Whether listeners may be at work that prepare a connection, or a
            transaction.
        pending_kind: What the statement that is being executed does, until it is sent;
            None if nothing is to be noted.

    These are about the transaction in progress:

    Attributes:
        has_sent: Whether it has sent a statement.
        has_read: Whether it has sent a statement that reads or locks, outside of
            ``using_master(pin=False)``.
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
        pooled = pooled_connection(self)
        if pooled is not None:
            pooled.info[USER] = weakref.ref(self)

    @property
    def only_reads(self) -> bool:
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
        if not (self.preparing or module.startswith(_HARMLESS)):
            self.has_local_changes, app = True, self.facade.routed.app
            asked_for = self.explicit or active_role() is not None
            if not leaves_no_trace(self) and (asked_for or not app.only_pinned()):
                self.maybe_wrote = True
                app.note_raw_connection(self.facade.routed.untold())
        return super().connection

    def _around(
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
        """Return what a statement does as far as it shows; None: note nothing."""
        kind = self.facade.routed.classify(statement)
        if kind is Kind.READ:
            if self.has_read and self.get_transaction() is not None:
                self.answered = True
                return None  # the first read of a transaction says why it is here
            if self.preparing or isinstance(statement, SavepointClause):
                return None
        instead_of_replica = self.facade is not self.facade.routed.primary
        if instead_of_replica and kind >= Kind.LOCK and active_role() is Role.REPLICA:
            raise self.facade.routed.refusal(statement, "inside using_slave()", "block")
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
        if kind is Kind.READ and not (forgotten and self.has_sent):
            state = app.request_state()
            routed.reads.on_primary(
                self._why(context, state),
                None if state is None else state.reads,
                begins=not self.has_sent,
            )
        if kind is Kind.SETTING:
            self._note_setting(sql, context, forgotten=forgotten)
        else:
            self.has_sent = True
        self.has_local_changes = self.has_local_changes or kind is Kind.WRITE
        if forgotten:
            return
        app.note_primary_read(routed.bind, self)
        self.has_read = self.has_read or kind in {Kind.READ, Kind.LOCK}
        if kind is Kind.LOCK:
            app.latch(WROTE)
        if kind in {Kind.WRITE, None} or routed.classifier.text.may_write(sql):
            self._note_write(sql, context, sure=kind is Kind.WRITE)

    def _why(self, context: ExecutionContext, state: RequestState | None) -> Decision:
        """Return what has brought a read here."""
        if self.explicit:
            return BY_NAME[Role.PRIMARY]
        decision = None if state is None else state.decision
        if self.facade is not self.facade.routed.primary:
            fell_back = decision is not None and decision.word == "fallback"
            return decision if decision and fell_back else NO_REPLICA
        asked = asked_for(context)
        if asked is not None:
            return asked
        if decision is None:
            return OUTSIDE
        # Its decision is on all reads; only these are stronger: what its transaction
        # has written, as when a flush of housekeeping reads, and what a model says.
        return for_role(decision, OWN_WRITE if self.has_local_changes else MODEL)

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
            self.committed(sent=False)

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
        """
        app, role = self.facade.routed.app, asked_role(context) or active_role()
        if role is None:
            asked_for = self.explicit or app.reads_primary_anyway(sql)
        else:
            asked_for = role is Role.PRIMARY
        self.maybe_wrote = self.maybe_wrote or asked_for
        if self._in_autocommit():
            self.committed(sent=False)

    def ask_position(self) -> LogPosition | None:
        """Ask the primary for its log position; None if it does not tell."""
        if self.closed or self.invalidated:
            return None
        return self.facade.routed.known.of_primary(self)

    def committed(self, *, sent: bool = True) -> None:
        """Report that what this transaction wrote is, or may be, visible now.

        Args:
            sent: Whether it was sent already. Else its position is not known yet.
        """
        routed = self.facade.routed
        app = routed.app
        wrote = self.wrote or self.maybe_wrote
        self.wrote = self.maybe_wrote = False
        if wrote or (self.has_read and app.decider.in_known_writer()):
            token = routed.untold()
            try:
                if sent and app.keeps_tokens():
                    token = routed.token_of(self)
            finally:  # whatever interrupts the question
                app.committed(token)
                self._count_pin(token)
        if self.written or self.maybe_written:
            name = self.dialect.name
            guesses = [Sent(sql, name, sure=False) for sql in self.maybe_written]
            app.note_writes([*guesses, *(Sent(sql, name) for sql in self.written)])
            self.written = self.maybe_written = ()

    def _count_pin(self, token: Token) -> None:
        """Count a commit that pins the client of the running request."""
        routed = self.facade.routed
        if routed.app.pins() and routed.app.request_state() is not None:
            kind = "time" if token[routed.bind].position is None else "position"
            routed.incidents.pinned(kind)
            line = "a commit pins its client"
            routed.announcer.send(pinned, line=line, kind=kind)

    def ask_by_name(self) -> None:
        """Note that the primary was asked for by name."""
        self.explicit = True

    def begin(self) -> RootTransaction:
        """Begin a transaction whose commit is reported, if it wrote."""
        if self.in_transaction():
            return super().begin()  # raises what every connection raises
        return self._begin_noted(lambda: _ReportedTransaction(self))

    def begin_twophase(self, xid: Any | None = None) -> TwoPhaseTransaction:
        """Begin a two-phase transaction whose commit is reported, if it wrote."""
        if self.in_transaction():
            return super().begin_twophase(xid)
        xid = self.dialect.create_xid() if xid is None else xid
        return self._begin_noted(lambda: _ReportedTwoPhase(self, xid))

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


class _Reported(Transaction):
    """A transaction that tells its connection when its commit may have happened."""

    __slots__ = ()
    connection: PrimaryConnection

    def commit(self) -> None:
        connection = self.connection
        if connection.replaced:
            self.rollback()
            return
        try:
            super().commit()
        except BaseException:
            # Lost or interrupted while committing: it may have happened, so the
            # client must be able to see it.
            if connection.invalidated:
                connection.committed()
            raise
        connection.committed()

    def rollback(self) -> None:
        with self._quiet_if_harmless():
            super().rollback()

    def close(self) -> None:
        with self._quiet_if_harmless():
            super().close()

    @contextmanager
    def _quiet_if_harmless(self) -> Iterator[None]:
        """Let the end of a lost transaction that has only read not fail."""
        connection = self.connection
        try:
            yield
        except Exception:
            if not (connection.only_reads and connection.invalidated):
                raise
            logger.debug("a read did not end well", exc_info=True)


class _ReportedTransaction(_Reported, RootTransaction):
    """The primary's transaction."""

    __slots__ = ()


class _ReportedTwoPhase(_Reported, TwoPhaseTransaction):
    """The primary's transaction in two phases."""

    __slots__ = ()
