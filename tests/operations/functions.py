"""Functions with side effects."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy import func, select

from tests.operations.catalogue import MARIADB, POSTGRESQL, SERVERS, Section
from tests.operations.hidden import hidden_write
from tests.operations.models import Author, Book

if TYPE_CHECKING:
    from tests.operations.world import World

SECTION = Section("Functions that write or lock")
operation = SECTION.operation
BOTH = (POSTGRESQL, MARIADB)
NUMBERS = sa.Sequence("numbers")


@operation("`select(func.nextval())`", on=(POSTGRESQL,))
def nextval(w: World) -> object:
    """A function that is known to write."""
    return w.session.scalar(select(func.nextval("numbers")))


@operation("`select(Sequence.next_value())`", on=BOTH)
def next_value(w: World) -> object:
    """A sequence counts on the primary."""
    return w.session.scalar(select(NUMBERS.next_value()))


@operation("`session.scalar(Sequence)`", on=BOTH)
def sequence(w: World) -> object:
    """A sequence counts on the primary."""
    return w.session.scalar(NUMBERS)


@operation("`session.scalar(func.nextval())`", on=(POSTGRESQL,))
def bare(w: World) -> object:
    """A function needs no `select()` around it."""
    return w.session.scalar(func.nextval("numbers"))


@operation("`func.setval()`", on=(POSTGRESQL,))
def setval(w: World) -> object:
    """A function that is known to write."""
    return w.session.scalar(select(func.setval("numbers", 100)))


@operation("`func.nextval()` in an expression", on=(POSTGRESQL,))
def expression(w: World) -> object:
    """Columns that are expressions are checked."""
    number = func.nextval("numbers") + 1
    return w.session.scalar(select(sa.func.coalesce(number, 1).label("n")))


@operation("`literal_column(\"nextval('numbers')\")`", on=(POSTGRESQL,))
def literal(w: World) -> object:
    """Its text is searched for functions."""
    return w.session.scalar(select(sa.literal_column("nextval('numbers')")))


SECTION.text("SELECT nextval('numbers')", "Text is searched too.", on=(POSTGRESQL,))
SECTION.text("SELECT 'nextval(''numbers'')'", "Quoted text is skipped.", on=SERVERS)


@operation("`func.pg_advisory_xact_lock()`", on=(POSTGRESQL,))
def advisory(w: World) -> object:
    """A lock that others must meet is the primary's."""
    return w.session.execute(select(func.pg_advisory_xact_lock(1))).all()


@operation("`func.pg_try_advisory_xact_lock()`", on=(POSTGRESQL,))
def try_advisory(w: World) -> object:
    """A lock that others must meet is the primary's."""
    return w.session.scalar(select(func.pg_try_advisory_xact_lock(1)))


@operation("`func.get_lock()`, `func.release_lock()`", on=(MARIADB,))
def get_lock(w: World) -> object:
    """A lock that others must meet is the primary's."""
    taken = w.session.scalar(select(func.get_lock("a", 0)))
    return taken, w.session.scalar(select(func.release_lock("a")))


@operation("`func.last_insert_id()`", on=(MARIADB,))
def last_insert_id(w: World) -> object:
    """Reports a write of this connection."""
    return w.session.scalar(select(func.last_insert_id()))


@operation("`func.pg_notify()`", on=(POSTGRESQL,))
def notify(w: World) -> object:
    """Only the primary can notify."""
    return w.session.execute(select(func.pg_notify("news", "x"))).all()


@operation("`func.set_config()`", on=(POSTGRESQL,))
def set_config(w: World) -> object:
    """Set on the primary, where writes may follow."""
    return w.session.scalar(select(func.set_config("my.name", "x", True)))


@operation("a function named in `REPLICATED_WRITE_FUNCTIONS`")
def declared(w: World) -> object:
    """Named, so it is known to write."""
    return w.session.scalar(select(func.declared()))


SECTION.text("SELECT declared()", "The same in text.")


@operation("a function that writes and is not named: `select(func.slip())`", on=BOTH)
def slip(w: World) -> object:
    """Not known to write; the replica refuses and the primary repeats."""
    return w.session.scalar(select(func.slip()))


@operation("the same after a read in its transaction", on=BOTH)
def late_slip(w: World) -> object:
    """Rows were seen on the replica, so the primary may not repeat it: an error."""
    w.session.scalars(select(Author)).all()
    return w.session.scalar(select(func.slip()))


@operation("a construct compiled to something else")
def hidden(w: World) -> object:
    """Not known to write; the replica refuses and the primary repeats."""
    return w.session.execute(hidden_write())


@operation("`func.nextval()` in `where()`", on=(POSTGRESQL,))
def in_where(w: World) -> object:
    """Seen in the SQL that is about to be sent."""
    return w.session.scalars(select(Book).where(func.nextval("numbers") > 0)).all()


@operation("`func.pg_try_advisory_xact_lock()` in `where()`", on=(POSTGRESQL,))
def lock_in_where(w: World) -> object:
    """Seen in the SQL that is about to be sent; no server would refuse it."""
    free = func.pg_try_advisory_xact_lock(Book.id)
    return w.session.scalars(select(Book).where(free)).all()
