"""Loading what belongs to an object."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import orm, select

from tests.operations.catalogue import Section
from tests.operations.models import Author, Book

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.operations.world import World

SECTION = Section("Loading attributes and relationships")
operation = SECTION.operation


@operation("a lazy collection")
def lazy_collection(w: World) -> Iterator[None]:
    """Emits a `Select`, judged when it is emitted."""
    author = w.one(Author, 1)
    yield
    assert author.books


@operation("a lazy many-to-one")
def lazy_reference(w: World) -> Iterator[None]:
    """Emits a `Select`, judged when it is emitted."""
    book = w.one(Book, 1)
    yield
    assert book.author


@operation("`selectinload()`")
def selectin(w: World) -> object:
    """Two reads."""
    chosen = select(Author).options(orm.selectinload(Author.books))
    return w.session.scalars(chosen).all()


@operation("`joinedload()`")
def joined(w: World) -> object:
    """One read."""
    chosen = select(Author).options(orm.joinedload(Author.books))
    return w.session.scalars(chosen).unique().all()


@operation("`subqueryload()`")
def subquery(w: World) -> object:
    """Two reads."""
    chosen = select(Author).options(orm.subqueryload(Author.books))
    return w.session.scalars(chosen).all()


@operation("`immediateload()`")
def immediate(w: World) -> object:
    """Several reads."""
    chosen = select(Author).options(orm.immediateload(Author.books))
    return w.session.scalars(chosen).all()


@operation("`contains_eager()`")
def contains_eager(w: World) -> object:
    """One read."""
    chosen = select(Author).join(Author.books)
    eager = chosen.options(orm.contains_eager(Author.books))
    return w.session.scalars(eager).unique().all()


@operation("a deferred column")
def deferred(w: World) -> Iterator[None]:
    """Emits a `Select`, judged when it is emitted."""
    author = w.one(Author, 1)
    yield
    assert author.about


@operation("`session.refresh(object)`")
def refresh(w: World) -> Iterator[None]:
    """Emits a `Select`."""
    author = w.one(Author, 1)
    yield
    w.session.refresh(author)


@operation("an expired attribute, after `session.expire()`")
def expired(w: World) -> Iterator[None]:
    """Emits a `Select`, judged when it is emitted."""
    author = w.one(Author, 1)
    w.session.expire(author)
    yield
    assert author.name


@operation("an attribute that `commit()` has expired")
def committed(w: World) -> Iterator[None]:
    """A commit of reads alone changes nothing."""
    author = w.one(Author, 1)
    w.session.commit()
    yield
    assert author.name


@operation("`session.merge()` of an unchanged object")
def merge(w: World) -> object:
    """Reads by primary key and finds nothing to change."""
    return w.session.merge(Author(id=1, name="author 1"))


@operation("`with_loader_criteria()`")
def loader_criteria(w: World) -> object:
    """One more criterion."""
    option = orm.with_loader_criteria(Book, Book.id == 1)
    return w.session.scalars(select(Book).options(option)).all()
