"""The gate: the last check of a statement before it is sent to a replica.

What is sent is text, whatever it was built from. So everything shows here: a lock
taken by a function in a ``WHERE``, a write in a nested CTE, a table that must never
be read stale. Routing cannot look so deep at each statement; here each text is checked
once and remembered, and one that is known costs a lookup in a set.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.exc import DBAPIError

from flask_replicated._private import has_listeners
from flask_replicated.errors import StaleReadError
from flask_replicated.replica.failures import (
    StorageFailures,
    failed_on_server,
    is_missing_object,
    is_read_only_error,
    is_storage_error,
)
from flask_replicated.routing.decision import ROLES, Role
from flask_replicated.routing.flask_context import running_endpoint
from flask_replicated.routing.hints import (
    ROLE_OPTION,
    named_table,
    primary_tables,
    wanted_role,
)
from flask_replicated.routing.overrides import active_role
from flask_replicated.signals import write_refused
from flask_replicated.sql.text import CACHED_LENGTH, Kind, ends_read_only

from .lazy_begin import begin_block, begin_block_late
from .replica_connection import ReplicaConnection

if TYPE_CHECKING:
    import re

    from sqlalchemy import Engine
    from sqlalchemy.engine import ExceptionContext, ExecutionContext

    from flask_replicated.replica.connection_events import ReplicaServer
    from flask_replicated.routing.state import AppState
    from flask_replicated.sql.constructs import Classifier

__all__ = ["Gate"]

_MANY = 2000  # texts that are remembered


class Gate:
    """Lets reads pass to the replicas of one bind, and nothing else.

    Args:
        app: The application's state.
        classifier: Tells what a statement does.
    """

    def __init__(self, app: AppState, classifier: Classifier) -> None:
        # The monitor's thread keeps engines alive, and so would keep the application.
        self._app = weakref.ref(app)
        self._classify = classifier.sent
        self._stands_alone = classifier.text.stands_alone
        # Those that need no block, and those that begin one.
        self._known_reads: set[str] = set()
        self._known_in_blocks: set[str] = set()
        self._pattern: re.Pattern[str] | None = None
        self._version = 0  # of the tables
        self._storage_failures = StorageFailures()

    def guard(self, engine: Engine, replica: ReplicaServer) -> None:
        """Check each statement that is sent to a replica's engine from here on.

        By the dialect's own events: the engine's would make every statement slower by
        a third, and these by a hundredth.

        Args:
            engine: The replica's engine.
            replica: What takes care of its connections.
        """

        def notice(context: ExceptionContext) -> Exception | None:
            return self._notice_error(context, replica)

        event.listen(engine, "do_execute", self._before)
        event.listen(engine, "do_executemany", self._before)
        event.listen(engine, "do_execute_no_params", self._before_bare)
        event.listen(engine, "handle_error", notice)

    def _before(
        self, _cursor: Any, statement: str, _parameters: Any, context: ExecutionContext
    ) -> None:
        connection = context.root_connection
        if not isinstance(connection, ReplicaConnection):
            return
        if has_listeners(connection):
            begin_block_late(connection)
        # A compiled statement is the same string each time, and knows its hash.
        compiled = context.compiled
        sql = statement if compiled is None else compiled.string
        if (
            sql not in self._known_reads or self._version != primary_tables.version
        ) and not self._check(sql, connection, context):
            return
        options = context.execution_options
        if options.get("stream_results"):  # a cursor on the server
            begin_block(connection)
        role = options.get(ROLE_OPTION)
        # No session sends that here.
        if role is not None and ROLES.get(str(role)) is Role.PRIMARY:
            raise StaleReadError(None, sql, running_endpoint())
        connection.count_statement(context)

    def _before_bare(
        self, cursor: Any, statement: str, context: ExecutionContext
    ) -> None:
        self._before(cursor, statement, None, context)

    def _check(
        self, sql: str, connection: ReplicaConnection, context: ExecutionContext
    ) -> bool:
        """Let a statement pass or raise; return whether it counts as one that reads."""
        if not connection.in_transaction():
            self._pass_begin(sql, connection, context)
            return True
        if self._version != primary_tables.version:
            self._find_tables()
        # Of one version: another thread may replace them meanwhile.
        alone, in_blocks, pattern = (
            self._known_reads,
            self._known_in_blocks,
            self._pattern,
        )
        if sql in in_blocks:
            begin_block(connection)
            return True
        if self._kind_passed(sql, connection, context) is Kind.SETTING:
            begin_block(connection)
            return self._pass_setting(sql, connection, context)
        known = alone
        if not self._stands_alone(sql):
            begin_block(connection)
            known = in_blocks
        table = named_table(pattern, sql)
        if table is not None:
            if not _asks_for_replica(context):
                raise StaleReadError(table, sql, running_endpoint())
        elif len(sql) <= CACHED_LENGTH:
            if len(known) >= _MANY:
                known.clear()  # a program that writes SQL as it runs
            known.add(sql)
        return True

    def _pass_begin(
        self, sql: str, connection: ReplicaConnection, context: ExecutionContext
    ) -> None:
        """Let a listener begin the transaction in its own way: all of it is one."""
        begin_block(connection)
        if self._classify(sql, None) is Kind.SETTING:
            connection.note_setting(sql, context.parameters)

    def _pass_setting(
        self, sql: str, connection: ReplicaConnection, context: ExecutionContext
    ) -> bool:
        """Note a ``SET``, and return whether the program has asked for it here.

        Otherwise a listener has sent it, for ``after_begin`` say, and sends it over a
        connection that takes this one's place, too.
        """
        connection.note_setting(sql, context.parameters)
        if _asks_for_replica(context):
            connection.note_setting_of_program()
        return connection.changed_by_program

    def _kind_passed(
        self, sql: str, connection: ReplicaConnection, context: ExecutionContext
    ) -> Kind:
        """Return what a statement does; raise if it does more than it may."""
        kind = self._classify(sql, getattr(context.compiled, "statement", None))
        # A setting may be named by a parameter of set_config().
        if kind is Kind.SETTING and ends_read_only(str(context.parameters)):
            kind = Kind.WRITE
        if kind >= Kind.LOCK:
            connection.note_stopped_write()
            block = " inside using_slave()" if active_role() is Role.REPLICA else ""
            name = connection.member.name
            raise connection.facade.routed.refusal(
                sql, f"connected to {name!r}{block}", "connection", name
            )
        return kind

    def _find_tables(self) -> None:
        app = self._app()
        self._version = primary_tables.version
        self._pattern = primary_tables.pattern(app.metadatas() if app else ())
        # New sets: what another thread has just checked by the old ones is lost.
        self._known_reads, self._known_in_blocks = set(), set()

    def _notice_error(
        self, context: ExceptionContext, replica: ReplicaServer
    ) -> Exception | None:
        """Note what an error says of its connection; name a refused write as one."""
        connection, error = context.connection, context.sqlalchemy_exception
        if not isinstance(connection, ReplicaConnection):
            return None
        if not isinstance(error, DBAPIError):
            return None
        if failed_on_server(error):
            context.is_disconnect, context.invalidate_pool_on_disconnect = True, False
        connection.note_error(context.original_exception, error)
        if is_storage_error(error):
            self._note_storage_failure(connection, error, replica)
        elif is_missing_object(error):
            connection.note_missing(error)
        if context.statement is None or not is_read_only_error(error):
            return None
        routed, name = connection.facade.routed, connection.member.name
        refusal = routed.refusal(
            context.statement,
            f"{name!r} refused it; REPLICATED_WRITE_FUNCTIONS may name the function "
            "that writes",
            "server",
            name,
        )
        connection.note_refused_write(context.original_exception, refusal)
        about = routed.announcer.record(write_refused.name, name, "server")
        routed.app.decider.learn_writer(refusal, about)
        return refusal

    def _note_storage_failure(
        self, connection: ReplicaConnection, error: DBAPIError, replica: ReplicaServer
    ) -> None:
        facade = connection.facade
        seconds = facade.routed.app.settings.breaker_reset
        cause = error.orig or error  # without the statement
        if self._storage_failures.note(
            connection.member, cause, facade.replica_pool, seconds
        ):
            replica.storage_fails = True


def _asks_for_replica(context: ExecutionContext) -> bool:
    """Whether the program has asked for a replica, by a block or an option."""
    if active_role() is Role.REPLICA:
        return True
    statement = getattr(context.compiled, "statement", None)
    return wanted_role(statement, context.execution_options) is Role.REPLICA
