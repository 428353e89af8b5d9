"""One probe of one replica, or of the primary, over a connection of the monitor's."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

from flask_replicated.replica.activity import list_backends
from flask_replicated.replica.dbapi_connections import (
    connect_unpooled,
    prepare_unpooled,
)
from flask_replicated.replica.fitness import ReplicaHistory
from flask_replicated.replica.poolers import backend_pid
from flask_replicated.replica.primary_status import TimedReport, ask_primary
from flask_replicated.replica.queries import query_server
from flask_replicated.replica.replica_status import (
    ReplicaReport,
    ping,
    report_queries,
)
from flask_replicated.replica.same_server import SameServerCheck
from flask_replicated.system.forks import leave_to_parent
from flask_replicated.system.sockets import hang_up

if TYPE_CHECKING:
    from queue import SimpleQueue

    from sqlalchemy import Engine

    from balancers import Member, Permit
    from flask_replicated.replica.activity import Backend
    from flask_replicated.replica.dbapi_connections import Surroundings

    from .stuck_statements import WaitingStatement

__all__ = ["PrimaryProbe", "ProbeRun", "ReplicaProbe"]


class ProbeRun:
    """One probe of one member, in a thread of its own.

    Args:
        probe: Whose connection to use.
        permit: As the attribute.
        deadline: As the attribute.
        anew: Whether to open a new connection.

    Attributes:
        member: The replica, or what stands for the primary.
        permit: What the breaker knew when the run began.
        deadline: When the run counts as late, by the monotonic clock; once it is late,
            when that is acted on again.
        given_up: How often it was found to be late.
        found: What the server reported, or the error.
        seconds: How long the run took.
        probe: As the argument.
        waiting: Statements over other connections that the server is asked about.
        backends: What the server does for its clients, if it was asked and answered.
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
        self.waiting: list[WaitingStatement] = []
        self.backends: list[Backend] | None = None
        self._anew = anew

    @property
    def late(self) -> bool:
        """Whether it has missed its deadline."""
        return self.given_up > 0

    def run(self, done: SimpleQueue[ProbeRun | None]) -> None:
        """Probe, then put this run into *done*."""
        probe, began = self.probe, time.monotonic()
        try:
            self.found = probe.check(anew=self._anew)
        except Exception as error:  # noqa: BLE001 - drivers raise what they like
            self.found = error
        if self.waiting:
            self.backends = probe.list_backends()
        self.seconds = time.monotonic() - began
        # In this order, and the other way round in end(): whichever thread comes
        # second sees that it has to close the connection.
        probe.running = False
        if probe.ended:
            probe.close()
        done.put(self)
        probe.compare()
        while probe.abandoned:
            done.get()  # a greenlet in a forked child


class ReplicaProbe:
    """The monitor's own connection to one replica.

    It is kept from one run to the next. A new one is opened where only a new one can
    prove that the server is well (after an outage), or where keeping it costs more than
    it saves (a file).

    Args:
        member: The replica.
        history: What is known of it already.
        primary: The primary's engine, where the replica may be asked whether both are
            the same server.
        surroundings: Returns the block to connect in.

    Attributes:
        member: The replica.
        running: Whether a run is under way.
        ended: Whether there will be no more runs.
        abandoned: Whether it belongs to the parent, in a forked child.
        checks_former: Whether the replica's other connections are in use, so that a
            run over a new connection first checks whether an old one is answered.
        former_answers: Whether the latest run over a new connection found that.
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
        self._queries = (*report_queries(engine.dialect.name), ping)
        self._keep = engine.dialect.name != "sqlite"
        self._connection: Any = None
        # Opened before an outage, and kept as a sample of the connections of its age.
        self._former: Any = None
        self._history = history or ReplicaHistory()
        self._primary = primary
        self._surroundings = surroundings
        self._comparison = (
            None
            if primary is None
            else SameServerCheck(primary, engine, surroundings=surroundings)
        )
        # Once for each connection: the same name may lead to another server next time.
        self._compare_next = False
        self.running = self.ended = self.abandoned = False
        self.checks_former = self.former_answers = False

    def check(self, *, anew: bool) -> ReplicaReport:
        """Ask the server for its status; retry once over a new connection.

        A kept connection may have gone stale, and a new one may be cut on its way.

        Args:
            anew: Whether to open a new connection.

        Raises:
            Exception: The driver's, or why the server has the wrong database.
        """
        self.former_answers = False
        if anew:
            self._set_aside()
        try:
            found = self._ask()
        except Exception:  # noqa: BLE001 - the retry raises what is wrong
            found = self._ask()
        self._drop_former()
        return found

    def _set_aside(self) -> None:
        """Make room for a new connection; check first whether the old one answers."""
        if self._connection is not None:
            self._drop_former()
            self._former, self._connection = self._connection, None
        if self._former is not None:
            self.former_answers = self.checks_former and _answers(self._former)
            if not self.former_answers:
                self._drop_former()

    def _ask(self) -> ReplicaReport:
        """Ask over the open connection, or a new one; close it on an error."""
        engine, anew = self.member.target, self._connection is None
        try:
            if anew:
                self._connection = connect_unpooled(engine, self._surroundings)
                prepare_unpooled(engine, self._connection)
                self._compare_next = self._comparison is not None
            found = self._query(self._connection, anew=anew)
        except Exception:
            self._drop()
            raise
        if not self._keep:
            self._drop()
        return found

    def _query(self, connection: Any, *, anew: bool) -> ReplicaReport:
        """Ask over a connection, which may be new, and leave no transaction on it."""
        same_database = self._history.same_database
        if same_database is not None:
            same_database.check_probe(connection, anew=anew)
        found = self._history.ask(connection, self._queries, time.monotonic)
        connection.rollback()  # or it would stay idle in a transaction
        # The start time tells whether this is the server that was compared before.
        compared = found.own is not None and found.started is not None
        self._compare_next = self._compare_next and found.doubtful and not compared
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
        """Return a probe to use instead, while a run of this one does not end."""
        other = ReplicaProbe(
            self.member, self._history, self._primary, self._surroundings
        )
        if self.former_answers:
            other._former, self._former = self._former, None
        return other

    def compare(self) -> None:
        """Find out whether the replica is the primary's own server, if that is open.

        This uses connections of its own, after the run has reported: a run never waits
        for the primary. The next run knows the result.
        """
        comparison, wanted = self._comparison, self._compare_next
        self._compare_next = False
        if comparison is not None and wanted and not self.ended:
            try:
                self._history.found_same_server(comparison.is_same_server())
            except Exception:  # noqa: BLE001 - the primary may be out; ask again
                self._compare_next = True

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
        """Close the connection permanently, now or when the present run ends."""
        self.ended = True
        if self._comparison is not None:
            self._comparison.connections.end()
        if self.running:
            self.wake()
        else:
            self.close()

    def abandon(self) -> None:
        """In a forked child, leave the connections to the parent process."""
        self.ended = self.abandoned = True
        if self._comparison is not None:
            self._comparison.connections.abandon()
        for connection in filter(None, (self._connection, self._former)):
            leave_to_parent(connection)

    def wake(self) -> None:
        """End a run that hangs, if its driver shows the socket it waits on."""
        waiting = self._connection or (None if self.former_answers else self._former)
        if waiting is not None:
            hang_up(waiting)


class PrimaryProbe(ReplicaProbe):
    """The monitor's own connection to the primary.

    Args:
        member: Stands for the primary, which is in no pool.
        surroundings: Returns the block to connect in.

    Attributes:
        report: What the latest run has found.
        pooled: Whether the primary was reached through a connection pooler.
    """

    def __init__(
        self,
        member: Member[Engine],
        surroundings: Surroundings = contextlib.nullcontext,
    ) -> None:
        super().__init__(member, surroundings=surroundings)
        self.report: TimedReport | None = None
        self.pooled = False

    def _query(self, connection: Any, *, anew: bool) -> ReplicaReport:
        asked = time.monotonic()
        dialect = self.member.target.dialect
        report = ask_primary(connection, dialect.name, whole=True)
        self.report = TimedReport(report, asked, time.monotonic(), anew)
        told = backend_pid(dialect.driver, connection)
        self.pooled = bool(told) and report.backend not in {None, told}
        # A new connection may find the primary behind the same name; and a pooler might
        # reserve one of its few server connections for one that is kept.
        self._keep = not (report.standby or self.pooled)
        return ReplicaReport()

    def successor(self) -> ReplicaProbe:
        """Return a probe to use instead, while a run of this one does not end."""
        other = PrimaryProbe(self.member, self._surroundings)
        other.pooled = self.pooled
        return other


def _answers(connection: Any) -> bool:
    try:
        query_server(connection, ping)
        connection.rollback()
    except Exception:  # noqa: BLE001 - drivers raise what they like
        return False
    return True


def _close(connection: Any) -> None:
    if connection is not None:
        with contextlib.suppress(Exception):
            connection.close()
