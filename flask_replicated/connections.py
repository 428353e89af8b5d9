"""Connections that know which kind of server they talk to.

A connection to the primary notes whether its transaction wrote, so that a
commit can pin the client. A connection to a replica refuses to write before
anything is sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flask import has_request_context, request
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from balancers import redact

from .errors import WriteOnReplicaError
from .failures import refused_as_write
from .routing import WROTE, Role
from .scopes import active_role
from .sqltext import Kind
from .state import NO_ENDPOINT
from .transactions import (
    ReadSavepoint,
    ReadTransaction,
    ReadTwoPhase,
    ReportedTransaction,
    ReportedTwoPhase,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from sqlalchemy import (
        CursorResult,
        Engine,
        NestedTransaction,
        RootTransaction,
        TwoPhaseTransaction,
    )

    from balancers import Member

    from .engines import PrimaryEngine, ReplicaEngine

    Send: TypeAlias = Callable[..., Any]

__all__ = [
    "PrimaryConnection",
    "ReplicaConnection",
    "RoutedConnection",
    "write_refused",
]


class RoutedConnection(Connection):
    """A connection that looks at each statement before it is sent.

    Attributes:
        shape: The Engine-shaped object whose ``connect()`` made it, and set this;
            ``engine`` is the real engine.
    """

    shape: PrimaryEngine | ReplicaEngine

    def _send(self, send: Send, statement: Any, parameters: Any, options: Any) -> Any:
        """Judge a statement, then send it."""
        raise NotImplementedError

    # The overloads of Connection differ in the type of their result alone.
    def execute(
        self, statement: Any, parameters: Any = None, *, execution_options: Any = None
    ) -> CursorResult[Any]:
        """Execute a statement, as any connection does."""
        result: CursorResult[Any] = self._send(
            super().execute, statement, parameters, execution_options
        )
        return result

    def scalar(
        self, statement: Any, parameters: Any = None, *, execution_options: Any = None
    ) -> Any:
        """Execute a statement and return its first value."""
        return self._send(super().scalar, statement, parameters, execution_options)

    def exec_driver_sql(
        self, statement: str, parameters: Any = None, execution_options: Any = None
    ) -> CursorResult[Any]:
        """Execute a string on the driver's own cursor."""
        result: CursorResult[Any] = self._send(
            super().exec_driver_sql, statement, parameters, execution_options
        )
        return result


class PrimaryConnection(RoutedConnection):
    """A connection to the primary that reports committed writes.

    Attributes:
        wrote: Whether the transaction in progress has written.
    """

    wrote = False

    def _send(self, send: Send, statement: Any, parameters: Any, options: Any) -> Any:
        kind = self.shape.routed.app.classify(statement)
        if kind is not Kind.READ:
            self._note(kind, statement)
        return send(statement, parameters, execution_options=options)

    def _note(self, kind: Kind, statement: Any) -> None:
        stands_in = self.shape is not self.shape.routed.primary
        if stands_in and kind >= Kind.LOCK and active_role() is Role.REPLICA:
            raise write_refused(statement, "inside using_slave()")
        self.shape.routed.app.latch(WROTE)
        if kind is Kind.WRITE:
            self.wrote = True
            if self._in_autocommit():  # the statement is its own transaction
                self.committed()

    def _in_autocommit(self) -> bool:
        level = self.get_execution_options().get("isolation_level")
        if level is None:
            # Newer versions of SQLAlchemy can ask the driver.
            detect = getattr(self.dialect, "detect_autocommit_setting", None)
            driver = self.connection.dbapi_connection
            # A BEGIN of the program's own is stronger than the driver's setting.
            if detect is None or getattr(driver, "in_transaction", False):
                return False
            try:
                return bool(detect(driver))
            except NotImplementedError:
                return False
        return bool(level == "AUTOCOMMIT")

    def committed(self) -> None:
        """Report that what this transaction wrote is, or may be, visible now."""
        wrote, self.wrote = self.wrote, False
        app = self.shape.routed.app
        if wrote or app.in_known_writer():
            state = app.request_state()
            if state is not None:
                state.committed()

    def begin(self) -> RootTransaction:
        """Begin a transaction whose commit is reported, if it wrote."""
        if self.in_transaction():
            return super().begin()  # raises what every connection raises
        self.wrote = False
        return ReportedTransaction(self)

    def begin_twophase(self, xid: Any | None = None) -> TwoPhaseTransaction:
        """Begin a two-phase transaction whose commit is reported, if it wrote."""
        if self.in_transaction():
            return super().begin_twophase(xid)
        self.wrote = False
        return ReportedTwoPhase(self, self.dialect.create_xid() if xid is None else xid)


_STATEMENT_SNAPSHOTS = frozenset({"READ COMMITTED", "READ UNCOMMITTED", "AUTOCOMMIT"})


class ReplicaConnection(RoutedConnection):
    """A connection to one replica; it reads, and it harms nobody when lost.

    Attributes:
        member: The replica, set by ``shape``.
        used: Whether a statement has succeeded in this transaction.
        refused: Whether the server has refused a write in it.
    """

    shape: ReplicaEngine
    member: Member[Engine]
    used = refused = False
    _changed = False

    def _send(self, send: Send, statement: Any, parameters: Any, options: Any) -> Any:
        app = self.shape.routed.app
        kind = app.classify(statement)
        if kind >= Kind.LOCK:
            raise write_refused(statement, f"connected to {self.member.name!r}")
        if kind is Kind.SETTING:
            self._changed = True
        try:
            result = send(statement, parameters, execution_options=options)
        except DBAPIError as error:
            if not refused_as_write(error):
                raise
            self.refused = True
            refusal = write_refused(
                statement,
                f"{self.member.name!r} refused it; REPLICATED_WRITE_FUNCTIONS may name "
                "the function that writes",
            )
            app.learn_writer(refusal)
            raise refusal from error
        self.used = True
        return result

    @property
    def may_be_continued(self) -> bool:
        """Whether the primary may answer the rest of this transaction's reads.

        True where each statement sees the newest data anyway, and no ``SET`` was
        lost with the connection.
        """
        level = self.get_execution_options().get(
            "isolation_level", self.dialect.default_isolation_level
        )
        return not self._changed and level in _STATEMENT_SNAPSHOTS

    def begin(self) -> RootTransaction:
        """Begin a transaction that ends without failing."""
        if self.in_transaction():
            return super().begin()
        self.used = self.refused = False
        return ReadTransaction(self)

    def begin_twophase(self, xid: Any | None = None) -> TwoPhaseTransaction:
        """Begin a plain transaction: a read has nothing to prepare."""
        if self.in_transaction():
            return super().begin_twophase(xid)
        self.used = self.refused = False
        return ReadTwoPhase(self, xid)

    def begin_nested(self) -> NestedTransaction:
        """Begin a savepoint that ends without failing."""
        if not self.in_transaction():
            return super().begin_nested()
        used = self.used
        savepoint = ReadSavepoint(self)
        self.used = used  # a savepoint has shown nothing to anybody
        return savepoint


_SHOWN = 200  # characters of a statement that an error repeats


def write_refused(statement: object, why: str) -> WriteOnReplicaError:
    """Make the error that says who tried to write where, and the ways out."""
    text = redact(" ".join(str(statement).split()))
    if len(text) > _SHOWN:
        text = f"{text[: _SHOWN - 1]}…"
    view = (request.endpoint or NO_ENDPOINT) if has_request_context() else None
    return WriteOnReplicaError(text, view, why)
