"""Asking for a database in code: ``using_*`` blocks and view decorators.

A context variable holds the open blocks, each with the thread or task that opened it.
So blocks are not inherited: a task or a thread that is started inside a block decides
for itself.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
import weakref
from contextvars import ContextVar
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    NamedTuple,
    NoReturn,
    ParamSpec,
    TypeVar,
    cast,
)

from flask import has_request_context

from .decision import MARK, Role
from .decorator_order import note_decorated
from .flask_context import this_request
from .session_objects import are_flushing, unflushed_sessions
from .state import current_request_state

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractContextManager
    from weakref import WeakSet

    from flask import Request
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


class _OpenBlock(NamedTuple):
    """A block that was entered and not left yet.

    Attributes:
        role: Where reads go inside it.
        block: The object that was entered.
        owner: The thread or task that has entered it.
        request: The request in which it was entered, or None.
        outer: The block around it, or None.
        unflushed: With ``pin=False``, the sessions that had changes to flush when it
            was entered; else None.
    """

    role: Role
    block: RoleBlock
    owner: object
    request: weakref.ref[Request] | None
    outer: _OpenBlock | None
    unflushed: WeakSet[Session] | None

    def is_abandoned(self) -> bool:
        """Whether the request is gone in which it was entered."""
        return self.request is not None and self.request() is None


current_block: ContextVar[_OpenBlock | None] = ContextVar(
    "flask_replicated_block", default=None
)
"""The innermost open block, whether or not it holds for this thread or task."""


def _owner() -> object:
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no event loop runs in this thread
        task = None
    return task or threading.current_thread()


def _request() -> Request | None:
    return this_request() if has_request_context() else None


def active_role() -> Role | None:
    """Return what the innermost block of this thread or task asks for, or None.

    A block that was entered in a request ends with it at the latest: if a generator
    with an open block is abandoned, that must not reach the next request.
    """
    block = _innermost_here(_drop_abandoned())
    return None if block is None else block.role


def leaves_no_trace(connection: Connection | None = None) -> bool:
    """Whether what is written over a connection now neither latches nor pins.

    So it is inside ``using_master(pin=False)``, whatever other blocks are within. But a
    flush counts if its session had changes before the block began.
    """
    block, found = _innermost_here(_drop_abandoned()), False
    while block is not None:
        if block.unflushed is not None:
            if connection and are_flushing(block.unflushed, connection):
                return False
            found = True
        block = _innermost_here(block.outer)
    return found


def _innermost_here(block: _OpenBlock | None) -> _OpenBlock | None:
    """Return the first block that holds here, from the given one outwards.

    It was entered by this thread or task, and in this request or in none.
    """
    if block is None:
        return None
    owner, request = _owner(), _request()
    while block is not None:
        if block.owner is owner and (
            block.request is None
            or (request is not None and block.request() is request)
        ):
            return block
        block = block.outer
    return None


def _drop_abandoned() -> _OpenBlock | None:
    """Forget the innermost blocks whose requests are gone; return the next one."""
    found = block = current_block.get()
    while block is not None and block.is_abandoned():
        block = block.outer
    if block is not found:
        current_block.set(block)
    return block


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
        outer, request = _drop_abandoned(), _request()
        opened_in = None if request is None else weakref.ref(request)
        unflushed = None if self._pin else unflushed_sessions()
        current_block.set(
            _OpenBlock(self._role, self, _owner(), opened_in, outer, unflushed)
        )

    def __exit__(self, *_: object) -> None:
        current_block.set(_close_innermost(current_block.get(), self))

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(
            function
        ):
            raise TypeError(
                f"{function!r} is a generator: it runs when its caller asks, outside "
                "this block. Open the block inside it, around each query."
            )
        note_decorated(function, "@" + _NAMES[self._role])
        return _run_inside(lambda: self, function)


def _close_innermost(opened: _OpenBlock | None, block: RoleBlock) -> _OpenBlock | None:
    """Take out the innermost entry of one block; blocks may end out of order."""
    if opened is None or opened.block is block:
        return None if opened is None else opened.outer
    return opened._replace(outer=_close_innermost(opened.outer, block))


class BlockFactory(Generic[P]):
    """A function that returns a block, with a helpful error if it is not called.

    ``@using_master`` and ``with using_master:`` lack the parentheses, which Python's
    own errors do not say.
    """

    def __init__(self, function: Callable[P, RoleBlock]) -> None:
        self._function = function
        functools.update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> RoleBlock:
        """Return the block.

        Raises:
            TypeError: It is used as a decorator itself.
        """
        if args and (callable(args[0]) or hasattr(args[0], "__get__")):
            raise self._lacks_parentheses(f"@{self._function.__name__}")
        return self._function(*args, **kwargs)

    def __enter__(self) -> NoReturn:
        raise self._lacks_parentheses(f"with {self._function.__name__}:")

    def __exit__(self, *_: object) -> None:
        """Exist for the sake of ``with``, which looks for it first."""

    def _lacks_parentheses(self, written: str) -> TypeError:
        name = self._function.__name__
        right = written.replace(name, f"{name}()")
        return TypeError(f"'{written}' lacks its parentheses: write '{right}'")


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


def _run_inside(
    block: Callable[[], AbstractContextManager[None]], function: Callable[P, R]
) -> Callable[P, R]:
    """Wrap a function, plain or ``async``, so that it runs inside a block.

    Args:
        block: Returns the block, for each call.
        function: The function.

    Raises:
        TypeError: It is no function.
    """
    if inspect.isclass(function) or not callable(function):
        raise TypeError(
            f"{function!r} is no function; for a class-based view set "
            "decorators = [...] on it, or decorate its methods."
        )
    if inspect.iscoroutinefunction(function):
        call = cast("Callable[P, Awaitable[Any]]", function)

        @functools.wraps(function)
        async def awaited(*args: P.args, **kwargs: P.kwargs) -> Any:
            with block():
                return await call(*args, **kwargs)

        return cast("Callable[P, R]", awaited)

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        with block():
            return function(*args, **kwargs)

    return called


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
    marked = _run_inside(lambda: _MarkedRequest(role), view)
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
