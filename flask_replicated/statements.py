"""What a statement does: read, set, lock or write.

Whatever cannot be shown to be a read counts as a write. The one exception is
depth: a ``Select`` is judged by its outer parts (locking clause, CTEs, columns,
``FROM`` and joins), because walking the whole tree costs more than the routing
that it serves. A write hidden deeper, or behind a function that is not known
here, meets a read-only connection on the replica.

Text is judged by a small scanner and not by a parser: it has to be right about
keywords outside comments and quotes in three dialects, quickly, without a
dependency; it does not have to understand the rest. Verdicts are cached.
"""

from __future__ import annotations

import re
from enum import IntEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    CTE,
    CompoundSelect,
    Executable,
    Select,
    Sequence,
    TextClause,
    UpdateBase,
)
from sqlalchemy.orm import FromStatement
from sqlalchemy.sql import visitors
from sqlalchemy.sql.expression import FunctionElement, TextualSelect
from sqlalchemy.sql.lambdas import StatementLambdaElement
from sqlalchemy.sql.selectable import FromClause, GenerativeSelect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Kind", "classify", "classify_text"]


class Kind(IntEnum):
    """What a statement needs, in rising order of what it does."""

    READ = 0
    """Changes nothing and locks nothing: any server will do."""
    SETTING = 1
    """Changes the session (``SET``): later statements must follow it."""
    LOCK = 2
    """Locks rows or names: only the primary's locks mean anything."""
    WRITE = 3
    """Changes data, or may: only the primary."""


_READ = Kind.READ  # an enum's attribute costs as much as the rest of a verdict


_LOCKING_FUNCTIONS = frozenset(
    """
    get_lock release_lock release_all_locks is_free_lock is_used_lock
    pg_advisory_lock pg_advisory_lock_shared pg_advisory_unlock
    pg_advisory_unlock_all pg_advisory_unlock_shared pg_advisory_xact_lock
    pg_advisory_xact_lock_shared pg_try_advisory_lock
    pg_try_advisory_lock_shared pg_try_advisory_xact_lock
    pg_try_advisory_xact_lock_shared
    """.split()  # noqa: SIM905 - a table of names reads better as text
)
_WRITING_FUNCTIONS = frozenset(
    """
    nextval setval currval lastval next_value last_insert_id
    pg_notify txid_current pg_current_xact_id pg_export_snapshot
    dblink_exec lo_creat lo_create lo_from_bytea lo_import lo_put lo_unlink lowrite
    pg_logical_emit_message pg_switch_wal pg_create_restore_point
    pg_promote pg_wal_replay_pause pg_wal_replay_resume
    """.split()  # noqa: SIM905 - the same
)


def _function_kind(name: str) -> Kind:
    name = name.lower()
    if name in _WRITING_FUNCTIONS:
        return Kind.WRITE
    if name in _LOCKING_FUNCTIONS:
        return Kind.LOCK
    return Kind.SETTING if name == "set_config" else Kind.READ


# --- text ---------------------------------------------------------------------

# Everything that can hide a keyword or a semicolon. ``/*!`` is MySQL's comment
# that the server executes, so it is no comment here.
_HIDDEN = r"""
      --[^\n]*
    | (?:^|(?<=\s))\#\s[^\n;]*
    | /\*(?!!)(?:[^*]|\*(?!/))*\*/
    | \b[eE]'(?:[^'\\]|\\.|'')*'
    | {string}
    | "(?:[^"]|"")*"
    | `(?:[^`]|``)*`
    | \$(?P<tag>[A-Za-z_]\w*)?\$.*?\$(?(tag)(?P=tag))\$
    """
_STANDARD = re.compile(
    _HIDDEN.format(string=r"'(?:[^']|'')*'"), re.VERBOSE | re.DOTALL | re.MULTILINE
)
# MySQL's strings, in which a backslash escapes a quote.
_ESCAPING = re.compile(
    _HIDDEN.format(string=r"'(?:[^'\\]|\\.|'')*'"),
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)
_FIRST_WORD = re.compile(r"[\s(]*([A-Za-z]+)")
_EXPLAIN = re.compile(
    r"\s*EXPLAIN(?P<options>\s*\([^)]*\)|(?:\s+(?:ANALYZE|ANALYSE|VERBOSE|EXTENDED"
    r"|QUERY\s+PLAN|FORMAT\s*=\s*\w+))*)",
    re.IGNORECASE,
)
_LOCKS = re.compile(
    r"\bFOR\s+(?:NO\s+KEY\s+UPDATE|KEY\s+SHARE|UPDATE|SHARE)\b"
    r"|\bLOCK\s+IN\s+SHARE\s+MODE\b",
    re.IGNORECASE,
)
_WRITES = re.compile(
    r"\b(?:INSERT|UPDATE|DELETE|MERGE|REPLACE)\b(?!\s*\()|\bINTO\b|/\*!|:=",
    re.IGNORECASE,
)
_CALLS = re.compile(r"\b([A-Za-z_]\w*)\s*\(")
_READING_PRAGMAS = re.compile(
    r"\s*PRAGMA\s+(?:\w+\.)?(?:table_x?info|table_list|index_list|index_x?info"
    r"|foreign_key_list|database_list|collation_list|function_list|compile_options)\b"
    r"[^=;]*$",
    re.IGNORECASE,
)
_QUERIES = frozenset({"SELECT", "WITH", "VALUES", "TABLE"})
_REPORTS = frozenset({"SHOW", "DESCRIBE", "DESC"})
_CACHED_LENGTH = 20_000


def classify_text(sql: str) -> Kind:
    """Return what a string of SQL does; of several statements, the most."""
    if len(sql) > _CACHED_LENGTH:
        # The cache is bounded in entries; this bounds their size.
        return _judge_text(sql)
    return _judge_cached_text(sql)


def _judge_text(sql: str) -> Kind:
    kind = _judge_bare(_bare(sql, _STANDARD))
    if "\\" in sql:
        # Where a string ends depends on the server; take the worse reading.
        kind = max(kind, _judge_bare(_bare(sql, _ESCAPING)))
    return kind


_judge_cached_text = lru_cache(maxsize=1024)(_judge_text)


def _bare(sql: str, hidden: re.Pattern[str]) -> str:
    return hidden.sub(lambda found: " " if found[0][0] in "-#/" else "''", sql)


def _judge_bare(sql: str) -> Kind:
    parts = (_one(part) for part in sql.split(";") if part.strip())
    return max(parts, default=Kind.READ)


def _one(sql: str) -> Kind:
    match = _FIRST_WORD.match(sql)
    word = match.group(1).upper() if match else ""
    if word in _QUERIES:
        return _query(sql)
    if word == "EXPLAIN":
        return _explain(sql)
    if word in _REPORTS or _READING_PRAGMAS.match(sql):
        return Kind.READ
    return {"SET": Kind.SETTING, "LOCK": Kind.LOCK}.get(word, Kind.WRITE)


def _explain(sql: str) -> Kind:
    match = _EXPLAIN.match(sql)
    if match is None or "ANALY" not in match["options"].upper():
        return Kind.READ  # a plan is shown, nothing is run
    return _one(sql[match.end() :])


def _query(sql: str) -> Kind:
    without_locks = _LOCKS.sub(" ", sql)
    if _WRITES.search(without_locks):
        return Kind.WRITE
    called = max(map(_function_kind, _CALLS.findall(sql)), default=Kind.READ)
    return max(called, Kind.LOCK) if without_locks != sql else called


# --- constructs ---------------------------------------------------------------


def classify(statement: Any) -> Kind:
    """Return what a statement does, given as a construct or as text.

    ``None`` (a connection is wanted, the statement unknown) is a write, and so
    is anything that is not recognised, data definition included.
    """
    if type(statement) is Select:  # nine in ten, at a third of the price
        return _select(statement)
    return _judge_for(type(statement))(statement)  # type: ignore[arg-type]  # a class is hashable


@lru_cache(maxsize=512)
def _judge_for(kind: type) -> Callable[[Any], Kind]:
    for base, judge in _JUDGES:
        if issubclass(kind, base):
            return judge
    return _write


def _write(_: object) -> Kind:
    return Kind.WRITE


def _text(statement: TextClause) -> Kind:
    return classify_text(statement.text)


def _element(statement: Any) -> Kind:
    return classify(statement.element)


def _lambda(statement: StatementLambdaElement) -> Kind:
    # The lambda's own attributes forward to the statement that it built.
    return classify(statement._resolved)  # noqa: SLF001 - has no public name


def _function(statement: FunctionElement[Any]) -> Kind:
    return max(_parts([statement]), Kind.READ)


def _generative(statement: GenerativeSelect) -> Kind:
    # SQLAlchemy has no public name for the locking clause or for added CTEs.
    kind = _parts(statement._independent_ctes)  # noqa: SLF001
    return kind if statement._for_update_arg is None else max(kind, Kind.LOCK)  # noqa: SLF001


def _compound(statement: CompoundSelect[Any]) -> Kind:
    return max(_generative(statement), *map(classify, statement.selects))


def _select(statement: Select[Any]) -> Kind:
    # The private attributes are what Select was built from; its public
    # accessors compute the final FROM list, for ten times this function's cost.
    kind = _READ
    for column in statement._raw_columns:  # noqa: SLF001
        if column.__visit_name__ != "table":
            kind = max(kind, _column(column))
    if (
        statement._setup_joins  # noqa: SLF001
        or statement._from_obj  # noqa: SLF001
        or statement._independent_ctes  # noqa: SLF001
        or statement._for_update_arg is not None  # noqa: SLF001
    ):
        joined = (target for target, *_ in statement._setup_joins)  # noqa: SLF001
        kind = max(
            kind,
            _generative(statement),
            # A relationship or a mapped class has no clause of its own to judge.
            _parts(f for f in joined if isinstance(f, FromClause)),
            _parts(statement._from_obj),  # noqa: SLF001
        )
    return kind


def _column(column: Any) -> Kind:
    if column.__visit_name__ != "column":
        return _parts([column])
    if column.table is None:
        return _fragment(column.name)  # literal_column("nextval('s')")
    return _parts([column.table])


def _parts(elements: Iterable[Any]) -> Kind:
    """Judge clause elements by walking them: the rare, dear case."""
    kind = Kind.READ
    for element in elements:
        if element.__visit_name__ == "table":
            continue
        for part in visitors.iterate(element):
            if isinstance(part, UpdateBase | Sequence):
                return Kind.WRITE
            if isinstance(part, CTE) and isinstance(part.element, UpdateBase):
                return Kind.WRITE
            if isinstance(part, FunctionElement):
                kind = max(kind, _function_kind(str(getattr(part, "name", ""))))
            elif isinstance(part, GenerativeSelect):
                if part._for_update_arg is not None:  # noqa: SLF001
                    kind = max(kind, Kind.LOCK)
            elif isinstance(part, TextClause):
                kind = max(kind, _fragment(part.text))
    return kind


@lru_cache(maxsize=1024)
def _fragment(sql: str) -> Kind:
    """Judge a piece of SQL inside a construct: only its calls can do anything."""
    called = _CALLS.findall(_bare(sql, _STANDARD))
    return max(map(_function_kind, called), default=Kind.READ)


_JUDGES: tuple[tuple[type, Callable[[Any], Kind]], ...] = (
    (UpdateBase, _write),
    (StatementLambdaElement, _lambda),
    (Select, _select),
    (CompoundSelect, _compound),
    (GenerativeSelect, _generative),
    (TextClause, _text),
    (TextualSelect, _element),
    (FromStatement, _element),
    (FunctionElement, _function),
    (str, classify_text),
    (Executable, _write),
)
