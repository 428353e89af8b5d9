"""What a statement or a model asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import insert, lambda_stmt, orm, select, text, union

from flask_replicated import using_master
from tests.operations.catalogue import Section
from tests.operations.models import Account, Author, Book

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.operations.world import World

SECTION = Section("Statements and models that ask")
operation = SECTION.operation
MASTER = {"replicated": "master"}
SLAVE = {"replicated": "slave"}


@operation("`select().execution_options(replicated='master')`")
def statement_master(w: World) -> object:
    """The statement asks."""
    return w.session.scalars(select(Author).execution_options(**MASTER)).all()


@operation("`session.execute(..., execution_options={'replicated': 'master'})`")
def given_master(w: World) -> object:
    """The caller asks, which is stronger than the statement."""
    chosen = select(Author.id).execution_options(**SLAVE)
    return w.session.execute(chosen, execution_options=MASTER).all()


@operation("`select().execution_options(replicated='slave')`")
def statement_slave(w: World) -> object:
    """The statement asks, like an innermost `using_slave()`."""
    return w.session.scalars(select(Author).execution_options(**SLAVE)).all()


@operation("`text().execution_options(replicated='master')`")
def text_master(w: World) -> object:
    """The same for text."""
    chosen = text("SELECT id FROM author").execution_options(**MASTER)
    return w.session.execute(chosen).all()


@operation("`union().execution_options(replicated='slave')`")
def union_slave(w: World) -> object:
    """The same for a union."""
    both = union(select(Author.id), select(Book.id)).execution_options(**SLAVE)
    return w.session.execute(both).all()


@operation("`lambda_stmt()`, `execution_options={'replicated': 'slave'}`")
def lambda_slave(w: World) -> object:
    """The same for a lambda."""
    chosen = lambda_stmt(lambda: select(Author))
    return w.session.scalars(chosen, execution_options=SLAVE).all()


@operation("`Query.execution_options(replicated='master')`")
def query_master(w: World) -> object:
    """The same for a query."""
    return w.session.query(Author).execution_options(**MASTER).all()


@operation("`session.get(..., execution_options={'replicated': 'master'})`")
def get_master(w: World) -> object:
    """The same by primary key."""
    return w.session.get(Author, 1, execution_options=MASTER)


@operation("`execution_options(replicated='master')`, then a lazy load")
def lazy_master(w: World) -> Iterator[None]:
    """What is loaded later asks for what its object asked for."""
    chosen = select(Author).where(Author.id == 1).execution_options(**MASTER)
    author = w.session.scalars(chosen).one()
    yield
    assert author.books


@operation("`execution_options(replicated='slave')`, then a lazy load")
def lazy_slave(w: World) -> Iterator[None]:
    """The same."""
    chosen = select(Author).where(Author.id == 1).execution_options(**SLAVE)
    author = w.session.scalars(chosen).one()
    yield
    assert author.books


@operation(
    "`execution_options(replicated='master')` with `selectinload()`",
)
def selectin_master(w: World) -> Iterator[None]:
    """The same for its second read, also if the query has run without it before."""
    chosen = select(Author).options(orm.selectinload(Author.books))
    with using_master():
        w.session.scalars(chosen).all()
    w.session.expunge_all()
    yield
    w.session.scalars(chosen, execution_options=MASTER).all()


@operation("`execution_options(replicated='slave')` with pending objects")
def pending_slave(w: World) -> Iterator[None]:
    """The flush comes first and goes to the primary; only the statement asks."""
    w.session.add(Book(title="pending"))
    yield
    w.session.scalars(select(Author).execution_options(**SLAVE)).all()


@operation("`insert().execution_options(replicated='slave')`")
def insert_slave(w: World) -> object:
    """A write is never sent to a replica."""
    made = insert(Book).values(title="new").execution_options(**SLAVE)
    return w.session.execute(made)


@operation("`with_for_update()`, `execution_options(replicated='slave')`")
def lock_slave(w: World) -> object:
    """A lock is never asked of a replica."""
    locked = select(Book).with_for_update().execution_options(**SLAVE)
    return w.session.scalars(locked).all()


@operation("a model with `__replicated__ = 'master'`")
def model_master(w: World) -> object:
    """The model asks."""
    return w.session.scalars(select(Account)).all()


@operation("`session.get()` of such a model")
def model_get(w: World) -> object:
    """The model asks."""
    return w.session.get(Account, 1)


@operation("a lazy load of such a model")
def model_lazy(w: World) -> Iterator[None]:
    """The model asks, whatever its owner was loaded from."""
    author = w.one(Author, 1)
    yield
    assert author.account


@operation("`selectinload()` of such a model, its owner loaded")
def model_selectin(w: World) -> Iterator[None]:
    """The second read is one of that model."""
    chosen = select(Author).options(orm.selectinload(Author.account))
    yield
    w.session.scalars(chosen).all()


@operation("`select(Owner).join(Owner.account)`")
def model_join(w: World) -> object:
    """Its table is seen in the SQL that is about to be sent."""
    return w.session.scalars(select(Author).join(Author.account)).all()


@operation("`select(Other, Model)`, such a model in second place")
def model_second(w: World) -> object:
    """Its table is seen in the SQL that is about to be sent."""
    both = select(Author, Account).where(Account.author_id == Author.id)
    return w.session.execute(both).all()


@operation("`joinedload()` of such a model")
def model_joined(w: World) -> object:
    """Its table is seen in the SQL that is about to be sent."""
    chosen = select(Author).options(orm.joinedload(Author.account))
    return w.session.scalars(chosen).all()


@operation("`select(Account.__table__)`, the table of such a model")
def model_table(w: World) -> object:
    """Seen by its name."""
    return w.session.execute(select(Account.__table__)).all()


@operation("a flush of such a model")
def model_flush(w: World) -> None:
    """A flush writes."""
    w.session.add(Account(balance=0, author_id=2))
    w.session.flush()


@operation("`text()` that names the table of such a model")
def model_text(w: World) -> object:
    """Seen by its name."""
    return w.text("SELECT count(*) FROM account")


@operation("such a table in a subquery")
def model_subquery(w: World) -> object:
    """Seen by its name."""
    paid = select(Account.author_id).where(Account.id > 0)
    return w.session.scalars(select(Author).where(Author.id.in_(paid))).all()


@operation("`db.engine.connect()`, then a read of such a table")
def model_core(w: World) -> object:
    """A connection cannot change servers; the error names the ways out."""
    with w.engine.connect() as connection:
        return connection.execute(select(Account.__table__)).all()
