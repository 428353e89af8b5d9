"""The tokens of a statement, as one server reads them.

For what must be known for sure: which table is written, whether a setting is local.
The scanner of ``sqltext`` takes the worst of several readings; this takes one, the
server's own, and gives up where there could be another.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "Token",
    "find_closing",
    "is_mark",
    "is_word",
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
        text: What it says: names and strings without their quotes; of a schema the
            name that the model has for it, or nothing.
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
_QUOTED = r'"(?:[^"]|"")+"'
_TICKED = r"`(?:[^`]|``)+`"
_PARTS = {
    "postgresql": {
        "comment": r"--[^\r\n]*",
        # What a backslash means in a plain string is a setting. What is no ASCII may
        # be a letter there, also of a dollar quote's tag, and none here.
        "unsure": r"'(?:[^'\\]|'')*\\|[uU]&['\"]|(?![^\W\d])[^\x00-\x7f]"
        r"|\$\w*[^\x00-\x7f][\w\x80-\U0010ffff]*\$",
        "bind": r"\$\d+",
        "string": r"[eE]'(?:[^'\\]|\\.|'')*'|[bBxXnN]?'(?:[^']|'')*'"
        r"|\$(?P<tag>[A-Za-z_]\w*)?\$.*?\$(?(tag)(?P=tag))\$",
        "name": _QUOTED,
    },
    "mysql": {
        "comment": r"--(?=\s|$)[^\n]*|\#[^\n]*",
        # Double quotes are strings, or names, by a setting; so neither is a name here.
        "unsure": r"'(?:[^'\\]|'')*\\" r'|"(?:[^"\\]|"")*\\|@',
        "bind": r"\?",
        "string": r"""[bBxXnN]?'(?:[^']|'')*'|"(?:[^"]|"")*\"""",
        "name": _TICKED,
    },
    "sqlite": {
        "comment": r"--[^\n]*",
        "unsure": r"(?!)",
        "bind": r"\?\d*|[:@$][^\W\d]\w*",
        "string": r"[xX]?'(?:[^']|'')*'",
        "name": rf"{_QUOTED}|{_TICKED}|\[[^\]]+\]",
    },
}
_PATTERNS = {
    dialect: re.compile(_COMMON.format(**parts), re.VERBOSE | re.DOTALL)
    for dialect, parts in _PARTS.items()
}
_PATTERNS["mariadb"] = _PATTERNS["mysql"]


def tokenize(sql: str, dialect: str) -> tuple[Token, ...] | None:
    """Return the tokens of SQL; None where it could be read in more than one way.

    Args:
        sql: The text.
        dialect: SQLAlchemy's name for the server's dialect.
    """
    pattern = _PATTERNS.get(dialect)
    if pattern is None:
        return None
    found = []
    for match in pattern.finditer(sql):
        kind = match.lastgroup or ""
        if kind == "unsure":
            return None
        if kind != "blank":
            found.append(_token(kind, match[0]))
    return tuple(found)


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
    """Whether a token is one of these."""
    return token is not None and token.kind == "mark" and token.text in marks


def find_closing(tokens: Sequence[Token], start: int) -> int | None:
    """Return where the parenthesis or bracket that opens at *start* is closed."""
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
    """Return the parts between marks that no parentheses or brackets enclose."""
    depth, start = 0, 0
    parts: list[Sequence[Token]] = []
    for index, token in enumerate(tokens):
        if is_mark(token, "(", "["):
            depth += 1
        elif is_mark(token, ")", "]"):
            depth -= 1
        elif not depth and is_mark(token, mark):
            parts.append(tokens[start:index])
            start = index + 1
    return [*parts, tokens[start:]]


def split_statements(tokens: Sequence[Token]) -> Iterator[Sequence[Token]]:
    """Return the statements of a text, one after the other, without empty ones."""
    return (part for part in split(tokens, ";") if part)
