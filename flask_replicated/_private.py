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

from sqlalchemy import RootTransaction, util
from sqlalchemy.event import _EventKey as EventKey
from sqlalchemy.orm.session import _sessions
from sqlalchemy.pool.base import _ConnectionRecord as ConnectionRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from flask import Flask
    from sqlalchemy import URL, Connection, Engine, Select
    from sqlalchemy.engine.interfaces import PoolProxiedConnection
    from sqlalchemy.orm import Session, SessionTransaction
    from sqlalchemy.pool import Pool, QueuePool

__all__ = [
    "ADD_EVENT",
    "INHERITED",
    "ConnectionRecord",
    "EventKey",
    "add_listener",
    "begin_as_root",
    "connect_arguments",
    "connections_of",
    "drop_transaction",
    "for_update",
    "has_hints",
    "has_listeners",
    "has_no_options",
    "has_own_creator",
    "invoke_creator",
    "is_flushing",
    "is_observed",
    "isolation_level_setter",
    "joined_dispatch",
    "lite_engine_options",
    "make_flask_sqlalchemy_engine",
    "makes_own_engines",
    "max_overflow",
    "parent_of",
    "pg8000_key_data",
    "pg8000_socket",
    "pooled_connection",
    "pymysql_awaits_answer",
    "pymysql_socket",
    "query_parts",
    "resolved_lambda",
    "roll_back_as_root",
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
        # Read at each transaction and each statement, where a call would cost more.
        "Connection": frozenset({"_dbapi_connection", "_has_events", "_transaction"}),
        # The class of its connections, which notice commits and failures; and what an
        # engine keeps, which a facade shows of the real engine.
        "Engine": frozenset(
            {
                "_compiled_cache",
                "_connection_cls",
                "_echo",
                "_execution_options",
                "_has_events",
            }
        ),
        # How a transaction begins and ends at the driver. Without these each read
        # would begin a block and send a rollback.
        "RootTransaction": frozenset(
            {"_connection_begin_impl", "_connection_rollback_impl"}
        ),
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


query_parts = attrgetter("_independent_ctes", "_for_update_arg")
"""The added CTEs and the lock (or None) of a Select, a union and the like."""

for_update = attrgetter("_for_update_arg")
"""The lock (``FOR UPDATE``) of a Select, a union and the like, or None."""

resolved_lambda = attrgetter("_resolved")
"""What a lambda statement has built. Without it each counts as a write."""


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
    own = statement.__dict__
    return "_with_options" not in own and "_execution_options" not in own


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

# ConnectionRecord is what a pool gives to creators and listeners; the public base class
# keeps no ``info``. Without it, connections outside the pool could use no creator that
# reads it.

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
    creator = pool._creator
    return getattr(creator, "__module__", None) != "sqlalchemy.engine.create"


def set_creator(pool: Pool, creator: Callable[[Any], Any]) -> None:
    """Replace what opens a pool's connections, and those of its successors.

    Without this, connects of the program's own creator could not be limited: no
    listener is told of them beforehand.
    """
    target: Any = pool
    target._creator = creator


max_overflow: Callable[[QueuePool], int] = attrgetter("_max_overflow")
"""How many connections a pool may open beyond its size. Without it a read could not
tell that it would have to wait, and go to another replica."""


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
"""What a Connection has from its pool, or None. The public attribute opens one where
there is none, and counts as handing out the driver's connection."""


def has_listeners(connection: Connection) -> bool:
    """Return whether a listener may be called for what a connection does.

    Without this, listeners that come later than the connection would be missed.
    """
    return connection._has_events or connection.engine._has_events


def is_observed(connection: Connection) -> bool:
    """Return whether a listener or the log is told of each transaction.

    Without this, a transaction that needs no block could not be left out.
    """
    engine = connection.engine
    return connection._has_events or engine._has_events or connection._echo


def drop_transaction(connection: Connection) -> None:
    """Let a connection have no transaction any more, without a word to the server.

    Without this, each read ends with a rollback that has nothing to roll back.
    """
    connection._transaction = None


def begin_as_root(transaction: Any) -> None:
    """Begin at the driver as a plain transaction does, whatever its class overrides."""
    RootTransaction._connection_begin_impl(transaction)


def roll_back_as_root(transaction: Any) -> None:
    """Roll back at the driver as a plain transaction does."""
    RootTransaction._connection_rollback_impl(transaction)


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

    Without this it would be made for each connection: a fifth of what it costs to
    connect.
    """
    return dispatch._join(engine.dispatch)


# ------------------------------------------------------------ SQLAlchemy: sessions

ADD_EVENT = "_add_event"
"""The argument of ``Session.execute()`` for one more ``do_orm_execute`` handler, which
is called last. Without it, what the program's handlers change would not be seen."""


def unflushed_sessions() -> Iterator[Session]:
    """Return all sessions of the process that have changes to flush.

    Without this, ``using_master(pin=False)`` would forget the write of a change that
    was made before the block. ``session.new`` and its like copy what another thread
    may be changing.
    """
    for reference in _sessions.valuerefs():
        session = reference()
        if session is not None and not session._is_clean():
            yield session


is_flushing: Callable[[Session], bool] = attrgetter("_flushing")
"""Whether a session is in ``flush()``. Without it, see :func:`unflushed_sessions`."""

connections_of: Callable[[SessionTransaction], dict[Any, Any]] = attrgetter(
    "_connections"
)
"""The connections of a session's transaction, as keys. The public method opens one
where there is none."""


# ------------------------------------------------------------- Flask-SQLAlchemy, Lite
# How they make their engines, which subclasses of theirs may override. Without these a
# replica that is added later would have other options than the first ones.


def makes_own_engines(db: Any) -> bool:
    """Return whether a subclass of Flask-SQLAlchemy's extension makes the engines."""
    from flask_sqlalchemy import SQLAlchemy  # noqa: PLC0415 - not for every use

    return type(db)._make_engine is not SQLAlchemy._make_engine


def make_flask_sqlalchemy_engine(
    app: Flask, db: Any, name: str, bind: Mapping[str, Any]
) -> Engine:
    """Make an engine as ``SQLAlchemy.init_app()`` does for a bind."""
    from flask_sqlalchemy import record_queries  # noqa: PLC0415 - the same

    options = {**db._engine_options, **bind}
    options.setdefault("echo", app.config["SQLALCHEMY_ECHO"])
    options.setdefault("echo_pool", app.config["SQLALCHEMY_ECHO"])
    db._apply_driver_defaults(options, app)
    engine: Engine = db._make_engine(name, options, app)
    if app.config["SQLALCHEMY_RECORD_QUERIES"]:
        record_queries._listen(engine)
    return engine


def lite_engine_options(
    app: Flask, db: Any, setting: str, bind: str | URL | dict[str, Any]
) -> dict[str, Any]:
    """Return the options of an engine as Flask-SQLAlchemy-Lite prepares them."""
    from flask_sqlalchemy_lite import _make  # noqa: PLC0415 - it may be missing

    return _make._prepare_engine_options(app, setting, db._engine_options, bind)


# ------------------------------------------------------------------------- drivers

_SECOND_PACKET = 2


def pymysql_socket(connection: Any) -> Any:
    """Return PyMySQL's socket, or None: it has no ``fileno()``.

    Without this, a thread that waits on a hung MySQL server could not be released.
    """
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
