"""Writes that only some servers know: upserts, and DML in CTEs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy import delete, insert, select, update
from sqlalchemy.dialects import mysql, postgresql, sqlite

from tests.operations.catalogue import MARIADB, POSTGRESQL, SQLITE, Section
from tests.operations.models import Author, Book

if TYPE_CHECKING:
    from sqlalchemy import CTE

    from tests.operations.world import World

SECTION = Section("Upserts, and writes inside a `select()`")
operation = SECTION.operation

VALUES = {"name": "author 1", "about": "again"}


@operation("`sqlite.insert().on_conflict_do_nothing()`", on=(SQLITE,))
def sqlite_nothing(w: World) -> object:
    """An `INSERT`, though it may do nothing."""
    made = sqlite.insert(Author).values(**VALUES)
    return w.session.execute(made.on_conflict_do_nothing())


@operation("`sqlite.insert().on_conflict_do_update()`", on=(SQLITE,))
def sqlite_upsert(w: World) -> object:
    """An `INSERT`."""
    made = sqlite.insert(Author).values(**VALUES)
    changed = made.on_conflict_do_update(["name"], set_={"about": "again"})
    return w.session.execute(changed)


@operation("`insert().prefix_with('OR REPLACE')`", on=(SQLITE,))
def sqlite_replace(w: World) -> object:
    """An `INSERT`."""
    return w.session.execute(insert(Author).prefix_with("OR REPLACE"), VALUES)


@operation("`postgresql.insert().on_conflict_do_nothing()`", on=(POSTGRESQL,))
def postgresql_nothing(w: World) -> object:
    """An `INSERT`, though it may do nothing."""
    made = postgresql.insert(Author).values(**VALUES)
    return w.session.execute(made.on_conflict_do_nothing())


@operation(
    "`postgresql.insert().on_conflict_do_update().returning()`", on=(POSTGRESQL,)
)
def postgresql_upsert(w: World) -> object:
    """An `INSERT`, though it returns rows."""
    made = postgresql.insert(Author).values(**VALUES)
    changed = made.on_conflict_do_update(
        index_elements=["name"], set_={"about": "again"}
    )
    return w.session.scalars(changed.returning(Author)).all()


@operation("`mysql.insert().on_duplicate_key_update()`", on=(MARIADB,))
def mariadb_upsert(w: World) -> object:
    """An `INSERT`."""
    made = mysql.insert(Author).values(**VALUES)
    return w.session.execute(made.on_duplicate_key_update(about="again"))


@operation("`insert().prefix_with('IGNORE')`", on=(MARIADB,))
def mariadb_ignore(w: World) -> object:
    """An `INSERT`, though it may do nothing."""
    return w.session.execute(insert(Author).prefix_with("IGNORE"), VALUES)


def _made() -> CTE:
    return insert(Book).values(title="new").returning(Book.id).cte("made")


@operation("`select()` from an `insert().returning().cte()`", on=(POSTGRESQL,))
def select_insert(w: World) -> object:
    """CTEs are checked, and this one writes."""
    return w.session.scalars(select(_made().c.id)).all()


@operation("`select()` from an `update().returning().cte()`", on=(POSTGRESQL,))
def select_update(w: World) -> object:
    """CTEs are checked, and this one writes."""
    changed = update(Book).values(title="new").returning(Book.id).cte("changed")
    return w.session.execute(select(changed)).all()


@operation("`select(Model).join(dml_cte)`", on=(POSTGRESQL,))
def join_insert(w: World) -> object:
    """Joined tables are checked."""
    made = _made()
    return w.session.scalars(select(Author).join(made, made.c.id > Author.id)).all()


@operation("`select().add_cte(delete())`", on=(POSTGRESQL,))
def add_cte(w: World) -> object:
    """An added CTE is checked, though nothing selects from it."""
    gone = delete(Book).where(Book.id == 1).cte("gone")
    return w.session.scalars(select(Author).add_cte(gone)).all()


@operation("`select()` from a CTE over a DML CTE", on=(POSTGRESQL,))
def cte_of_cte(w: World) -> object:
    """CTEs in the `FROM` clause are checked at any depth."""
    outer = select(_made().c.id).cte("outer_cte")
    return w.session.execute(select(outer)).all()


@operation("`union()` of a read and a DML CTE", on=(POSTGRESQL,))
def union_with_insert(w: World) -> object:
    """Every select of a union is judged."""
    both = sa.union_all(select(Author.id), select(_made().c.id))
    return w.session.execute(both).all()


@operation("a DML CTE in a scalar subquery", on=(POSTGRESQL,))
def scalar_subquery(w: World) -> object:
    """Columns that are expressions are checked."""
    number = select(sa.func.max(_made().c.id)).scalar_subquery()
    return w.session.execute(select(number)).all()


@operation("a DML CTE in `where(...in_())`", on=(POSTGRESQL,))
def in_where(w: World) -> object:
    """Seen in the SQL that is about to be sent."""
    inner = select(_made().c.id)
    return w.session.scalars(select(Author).where(Author.id.in_(inner))).all()
