"""What views do. Each is given the number of its request, to do nothing twice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from flask import Response, abort, stream_with_context
from sqlalchemy import func, orm, select, text

from flask_replicated import (
    changes_database,
    use_master_database,
    use_slave_database,
    using_master,
    using_slave,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .shop import Shop

__all__ = ["DECORATORS", "VIEWS"]

LOCAL: Final = text("SELECT count(*) FROM entry WHERE nextval('a') = 1")


def read(shop: Shop, number: int) -> Any:
    """Read twice."""
    return [*shop.texts(), *shop.texts(), f"{number}"]


def write(shop: Shop, number: int) -> Any:
    """Read, commit, and read again."""
    before = shop.texts()
    shop.write(number)
    return [*before, *shop.texts()]


def fail(shop: Shop, number: int) -> Any:
    """Raise an error after a read."""
    shop.texts()
    raise ValueError(number)


def fail_flushed(shop: Shop, number: int) -> Any:
    """Raise an error between a flush and its commit."""
    shop.db.session.add(shop.entry(text=f"{number}"))
    shop.db.session.flush()
    raise ValueError(number)


def fail_in_sql(shop: Shop, number: int) -> Any:
    """Send what no server understands."""
    return shop.db.session.scalar(text(f"SELECT {number} FROM nowhere_{number}"))


def refuse(shop: Shop, number: int) -> Any:
    """Read, then turn the visitor away."""
    shop.texts()
    abort(403, f"{number}")


def forbidden_write(shop: Shop, number: int) -> Any:
    """Write where only a replica may serve."""
    with using_slave():
        shop.write(number)


def stream(shop: Shop, number: int) -> Any:
    """Read while the response is on its way."""

    def rows() -> Iterator[str]:
        for _ in range(3):
            yield from shop.texts()

    return Response(stream_with_context(rows()))


def stream_block(shop: Shop, number: int) -> Any:
    """Stream from inside a block, over a cursor that stays open."""

    def rows() -> Iterator[str]:
        with using_slave():
            entries = select(shop.entry).execution_options(yield_per=2)
            for entry in shop.db.session.scalars(entries):
                yield entry.text

    return Response(stream_with_context(rows()))


def abandon(shop: Shop, number: int) -> Any:
    """Open a generator in a block and never finish it."""

    def rows() -> Iterator[str]:
        with using_master() if number % 2 else using_slave():
            yield from shop.texts()

    return next(rows())


def nested(shop: Shop, number: int) -> Any:
    """Use sessions of application contexts inside each other."""
    found = shop.texts()
    with shop.app.app_context(), shop.app.app_context():
        found += shop.texts()
        if number % 3 == 0:
            shop.write(number)
    return found + shop.texts()


def raw_text(shop: Shop, number: int) -> Any:
    """Execute SQL that nobody has sent before."""
    found: list[Any] = []
    for text_number in range(4 * number, 4 * number + 4):
        sql = f"SELECT text, {text_number} FROM entry LIMIT 3"
        found += shop.db.session.execute(text(sql)).all()
    return f"{found}"


def core_select(shop: Shop, number: int) -> Any:
    """Execute constructs that nobody has built before."""
    for column_number in range(8 * number, 8 * number + 8):
        literal: Any = sa.literal_column(f"{column_number}")
        column = literal.label(f"label_{column_number}")
        table = sa.table("entry", sa.column("id"), sa.column(f"text_{number}"))
        shop.db.session.execute(select(table.c.id, column)).first()
    return f"{number}"


def orm_select(shop: Shop, number: int) -> Any:
    """Read by way of an alias that nobody has named before."""
    entry = orm.aliased(shop.entry, name=f"entry_{number}")
    labelled = select(entry, func.length(entry.text).label(f"length_{number}"))
    return str(shop.db.session.execute(labelled.limit(1)).first())


def own_tables(shop: Shop, number: int) -> Any:
    """Read from a table object of a metadata of its own, of another engine option."""
    metadata = sa.MetaData()
    table = sa.Table("entry", metadata, sa.Column("id", sa.Integer))
    options = shop.db.engine.execution_options(number=number)
    with options.connect() as connection:
        connection.execute(select(func.count()).select_from(table))
    return str(shop.db.session.scalar(select(func.count()).select_from(table)))


def union(shop: Shop, number: int) -> Any:
    """Execute a compound of selects, and a statement that chooses its server."""
    both = select(sa.literal(number)).union(select(shop.entry.id))
    role = "slave" if number % 2 else "master"
    chosen = text(f"SELECT {number}").execution_options(replicated=role)
    return f"{shop.db.session.scalar(both)} {shop.db.session.scalar(chosen)}"


def connection(shop: Shop, number: int) -> Any:
    """Use a Core connection, and one of the session's."""
    with shop.db.engine.connect() as core:
        core.execute(text(f"SELECT {number}"))
    with using_slave():
        shop.db.session.connection().execute(text("SELECT 1"))
    return f"{shop.db.session.connection().scalar(text('SELECT 1'))}"


def forget(shop: Shop, number: int) -> Any:
    """Open a Core connection in a block, and close neither."""
    using_slave().__enter__()
    core = shop.db.engine.connect()
    return f"{core.scalar(text(f'SELECT {number}'))}"


def hidden_write(shop: Shop, number: int) -> Any:
    """Write by a function that is called deep inside a read."""
    deep = select(func.count()).where(sa.exists(text("1 WHERE nextval('a') = 1")))
    return f"{shop.db.session.scalar(deep)} {shop.db.session.scalar(LOCAL)}"


def savepoints(shop: Shop, number: int) -> Any:
    """Read inside savepoints, one of which is rolled back."""
    with shop.db.session.begin_nested():
        shop.texts()
    point = shop.db.session.begin_nested()
    shop.db.session.add(shop.entry(text=f"{number}"))
    point.rollback()
    return shop.texts()


def dml(shop: Shop, number: int) -> Any:
    """Change rows by statements, and read on in the same transaction."""
    session, entry = shop.db.session, shop.entry
    newest = session.scalar(select(func.max(entry.id)))
    session.execute(sa.update(entry).where(entry.id == newest).values(text="changed"))
    session.execute(sa.insert(entry), [{"text": f"{number}"}, {"text": "second"}])
    session.execute(sa.delete(entry).where(entry.id > newest))
    found = shop.texts()
    session.commit() if number % 2 else session.rollback()
    return found


async def asynchronous(shop: Shop, number: int) -> Any:
    """Read in a view that is a coroutine."""
    with using_slave():
        return [*shop.texts(), f"{number}"]


def marked_changes(shop: Shop, number: int) -> Any:
    """Write in a GET that says so."""
    return write(shop, number)


def marked_master(shop: Shop, number: int) -> Any:
    """Read from the primary."""
    return read(shop, number)


def marked_slave(shop: Shop, number: int) -> Any:
    """Read in a POST."""
    return read(shop, number)


DECORATORS: Final[dict[str, Callable[..., Any]]] = {
    "marked_changes": changes_database,
    "marked_master": use_master_database,
    "marked_slave": use_slave_database,
}
VIEWS: Final[dict[str, Callable[[Shop, int], Any]]] = {
    view.__name__: view
    for view in (
        read,
        write,
        fail,
        fail_flushed,
        fail_in_sql,
        refuse,
        forbidden_write,
        stream,
        stream_block,
        abandon,
        nested,
        raw_text,
        core_select,
        orm_select,
        own_tables,
        union,
        connection,
        forget,
        hidden_write,
        savepoints,
        dml,
        asynchronous,
        marked_changes,
        marked_master,
        marked_slave,
    )
}
