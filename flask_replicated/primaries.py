"""What is asked of the primary's engine: to notice that it is the primary no more."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, DisconnectionError

from .connections import PrimaryConnection, ReplicaConnection
from .failures import refused_as_write
from .forks import refuse_inherited

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine
    from sqlalchemy.engine import ExceptionContext
    from sqlalchemy.pool import ConnectionPoolEntry

    from .statements import Classifier

__all__ = ["watch_primary", "watch_statements"]

logger = logging.getLogger("flask_replicated")

_REFUSALS = "flask_replicated.refusals"
_PAUSE = 1.0  # seconds; a program may make transactions read only on purpose


def watch_statements(engine: Engine, classifier: Classifier) -> None:
    """Note what the text that is sent to the primary may write.

    A construct is judged by its outer parts. Its text shows the rest: a write in a
    nested CTE, a function that nobody knows. That ties no request to the primary; but
    if it is committed, the client should see it.

    Args:
        engine: The primary's engine.
        classifier: Tells what a text does.
    """
    may_write, dialect = classifier.text.may_write, engine.dialect.name

    def note(_cursor: Any, sql: str, _parameters: Any, context: Any) -> None:
        connection = context.root_connection
        if (
            isinstance(connection, PrimaryConnection)
            and not (connection.wrote or connection.suspected)
            and may_write(sql, dialect)
        ):
            connection.suspect(context.execution_options)

    def note_bare(cursor: Any, sql: str, context: Any) -> None:
        note(cursor, sql, None, context)

    event.listen(engine, "do_execute", note)
    event.listen(engine, "do_executemany", note)
    event.listen(engine, "do_execute_no_params", note_bare)


def watch_primary(engine: Engine, clock: Callable[[], float] = time.monotonic) -> None:
    """Connect anew after the primary has refused a write.

    A primary that was demoted keeps its connections open and refuses to write, for
    as long as they are used. Whoever took its place is found under its name by new
    connections only. The write that was refused is the application's to repeat.

    Args:
        engine: The primary's engine.
        clock: Returns seconds that never go backwards.
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
        if not isinstance(error, DBAPIError) or not refused_as_write(error):
            return
        now = clock()
        if now - last < _PAUSE:
            return
        # Each that is older than now goes when it is next used. The one in use may be
        # a program's that has made its transaction read only itself.
        last, refusals = now, refusals + 1
        logger.error(
            "the primary has refused a write as read only: %s. If it was demoted, the "
            "next connections find its successor under its name.",
            error.orig,
        )
