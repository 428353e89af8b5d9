"""Reading tables without mapped classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy import func, select, text

from tests.operations.catalogue import POSTGRESQL, SQLITE, Section
from tests.operations.models import author, book

if TYPE_CHECKING:
    from tests.operations.world import World

SECTION = Section("Reading tables and expressions")
operation = SECTION.operation


@operation("`session.execute(select(table))`")
def select_table(w: World) -> object:
    """A table is routed like a model."""
    return w.session.execute(select(author)).all()


@operation("`select(table).select_from(join)`")
def core_join(w: World) -> object:
    """The `FROM` clause is checked; this one only reads."""
    joined = author.outerjoin(book, book.c.author_id == author.c.id)
    return w.session.execute(select(author.c.id).select_from(joined)).all()


@operation("`select(table).subquery()`, `.lateral()`, `.alias()`")
def from_clauses(w: World) -> object:
    """All of them only read."""
    inner = select(author.c.id).subquery()
    other = author.alias()
    chosen = select(inner.c.id, other.c.id).where(inner.c.id == other.c.id)
    return w.session.execute(chosen).all()


@operation("`union()`, `intersect()`, `except_()` of tables")
def compound(w: World) -> object:
    """Every select in it only reads."""
    both = sa.union_all(select(author.c.id), select(book.c.id))
    return w.session.execute(both).all()


@operation("`select()` of a `case()`, a window function, a literal")
def expressions(w: World) -> object:
    """Expressions only read."""
    number = func.row_number().over(order_by=author.c.id)
    word = sa.case((author.c.id == 1, "one"), else_="more")
    return w.session.execute(select(number, word, sa.literal(1))).all()


@operation("`select(literal_column())`, `select(text())`")
def literal(w: World) -> object:
    """Their text is searched for functions that write."""
    return w.session.execute(
        select(sa.literal_column("lower(name)"), text("id")).select_from(author)
    ).all()


@operation("`values().select()`", on=(POSTGRESQL,))
def values(w: World) -> object:
    """Rows that the statement brings along."""
    rows = sa.values(sa.column("n", sa.Integer), name="v").data([(1,), (2,)])
    return w.session.execute(select(rows)).all()


@operation("`select(func.json_each().table_valued())`", on=(SQLITE,))
def table_valued(w: World) -> object:
    """A function as a table."""
    rows = func.json_each("[1,2]").table_valued("value")
    return w.session.execute(select(rows.c.value)).all()


@operation("`text().columns()`")
def text_columns(w: World) -> object:
    """The text is checked."""
    chosen = text("SELECT id FROM author").columns(sa.column("id", sa.Integer))
    return w.session.execute(chosen).all()


@operation("`select()` from `text().columns().subquery()`")
def text_subquery(w: World) -> object:
    """The text is checked, within the `FROM` clause too."""
    inner = text("SELECT id FROM author").columns(sa.column("id", sa.Integer))
    return w.session.execute(select(inner.subquery())).all()
