"""Models of other binds, and binds that are named."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import insert, select

from tests.operations.catalogue import Section
from tests.operations.models import Author, Book, Draft, Visit

if TYPE_CHECKING:
    from tests.operations.world import World

SECTION = Section("Other binds")
operation = SECTION.operation
INSERT = insert(Book).values(title="new")


@operation("`bind_arguments={'bind': db.engines['slave_1']}`, a read")
def named_replica(w: World) -> object:
    """An explicit server."""
    bind = {"bind": w.engines["slave_1"]}
    return w.session.scalars(select(Author), bind_arguments=bind).all()


@operation("`bind_arguments={'bind': db.engines['slave_1']}`, a write")
def named_replica_write(w: World) -> object:
    """An explicit server; it refuses, with the driver's error."""
    bind = {"bind": w.engines["slave_1"]}
    return w.session.execute(INSERT, bind_arguments=bind)


@operation("`bind_arguments={'bind': db.engine}`, a read")
def named_default(w: World) -> object:
    """`db.engine` stands for all the servers of the default bind."""
    bind = {"bind": w.engine}
    return w.session.scalars(select(Author), bind_arguments=bind).all()


@operation("`bind_arguments={'bind': db.engine}`, a write")
def named_default_write(w: World) -> object:
    """`db.engine` stands for all the servers of the default bind."""
    return w.session.execute(INSERT, bind_arguments={"bind": w.engine})


@operation("reading a model whose `__bind_key__` has replicas")
def read_analytics(w: World) -> object:
    """Routed as usual, over its bind's own replicas."""
    return w.session.scalars(select(Visit)).all()


@operation("writing a model whose `__bind_key__` has replicas")
def write_analytics(w: World) -> None:
    """Its bind's own primary; the latch holds for all binds of the request."""
    w.session.add(Visit(page="/"))
    w.session.flush()


@operation("`insert(table)` of a bind that has replicas")
def insert_analytics(w: World) -> object:
    """The table's bind key is known too."""
    return w.session.execute(insert(Visit.__table__).values(page="/"))


@operation("`db.engines['analytics'].connect()`, a read")
def connect_analytics(w: World) -> object:
    """As `db.engine.connect()`, over its bind's own replicas."""
    with w.engines["analytics"].connect() as connection:
        return connection.execute(select(Visit.id)).all()


@operation("reading a model whose `__bind_key__` has no replicas")
def read_drafts(w: World) -> object:
    """Not routed by this package."""
    return w.session.scalars(select(Draft)).all()


@operation("writing a model whose `__bind_key__` has no replicas")
def write_drafts(w: World) -> None:
    """Not routed by this package: it neither latches nor pins."""
    w.session.add(Draft(text="new"))
    w.session.flush()


@operation(
    "`insert(Model)` whose `__bind_key__` has no replicas",
)
def insert_drafts(w: World) -> object:
    """The same."""
    return w.session.execute(insert(Draft).values(text="new"))
