"""Asking for a database in code: ``using_*`` blocks and view decorators.

A block is held in a context variable together with the thread and task that
opened it, so it is never inherited: a task or a thread started inside a block
decides for itself.
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
from .session_objects import are_flushing, unflushed_sessions
from .state import current_request_state, this_request

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


class _Block(NamedTuple):
    role: Role
    maker: Using
    owner: object
    request: weakref.ref[Request] | None
    outer: _Block | None
    # Sessions that had something to flush when it began, where what is written inside
    # leaves no trace; None where it does.
    unflushed: WeakSet[Session] | None

    def is_over(self) -> bool:
        """Whether the request is gone in which it was opened."""
        return self.request is not None and self.request() is None


current_block: ContextVar[_Block | None] = ContextVar(
    "flask_replicated_block", default=None
)


def _owner() -> object:
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no event loop runs in this thread
        task = None
    return task or threading.current_thread()


def _request() -> Request | None:
    return this_request() if has_request_context() else None


def active_role() -> Role | None:
    """Return what the innermost block of this thread or task asks for.

    A block that was opened in a request ends with it at the latest: one in a
    generator that nobody finishes must not reach the next request.
    """
    block = _of_here(_without_rest())
    return None if block is None else block.role


def leaves_no_trace(connection: Connection | None = None) -> bool:
    """Whether what is written over a connection now is to be forgotten at once.

    It is inside of a ``using_master(pin=False)``, whatever other blocks are within,
    and it is no flush of what a session had before.
    """
    block, found = _of_here(_without_rest()), False
    while block is not None:
        if block.unflushed is not None:
            if connection and are_flushing(block.unflushed, connection):
                return False
            found = True
        block = _of_here(block.outer)
    return found


def _of_here(block: _Block | None) -> _Block | None:
    """Return the innermost block of this thread or task, from this one outwards."""
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


def _without_rest() -> _Block | None:
    """Return the innermost block; forget those that their requests have left open."""
    found = block = current_block.get()
    while block is not None and block.is_over():
        block = block.outer
    if block is not found:
        current_block.set(block)
    return block


class Using:
    """A ``with`` block, or a decorator, for one role.

    It keeps no state of its own: one object may be entered many times, nested
    and from many threads.
    """

    def __init__(self, role: Role, *, pin: bool = True) -> None:
        self._role = role
        self._pin = pin

    def __enter__(self) -> None:
        outer, request = _without_rest(), _request()
        opened_in = None if request is None else weakref.ref(request)
        unflushed = None if self._pin else unflushed_sessions()
        current_block.set(
            _Block(self._role, self, _owner(), opened_in, outer, unflushed)
        )

    def __exit__(self, *_: object) -> None:
        current_block.set(_without(current_block.get(), self))

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        if _steps(function):
            raise TypeError(
                f"{function!r} is a generator: it runs when its caller asks, outside "
                "this block. Open the block inside it, around each query."
            )
        return _around(function, lambda: self)


def _without(block: _Block | None, maker: Using) -> _Block | None:
    """Take out the innermost block of one maker; blocks may end out of order."""
    if block is None or block.maker is maker:
        return None if block is None else block.outer
    return block._replace(outer=_without(block.outer, maker))


def _steps(function: object) -> bool:
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


class Opener(Generic[P]):
    """A function that returns a block, and says so where it is not called.

    ``@using_master`` and ``with using_master:`` lack the parentheses; Python's own
    words for that do not tell.
    """

    def __init__(self, opens: Callable[P, Using]) -> None:
        self._opens = opens
        functools.update_wrapper(self, opens)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Using:
        """Return the block.

        Raises:
            TypeError: It is used as a decorator itself.
        """
        if args and (callable(args[0]) or hasattr(args[0], "__get__")):
            raise self._uncalled(f"@{self._opens.__name__}")
        return self._opens(*args, **kwargs)

    def __enter__(self) -> NoReturn:
        raise self._uncalled(f"with {self._opens.__name__}:")

    def __exit__(self, *_: object) -> None:
        """Never happen."""

    def _uncalled(self, written: str) -> TypeError:
        name = self._opens.__name__
        right = written.replace(name, f"{name}()")
        return TypeError(f"'{written}' lacks its parentheses: write '{right}'")


@Opener
def using_master(*, pin: bool = True) -> Using:
    """Send every read inside this block to the primary.

    Use it as ``with using_master():`` or as a decorator on any function,
    ``async`` ones included, inside or outside a request. The innermost block
    wins; it ends where it ends, also when it raises.

    Args:
        pin: With False, what is written inside leaves no trace: it neither ties the
            request to the primary nor pins its client, wherever it is committed. That
            holds for blocks inside it, too. Any other write counts as ever: one that
            was sent before the block and is committed inside, and a change that a
            session had before the block and flushes inside.
    """
    return Using(Role.PRIMARY, pin=pin)


@Opener
def using_slave() -> Using:
    """Send every read inside this block to a replica, whatever was decided.

    A statement in it that writes or locks raises
    :class:`~flask_replicated.WriteOnReplicaError` before it is sent.
    Otherwise like :func:`using_master`.
    """
    return Using(Role.REPLICA)


def _around(
    function: Callable[P, R], block: Callable[[], AbstractContextManager[None]]
) -> Callable[P, R]:
    """Wrap a function, plain or ``async``, so that it runs inside a block.

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


class _Marking:
    """Mark the running request from here on; outside one, act as a block."""

    def __init__(self, role: Role) -> None:
        self._role = role
        self._block: Using | None = None

    def __enter__(self) -> None:
        state = current_request_state()
        if state is not None:
            state.mark(self._role)
        else:
            self._block = Using(self._role)
            self._block.__enter__()

    def __exit__(self, *exc: object) -> None:
        if self._block is not None:
            self._block.__exit__(*exc)


def _view_decorator(role: Role, view: Callable[P, R]) -> Callable[P, R]:
    marked = _around(view, lambda: _Marking(role))
    # Readable before the view is called, so that a before_request function or
    # an outer decorator already reads where the view will.
    setattr(marked, MARK, role)
    return marked


def use_master_database(view: Callable[P, R]) -> Callable[P, R]:
    """Decorate a view that must read from the primary.

    Works on functions, on methods of a ``MethodView``, in ``decorators = [...]``
    and above or below other decorators, on plain and ``async`` views.
    """
    return _view_decorator(Role.PRIMARY, view)


def changes_database(view: Callable[P, R]) -> Callable[P, R]:
    """Decorate a view that writes whatever its method: always the primary.

    Works where :func:`use_master_database` works, and does the same; the name
    tells the reader why.
    """
    return _view_decorator(Role.PRIMARY, view)


def use_slave_database(view: Callable[P, R]) -> Callable[P, R]:
    """Decorate a view that may read from a replica whatever its method.

    For a ``POST`` that only searches. A write in it still goes to the primary,
    and the rest of the request with it. Works where
    :func:`use_master_database` works.
    """
    return _view_decorator(Role.REPLICA, view)
