"""The private names of other libraries that this package uses, with the reasons.

No other module reads a private name of a library, with one exception. Classes that
inherit from one of SQLAlchemy's read or override a few in themselves: :data:`INHERITED`
lists those, and the exception.
``tests/test_private.py`` looks for each name in the installed versions.
"""

from __future__ import annotations

from inspect import getclosurevars
from operator import attrgetter
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from flask import globals as flask_globals
from sqlalchemy import util
from sqlalchemy.event import _EventKey as EventKey
from sqlalchemy.orm.session import _sessions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from contextvars import ContextVar

    from flask.ctx import AppContext, RequestContext
    from sqlalchemy import Connection, Engine, Select
    from sqlalchemy.engine.interfaces import PoolProxiedConnection
    from sqlalchemy.orm import Session, SessionTransaction
    from sqlalchemy.pool import Pool, QueuePool

__all__ = [
    "ADD_EVENT",
    "INHERITED",
    "EventKey",
    "add_listener",
    "connect_arguments",
    "connections_of",
    "current_app_context",
    "current_request_context",
    "driver_socket",
    "drop_transaction",
    "has_hints",
    "has_listeners",
    "has_no_options",
    "has_own_creator",
    "invoke_creator",
    "is_flushing",
    "is_observed",
    "isolation_level_setter",
    "joined_dispatch",
    "makes_own_engines",
    "max_overflow_of",
    "parent_of",
    "pg8000_key_data",
    "pg8000_socket",
    "pooled_connection",
    "pymysql_awaits_answer",
    "select_parts",
    "selects_tables_only",
    "set_creator",
    "set_pool_timeout",
    "set_pymysql_read_timeout",
    "set_user_options",
    "unflushed_sessions",
    "user_options",
]

INHERITED: Mapping[str, frozenset[str]] = util.immutabledict(
    {
        # Said to the constructor, so that it does not look for listeners: see
        # :func:`joined_dispatch`. And whether there is a transaction, for each read.
        "Connection": frozenset({"_has_events", "_transaction"}),
        # The class of its connections, which notice commits and failures; and whether
        # it has listeners, which a facade shows of the real engine.
        "Engine": frozenset({"_connection_cls", "_has_events"}),
        # How a transaction begins at the driver. Without this each read would begin a
        # block.
        "RootTransaction": frozenset({"_connection_begin_impl"}),
        # Read at each statement, where a call would cost as much as routing it. So is
        # ``_connections`` of the transaction.
        "Session": frozenset({"_flushing", "_transaction"}),
    }
)
"""Names that subclasses of these classes read, set or override in themselves."""

# ------------------------------------------------------------- SQLAlchemy: statements
# What a construct was built from. The public accessors of a Select compute its final
# FROM list, for ten times the price of classifying it. Without these every statement
# would be a tree to walk.


def selects_tables_only(statement: Select[Any]) -> bool:
    """Return whether a Select surely is one of whole tables, without join, CTE or lock.

    Nearly every statement is one, so it is found with one call, and without reading
    defaults of the class, which costs more.
    """
    own = statement.__dict__
    for column in own["_raw_columns"]:
        if column.__visit_name__ != "table":
            return False
    return (
        "_setup_joins" not in own
        and "_from_obj" not in own
        and "_independent_ctes" not in own
        and "_for_update_arg" not in own
    )


def select_parts(statement: Select[Any]) -> tuple[Any, ...]:
    """Return what a Select selects, its joins, FROM clauses, added CTEs and lock."""
    return (
        statement._raw_columns,
        statement._setup_joins,
        statement._from_obj,
        statement._independent_ctes,
        statement._for_update_arg,
    )


def has_hints(part: Any) -> bool:
    """Return whether text of the program's is put into a query as a hint.

    Without this, a query with a hint could pass for one that SQLAlchemy alone wrote.
    """
    hints = getattr(part, "_hints", None) or getattr(part, "_statement_hints", None)
    return bool(hints)


def has_no_options(statement: Select[Any]) -> bool:
    """Return whether a Select has neither ``.options()`` nor execution options.

    Nearly every statement has none, so nothing more has to be asked of it.
    """
    own = statement.__dict__  # not user_options(), which costs more
    return "_with_options" not in own and not statement.get_execution_options()


def user_options(statement: Any) -> Iterable[Any]:
    """Return what ``.options()`` has added to a statement.

    Without this the role of a statement would not reach its relationship loads.
    """
    found: Iterable[Any] = getattr(statement, "_with_options", ())
    return found


def set_user_options(statement: Select[Any], options: Iterable[Any]) -> None:
    """Replace what ``.options()`` has added: it can add, and not replace."""
    statement._with_options = tuple(options)


# ------------------------------------------- SQLAlchemy: connection pools and dialects

invoke_creator: Callable[[Pool], Callable[[Any], Any]] = attrgetter("_invoke_creator")
"""A pool's creator, whether it takes a record or nothing. Without it, connections
outside the pool would not be made as those of the pool are."""


def connect_arguments(pool: Pool) -> Mapping[str, Any]:
    """Return the keyword arguments of a driver's ``connect()``.

    They are a variable of SQLAlchemy's creator. Without this, a bind whose
    ``connect_args`` name its server could pass for the primary's copy by mistake.
    """
    found = getclosurevars(invoke_creator(pool)).nonlocals.get("cparams")
    return found if isinstance(found, dict) else {}


def has_own_creator(pool: Pool) -> bool:
    """Return whether the program opens a pool's connections itself."""
    # SQLAlchemy's own is a closure, told by its module.
    creator = invoke_creator(pool)
    return getattr(creator, "__module__", None) != "sqlalchemy.engine.create"


def set_creator(pool: Pool, creator: Callable[[Any], Any]) -> None:
    """Replace what opens a pool's connections, and those of its successors.

    Without this, connects of the program's own creator could not be limited: no
    listener is told of them beforehand.
    """
    target: Any = pool
    target._creator = creator


max_overflow_of: Callable[[QueuePool], int] = attrgetter("_max_overflow")
"""How many connections a pool may open beyond its size; -1 is any number. Without this
a read could not tell that it would have to wait, and go to another replica."""


def set_pool_timeout(pool: QueuePool, seconds: float) -> None:
    """Set how long a pool lets callers wait for a connection, once it was made.

    Without this a read waits 30 seconds for an exhausted replica.
    """
    pool._timeout = seconds


def isolation_level_setter(dialect: Any) -> Callable[[Any, Any], None] | None:
    """Return what sets the engine's ``isolation_level`` on a new connection.

    Without this, connections outside the pool would have the server's level.
    """
    found: Callable[[Any, Any], None] | None = dialect._builtin_onconnect()
    return found


# ------------------------------------------ SQLAlchemy: connections and transactions


pooled_connection: Callable[[Connection], PoolProxiedConnection | None] = attrgetter(
    "_dbapi_connection"
)
"""What a connection has from its pool; None if it is closed or invalidated.

The public property opens it again then, and those of this package's classes note that
the driver's connection is handed out. Each read asks several times.
"""


def has_listeners(connection: Connection) -> bool:
    """Return whether a listener may be called for what a connection does.

    Without this, listeners that come later than the connection would be missed.
    """
    return connection._has_events or connection.engine._has_events


def is_observed(connection: Connection) -> bool:
    """Return whether a listener or the log is told of each transaction.

    The public way asks the log, for 1 % of a GET's instructions.
    """
    return connection._has_events or connection.engine._has_events or connection._echo


def drop_transaction(connection: Connection) -> bool:
    """Take the transaction off a connection, without a rollback.

    Returns False, and does nothing, where a listener or the log is to hear of the end.
    Without this, each read ends with a rollback that has nothing to roll back.
    """
    # Not by a call of is_observed(), which each read would pay for.
    if connection._has_events or connection.engine._has_events or connection._echo:
        return False
    connection._transaction = None
    return True


def parent_of(engine: Any) -> Engine | None:
    """Return the engine that one with options of its own was made from.

    Without this, both would call the same listener.
    """
    found: Engine | None = getattr(engine, "_proxied", None)
    return found


# ---------------------------------------------------------- SQLAlchemy: listeners

# EventKey is what ``event.listen()`` makes of its arguments. Without it, one
# registration could not stand for listeners on all servers, nor be removed as one.


def add_listener(target: Any, key: Any, options: Mapping[str, Any]) -> None:
    """Add a listener as ``event.listen()`` does, under the key of another target."""
    target.dispatch._listen(key.with_dispatch_target(target), **options)


def joined_dispatch(dispatch: Any, engine: Engine) -> Any:
    """Return a connection's dispatch with its engine's, as its constructor makes it.

    Without this it would be made for each connection, which costs 2 % of a GET's
    instructions.
    """
    return dispatch._join(engine.dispatch)


# ------------------------------------------------------------ SQLAlchemy: sessions

ADD_EVENT = "_add_event"
"""The argument of ``Session.execute()`` for one more ``do_orm_execute`` handler, which
is called last. Without it, what the program's handlers change would not be seen."""


def unflushed_sessions() -> WeakSet[Session]:
    """Return the sessions of the process that have changes to flush.

    Without this, ``using_master(pin=False)`` would forget the write of a change that
    was made before the block.
    """
    sessions = (reference() for reference in _sessions.valuerefs())
    return WeakSet(one for one in sessions if one is not None and _has_changes(one))


def _has_changes(session: Session) -> bool:
    try:
        return bool(
            session.new or session.deleted or session.identity_map.check_modified()
        )
    except RuntimeError:  # another thread changes what these copy, just now
        return True


is_flushing: Callable[[Session], bool] = attrgetter("_flushing")
"""Whether a session is in ``flush()``. Without it, see :func:`unflushed_sessions`."""

connections_of: Callable[[SessionTransaction], dict[Any, Any]] = attrgetter(
    "_connections"
)
"""The connections of a session's transaction, as keys. The public method opens one
where there is none."""


# --------------------------------------------------------------------------- Flask
# The variables behind ``current_app`` and ``request``. Each of those proxies would add
# a call of Python; a GET asks four times, and each ``get_bind()`` twice.

current_app_context: Callable[[], AppContext] = flask_globals._cv_app.get
"""Return the innermost context of an application, or raise LookupError."""

_cv_request: ContextVar[Any] = getattr(
    flask_globals, "_cv_request", flask_globals._cv_app
)
current_request_context: Callable[[], RequestContext] = _cv_request.get
"""Return the innermost context of a request, or raise LookupError.

Where Flask has one kind of context for both, it may have no request: to ask for that
raises RuntimeError then.
"""


# ------------------------------------------------------------------ Flask-SQLAlchemy


def makes_own_engines(db: Any) -> bool:
    """Return whether a subclass of Flask-SQLAlchemy's extension makes the engines.

    Without this, a URL would be refused from which a subclass makes a fit engine.
    """
    from flask_sqlalchemy import SQLAlchemy  # noqa: PLC0415 - not for every use

    return type(db)._make_engine is not SQLAlchemy._make_engine


# ------------------------------------------------------------------------- drivers

_SECOND_PACKET = 2


def driver_socket(connection: Any) -> Any:
    """Return the socket of PyMySQL, pg8000 or MySQL Connector/Python in pure Python.

    None with others, and where it is closed. Their connections have no ``fileno()``.
    Without this, a thread that waits on a hung server could not be released.
    """
    usock = getattr(connection, "_usock", None)  # pg8000, whose _sock is a buffer
    if usock is not None:
        return usock
    network = getattr(connection, "_socket", None)
    if network is not None:
        return getattr(network, "sock", None)
    return getattr(connection, "_sock", None)


def pymysql_awaits_answer(connection: Any) -> bool:
    """Return whether PyMySQL waits for an answer, or for more of one.

    It has no result then, and has read no packet of the answer or several; one packet
    alone says that something was done. Without this, a statement that is lost on its
    way could not be told from an idle connection.
    """
    idle: bool = connection._next_seq_id == _SECOND_PACKET
    return connection._result is None and not idle


def set_pymysql_read_timeout(connection: Any, seconds: float | None) -> None:
    """Set the time that PyMySQL may wait for an answer, on an open connection.

    Without this, a limit on the server's greeting would be one on every answer.
    """
    connection._read_timeout = seconds


pg8000_socket = attrgetter("_usock")
"""The socket of pg8000. Without it, its limit on connecting is one on every answer."""

pg8000_key_data: Callable[[Any], bytes] = attrgetter("_backend_key_data")
"""The process ID and secret that PostgreSQL has sent to pg8000. Without it, a pooler
between the two is not recognised."""
