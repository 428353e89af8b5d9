"""Reading through a session."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy import func, lambda_stmt, orm, select, text

from tests.operations.catalogue import Section
from tests.operations.models import Author, Book, db

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.operations.world import World

SECTION = Section("Reading through a session")
operation = SECTION.operation


@operation("`session.scalars(select(Model))`")
def select_models(w: World) -> object:
    """A `Select` that neither locks nor writes only reads."""
    return w.session.scalars(select(Author)).all()


@operation("`session.execute(select(Model.column))`")
def select_columns(w: World) -> object:
    """Columns make no difference."""
    return w.session.execute(select(Author.id, Author.name)).all()


@operation("`session.scalar(select(func.count()))`")
def count(w: World) -> object:
    """Functions that are not known to write only read."""
    return w.session.scalar(select(func.count()).select_from(Author))


@operation("`session.scalar(func.now())`")
def bare_function(w: World) -> object:
    """The same, without a `Select` around it."""
    return w.session.scalar(func.current_timestamp())


@operation("`session.get(Model, key)`")
def get(w: World) -> object:
    """Emits a `Select`."""
    return w.session.get(Author, 1)


@operation("`session.get_one(Model, key)`")
def get_one(w: World) -> object:
    """Emits a `Select`."""
    # Sessions have it since SQLAlchemy 2.0.22.
    return getattr(w.session, "get_one", w.one)(Author, 1)


@operation("`session.query(Model)`")
def query(w: World) -> object:
    """A `Query` emits a `Select`."""
    return w.session.query(Author).filter(Author.id == 1).all()


@operation("`session.query(Model).count()`, `.exists()`")
def query_count(w: World) -> object:
    """A `Query` emits a `Select`."""
    exists = w.session.query(Author).exists()
    return w.session.query(Author).count(), w.session.query(exists).scalar()


@operation("`Model.query`")
def model_query(w: World) -> object:
    """Flask-SQLAlchemy's `Query` is no different."""
    return Author.query.order_by(Author.id).first()


@operation("`db.paginate(select)`")
def paginate(w: World) -> object:
    """Two reads."""
    return db.paginate(select(Author), page=1, per_page=1).total


@operation("`db.get_or_404()`, `db.first_or_404()`")
def or_404(w: World) -> object:
    """A read, and a 404 if it finds nothing."""
    return db.get_or_404(Author, 1), db.first_or_404(select(Author))


@operation("`select().join()`")
def join(w: World) -> object:
    """Joined tables are checked, too."""
    return w.session.execute(select(Author, Book).join(Author.books)).all()


@operation("`select()` of an alias")
def alias(w: World) -> object:
    """Another name for a table."""
    return w.session.scalars(select(orm.aliased(Author))).all()


@operation("`select()` from a subquery")
def subquery(w: World) -> object:
    """A `FROM` clause is checked; this one only reads."""
    inner = select(Author.id).subquery()
    return w.session.execute(select(inner.c.id)).all()


@operation("`select()` with a scalar subquery, `exists()`, `in_(select())`")
def nested(w: World) -> object:
    """Reads within a read."""
    books = select(func.count(Book.id)).where(Book.author_id == Author.id)
    chosen = select(Author.id, books.scalar_subquery()).where(
        select(Book.id).where(Book.author_id == Author.id).exists(),
        Author.id.in_(select(Book.author_id)),
    )
    return w.session.execute(chosen).all()


@operation("`select()` from a CTE, also a recursive one")
def cte(w: World) -> object:
    """A CTE that reads is a read."""
    numbers = select(sa.literal(1).label("n")).cte("numbers", recursive=True)
    more = select(numbers.c.n + 1).where(numbers.c.n < 3)
    return w.session.execute(select(numbers.union_all(more).c.n)).all()


@operation("`union()`, `union_all()` of two selects")
def union(w: World) -> object:
    """Every select in it only reads."""
    both = sa.union(select(Author.id), select(Book.id))
    return w.session.execute(both).all()


@operation("`select(Model).from_statement(union)`")
def from_union(w: World) -> object:
    """The inner statement is checked."""
    both = sa.union(select(Author), select(Author))
    return w.session.scalars(select(Author).from_statement(both)).all()


@operation("`select(Model).from_statement(text)`")
def from_text(w: World) -> object:
    """The text is checked."""
    inner = text("SELECT * FROM author")
    return w.session.scalars(select(Author).from_statement(inner)).all()


@operation("`lambda_stmt()`")
def lambda_statement(w: World) -> object:
    """The statement that the lambda builds is checked."""
    return w.session.scalars(lambda_stmt(lambda: select(Author))).all()


@operation("`execution_options(yield_per=...)`")
def yield_per(w: World) -> object:
    """A read in portions stays on one connection."""
    streamed = select(Author).execution_options(yield_per=1)
    return list(w.session.scalars(streamed))


@operation("`execution_options(stream_results=True)`")
def stream(w: World) -> object:
    """A read through a server-side cursor, where the driver has one."""
    return w.session.execute(
        select(Author.id), execution_options={"stream_results": True}
    ).all()


@operation("a read in `session.begin_nested()`")
def savepoint(w: World) -> object:
    """A savepoint by itself changes nothing."""
    with w.session.begin_nested():
        return w.session.scalars(select(Author)).all()


@operation("the same after a read in its transaction")
def later_savepoint(w: World) -> Iterator[None]:
    """The savepoint is set where the transaction has read."""
    w.session.scalars(select(Author)).all()
    yield
    with w.session.begin_nested():
        w.session.scalars(select(Author)).all()


@operation("a read that flushes pending objects first")
def autoflush(w: World) -> Iterator[None]:
    """The flush writes, so the read that follows sees it on the primary."""
    w.session.add(Book(title="pending"))
    yield
    w.session.scalars(select(Book.title)).all()


@operation("`session.no_autoflush` with pending objects")
def no_autoflush(w: World) -> Iterator[None]:
    """Nothing is flushed, so this is a read like any other."""
    w.session.add(Book(title="pending"))
    yield
    with w.session.no_autoflush:
        w.session.scalars(select(Book.title)).all()
