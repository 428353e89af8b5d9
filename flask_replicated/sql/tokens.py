"""The lexer: the tokens of a statement, as one server reads them.

One for each dialect. It gives up where there could be another reading, because it
depends on a setting of the server, or because the dialect is not known.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from flask_replicated.system.patterns import pattern

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = [
    "Token",
    "find_closing",
    "is_mark",
    "is_word",
    "outside_parentheses",
    "scan",
    "split",
    "split_statements",
    "tokenize",
]


class Token(NamedTuple):
    """One token of SQL.

    Attributes:
        kind: ``'word'`` (a keyword, or a name without quotes), ``'name'`` (a quoted
            one), ``'schema'`` (one that ``schema_translate_map`` stands for),
            ``'string'``, ``'number'``, ``'bind'`` (a placeholder) or ``'mark'``
            (anything else).
        text: The text; of names and strings without their quotes, of a schema the
            model's own name for it, or nothing.
    """

    kind: str
    text: str


_COMMON = r"""
    (?P<blank>(?a:\s)+|/\*(?!M?!)(?:[^*/]|\*(?!/)|/(?!\*))*\*/|{comment})
  | (?P<unsure>/\*|{unsure})
  | (?P<bind>%\([^)]*\)s|%s|__\[POSTCOMPILE_[^\]]*\]|{bind})
  | (?P<schema>__\[SCHEMA_[^\]]+\])
  | (?P<string>{string})
  | (?P<name>{name})
  | (?P<number>\d[\w.]*)
  | (?P<word>[^\W\d][\w$]*)
  | (?P<mark>::|:=|=>|%%|.)
"""
_QUOTED = r'"(?:[^"]|"")*"'
_TICKED = r"`(?:[^`]|``)*`"
_PARTS = {
    "postgresql": {
        "comment": r"--[^\r\n]*",
        # A setting decides what a backslash means in a plain string. A character that
        # is not ASCII is a letter for the server, also in the tag of a dollar quote,
        # and may be none for Python.
        "unsure": r"'(?:[^'\\]|'')*\\|[uU]&['\"]|(?![^\W\d])[^\x00-\x7f]"
        r"|\$\w*[^\x00-\x7f][\w\x80-\U0010ffff]*\$",
        "bind": r"\$\d+",
        "string": r"[eE]'(?:[^'\\]|\\.|'')*'|[bBxXnN]?'(?:[^']|'')*'"
        r"|\$(?P<tag>[A-Za-z_]\w*)?\$.*?\$(?(tag)(?P=tag))\$",
        "name": _QUOTED,
    },
    "mysql": {
        "comment": r"--(?=(?a:\s)|$)[^\n]*|\#[^\n]*",
        # A setting decides what a backslash means. And -- begins a comment only
        # before what the server takes for a blank.
        "unsure": r"'(?:[^'\\]|'')*\\" r'|"(?:[^"\\]|"")*\\|@|--[^\x21-\x7e]',
        "bind": r"\?",
        # A setting decides whether double quotes enclose strings or names.
        "string": r"""[bBxXnN]?'(?:[^']|'')*'|"(?:[^"]|"")*\"""",
        "name": _TICKED,
    },
    "sqlite": {
        "comment": r"--[^\n]*",
        "unsure": r"(?!)",
        "bind": r"\?\d*|[:@$][^\W\d]\w*",
        "string": r"[xX]?'(?:[^']|'')*'",
        "name": rf"{_QUOTED}|{_TICKED}|\[[^\]]*\]",
    },
}
_PATTERNS = {
    dialect: pattern(_COMMON.format(**parts), re.VERBOSE | re.DOTALL)
    for dialect, parts in _PARTS.items()
}
_PATTERNS["mariadb"] = _PATTERNS["mysql"]


def tokenize(sql: str, dialect: str) -> tuple[Token, ...] | None:
    """Return the tokens of SQL, without blanks and comments.

    None is returned where the dialect is unknown, or where the server's settings
    decide between several readings.

    Args:
        sql: The text.
        dialect: SQLAlchemy's name for the server's dialect.
    """
    tokens = scan(sql, dialect)
    if tokens is None:
        return None
    return tuple(_token(kind, text) for kind, text in tokens if kind != "blank")


def scan(sql: str, dialect: str) -> list[tuple[str, str]] | None:
    """Return kind and text of each token, blanks and comments included.

    Together the texts are the SQL. None is returned where :func:`tokenize` does so.
    """
    found = _PATTERNS.get(dialect)
    if found is None:
        return None
    tokens = []
    for match in found.finditer(sql):
        kind = match.lastgroup or ""
        if kind == "unsure":
            return None
        tokens.append((kind, match[0]))
    return tokens


def _token(kind: str, text: str) -> Token:
    if kind == "name":
        quote = "]" if text[0] == "[" else text[0]
        return Token("name", text[1:-1].replace(quote * 2, quote))
    if kind == "string" and text[0] == "'":
        return Token("string", text[1:-1].replace("''", "'"))
    if kind == "schema":
        schema = text.removeprefix("__[SCHEMA_").removesuffix("]")
        return Token("schema", "" if schema == "_none" else schema)
    return Token(kind, text)


def is_word(token: Token | None, *words: str) -> bool:
    """Whether a token is one of these keywords, which are in lower case."""
    return token is not None and token.kind == "word" and token.text.lower() in words


def is_mark(token: Token | None, *marks: str) -> bool:
    """Whether a token is one of these punctuation marks or operators."""
    return token is not None and token.kind == "mark" and token.text in marks


def find_closing(tokens: Sequence[Token], start: int) -> int | None:
    """Return the index where the parenthesis or bracket at *start* is closed."""
    depth = 0
    for index in range(start, len(tokens)):
        if is_mark(tokens[index], "(", "["):
            depth += 1
        elif is_mark(tokens[index], ")", "]"):
            depth -= 1
            if not depth:
                return index
    return None


def split(tokens: Sequence[Token], mark: str = ",") -> list[Sequence[Token]]:
    """Split tokens at marks outside parentheses and brackets."""
    start = 0
    parts: list[Sequence[Token]] = []
    for index, token in outside_parentheses(tokens):
        if is_mark(token, mark):
            parts.append(tokens[start:index])
            start = index + 1
    return [*parts, tokens[start:]]


def outside_parentheses(tokens: Iterable[Token]) -> Iterator[tuple[int, Token]]:
    """Return what is outside of parentheses and brackets, each with its index."""
    depth = 0
    for index, token in enumerate(tokens):
        if is_mark(token, "(", "["):
            depth += 1
        elif is_mark(token, ")", "]"):
            depth -= 1
        elif not depth:
            yield index, token


def split_statements(tokens: Sequence[Token]) -> Iterator[Sequence[Token]]:
    """Return the statements of a text in order, without empty ones."""
    return (part for part in split(tokens, ";") if part)
