"""The ``with`` blocks that are open, each with the thread or task that opened it.

A context variable holds the innermost one of a kind. Blocks are not inherited: a task
or a thread that is started inside a block decides for itself.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, TypeVar

from flask import has_request_context
from flask.globals import request

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import ContextVar

    from flask import Request

__all__ = ["OpenBlock", "enter", "innermost", "leave"]

T = TypeVar("T")

# LocalProxy's documented way to the object itself, bound once.
_this_request: Callable[[], Request] = request._get_current_object  # type: ignore[attr-defined]  # noqa: SLF001 - the proxy's documented method is not in its type


@dataclass(slots=True)
class OpenBlock(Generic[T]):
    """A block that was entered and not left yet.

    Attributes:
        held: What it says.
        block: The object that was entered.
        owner: The thread or task that has entered it.
        request: The request in which it was entered, or None.
        outer: The block around it, or None.
    """

    held: T
    block: object
    owner: object
    request: weakref.ref[Request] | None
    outer: OpenBlock[T] | None

    def is_abandoned(self) -> bool:
        """Whether the request is gone in which it was entered."""
        return self.request is not None and self.request() is None

    def here(self) -> OpenBlock[T] | None:
        """Return the first block that holds here, from this one outwards.

        It was entered by this thread or task, and in this request or in none. A block
        that was entered in a request ends with it at the latest: if a generator with an
        open block is abandoned, that must not reach the next request.
        """
        owner, running = _owner(), _request()
        block: OpenBlock[T] | None = self
        while block is not None:
            if block.owner is owner and (
                block.request is None
                or (running is not None and block.request() is running)
            ):
                return block
            block = block.outer
        return None

    def around(self) -> OpenBlock[T] | None:
        """Return the next block outside that holds here."""
        return None if self.outer is None else self.outer.here()


def _owner() -> object:
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no event loop runs in this thread
        task = None
    return task or threading.current_thread()


def _request() -> Request | None:
    return _this_request() if has_request_context() else None


def enter(current: ContextVar[OpenBlock[T] | None], block: object, held: T) -> None:
    """Open a block.

    Args:
        current: The innermost block, whether or not it holds for this thread or task.
        block: The object that is entered; the same may be entered many times.
        held: What it says.
    """
    outer, running = _drop_abandoned(current), _request()
    opened_in = None if running is None else weakref.ref(running)
    current.set(OpenBlock(held, block, _owner(), opened_in, outer))


def leave(current: ContextVar[OpenBlock[T] | None], block: object) -> None:
    """Close the innermost entry of a block; blocks may end out of order."""
    current.set(_without(current.get(), block))


def _without(opened: OpenBlock[T] | None, block: object) -> OpenBlock[T] | None:
    if opened is None or opened.block is block:
        return None if opened is None else opened.outer
    # Copied contexts share the blocks.
    return replace(opened, outer=_without(opened.outer, block))


def innermost(current: ContextVar[OpenBlock[T] | None]) -> OpenBlock[T] | None:
    """Return the innermost block that holds here, or None."""
    found = _drop_abandoned(current)
    return None if found is None else found.here()


def _drop_abandoned(current: ContextVar[OpenBlock[T] | None]) -> OpenBlock[T] | None:
    """Forget the innermost blocks whose requests are gone; return the next one."""
    found = block = current.get()
    while block is not None and block.is_abandoned():
        block = block.outer
    if block is not found:
        current.set(block)
    return block
