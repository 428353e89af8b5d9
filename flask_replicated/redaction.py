"""Values as they may be shown: in an error, a log line, a report to somebody else."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from balancers import redact

__all__ = ["safe"]

_SECRET = re.compile(r"pass|pwd|secret|token|credential|key", re.IGNORECASE)
_LONGEST = 200  # characters, or digits


class _Described(str):
    """A description that stands for a value: shown as it is, without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def safe(value: object) -> object:
    """Return a value as it may be shown, kept and pickled: without any secret.

    Numbers and short text are themselves; a URL has its password hidden, and so has
    whatever holds URLs; text that looks like a URL and is none is not shown at all.
    Everything else becomes a description.
    """
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        short = abs(value) < 10**_LONGEST
        return value if short else _Described("<a very long number>")
    if isinstance(value, str | URL):
        return _safe_text(value)
    if isinstance(value, Mapping):
        return {_safe_key(key): _safe_item(key, one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return _safe_items(value)
    return _Described(redact(repr(value))[:_LONGEST])


def _safe_key(key: object) -> object:
    return safe(key) if isinstance(key, str | int | None) else _Described(safe(key))


def _safe_items(values: Collection[object]) -> object:
    items = [safe(one) for one in values]
    if isinstance(values, list):
        return items
    # Of a set not even one that could be hashed is sure to be so afterwards.
    return tuple(items) if isinstance(values, tuple) else _Described(items)


def _safe_item(key: object, value: object) -> object:
    return "***" if _SECRET.search(str(key)) else safe(value)


def _safe_text(value: str | URL) -> str:
    text = str(value)
    if isinstance(value, URL) or "//" in text or "@" in text:
        try:
            text = make_url(value).render_as_string(hide_password=True)
        except (ArgumentError, ValueError):  # also of a port that is no number
            return _Described("<no URL>")
    return redact(text)[:_LONGEST]
