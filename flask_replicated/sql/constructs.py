"""Classifies SQLAlchemy constructs: does a statement read, set, lock or write?

Whatever cannot be shown to be a read counts as a write, except for depth: a
``Select`` is classified by its outer parts (locking clause, CTEs, columns, ``FROM``
and joins), because walking the whole tree costs more than the rest of routing. A
write that is nested deeper shows in the compiled text, which is classified before a
replica gets it; a function that is not known to write meets a read-only connection.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

from sqlalchemy import (
    CTE,
    CompoundSelect,
    Select,
    Sequence,
    TextClause,
    UpdateBase,
)
from sqlalchemy.orm import FromStatement
from sqlalchemy.sql import visitors
from sqlalchemy.sql.elements import (
    ReleaseSavepointClause,
    RollbackToSavepointClause,
    SavepointClause,
)
from sqlalchemy.sql.expression import FunctionElement, TextualSelect
from sqlalchemy.sql.lambdas import StatementLambdaElement
from sqlalchemy.sql.selectable import ForUpdateArg, FromClause, GenerativeSelect

from flask_replicated._private import has_hints, select_parts, selects_tables_only

from .text import CACHED_LENGTH, Kind, TextClassifier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Classifier", "Kind"]

_Classes: TypeAlias = "type | tuple[type, ...]"
_READ = Kind.READ
_SAVEPOINTS = (SavepointClause, RollbackToSavepointClause, ReleaseSavepointClause)


def _write(_: object) -> Kind:
    return Kind.WRITE


class Classifier:
    """Classifies statements, given as constructs or as text.

    Args:
        write_functions: Names of SQL functions that write, beyond the well-known
            ones; case does not matter.
        dialect: SQLAlchemy's name for the server's dialect; empty if it is not known.

    Attributes:
        text: Classifies text.
    """

    def __init__(self, write_functions: Iterable[str] = (), dialect: str = "") -> None:
        self.text = TextClassifier(write_functions, dialect)
        self._rules: tuple[tuple[_Classes, Callable[[Any], Kind]], ...] = (
            (UpdateBase, _write),
            (StatementLambdaElement, lambda made: self.kind(_built(made))),
            (Select, self._select),
            (CompoundSelect, self._compound),
            (TextClause, lambda clause: self.text.statement(clause.text)),
            ((TextualSelect, FromStatement), lambda outer: self.kind(outer.element)),
            (FunctionElement, lambda function: self._parts([function])),
            (str, self.text.statement),
            (_SAVEPOINTS, lambda _: _READ),
        )
        self._short_statement = self.text.short_statement
        # Bounded: a program may create classes as it runs.
        self._rule_for = lru_cache(maxsize=512)(self._find_rule)

    def kind(self, statement: Any) -> Kind:
        """Return what a statement does.

        ``None`` (a connection is wanted for an unknown statement) is a write, and so
        is anything that is not recognised, data definition included.
        """
        cls: Any = type(statement)
        # Nearly every statement is one of these; the rules would double the time.
        if cls is TextClause:
            text = statement.text
            short = len(text) <= CACHED_LENGTH
            return (self._short_statement if short else self.text.statement)(text)
        if cls is Select and selects_tables_only(statement):
            return _READ
        return self._rule_for(cls)(statement)

    def sent(self, sql: str, statement: Any) -> Kind:
        """Return what compiled SQL does.

        Args:
            sql: The text that is about to be sent.
            statement: The construct that it was compiled from, or None.
        """
        kind = self.text.statement(sql)
        if kind is Kind.WRITE and _is_query(statement):
            return self.text.query(sql)  # a name in it looks like a write
        return kind

    def _find_rule(self, cls: type) -> Callable[[Any], Kind]:
        for classes, rule in self._rules:
            if issubclass(cls, classes):
                return rule
        return _write

    def _compound(self, statement: CompoundSelect[Any]) -> Kind:
        around = (
            part
            for part in statement.get_children()
            if isinstance(part, CTE | ForUpdateArg)
        )
        return max(self._parts(around), *map(self.kind, statement.selects))

    def _select(self, statement: Select[Any]) -> Kind:
        columns, joins, froms, ctes, lock = select_parts(statement)
        kind = _READ
        for column in columns:
            if column.__visit_name__ != "table":
                kind = max(kind, self._column(column))
        if joins or froms or ctes or lock is not None:
            joined = (target for target, *_ in joins)
            kind = max(
                kind,
                self._parts(ctes),
                _READ if lock is None else Kind.LOCK,
                # A relationship or mapped class has no clause of its own.
                self._parts(f for f in joined if isinstance(f, FromClause)),
                self._parts(froms),
            )
        return kind

    def _column(self, column: Any) -> Kind:
        if column.__visit_name__ != "column":
            return self._parts([column])
        return self._parts([column if column.table is None else column.table])

    def _parts(self, elements: Iterable[Any]) -> Kind:
        """Classify clause elements by walking their trees, which is slow."""
        return max(
            (
                self._part(part)
                for element in elements
                if element.__visit_name__ != "table"
                for part in visitors.iterate(element)
            ),
            default=_READ,
        )

    def _part(self, part: Any) -> Kind:  # noqa: PLR0911 - one return for each rule
        if isinstance(part, UpdateBase | Sequence):
            return Kind.WRITE
        if isinstance(part, CTE) and isinstance(part.element, UpdateBase):
            return Kind.WRITE
        if isinstance(part, FunctionElement):
            return self.text.function(str(getattr(part, "name", "")))
        if isinstance(part, ForUpdateArg):
            return Kind.LOCK
        if isinstance(part, TextClause):
            return self.text.fragment(part.text)
        if getattr(part, "is_literal", False):  # literal_column()
            return self.text.fragment(part.name)
        return _READ


def _built(made: StatementLambdaElement) -> Any:
    """Return the statement that a lambda statement has built."""
    return next(iter(made.get_children()))


def _is_query(statement: Any) -> bool:
    """Whether a construct is a query that contains nothing but queries."""
    if not isinstance(statement, GenerativeSelect):
        return False
    return all(map(_is_plain, visitors.iterate(statement)))


def _is_plain(part: Any) -> bool:
    """Whether SQLAlchemy alone decides what a part is compiled to."""
    return not (
        isinstance(part, UpdateBase | TextClause | Sequence)
        or (isinstance(part, CTE) and isinstance(part.element, UpdateBase))
        or getattr(part, "is_literal", False)
        or has_hints(part)
        # A custom construct may be compiled to anything.
        or not type(part).__module__.startswith("sqlalchemy.")
    )
