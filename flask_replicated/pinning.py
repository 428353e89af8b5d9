"""After a write: how a client is remembered until replicas have caught up."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

from flask import current_app
from itsdangerous import BadData, URLSafeSerializer

if TYPE_CHECKING:
    from flask import Request, Response

__all__ = ["CookiePins", "PinStore"]


class PinStore(Protocol):
    """Where the time of a client's last write is kept.

    Both calls are made inside the request, each once at the most.
    """

    def remember_write(self, response: Response, written: float) -> None:
        """Remember that this client has just written.

        Args:
            response: The response on its way to the client.
            written: When the write was committed, in seconds of Unix time.
        """

    def last_write(self, request: Request) -> float | None:
        """Return when this client last wrote, in seconds of Unix time.

        None where nothing credible is known; never an error.
        """


class CookiePins:
    """Keeps the time of the last write in a cookie of the client.

    The cookie has the session cookie's path, domain and ``Secure``, and is
    signed where the application has a ``SECRET_KEY``. Without one a client can
    pin itself to the primary, and nobody else.

    Args:
        name: The cookie's name.
        seconds: How long the browser keeps it.
    """

    _LONGEST = 200

    def __init__(self, name: str, seconds: float) -> None:
        self._name = name
        self._max_age = math.ceil(seconds)

    def remember_write(self, response: Response, written: float) -> None:
        """Set the cookie."""
        serializer = self._serializer()
        moment = f"{written:.3f}"
        cookies = current_app.session_interface
        response.set_cookie(
            self._name,
            serializer.dumps(moment) if serializer else moment,
            max_age=self._max_age,
            path=cookies.get_cookie_path(current_app),
            domain=cookies.get_cookie_domain(current_app),
            secure=cookies.get_cookie_secure(current_app),
            httponly=True,
            samesite="Lax",
        )

    def last_write(self, request: Request) -> float | None:
        """Read the cookie; one that is forged or damaged is as good as none."""
        # Nearly no request has one; this is ten times cheaper than to parse.
        if self._name not in request.environ.get("HTTP_COOKIE", ""):
            return None
        value = request.cookies.get(self._name)
        if value is None or len(value) > self._LONGEST:
            return None
        serializer = self._serializer()
        try:
            written = float(serializer.loads(value) if serializer else value)
        except (BadData, ValueError, TypeError, OverflowError):
            return None
        return written if math.isfinite(written) else None

    def _serializer(self) -> URLSafeSerializer | None:
        key = current_app.secret_key
        if not key:
            return None
        older = current_app.config.get("SECRET_KEY_FALLBACKS") or []
        return URLSafeSerializer([*older, key], salt=f"flask-replicated.{self._name}")
