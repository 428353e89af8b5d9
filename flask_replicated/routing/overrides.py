"""Asking for a database in code: ``using_*`` blocks and view decorators."""

from __future__ import annotations

import functools
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar, cast

from flask_replicated._private import connections_of, is_flushing, unflushed_sessions
from flask_replicated.blocks.decorating import BlockFactory, is_generator, run_inside
from flask_replicated.blocks.decorator_order import note_decorated
from flask_replicated.blocks.open_blocks import OpenBlock, enter, innermost, leave

from .decision import MARK, Role
from .state import current_request_state

if TYPE_CHECKING:
    from collections.abc import Callable
    from weakref import WeakSet

    from sqlalchemy import Connection
    from sqlalchemy.orm import Session

__all__ = [
    "active_role",
    "changes_database",
    "current_block",
    "leaves_no_trace",
    "use_master_database",
    "use_slave_database",
    "using_master",
    "using_slave",
]

P = ParamSpec("P")
R = TypeVar("R")
D = TypeVar("D", bound="Callable[..., Any]")

_NAMES = {Role.PRIMARY: "using_master()", Role.REPLICA: "using_slave()"}


class _Asked(NamedTuple):
    """What an open block asks for.

    Attributes:
        role: Where reads go inside it.
        unflushed: With ``pin=False``, the sessions that had changes to flush when it
            was entered; else None.
    """

    role: Role
    unflushed: WeakSet[Session] | None


current_block: ContextVar[OpenBlock[_Asked] | None] = ContextVar(
    "flask_replicated_block", default=None
)
"""The innermost open block, whether or not it holds for this thread or task."""


def active_role() -> Role | None:
    """Return what the innermost block of this thread or task asks for, or None."""
    block = innermost(current_block)
    return None if block is None else block.held.role


def leaves_no_trace(connection: Connection | None = None) -> bool:
    """Whether what is written over a connection now neither latches nor pins.

    So it is inside ``using_master(pin=False)``, whatever other blocks are within. But a
    flush counts if its session had changes before the block began.
    """
    block, found = innermost(current_block), False
    while block is not None:
        unflushed = block.held.unflushed
        if unflushed is not None:
            if connection and any(_is_flushing(one, connection) for one in unflushed):
                return False
            found = True
        block = block.around()
    return found


def _is_flushing(session: Session, connection: Connection) -> bool:
    """Whether a session is flushing over this connection."""
    transaction = session.get_transaction()
    return (
        transaction is not None
        and is_flushing(session)
        and connection in connections_of(transaction)
    )


class RoleBlock:
    """A ``with`` block, or a decorator, for one role.

    It keeps no state of its own: one object may be entered many times, nested
    and from many threads.

    Args:
        role: Where reads go inside it.
        pin: Whether what is written inside latches its request and pins its client.
    """

    def __init__(self, role: Role, *, pin: bool = True) -> None:
        self._role = role
        self._pin = pin

    def __enter__(self) -> None:
        unflushed = None if self._pin else unflushed_sessions()
        enter(current_block, self, _Asked(self._role, unflushed))

    def __exit__(self, *_: object) -> None:
        leave(current_block, self)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        if is_generator(function):
            raise TypeError(
                f"{function!r} is a generator: it runs when its caller asks, outside "
                "this block. Open the block inside it, around each query."
            )
        note_decorated(function, "@" + _NAMES[self._role])
        return run_inside(lambda: self, function)


@BlockFactory
def using_master(*, pin: bool = True) -> RoleBlock:
    """Send every read inside this block to the primary.

    Use it as ``with using_master():`` or as a decorator on any function,
    ``async`` ones included, inside or outside a request. The innermost block
    wins.

    Args:
        pin: With False, what is written inside leaves no trace: it neither ties the
            request to the primary nor pins its client, wherever it is committed. That
            holds for blocks inside it, too. Any other write counts as usual: one that
            was sent before the block and is committed inside, and a change that a
            session had before the block and flushes inside.

    Raises:
        TypeError: *pin* is neither True nor False.
    """
    if not isinstance(pin, bool):
        raise TypeError(f"using_master(pin={pin!r}): pin must be True or False.")
    return RoleBlock(Role.PRIMARY, pin=pin)


@BlockFactory
def using_slave() -> RoleBlock:
    """Send every read inside this block to a replica, whatever the request's rules say.

    A statement in it that writes or locks raises
    :class:`~flask_replicated.WriteOnReplicaError` before it is sent.
    Otherwise like :func:`using_master`.
    """
    return RoleBlock(Role.REPLICA)


class _MarkedRequest:
    """Marks the running request from here on; outside one, acts as a block."""

    def __init__(self, role: Role) -> None:
        self._role = role
        self._block: RoleBlock | None = None

    def __enter__(self) -> None:
        state = current_request_state()
        if state is not None:
            state.mark(self._role)
        else:
            self._block = RoleBlock(self._role)
            self._block.__enter__()

    def __exit__(self, *exc: object) -> None:
        if self._block is not None:
            self._block.__exit__(*exc)


def _mark_view(role: Role, decorator: str, view: Callable[P, R]) -> Callable[P, R]:
    marked = run_inside(lambda: _MarkedRequest(role), view)
    # Readable before the view is called, so that a before_request function or
    # an outer decorator already reads where the view will.
    setattr(marked, MARK, role)
    note_decorated(view, decorator)
    return marked


def _needs_view(decorate: D) -> D:
    """Let a decorator say that it takes no parentheses."""

    @functools.wraps(decorate)
    def checked(*args: Any, **kwargs: Any) -> Any:
        if not args and "view" not in kwargs:
            name = getattr(decorate, "__name__", "")
            raise TypeError(f"'@{name}(...)' takes no arguments: write '@{name}'")
        return decorate(*args, **kwargs)

    return cast("D", checked)


@_needs_view
def use_master_database(view: Callable[P, R]) -> Callable[P, R]:
    """Decorate a view that must read from the primary.

    Works on functions, on methods of a ``MethodView``, in ``decorators = [...]``
    and above or below other decorators, on plain and ``async`` views. Only the route,
    such as ``@app.get(...)``, must stand above it.
    """
    return _mark_view(Role.PRIMARY, "@use_master_database", view)


@_needs_view
def changes_database(view: Callable[P, R]) -> Callable[P, R]:
    """Decorate a view that writes whatever its method: always the primary.

    The same as :func:`use_master_database`, under a name that says why.
    """
    return _mark_view(Role.PRIMARY, "@changes_database", view)


@_needs_view
def use_slave_database(view: Callable[P, R]) -> Callable[P, R]:
    """Decorate a view that may read from a replica whatever its method.

    For a ``POST`` that only searches. A write in it still goes to the primary,
    and the rest of the request with it. Works where
    :func:`use_master_database` works.
    """
    return _mark_view(Role.REPLICA, "@use_slave_database", view)
