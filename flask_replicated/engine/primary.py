"""Checks of the primary's connections and statements, by SQLAlchemy's own events.

Its connections have the checks that those of replicas have: a limit on the time to
connect, and a look at a pooled one before it is used again. Besides, it is noticed that
a server is the primary no more.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, DisconnectionError

from flask_replicated.errors import PrimaryUnavailableError
from flask_replicated.replica.connect_timeout import (
    NAME_A_LIMIT,
    SetupTimeout,
    TimeLimit,
    set_connect_timeout,
    timeout_argument,
    warn_of_hosts,
)
from flask_replicated.replica.dbapi_connections import closed_if_refused
from flask_replicated.replica.failures import is_read_only_error
from flask_replicated.replica.keepalive import enable_keepalive
from flask_replicated.replica.primary_status import (
    PrimaryReport,
    PrimaryStatus,
    ask_primary,
    source_of,
)
from flask_replicated.replica.throttle import limit_connecting
from flask_replicated.system.forks import in_this_process, refuse_inherited
from flask_replicated.system.sockets import watch_socket

from .primary_connection import PrimaryConnection
from .primary_reads import PrimaryReads
from .replica_connection import ReplicaConnection

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine
    from sqlalchemy.engine import ExceptionContext
    from sqlalchemy.pool import ConnectionPoolEntry

    from flask_replicated.sql.constructs import Classifier

__all__ = ["Primary", "watch_primary", "watch_statements"]

logger = logging.getLogger("flask_replicated")

_REFUSALS = "flask_replicated.refusals"
_TURN = 0.2
"""Seconds that a connect waits while another one tries a primary that is out."""
_PAUSE = 1.0  # seconds; a program may make transactions read only on purpose


def watch_statements(engine: Engine, classifier: Classifier) -> None:
    """Classify the text that is sent to the primary and is no plain read.

    A construct is classified by its outer parts. Its text shows the rest: which table
    is written; and a write in a nested CTE, or an unknown function, which ties no
    request to the primary, but if it is committed, the client should see it.

    Args:
        engine: The primary's engine.
        classifier: Tells what a text does.
    """
    may_write = classifier.text.may_write

    def note(_cursor: Any, sql: str, _parameters: Any, context: Any) -> None:
        connection = context.root_connection
        if not isinstance(connection, PrimaryConnection):
            return
        if context.compiled is not None:
            sql = context.compiled.string  # the same each time
        if connection.pending_kind is not None or may_write(sql):
            connection.note_sent(sql, context)

    def note_bare(cursor: Any, sql: str, context: Any) -> None:
        note(cursor, sql, None, context)

    event.listen(engine, "do_execute", note)
    event.listen(engine, "do_executemany", note)
    event.listen(engine, "do_execute_no_params", note_bare)


class Primary:
    """A primary's engine, with what is asked of its connections.

    Args:
        engine: Its engine, before the first connection.
        setting: The setting or bind that names it, in Python syntax.
        connect_timeout: Seconds to connect in; whole ones, rounded up. Its URL's own
            and ``connect_args`` are stronger; several hosts share them.
        role_check: Whether each new connection asks its server what it is, and a
            standby is refused.
        max_connecting: How many connections the program's own creator or listener opens
            at a time; None for any number.

    Attributes:
        status: What its servers have said of themselves.
        reads: The reads that wait for it.
    """

    def __init__(
        self,
        engine: Engine,
        setting: str,
        connect_timeout: float,
        *,
        role_check: bool,
        max_connecting: int | None = None,
    ) -> None:
        self.status = PrimaryStatus()
        self.reads = PrimaryReads(engine)
        self._renew_trial()
        self._warned = False
        self._setting = setting
        self._dialect = engine.dialect.name
        self._role_check = role_check
        self._seconds = math.ceil(connect_timeout)
        if engine.dialect.name == "sqlite":  # a file keeps no caller waiting
            return
        warn_of_hosts(setting, engine, self._seconds, NAME_A_LIMIT)
        lift = set_connect_timeout(engine, self._seconds, None)
        enable_keepalive(engine)
        own = timeout_argument(engine.driver)
        limit_connecting(
            engine, None, self._seconds, own_limit=own, foreign=max_connecting
        )
        self._first_words = SetupTimeout(engine, self._seconds)
        event.listen(engine, "connect", self._prepare)
        if lift is not None:  # no sooner: a server may be silent after the log-in too
            event.listen(engine, "connect", lift)
        event.listen(engine, "checkout", self._refuse_stale)

    def _prepare(self, connection: Any, record: ConnectionPoolEntry) -> None:
        with closed_if_refused(connection, record):
            self._ask(connection, record)
        record.info[self] = self.reads.outages, watch_socket(connection)

    def _compare(self, connection: Any, server: int | None, former: int | None) -> None:
        """Warn once if a server takes writes that replicates from the primary."""
        if self._warned or source_of(connection) != former:
            return
        self._warned = True
        logger.warning(
            "%s leads to a server (server_id %s) that replicates from the one that it "
            "led to before (server_id %s), and that takes writes. What it shows may be "
            "old, and what is written to it no other server gets. Set read_only = ON "
            "on replicas, or let the address lead to the primary alone.",
            self._setting,
            server,
            former,
        )

    def _renew_trial(self) -> None:
        self._in_its_process = in_this_process()
        self._trial = threading.Lock()
        self._tried = self._try_again = -math.inf

    @contextmanager
    def trial(self) -> Iterator[None]:
        """Let one connect at a time try whether a primary that is out answers again.

        So a primary that hangs keeps one thread at a time waiting, and not all of them;
        and that one seldom, as the background probe notices its return as well.

        Raises:
            PrimaryUnavailableError: Another one tries, and is not done soon; or has
                just waited for that without success.
        """
        if not self._in_its_process():
            self._renew_trial()  # a forked child: its holder may not be here
        trial, now = self._trial, time.monotonic()
        turn = max(0.0, self._tried + _TURN - now)
        if now < self._try_again or not trial.acquire(timeout=turn):
            raise self._unavailable(_OUT)
        self._tried = began = time.monotonic()
        try:
            yield
        except BaseException:
            now = time.monotonic()
            self._try_again = now + 2 * min(now - began, self._seconds)
            raise
        finally:
            trial.release()
        self.status.mark_unreachable(lives=True)

    def _ask(self, connection: Any, record: ConnectionPoolEntry) -> None:
        facts, former = PrimaryReport(), self.status.report.server
        try:
            if self._role_check:
                facts = ask_primary(connection, self._dialect)
                if former not in {None, facts.server} and not facts.standby:
                    self._compare(connection, facts.server, former)
        except Exception as error:
            if self._first_words.end(record):
                raise self._unavailable(_SILENT) from error
            raise
        if self._first_words.end(record):
            raise self._unavailable(_SILENT)
        if not self.status.accept(facts):
            raise self._unavailable(_STANDBY, standby=True)

    def _unavailable(
        self, why: str, *, standby: bool = False
    ) -> PrimaryUnavailableError:
        told = why.format(seconds=self._seconds)
        return PrimaryUnavailableError(self._setting, told, standby=standby)

    def _refuse_stale(
        self, connection: Any, record: ConnectionPoolEntry, _proxy: Any
    ) -> None:
        """Replace a pooled connection that the server has ended meanwhile.

        Where the primary is known not to answer, the server is asked first.
        """
        known = record.info.get(self)
        if known is not None:
            outages, readable = known
            if outages != self.reads.outages:
                raise DisconnectionError("opened before others were silent")
            if readable():
                raise DisconnectionError("the server has closed this idle connection")
        if self.status.out:
            self._ask_again(connection)

    def _ask_again(self, connection: Any) -> None:
        limit = TimeLimit(connection, self._seconds).start()
        try:
            facts = ask_primary(connection, self._dialect)
        except Exception as error:
            if limit.lift():
                raise self._unavailable(_HANGS) from error
            raise DisconnectionError("its server does not answer over it") from error
        if limit.lift():
            raise self._unavailable(_HANGS)
        if self._role_check and not self.status.accept(facts):
            raise DisconnectionError("its server is a standby now")


_SILENT = (
    "the server that it leads to took a connection, and then said nothing for "
    "{seconds} s (REPLICATED_CONNECT_TIMEOUT). It hangs, or a pooler's server is down."
)
_HANGS = (
    "the server that it leads to has said nothing over an open connection for "
    "{seconds} s (REPLICATED_CONNECT_TIMEOUT)"
)
_OUT = (
    "the server that it leads to does not answer. Nothing was sent to it; try again "
    "later."
)
_STANDBY = (
    "the server that it leads to is a standby: it takes no writes, and may be behind. "
    "While a failover goes on, try again when it is over. Else name the primary; or "
    "let what stands before the servers find it: HAProxy by checks that ask for the "
    "role, PostgreSQL's drivers by target_session_attrs=read-write in the URL. "
    "REPLICATED_ROLE_CHECK = False takes any server."
)


def watch_primary(engine: Engine) -> None:
    """Connect anew after the primary has refused a write.

    A primary that was demoted keeps its connections open and refuses to write, for
    as long as they are used. Its successor is found under its name by new connections
    only. The write that was refused is the application's to repeat.

    Args:
        engine: The primary's engine.
    """
    if engine.dialect.name == "sqlite":  # a file has one place
        return
    refuse_inherited(engine)
    last, refusals = -_PAUSE, 0

    @event.listens_for(engine, "connect")
    def stamp(_connection: Any, record: ConnectionPoolEntry) -> None:
        record.info[_REFUSALS] = refusals

    @event.listens_for(engine, "checkout")
    def renew(_connection: Any, record: ConnectionPoolEntry, _proxy: Any) -> None:
        if record.info.get(_REFUSALS, 0) != refusals:
            raise DisconnectionError("opened before the primary refused a write")

    @event.listens_for(engine, "handle_error")
    def notice(context: ExceptionContext) -> None:
        nonlocal last, refusals
        error = context.sqlalchemy_exception
        # A replica may be the same engine, where a bind names the primary.
        if isinstance(context.connection, ReplicaConnection):
            return
        if not isinstance(error, DBAPIError) or not is_read_only_error(error):
            return
        now = time.monotonic()
        if now - last < _PAUSE:
            return
        # Each older connection is replaced when it is next used. The one in use may
        # be a program's that has made its transaction read only itself.
        last, refusals = now, refusals + 1
        logger.error(
            "the primary has refused a write as read only: %s. If it was demoted, the "
            "next connections find its successor under its name.",
            error.orig,
        )
