"""Where a statement or a model asks to be read.

``execution_options(replicated='master')`` or ``'slave'`` on a statement, and
``__replicated__ = 'master'`` on a model.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from sqlalchemy import Select, Table, event
from sqlalchemy.orm import Mapper, UserDefinedOption
from sqlalchemy.sql.cache_key import HasCacheKey
from sqlalchemy.sql.visitors import InternalTraversal

from flask_replicated._private import set_user_options, user_options
from flask_replicated.errors import ConfigurationError

from .decision import MARK, ROLES, Role

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from sqlalchemy import MetaData

__all__ = [
    "ROLE_OPTION",
    "carrying",
    "named_table",
    "note_primary_models",
    "primary_tables",
    "reads_primary",
    "wanted_role",
]

ROLE_OPTION = "replicated"
"""The execution option by which a statement asks for a role."""


class _InheritedRole(HasCacheKey, UserDefinedOption):
    """A statement's role, which the objects that it loads keep for their own loads.

    It is part of the statement's cache key: statements for relationships that are
    loaded along are compiled once, options included.
    """

    propagate_to_loaders = True
    _cache_key_traversal = [("payload", InternalTraversal.dp_plain_obj)]  # noqa: RUF012 - SQLAlchemy's own form


def _role(key: str, value: object) -> Role:
    try:
        return ROLES[str(value)]
    except KeyError:
        raise ConfigurationError(key, value, "must be 'master' or 'slave'.") from None


def wanted_role(
    statement: Any,
    options: Mapping[str, Any] | None,
    defaults: Mapping[str, Any] | None = None,
) -> Role | None:
    """Return the role that the options of a statement ask for, or None.

    The strongest come first: options given to ``execute()``, the statement's own, the
    defaults of its session, and the role that a loaded object has inherited.

    Args:
        statement: The statement.
        options: Execution options given to ``execute()``.
        defaults: Execution options of the session.

    Raises:
        ConfigurationError: The option is no name of a role.
    """
    value = options.get(ROLE_OPTION) if options else None
    if value is None:
        own_options = getattr(statement, "get_execution_options", None)
        value = own_options().get(ROLE_OPTION) if own_options else None
    if value is None and defaults:
        value = defaults.get(ROLE_OPTION)
    if value is not None:
        return _role(f"execution_options[{ROLE_OPTION!r}]", value)
    for option in user_options(statement):
        if type(option) is _InheritedRole:
            return option.payload
    return None


def carrying(statement: Any, role: Role) -> Any:
    """Return the statement so that the objects that it loads inherit its role."""
    if not isinstance(statement, Select):
        return statement
    carried = statement.options(_InheritedRole(role))
    # Only this one: an object keeps the options of its statement in no order.
    options = [
        option
        for option in user_options(carried)
        if type(option) is not _InheritedRole or option.payload is role
    ]
    set_user_options(carried, options)
    return carried


class _PrimaryTables:
    """The tables of models that ask for the primary, of all models in this process.

    Attributes:
        version: Grows with each change, so that users know when to ask again.
    """

    def __init__(self) -> None:
        self._tables: WeakSet[Table] = WeakSet()
        self.version = 0

    def add(self, tables: Iterable[Table]) -> None:
        """Add tables."""
        self._tables.update(tables)
        self.version += 1

    def pattern(self, metadatas: Collection[MetaData] | None) -> re.Pattern[str] | None:
        """Return a pattern that finds their names in SQL; None if there are none.

        Args:
            metadatas: Only tables of these; None for all.
        """
        tables = [
            table
            for table in list(self._tables)
            if metadatas is None or table.metadata in metadatas
        ]
        if not tables:
            return None
        names = "|".join({re.escape(table.name) for table in tables})
        schemas = "|".join(
            {re.escape(table.schema) for table in tables if table.schema}
        )
        # Not a column, a label or a parameter of that name, as far as that shows. But a
        # name that follows its own schema, or any schema after FROM or JOIN.
        return re.compile(
            rf"""(?<![\w.:])(?<!%\()(?<!\bAS\s)(?P<table>{names})(?!\w)
            |\b(?:FROM|JOIN)\s+(?:["`]?\w+["`]?\.)+["`]?(?P<other>{names})(?!\w)
            |(?<!\w)(?:{schemas or "(?!)"})["`]?\.["`]?(?P<own>{names})(?!\w)""",
            re.IGNORECASE | re.VERBOSE,
        )


primary_tables = _PrimaryTables()

# Strings and comments, which name no table. But /*! is no comment to MySQL, and "--"
# without a space may be a minus before a negative number.
_STRINGS_AND_COMMENTS = re.compile(
    r"'(?:[^']|'')*'|--\s[^\n]*|/\*(?!M?!)(?:[^*]|\*(?!/))*\*/"
)


def named_table(pattern: re.Pattern[str] | None, sql: str) -> str | None:
    """Return the table of ``primary_tables.pattern()`` that SQL names, or None."""
    if pattern is None:
        return None
    # A backslash may escape a quote or not, so where strings end is unknown.
    searched = sql if "\\" in sql else _STRINGS_AND_COMMENTS.sub(" ", sql)
    found = pattern.search(searched)
    return None if found is None else next(filter(None, found.groups()))


@event.listens_for(Mapper, "after_mapper_constructed")
def _note_model(mapper: Mapper[Any], model: type) -> None:
    if ROLES.get(getattr(model, MARK, None) or "") is Role.PRIMARY:
        own = mapper.local_table
        tables = [own] if isinstance(own, Table) else mapper.tables
        primary_tables.add(table for table in tables if isinstance(table, Table))


def note_primary_models(mappers: Iterable[Mapper[Any]]) -> None:
    """Note models that were defined before this module was imported."""
    for mapper in mappers:
        _note_model(mapper, mapper.class_)


def reads_primary(mapper: Any) -> bool:
    """Whether a mapped class asks to be read from the primary alone.

    Raises:
        ConfigurationError: ``__replicated__`` is neither ``'master'`` nor
            ``'primary'``.
    """
    model = getattr(mapper, "class_", mapper)
    value = getattr(model, MARK, None)
    if value is None:
        return False
    if ROLES.get(value) is not Role.PRIMARY:
        raise ConfigurationError(
            f"{model.__name__}.{MARK}", value, "a model may only say 'master'."
        )
    return True
