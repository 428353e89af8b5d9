"""Data definition."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy import DDL, Index, MetaData
from sqlalchemy.schema import (
    AddConstraint,
    CreateIndex,
    CreateSchema,
    CreateSequence,
    CreateTable,
    DropTable,
)

from tests.operations.catalogue import MARIADB, POSTGRESQL, SQLITE, Section
from tests.operations.models import db, scratch

if TYPE_CHECKING:
    from tests.operations.world import World

SECTION = Section("Data definition")
operation = SECTION.operation


@operation("`session.execute(CreateTable(table))`")
def create_table(w: World) -> object:
    """Changes the schema."""
    return w.session.execute(CreateTable(scratch, if_not_exists=True))


@operation("`session.execute(DropTable(table))`")
def drop_table(w: World) -> object:
    """Changes the schema."""
    gone = sa.Table("no_such_table", MetaData())
    return w.session.execute(DropTable(gone, if_exists=True))


@operation("`session.execute(CreateIndex(index))`", on=(SQLITE, POSTGRESQL))
def create_index(w: World) -> object:
    """Changes the schema."""
    table = scratch.to_metadata(MetaData())
    index = Index("scratch_index", table.c.id)
    return w.session.execute(CreateIndex(index, if_not_exists=True))


@operation("`session.execute(AddConstraint(...))`", on=(POSTGRESQL,))
def add_constraint(w: World) -> object:
    """Changes the schema."""
    table = scratch.to_metadata(MetaData())
    check = sa.CheckConstraint(table.c.id > 0, name="positive")
    table.append_constraint(check)
    return w.session.execute(AddConstraint(check))


@operation("`session.execute(CreateSchema(...))`", on=(POSTGRESQL,))
def create_schema(w: World) -> object:
    """Changes the schema."""
    return w.session.execute(CreateSchema("more"))


@operation("`session.execute(CreateSequence(...))`", on=(POSTGRESQL,))
def create_sequence(w: World) -> object:
    """Changes the schema."""
    return w.session.execute(CreateSequence(sa.Sequence("more_numbers")))


@operation("`session.execute(DDL(...))`")
def ddl(w: World) -> object:
    """Changes the schema."""
    statement = DDL("DROP TABLE IF EXISTS no_such_table")  # type: ignore[no-untyped-call]  # SQLAlchemy gives it no types
    return w.session.execute(statement)


SECTION.text("CREATE TABLE IF NOT EXISTS scratch (id INTEGER)", "Changes the schema.")
SECTION.text("DROP VIEW IF EXISTS no_such_view", "Changes the schema.")
SECTION.text(
    "ALTER TABLE scratch ADD COLUMN more INTEGER",
    "Changes the schema.",
    on=(POSTGRESQL,),
)
SECTION.text("VACUUM", "Writes.", on=(SQLITE,))
SECTION.text("OPTIMIZE TABLE scratch", "Writes.", on=(MARIADB,))


@operation("`db.create_all()`, nothing new")
def create_all(w: World) -> None:
    """Replicas own no tables. It checks what exists over `db.engine.begin()`."""
    db.create_all(bind_key=None)


@operation("`metadata.create_all(db.engine)`, nothing new")
def metadata_create_all(w: World) -> None:
    """The same."""
    scratch.metadata.create_all(w.engine)
