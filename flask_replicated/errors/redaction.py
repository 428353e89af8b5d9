"""Values without secrets: for errors, log lines and reports.

``balancers.errors.redact`` hides passwords in text, and needs the standard library
alone. This adds what takes values apart: URLs, containers, and keys that name a secret.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Mapping

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from balancers.errors import redact

__all__ = ["printable", "safe"]

_SECRET = re.compile(
    r"pass|pwd|secret|token|credential|api_?key|(?<!bind)_key", re.IGNORECASE
)
_NAME = re.compile(r"[\w.-]+")
_LONGEST = 200  # characters, or digits
_DEEPEST = 5  # nested containers; one may even contain itself


class _Shown(str):
    """Text that is safe already, even after an error was pickled."""

    __slots__ = ()


class _Described(_Shown):
    """A description in place of a value; shown without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def printable(text: object) -> str:
    """Return text for a terminal or a log: what would control one is escaped."""
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode()
        for one in str(text)
    )


def safe(value: object, name: str = "") -> object:
    """Return a value without secrets, which can be shown, kept and pickled.

    Numbers and short text stay as they are. The password of a URL is hidden, also in
    containers. Text that looks like a URL but cannot be parsed is not shown, nor is the
    value of a key such as ``password`` or ``token``. Everything else becomes a
    description.

    Args:
        value: Anything.
        name: The key or setting that has the value.
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
        # It may be an item of a mapping.
        items = [_safe(values[0], depth), _safe_item(values[0], values[1], depth)]
    else:
        items = [_safe(one, depth) for one in values]
    if isinstance(values, list):
        return items
    # The items of a set may not be hashable any more.
    return tuple(items) if isinstance(values, tuple) else _Described(items)


def _safe_item(key: object, value: object, depth: int) -> object:
    named = isinstance(key, str | bytes) and _SECRET.search(str(key))
    return "***" if named else _safe(value, depth)


def _safe_text(text: str) -> object:
    if "//" in text or "@" in text:
        # If a password or a query contains an @, it is unclear where it ends.
        plain = text.count("@") + ("@" in text.partition("?")[2]) <= 1
        try:
            url = make_url(text) if plain else None
        except (
            ArgumentError,
            ValueError,
        ):  # the latter for a bad port
            url = None
        return _Described("<no URL>") if url is None else _safe_url(url, text)
    if _SECRET.search(text) and not _NAME.fullmatch(text):
        return _kind(text)  # such as 'host=h password=p w'
    return redact(text)[:_LONGEST]


def _safe_url(url: URL, text: str = "") -> str:
    """Return a URL without its password, and without a query that names a secret.

    A secret that is not escaped may end up anywhere in the query. After a user name
    with a slash, as in "company/u:password@h", it is parsed as the database.
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
    """Describe any other object by its ``repr``, unless that may contain a secret."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - a foreign __repr__ must not hide the real error
        return _kind(value)
    code = inspect.isroutine(value) or inspect.isclass(value) or inspect.ismodule(value)
    if not code and ("//" in text or "@" in text or _SECRET.search(text)):
        return _kind(value)
    return _Described(redact(text)[:_LONGEST])
