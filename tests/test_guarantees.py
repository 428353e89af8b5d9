"""``guarantee()`` and ``using_token()``: what holds where, and for whom."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import math
import weakref
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask
from flask.views import MethodView, View

from flask_replicated import guarantee, using_token
from flask_replicated.consistency.guarantees import (
    current_guarantees,
    innermost_guarantee,
    max_staleness,
    open_token_blocks,
)
from flask_replicated.consistency.tokens import Mark, Token
from flask_replicated.settings.config import GUARANTEES
from tests.support import Build, build_fixture

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from flask import Request

build = build_fixture


def seen() -> tuple[str | None, float | None, list[str]]:
    """Return the guarantee, the staleness and the tokens that hold here."""
    return innermost_guarantee(), max_staleness(), [b.text for b in open_token_blocks()]


NOTHING: Any = (None, None, [])


@pytest.fixture
def app() -> Flask:
    """Give an application; blocks need no database."""
    return Flask(__name__)


@pytest.mark.parametrize("name", GUARANTEES)
def test_each(name: str) -> None:
    """A block says what it names, outside a request too, and ends where it ends."""
    with guarantee(name):
        assert innermost_guarantee() == name
    assert seen() == NOTHING
    assert current_guarantees.get() is None


def test_nested() -> None:
    """The innermost that names a guarantee wins; of the staleness the least counts."""
    with guarantee("none", max_staleness=2), guarantee("monotonic"):
        assert seen() == ("monotonic", 2, [])
        with guarantee(max_staleness=0.5):
            assert seen() == ("monotonic", 0.5, [])
            with guarantee(max_staleness=9):
                assert seen() == ("monotonic", 0.5, [])
        assert seen() == ("monotonic", 2, [])


def test_token_blocks() -> None:
    """Tokens of nested blocks add up, the outermost first; guarantees are apart."""
    with using_token("one"), guarantee("none"), using_token(None), using_token("two"):
        assert seen() == ("none", None, ["one", "", "two"])
    assert seen() == NOTHING


def test_what_is_written_inside() -> None:
    """Each entry of a block notes by itself what is committed inside."""
    block, wrote = using_token("t"), Token({1: Mark(at=5.0)})
    with block:
        open_token_blocks()[-1].written = wrote
        with block:
            assert [one.written for one in open_token_blocks()] == [wrote, Token()]
        (outer,) = open_token_blocks()
        assert outer.written == wrote
    with block:
        assert open_token_blocks()[0].written == Token()


def test_one_object_nested() -> None:
    """One object may be entered inside itself."""
    block = guarantee("monotonic")
    with block:
        with block, guarantee("none"):
            assert innermost_guarantee() == "none"
        assert innermost_guarantee() == "monotonic"
    assert seen() == NOTHING


def test_out_of_order() -> None:
    """Blocks that end in another order than that of nesting leave the others."""
    outer, inner = guarantee("none"), using_token("t")
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    assert seen() == (None, None, ["t"])
    inner.__exit__(None, None, None)
    assert seen() == NOTHING


@pytest.mark.parametrize("block", [guarantee("monotonic"), using_token("t")])
def test_exception(block: Any) -> None:
    """A block ends also when it raises, and hides no exception."""
    with pytest.raises(KeyError), block:
        raise KeyError
    assert seen() == NOTHING


def test_other_thread() -> None:
    """A thread that is started inside a block decides for itself."""
    with ThreadPoolExecutor(1) as threads, guarantee("none"), using_token("t"):
        context = contextvars.copy_context()
        assert threads.submit(context.run, seen).result() == NOTHING


def test_other_task() -> None:
    """So does a task; and tasks that take turns do not see each other's blocks."""

    async def work(name: str) -> list[str | None]:
        found = [innermost_guarantee()]
        with guarantee(name):
            await asyncio.sleep(0)
            found.append(innermost_guarantee())
        return found

    async def both() -> list[list[str | None]]:
        with guarantee("read_your_writes"):
            return [*await asyncio.gather(work("none"), work("monotonic"))]

    assert asyncio.run(both()) == [[None, "none"], [None, "monotonic"]]


def test_inner_request(app: Flask) -> None:
    """A request inside another one does not see that one's blocks."""
    with app.test_request_context(), guarantee("none"), using_token("t"):
        with app.test_request_context():
            assert seen() == NOTHING
        assert seen() == ("none", None, ["t"])


def test_never_left(app: Flask) -> None:
    """A block that a request has left open ends with it, and keeps nothing alive."""
    ended: list[weakref.ref[Request]] = []
    for _ in range(3):
        with app.test_request_context() as context:
            ended.append(weakref.ref(context.request))
            guarantee("none").__enter__()
            using_token("t").__enter__()
        del context
        gc.collect()
    assert [request() for request in ended] == [None, None, None]
    assert seen() == NOTHING
    assert current_guarantees.get() is None


def test_decorated_function() -> None:
    """A decorated function runs inside the block, and keeps its name and result."""

    @guarantee("monotonic", max_staleness=2)
    def page(one: int, *, two: int) -> Any:
        return one, two, seen()

    assert page(1, two=2) == (1, 2, ("monotonic", 2, []))
    assert page.__name__ == "page"
    assert seen() == NOTHING


def test_decorated_coroutine() -> None:
    """A decorated coroutine function is inside the block until it has returned."""

    @guarantee("monotonic")
    async def page() -> Any:
        await asyncio.sleep(0)
        return seen()

    async def work() -> Any:
        return await page(), seen()

    assert asyncio.run(work()) == (("monotonic", None, []), NOTHING)


def test_decorated_generator() -> None:
    """A decorated generator is inside the block while it runs; its caller is not."""

    @guarantee("monotonic")
    def rows(one: int) -> Iterator[Any]:
        yield one, seen()
        yield seen()

    found = rows(1)
    assert next(found) == (1, ("monotonic", None, []))
    assert seen() == NOTHING
    assert list(found) == [("monotonic", None, [])]
    assert seen() == NOTHING


def test_two_generators_in_turns() -> None:
    """Generators that take turns do not see each other's guarantee."""

    def rows() -> Iterator[str | None]:
        for _ in range(3):
            yield innermost_guarantee()

    pairs = list(
        zip(guarantee("none")(rows)(), guarantee("monotonic")(rows)(), strict=True)
    )
    assert pairs == [("none", "monotonic")] * 3


def test_generator_protocol() -> None:
    """What is sent and thrown into it arrives inside the block, as does its end."""
    log: list[Any] = []

    @guarantee("none")
    def work() -> Any:
        while True:
            try:
                log.append((yield innermost_guarantee()))
            except KeyError as error:
                log.append((error, innermost_guarantee()))
                break
        try:
            yield "after"
        finally:
            log.append(innermost_guarantee())

    found, error = work(), KeyError()
    assert next(found) == "none"
    assert found.send("sent") == "none"
    assert found.throw(error) == "after"
    found.close()
    assert log == ["sent", (error, "none"), "none"]
    assert seen() == NOTHING


def test_result_of_a_generator() -> None:
    """Its return value, and an exception that it raises, reach the caller."""

    @guarantee("none")
    def work(*, fail: bool) -> Any:
        yield
        if fail:
            raise KeyError
        return 7

    def ask() -> Any:
        return (yield from work(fail=False))

    found = ask()
    next(found)
    with pytest.raises(StopIteration) as end:
        next(found)
    assert end.value.value == 7
    with pytest.raises(KeyError):
        list(work(fail=True))


def test_decorated_async_generator() -> None:
    """An asynchronous generator is inside the block while it runs, to its close."""
    log: list[Any] = []

    @guarantee("monotonic")
    async def rows() -> AsyncIterator[Any]:
        try:
            yield seen()
            await asyncio.sleep(0)
            log.append((yield seen()))
        except KeyError:
            yield "caught", innermost_guarantee()
        finally:
            log.append(innermost_guarantee())

    async def work() -> None:
        inside: Any = ("monotonic", None, [])
        assert [row async for row in rows()] == [inside, inside]
        assert log == [None, "monotonic"]
        found: Any = rows()
        assert await anext(found) == inside
        assert seen() == NOTHING
        assert await found.athrow(KeyError()) == ("caught", "monotonic")
        await found.aclose()
        assert log == [None, "monotonic", "monotonic"]

    asyncio.run(work())
    assert seen() == NOTHING


def test_async_generator_gets_what_is_sent() -> None:
    """What is sent into an asynchronous generator arrives."""

    @guarantee("none")
    async def echo() -> Any:
        sent = None
        while True:
            sent = yield sent

    async def work() -> Any:
        found = echo()
        return await found.asend(None), await found.asend(7)

    assert asyncio.run(work()) == (None, 7)


def answer(app: Flask, view: Callable[..., Any]) -> str:
    """Return what a view answers."""
    app.add_url_rule("/view", view_func=view)
    return app.test_client().get("/view").text


def test_view_class(app: Flask) -> None:
    """A View and a MethodView have it in their list of decorators, or on a method."""

    class Page(View):
        decorators = (guarantee("none"),)  # type: ignore[assignment]  # any sequence will do

        def dispatch_request(self) -> str:
            return str(innermost_guarantee())

    class Item(MethodView):
        decorators = (guarantee(max_staleness=2),)  # type: ignore[assignment]  # the same

        @guarantee("monotonic")
        def get(self) -> str:
            return str(seen())

        def post(self) -> str:
            return str(seen())

    app.add_url_rule("/item", view_func=Item.as_view("item"))
    assert answer(app, Page.as_view("view")) == "none"
    client = app.test_client()
    assert client.get("/item").text == str(("monotonic", 2, []))
    assert client.post("/item").text == str((None, 2, []))


def test_async_view(app: Flask) -> None:
    """A decorated asynchronous view is inside the block."""

    @guarantee("monotonic")
    async def view() -> str:
        await asyncio.sleep(0)
        return str(innermost_guarantee())

    assert answer(app, view) == "monotonic"


def test_streamed_view(app: Flask) -> None:
    """A decorated view that streams is inside the block while the body is made."""

    @guarantee("monotonic")
    def view() -> Iterator[str]:
        for _ in range(2):
            yield f"{innermost_guarantee()} "

    assert answer(app, view) == "monotonic monotonic "


def test_above_the_route(build: Build, caplog: pytest.LogCaptureFixture) -> None:
    """A decorator above the route has no effect, and a WARNING says so."""
    site = build()

    @guarantee("monotonic")
    @site.app.get("/above")
    def above() -> str:
        site.who()
        return str(innermost_guarantee())

    with caplog.at_level(logging.WARNING, "flask_replicated"):
        assert site.client().get("/above").text == "None"
    (said,) = [one.getMessage() for one in caplog.records]
    assert "view 'above' ignores @guarantee(...): it stands above the route" in said


@pytest.mark.parametrize("name", ["", "strong", "Monotonic", "read-your-writes", 7, []])
def test_unknown(name: Any) -> None:
    """A guarantee that does not exist is an error at once, and names the right ones."""
    with pytest.raises(ValueError, match="'none', 'read_your_writes' or 'monotonic'"):
        guarantee(name)


@pytest.mark.parametrize(
    "seconds", [0, -1, math.nan, math.inf, True, "2", Decimal(2), 0.0]
)
def test_no_staleness(seconds: Any) -> None:
    """What is no number of seconds above 0 is an error at once."""
    with pytest.raises(ValueError, match="a number of seconds above 0"):
        guarantee(max_staleness=seconds)


def test_says_nothing() -> None:
    """So is a guarantee of nothing."""
    with pytest.raises(ValueError, match=r"guarantee\(\) says nothing: give it 'none'"):
        guarantee()


def test_without_parentheses() -> None:
    """Missing parentheses are named."""
    with pytest.raises(TypeError, match="lacks its parentheses"):
        guarantee(seen)  # type: ignore[arg-type]  # that is the point
    with pytest.raises(TypeError, match="lacks its parentheses"), guarantee:
        pass


def test_on_a_class() -> None:
    """A class is no view: the error says where the decorator goes."""
    with pytest.raises(TypeError, match=r"set decorators = \[...\] on it"):
        guarantee("none")(MethodView)


@pytest.mark.parametrize("token", [b"t", 7, seen, Token()])
def test_no_token(token: Any) -> None:
    """What is no text is an error at once, not when something reads."""
    with pytest.raises(TypeError, match="a token, which is text, or None"):
        using_token(token)


def test_inherited_by_what_is_awaited() -> None:
    """A coroutine that is awaited inside a block is inside it."""

    async def inner() -> Any:
        await asyncio.sleep(0)
        return seen()

    async def outer(call: Callable[[], Awaitable[Any]]) -> Any:
        with guarantee("none"), using_token("t"):
            return await call()

    assert asyncio.run(outer(inner)) == ("none", None, ["t"])
