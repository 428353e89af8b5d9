"""What is known of the log positions of a bind's servers, and of their age.

What one read has learnt of a replica helps the next: a position only grows, until the
server is started anew.
"""

from __future__ import annotations

import logging
import math
import time
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from balancers.errors import error_text
from flask_replicated._private import pooled_connection
from flask_replicated.consistency.positions import merged
from flask_replicated.consistency.sources import (
    from_primary_report,
    from_replica_report,
    position_source,
)
from flask_replicated.errors import ConfigurationError
from flask_replicated.replica.connection_events import STARTED
from flask_replicated.replica.replica_status import report_queries
from flask_replicated.system.log_lines import Seldom

from .lazy_begin import WITH_BLOCKS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy import Connection, Engine

    from balancers import Member
    from flask_replicated.consistency.positions import LogPosition
    from flask_replicated.consistency.sources import PositionSource
    from flask_replicated.replica.connection_events import ReplicaServer
    from flask_replicated.replica.primary_status import PrimaryStatus
    from flask_replicated.replica.replica_status import ReplicaReport
    from flask_replicated.settings.config import Settings

__all__ = ["Known"]

logger = logging.getLogger("flask_replicated")

_WARNED_EVERY = 3600.0  # seconds
_REFUSES_FOR = 10.0
"""Seconds for which a server that does not tell its position is not asked again."""
_PRIMARY = object()  # as a server that refuses


class Known:
    """What is known of the positions of one bind's servers.

    Args:
        settings: The application's settings.
        dialect: SQLAlchemy's name for the database.
        status: What is known of the primary.
        servers: What is known of each replica's server, by name; kept up to date.

    Attributes:
        source: Asks a server for its position; None where a database has none, or
            ``REPLICATED_PIN`` is ``'time'``.
    """

    def __init__(
        self,
        settings: Settings,
        dialect: str,
        status: PrimaryStatus,
        servers: Mapping[str, ReplicaServer],
    ) -> None:
        wanted = settings.pin != "time" and settings.role_check
        self.source = position_source(dialect) if wanted else None
        self._required = settings.pin == "position"
        self._dialect = dialect
        self._status = status
        self._servers = servers
        self._warning = Seldom(_WARNED_EVERY)
        self._highest: LogPosition | None = None
        self._asked_at = -math.inf
        # Replaced, never changed, as other threads read them.
        self._learnt: dict[Member[Engine], _Learnt] = {}
        self._refusals: dict[object, float] = {}  # until when
        self._reported: dict[Member[Engine], _Reported] = {}

    @property
    def lacks_positions(self) -> bool:
        """Whether ``REPLICATED_PIN`` asks for positions that the database has not."""
        return self._required and self.source is None

    def refuse(self) -> NoReturn:
        """Raise the error for that.

        Raises:
            ConfigurationError: Always.
        """
        raise ConfigurationError(
            "REPLICATED_PIN",
            "position",
            f"{self._dialect} has no log positions that are known here. Set "
            "'auto' or 'time', or name a source with register_positions().",
        )

    # --- the primary ----------------------------------------------------------

    def highest_since(self, since: float) -> LogPosition | None:
        """Return the highest position that the primary was seen to have.

        Args:
            since: Only what was asked since then over a connection in use counts, by
                the monotonic clock; ``-inf`` for all that is known.
        """
        if self.source is None or self._asked_at < since:
            return None
        return self._highest or from_primary_report(self._status.report)

    def has_had(self, wanted: LogPosition) -> bool:
        """Whether the background probe has seen the primary to have a position.

        What was asked at a commit may be from before the primary was restored.
        """
        probed = from_primary_report(self._status.report)
        return probed is not None and probed.covers(wanted)

    def of_primary(self, connection: Connection) -> LogPosition | None:
        """Ask the primary for its position; None if it does not tell.

        Args:
            connection: A connection to it.
        """
        pooled = pooled_connection(connection)
        if pooled is None:
            return None
        found = self.ask_primary(pooled.dbapi_connection)
        _invalidate_if_lost(connection, found)
        return found

    def ask_primary(self, driver: Any) -> LogPosition | None:
        """Ask the primary for its position; None if it does not tell.

        Args:
            driver: A DBAPI connection to it.
        """
        began = time.monotonic()
        found = self._ask(_PRIMARY, lambda it: it.position(driver), driver)
        if found is not None:
            highest, asked_at = self._highest, self._asked_at
            # One that was asked later and has less is another server, or was restored:
            # what it lacks was lost. Else two threads have asked, and this one is late.
            if highest is None or began > asked_at:
                self._highest = found
            else:
                self._highest = merged(highest, found)
            self._asked_at = time.monotonic()
        return found

    @property
    def may_ask_primary(self) -> bool:
        """Whether there is something to ask, and the primary has not just refused."""
        until = self._refusals.get(_PRIMARY, -math.inf)
        return self.source is not None and time.monotonic() >= until

    def note_untold(self) -> None:
        """Note that the primary has told no position after a commit."""
        if self.source is not None and _PRIMARY not in self._refusals:
            self._note_refusal(_PRIMARY, "it has none")

    def _ask(
        self,
        server: object,
        ask: Callable[[PositionSource], LogPosition | None],
        driver: Any,
    ) -> LogPosition | None:
        """Ask a server, unless it has refused a moment ago.

        Args:
            server: A replica, or ``_PRIMARY``.
            ask: Asks.
            driver: The DBAPI connection that it asks over.
        """
        source, until = self.source, self._refusals.get(server)
        if source is None or driver is None:
            return None
        if until is not None:
            if time.monotonic() < until:
                return None
            self._refusals = {s: u for s, u in self._refusals.items() if s != server}
        try:
            return ask(source)
        except Exception as error:  # noqa: BLE001 - drivers raise what they like
            if _is_closed(driver):
                logger.debug("lost while its position was asked: %s", error_text(error))
            else:
                self._note_refusal(server, error_text(error))
            return None

    def _note_refusal(self, server: object, why: str) -> None:
        """Note that a server refuses; log it at most once an hour."""
        now = time.monotonic()
        there = {s: u for s, u in self._refusals.items() if u > now}
        self._refusals = {**there, server: now + _REFUSES_FOR}
        logger.log(
            logging.WARNING if self._warning.is_due() else logging.DEBUG,
            "a %s server does not tell its log position, so that a write pins its "
            "client to the primary for REPLICATED_PIN_SECONDS: %s",
            self._dialect,
            why,
        )

    # --- a replica ------------------------------------------------------------

    def shown_by(
        self, member: Member[Engine], connection: Connection | None = None
    ) -> LogPosition | None:
        """Return what a replica is known to show at least; None if that is unknown.

        Args:
            member: The replica.
            connection: A connection to it. Behind its address there may be several
                servers, or another one than before.
        """
        server = self.server_of(member)
        if self.source is None or server is None:
            return None
        history = server.history
        latest, judged_at = history.latest, history.judged_at
        started = latest.started if connection is None else _started(connection)
        found = None
        if started == latest.started:
            found = self._reported_by(member, latest)
        learnt = self._learnt.get(member)
        if learnt is None or learnt.started != started:
            return found
        if found is None:
            return None if started is None else learnt.position
        if started is None and judged_at > learnt.at:
            # Without the time of its start, only less than before tells of another.
            return found
        return merged(learnt.position, found)

    def _reported_by(
        self, member: Member[Engine], latest: ReplicaReport
    ) -> LogPosition | None:
        """Return what a replica's latest report says; it is the same for many reads."""
        system, known = self._status.report.system_identifier, self._reported
        one = known.get(member)
        if one is None or one.report is not latest or one.system != system:
            one = _Reported(latest, system, from_replica_report(latest, system))
            there = {m: other for m, other in known.items() if self.server_of(m)}
            self._reported = {**there, member: one}
        return one.position

    def ask_replica(
        self, member: Member[Engine], connection: Connection
    ) -> LogPosition | None:
        """Ask a replica what it shows; None if it does not tell."""
        pooled = pooled_connection(connection)
        if pooled is None:
            return None
        driver, at = pooled.dbapi_connection, time.monotonic()
        found = self._ask(member, lambda it: it.replayed(driver), driver)
        _invalidate_if_lost(connection, found)
        if found is not None and self.server_of(member) is not None:
            there = {
                one: learnt
                for one, learnt in self._learnt.items()
                if self.server_of(one) is not None
            }
            self._learnt = {**there, member: _Learnt(_started(connection), at, found)}
        return found

    def incarnation(
        self, member: Member[Engine], connection: Connection | None = None
    ) -> int:
        """Return a digest of a replica's server since its latest start.

        A server that was started anew may show less than before.

        Args:
            member: The replica.
            connection: As for :meth:`shown_by`.
        """
        server, started = self._servers.get(member.name), None
        if connection is not None:
            started = _started(connection)
        elif server is not None:
            started = server.history.latest.started
        return zlib.crc32(f"{member.name} {started}".encode()) | 2

    def staleness(
        self, member: Member[Engine], connection: Connection | None = None
    ) -> float | None:
        """Return how old what a replica shows may be, in seconds; None if unknown.

        Args:
            member: The replica.
            connection: As for :meth:`shown_by`.
        """
        server = self.server_of(member)
        if server is None:
            return None
        history = server.history
        if connection is not None and _started(connection) != history.latest.started:
            return None
        return history.staleness(time.monotonic())

    def likely_shows(self, member: Member[Engine], age: float) -> bool | None:
        """Whether a replica likely shows a write by now, as the last look has found it.

        Args:
            member: The replica.
            age: How long ago that was written, in seconds.

        Returns:
            None if its lag is not known.
        """
        server = self.server_of(member)
        lag = None if server is None else server.history.latest.lag
        if server is None or lag is None:
            return None
        looked = time.monotonic() - server.history.judged_at
        if age < looked:  # it is later than the look
            return age >= lag
        return age > lag + looked

    def ask_staleness(
        self, member: Member[Engine], connection: Connection
    ) -> float | None:
        """Ask a replica for its lag; return the same."""
        server, pooled = self.server_of(member), pooled_connection(connection)
        if server is None or pooled is None:
            return None
        driver: Any = pooled.dbapi_connection
        queries = report_queries(member.target.dialect.name)
        history = server.history
        progress = history.progress.copy()
        was_inside = connection.in_transaction()
        try:
            history.ask(driver, queries, time.monotonic, progress)
            if connection.dialect.name == WITH_BLOCKS and not was_inside:
                driver.rollback()  # it may have begun a transaction of its own
        except Exception as error:  # noqa: BLE001 - drivers raise what they like
            logger.debug("no lag: %s", error_text(error))
            return None
        return self.staleness(member, connection)

    def server_of(self, member: Member[Engine]) -> ReplicaServer | None:
        """Return what is known of a replica's server; None if it was removed."""
        server = self._servers.get(member.name)
        return server if server and server.is_of(member.target) else None


class _Learnt(NamedTuple):
    """What a read has learnt of a replica.

    Attributes:
        started: When its server was started; None if it does not tell.
        at: When it was asked, by the monotonic clock.
        position: What it showed.
    """

    started: float | None
    at: float
    position: LogPosition


class _Reported(NamedTuple):
    """What a replica's report says.

    Attributes:
        report: The report.
        system: Its primary's system identifier.
        position: What the replica showed; None if it did not tell.
    """

    report: ReplicaReport
    system: int | None
    position: LogPosition | None


def _started(connection: Connection) -> float | None:
    """Return when the server of a replica's connection was started, if it has told."""
    pooled = pooled_connection(connection)
    return None if pooled is None else pooled.info.get(STARTED)


def _invalidate_if_lost(connection: Connection, found: object) -> None:
    """Tell a connection's pool that it was lost, or it fails to reset it."""
    if found is not None or connection.in_transaction():
        return
    pooled = pooled_connection(connection)
    if pooled is not None and _is_closed(pooled.dbapi_connection):
        connection.invalidate()


def _is_closed(driver: Any) -> bool:
    """Whether a DBAPI connection is lost, as far as its driver knows."""
    if hasattr(driver, "open"):  # PyMySQL, mysqlclient
        return not driver.open
    driver = getattr(driver, "driver_connection", driver)
    closed = getattr(driver, "is_closed", getattr(driver, "closed", False))
    return bool(closed() if callable(closed) else closed)
