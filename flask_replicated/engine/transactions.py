"""Transactions that report their commit, and transactions that cannot fail one.

``SessionTransaction.commit()`` commits the connections of a session in no
particular order. A replica that was lost must not stop it between two of them,
or the primary's commit would happen by chance.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, cast

from sqlalchemy import (
    Connection,
    NestedTransaction,
    RootTransaction,
    Transaction,
    TwoPhaseTransaction,
)
from sqlalchemy.engine.default import DefaultDialect

from flask_replicated._private import (
    begin_as_root,
    drop_transaction,
    is_observed,
    roll_back_as_root,
)

from .lazy_begin import begin_block, has_block

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

logger = logging.getLogger("flask_replicated")

__all__ = [
    "ReadConnection",
    "ReadSavepoint",
    "ReadTransaction",
    "ReadTwoPhase",
    "ReportedTransaction",
    "ReportedTwoPhase",
    "ReportingConnection",
]


class ReportingConnection(Connection):
    """A connection that is told of its commits.

    Attributes:
        replaced: Whether it was lost while it only read, and another server goes on.
        only_reads: Whether its transaction only reads, so that to lose it does no harm.
    """

    replaced = only_reads = False

    def committed(self) -> None:
        """Note that a commit has happened, or may have."""
        raise NotImplementedError


class ReadConnection(Connection):
    """A connection whose transactions only read.

    Attributes:
        changed: Whether a ``SET`` has changed its session.
        session_owned: Whether it is a session's, which will close it when it has closed
            its transaction; no more once it is being closed.
    """

    changed = False
    session_owned = True

    def without_block(self) -> AbstractContextManager[None]:
        """Return a block in which reading :attr:`connection` begins no transaction."""
        raise NotImplementedError


class _Reported(Transaction):
    """A transaction that tells its connection when its commit may have happened."""

    __slots__ = ()

    def commit(self) -> None:
        connection = cast("ReportingConnection", self.connection)
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
        connection = cast("ReportingConnection", self.connection)
        try:
            yield
        except Exception:
            if not (connection.only_reads and connection.invalidated):
                raise
            logger.debug("a read did not end well", exc_info=True)


class ReportedTransaction(_Reported, RootTransaction):
    """The primary's transaction."""

    __slots__ = ()


class ReportedTwoPhase(_Reported, TwoPhaseTransaction):
    """The primary's transaction in two phases."""

    __slots__ = ()


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


class ReadTransaction(_QuietEnd, RootTransaction):
    """A replica's transaction.

    A session that is done closes its transaction and then its connection. To close the
    connection ends both at once, and spares the pool a second rollback; so the first
    of the two does nothing yet.
    """

    __slots__ = ()
    connection: ReadConnection

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
        if (
            self.is_active
            and connection.get_nested_transaction() is None
            and not has_block(connection)
            and not is_observed(connection)
        ):
            # Most reads have begun no block, and to ask the driver whether there is one
            # costs less than a rollback. But listeners and the log are told.
            self.is_active = False
            drop_transaction(connection)
        else:
            try:
                RootTransaction.close(self)
            except Exception:
                logger.debug("a read did not end well", exc_info=True)
                _give_up(connection)

    def _connection_begin_impl(self) -> None:
        connection = self.connection
        if type(
            connection.dialect
        ).do_begin is not DefaultDialect.do_begin or is_observed(connection):
            _begin(self)


def _begin(transaction: ReadTransaction | ReadTwoPhase) -> None:
    """Tell the dialect, and the listeners, that a transaction begins.

    The dialect looks at the driver's connection then, which is no reason for a block.
    """
    connection = transaction.connection
    if connection.dispatch.before_cursor_execute:  # it may send anything
        begin_block(connection)
    # A listener to ``begin`` may send anything as well.
    around = nullcontext if connection.dispatch.begin else connection.without_block
    with around():
        begin_as_root(transaction)


class ReadTwoPhase(_QuietEnd, TwoPhaseTransaction):
    """A replica's part in two phases: a plain transaction, with nothing to prepare."""

    __slots__ = ()
    connection: ReadConnection

    def prepare(self) -> None:
        """Do nothing: there is nothing to prepare."""

    def _connection_begin_impl(self) -> None:
        _begin(self)  # plain BEGIN

    def _connection_rollback_impl(self) -> None:
        roll_back_as_root(self)


class ReadSavepoint(_QuietEnd, NestedTransaction):
    """A savepoint on a replica."""

    __slots__ = ()

    def commit(self) -> None:
        """Release the savepoint, if the connection is still there."""
        try:
            NestedTransaction.commit(self)
        except Exception:
            logger.debug("a savepoint of reads did not end well", exc_info=True)
