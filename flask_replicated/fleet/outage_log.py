"""Logs when a replica goes out or comes back, and what to do about it."""

from __future__ import annotations

import logging
import re
import time
from typing import TYPE_CHECKING

from balancers.errors import error_text
from balancers.events import (
    MemberAdded,
    MemberClosed,
    MemberDrained,
    MemberOpened,
    MemberRemoved,
    MemberRestored,
)
from flask_replicated.errors import DivergedReplicaError, WrongRoleError
from flask_replicated.replica.failures import Verdict, cause_of, judge_connect
from flask_replicated.replica.misconfigured import remedy_for
from flask_replicated.routing.announcer import Announcer
from flask_replicated.settings.binds import REPLICA_NAME
from flask_replicated.signals import (
    all_replicas_out,
    replica_added,
    replica_back,
    replica_out,
    replica_removed,
    replicas_serve_again,
)

from .storm_log import StormLog

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from blinker import NamedSignal

    from balancers import Event
    from flask_replicated.replica.connection_events import ReplicaServer

__all__ = ["OutageLog"]

logger = logging.getLogger("flask_replicated")

_LOAD_LOGGED_EVERY = 60.0
"""Seconds between two messages about load, which comes and goes within seconds."""
_PATIENCE = 30.0
"""Seconds before a primary among the replicas is logged while it is unknown whether it
is the one that writes go to: in a failover, those may not have found it yet."""
_SWITCHOVER = 15.0
"""Seconds in which a node may take on its new role after a switchover."""
# A discovered replica, with the key under which DNS was queried.
_DISCOVERED = re.compile(r"(?P<key>(?:.+?_)?(?:slave|replica))_.+")


class _Begun:
    """What has begun: it is new to one thread of many, without a lock."""

    def __init__(self) -> None:
        self._begun: dict[object, object] = {}

    def add(self, what: object) -> bool:
        """Note that something has begun; return whether that is new."""
        mine = object()
        return self._begun.setdefault(what, mine) is mine

    def end(self, what: object) -> bool:
        """Forget it; return whether it had begun."""
        return self._begun.pop(what, None) is not None


class _Outage:
    """Why one replica is out, and whether that was logged.

    Attributes:
        verdicts: All that was wrong since it was last in rotation.
        begun: The verdicts that were logged, and the signal that was sent.
        told: Whether to log its return as a warning.
        since: When it went out, in Unix seconds.
        cause: Why it is out now, in one word; None if it is unknown.
        primary_since: When it was first found to be a primary, or None.
        unsettled_since: When it was first found in a state that only a switchover
            explains, or None.
    """

    def __init__(self) -> None:
        self.verdicts: set[Verdict] = set()
        self.told = False
        self.begun = _Begun()
        self.since = time.time()
        self.cause: str | None = None
        self.primary_since: float | None = None
        self.unsettled_since: float | None = None


class OutageLog:
    """Logs each outage, once for each kind of cause, and its end.

    It also retires the open connections of a replica that is out: the breaker's trial
    must use a new one, as an old one that is idle proves nothing about the server. (Not
    those of a replica that only pauses: it has no connection to spare for new ones.)

    Args:
        replicas: The replicas' servers, by name; kept up to date elsewhere.
        binds: The setting that has the replicas' binds by name, in Python syntax.
        clock: Returns monotonic seconds.
        announcer: Tells the application.

    Attributes:
        lines: Where lines about single replicas are logged.
        live: Returns the replicas in rotation.
    """

    def __init__(
        self,
        replicas: Mapping[str, ReplicaServer],
        binds: str = "replicas",
        clock: Callable[[], float] = time.monotonic,
        announcer: Announcer | None = None,
    ) -> None:
        self._announcer = announcer or Announcer()
        self.lines = StormLog(self._announcer, clock)
        self.live: Callable[[], Collection[object]] = tuple
        self._begun = _Begun()
        self._replicas = replicas
        self._binds = binds
        self._clock = clock
        self._out: dict[str, _Outage] = {}
        self._busy_from: dict[str, float] = {}
        self._made = time.time()
        self._well_since: dict[str, float] = {}
        self._drained_since: dict[str, float] = {}

    def __call__(self, happened: Event) -> None:
        """Handle one event of the pool."""
        self._note_time(happened)
        if isinstance(happened, MemberOpened):
            self._opened(happened)
        elif isinstance(happened, MemberClosed):
            self._closed(happened.name)
        elif isinstance(happened, MemberAdded):
            self._out.pop(happened.name, None)
            self._inform("replica %r is added", replica_added, happened.name)
        elif isinstance(happened, MemberRemoved):
            self._out.pop(happened.name, None)
            self._busy_from.pop(happened.name, None)
            self._inform("replica %r is removed", replica_removed, happened.name)
        self._note_all()

    def _inform(self, what: str, signal: NamedSignal, name: str) -> None:
        logger.info(what, name, extra=self._announcer.record(signal.name, name))
        self._announcer.send(signal, replica=name)

    def _note_all(self) -> None:
        """Tell that no replica serves any more, or that one does again."""
        out = list(self._out.values())
        paused = any(not one.told and one.verdicts == {Verdict.BUSY} for one in out)
        if self.live():
            if self._begun.end(all_replicas_out):
                self._announcer.send(replicas_serve_again)
            return
        gone = any(one.told for one in out) and not paused
        if gone and self._begun.add(all_replicas_out):
            self._announcer.send(all_replicas_out, cause=self.all_causes())

    def all_causes(self, seen: Collection[str] = ()) -> str:
        """Return why replicas are out, each cause once, separated by commas.

        Args:
            seen: What a read has met, whose breakers may be closed still.
        """
        causes = {*seen, *(one.cause for one in list(self._out.values()))}
        return ",".join(sorted(filter(None, causes)))

    def _note_time(self, happened: Event) -> None:
        name, now = happened.name, time.time()
        if isinstance(happened, MemberDrained):
            self._drained_since[name] = now
        elif isinstance(happened, MemberRemoved):
            self._drained_since.pop(name, None)
            self._well_since.pop(name, None)
        elif isinstance(happened, (MemberAdded, MemberClosed, MemberRestored)):
            self._well_since[name] = now

    def since(self, name: str) -> dict[str, float]:
        """Return when a replica got into each state, in Unix seconds."""
        outage = self._out.get(name)
        well = self._well_since.get(name, self._made)
        out = well if outage is None else outage.since
        drained = self._drained_since.get(name, self._made)
        return {"closed": well, "open": out, "half_open": out, "drained": drained}

    def cause(self, name: str) -> str | None:
        """Return in one word why a replica is out; None if it is not, or unknown."""
        outage = self._out.get(name)
        return None if outage is None else outage.cause

    def still_out(self, name: str, error: BaseException) -> None:
        """Note why a replica is still out: it may be for another cause."""
        outage = self._out.get(name)
        if outage is not None:
            outage.cause = cause_of(error)
            self._tell(name, outage, error)
            self._note_all()

    def is_load(self, exhausted: set[str]) -> bool:
        """Whether all replicas that do not serve are kept from it by load alone.

        Args:
            exhausted: Names of replicas that had no connection to spare, be they out
                or not.
        """
        seen = [outage.verdicts for outage in list(self._out.values())]
        busy = bool(exhausted) or any(seen)
        # A replica that is the primary itself at the moment has no verdict.
        return busy and all(verdicts <= {Verdict.BUSY} for verdicts in seen)

    def all_misconfigured(self) -> bool:
        """Whether every replica is out, and was logged as misconfigured."""
        found = [self._out.get(name) for name in list(self._replicas)]
        wanted = {Verdict.MISCONFIGURED}
        return all(one is not None and one.verdicts == wanted for one in found)

    def _opened(self, happened: MemberOpened) -> None:
        outage = self._out.setdefault(happened.name, _Outage())
        if happened.cause is not None:
            outage.cause = cause_of(happened.cause)
        if not happened.failures:
            self._pauses(outage, happened)
            return
        if happened.cause is not None:
            self._tell(happened.name, outage, happened.cause)
        replica = self._replicas.get(happened.name)
        if replica is not None:  # not removed at this moment
            replica.retire_connections()

    def _pauses(self, outage: _Outage, happened: MemberOpened) -> None:
        outage.verdicts.add(Verdict.BUSY)
        now = self._clock()
        if now >= self._busy_from.get(happened.name, now):
            self._busy_from[happened.name] = now + _LOAD_LOGGED_EVERY
            logger.warning(
                "replica %r is busy, and is paused for %.1f s: %s",
                happened.name,
                happened.retry_in,
                happened.error,
            )

    def _tell(self, name: str, outage: _Outage, error: BaseException) -> None:
        """Log why a replica is out, unless that was logged for this outage."""
        verdict, cause = judge_connect(error), error_text(error)
        if (
            verdict in outage.verdicts
            or self._is_usual(name, outage, error)
            or not outage.begun.add(verdict)
        ):
            logger.debug("replica %r is still out: %s", name, cause)
            return
        outage.verdicts.add(verdict)
        outage.told = True
        word = cause_of(error)
        if verdict is Verdict.MISCONFIGURED:
            remedy = remedy_for(error, self.setting(name))
            what = "replica %r is not configured right, and serves no reads until it "
            what, event = f"{what}is: %s%s", replica_out.name
            advice = f". {remedy}" if remedy else ""
            self.lines.log(logging.ERROR, event, what, name, word, cause, advice)
        else:
            what = "replica %r is out: %s"
            self.lines.warn(replica_out.name, what, name, word, cause)
        if outage.begun.add(replica_out):
            self._announcer.send(replica_out, replica=name, cause=word)

    def _is_usual(self, name: str, outage: _Outage, error: BaseException) -> bool:
        """Whether this is normal in a switchover where every node is a bind.

        One node is the primary then, which is no outage while others serve. The former
        primary restarts, and comes back as a standby; standbys connect to their new
        source.
        """
        if isinstance(error, WrongRoleError):
            outage.primary_since = outage.primary_since or self._clock()
            usual = self._is_the_one(name, outage.primary_since, error)
        elif (
            outage.primary_since
            or outage.unsettled_since
            or isinstance(error, DivergedReplicaError)
        ):
            outage.unsettled_since = outage.unsettled_since or self._clock()
            usual = self._clock() - outage.unsettled_since < _SWITCHOVER
        else:
            usual = False
        return usual and len(self._replicas) != 1

    def _is_the_one(self, name: str, since: float, error: WrongRoleError) -> bool:
        """Whether a primary is, or may turn out to be, the one that writes go to."""
        if error.own is None:
            return self._clock() - since < _PATIENCE
        if error.own:
            self._say_own(name)
        return error.own

    def _say_own(self, name: str) -> None:
        """Log once per process that a bind names the primary itself."""
        others = [one for one in list(self._replicas) if one not in self._out]
        if others and self._begun.add("own primary"):
            logger.info(
                "replica %r is the primary itself at the moment, and others serve "
                "reads. Where every node is a bind, that is as it should be; else name "
                "a standby in %s",
                name,
                self.setting(name),
            )

    def setting(self, name: str) -> str:
        """Return the setting that has a replica's URL, in Python syntax."""
        found = None if REPLICA_NAME.fullmatch(name) else _DISCOVERED.fullmatch(name)
        if found is not None:
            return f"REPLICATED_DISCOVERY[{found['key']!r}]"
        return f"{self._binds}[{name!r}]"

    def _closed(self, name: str) -> None:
        outage = self._out.pop(name, None)
        if outage is not None and outage.told:
            what = "replica %r is back"
            self.lines.warn(replica_back.name, what, name, outage.cause)
            self._announcer.send(replica_back, replica=name, cause=outage.cause)
        else:
            logger.debug("replica %r is back", name)
        replica = self._replicas.get(name)
        if replica is not None:
            replica.storage_fails = replica.pool_exhausted = False
