"""How many new connections a process may be opening to one server at a time.

After a glitch every thread finds its pooled connection dead, and all of them connect
at the same moment: to a server that has just come back, and by the hundred from
every worker. A few at a time get there sooner. None of them waits for a name server
that is silent.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from contextlib import contextmanager
from contextvars import ContextVar
from threading import BoundedSemaphore
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.exc import TimeoutError  # noqa: A004 - not the built-in one
from sqlalchemy.pool import QueuePool

from flask_replicated.forks import in_this_process

from .host_lookup import HostLookup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

__all__ = ["limit_connecting", "limit_waiting", "unlimited"]

_LOOK = 0.02
"""Seconds between two looks of a coroutine, which must not block its loop."""

_limited: ContextVar[bool] = ContextVar("flask_replicated_limited", default=True)


@contextmanager
def unlimited() -> Iterator[None]:
    """Let this thread connect at once: a watcher must not wait for those it watches."""
    token = _limited.set(False)
    try:
        yield
    finally:
        _limited.reset(token)


class _ConnectSlots:
    """Leave to connect, for so many at a time.

    Args:
        many: How many.
        seconds: How long one waits for it.
        outages: Counts the server's outages.
    """

    def __init__(self, many: int, seconds: float, outages: Callable[[], int]) -> None:
        self._many = many
        self._seconds = seconds
        self._outages = outages
        self._renew()

    def _renew(self) -> None:
        self._in_its_process = in_this_process()
        self._free = BoundedSemaphore(self._many)

    @contextmanager
    def take(self, until: float, *, in_loop: bool) -> Iterator[None]:
        """Hold a place; whoever gets none in time has met with load, not with death.

        Args:
            until: How long one waits for it, by the monotonic clock.
            in_loop: Whether it is a coroutine that waits.

        Raises:
            TimeoutError: SQLAlchemy's, as for a connection pool that is exhausted.
        """
        if not self._in_its_process():
            self._renew()  # a forked child: those who hold places are not here
        free, outages = self._free, self._outages()
        if not free.acquire(blocking=False):
            waits = _wait_in_loop if in_loop else _wait
            if not waits(free, until):
                raise TimeoutError(
                    f"{self._many} connections to this replica are being opened "
                    f"already (REPLICATED_MAX_CONNECTING); none was done within "
                    f"{self._seconds:g} s"
                )
        try:
            if outages != self._outages():
                # Another one would take the time of a connect to learn the same.
                raise TimeoutError("the replica went out while others connected")
            yield
        finally:
            free.release()


def _wait(free: BoundedSemaphore, until: float) -> bool:
    return free.acquire(timeout=max(0.0, until - time.monotonic()))


def _wait_in_loop(free: BoundedSemaphore, until: float) -> bool:
    # Only here: without async engines nobody need have greenlet.
    from sqlalchemy.util import await_only  # noqa: PLC0415

    while time.monotonic() < until:
        await_only(asyncio.sleep(_LOOK))
        if free.acquire(blocking=False):
            return True
    return False


def limit_connecting(
    engine: Engine,
    many: int | None,
    seconds: float,
    outages: Callable[[], int] = int,
    own_limit: str | None = None,
) -> None:
    """Let so many new connections of an engine be opened at a time.

    And let nobody wait for a name server for longer than they may wait for a place.

    Args:
        engine: The engine.
        many: How many; None for any number.
        seconds: How long one waits before it fails: for its host's name to be looked
            up, and for a place.
        outages: Counts the server's outages; who waited while it went out fails at
            once, and so goes elsewhere.
        own_limit: What the driver's limit on connecting is called, where a longer one
            holds for a name as well.
    """
    places = None if many is None else _ConnectSlots(many, seconds, outages)
    names = HostLookup()

    # No event comes after a failure of every kind. So it connects by itself, once
    # those who listen after it have had their say, as SQLAlchemy would have.
    @event.listens_for(engine, "do_connect")
    def connect(dialect: Any, record: Any, cargs: Any, cparams: dict[str, Any]) -> Any:
        listeners = list(dialect.dispatch.do_connect)
        for listener in listeners[listeners.index(connect) + 1 :]:
            connection = listener(dialect, record, cargs, cparams)
            if connection is not None:
                return connection
        own = _number(cparams.get(own_limit)) if own_limit else 0.0
        until = time.monotonic() + max(seconds, own)
        names.look_up(dialect, cparams, until)
        if places is None or not _limited.get():
            return dialect.connect(*cargs, **cparams)
        with places.take(until, in_loop=dialect.is_async):
            return dialect.connect(*cargs, **cparams)


def _number(value: Any) -> float:
    """Return a limit as a number; a URL has it as text, and may have anything."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return 0.0


def limit_waiting(engine: Engine, seconds: float) -> None:
    """Let who finds every connection of an engine in use wait for so long.

    Unless the engine was made with a ``pool_timeout``.

    Args:
        engine: A replica's engine.
        seconds: How long, at most.
    """
    pool = engine.pool
    if not isinstance(pool, QueuePool):
        return
    parameter = inspect.signature(type(pool)).parameters.get("timeout")
    # The default is one object, and an equal number that somebody named is another.
    if parameter is not None and pool._timeout is parameter.default:  # noqa: SLF001 - it has no setter
        pool._timeout = min(seconds, pool._timeout)  # noqa: SLF001 - the same
