"""The steps: each does one thing to a world and returns what could be seen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, func, insert, select, text, update

from flask_replicated import using_master, using_slave
from tests.stateful.worlds import RoutedWorld

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.stateful.worlds import World


def seen(value: Any) -> Any:
    """Return what can be seen of a result, in values that can be compared."""
    if isinstance(value, list):
        return [seen(item) for item in value]
    if hasattr(value, "title"):
        return ("book", value.id, value.title, value.author_id)
    if hasattr(value, "name"):
        return ("author", value.id, value.name)
    return value


def _loaded(world: World, number: int) -> Any | None:
    """Return one of the objects that the request holds."""
    return world.loaded[number % len(world.loaded)] if world.loaded else None


def _keep(world: World, *found: Any) -> None:
    for item in found:
        if item is not None and not any(item is known for known in world.loaded):
            world.loaded.append(item)


# --- reads --------------------------------------------------------------------


def get(world: World, number: int) -> Any:
    """Get an author by its primary key."""
    author = world.session.get(world.author, number)
    _keep(world, author)
    return seen(author)


def select_all(world: World, number: int) -> Any:
    """Select the books and what they refer to by a join."""
    wanted = select(world.book).order_by(world.book.id)
    if number % 2:
        wanted = wanted.join(world.book.author)
    books = world.session.scalars(wanted).all()
    _keep(world, *books)
    return seen(list(books))


def lazy_load(world: World, number: int) -> Any:
    """Load the books of an author."""
    author = world.session.scalars(
        select(world.author).order_by(world.author.id).limit(1).offset(number % 3)
    ).first()
    if author is None:
        return None
    _keep(world, author, *author.books)
    return seen(list(author.books))


def query_count(world: World, number: int) -> Any:
    """Count with the legacy query."""
    model = world.book if number % 2 else world.author
    return world.session.query(model).count()


def text_read(world: World, number: int) -> Any:
    """Read with a string of SQL."""
    sql = "SELECT id, name FROM author WHERE id >= :n ORDER BY id -- no update"
    rows = world.session.execute(text(sql), {"n": number}).all()
    return [tuple(row) for row in rows]


def core_read(world: World, number: int) -> Any:
    """Read two aggregates with Core."""
    table = world.book.__table__
    wanted = select(func.count(), func.max(table.c.id)).where(table.c.id > number)
    return tuple(world.session.execute(wanted).one())


def union_read(world: World, number: int) -> Any:
    """Read a union of both tables."""
    authors, books = world.author.__table__, world.book.__table__
    both = select(authors.c.id).union_all(select(books.c.id)).order_by("id")
    return list(world.session.scalars(both).all())


def attribute(world: World, number: int) -> Any:
    """Look at an object that the request holds; it may have expired."""
    return seen(_loaded(world, number))


def refresh(world: World, number: int) -> Any:
    """Load an object anew."""
    held = _loaded(world, number)
    if held is not None:
        world.session.refresh(held)
    return seen(held)


def expire(world: World, number: int) -> None:
    """Expire one object, or all."""
    held = _loaded(world, number)
    if number % 3 == 0:
        world.session.expire_all()
    elif held is not None:
        world.session.expire(held)


def master_read(world: World, number: int) -> Any:
    """Read in a block that asks for the primary."""
    with using_master():
        return select_all(world, number)


def slave_read(world: World, number: int) -> Any:
    """Read in a block that asks for a replica."""
    with using_slave():
        return text_read(world, number)


def option_read(world: World, number: int) -> Any:
    """Read with an option that asks for the primary."""
    wanted = select(world.author).order_by(world.author.id)
    options = {"replicated": "master"} if number % 2 else {}
    authors = world.session.scalars(wanted, execution_options=options).all()
    _keep(world, *authors)
    return seen(list(authors))


def locking_read(world: World, number: int) -> Any:
    """Read and lock."""
    wanted = select(world.author).where(world.author.id == number).with_for_update()
    author = world.session.scalars(wanted).first()
    _keep(world, author)
    return seen(author)


def other_session_read(world: World, number: int) -> Any:
    """Read in a second session of the request."""
    with world.db.session.session_factory() as second:
        wanted = select(world.author).order_by(world.author.id)
        return seen(list(second.scalars(wanted).all()))


READING = (
    get,
    select_all,
    lazy_load,
    query_count,
    text_read,
    core_read,
    union_read,
    attribute,
    refresh,
    expire,
    master_read,
    option_read,
    locking_read,
    other_session_read,
)


# --- writes -------------------------------------------------------------------


def add_author(world: World, number: int) -> None:
    """Add an author, with a book now and then."""
    author = world.author(name=f"added {number}")
    if number % 2:
        author.books.append(world.book(title=f"of {number}"))
    world.session.add(author)
    _keep(world, author)


def add_book(world: World, number: int) -> None:
    """Add a book to an author, if there is one."""
    book = world.book(title=f"book {number}")
    book.author = world.session.get(world.author, number)
    world.session.add(book)
    _keep(world, book, book.author)


def modify(world: World, number: int) -> Any:
    """Change an attribute of an object that the request holds."""
    held = _loaded(world, number)
    if held is not None:
        setattr(held, "title" if hasattr(held, "title") else "name", f"m{number}")
    return seen(held)


def read_then_write(world: World, number: int) -> Any:
    """Read an author, and write what was read, plus a little."""
    author = world.session.get(world.author, number)
    if author is not None:
        author.name = f"{author.name[:8]}+{number}"
        _keep(world, author)
    return text_read(world, 0)


def remove(world: World, number: int) -> None:
    """Delete an object that the request holds."""
    held = _loaded(world, number)
    if held is not None and held in world.session:
        world.session.delete(held)


def core_insert(world: World, number: int) -> None:
    """Insert a row whose key may be taken."""
    row = {"id": 1000 + number, "name": f"core {number}"}
    world.session.execute(insert(world.author.__table__).values(**row))


def bulk_insert(world: World, number: int) -> Any:
    """Insert several objects at once."""
    rows = [{"title": f"bulk {n}", "author_id": None} for n in range(number % 3 + 1)]
    if number % 2:
        world.session.execute(insert(world.book), rows)
        return None
    made = world.session.scalars(insert(world.book).returning(world.book), rows).all()
    _keep(world, *made)
    return seen(list(made))


def legacy_bulk(world: World, number: int) -> None:
    """Insert with the legacy bulk methods."""
    if number % 2:
        world.session.bulk_save_objects([world.author(name=f"saved {number}")])
    else:
        world.session.bulk_insert_mappings(world.book, [{"title": f"mapped {number}"}])


def bulk_update(world: World, number: int) -> Any:
    """Update by criteria, in each way of keeping the session's objects right."""
    how = ("evaluate", "fetch", False)[number % 3]
    result = world.session.execute(
        update(world.author).where(world.author.id > number).values(name=f"u{number}"),
        execution_options={"synchronize_session": how},
    )
    return result.rowcount


def bulk_update_by_key(world: World, number: int) -> None:
    """Update one row by its primary key, in bulk."""
    found = world.session.scalars(select(func.min(world.author.id))).one()
    if found is not None:
        rows = [{"id": found, "name": f"key {number}"}]
        world.session.execute(update(world.author), rows)


def bulk_delete(world: World, number: int) -> Any:
    """Delete by criteria."""
    how = ("evaluate", "fetch")[number % 2]
    result = world.session.execute(
        delete(world.book).where(world.book.id % 4 == number % 4),
        execution_options={"synchronize_session": how},
    )
    return result.rowcount


def text_write(world: World, number: int) -> Any:
    """Write with a string of SQL."""
    sql = "  /* select */ UPDATE author SET name = :name WHERE id = :id"
    result = world.session.execute(text(sql), {"name": f"t{number}", "id": number})
    return result.rowcount


def connection_write(world: World, number: int) -> None:
    """Write on the session's connection."""
    table = world.book.__table__
    world.session.connection().execute(insert(table).values(title=f"conn {number}"))


WRITING = (
    add_author,
    add_book,
    modify,
    read_then_write,
    remove,
    core_insert,
    bulk_insert,
    legacy_bulk,
    bulk_update,
    bulk_update_by_key,
    bulk_delete,
    text_write,
    connection_write,
)


def lose(world: World, _number: int) -> None:
    """Lose the replicas here, where there are any."""
    if isinstance(world, RoutedWorld):
        world.mirrored.lose()


# --- transactions -------------------------------------------------------------


def flush(world: World) -> None:
    """Flush."""
    world.session.flush()


def commit(world: World) -> None:
    """Commit everything."""
    world.nested.clear()
    world.session.commit()


def roll_back(world: World) -> None:
    """Roll everything back."""
    world.nested.clear()
    world.session.rollback()


def begin_nested(world: World) -> None:
    """Begin a savepoint."""
    world.nested.append(world.session.begin_nested())


def end_nested(world: World, keep: bool) -> None:
    """Release the innermost savepoint, or roll back to it."""
    nested = world.nested.pop()
    if nested.is_active or not keep:
        nested.commit() if keep else nested.rollback()


def other_session_write(world: World, number: int) -> Any:
    """Write and commit in a second session of the request."""
    with world.db.session.session_factory() as second:
        second.add(world.author(name=f"second {number}"))
        second.commit()
        return text_read(world, 0)


class Abandoned(Exception):  # noqa: N818 - it is no error
    """Raised inside a block to see it rolled back."""


def begin_block(
    world: World, steps: list[tuple[Callable[..., Any], int]], abandon: bool
) -> Any:
    """Take several steps in a block that commits, or is rolled back."""
    results = []
    with world.session.begin():
        for step, number in steps:
            results.append(step(world, number))
        if abandon:
            raise Abandoned
    return results


def nested_block(
    world: World, steps: list[tuple[Callable[..., Any], int]], abandon: bool
) -> Any:
    """Take several steps in a savepoint that is released, or rolled back."""
    results = []
    with world.session.begin_nested():
        for step, number in steps:
            results.append(step(world, number))
        if abandon:
            raise Abandoned
    return results


def outcome(step: Callable[..., Any], world: World, *args: Any) -> tuple[str, Any]:
    """Return what a step returned, or what it raised, with the error."""
    try:
        return ("returned", step(world, *args))
    except Exception as error:  # noqa: BLE001 - both worlds must raise the same
        return ("raised", error)
