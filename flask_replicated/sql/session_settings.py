"""Whether a setting made by PostgreSQL text ends with its transaction.

``SET LOCAL``, ``SET TRANSACTION`` and ``SET CONSTRAINTS`` do, and so does
``set_config(name, value, true)``, the only form that takes parameters. After such
settings alone a connection can be reused as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .text import cached
from .tokens import (
    Token,
    find_closing,
    is_mark,
    is_word,
    split,
    split_statements,
    tokenize,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["is_local"]

_TRUE = frozenset(
    word[:length]
    for word in ("true", "yes", "on", "1")
    for length in range(2 if word == "on" else 1, len(word) + 1)
)
"""What PostgreSQL accepts as true, unambiguous prefixes included."""
_CASTS = ("bool", "boolean", "text", "varchar")
"""Types whose casts keep true true; SQLAlchemy casts its parameters."""


def is_local(sql: str, parameters: Iterable[Any]) -> bool:
    """Whether everything that PostgreSQL text sets ends with its transaction.

    Args:
        sql: Text that sets something.
        parameters: A mapping or a sequence of parameters for each execution.
    """
    flags = _flags(sql)
    if not flags:
        return False
    sets = list(parameters) or [()]
    return all(
        flag is True or (flag is not False and all(_is_true(one, flag) for one in sets))
        for flag in flags
    )


def _is_true(parameters: Any, key: str | int) -> bool:
    """Whether a parameter is known to be true."""
    try:
        if isinstance(key, int) is isinstance(parameters, Mapping):
            return False
        value = parameters[key]
    except (KeyError, IndexError, TypeError):
        return False
    if isinstance(value, str):
        return value.strip().lower() in _TRUE
    return value is True


def _read_flags(sql: str) -> tuple[bool | str | int, ...]:
    """Return for each setting whether it is local, or which parameter decides.

    Parameters are given by name or by index. Nothing is returned where the text
    cannot be read for certain.
    """
    tokens = tokenize(sql, "postgresql")
    if tokens is None:
        return ()
    tokens = _with_places(tokens)
    flags: list[bool | str | int] = []
    for statement in split_statements(tokens):
        if is_word(statement[0], "set"):
            flags.append(_ends(statement))
        flags += _calls(statement)
    return tuple(flags)


def _ends(statement: Sequence[Token]) -> bool:
    """Whether it is SET LOCAL, TRANSACTION or CONSTRAINTS, not a setting so called."""
    return (
        len(statement) > 2  # noqa: PLR2004 - SET LOCAL and a name
        and is_word(statement[1], "local", "transaction", "constraints")
        and statement[2].kind in {"word", "name"}
        and not is_word(statement[2], "to", "from")
    )


_, _flags = cached(_read_flags, 256)


def _with_places(tokens: Iterable[Token]) -> tuple[Token, ...]:
    """Replace each positional placeholder by its index."""
    found, place = [], 0
    for token in tokens:
        if token == ("bind", "%s"):
            found.append(Token("bind", str(place)))
            place += 1
        elif token.kind == "bind" and token.text.startswith("$"):
            found.append(Token("bind", str(int(token.text[1:]) - 1)))
        else:
            found.append(token)
    return tuple(found)


def _calls(statement: Sequence[Token]) -> Iterator[bool | str | int]:
    """Return the is_local flag of each call of set_config()."""
    for index, token in enumerate(statement[:-1]):
        if _named(token).lower() != "set_config":
            continue
        if not is_mark(statement[index + 1], "("):
            continue
        schema = ""
        if index and is_mark(statement[index - 1], "."):
            schema = _named(statement[index - 2]) if index > 1 else "?"
        end = find_closing(statement, index + 1)
        # A user's own function of this name may do anything.
        known = _named(token) == "set_config" and schema in {"", "pg_catalog"}
        yield known and end is not None and _flag(statement[index + 2 : end])


def _named(token: Token) -> str:
    """Return a token's name; without quotes it is folded to lower case."""
    if token.kind == "word":
        return token.text.lower()
    return token.text if token.kind == "name" else ""


def _flag(arguments: Sequence[Token]) -> bool | str | int:
    """Return the third argument of a call, as :func:`_value` reads it."""
    parts = split(arguments)
    named = [part for part in parts if len(part) > 1 and is_mark(part[1], "=>", ":=")]
    for part in named:
        if is_word(part[0], "is_local"):
            return _value(part[2:])
    return False if named or len(parts) != 3 else _value(parts[2])  # noqa: PLR2004 - name, value and this


def _value(tokens: Sequence[Token]) -> bool | str | int:
    """Return whether a boolean expression is true, or which parameter it is."""
    while len(tokens) > 1:
        inner = _without_cast(tokens)
        if inner is None:
            return False
        tokens = inner
    if not tokens:
        return False
    kind, text = tokens[0]
    if kind == "bind":
        return int(text) if text.isdigit() else text.removeprefix("%(")[:-2]
    return (kind == "word" and text.lower() == "true") or (
        kind in {"string", "number"} and text.strip().lower() in _TRUE
    )


def _without_cast(tokens: Sequence[Token]) -> Sequence[Token] | None:
    """Return what is in parentheses, or is cast; None if nothing is."""
    if is_mark(tokens[0], "(") and find_closing(tokens, 0) == len(tokens) - 1:
        return tokens[1:-1]
    if is_word(tokens[0], "bool", "boolean") and tokens[1].kind == "string":
        return tokens[1:]
    inner, sign = tokens, is_mark(tokens[-2], "::")
    if is_word(tokens[0], "cast") and find_closing(tokens, 1) == len(tokens) - 1:
        inner = tokens[2:-1]
        sign = len(inner) > 1 and is_word(inner[-2], "as")
    return inner[:-2] if sign and is_word(inner[-1], *_CASTS) else None
