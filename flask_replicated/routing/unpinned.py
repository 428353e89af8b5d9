"""``REPLICATED_UNPINNED``: writes that are housekeeping, and neither latch nor pin."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy import Dialect

    from flask_replicated.sql.dml import Identifier, TableWrite

__all__ = ["Unpinned"]


class Unpinned:
    """The rules that say which writes are housekeeping; false if there are none.

    Args:
        tables: The columns that an update may set, by table; None for every write.
    """

    def __init__(self, tables: Mapping[str, frozenset[str] | None]) -> None:
        self._rules = [
            (*_split(name), None if columns is None else tuple(columns))
            for name, columns in tables.items()
        ]

    def __bool__(self) -> bool:
        return bool(self._rules)

    def covers(self, writes: Iterable[TableWrite] | None, dialect: Dialect) -> bool:
        """Whether a statement's writes are known, and each of them is housekeeping.

        Args:
            writes: What the statement does to each table; None if that is unknown.
            dialect: The dialect of the engine that sends it.
        """
        listed = list(writes or ())
        return bool(listed) and all(self._allows(write, dialect) for write in listed)

    def _allows(self, write: TableWrite, dialect: Dialect) -> bool:
        allowed: set[str] = set()
        for schema, table, columns in self._rules:
            if not _is_table(write, schema, table, dialect):
                continue
            if columns is None:
                return True
            allowed.update(columns)
        return bool(write.columns) and all(
            any(_is_column(column, name, dialect) for name in allowed)
            for column in write.columns or ()
        )


def _split(name: str) -> tuple[str | None, str]:
    schema, dot, table = name.rpartition(".")
    return (schema if dot else None), table


def _is_table(
    write: TableWrite, schema: str | None, table: str, dialect: Dialect
) -> bool:
    if not _same_name(write.table, table, dialect):
        return False
    if write.schema is None or schema is None:
        # What a name without a schema means when a connection begins.
        default = dialect.default_schema_name
        if write.schema is None:
            return schema is None or schema == default
        return default is not None and _same_name(write.schema, default, dialect)
    return _same_name(write.schema, schema, dialect)


def _same_name(name: Identifier, written: str, dialect: Dialect) -> bool:
    """Whether a name in SQL is that of a table or schema."""
    if dialect.name == "sqlite":
        return name.text.lower() == written.lower()
    if dialect.name == "postgresql":
        # An unquoted name is folded to lower case.
        text = name.text if name.quoted else name.text.lower()
        return text in {written, written.lower()}
    return name.text == written  # file names on most MySQL servers, so case counts


def _is_column(name: Identifier, written: str, dialect: Dialect) -> bool:
    """Whether a name in SQL is that of a column, whose case counts on PostgreSQL."""
    if dialect.name == "postgresql":
        return _same_name(name, written, dialect)
    return name.text.lower() == written.lower()
