"""What serves a read when no replica takes the connection."""

from __future__ import annotations

import logging
import math
import time
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy.exc import TimeoutError  # noqa: A004 - not the built-in one

from flask_replicated.errors import MORE_AT_A_TIME, AllReplicasOutError
from flask_replicated.routing.decision import ALL_BUSY, ALL_OUT, BEHIND
from flask_replicated.signals import all_replicas_out, replicas_serve_again
from flask_replicated.system.log_lines import Seldom

from .primary_connection import PrimaryConnection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sqlalchemy import Connection, Engine

    from balancers import Member
    from flask_replicated.replica.connection_events import ReplicaServer
    from flask_replicated.replica.primary_status import PrimaryStatus
    from flask_replicated.routing.request_state import RequestState

    from .background import OutagesLike
    from .facade import ReplicasFacade, ServerFacade

__all__ = ["ConnectFailures", "Fallback"]

_SHOWN = 5
"""Of how many replicas a log line gives the cause."""

logger = logging.getLogger("flask_replicated")

_FALLS_BACK = (
    "every replica is out, and the primary serves their reads "
    "(REPLICATED_FALLBACK = 'master'): %s"
)
_FAIL = "every replica is out, and their reads fail (REPLICATED_FALLBACK = 'error'): %s"
_LOAD_LOG_INTERVAL = 60.0
"""Seconds in which load on all replicas is logged once."""
_ALL_OUT, _LAGGED = "every replica is out", "a replica that lags serves"
_ALL_LAG, _SHARE = "every replica lags", "the primary has had its share"
"""Conditions that are logged once."""


class ConnectFailures:
    """Why replicas have given no connection, of one attempt to connect.

    Args:
        seconds: For how long after the first failure others are tried.

    Attributes:
        causes: Why, by name.
        words: Why, each cause in one word.
        busy: The names of those that had no connection to spare.
        over: Whether the time is over. At least one other replica is tried.
        until: When it is, by the monotonic clock.
        behind: The names of those that do not show yet what the read must see.
        others: The replicas to try next.
    """

    others: Iterator[Member[Engine]]

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.until = math.inf
        self.causes: dict[str, str] = {}
        self.words: set[str] = set()
        self.busy: set[str] = set()
        self.behind: set[str] = set()
        self.over = False

    def add(self, name: str, cause: str, *, busy: bool, word: str = "") -> None:
        """Add one that was tried."""
        now = time.monotonic()
        self.over = now >= self.until
        if not self.causes:
            self.until = now + self._seconds
        self.causes[name] = cause
        if word:
            self.words.add(word)
        if busy:
            self.busy.add(name)

    def add_behind(self, name: str) -> None:
        """Add one that is fit, and does not show yet what the read must see."""
        self.add(name, "it does not show yet what the read must see", busy=False)
        self.behind.add(name)

    def skip_full(self, name: str) -> None:
        """Add one that was not tried, as its connection pool is exhausted."""
        self.causes[name] = "it has no connection to spare"
        self.busy.add(name)


class _LoggedConditions(dict[str, object]):
    """The conditions that were logged and last still, so that each is logged once.

    A dictionary, because it is asked at each connect whether there is any.
    """

    def begin(self, condition: str) -> bool:
        """Note that a condition is there; return whether it was not until now."""
        mine = object()
        return self.setdefault(condition, mine) is mine

    def end(self, condition: str) -> bool:
        """Note that a condition is over; return whether it was there until now."""
        return self.pop(condition, None) is not None


class _Lack(NamedTuple):
    """Why one read has no replica.

    Attributes:
        causes: Why each replica could not serve, by name.
        words: Why those that were tried could not, each cause in one word.
        load: Whether nothing but load keeps them from it.
        busy: Whether one of those that were tried had no connection to spare.
        all_out: Whether no replica is in rotation any more. Otherwise some serve, and
            only lack what the read must see.
        demands: Whether the read must see what replicas may not have yet.
        state: Of the running request, or None.
    """

    causes: dict[str, str]
    words: set[str]
    load: bool
    busy: bool
    all_out: bool
    demands: bool
    state: RequestState | None


class Fallback:
    """Decides what serves when no replica does: the primary, an old replica, or none.

    Args:
        replicas: The replicas as one engine.
        primary: The primary, as it stands in for them.
        servers: What is known of each replica's server, by name; kept up to date.
        status: What is known of the primary.
        outages: What knows of the replicas' outages.
        connect_to: Connects to a replica that is out, whatever its lag; returns None if
            that fails.

    Attributes:
        primary: The primary, as it stands in for them.
        logged: The conditions that were logged and last still. While there is one,
            :meth:`note_served` is to be called.
    """

    def __init__(
        self,
        replicas: ReplicasFacade,
        primary: ServerFacade,
        servers: Mapping[str, ReplicaServer],
        *,
        status: PrimaryStatus,
        outages: OutagesLike,
        connect_to: Callable[[Member[Engine]], Connection | None],
    ) -> None:
        self.primary = primary
        self.logged = _LoggedConditions()
        self._replicas = replicas
        self._pool = replicas.replica_pool
        self._servers = servers
        self._status = status
        self._outages = outages
        self._announcer = replicas.routed.announcer
        self._connect_to = connect_to
        self._settings = replicas.routed.app.settings
        self._share = replicas.routed.app.fallback_share
        self._primary_failed_at = -math.inf
        self._load = Seldom(_LOAD_LOG_INTERVAL)
        self._all_out_while_busy = Seldom(_LOAD_LOG_INTERVAL)
        self._share.watch(replicas.reads)

    def connect(
        self,
        failures: ConnectFailures | None,
        state: RequestState | None,
        *,
        demands: bool = False,
    ) -> Connection:
        """Connect to the primary, or to a replica that only lags.

        Args:
            failures: What came of the replicas that were tried, or None.
            state: Of the running request, or None.
            demands: Whether the read must see what replicas may not have yet. No
                replica that lags serves it, and no share refuses it.

        Raises:
            AllReplicasOutError: The settings leave nothing to read from.
        """
        lack = self._describe(failures or ConnectFailures(0), state, demands=demands)
        lagged = self._connect_by_lag(lack)
        if lagged is not None:
            return lagged
        if lack.all_out and not self._settings.fall_back:
            if not lack.load and self._begins_all_out(lack):
                self._log_all_out(_FAIL, lack)
            raise AllReplicasOutError(lack.causes, load=lack.load)
        if self.primary_is_out:
            lagged = self._connect_to_least_lagged(lack, _LAGGED)
            if lagged is not None:
                return lagged
        if not self._share.admit(demanded=demands):
            return self._connect_beyond_share(lack)
        if _SHARE in self.logged and not self._share.binds and self.logged.end(_SHARE):
            logger.warning(
                "reads without a replica stay within REPLICATED_FALLBACK_SHARE = %g "
                "again: none was refused for 10 s",
                self._share.share,
            )
        return self._connect_to_primary(lack)

    def note_served(self) -> None:
        """Note that a replica that is fit has taken a connection."""
        conditions = (_LAGGED, _ALL_OUT, _ALL_LAG, _SHARE)
        if sum(self.logged.end(one) for one in conditions):  # each of them ends
            about = self._announcer.record(replicas_serve_again.name)
            logger.warning("replicas serve reads again", extra=about)

    @property
    def primary_is_out(self) -> bool:
        """Whether it is known that the primary does not answer now."""
        since = time.monotonic() - self._primary_failed_at
        return self._status.out or since < self._settings.breaker_reset

    def note_primary_failure(self) -> None:
        """Note that the primary could not be reached in place of a replica."""
        self._primary_failed_at = time.monotonic()

    def _describe(
        self, failures: ConnectFailures, state: RequestState | None, *, demands: bool
    ) -> _Lack:
        busy = failures.busy
        load = busy == failures.causes.keys() and self._outages.is_load(busy)
        out = failures.causes.keys() - failures.behind
        others = [one for one in self._pool.live if one.name not in out]
        return _Lack(
            causes=self._pool.causes() | failures.causes,
            words=failures.words,
            load=load,
            busy=bool(busy),
            # One that was not tried, as time was over, may serve the next read.
            all_out=not (demands and others),
            demands=demands,
            state=state,
        )

    def _connect_by_lag(self, lack: _Lack) -> Connection | None:
        """Do what REPLICATED_LAG_FALLBACK says where replicas that answer all lag.

        Returns:
            A connection to one of them; None if something else is to serve.
        """
        wanted = self._settings.lag_fallback
        if wanted == "master" or lack.busy or not lack.all_out:
            return None
        if wanted == "least_lagged":
            return self._connect_to_least_lagged(lack, _ALL_LAG)
        if self._lagging(lack.state):
            raise AllReplicasOutError(lack.causes, setting="REPLICATED_LAG_FALLBACK")
        return None

    def _connect_beyond_share(self, lack: _Lack) -> Connection:
        """Connect to a replica that lags, as the primary has had its share of reads.

        Raises:
            AllReplicasOutError: There is none.
        """
        if self.logged.begin(_SHARE):
            logger.warning(
                "without replicas, more than REPLICATED_FALLBACK_SHARE = %g of this "
                "process's reads of the last 10 s would fall on the primary. A replica "
                "that lags serves the others, or they fail: %s",
                self._share.share,
                _few(lack.causes),
            )
        lagged = self._connect_to_least_lagged(lack)
        if lagged is not None:
            return lagged
        self._share.count_refused()
        raise AllReplicasOutError(
            lack.causes,
            load=lack.load,
            setting="REPLICATED_FALLBACK_SHARE",
            share=self._share.share,
        )

    def _connect_to_primary(self, lack: _Lack) -> Connection:
        """Connect to the primary, or if that fails, to a replica that only lags."""
        try:
            connection = self.primary.connect()
        except TimeoutError:
            raise  # its connection pool is exhausted: load, not death
        except Exception:
            self.note_primary_failure()
            lagged = self._connect_to_least_lagged(lack, _LAGGED)
            if lagged is None:
                raise
            return lagged
        if lack.all_out:
            self._log_fallback(lack)
        if lack.state is not None:
            # Once the primary was read, a replica would show an older state.
            reason = ALL_BUSY if lack.load else ALL_OUT
            reason = reason if lack.all_out else BEHIND
            if lack.state.latched is None and isinstance(connection, PrimaryConnection):
                connection.fell_back = reason
            lack.state.latch(reason)
        return connection

    def _log_fallback(self, lack: _Lack) -> None:
        """Log once that the primary serves the replicas' reads."""
        again = self.logged.end(_LAGGED)
        if lack.load:
            self._log_load(lack.causes)
        elif self._begins_all_out(lack):
            self._log_all_out(_FALLS_BACK, lack)
        elif again:
            logger.warning("the primary connects again, and serves the replicas' reads")

    def _begins_all_out(self, lack: _Lack) -> bool:
        """Whether to log now that every replica is out.

        If one of them is only busy, that ends whenever it has a connection to spare. So
        it is logged once a minute at most then, and its end is not logged.
        """
        if not self._pool.members:  # none at all yet, as DNS has not answered
            return False
        if lack.busy and self._pool.live:
            return self._all_out_while_busy.is_due()
        return self.logged.begin(_ALL_OUT)

    def _log_all_out(self, line: str, lack: _Lack) -> None:
        if self._outages.all_misconfigured():  # each was logged
            return
        # No breaker may be open yet, and no outage known: this read was the first.
        causes = self._outages.all_causes(lack.words)
        about = self._announcer.record(all_replicas_out.name, None, causes)
        logger.error(line, _few(lack.causes), extra=about)

    def _log_load(self, causes: dict[str, str]) -> None:
        if self._load.is_due():
            logger.warning(
                "every replica is busy, and the primary serves the reads that none has "
                "a connection for (REPLICATED_FALLBACK = 'master'): %s. If it goes on, "
                "%s.",
                _few(causes),
                MORE_AT_A_TIME,
            )

    def _lagging(self, state: RequestState | None) -> list[Member[Engine]]:
        """Return the replicas that only their lag keeps out, the best one first.

        A request keeps to its own. Else the one that shows most comes first.
        """
        kept = None if state is None else state.kept.get(self._replicas)
        shown = {one.name: one for one in self._pool.snapshot().members}
        found: list[tuple[bool, int, float, Member[Engine]]] = []
        for member in self._pool.members:
            server, one = self._servers.get(member.name), shown.get(member.name)
            if server is None or one is None or not server.is_of(member.target):
                continue
            if not server.history.lags or one.drained or not one.weight:
                continue
            latest = server.history.latest
            lag = math.inf if latest.lag is None else latest.lag
            # Of one primary's log: more in one stream is no less in another.
            got = sum((latest.position or {}).values())
            found.append((member is not kept, -got, lag, member))
        found.sort(key=lambda one: one[:3])
        return [member for *_, member in found]

    def _connect_to_least_lagged(
        self, lack: _Lack, condition: str | None = None
    ) -> Connection | None:
        """Connect to a replica that is out for its lag alone, if there is one.

        Args:
            lack: Why there is no other.
            condition: What is logged once, if anything.
        """
        for member in [] if lack.demands else self._lagging(lack.state):
            connection = self._connect_to(member)
            if connection is None:
                continue
            if condition is not None and self.logged.begin(condition):
                self._log_lagged(condition, member.name, lack.causes)
            if lack.state is not None:
                lack.state.kept[self._replicas] = member
            return connection
        return None

    def _log_lagged(self, condition: str, name: str, causes: dict[str, str]) -> None:
        if condition is _ALL_LAG:
            logger.warning(
                "every replica that answers lags; %r, which lags least, serves reads "
                "(REPLICATED_LAG_FALLBACK = 'least_lagged'): %s",
                name,
                _few(causes),
            )
            return
        logger.error(
            "the primary does not connect, and every replica is out; %r, which only "
            "lags, and less than others, serves reads: %s",
            name,
            _few(causes),
        )


def _few(causes: Mapping[str, str]) -> object:
    """Return causes for a log line, which many replicas would make very long."""
    more = len(causes) - _SHOWN
    shown = dict(islice(causes.items(), _SHOWN))
    return f"{shown} and {more} more" if more > 0 else shown
