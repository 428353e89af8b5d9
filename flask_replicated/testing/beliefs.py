"""Replicas that the library believes to be out, or behind. No server is touched."""

from __future__ import annotations

import math
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flask_replicated.engine.known import Known
from flask_replicated.errors import ConfigurationError, ReplicaLagsError
from flask_replicated.fleet.fleet import fleet_of
from flask_replicated.settings.validators import is_number

from .kit import kit_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager

    from flask import Flask
    from sqlalchemy import Connection, Engine

    from balancers import Member
    from flask_replicated.engine.engines import RoutedEngine
    from flask_replicated.replica.fitness import ReplicaHistory
    from flask_replicated.replica.replica_status import ReplicaReport

    from .kit import Kit

__all__ = ["Beliefs", "believing_mirror", "replica_down", "replica_lags"]

_DAY = 86400.0  # seconds


class BelievedKnown(Known):
    """What is known of replicas, where a test says how far they lag.

    Args:
        known: What is known otherwise.
        lags: The seconds by the replicas' names.
        others: The seconds of others; None for what is known of them.
    """

    def __init__(
        self, known: Known, lags: Mapping[str, float], others: float | None
    ) -> None:
        vars(self).update(vars(known))
        self._lags = lags
        self._others = others

    def staleness(
        self, member: Member[Engine], connection: Connection | None = None
    ) -> float | None:
        """Return how old what a replica shows may be, in seconds; None if unknown."""
        believed = self._lags.get(member.name, self._others)
        return super().staleness(member, connection) if believed is None else believed

    def ask_staleness(
        self, member: Member[Engine], connection: Connection
    ) -> float | None:
        """Ask a replica for its lag, unless the test says it; return the same."""
        believed = self._lags.get(member.name, self._others)
        if believed is not None:
            return believed
        return super().ask_staleness(member, connection)


class Beliefs:
    """What open blocks say of the servers of one bind.

    Blocks of several threads may end in any order.

    Args:
        routed: The routed engine of the bind. Nothing looks at its servers in the
            background from now on.
    """

    def __init__(self, routed: RoutedEngine) -> None:
        self._routed = routed
        self._known, self._monitor = routed.known, routed.monitor
        self._idle = fleet_of(routed).idle
        self._histories: dict[ReplicaHistory, tuple[ReplicaReport, float, bool]] = {}
        self._said: list[_Said] = []
        routed.monitor, fleet_of(routed).idle = _AsleepMonitor(), False
        self._monitor.stop()

    def add(self, said: _Said) -> None:
        """Believe what a block says, from now on."""
        self._said = [*self._said, said]
        self._apply()

    def remove(self, said: _Said) -> bool:
        """Believe it no more; return whether no block is left."""
        self._said = [one for one in self._said if one is not said]
        self._apply()
        if self._said:
            return False
        routed = self._routed
        routed.known, routed.monitor = self._known, self._monitor
        fleet_of(routed).idle = self._idle
        return True

    def _apply(self) -> None:
        lags = {one.name: one.lag for one in self._said if one.name is not None}
        mirrored = any(one.mirrored for one in self._said)
        known = BelievedKnown(self._known, lags, 0.0 if mirrored else None)
        if mirrored:  # by no position: there is one server, which shows all it has
            known.source = None
        self._routed.known = known
        for history, (latest, at, lagged) in self._histories.items():
            history.latest, history.judged_at, history.lags = latest, at, lagged
        for member in self._routed.replicas.replica_pool.members:
            server = self._known.server_of(member)
            if member.name in lags and server is not None:
                self._set_lag(server.history, lags[member.name])

    def _set_lag(self, history: ReplicaHistory, seconds: float) -> None:
        before = history.latest, history.judged_at, history.lags
        self._histories.setdefault(history, before)
        most = self._routed.app.settings.max_lag
        history.latest = history.latest._replace(lag=seconds, measured=True)
        history.judged_at = time.monotonic()
        history.lags = most is not None and seconds > most


@dataclass(frozen=True, eq=False)
class _Said:
    """What one block says.

    Attributes:
        name: The replica whose lag it says; None for none.
        lag: How far that is behind, in seconds.
        mirrored: Whether all others show all that the primary has.
    """

    name: str | None = None
    lag: float = 0.0
    mirrored: bool = False


class _AsleepMonitor:
    """Probes nothing, while a test says what is believed of the replicas."""

    idle = False

    def start(self, owner: object) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""

    def after_fork(self) -> None:
        """Do nothing."""


@contextmanager
def _believing(kit: Kit, routed: RoutedEngine, said: _Said) -> Iterator[None]:
    with kit.lock:
        beliefs = kit.beliefs.get(routed)
        if beliefs is None:
            beliefs = kit.beliefs[routed] = Beliefs(routed)
        beliefs.add(said)
    try:
        yield
    finally:
        with kit.lock:
            if beliefs.remove(said):
                del kit.beliefs[routed]


def believing_mirror(kit: Kit, routed: RoutedEngine) -> AbstractContextManager[None]:
    """Return a block in which replicas show all that the primary has, if nothing else.

    Nothing looks at the servers in the background.
    """
    return _believing(kit, routed, _Said(mirrored=True))


@contextmanager
def replica_down(name: str, app: Flask | None = None) -> Iterator[None]:
    """Let the library believe that a replica is out, for a block.

    Its reads go where they go in such a case: to another replica, or as
    ``REPLICATED_FALLBACK`` says.

    Args:
        name: The replica's name, such as ``'slave_1'``.
        app: The application; by default the current one, or the one that is mirrored.

    Raises:
        RuntimeError: There is no application.
        ConfigurationError: It has no such replica.
    """
    kit = kit_of(app, "replica_down")
    error = ConnectionRefusedError(f"replica_down({name!r}) is open in a test")
    with ExitStack() as stack:
        for routed, member in kit.members(name, "replica_down"):
            stack.enter_context(_believing(kit, routed, _Said()))
            stack.enter_context(_out(kit, routed, member, error))
        yield


@contextmanager
def replica_lags(name: str, seconds: float, app: Flask | None = None) -> Iterator[None]:
    """Let the library believe that a replica is behind its primary, for a block.

    Beyond ``REPLICATED_MAX_LAG`` it is out; within, it still serves reads, except those
    that must be shown something newer (``guarantee(max_staleness=...)``).

    Args:
        name: The replica's name, such as ``'slave_1'``.
        seconds: How far behind, 0 or more.
        app: The application; by default the current one, or the one that is mirrored.

    Raises:
        RuntimeError: There is no application.
        ConfigurationError: It has no such replica, or the seconds cannot be right.
    """
    kit = kit_of(app, "replica_lags")
    if not (is_number(seconds) and 0 <= seconds < math.inf):
        raise ConfigurationError(
            "replica_lags(seconds)", seconds, "must be a number of seconds, 0 or more."
        )
    with ExitStack() as stack:
        for routed, member in kit.members(name, "replica_lags"):
            said = _Said(name, float(seconds))
            stack.enter_context(_believing(kit, routed, said))
            most = kit.state.settings.max_lag
            if most is not None and seconds > most:
                error = ReplicaLagsError(name, seconds, most)
                stack.enter_context(_out(kit, routed, member, error))
        yield


@contextmanager
def _out(
    kit: Kit, routed: RoutedEngine, member: Member[Engine], error: Exception
) -> Iterator[None]:
    """Return a block in which a replica is out.

    Afterwards it is in rotation again, also if something else had it out before: that
    will be found out anew.
    """
    pool = routed.replicas.replica_pool
    with kit.lock:
        kit.down.setdefault(routed, Counter())[member.name] += 1
        pool.trip(member, _DAY, error)
    try:
        yield
    finally:
        with kit.lock:
            down = kit.down[routed]
            down[member.name] -= 1
            if not down[member.name] and member in pool.members:
                pool.recover(member)
