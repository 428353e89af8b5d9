"""``insert()``, ``update()`` and ``delete()``, in every form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import delete, func, insert, lambda_stmt, select, text, update

from tests.operations.catalogue import MARIADB, POSTGRESQL, SQLITE, Section
from tests.operations.models import Author, Book, author, book

if TYPE_CHECKING:
    from tests.operations.world import World

SECTION = Section("`insert()`, `update()`, `delete()`")
operation = SECTION.operation
RETURNING = (SQLITE, POSTGRESQL)  # MariaDB has no UPDATE ... RETURNING


@operation("`insert(Model).values()`")
def insert_values(w: World) -> object:
    """An `INSERT`."""
    return w.session.execute(insert(Book).values(title="new"))


@operation("`insert(Model).values([...])`")
def insert_many_values(w: World) -> object:
    """An `INSERT` of several rows."""
    return w.session.execute(insert(Book).values([{"title": "a"}, {"title": "b"}]))


@operation("`session.execute(insert(Model), [...])`")
def insert_parameters(w: World) -> object:
    """An `INSERT`, though SQLAlchemy names no statement for its second step."""
    return w.session.execute(insert(Book), [{"title": "a"}, {"title": "b"}])


@operation("`session.execute(insert(Model), {...})`")
def insert_one_parameter(w: World) -> object:
    """The same with one row."""
    return w.session.execute(insert(Book), {"title": "a"})


@operation("`insert(Model).returning(Model)`")
def insert_returning(w: World) -> object:
    """An `INSERT`, though it returns rows."""
    return w.session.scalars(insert(Book).returning(Book), [{"title": "a"}]).all()


@operation("`insert(Model).from_select()`")
def insert_from_select(w: World) -> object:
    """An `INSERT`, though it reads too."""
    return w.session.execute(insert(Book).from_select(["title"], select(Author.name)))


@operation("`insert(Model)` with SQL expressions")
def insert_expression(w: World) -> object:
    """An `INSERT`, though it reads too."""
    number = select(func.max(Author.id)).scalar_subquery()
    return w.session.execute(insert(Book).values(title="new", author_id=number))


@operation("`update(Model).where().values()`")
def update_where(w: World) -> object:
    """An `UPDATE`."""
    return w.session.execute(update(Book).where(Book.id == 1).values(title="new"))


@operation("`session.execute(update(Model), [...])`, by primary key")
def update_by_key(w: World) -> object:
    """An `UPDATE`, though SQLAlchemy names no statement for its second step."""
    return w.session.execute(update(Book), [{"id": 1, "title": "new"}])


@operation("`update(Model).returning()`", on=RETURNING)
def update_returning(w: World) -> object:
    """An `UPDATE`, though it returns rows."""
    changed = update(Book).where(Book.id == 1).values(title="new")
    return w.session.scalars(changed.returning(Book)).all()


def _update_fetch(w: World) -> object:
    changed = update(Book).where(Book.id == 1).values(title="new")
    return w.session.execute(changed.execution_options(synchronize_session="fetch"))


@operation("`update()` with `synchronize_session='fetch'`", on=RETURNING)
def update_fetch(w: World) -> object:
    """An `UPDATE` that returns the keys."""
    return _update_fetch(w)


@operation("`update()` with `synchronize_session='fetch'`", on=(MARIADB,))
def update_prefetch(w: World) -> object:
    """The keys of an `UPDATE` are fetched where it will run."""
    return _update_fetch(w)


@operation("`update()` with `synchronize_session='evaluate'`")
def update_evaluate(w: World) -> object:
    """An `UPDATE`."""
    changed = update(Book).where(Book.id == 1).values(title="new")
    return w.session.execute(changed.execution_options(synchronize_session="evaluate"))


@operation("`update()` with `synchronize_session=False`")
def update_alone(w: World) -> object:
    """An `UPDATE`."""
    changed = update(Book).where(Book.id == 1).values(title="new")
    return w.session.execute(changed, execution_options={"synchronize_session": False})


@operation("`update()` with a subquery")
def update_subquery(w: World) -> object:
    """An `UPDATE`, though it reads too."""
    number = select(func.max(Author.id)).scalar_subquery()
    changed = update(Book).values(author_id=number)
    return w.session.execute(changed, execution_options={"synchronize_session": False})


@operation("`delete(Model).where()`")
def delete_where(w: World) -> object:
    """A `DELETE`."""
    return w.session.execute(delete(Book).where(Book.id == 1))


@operation("`delete(Model).returning()`")
def delete_returning(w: World) -> object:
    """A `DELETE`, though it returns rows."""
    gone = delete(Book).where(Book.id == 1).returning(Book.id)
    return w.session.execute(gone).all()


@operation("`delete()` with `synchronize_session='fetch'`")
def delete_fetch(w: World) -> object:
    """A `DELETE` that returns the keys."""
    gone = delete(Book).where(Book.id == 1)
    return w.session.execute(gone.execution_options(synchronize_session="fetch"))


@operation("`delete()` with `synchronize_session='evaluate'`")
def delete_evaluate(w: World) -> object:
    """A `DELETE`."""
    gone = delete(Book).where(Book.id == 1)
    return w.session.execute(gone.execution_options(synchronize_session="evaluate"))


@operation("`insert(table)`, `update(table)`, `delete(table)`")
def core_dml(w: World) -> object:
    """A table is routed like a model."""
    w.session.execute(insert(book), [{"title": "a"}, {"title": "b"}])
    w.session.execute(update(book).where(book.c.id == 1).values(title="new"))
    return w.session.execute(delete(book).where(book.c.id == 1))


@operation("`insert()` as a `lambda_stmt()`")
def lambda_insert(w: World) -> object:
    """The statement that the lambda builds is checked."""
    return w.session.execute(lambda_stmt(lambda: insert(book).values(title="new")))


@operation("`select(Model).from_statement(insert().returning())`")
def from_insert(w: World) -> object:
    """The inner statement is checked."""
    made = insert(Book).values(title="new").returning(Book)
    return w.session.scalars(select(Book).from_statement(made)).all()


@operation("`select(Model).from_statement(text('INSERT ...'))`")
def from_text_insert(w: World) -> object:
    """The inner statement is checked."""
    made = text("INSERT INTO book (title) VALUES ('new') RETURNING *")
    return w.session.scalars(select(Book).from_statement(made)).all()


@operation("`insert(table).from_select()` with a CTE")
def insert_cte(w: World) -> object:
    """An `INSERT`."""
    names = select(author.c.name).cte("names")
    made = insert(book).from_select(["title"], select(names.c.name))
    return w.session.execute(made)
