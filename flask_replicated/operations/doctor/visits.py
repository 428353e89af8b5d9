"""Visits every server at the same time, for a bounded time."""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Event
from typing import TYPE_CHECKING, Any

from flask_replicated.errors import WrongRoleError
from flask_replicated.replica.admission import accept_any_lag
from flask_replicated.replica.primary_status import can_probe
from flask_replicated.replica.same_server import SameServerCheck
from flask_replicated.settings.sqlite_files import missing_file
from flask_replicated.system.threads import start_thread

from .connecting import (
    missing_finding,
    role_finding,
    silent_finding,
    unconnected_finding,
)
from .facts import Facts, ask_facts
from .inspection import (
    inspect_primary,
    inspect_replica,
    is_doubtful,
    transaction_mode,
)
from .servers import OwnConnection, Server

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from flask_replicated.engine.engines import RoutedEngine
    from flask_replicated.routing.state import AppState

    from .findings import Finding

__all__ = ["Look", "look_at_all", "time_bound"]

_TIMES = 5
"""An examination takes so many times ``REPLICATED_CONNECT_TIMEOUT`` at most: a replica
waits for the primary's answers, connects, is set up, and is asked twice."""


@dataclass(frozen=True)
class Look:
    """What a visit has found.

    Attributes:
        server: Where.
        findings: What is wrong there.
        facts: What the server has said of itself.
    """

    server: Server
    findings: tuple[Finding, ...] = ()
    facts: Facts = field(default_factory=Facts)


def time_bound(seconds: float) -> float:
    """Return the seconds that an examination takes at most.

    Args:
        seconds: ``REPLICATED_CONNECT_TIMEOUT``.
    """
    return float(_TIMES * math.ceil(seconds))


def look_at_all(
    state: AppState, servers: Sequence[Server], version_table: str
) -> list[Look]:
    """Visit all servers at once; one that does not answer in time is an error.

    An exception in this thread, such as ``KeyboardInterrupt``, ends the visits.

    Args:
        state: What the extension keeps for the application.
        servers: Its servers.
        version_table: What Alembic calls its table.
    """
    seconds = time_bound(state.settings.connect_timeout)
    until, done = time.monotonic() + seconds, SimpleQueue[Look]()
    primaries = {one.routed: Event() for one in servers if one.routed is not None}
    visits = [Visit(state, one, primaries, version_table) for one in servers]
    looks: dict[Server, Look] = {}
    try:
        for visit in visits:
            if not start_thread("check", visit.run, done):
                done.put(visit.unasked())
        while len(looks) < len(visits):
            look = done.get(timeout=max(0.0, until - time.monotonic()))
            looks[look.server] = look
    except Empty:
        pass
    finally:
        for visit in visits:
            visit.end()
    return [
        looks.get(server) or Look(server, (silent_finding(server, seconds),))
        for server in servers
    ]


class Visit:
    """Connects to one server as the application does, and asks it.

    Args:
        state: What the extension keeps for the application.
        server: The server.
        primaries: Set for each bind once its primary was visited.
        version_table: What Alembic calls its table.
    """

    def __init__(
        self,
        state: AppState,
        server: Server,
        primaries: Mapping[RoutedEngine, Event],
        version_table: str,
    ) -> None:
        self._settings = state.settings
        self._surroundings: Callable[[], AbstractContextManager[object]]
        self._surroundings = state.surroundings()
        self._server = server
        self._primaries = primaries
        self._version_table = version_table
        self._seconds = math.ceil(state.settings.connect_timeout)
        self._connection = OwnConnection(server, self._seconds)
        self._comparison: SameServerCheck | None = None

    def run(self, done: SimpleQueue[Look]) -> None:
        """Visit the server, then put what was found into *done*."""
        server = self._server
        try:
            with self._surroundings():
                look = self._look_in_loop() if self._is_async else self._look()
        except WrongRoleError:
            look = self._compared()
        except Exception as error:  # noqa: BLE001 - drivers and creators raise anything
            look = Look(server, (unconnected_finding(server, error),))
        finally:
            if server.role == "primary" and server.routed is not None:
                self._primaries[server.routed].set()
        done.put(look)

    def unasked(self) -> Look:
        """Return what there is to say where no thread could be started."""
        error = RuntimeError("no thread could be started to ask it")
        return Look(self._server, (unconnected_finding(self._server, error),))

    def end(self) -> None:
        """End its connections, if there are any left."""
        self._connection.end()
        if self._comparison is not None:
            self._comparison.connections.end()

    @property
    def _is_async(self) -> bool:
        return self._server.engine.dialect.is_async

    def _look_in_loop(self) -> Look:
        """Look at a server whose driver needs an event loop, in one of its own."""
        # Only here, as they need greenlet, which only async engines need.
        from sqlalchemy.util import greenlet_spawn  # noqa: PLC0415

        look: Look = asyncio.run(greenlet_spawn(self._look))
        return look

    def _look(self) -> Look:
        server = self._server
        if server.role == "replica" and server.routed is not None:
            # Its database is compared with the primary's as it connects.
            self._primaries[server.routed].wait(self._seconds)
        missing = missing_file(server.engine)
        if missing is not None and server.role != "replica":
            return Look(server, (missing_finding(server, missing),))
        token = accept_any_lag.set(True)
        try:
            with self._connection.opened() as connection:
                return self._ask(connection)
        finally:
            accept_any_lag.reset(token)

    def _ask(self, connection: Any) -> Look:
        server, settings = self._server, self._settings
        facts = ask_facts(connection, server, self._version_table)
        found: list[Finding] = []
        if server.role == "primary":
            found += inspect_primary(connection, server, facts, settings)
        elif server.routed is not None:
            if settings.role_check and is_doubtful(connection, server):
                look = self._compared()
                if look.facts.own:
                    return look
            primary = server.routed.status.report
            found += inspect_replica(connection, server, facts, settings, primary)
        if facts.pooled and not self._is_async:
            # In time for the first connection's own limit.
            found += transaction_mode(connection, server, self._seconds / 2)
        return Look(server, tuple(found), facts)

    def _compared(self) -> Look:
        """Find out whether a replica's bind leads to the primary itself."""
        server, routed, own = self._server, self._server.routed, None
        if routed is not None and can_probe(routed.real):
            self._comparison = SameServerCheck(
                routed.real, server.engine, surroundings=self._surroundings
            )
            with suppress(Exception):  # the primary may be out
                own = self._comparison.is_same_server()
        if own:
            return Look(server, facts=Facts(own=True))
        return Look(server, (role_finding(server, own=own),))
