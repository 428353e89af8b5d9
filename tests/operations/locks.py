"""Reads that lock."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy import orm, select

from tests.operations.catalogue import MARIADB, POSTGRESQL, SQLITE, Section
from tests.operations.models import Author, Book

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.operations.world import World

SECTION = Section("Reads that lock")
operation = SECTION.operation


@operation("`select().with_for_update()`")
def for_update(w: World) -> object:
    """A lock means something on the primary only."""
    return w.session.scalars(select(Author).with_for_update()).all()


@operation("`with_for_update(read=True)`")
def for_share(w: World) -> object:
    """A shared lock is a lock."""
    return w.session.scalars(select(Author).with_for_update(read=True)).all()


@operation("`with_for_update(nowait=True)`")
def nowait(w: World) -> object:
    """The same."""
    return w.session.scalars(select(Author).with_for_update(nowait=True)).all()


@operation("`with_for_update(skip_locked=True)`")
def skip_locked(w: World) -> object:
    """The same: a queue is processed on the primary."""
    locked = select(Author).limit(1).with_for_update(skip_locked=True)
    return w.session.scalars(locked).all()


@operation("`with_for_update(of=Model)`")
def of_model(w: World) -> object:
    """The same."""
    locked = select(Author).join(Author.books).with_for_update(of=Author)
    return w.session.scalars(locked).all()


@operation("`with_for_update(key_share=True)`")
def key_share(w: World) -> object:
    """The same."""
    locked = select(Author).with_for_update(key_share=True)
    return w.session.scalars(locked).all()


@operation("`Query.with_for_update()`")
def query(w: World) -> object:
    """The same."""
    return w.session.query(Author).with_for_update().all()


@operation("`session.get(..., with_for_update=True)`")
def get(w: World) -> object:
    """The same."""
    return w.session.get(Author, 1, with_for_update=True)


@operation("`session.refresh(..., with_for_update=True)`")
def refresh(w: World) -> Iterator[None]:
    """The same, though the object was read elsewhere."""
    author = w.one(Author, 1)
    yield
    w.session.refresh(author, with_for_update=True)


@operation("`select(table).with_for_update()`")
def core(w: World) -> object:
    """A table is routed like a model."""
    return w.session.execute(select(Author.__table__).with_for_update()).all()


@operation("a lock in a subquery in `FROM`")
def subquery(w: World) -> object:
    """The `FROM` clause is checked."""
    inner = select(Author.id).with_for_update().subquery()
    return w.session.execute(select(inner)).all()


@operation("a lock in a CTE")
def cte(w: World) -> object:
    """CTEs are checked."""
    inner = select(Author.id).limit(1).with_for_update(skip_locked=True).cte()
    return w.session.execute(select(inner)).all()


@operation("a lock in a joined subquery")
def joined(w: World) -> object:
    """Joined tables are checked."""
    inner = select(Author.id).with_for_update().subquery()
    return w.session.scalars(select(Book).join(inner, inner.c.id == Book.id)).all()


@operation("a lock in an aliased subquery")
def aliased(w: World) -> object:
    """A mapped alias of a subquery is checked like the subquery."""
    inner = select(Author).with_for_update().subquery()
    return w.session.scalars(select(orm.aliased(Author, inner))).all()


@operation("a lock in a scalar subquery")
def scalar(w: World) -> object:
    """Columns that are expressions are checked."""
    inner = select(Author.id).limit(1).with_for_update().scalar_subquery()
    return w.session.execute(select(inner)).all()


@operation("a lock in one select of a `union_all()`", on=(SQLITE, MARIADB))
def union(w: World) -> object:
    """Every select of a union is judged."""
    both = sa.union_all(
        select(Author.id), select(Book.id).with_for_update().subquery().select()
    )
    return w.session.execute(both).all()


@operation("a lock in `where(...in_())`", on=(POSTGRESQL, MARIADB))
def deep(w: World) -> object:
    """Seen in the SQL that is about to be sent."""
    inner = select(Author.id).limit(1).with_for_update().subquery()
    chosen = select(Book).where(Book.author_id.in_(select(inner.c.id)))
    return w.session.scalars(chosen).all()
