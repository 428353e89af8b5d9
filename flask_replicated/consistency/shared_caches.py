"""Responses that shared caches may keep, and those that they must not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from werkzeug.datastructures import Headers
from werkzeug.http import parse_dict_header, parse_set_header

if TYPE_CHECKING:
    from flask import Request, Response

__all__ = ["keep_private", "may_be_private"]

_SAFE = frozenset({"GET", "HEAD"})
_FOR_ALL = frozenset({"public", "s-maxage", "max-age"})
_FOR_ONE = frozenset({"private", "no-store"})


def may_be_private(headers: list[tuple[str, str]]) -> bool:
    """Whether a response may be made one client's own: no shared cache is to keep it.

    One that names a lifetime, or ``public``, is for all.

    Args:
        headers: The response's headers.
    """
    given = Headers(headers)
    control = _cache_control(given)
    if control & _FOR_ONE:
        return True
    return "Expires" not in given and not control & _FOR_ALL


def _cache_control(given: Headers) -> frozenset[str]:
    """Return the names of the directives, of all headers of that name."""
    names = parse_dict_header(",".join(given.getlist("Cache-Control")))
    return frozenset(name.lower() for name in names)


def keep_private(
    request: Request, headers: list[tuple[str, str]], response: Response
) -> None:
    """Keep shared caches from a response that sets a cookie.

    Args:
        request: The request.
        headers: The response's headers.
        response: Has the headers to add to them.
    """
    if request.method not in _SAFE:
        return
    given = Headers(headers)
    if not _cache_control(given) & (_FOR_ALL | _FOR_ONE):
        response.headers.add("Cache-Control", "private")
    varies = parse_set_header(",".join(given.getlist("Vary")))
    if "*" not in varies and "Cookie" not in varies:
        response.vary.add("Cookie")
