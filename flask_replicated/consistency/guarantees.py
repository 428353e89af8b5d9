"""What code asks for: ``guarantee()`` blocks and decorators, ``using_token()`` blocks.

They say how fresh reads must be, and leave to the request's rules where they go.
"""

from __future__ import annotations

import math
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple, ParamSpec, TypeVar

from flask_replicated.blocks.decorating import (
    BlockFactory,
    is_generator,
    run_inside,
    run_steps_inside,
)
from flask_replicated.blocks.decorator_order import note_decorated
from flask_replicated.blocks.open_blocks import OpenBlock, enter, innermost, leave
from flask_replicated.settings.config import GUARANTEES
from flask_replicated.settings.validators import is_number

from .tokens import Token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "OpenToken",
    "blocks",
    "current_guarantees",
    "guarantee",
    "innermost_guarantee",
    "max_staleness",
    "open_token_blocks",
    "using_token",
]

P = ParamSpec("P")
R = TypeVar("R")


class _Guaranteed(NamedTuple):
    """What a ``guarantee()`` block says.

    Attributes:
        name: One of the guarantees, or None for that of the block around it.
        max_staleness: Seconds, or None for no limit.
    """

    name: str | None
    max_staleness: float | None


class OpenToken:
    """An open ``using_token()`` block.

    Attributes:
        text: The token that it was given; ``""`` if that demands nothing.
        written: What was committed inside. Whoever notes a commit adds it.
    """

    __slots__ = ("text", "written")

    def __init__(self, text: str) -> None:
        self.text = text
        self.written = Token()


current_guarantees: ContextVar[OpenBlock[_Guaranteed | OpenToken] | None] = ContextVar(
    "flask_replicated_guarantees", default=None
)
"""The innermost open block of either kind, whether or not it holds here.

If it is None, none is open.
"""


class _Blocks:
    """What is known of all blocks of this process.

    Attributes:
        were_opened: Whether any block ever was; most programs have none.
    """

    were_opened = False


blocks = _Blocks()
"""Asked for each statement, in a fifth of the time that the context variable takes."""


def _open_blocks() -> Iterator[OpenBlock[_Guaranteed | OpenToken]]:
    """Iterate over the blocks of both kinds that hold here, the innermost first."""
    block = innermost(current_guarantees)
    while block is not None:
        yield block
        block = block.around()


def innermost_guarantee() -> str | None:
    """Return the guarantee of the innermost block; None if the application's holds."""
    if current_guarantees.get() is None:  # as nearly always
        return None
    for block in _open_blocks():
        if isinstance(block.held, _Guaranteed) and block.held.name is not None:
            return block.held.name
    return None


def max_staleness() -> float | None:
    """Return the least that the open blocks allow, in seconds; None for no limit."""
    if current_guarantees.get() is None:
        return None
    allowed = (
        block.held.max_staleness
        for block in _open_blocks()
        if isinstance(block.held, _Guaranteed)
    )
    return min((one for one in allowed if one is not None), default=None)


def open_token_blocks() -> tuple[OpenToken, ...]:
    """Return the open ``using_token()`` blocks that hold here, the innermost last."""
    if current_guarantees.get() is None:
        return ()
    held = (block.held for block in _open_blocks())
    found = [one for one in held if isinstance(one, OpenToken)]
    return tuple(reversed(found))


class GuaranteeBlock:
    """A ``with`` block, or a decorator, for one guarantee.

    It keeps no state of its own: one object may be entered many times, nested and from
    many threads.

    Args:
        name: The guarantee, or None for that of the block around it.
        max_staleness: How old what is read may be, in seconds; None for no limit.
    """

    def __init__(self, name: str | None, max_staleness: float | None) -> None:
        self._held = _Guaranteed(name, max_staleness)

    def __enter__(self) -> None:
        blocks.were_opened = True
        enter(current_guarantees, self, self._held)

    def __exit__(self, *_: object) -> None:
        leave(current_guarantees, self)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        run = run_steps_inside if is_generator(function) else run_inside
        note_decorated(function, "@guarantee(...)")
        return run(lambda: self, function)


class TokenBlock:
    """A ``with`` block for one token; it may be entered many times.

    Args:
        token: What reads inside must show; ``""`` is nothing.
    """

    def __init__(self, token: str) -> None:
        self._token = token

    def __enter__(self) -> None:
        blocks.were_opened = True
        enter(current_guarantees, self, OpenToken(self._token))

    def __exit__(self, *_: object) -> None:
        leave(current_guarantees, self)


@BlockFactory
def guarantee(
    name: str | None = None, *, max_staleness: float | None = None
) -> GuaranteeBlock:
    """Say what the reads inside this block may rely on.

    Use it as ``with guarantee("monotonic"):`` or as a decorator on any function, on
    ``async`` functions and generators too, inside or outside a request. A generator is
    inside the block while it runs, its caller is not. The innermost block that names
    a guarantee wins; of ``max_staleness`` the least one of all open blocks counts.

    Args:
        name: ``"none"``, ``"read_your_writes"``, or ``"monotonic"``: also never older
            than what this client has already read. None leaves it at what is set
            outside, such as ``REPLICATED_GUARANTEE``.
        max_staleness: How old the data may be, in seconds. A replica for which that
            cannot be told does not serve.

    Raises:
        ValueError: There is no such guarantee, *max_staleness* is no number above 0, or
            neither is given.
        TypeError: It is used as a decorator without parentheses.
    """
    if name is None and max_staleness is None:
        raise ValueError(
            f"guarantee() says nothing: give it {_listed()}, or max_staleness=2.0."
        )
    if name is not None and name not in GUARANTEES:
        raise ValueError(f"guarantee({name!r}): it must be {_listed()}.")
    if max_staleness is not None and not (
        is_number(max_staleness) and 0 < max_staleness < math.inf
    ):
        raise ValueError(
            f"guarantee(max_staleness={max_staleness!r}): it must be a number of "
            "seconds above 0."
        )
    return GuaranteeBlock(name, max_staleness)


def _listed() -> str:
    return f"{', '.join(map(repr, GUARANTEES[:-1]))} or {GUARANTEES[-1]!r}"


def using_token(token: str | None) -> TokenBlock:
    """Show the reads inside this block at least what a token stands for.

    A replica that has not got there yet does not serve them. Where they go is left to
    the rules: outside a request they still need ``using_slave()``. Tokens of nested
    blocks, and what the client's request carries, add up.

    Args:
        token: What ``FlaskReplicated.token()`` returned, in this process or another.
            ``""`` and None demand nothing. With a text that is no token of this
            application's, the primary serves.

    Raises:
        TypeError: *token* is neither text nor None.
    """
    if token is not None and not isinstance(token, str):
        raise TypeError(
            f"using_token() takes a token, which is text, or None; not {token!r}."
        )
    return TokenBlock(token or "")
