"""Strips SQL of comments, literals and quoted names, which can hide keywords.

Where the dialect is known its own lexer decides. Where it is not, or where a setting
of the server decides how the text is read, every possible reading is returned.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from flask_replicated.system.patterns import pattern

from .tokens import scan

__all__ = ["Readings", "strip"]


class Readings(NamedTuple):
    """The readings of one text.

    Attributes:
        full: Readings of which everything counts.
        locking: Readings of which only calls and locking clauses count.
        calling: Readings of which only calls count.
    """

    full: tuple[str, ...]
    locking: tuple[str, ...] = ()
    calling: tuple[str, ...] = ()

    def every(self) -> tuple[str, ...]:
        """Return all readings."""
        return self.full + self.locking + self.calling


def strip(sql: str, dialect: str) -> Readings:
    """Return SQL without what can hide a keyword or a semicolon.

    A comment becomes a blank, a literal or quoted name becomes ``''``, and a quoted
    name that is called becomes a word.

    Args:
        sql: The text.
        dialect: SQLAlchemy's name for the server's dialect; empty if it is not known.
    """
    only = _strip_tokens(sql, dialect)
    return _strip_unknown(sql) if only is None else Readings((only,))


# A placeholder that hides nothing, even if the server does not take it for one.
_PLAIN_BIND = pattern(r"%\(\w+\)s|%s|__\[(?:POSTCOMPILE|SCHEMA)_\w+\]|[?:@$]\w*")


def _strip_tokens(sql: str, dialect: str) -> str | None:
    """Return SQL as its dialect reads it; None where that is not certain."""
    tokens = scan(sql, dialect)
    if tokens is None:
        return None
    parts: list[str] = []
    quoted = ""  # the name in quotes before this token, which is the part *at*
    at = 0
    for kind, text in tokens:
        if kind == "blank":
            parts.append(" ")
            continue
        if kind in {"bind", "schema"} and not _PLAIN_BIND.fullmatch(text):
            return None
        if quoted and text == "(":
            parts[at] = _called(quoted)
        # A setting of MySQL's decides whether double quotes enclose names.
        is_name = kind == "name" or (kind == "string" and text[0] == '"')
        quoted, at = text if is_name else "", len(parts)
        parts.append("''" if kind in {"string", "name"} else text)
    return "".join(parts)


def _called(quoted: str) -> str:
    """Return a quoted name as a word that can be recognised as a call."""
    return " " + re.sub(r"\W", "_", quoted[1:-1])


# Everything that can hide a keyword or a semicolon. MySQL and MariaDB execute the
# comments ``/*!`` and ``/*M!``, so these stay.
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
_STANDARD = pattern(
    _HIDDEN.format(comment=r"--[^\n]* | (?:^|(?<=\s))\#\s[^\n;]*", strings=_STRINGS)
    + _DOLLARS,
    _FLAGS,
)
# PostgreSQL: # is an operator, and a carriage return ends a line.
_POSTGRESQL = pattern(
    _HIDDEN.format(comment=r"--[^\r\n]*", strings=_STRINGS) + _DOLLARS, _FLAGS
)
# MySQL: a backslash escapes a quote, # begins a comment, -- does so only before a
# blank, and a dollar is a letter.
_AS_MYSQL = _HIDDEN.format(
    comment=r"--(?=\s|$)[^\n]* | \#[^\n]*",
    strings=r"""'(?:[^'\\]|\\.|'')*' | "(?:[^"\\]|\\.|"")*" """,
)
_MYSQL_WITH_DOLLARS = pattern(_AS_MYSQL + _DOLLARS, _FLAGS)
_MYSQL = pattern(_AS_MYSQL, _FLAGS)
_RETURNED = r"--[^\n]*\r(?!\n)"
_RETURN = pattern(_RETURNED)
_READ_DIFFERENTLY = pattern(rf"[\\#]|--(?!\s|$)|\$(?:{_TAG})?\$|{_RETURNED}")

# What may separate a quoted name from the parenthesis that makes it a call.
_BETWEEN = r"(?:\s|--{line}*(?:{end}|$)|\#[^\n]*(?:\n|$)|/\*(?:[^*]|\*(?!/))*\*/)*\("
_CALL = pattern(_BETWEEN.format(line=r"[^\n]", end=r"\n"))
_CALL_POSTGRESQL = pattern(_BETWEEN.format(line=r"[^\r\n]", end=r"[\r\n]"))


def _strip_unknown(sql: str) -> Readings:
    """Return the readings of all servers, which differ in what they hide."""
    standard = _STANDARD.sub(_replacement, sql)
    if not _READ_DIFFERENTLY.search(sql):
        return Readings((standard,))
    postgresql = _POSTGRESQL.sub(_replacement, sql)
    full: tuple[str, ...] = (standard, _MYSQL_WITH_DOLLARS.sub(_replacement, sql))
    if _RETURN.search(sql):
        full += (postgresql,)
    # Of what a single server would see, only calls count, and locks where no plain
    # string is torn apart: its read-only connection refuses the rest.
    return Readings(full, (postgresql,), (_MYSQL.sub(_replacement, sql),))


def _replacement(found: re.Match[str]) -> str:
    text = found[0]
    if text.startswith("/*"):
        # Comments nest in PostgreSQL only: what follows may be hidden or not.
        return " /*! " if "/*" in text[2:] else " "
    if text[0] in "-#":
        return " "
    sql, end = found.string, found.end()
    if text[0] in '"`' and (_CALL.match(sql, end) or _CALL_POSTGRESQL.match(sql, end)):
        if found.string[max(found.start() - 2, 0) : found.start()].upper() == "U&":
            return " /*! "  # an escaped name, which no read needs
        return _called(text)
    return "''"
