"""Connections and engines in the user's own hands."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from sqlalchemy import insert, inspect, orm, select, text

from tests.operations.catalogue import Section
from tests.operations.models import Author, Book

if TYPE_CHECKING:
    from tests.operations.world import World

SECTION = Section("Connections and engines")
operation = SECTION.operation
INSERT = insert(Book).values(title="new")


@operation("`session.connection()`, then a read")
def session_connection(w: World) -> object:
    """Its purpose is unknown, so it is the primary's."""
    return w.session.connection().execute(select(Author.id)).all()


@operation("`session.connection()`, then a write")
def session_connection_write(w: World) -> object:
    """The same; in `using_slave()` the connection refuses."""
    return w.session.connection().execute(INSERT)


@operation("`session.connection().exec_driver_sql('INSERT ...')`")
def driver_sql(w: World) -> object:
    """The same."""
    sql = "INSERT INTO book (title) VALUES ('new')"
    return w.session.connection().exec_driver_sql(sql)


@operation(
    "`session.connection(bind_arguments={'mapper': Model})`",
)
def mapper_connection(w: World) -> object:
    """The same."""
    connection = w.session.connection(bind_arguments={"mapper": Author.__mapper__})
    return connection.execute(select(Author.id)).all()


@operation("`db.engine.connect()`, then a read")
def engine_read(w: World) -> object:
    """A connection is given before its statements are known: where reads go."""
    with w.engine.connect() as connection:
        return connection.execute(select(Author.id)).all()


@operation("`db.engine.connect()`, then a write")
def engine_write(w: World) -> object:
    """On a replica the connection refuses before anything is sent."""
    with w.engine.connect() as connection:
        return connection.execute(INSERT)


@operation("`db.engines[None].connect()`, then a read")
def engines_read(w: World) -> object:
    """`db.engine` by another name."""
    with w.engines[None].connect() as connection:
        return connection.execute(text("SELECT id FROM author")).all()


@operation("`db.engine.begin()`, then a read")
def begin_read(w: World) -> object:
    """A block that ends with a commit announces a write; `using_slave()` forbids it."""
    with w.engine.begin() as connection:
        return connection.execute(select(Author.id)).all()


@operation("`db.engine.begin()`, then a write")
def begin_write(w: World) -> object:
    """The same."""
    with w.engine.begin() as connection:
        return connection.execute(INSERT)


@operation("`session.connection().connection.cursor()`")
def driver_cursor(w: World) -> object:
    """Its use cannot be observed, so it counts as a write."""
    with closing(w.session.connection().connection.cursor()) as cursor:
        cursor.execute("SELECT id FROM author")
        return cursor.fetchall()


@operation("`db.engine.raw_connection()`")
def raw_connection(w: World) -> object:
    """The same, and it is always the primary's."""
    with closing(w.engine.raw_connection()) as raw:
        cursor = raw.cursor()
        cursor.execute("SELECT id FROM author")
        return cursor.fetchall()


@operation("`db.engine.execution_options(...).connect()`")
def option_engine(w: World) -> object:
    """Another engine, which cannot be routed."""
    engine = w.engine.execution_options(logging_token="report")
    with engine.connect() as connection:
        return connection.execute(select(Author.id)).all()


@operation("`inspect(db.engine).get_table_names()`")
def inspection(w: World) -> object:
    """Reads the catalogue over `db.engine.connect()`."""
    return inspect(w.engine).get_table_names()


@operation("`Session(db.engine)` of SQLAlchemy, then a read")
def plain_session(w: World) -> object:
    """A session that is not routed uses `db.engine.connect()`."""
    with orm.Session(w.engine) as session:
        return session.scalars(select(Author)).all()


@operation("`Session(db.engine)` of SQLAlchemy, then a write")
def plain_session_write(w: World) -> object:
    """The same: on a replica the connection refuses."""
    with orm.Session(w.engine) as session:
        return session.execute(INSERT)


@operation("`db.engines['slave_1'].connect()`, then a read")
def named_replica(w: World) -> object:
    """An explicit server."""
    with w.engines["slave_1"].connect() as connection:
        return connection.execute(select(Author.id)).all()


@operation("`db.engines['slave_1'].connect()`, then a write")
def named_replica_write(w: World) -> object:
    """An explicit server; it refuses, with the driver's error."""
    with w.engines["slave_1"].connect() as connection:
        return connection.execute(INSERT)
