"""One look at one replica, over the monitor's own connection to it."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

from flask_replicated.forks import leave_to_parent
from flask_replicated.replica.activity import list_backends
from flask_replicated.replica.dbapi_connections import (
    connect_unpooled,
    prepare_unpooled,
)
from flask_replicated.replica.fitness import ReplicaHistory
from flask_replicated.replica.poolers import backend_pid
from flask_replicated.replica.primary_status import TimedReport, ask_primary
from flask_replicated.replica.replica_status import (
    ReplicaReport,
    observe,
    ping,
    report_queries,
)
from flask_replicated.replica.same_server import SameServerCheck
from flask_replicated.sockets import hang_up

if TYPE_CHECKING:
    from queue import SimpleQueue

    from sqlalchemy import Engine

    from balancers import Member, Permit
    from flask_replicated.replica.activity import Backend
    from flask_replicated.replica.dbapi_connections import Surroundings

    from .stuck_statements import WaitingStatement

__all__ = ["PrimaryProbe", "ProbeRun", "ReplicaProbe"]


class ProbeRun:
    """One look at one replica, in a thread of its own.

    Attributes:
        member: The replica.
        permit: What the breaker knew when it began.
        deadline: The clock's reading at which it is given up; after that, at which
            this is said again.
        given_up: How often it was given up.
        found: What it saw, or the error.
        seconds: How long it took.
        probe: Whose connection it looks over.
        suspects: The waits over other connections that the server is asked about.
        backends: What it does for its clients, if it was asked and has answered.
    """

    def __init__(
        self, probe: ReplicaProbe, permit: Permit, deadline: float, *, anew: bool
    ) -> None:
        self.member = probe.member
        self.permit = permit
        self.deadline = deadline
        self.given_up = 0
        self.found: ReplicaReport | Exception = ReplicaReport()
        self.seconds = 0.0
        self.probe = probe
        self.suspects: list[WaitingStatement] = []
        self.backends: list[Backend] | None = None
        self._anew = anew

    @property
    def late(self) -> bool:
        """Whether it was given up."""
        return self.given_up > 0

    def run(self, done: SimpleQueue[ProbeRun | None]) -> None:
        """Look, then say so."""
        probe, began = self.probe, time.monotonic()
        try:
            self.found = probe.look(anew=self._anew)
        except Exception as error:  # noqa: BLE001 - drivers raise what they like
            self.found = error
        if self.suspects:
            self.backends = probe.list_backends()
        self.seconds = time.monotonic() - began
        # In this order, and the other way round in end(): whichever thread comes
        # second sees that it has to close the connection.
        probe.looking = False
        if probe.over:
            probe.close()
        done.put(self)
        probe.compare()
        while probe.abandoned:
            done.get()  # a greenlet in a forked child


class ReplicaProbe:
    """The monitor's own connection to one replica.

    It is kept from one look to the next. Where only a new one can vouch for the
    server (after an outage), or keeping one costs more than it saves (a file), it is
    opened anew.

    Args:
        member: The replica.
        history: What was seen of it before.
        primary: The primary's engine, where the replica may be asked whether its
            server is the same.
        surroundings: Returns the block to connect in.

    Attributes:
        member: The replica.
        looking: Whether a look goes on.
        over: Whether nobody will look any more.
        abandoned: Whether it is the parent's, in a forked child.
        heeds: Whether the replica's other connections are in use, so that a look over
            a new one has to find out first whether an old one is served.
        serves: Whether the latest look over a new connection has found that.
    """

    def __init__(
        self,
        member: Member[Engine],
        history: ReplicaHistory | None = None,
        primary: Engine | None = None,
        surroundings: Surroundings = contextlib.nullcontext,
    ) -> None:
        self.member = member
        engine = member.target
        self._observers = report_queries(engine.dialect.name)
        self._keep = engine.dialect.name != "sqlite"
        self._connection: Any = None
        # Opened before an outage, and kept while it tells how others of its age fare.
        self._former: Any = None
        self._history = history or ReplicaHistory()
        self._primary = primary
        self._surroundings = surroundings
        self._comparison = (
            None
            if primary is None
            else SameServerCheck(primary, engine, surroundings=surroundings)
        )
        # Once for each connection: by its name another server may be found next time.
        self._wonders = False
        self.looking = self.over = self.abandoned = False
        self.heeds = self.serves = False

    def look(self, *, anew: bool) -> ReplicaReport:
        """Ask the server; once more before it is held against it.

        A kept connection may have grown old, and a new one be cut by somebody.
        """
        self.serves = False
        if anew:
            self._set_aside()
        try:
            found = self._ask()
        except Exception:  # noqa: BLE001 - the next line says what it was
            self._drop()
            found = self._ask_again()
        self._drop_former()
        return found

    def _ask_again(self) -> ReplicaReport:
        try:
            return self._ask()
        except Exception:
            self._drop()
            raise

    def _set_aside(self) -> None:
        """Make place for a new connection; see first whether the old one is served."""
        if self._connection is not None:
            self._drop_former()
            self._former, self._connection = self._connection, None
        if self._former is not None:
            self.serves = self.heeds and _answers(self._former)
            if not self.serves:
                self._drop_former()

    def _ask(self) -> ReplicaReport:
        anew = self._connection is None
        if anew:
            self._connection = connect_unpooled(self.member.target, self._surroundings)
            prepare_unpooled(self.member.target, self._connection)
            self._wonders = self._comparison is not None
        found = self._question(self._connection, anew=anew)
        if not self._keep:
            self._drop()
        return found

    def _question(self, connection: Any, *, anew: bool) -> ReplicaReport:
        """Ask over a connection, which may be new, and leave no transaction on it."""
        kinship = self._history.kinship
        if kinship is not None:
            kinship.look(connection, anew=anew)
        found = self._history.settle(
            connection, (*self._observers, ping), time.monotonic
        )
        connection.rollback()  # or it would stay idle in a transaction
        # It says when it was started, and so whether it is the one that was compared.
        compared = found.own is not None and found.started is not None
        self._wonders = self._wonders and found.doubtful and not compared
        return found

    def list_backends(self) -> list[Backend] | None:
        """Ask the server what it does for its clients; None if it cannot be asked."""
        connection = self._connection or self._former
        if connection is None:
            return None
        try:
            return list_backends(self.member.target.dialect.name, connection)
        except Exception:  # noqa: BLE001 - it may not know, or have died meanwhile
            self.close()
            return None

    def successor(self) -> ReplicaProbe:
        """Return what looks in its place, while a look of its own does not end."""
        other = ReplicaProbe(
            self.member, self._history, self._primary, self._surroundings
        )
        if self.serves:
            other._former, self._former = self._former, None
        return other

    def compare(self) -> None:
        """Ask the primary for what a server has not told: whether it is the same.

        Over connections of its own, so that no look has to wait for the primary; what
        comes of it is known by the next one.
        """
        comparison, wonders = self._comparison, self._wonders
        self._wonders = False
        if comparison is not None and wonders and not self.over:
            try:
                self._history.found_twin(comparison.is_twin())
            except Exception:  # noqa: BLE001 - the primary may be out; ask again
                self._wonders = True

    def close(self) -> None:
        """Close what is open."""
        self._drop()
        self._drop_former()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        _close(connection)

    def _drop_former(self) -> None:
        connection, self._former = self._former, None
        _close(connection)

    def end(self) -> None:
        """Close the connection for good; a look that goes on does it when it ends."""
        self.over = True
        if self._comparison is not None:
            self._comparison.end()
        if self.looking:
            self.wake()
        else:
            self.close()

    def abandon(self) -> None:
        """Leave the connection to the parent of this process, for good."""
        self.over = self.abandoned = True
        if self._comparison is not None:
            self._comparison.abandon()
        for connection in filter(None, (self._connection, self._former)):
            leave_to_parent(connection)

    def wake(self) -> None:
        """End a look that hangs, if it waits on a socket that can be known."""
        waiting = self._connection or (None if self.serves else self._former)
        if waiting is not None:
            hang_up(waiting)


class PrimaryProbe(ReplicaProbe):
    """The monitor's own connection to the primary.

    Args:
        member: Stands for the primary, which is in no pool.
        surroundings: Returns the block to connect in.

    Attributes:
        answer: What the latest look has found.
        pooled: Whether it was reached through a connection pooler.
    """

    def __init__(
        self,
        member: Member[Engine],
        surroundings: Surroundings = contextlib.nullcontext,
    ) -> None:
        super().__init__(member, surroundings=surroundings)
        self.answer: TimedReport | None = None
        self.pooled = False

    def _question(self, connection: Any, *, anew: bool) -> ReplicaReport:
        asked = time.monotonic()
        dialect = self.member.target.dialect
        facts = ask_primary(connection, dialect.name, whole=True)
        self.answer = TimedReport(facts, asked, time.monotonic(), anew)
        told = backend_pid(dialect.driver, connection)
        self.pooled = bool(told) and facts.backend not in {None, told}
        # By its name the primary may be found next time; and a pooler might set aside
        # one of its few connections for one that is kept.
        self._keep = not (facts.standby or self.pooled)
        return ReplicaReport()

    def successor(self) -> ReplicaProbe:
        """Return what looks in its place, while a look of its own does not end."""
        other = PrimaryProbe(self.member, self._surroundings)
        other.pooled = self.pooled
        return other


def _answers(connection: Any) -> bool:
    try:
        observe(connection, ping)
        connection.rollback()
    except Exception:  # noqa: BLE001 - drivers raise what they like
        return False
    return True


def _close(connection: Any) -> None:
    if connection is not None:
        with contextlib.suppress(Exception):
            connection.close()
