"""Classifies SQL text: does it read, set, lock or write?

Not a parser: it has to be right about the keywords and calls that are left when
comments and quotes are gone, quickly and without a dependency; it does not have to
understand the rest. Verdicts are cached.
"""

from __future__ import annotations

import re
from enum import IntEnum
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

from flask_replicated.system.patterns import pattern

from .dml import find_writes
from .function_names import LOCKING, PURE, SEQUENCE, SETTING, TRANSACTION_TIME, WRITING
from .strip import strip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .dml import TableWrite

__all__ = ["CACHED_LENGTH", "Kind", "TextClassifier", "cached", "ends_read_only"]


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


_FIRST_WORD = pattern(r"[\s(]*([A-Za-z]+)")
_EXPLAIN = pattern(
    r"[\s(]*(?:EXPLAIN|DESCRIBE|DESC)\b(?P<options>\s*\([^)]*\)|(?:\s+(?:ANALYZE|ANALYSE|VERBOSE|EXTENDED"
    r"|QUERY\s+PLAN|FORMAT\s*=\s*\w+))*)",
    re.IGNORECASE,
)
_LOCKS = pattern(
    r"\bFOR\s+(?:NO\s+KEY\s+UPDATE|KEY\s+SHARE|UPDATE|SHARE)\b"
    r"|\bLOCK\s+IN\s+SHARE\s+MODE\b",
    re.IGNORECASE,
)
# Some of these may also be names: of a column, a label, a table, a CTE. What may
# follow a name, but never a verb:
_NAMED = (
    r"(?!\s*(?:[(.,)=<>!+*/%|]|AS\b|DESC\b|ASC\b|IS\b|IN\b|LIKE\b|AND\b|NOT\b"
    r"|BETWEEN\b|LIMIT\b|{more}$))"
)
_WRITES = pattern(
    r"(?<!\.)(?<!\bAS\s)(?<!\bFROM\s)(?<!\bJOIN\s)"
    r"(?:\b(?:INSERT|UPDATE|MERGE|REPLACE)\b"
    + _NAMED.format(more=r"FROM\b|")
    + r"|\bDELETE\b"
    + _NAMED.format(more="")
    + r")|(?<!\.)(?<!\bAS\s)\bINTO\b(?!\s*[,.)=])|/\*M?!|@(?:\w+|'')\s*\\?:="
    r"|\b(?:NEXT|PREVIOUS)\s+VALUE\s+FOR\b",
    re.IGNORECASE,
)
# With its schema: a user's own count() is not the server's.
# A schema is looked for at the beginning of a word alone: a word may be very long.
_CALLED_NAMES = pattern(
    r"(?:((?<![\w$])[\w$]+|'')\s*\.\s*)?(?<![\w$])([^\W\d][\w$]*)\s*\("
)
# A name with a list of columns: an alias or a CTE.
_LISTS = pattern(
    r"\bAS\s+(?!(?:NOT\s+)?MATERIALIZED\b)[^\W\d][\w$]*\s*(?=\()"
    r"|(?<![\w$.])[^\W\d][\w$]*\s*\([\w\s,$']*\)\s*"
    r"(?=AS\s*(?:(?:NOT\s+)?MATERIALIZED\s*)?"
    r"\(\s*(?:\(|(?:SELECT|WITH|VALUES|TABLE)\b))",
    re.IGNORECASE,
)
# What may precede the parenthesis that opens a table (a subquery or a function); after
# FROM, JOIN and LATERAL it certainly is one. After OPERATOR(...) a call may follow.
_BEFORE_TABLE = pattern(
    r"(?:(?<![\w$.])(?P<surely>FROM|JOIN|LATERAL)\b|[,(])\s*"
    r"(?P<called>(?:(?:[\w$]+|'')\s*\.\s*)*(?!OPERATOR\b)[^\W\d][\w$]*\s*)?$",
    re.IGNORECASE,
)
_OWN_QUERY = pattern(r"\s*(?:\(|(?:SELECT|WITH|VALUES|TABLE)\b)", re.IGNORECASE)
# What may follow the closing one: an alias with a list of columns.
_ALIAS = pattern(
    r"\s*(?:WITH\s+ORDINALITY\s+)?(?!AS\b)([^\W\d][\w$]*)(?=\s*\()", re.IGNORECASE
)
_PARENTHESES = pattern(r"[()]")
_LONGEST_NAME = 300  # characters, with its schema; longer ones are not considered
# More words that may precede a parenthesis without being a call.
_GRAMMAR = """
    against bernoulli check ilike index key materialized offset operator regexp rlike
    system to use xor
    """
_WORDS = {
    dialect: pure | SETTING | frozenset(_GRAMMAR.split())
    for dialect, pure in PURE.items()
}
_ANY_WORDS = frozenset().union(*_WORDS.values())
_SYSTEM_SCHEMAS = frozenset({"", "pg_catalog"})
_CALLS = pattern(r"\b([A-Za-z_]\w*)\s*\(")
_READING_PRAGMAS = pattern(
    r"\s*PRAGMA\s+(?:\w+\.)?(?:(?:table_x?info|table_list|index_list|index_x?info"
    r"|foreign_key_list|database_list|collation_list|function_list|compile_options"
    r"|pragma_list|module_list)\b[^=;]*"
    # With an argument these set something.
    r"|(?:foreign_keys|journal_mode|user_version|schema_version|data_version"
    r"|application_id|page_count|page_size|freelist_count|cache_size|synchronous"
    r"|encoding|auto_vacuum|busy_timeout|query_only|recursive_triggers)\s*)$",
    re.IGNORECASE,
)
# Beginning and ending a transaction writes nothing; dialects and listeners do it.
_TRANSACTION = pattern(
    r"\s*(?:BEGIN(?:\s+(?:WORK|TRANSACTION|DEFERRED))*|START\s+TRANSACTION|COMMIT|END"
    r"|ROLLBACK|ABORT|SAVEPOINT|RELEASE|PREPARE\s+TRANSACTION|XA)\b"
    # Not if an executable comment adds more.
    r"(?!\s+(?:IMMEDIATE|EXCLUSIVE|NOT)\b)(?!.*(?:\bREAD\s+WRITE\b|/\*M?!))",
    re.IGNORECASE | re.DOTALL,
)
# Would let a replica's read-only session write.
_ENDS_READ_ONLY = pattern(
    r"READ(?:\s|/\*M?!\d*)+WRITE|read_only|query_only", re.IGNORECASE
)
_SET_STATEMENT = pattern(r"\s*SET\s+STATEMENT\b.*?\bFOR\b", re.IGNORECASE | re.DOTALL)
# The time when a transaction began, also in a literal. A false positive costs little.
_TRANSACTION_TIME = pattern(
    rf"\b(?:{'|'.join(sorted(TRANSACTION_TIME))})\b", re.IGNORECASE
)
_QUERIES = frozenset({"SELECT", "WITH", "VALUES", "TABLE"})
_PLANS = frozenset({"EXPLAIN", "DESCRIBE", "DESC"})
CACHED_LENGTH = 20_000
"""Characters; what longer texts do is found out each time."""

_R = TypeVar("_R")


def cached(
    find: Callable[[str], _R], many: int = 1024
) -> tuple[Callable[[str], _R], Callable[[str], _R]]:
    """Return a cached function for short texts, and one for texts of any length.

    Args:
        find: What is found out of a text.
        many: How many texts are remembered, each of ``CACHED_LENGTH`` at most.
    """
    of_short = lru_cache(maxsize=many)(find)

    def of_any(sql: str) -> _R:
        return (find if len(sql) > CACHED_LENGTH else of_short)(sql)

    return of_short, of_any


class TextClassifier:
    """Classifies SQL text.

    Args:
        write_functions: Names of functions that write, beyond the well-known
            ones; case does not matter.
        dialect: SQLAlchemy's name for the server's dialect. Where it is empty, or not
            one of those that are known, the worst of all readings counts.

    Attributes:
        statement: Returns what a statement does; of several in one string, the most.
        short_statement: The same for a text of at most ``CACHED_LENGTH`` characters,
            without a call in between.
        fragment: Returns what a part of a statement does: only its calls can do
            anything.
        may_write: Whether a statement writes, or calls a function that is not known.
        writes: Returns what a statement does to which tables; None if that is not
            certain.
    """

    def __init__(self, write_functions: Iterable[str], dialect: str) -> None:
        added = dict.fromkeys(map(str.lower, write_functions), Kind.WRITE)
        self._added = frozenset(added)
        self._dialect = dialect
        self._functions = {
            **dict.fromkeys(LOCKING, Kind.LOCK),
            **dict.fromkeys(WRITING, Kind.WRITE),
            **dict.fromkeys(SETTING, Kind.SETTING),
            **added,
        }
        self.short_statement, self.statement = cached(self._classify)
        _, self.fragment = cached(self._classify_fragment)
        _, self.may_write = cached(self._check_writing)
        _, self.writes = cached(self._find_writes)

    def query(self, sql: str) -> Kind:
        """Return what a text that is known to be one query does.

        Only its calls and locking clauses count, not its words: one that looks like a
        write is a name.
        """
        return max(map(self._calls_and_locks, strip(sql, self._dialect).every()))

    def stands_alone(self, sql: str) -> bool:
        """Whether PostgreSQL answers a read the same in a transaction of its own.

        Provided that each statement sees the newest data. It is a single query that
        depends on nothing fixed when its transaction begins, and calls only known
        functions.
        """
        match = _FIRST_WORD.match(strip(sql, self._dialect).full[0])
        return (
            match is not None
            and match.group(1).upper() in _QUERIES
            and ";" not in sql
            and not _TRANSACTION_TIME.search(sql)
            and not self.may_write(sql)
        )

    def function(self, name: str) -> Kind:
        """Return what a function of this name does."""
        return self._functions.get(name.lower(), Kind.READ)

    def _find_writes(self, sql: str) -> tuple[TableWrite, ...] | None:
        known = _WORDS.get(self._dialect, frozenset()) | SEQUENCE

        def computes(name: str) -> bool:
            return name in known and name not in self._added

        return find_writes(sql, self._dialect, computes)

    def _check_writing(self, sql: str) -> bool:
        if self.statement(sql) is Kind.WRITE:
            return True
        known = _WORDS.get(self._dialect, _ANY_WORDS)
        # Not by its kind: a query that locks may call unknown functions too.
        return any(
            self.function(name) is not Kind.LOCK
            and not (schema.lower() in _SYSTEM_SCHEMAS and name.lower() in known)
            for bare in strip(sql, self._dialect).every()
            for schema, name in _CALLED_NAMES.findall(_without_lists(bare))
        )

    def _classify(self, sql: str) -> Kind:
        readings = strip(sql, self._dialect)
        kind = max(
            *map(self._classify_stripped, readings.full),
            *map(self._calls_and_locks, readings.locking),
            *map(self._calls, readings.calling),
            Kind.READ,
        )
        if kind is Kind.SETTING and _ENDS_READ_ONLY.search(sql):
            return Kind.WRITE
        return kind

    def _classify_stripped(self, sql: str) -> Kind:
        parts = (self._classify_one(part) for part in sql.split(";") if part.strip())
        return max(parts, default=Kind.READ)

    def _classify_one(self, sql: str) -> Kind:
        match = _FIRST_WORD.match(sql)
        word = match.group(1).upper() if match else ""
        if word in _QUERIES:
            return self._query(sql)
        if word in _PLANS:
            return self._explain(sql)
        if word == "SHOW" or _READING_PRAGMAS.match(sql):
            return Kind.READ
        if _TRANSACTION.match(sql):
            return Kind.READ
        if word == "SET":
            return self._set(sql)
        return Kind.LOCK if word == "LOCK" else Kind.WRITE

    def _set(self, sql: str) -> Kind:
        if _ENDS_READ_ONLY.search(sql):
            return Kind.WRITE
        match = _SET_STATEMENT.match(sql)  # MariaDB: for one statement, which follows
        kind = (
            self._classify_one(sql[match.end() :])
            if match
            else self._calls_and_locks(sql)
        )
        return max(Kind.SETTING, kind)

    def _explain(self, sql: str) -> Kind:
        match = _EXPLAIN.match(sql)
        if match is None or "ANALY" not in match["options"].upper():
            return Kind.READ  # the plan is shown, nothing runs
        return self._classify_one(sql[match.end() :])

    def _query(self, sql: str) -> Kind:
        without_locks = _LOCKS.sub(" ", sql)
        if _WRITES.search(without_locks):
            return Kind.WRITE
        called = self._calls(sql)
        return max(called, Kind.LOCK) if without_locks != sql else called

    def _classify_fragment(self, sql: str) -> Kind:
        return max(map(self._calls, strip(sql, self._dialect).every()))

    def _calls_and_locks(self, bare: str) -> Kind:
        kind = self._calls(bare)
        return max(kind, Kind.LOCK) if _LOCKS.search(bare) else kind

    def _calls(self, bare: str) -> Kind:
        return max(map(self.function, _CALLS.findall(bare)), default=Kind.READ)


def ends_read_only(text: str) -> bool:
    """Whether a setting's name or value would let a read-only session write."""
    return _ENDS_READ_ONLY.search(text) is not None


def _without_lists(bare: str) -> str:
    """Remove names that have a list of columns, which look like calls."""
    opened: list[int] = []
    kept, end = [], 0
    for found in _PARENTHESES.finditer(bare):
        if found[0] == "(":
            opened.append(found.start())
            continue
        start = opened.pop() if opened else None
        alias = _ALIAS.match(bare, found.end())
        if alias is not None and start is not None and _opens_table(bare, start):
            kept += [bare[end : alias.start(1)], " , "]
            end = alias.end(1)
    return _LISTS.sub(" , ", "".join([*kept, bare[end:]]))


def _opens_table(bare: str, start: int) -> bool:
    before = _BEFORE_TABLE.search(bare, max(0, start - _LONGEST_NAME), start)
    if before is None:
        return False
    return bool(
        before["surely"] or before["called"] or _OWN_QUERY.match(bare, start + 1)
    )
