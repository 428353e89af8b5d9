"""Values as they may be shown: in an error, a log line, a report to somebody else."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Mapping

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from balancers.errors import redact

__all__ = ["safe"]

_SECRET = re.compile(
    r"pass|pwd|secret|token|credential|api_?key|(?<!bind)_key", re.IGNORECASE
)
_NAME = re.compile(r"[\w.-]+")
_LONGEST = 200  # characters, or digits
_DEEPEST = 5  # containers in one another; one may even hold itself


class _Shown(str):
    """Text that is safe already, also in an error that was pickled."""

    __slots__ = ()


class _Described(_Shown):
    """A description that stands for a value: shown as it is, without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def safe(value: object, name: str = "") -> object:
    """Return a value as it may be shown, kept and pickled: without any secret.

    Numbers and short text are themselves; a URL has its password hidden, and so has
    whatever holds URLs; text that looks like a URL and is none is not shown at all,
    nor is any value that is called a password, a token or the like. Everything else
    becomes a description.

    Args:
        value: Anything.
        name: What it is called.
    """
    return "***" if _SECRET.search(name) else _safe(value, 0)


def _safe(value: object, depth: int) -> object:
    if value is None or isinstance(value, bool | float | _Shown):
        return value
    if isinstance(value, int):
        short = abs(value) < 10**_LONGEST
        return int(value) if short else _Described("<a very long number>")
    if isinstance(value, str | URL):
        return _safe_text(value) if isinstance(value, str) else _safe_url(value)
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        return _safe_items(value, depth + 1) if depth < _DEEPEST else _kind(value)
    return _safe_repr(value)


def _kind(value: object) -> _Described:
    return _Described(f"<{type(value).__name__}>")


def _safe_key(key: object, depth: int) -> object:
    shown = _safe(key, depth)
    return shown if isinstance(key, str | int | None) else _Described(shown)


def _safe_items(values: Collection[object], depth: int) -> object:
    if isinstance(values, Mapping):
        return {
            _safe_key(key, depth): _safe_item(key, one, depth)
            for key, one in values.items()
        }
    if len(values) == 2 and isinstance(values, list | tuple):  # noqa: PLR2004 - a pair
        # As the items of a mapping are.
        items = [_safe(values[0], depth), _safe_item(values[0], values[1], depth)]
    else:
        items = [_safe(one, depth) for one in values]
    if isinstance(values, list):
        return items
    # Of a set not even one that could be hashed is sure to be so afterwards.
    return tuple(items) if isinstance(values, tuple) else _Described(items)


def _safe_item(key: object, value: object, depth: int) -> object:
    named = isinstance(key, str | bytes) and _SECRET.search(str(key))
    return "***" if named else _safe(value, depth)


def _safe_text(text: str) -> object:
    if "//" in text or "@" in text:
        # Where a password or a query has an @ of its own, nobody can say where it ends.
        plain = text.count("@") + ("@" in text.partition("?")[2]) <= 1
        try:
            url = make_url(text) if plain else None
        except (ArgumentError, ValueError):  # also of a port that is no number
            url = None
        return _Described("<no URL>") if url is None else _safe_url(url, text)
    if _SECRET.search(text) and not _NAME.fullmatch(text):
        return _kind(text)  # such as 'host=h password=p w'
    return redact(text)[:_LONGEST]


def _safe_url(url: URL, text: str = "") -> str:
    """Return a URL without its password, and without a query that names a secret.

    A secret that nobody has escaped may have become any part of that query. Behind a
    user name with a slash, "company/u:password@h", it is taken for a database.
    """
    if "@" in f"{url.host}{url.database}":
        return _Described("<no URL>")
    query = f"{dict(url.query)}{text.partition('?')[2]}"
    end = ""
    if _SECRET.search(query):
        url, end = url.set(query={}), "?***"
    shown = redact(url.render_as_string(hide_password=True) + end)
    return _Shown(shown[:_LONGEST])


def _safe_repr(value: object) -> _Described:
    """Describe what is neither text nor a container by its ``repr``, if that may be."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - a foreign __repr__ must not hide the real error
        return _kind(value)
    code = inspect.isroutine(value) or inspect.isclass(value) or inspect.ismodule(value)
    if not code and ("//" in text or "@" in text or _SECRET.search(text)):
        return _kind(value)
    return _Described(redact(text)[:_LONGEST])
