"""What a string of SQL does.

A small scanner and not a parser: it has to be right about keywords outside
comments and quotes, in the dialects of three servers, quickly and without a
dependency; it does not have to understand the rest. Verdicts are cached.
"""

from __future__ import annotations

import re
from enum import IntEnum
from functools import lru_cache
from typing import TYPE_CHECKING

from .dml import find_writes
from .function_names import LOCKING, PURE, SEQUENCE, SETTING, TRANSACTION_TIME, WRITING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .dml import TableWrite

__all__ = ["Kind", "TextClassifier", "ends_read_only"]


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


# Everything that can hide a keyword or a semicolon. ``/*!`` and ``/*M!`` are
# comments that MySQL and MariaDB execute, so they are none here.
_HIDDEN = r"""
      {comment}
    | /\*(?!M?!)(?:[^*]|\*(?!/))*\*/
    | \b[eE]'(?:[^'\\]|\\.|'')*'
    | {strings}
    | `(?:[^`]|``)*`
    """
_TAG = r"[A-Za-z_\x80-\U0010ffff][\w\x80-\U0010ffff]*"
_DOLLARS = rf"| (?<![\w$\x80-\U0010ffff])\$(?P<tag>{_TAG})?\$.*?\$(?(tag)(?P=tag))\$"
_FLAGS = re.VERBOSE | re.DOTALL | re.MULTILINE
_STRINGS = r"""'(?:[^']|'')*' | "(?:[^"]|"")*" """
_STANDARD = re.compile(
    _HIDDEN.format(comment=r"--[^\n]* | (?:^|(?<=\s))\#\s[^\n;]*", strings=_STRINGS)
    + _DOLLARS,
    _FLAGS,
)
# As PostgreSQL reads: # is an operator there, and a carriage return ends a line.
_OPERATOR = re.compile(
    _HIDDEN.format(comment=r"--[^\r\n]*", strings=_STRINGS) + _DOLLARS, _FLAGS
)
# As MySQL reads: a backslash escapes a quote, every # begins a comment, -- only where
# a blank follows; and a dollar is a letter.
_AS_MYSQL = _HIDDEN.format(
    comment=r"--(?=\s|$)[^\n]* | \#[^\n]*",
    strings=r"""'(?:[^'\\]|\\.|'')*' | "(?:[^"\\]|\\.|"")*" """,
)
_MYSQL = re.compile(_AS_MYSQL + _DOLLARS, _FLAGS)
_DOLLAR_NAMES = re.compile(_AS_MYSQL, _FLAGS)
_RETURN = re.compile(r"--[^\n]*\r(?!\n)")
_READ_DIFFERENTLY = re.compile(rf"[\\#]|--(?!\s|$)|\$(?:{_TAG})?\$|{_RETURN.pattern}")
_FIRST_WORD = re.compile(r"[\s(]*([A-Za-z]+)")
_EXPLAIN = re.compile(
    r"[\s(]*(?:EXPLAIN|DESCRIBE|DESC)\b(?P<options>\s*\([^)]*\)|(?:\s+(?:ANALYZE|ANALYSE|VERBOSE|EXTENDED"
    r"|QUERY\s+PLAN|FORMAT\s*=\s*\w+))*)",
    re.IGNORECASE,
)
_LOCKS = re.compile(
    r"\bFOR\s+(?:NO\s+KEY\s+UPDATE|KEY\s+SHARE|UPDATE|SHARE)\b"
    r"|\bLOCK\s+IN\s+SHARE\s+MODE\b",
    re.IGNORECASE,
)
# Some of these may be names as well: of a column, a label, a table, a CTE. What may
# stand behind a name, and never behind a verb:
_NAMED = (
    r"(?!\s*(?:[(.,)=<>!+*/%|]|AS\b|DESC\b|ASC\b|IS\b|IN\b|LIKE\b|AND\b|NOT\b"
    r"|BETWEEN\b|LIMIT\b|{more}$))"
)
_WRITES = re.compile(
    r"(?<!\.)(?<!\bAS\s)(?<!\bFROM\s)(?<!\bJOIN\s)"
    r"(?:\b(?:INSERT|UPDATE|MERGE|REPLACE)\b"
    + _NAMED.format(more=r"FROM\b|")
    + r"|\bDELETE\b"
    + _NAMED.format(more="")
    + r")|(?<!\.)(?<!\bAS\s)\bINTO\b(?!\s*[,.)=])|/\*M?!|@(?:\w+|'')\s*\\?:="
    r"|\b(?:NEXT|PREVIOUS)\s+VALUE\s+FOR\b",
    re.IGNORECASE,
)
# With its schema. A user's count() is not the server's.
_CALLED_NAMES = re.compile(r"(?:([\w$]+|'')\s*\.\s*)?(?<![\w$])([^\W\d][\w$]*)\s*\(")
# A name with a list of columns: an alias, or a CTE.
_LISTS = re.compile(
    r"\bAS\s+(?!(?:NOT\s+)?MATERIALIZED\b)[^\W\d][\w$]*\s*(?=\()"
    r"|(?<![\w$.])[^\W\d][\w$]*\s*\([\w\s,$']*\)\s*"
    r"(?=AS\s*(?:(?:NOT\s+)?MATERIALIZED\s*)?"
    r"\(\s*(?:\(|(?:SELECT|WITH|VALUES|TABLE)\b))",
    re.IGNORECASE,
)
# What may stand before the parenthesis that opens a table, of an own query or of a
# function; with FROM and its like it surely is one. (OPERATOR(...) is an operator, and
# so a call may follow.)
_BEFORE_TABLE = re.compile(
    r"(?:(?<![\w$.])(?P<surely>FROM|JOIN|LATERAL)\b|[,(])\s*"
    r"(?P<called>(?:(?:[\w$]+|'')\s*\.\s*)*(?!OPERATOR\b)[^\W\d][\w$]*\s*)?$",
    re.IGNORECASE,
)
_OWN_QUERY = re.compile(r"\s*(?:\(|(?:SELECT|WITH|VALUES|TABLE)\b)", re.IGNORECASE)
# Behind the one that closes it: an alias with a list of columns.
_ALIAS = re.compile(
    r"\s*(?:WITH\s+ORDINALITY\s+)?(?!AS\b)([^\W\d][\w$]*)(?=\s*\()", re.IGNORECASE
)
_PARENTHESES = re.compile(r"[()]")
_LONGEST_NAME = 300  # with its schema; a longer one is not looked at
# Beside those that are known as words: what may stand before a parenthesis.
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
_CALLS = re.compile(r"\b([A-Za-z_]\w*)\s*\(")
_READING_PRAGMAS = re.compile(
    r"\s*PRAGMA\s+(?:\w+\.)?(?:(?:table_x?info|table_list|index_list|index_x?info"
    r"|foreign_key_list|database_list|collation_list|function_list|compile_options"
    r"|pragma_list|module_list)\b[^=;]*"
    # These set what they are given.
    r"|(?:foreign_keys|journal_mode|user_version|schema_version|data_version"
    r"|application_id|page_count|page_size|freelist_count|cache_size|synchronous"
    r"|encoding|auto_vacuum|busy_timeout|query_only|recursive_triggers)\s*)$",
    re.IGNORECASE,
)
# To begin and to end a transaction is no write; dialects and listeners do it.
_TRANSACTION = re.compile(
    r"\s*(?:BEGIN(?:\s+(?:WORK|TRANSACTION|DEFERRED))*|START\s+TRANSACTION|COMMIT|END"
    r"|ROLLBACK|ABORT|SAVEPOINT|RELEASE|PREPARE\s+TRANSACTION|XA)\b"
    # Nor may a comment that is executed say more.
    r"(?!\s+(?:IMMEDIATE|EXCLUSIVE|NOT)\b)(?!.*(?:\bREAD\s+WRITE\b|/\*M?!))",
    re.IGNORECASE | re.DOTALL,
)
# A replica's sessions are read only; this would end that.
_UNLOCKS = re.compile(r"READ(?:\s|/\*M?!\d*)+WRITE|read_only|query_only", re.IGNORECASE)
_SET_STATEMENT = re.compile(
    r"\s*SET\s+STATEMENT\b.*?\bFOR\b", re.IGNORECASE | re.DOTALL
)
# What may stand between a quoted name and the parenthesis that makes it a call.
_BETWEEN = r"(?:\s|--{line}*(?:{end}|$)|\#[^\n]*(?:\n|$)|/\*(?:[^*]|\*(?!/))*\*/)*\("
_CALLED = re.compile(_BETWEEN.format(line=r"[^\n]", end=r"\n"))
_CALLED_THERE = re.compile(_BETWEEN.format(line=r"[^\r\n]", end=r"[\r\n]"))
# The moment at which a transaction began, also as a literal; a false alarm is cheap.
_TRANSACTION_TIME = re.compile(
    rf"\b(?:{'|'.join(sorted(TRANSACTION_TIME))})\b", re.IGNORECASE
)
_QUERIES = frozenset({"SELECT", "WITH", "VALUES", "TABLE"})
_PLANS = frozenset({"EXPLAIN", "DESCRIBE", "DESC"})
_CACHED_LENGTH = 20_000


class TextClassifier:
    """Judges SQL text.

    Args:
        write_functions: Names of functions that write, beyond the well-known
            ones; case does not matter.
    """

    def __init__(self, write_functions: Iterable[str] = ()) -> None:
        added = dict.fromkeys(map(str.lower, write_functions), Kind.WRITE)
        self._added = frozenset(added)
        self._functions = {
            **dict.fromkeys(LOCKING, Kind.LOCK),
            **dict.fromkeys(WRITING, Kind.WRITE),
            **dict.fromkeys(SETTING, Kind.SETTING),
            **added,
        }
        # Bounded in entries here, and in their size by _CACHED_LENGTH.
        self._statement = lru_cache(maxsize=1024)(self._judge)
        self._fragment = lru_cache(maxsize=1024)(self._judge_fragment)
        self._writing = lru_cache(maxsize=1024)(self._judge_writing)
        self._found = lru_cache(maxsize=1024)(self._find_writes)

    def statement(self, sql: str) -> Kind:
        """Return what a statement does; of several in one string, the most."""
        return (self._judge if len(sql) > _CACHED_LENGTH else self._statement)(sql)

    def fragment(self, sql: str) -> Kind:
        """Return what a piece of a statement does: only its calls can do anything."""
        return (self._judge_fragment if len(sql) > _CACHED_LENGTH else self._fragment)(
            sql
        )

    def called(self, sql: str) -> Kind:
        """Return what a query does that is known to hold no other statement.

        Only its calls and its locking clauses can do anything, whatever the names in
        it are.
        """
        return max(map(self._judge_called, _readings(sql)))

    def may_write(self, sql: str, dialect: str = "") -> bool:
        """Whether a statement writes, or calls what is not known to write nothing.

        Args:
            sql: The statement.
            dialect: SQLAlchemy's name for the server's dialect, whose functions are
                known.
        """
        judge = self._judge_writing if len(sql) > _CACHED_LENGTH else self._writing
        return judge(sql, dialect)

    def writes(self, sql: str, dialect: str) -> tuple[TableWrite, ...] | None:
        """Return what a statement does to which tables; None where that is not sure.

        Args:
            sql: The statement.
            dialect: SQLAlchemy's name for the server's dialect.
        """
        find = self._find_writes if len(sql) > _CACHED_LENGTH else self._found
        return find(sql, dialect)

    def stands_alone(self, sql: str) -> bool:
        """Whether PostgreSQL answers a read alike in a transaction of its own.

        If each statement sees the newest data anyway. One query, and nothing in it
        that is fixed when its transaction begins, or that is not known.
        """
        match = _FIRST_WORD.match(_bare(sql, _STANDARD))
        return (
            match is not None
            and match.group(1).upper() in _QUERIES
            and ";" not in sql
            and not _TRANSACTION_TIME.search(sql)
            and not self.may_write(sql, "postgresql")
        )

    def _find_writes(self, sql: str, dialect: str) -> tuple[TableWrite, ...] | None:
        known = _WORDS.get(dialect, frozenset()) | SEQUENCE

        def computes(name: str) -> bool:
            return name in known and name not in self._added

        return find_writes(sql, dialect, computes)

    def _judge_writing(self, sql: str, dialect: str) -> bool:
        if self.statement(sql) is Kind.WRITE:
            return True
        known = _WORDS.get(dialect, _ANY_WORDS)
        # Not by way of kinds: a query that locks may call anything too.
        return any(
            self.function(name) is not Kind.LOCK
            and not (schema.lower() in _SYSTEM_SCHEMAS and name.lower() in known)
            for bare in _readings(sql)
            for schema, name in _CALLED_NAMES.findall(_without_lists(bare))
        )

    def function(self, name: str) -> Kind:
        """Return what a function of this name does."""
        return self._functions.get(name.lower(), Kind.READ)

    def _judge(self, sql: str) -> Kind:
        kind = self._judge_bare(_bare(sql, _STANDARD))
        if _READ_DIFFERENTLY.search(sql):
            # What is hidden depends on the server; take the worst reading.
            kind = max(kind, self._judge_bare(_bare(sql, _MYSQL)))
            # And of what only one of them would see, the calls, and the locks where no
            # plain string is taken apart: the server refuses the rest.
            calls = self._judge_calls(_bare(sql, _DOLLAR_NAMES))
            kind = max(kind, calls, self._judge_called(_bare(sql, _OPERATOR)))
        if _RETURN.search(sql):
            kind = max(kind, self._judge_bare(_bare(sql, _OPERATOR)))
        if kind is Kind.SETTING and _UNLOCKS.search(sql):
            return Kind.WRITE
        return kind

    def _judge_bare(self, sql: str) -> Kind:
        parts = (self._one(part) for part in sql.split(";") if part.strip())
        return max(parts, default=Kind.READ)

    def _one(self, sql: str) -> Kind:
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
        if _UNLOCKS.search(sql):
            return Kind.WRITE
        match = _SET_STATEMENT.match(sql)  # MariaDB: for one statement, which follows
        kind = self._one(sql[match.end() :]) if match else self._judge_called(sql)
        return max(Kind.SETTING, kind)

    def _explain(self, sql: str) -> Kind:
        match = _EXPLAIN.match(sql)
        if match is None or "ANALY" not in match["options"].upper():
            return Kind.READ  # a plan is shown, nothing is run
        return self._one(sql[match.end() :])

    def _query(self, sql: str) -> Kind:
        without_locks = _LOCKS.sub(" ", sql)
        if _WRITES.search(without_locks):
            return Kind.WRITE
        called = self._judge_calls(sql)
        return max(called, Kind.LOCK) if without_locks != sql else called

    def _judge_fragment(self, sql: str) -> Kind:
        return max(map(self._judge_calls, _readings(sql)))

    def _judge_called(self, bare: str) -> Kind:
        kind = self._judge_calls(bare)
        return max(kind, Kind.LOCK) if _LOCKS.search(bare) else kind

    def _judge_calls(self, bare: str) -> Kind:
        return max(map(self.function, _CALLS.findall(bare)), default=Kind.READ)


def ends_read_only(text: str) -> bool:
    """Whether a setting's name, or value, would let a read-only session write."""
    return _UNLOCKS.search(text) is not None


def _without_lists(bare: str) -> str:
    """Take out the names that have a list of columns, and so are no calls."""
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


def _readings(sql: str) -> list[str]:
    """Return what is left of SQL without comments and quotes, for each server."""
    differ = _READ_DIFFERENTLY.search(sql) is not None
    others = (_MYSQL, _OPERATOR, _DOLLAR_NAMES) if differ else ()
    return [_bare(sql, hidden) for hidden in (_STANDARD, *others)]


def _bare(sql: str, hidden: re.Pattern[str]) -> str:
    return hidden.sub(_replacement, sql)


def _replacement(found: re.Match[str]) -> str:
    text = found[0]
    if text.startswith("/*"):
        # Comments nest in PostgreSQL alone: what follows may be hidden or not.
        return " /*! " if "/*" in text[2:] else " "
    if text[0] in "-#":
        return " "
    sql, end = found.string, found.end()
    if text[0] in '"`' and (_CALLED.match(sql, end) or _CALLED_THERE.match(sql, end)):
        if found.string[max(found.start() - 2, 0) : found.start()].upper() == "U&":
            return " /*! "  # a name in escapes, which nobody needs for a read
        return " " + re.sub(r"\W", "_", text[1:-1])  # the name of what is called
    return "''"
