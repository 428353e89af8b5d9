"""What the connections to both kinds of server have in common."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection

from flask_replicated._private import joined_dispatch
from flask_replicated.routing.decision import BLOCKS, OPTIONS, Decision, Role
from flask_replicated.routing.hints import wanted_role
from flask_replicated.routing.overrides import active_role

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import CursorResult, Engine
    from sqlalchemy.engine import ExecutionContext

__all__ = [
    "ExecutingConnection",
    "LazyDispatchConnection",
    "asked_for",
    "asked_role",
    "for_role",
]

_T = TypeVar("_T")


class LazyDispatchConnection(Connection):
    """A connection that looks for its listeners at the first event.

    SQLAlchemy looks for them at once, which costs 2 % of a GET's instructions; and
    nearly always there are none. All are called, whenever they were added.
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


class ExecutingConnection(Connection):
    """A connection with one method around all that executes a statement."""

    # The overloads of Connection differ in the type of their result alone.
    def execute(
        self, statement: Any, parameters: Any = None, *, execution_options: Any = None
    ) -> CursorResult[Any]:
        """Execute a statement, as any connection does."""
        return self._around(super().execute, statement, parameters, execution_options)

    def scalar(
        self, statement: Any, parameters: Any = None, *, execution_options: Any = None
    ) -> Any:
        """Execute a statement and return its first value."""
        return self._around(super().scalar, statement, parameters, execution_options)

    def exec_driver_sql(
        self, statement: str, parameters: Any = None, execution_options: Any = None
    ) -> CursorResult[Any]:
        """Execute a string on the driver's own cursor."""
        return self._around(
            super().exec_driver_sql, statement, parameters, execution_options
        )

    def _around(
        self,
        execute: Callable[..., _T],
        statement: Any,
        parameters: Any,
        execution_options: Any,
    ) -> _T:
        """Execute a statement by the method that was called."""
        raise NotImplementedError


def asked_for(context: ExecutionContext) -> Decision | None:
    """Return what a statement that is being sent, or a block around it, asks for."""
    wanted = asked_role(context)
    if wanted is not None:
        return OPTIONS[wanted]
    role = active_role()
    return None if role is None else BLOCKS[role]


def for_role(decision: Decision, other: Decision) -> Decision:
    """Return the first decision, or the other one where their roles differ."""
    return decision if decision.role is other.role else other


def asked_role(context: ExecutionContext) -> Role | None:
    """Return the role that the options of a statement that is being sent ask for."""
    statement = getattr(context, "invoked_statement", None)
    return wanted_role(statement, context.execution_options)
