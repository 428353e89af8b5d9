"""Blocks as decorators: on functions, coroutine functions and generators."""

from __future__ import annotations

import functools
import inspect
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NoReturn, ParamSpec, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
    from contextlib import AbstractContextManager

    Block = Callable[[], AbstractContextManager[None]]

__all__ = ["BlockFactory", "is_generator", "run_inside", "run_steps_inside"]

P = ParamSpec("P")
R = TypeVar("R")
B = TypeVar("B")


class BlockFactory(Generic[P, B]):
    """A function that returns a block, with a helpful error if it is not called.

    ``@using_master`` and ``with using_master:`` lack the parentheses, which Python's
    own errors do not say.
    """

    def __init__(self, function: Callable[P, B]) -> None:
        self._function = function
        functools.update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> B:
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


def is_generator(function: object) -> bool:
    """Whether a function returns a generator, plain or ``async``."""
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def run_inside(block: Block, function: Callable[P, R]) -> Callable[P, R]:
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


def run_steps_inside(block: Block, function: Callable[P, R]) -> Callable[P, R]:
    """Wrap a function that returns a generator, so that this runs inside a block.

    The block is open while the generator runs, and not while its caller does.

    Args:
        block: Returns the block, for each step.
        function: The function, plain or ``async``.
    """
    if inspect.isasyncgenfunction(function):
        return cast("Callable[P, R]", _async_steps(block, function))
    return cast("Callable[P, R]", _steps(block, cast("Any", function)))


def _steps(
    block: Block, function: Callable[P, Generator[Any, Any, Any]]
) -> Callable[P, Generator[Any, Any, Any]]:
    @functools.wraps(function)
    def steps(*args: P.args, **kwargs: P.kwargs) -> Generator[Any, Any, Any]:
        inner = function(*args, **kwargs)
        step: Callable[[], Any] = partial(next, inner)
        while True:
            with block():
                try:
                    item = step()
                except StopIteration as end:
                    return end.value
            try:
                step = partial(inner.send, (yield item))
            except GeneratorExit:
                with block():
                    inner.close()
                raise
            except BaseException as error:  # noqa: BLE001 - it is thrown on
                step = partial(inner.throw, error)

    return steps


def _async_steps(
    block: Block, function: Callable[P, AsyncGenerator[Any, Any]]
) -> Callable[P, AsyncGenerator[Any, Any]]:
    @functools.wraps(function)
    async def steps(*args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[Any, Any]:
        inner = function(*args, **kwargs)
        step: Callable[[], Awaitable[Any]] = partial(anext, inner)
        while True:
            with block():
                try:
                    item = await step()
                except StopAsyncIteration:
                    return
            try:
                step = partial(inner.asend, (yield item))
            except GeneratorExit:
                with block():
                    await inner.aclose()
                raise
            except BaseException as error:  # noqa: BLE001 - it is thrown on
                step = partial(inner.athrow, error)

    return steps
