"""Limits how many new connections a process opens to one server at a time.

After a network failure every thread finds its pooled connection dead, and all of them
connect at the same moment: to a server that has just come back, and by the hundred from
every worker (a thundering herd). A few at a time are faster. This is
``REPLICATED_MAX_CONNECTING``.
"""

from __future__ import annotations

import inspect
import time
from contextlib import contextmanager
from contextvars import ContextVar
from threading import BoundedSemaphore
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.exc import TimeoutError  # noqa: A004 - not the built-in one
from sqlalchemy.pool import QueuePool

from flask_replicated._private import (
    has_own_creator,
    invoke_creator,
    set_creator,
    set_pool_timeout,
)
from flask_replicated.system.forks import in_this_process

from .host_lookup import HostLookup, poll_in_loop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

__all__ = ["limit_connecting", "limit_pool_wait", "unlimited"]

_limited: ContextVar[bool] = ContextVar("flask_replicated_limited", default=True)


@contextmanager
def unlimited() -> Iterator[None]:
    """Lift the limit for this thread: a probe must not wait behind the requests."""
    token = _limited.set(False)
    try:
        yield
    finally:
        _limited.reset(token)


class _ConnectSlots:
    """Slots for connects that are under way.

    Args:
        many: How many slots.
        seconds: How long a connect waits for one; for the message.
        outages: Returns the number of the server's outages so far.
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
        """Hold a slot. To get none in time is a sign of load, not of an outage.

        Args:
            until: The deadline, by the monotonic clock.
            in_loop: Whether a coroutine waits.

        Raises:
            TimeoutError: SQLAlchemy's, as for a connection pool that is exhausted.
        """
        if not self._in_its_process():
            self._renew()  # a forked child: the threads that hold slots are not here
        free, outages = self._free, self._outages()
        if not _acquire(free, until, in_loop=in_loop):
            raise TimeoutError(
                f"{self._many} connections to this server are being opened "
                f"already (REPLICATED_MAX_CONNECTING); none was done within "
                f"{self._seconds:g} s"
            )
        try:
            if outages != self._outages():
                # One more connect would take its whole timeout to find out the same.
                raise TimeoutError("the replica went out while others connected")
            yield
        finally:
            free.release()


def _acquire(free: BoundedSemaphore, until: float, *, in_loop: bool) -> bool:
    if free.acquire(blocking=False):
        return True
    if in_loop:
        return poll_in_loop(lambda: free.acquire(blocking=False), until)
    return free.acquire(timeout=max(0.0, until - time.monotonic()))


def limit_connecting(
    engine: Engine,
    many: int | None,
    seconds: float,
    outages: Callable[[], int] = int,
    *,
    own_limit: str | None = None,
    foreign: int | None = None,
) -> None:
    """Limit the new connections of an engine that are opened at a time.

    The same listener looks the host name up, with a timeout.

    Args:
        engine: The engine.
        many: How many at a time; None for any number.
        seconds: How long a connect waits for the DNS lookup and for a slot.
        outages: Returns the number of the server's outages so far. A connect that has
            waited while the server went out fails at once, and goes elsewhere.
        own_limit: The name of the driver's connect timeout argument, if a longer value
            there applies to the waiting as well.
        foreign: Where *many* is None, how many at a time of those that the program
            opens itself, by a creator or a listener. How long these take is not known.
    """
    slots = None if many is None else _ConnectSlots(many, seconds, outages)
    own_slots = slots
    if own_slots is None and foreign is not None:
        own_slots = _ConnectSlots(foreign, seconds, outages)
    if own_slots is not None:
        _limit_creator(engine, own_slots, seconds)
    names = HostLookup()

    # SQLAlchemy has no event for a connect that fails, which must free its slot too. So
    # this listener connects, after calling the listeners that come after it.
    @event.listens_for(engine, "do_connect")
    def connect(dialect: Any, record: Any, cargs: Any, cparams: dict[str, Any]) -> Any:
        listeners = list(dialect.dispatch.do_connect)
        for listener in listeners[listeners.index(connect) + 1 :]:
            with _slot(own_slots, seconds, dialect):
                connection = listener(dialect, record, cargs, cparams)
            if connection is not None:
                return connection
        own = _number(cparams.get(own_limit)) if own_limit else 0.0
        until = time.monotonic() + max(seconds, own)
        names.look_up(dialect, cparams, until)
        if slots is None or not _limited.get():
            return dialect.connect(*cargs, **cparams)
        with slots.take(until, in_loop=dialect.is_async):
            return dialect.connect(*cargs, **cparams)


@contextmanager
def _slot(slots: _ConnectSlots | None, seconds: float, dialect: Any) -> Iterator[None]:
    """Hold a slot, where there are some, for what the program does itself."""
    if slots is None or not _limited.get():
        yield
        return
    with slots.take(time.monotonic() + seconds, in_loop=dialect.is_async):
        yield


def _limit_creator(engine: Engine, slots: _ConnectSlots, seconds: float) -> None:
    pool = engine.pool
    dialect: Any = engine.dialect
    # Those that were added before the extension run before its own; they may connect.
    earlier = any(
        not str(listener.__module__).startswith("flask_replicated.")
        for listener in dialect.dispatch.do_connect
    )
    if dialect.name == "sqlite" or not (earlier or has_own_creator(pool)):
        return
    connect = invoke_creator(pool)

    def limited(record: Any) -> Any:
        with _slot(slots, seconds, dialect), unlimited():
            return connect(record)

    set_creator(pool, limited)


def _number(value: Any) -> float:
    """Return a timeout as a number; in a URL it is text, and may be anything."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return 0.0


def limit_pool_wait(engine: Engine, seconds: float) -> None:
    """Limit the wait for a free connection of an exhausted connection pool.

    An engine that was made with a ``pool_timeout`` keeps it.

    Args:
        engine: A replica's engine.
        seconds: The longest wait.
    """
    pool = engine.pool
    if not isinstance(pool, QueuePool):
        return
    parameter = inspect.signature(type(pool)).parameters.get("timeout")
    # Identity: an equal number that was passed explicitly is another object.
    if parameter is not None and pool.timeout() is parameter.default:
        set_pool_timeout(pool, min(seconds, pool.timeout()))
