"""Writing through the unit of work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import delete, update

from tests.operations.catalogue import Section
from tests.operations.models import Author, Book

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.operations.world import World

SECTION = Section("Writing objects")
operation = SECTION.operation


@operation("`session.add()`, `flush()`")
def add(w: World) -> None:
    """A flush writes."""
    w.session.add(Book(title="new"))
    w.session.flush()


@operation("`session.add_all()`, `flush()`")
def add_all(w: World) -> None:
    """A flush writes."""
    w.session.add_all([Book(title="new"), Book(title="newer")])
    w.session.flush()


@operation("`session.add()`, `commit()`")
def commit(w: World) -> None:
    """A commit flushes first."""
    w.session.add(Book(title="committed"))
    w.session.commit()


@operation("changing an object that was read, `flush()`")
def change(w: World) -> Iterator[None]:
    """The row is updated on the primary, wherever it was read."""
    book = w.one(Book, 1)
    book.title = "changed"
    yield
    w.session.flush()


@operation("`session.delete()` of an object that was read, `flush()`")
def remove(w: World) -> Iterator[None]:
    """The row is deleted on the primary, wherever it was read."""
    book = w.one(Book, 1)
    w.session.delete(book)
    yield
    w.session.flush()


@operation("adding to a relationship, `flush()`")
def cascade(w: World) -> Iterator[None]:
    """The new row is inserted on the primary, wherever its parent was read."""
    author = w.one(Author, 1)
    assert author.books
    author.books.append(Book(title="cascaded"))
    yield
    w.session.flush()


@operation("`session.add()` in `session.begin_nested()`")
def savepoint(w: World) -> None:
    """The savepoint flushes when it ends."""
    with w.session.begin_nested():
        w.session.add(Book(title="nested"))


@operation("`session.flush()` with nothing to write")
def empty_flush(w: World) -> Iterator[None]:
    """Nothing is sent."""
    book = w.one(Book, 1)
    assert book.title
    yield
    w.session.flush()


@operation("`session.bulk_save_objects()`")
def bulk_save(w: World) -> None:
    """The same as a flush."""
    w.session.bulk_save_objects([Book(title="bulk")])


@operation("`session.bulk_insert_mappings()`")
def bulk_insert(w: World) -> None:
    """The same as a flush."""
    w.session.bulk_insert_mappings(Book, [{"title": "bulk"}])


@operation("`session.bulk_update_mappings()`")
def bulk_update(w: World) -> None:
    """The same as a flush."""
    w.session.bulk_update_mappings(Book, [{"id": 1, "title": "bulk"}])


@operation("`session.query(Model).update()`")
def query_update(w: World) -> object:
    """An `UPDATE`."""
    changed = w.session.query(Book).filter(Book.id == 1)
    return changed.update({"title": "queried"})


@operation("`session.query(Model).delete()`")
def query_delete(w: World) -> object:
    """A `DELETE`."""
    return w.session.query(Book).filter(Book.id == 2).delete()


@operation("`update(Model)` with loaded objects")
def update_loaded(w: World) -> Iterator[None]:
    """An `UPDATE`, though the object was read elsewhere."""
    book = w.one(Book, 1)
    assert book.title
    yield
    w.session.execute(update(Book).where(Book.id == 1).values(title="updated"))


@operation("`delete(Model)` with loaded objects")
def delete_loaded(w: World) -> Iterator[None]:
    """A `DELETE`, though the object was read elsewhere."""
    book = w.one(Book, 2)
    assert book.title
    yield
    w.session.execute(delete(Book).where(Book.id == 2))
