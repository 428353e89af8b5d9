"""``REPLICATED_UNPINNED``: writes that are housekeeping, and neither latch nor pin."""

from __future__ import annotations

import difflib
import logging
from itertools import chain
from threading import Lock
from typing import TYPE_CHECKING

from flask_replicated.sql.dml import Identifier

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from sqlalchemy import Dialect, MetaData, Table

    from flask_replicated.sql.dml import TableWrite

__all__ = ["Unpinned"]

logger = logging.getLogger("flask_replicated")


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
        self._checked = Lock()  # taken once, by the thread that checks the names

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

    def check_names(
        self, metadatas: Callable[[], Collection[MetaData] | None], dialect: Dialect
    ) -> None:
        """Warn once of tables and columns that no model has, such as typos.

        Args:
            metadatas: Returns those of all models; None if they are unknown.
            dialect: The dialect of an engine that has connected.
        """
        if self._checked.locked():
            return
        known = [list(one.tables.values()) for one in metadatas() or ()]
        tables = list(chain.from_iterable(known))
        if not tables or not self._checked.acquire(blocking=False):
            return
        for schema, name, columns in self._rules:
            key = name if schema is None else f"{schema}.{name}"
            found = [one for one in tables if _is_model(one, schema, name, dialect)]
            if not found:
                names = {one.fullname for one in tables}
                _warn(f"REPLICATED_UNPINNED[{key!r}] names a table", key, names)
                continue
            there = {column.name for table in found for column in table.columns}
            for column in _unknown(columns or (), there, dialect):
                what = f"REPLICATED_UNPINNED[{key!r}] names a column {column!r}"
                _warn(what, column, there)

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


def _is_model(table: Table, schema: str | None, name: str, dialect: Dialect) -> bool:
    """Whether a rule is on a model's table, as far as that is known without I/O."""
    if not _same_name(Identifier(table.name, quoted=True), name, dialect):
        return False
    # Without a schema it has the default one, which differs between binds.
    if table.schema is None:
        return True
    wanted = dialect.default_schema_name if schema is None else schema
    own = Identifier(table.schema, quoted=True)
    return wanted is not None and _same_name(own, wanted, dialect)


def _unknown(
    columns: Iterable[str], there: Iterable[str], dialect: Dialect
) -> Iterator[str]:
    known = [Identifier(name, quoted=True) for name in there]
    for column in columns:
        if known and not any(_is_column(one, column, dialect) for one in known):
            yield column


def _warn(what: str, name: str, known: Iterable[str]) -> None:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    logger.warning(
        "%s that no model has%s. Only writes to what it names are housekeeping.",
        what,
        hint,
    )
