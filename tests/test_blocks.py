"""``with using_master():`` and ``with using_slave():``, wherever code runs."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from flask_replicated import using_master, using_slave
from flask_replicated.routing.overrides import current_block
from tests.support import REPLICAS, Build, Site, build_fixture

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flask import Request

build = build_fixture


@pytest.fixture
def site(build: Build) -> Site:
    """Give an application with three replicas."""
    return build()


def test_in_a_request(site: Site) -> None:
    """A block reads where it says, and ends where it ends."""
    with site.app.test_request_context():
        with using_master():
            assert site.role() == "primary"
        with using_slave():
            assert site.role() == "replica"


def test_reading_from_the_primary_does_not_latch(site: Site) -> None:
    """A read inside using_master() leaves the other reads on their replica."""
    with site.app.test_request_context():
        first = site.who()
        with using_master():
            assert site.who() == "master"
        assert site.who() == first


def test_one_connection(site: Site) -> None:
    """A read after a block uses the connection of the block, not a second one."""
    taken: list[object] = []
    with site.app.test_request_context():
        for name in REPLICAS:
            sa.event.listen(
                site.db.engines[name], "checkout", lambda *given: taken.append(given)
            )
        with using_slave():
            first = site.who()
        assert site.who() == first
    assert len(taken) == 1


def test_nested(site: Site) -> None:
    """The innermost block wins, at any depth, and the outer ones come back."""
    with site.app.app_context(), using_slave():
        with using_master():
            with using_slave():
                assert site.role() == "replica"
            assert site.role() == "primary"
        assert site.role() == "replica"
    with site.app.app_context():
        assert site.role() == "primary"


def test_one_object_nested(site: Site) -> None:
    """One object may be entered many times, inside itself too."""
    block = using_slave()
    with site.app.app_context():
        with block:
            with block:
                assert site.role() == "replica"
            assert site.role() == "replica"
        assert site.role() == "primary"


def test_exception(site: Site) -> None:
    """A block ends also when it raises, and hides no exception."""
    with site.app.app_context():
        with pytest.raises(KeyError), using_slave():
            raise KeyError
        assert site.role() == "primary"


def test_outside_a_request_picks_anew(site: Site) -> None:
    """Outside a request each transaction in a block picks a replica."""
    with site.app.app_context(), using_slave():
        for _ in range(6):
            site.who()
            site.db.session.rollback()
    assert sorted(site.seen) == sorted(REPLICAS * 2)


def test_write_in_a_master_block(site: Site) -> None:
    """A write inside using_master() is a write like any other: it latches."""
    with site.app.test_request_context():
        with using_master():
            site.write()
        assert site.role() == "primary"


def test_threads(site: Site) -> None:
    """Blocks of threads that overlap do not see each other."""
    barrier = Barrier(4, timeout=20)

    def work(number: int) -> list[str]:
        block, seen = (using_slave, using_master)[number % 2], []
        with site.app.app_context():
            barrier.wait()
            with block():
                barrier.wait()
                seen.append(site.role())
                barrier.wait()
            seen.append(site.role())
            barrier.wait()
        return seen

    with ThreadPoolExecutor(4) as threads:
        seen = list(threads.map(work, range(4)))
    assert seen == [["replica", "primary"], ["primary", "primary"]] * 2


def test_thread_with_a_copied_context(site: Site) -> None:
    """A thread that is started inside a block decides for itself."""

    def work() -> str:
        with site.app.app_context():
            return site.role()

    with ThreadPoolExecutor(1) as threads, using_slave():
        context = contextvars.copy_context()
        assert threads.submit(context.run, work).result() == "primary"


def test_tasks(site: Site) -> None:
    """Blocks of tasks that take turns do not see each other."""

    async def work(block: Any) -> list[str]:
        seen = []
        with site.app.app_context():
            with block():
                await asyncio.sleep(0)
                seen.append(site.role())
                await asyncio.sleep(0)
            seen.append(site.role())
        return seen

    async def both() -> tuple[list[str], list[str]]:
        return await asyncio.gather(work(using_slave), work(using_master))

    assert list(asyncio.run(both())) == [["replica", "primary"], ["primary", "primary"]]


def test_task_started_inside(site: Site) -> None:
    """A task that is started inside a block decides for itself."""

    async def work() -> str:
        with site.app.app_context():
            return site.role()

    async def start() -> list[str]:
        with using_slave():
            task = asyncio.create_task(work())
            return [await task, await work()]

    assert asyncio.run(start()) == ["primary", "replica"]


def test_in_a_coroutine_outside(site: Site) -> None:
    """A block around ``asyncio.run`` is not inherited by what runs in it."""

    async def work() -> str:
        with site.app.app_context():
            return site.role()

    with using_slave():
        assert asyncio.run(work()) == "primary"


def test_decorated_generator(site: Site) -> None:
    """A block inside a generator holds until the generator leaves it."""

    def rows() -> Iterator[str]:
        with using_slave():
            yield site.role()
            yield site.role()
        yield site.role()

    with site.app.app_context():
        assert list(rows()) == ["replica", "replica", "primary"]


def test_never_left(site: Site) -> None:
    """A block that a request has left open is gone with it, and keeps nothing."""
    ended: list[weakref.ref[Request]] = []
    for _ in range(3):
        with site.app.test_request_context() as context:
            ended.append(weakref.ref(context.request))
            using_master().__enter__()
            assert site.role() == "primary"
        del context
        gc.collect()
    assert [request() for request in ended] == [None, None, None]
    with site.app.test_request_context():
        assert site.role() == "replica"
    assert current_block.get() is None


def test_never_left_in_an_inner_request(site: Site) -> None:
    """The block of the request outside goes on."""
    with site.app.test_request_context(), using_master():
        with site.app.test_request_context():
            using_slave().__enter__()
            assert site.role() == "replica"
        gc.collect()
        assert site.role() == "primary"
    with site.app.app_context(), using_slave():
        assert site.role() == "replica"
