"""Pins: where the time of a client's last write is kept, and how long it counts."""

from __future__ import annotations

import math
import time
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from flask import Request, Response, current_app
from itsdangerous import BadData, URLSafeSerializer

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CookiePins", "PinStore", "still_counts"]

# Clocks of two workers differ by a little, in seconds; more than that is a forgery.
_CLOCK_SKEW = 1.0


class PinStore(Protocol):
    """Where the time of a client's last write is kept.

    Both methods are called inside the application's context, each at most once a
    request. Only where an error's response replaces one that has begun is a write
    remembered again. The request may be over, if a middleware has held back its
    response.
    """

    def remember_write(self, response: Response, written: float) -> None:
        """Remember that this client has just written.

        Args:
            response: The response on its way to the client.
            written: When the response leaves, in seconds of Unix time, or what the
                client's own pin says if that is later.
        """

    def last_write(self, request: Request) -> float | None:
        """Return when this client last wrote, in seconds of Unix time.

        None if nothing credible is known; it never raises. If it reads from the
        database, the primary answers.
        """


class CookiePins:
    """Keeps the time of the last write in a cookie of the client.

    The cookie has the session cookie's path, domain, ``Secure``, ``SameSite`` and
    ``Partitioned``. It is signed if the application has a ``SECRET_KEY``; without one a
    client can forge its own cookie, and so pin itself to the primary, but no other.

    Args:
        find_name: Returns the cookie's name; called once, in the first request.
        seconds: How long the browser keeps it.
    """

    _MAX_LENGTH = 200
    _MAX_VALUES = 10  # each costs a signature

    def __init__(self, find_name: Callable[[], str], seconds: float) -> None:
        self._find_name = find_name
        self._max_age = math.ceil(seconds)

    @cached_property
    def _name(self) -> str:
        return self._find_name()

    def remember_write(self, response: Response, written: float) -> None:
        """Set the cookie."""
        serializer = self._serializer()
        moment = f"{written:.3f}"
        cookies = current_app.session_interface
        more = {}
        if getattr(cookies, "get_cookie_partitioned", _never)(current_app):
            more["partitioned"] = True  # older versions of Werkzeug do not take it
        response.set_cookie(
            self._name,
            serializer.dumps(moment) if serializer else moment,
            max_age=self._max_age,
            path=cookies.get_cookie_path(current_app),
            domain=cookies.get_cookie_domain(current_app),
            secure=cookies.get_cookie_secure(current_app),
            httponly=True,
            samesite=cookies.get_cookie_samesite(current_app) or "Lax",
            **more,
        )

    def last_write(self, request: Request) -> float | None:
        """Read the cookie; one that is forged or damaged counts as none.

        A browser sends one for each path and domain that set it: the latest counts.
        """
        # Few requests have one, and Flask parses all cookies to find that out.
        if self._name not in request.environ.get("HTTP_COOKIE", ""):
            return None
        values = request.cookies.getlist(self._name)[: self._MAX_VALUES]
        serializer = self._serializer() if values else None
        times = [self._time(value, serializer) for value in values]
        return max((one for one in times if one is not None), default=None)

    def _time(self, value: str, serializer: URLSafeSerializer | None) -> float | None:
        """Return the time in a cookie, or None if it is not credible."""
        if len(value) > self._MAX_LENGTH:
            return None
        try:
            written = float(serializer.loads(value) if serializer else value)
        except (BadData, ValueError, TypeError, OverflowError):
            return None
        # A time in the future would hide the others. NaN compares as false, too.
        return written if written <= time.time() + _CLOCK_SKEW else None

    def _serializer(self) -> URLSafeSerializer | None:
        key = current_app.secret_key
        if not key:
            return None
        older = current_app.config.get("SECRET_KEY_FALLBACKS") or []
        return URLSafeSerializer([*older, key], salt=f"flask-replicated.{self._name}")


def still_counts(written: float | None, seconds: float) -> bool:
    """Whether a write still pins its client.

    Args:
        written: When it was, in seconds of Unix time; None if there is none.
        seconds: How long it pins.
    """
    if written is None:
        return False
    return -_CLOCK_SKEW <= time.time() - written < seconds


def _never(_app: object) -> bool:
    return False
