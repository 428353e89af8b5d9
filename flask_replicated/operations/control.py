"""One worker's part in the control place: it gives its account and obeys orders.

It has a thread of its own, since a place may be slow: neither requests nor the probes
of replicas wait for it. Only the first pick of a process waits for the orders.
"""

from __future__ import annotations

import logging
import os
import random
import secrets
import socket
import threading
import time
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import click
from flask import has_request_context
from flask.cli import AppGroup
from flask.signals import request_started

from balancers.errors import BalancerError, error_text
from flask_replicated.consistency.store_setting import redis_client
from flask_replicated.system.forks import in_this_process
from flask_replicated.system.threads import call_at_exit, start_thread

from .accounts import Account, account_to, counts_of, reads_of, replicas_of
from .directory_place import DirectoryPlace
from .place import CLEAR, LOOKS, SWITCH
from .redis_place import RedisPlace

if TYPE_CHECKING:
    from collections.abc import Callable

    from flask import Flask

    from balancers import Member
    from flask_replicated.routing.state import AppState, ObservationLike

    from .place import ControlPlace, Order, OrderKey, Orders

__all__ = ["CONTROL", "Control", "change_replica", "make_place"]

logger = logging.getLogger("flask_replicated")

CONTROL = "replicated.control"
"""The key of ``app.extensions`` under which an application's control is kept."""

_LONGEST_LOOK = 5.0
"""Seconds between two looks at most, however seldom replicas are probed."""
_SHORTEST_LOOK = 0.2
"""Seconds at least between two looks, however often replicas change their state."""
_FIRST_WAIT = 2.0
"""Seconds that one request waits at most while another reads the first orders."""
_TURN_WAIT = 10.0
"""Seconds that a thread waits at most while another uses the place."""

_FAILURES = {
    "read": "REPLICATED_CONTROL: no orders can be read, and the last known ones stay: "
    "%s",
    "write": "REPLICATED_CONTROL: this worker cannot be shown to others: %s",
}
_AGAIN = {"read": "read", "write": "written to"}


def make_place(setting: str, app: str) -> ControlPlace:
    """Return the place that a setting names.

    Args:
        setting: The value of ``REPLICATED_CONTROL``: an absolute path, or a URL.
        app: The application's name.

    Raises:
        ConfigurationError: redis-py is not installed, or cannot use the URL.
    """
    if "://" not in setting:
        return DirectoryPlace(setting, app)
    return RedisPlace(redis_client("REPLICATED_CONTROL", setting), app)


class _Alarm:
    """Wakes the thread that looks.

    Attributes:
        stopped: Whether the thread is to end.
    """

    def __init__(self) -> None:
        self.stopped = False
        # By its module's name: it may be gevent's by now.
        self._rings = threading.Event()

    def stop(self) -> None:
        """Let the thread end."""
        self.stopped = True
        self._rings.set()

    def ring(self) -> None:
        """Let the thread look now."""
        self._rings.set()

    def wait(self, seconds: float) -> None:
        """Sleep until it rings, for so long at most."""
        self._rings.wait(seconds)
        self._rings.clear()


class Control:
    """Gives an application's account to the control place, and obeys its orders.

    It begins with the first routed read of a process, or of a forked child.

    Args:
        place: The control place.
        state: The application's state, which is not kept alive.

    Attributes:
        place: The same.
        look: Seconds between two looks, at most.
    """

    def __init__(self, place: ControlPlace, state: AppState) -> None:
        interval = state.settings.probe_interval
        self.place = place
        self.look = min(interval, _LONGEST_LOOK) if interval else _LONGEST_LOOK
        self._state = weakref.ref(state)
        self._known: Orders = {}
        self._obeyed: dict[OrderKey, tuple[object, str, bool]] = {}
        self._has_read = self._lost = False
        self._failing: set[str] = set()
        self._begin_anew()
        call_at_exit(self, Control.end)

    def _begin_anew(self) -> None:
        self._name = f"{socket.gethostname()}-{secrets.token_hex(8)}"
        self._lock = threading.Lock()
        self._users: WeakSet[object] = WeakSet()
        self._alarm: _Alarm | None = None
        self._ready = threading.Event()
        self._publishes = self._published = False
        self._reported = (0.0, 0)  # since when the kept report counts, and how much
        self._turn = threading.RLock()

    def start(self, user: object) -> None:
        """Obey the orders, then begin to look in the background; not twice.

        Args:
            user: A bind that reads by these orders; see :meth:`stop`.
        """
        # A command is gone in a moment, and is no worker.
        worker = has_request_context() or not _runs_a_command()
        with self._lock:
            self._users.add(user)
            self._publishes = self._publishes or worker
            first, alarm = self._alarm is None, _Alarm()
            if first:
                self._alarm = alarm
        if not worker:
            self._listen_for_requests()
        if not first:
            self._ready.wait(_FIRST_WAIT)
            return
        try:
            self._obey_orders()
        finally:
            # Also where the server ends a request that takes too long.
            self._ready.set()
            owner = weakref.ref(self, lambda _: alarm.stop())
            if not start_thread("control", _run, owner, alarm, self.look):
                logger.warning("orders are not obeyed: no thread could be started")

    def _listen_for_requests(self) -> None:
        """Give accounts from the first request on: flask run is a command, too."""
        state = self._state()
        app = None if state is None else state.find_app()
        if app is not None:
            request_started.connect(self._serves, app)

    def _serves(self, app: Flask, **_: object) -> None:
        request_started.disconnect(self._serves, app)
        self._publishes = True
        self.changed()

    def stop(self, user: object) -> None:
        """Stop, if no other bind goes on; start again with the next routed read."""
        with self._lock:
            self._users.discard(user)
            if self._users:
                return
            alarm, self._alarm = self._alarm, None
            self._ready = threading.Event()
        if alarm is not None:
            alarm.stop()

    def changed(self) -> None:
        """Let the account be given anew, as a replica has changed its state."""
        alarm = self._alarm
        if alarm is not None:
            alarm.ring()

    def after_fork(self) -> None:
        """In a child process, forget the parent's thread and name."""
        self._begin_anew()

    def end(self) -> None:
        """Stop, and take the account back: this process is about to end."""
        with self._lock:
            alarm, self._alarm, self._users = self._alarm, None, WeakSet()
        if alarm is not None:
            alarm.stop()
        if not self._publishes:
            return
        state = self._state()
        if state is not None and state.observation is not None:
            self._obey_orders()  # perhaps to forget what was observed
            self._keep_report(state)
        published, self._published, self._publishes = self._published, False, False
        if published:
            self._withdraw()

    def look_now(self) -> None:
        """Obey what is ordered by now, and give an account of it."""
        self._obey_orders()
        state = self._state()
        if state is None or self._is_silent():
            return
        self._published = True
        text = account_to(self._account(state))
        seconds = LOOKS * self.look
        self._use_place("write", lambda: self.place.publish(self._name, text, seconds))
        if self._is_silent():  # another thread has ended it meanwhile
            self._withdraw()
        self._keep_report(state)

    def _is_silent(self) -> bool:
        """Whether it gives no account: a command does not, nor does what has ended."""
        return not self._publishes

    def _withdraw(self) -> None:
        if "write" in self._failing:  # the account is soon believed no more anyway
            return
        self._use_place("write", lambda: self.place.withdraw(self._name))

    def _keep_report(self, state: AppState | None) -> None:
        """Let the place keep what this worker has observed, if that is more by now."""
        if state is None or state.observation is None:
            return
        self._in_turn(partial(self._keep_if_new, state.observation))

    def _in_turn(self, do: Callable[[], None]) -> None:
        """Do something while no other thread does; not, if that lasts too long.

        Otherwise an older report could replace a later one, and an older order could
        be obeyed after a later one.
        """
        if self._turn.acquire(timeout=_TURN_WAIT):
            try:
                do()
            finally:
                self._turn.release()

    def _keep_if_new(self, observation: ObservationLike) -> None:
        report = observation.report()
        seen = report.reads + sum(one.requests for one in report.endpoints.values())
        before, now = self._reported, (report.since, seen)
        if now == before or not (seen or before[1]):
            return
        from .report_texts import report_to  # noqa: PLC0415 - few need it

        text = report_to(report, socket.gethostname(), os.getpid())

        def keep() -> None:
            self.place.keep_report(self._name, text)
            self._reported = now  # not before: what fails is tried again

        self._use_place("write", keep)

    def _account(self, state: AppState) -> Account:
        found = state.snapshot()
        return Account(
            host=socket.gethostname(),
            pid=os.getpid(),
            seen=time.time(),
            off=not state.decider.read_on_replica,
            binds=replicas_of(found),
            reads=reads_of(found),
            counts=counts_of(found),
        )

    def _obey_orders(self) -> None:
        self._in_turn(self._read_and_obey)

    def _read_and_obey(self) -> None:
        orders = self._use_place("read", lambda: self.place.read_orders() or {})
        state = self._state()
        if state is None:
            return
        if orders:
            self._known, self._lost = {**self._timed(), **orders}, False
        elif orders is not None and self._obeyed and not self._lost:
            # They are not obeyed again if they come back.
            self._lost = True
            logger.warning(
                "REPLICATED_CONTROL: the place has lost its orders. This worker keeps "
                "to them, but one that starts later does not: give them again"
            )
        self._obey_new(state, self._known)
        self._has_read = self._has_read or orders is not None

    def _timed(self) -> Orders:
        """Return the orders that are yet to end by themselves, without the place."""
        return {
            key: order
            for key, order in self._known.items()
            if order.until is not None and key in self._obeyed
            if not self._obeyed[key][-1]
        }

    def _obey_new(self, state: AppState, orders: Orders) -> None:
        """Do what was ordered since the last look.

        Each order is obeyed once, so what a program orders later in this process holds
        until the next order.
        """
        first, now = not self._has_read, time.time()
        for key, order in orders.items():
            over = order.until is not None and now >= order.until
            target = _target(state, key)
            done = (target, order.id, over)
            if target is None or self._obeyed.get(key) == done:
                continue
            # What was over before this process began is over in it anyway.
            idle = key.kind == "drain" and (over or not order.value)
            if not (first and idle):
                _carry_out(state, key, order, over=over)
            self._obeyed[key] = done
        self._obeyed = {key: one for key, one in self._obeyed.items() if key in orders}

    def _use_place(self, what: str, do: Callable[[], Any]) -> Any:
        """Use the place; log once that it fails, and once that it works again."""
        try:
            found = do()
        except Exception as error:  # noqa: BLE001 - a client's library raises its own
            if what not in self._failing:
                self._failing.add(what)
                logger.warning(_FAILURES[what], error_text(error))
            return None
        if what in self._failing:
            self._failing.discard(what)
            logger.warning(
                "REPLICATED_CONTROL: the place can be %s again", _AGAIN[what]
            )
        return found


def _target(state: AppState, key: OrderKey) -> object:
    """Return what an order is about; None if this process does not have it."""
    if key == SWITCH:
        return state.decider
    return state.observation if key == CLEAR else _member(state, key)


def _member(state: AppState, key: OrderKey) -> Member[Any] | None:
    routed = state.routes.get(key.bind)
    members = () if routed is None else routed.replicas.replica_pool.members
    return next((one for one in members if one.name == key.replica), None)


def _carry_out(state: AppState, key: OrderKey, order: Order, *, over: bool) -> None:
    if key == SWITCH:
        if state.decider.switch(on=bool(order.value)):
            logger.warning(
                "by order, reads %s",
                "go to replicas again" if order.value else "go to the primary",
            )
        return
    if key == CLEAR:
        if state.observation is not None:
            state.observation.clear()
        return
    try:
        change_replica(state, key, 0 if over else order.value)
    except BalancerError as error:  # it was removed, or the balancer reads no weights
        logger.warning("an order cannot be obeyed: %s", error)


def change_replica(state: AppState, key: OrderKey, value: int) -> None:
    """Drain or restore a replica, or give it another weight, in this process.

    Args:
        state: The application's state.
        key: A replica, and what is to be changed of it.
        value: The order's value.

    Raises:
        BalancerError: There is no such replica, or the balancer reads no weights.
    """
    pool = state.routes[key.bind].replicas.replica_pool
    if key.kind == "weight":
        pool.reweight({key.replica: value})
    elif value:
        pool.drain(key.replica)
    else:
        pool.restore(key.replica)


def _runs_a_command() -> bool:
    """Whether this thread runs a command of Flask's, such as ``flask shell``.

    A server's threads do not, nor does a worker of Celery, whose commands are click's
    too.
    """
    context = click.get_current_context(silent=True)
    return context is not None and isinstance(context.find_root().command, AppGroup)


def _run(control: Callable[[], Control | None], alarm: _Alarm, look: float) -> None:
    """Look until stopped; hold no reference while waiting."""
    # A greenlet goes on in a forked child, which has its own.
    in_its_process = in_this_process()
    while not alarm.stopped and in_its_process():
        one = control()
        if one is None:
            return
        try:
            one.look_now()
        except Exception:
            logger.exception("the look at the control place has failed and goes on")
        del one
        # Spread, as many workers start at the same moment.
        alarm.wait(look * random.uniform(0.7, 0.9))  # noqa: S311 - no secret
        if not alarm.stopped:
            time.sleep(min(look / 10, _SHORTEST_LOOK))
