"""After a write: how its time is kept with the client, and for how long it counts."""

from __future__ import annotations

import logging
import math
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from flask import Response, current_app
from itsdangerous import BadData, URLSafeSerializer

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from flask import Request

    from .state import AppState

__all__ = [
    "ANSWERED",
    "COMMITTED",
    "CookiePins",
    "PinStore",
    "pin_responses",
    "still_counts",
]

logger = logging.getLogger("flask_replicated")

# In the WSGI environment: whether the request has committed a write, and whether
# its response has left. One key there is cheaper than to look for the request.
COMMITTED = "flask_replicated.committed"
ANSWERED = "flask_replicated.answered"


# Clocks of two workers differ by a little, in seconds; more than that is a forgery.
_CLOCKS = 1.0


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

        Should it read from the database, the primary answers.
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
    _MOST = 10  # each costs a signature

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
        """Read the cookie; one that is forged or damaged is as good as none.

        A browser sends one for each path and domain that set it: the latest counts.
        """
        # Nearly no request has one; this is ten times cheaper than to parse.
        if self._name not in request.environ.get("HTTP_COOKIE", ""):
            return None
        values = request.cookies.getlist(self._name)[: self._MOST]
        serializer = self._serializer() if values else None
        times = [self._time(value, serializer) for value in values]
        return max((one for one in times if one is not None), default=None)

    def _time(self, value: str, serializer: URLSafeSerializer | None) -> float | None:
        """Return the time that a cookie says, where it is credible."""
        if len(value) > self._LONGEST:
            return None
        try:
            written = float(serializer.loads(value) if serializer else value)
        except (BadData, ValueError, TypeError, OverflowError):
            return None
        # One from the future would hide the others; nor is there a time that is no
        # number.
        return written if written <= time.time() + _CLOCKS else None

    def _serializer(self) -> URLSafeSerializer | None:
        key = current_app.secret_key
        if not key:
            return None
        older = current_app.config.get("SECRET_KEY_FALLBACKS") or []
        return URLSafeSerializer([*older, key], salt=f"flask-replicated.{self._name}")


def still_counts(written: float | None, seconds: float) -> bool:
    """Whether a write of that time, in seconds of Unix time, still pins its client."""
    if written is None:
        return False
    return -_CLOCKS <= time.time() - written < seconds


def pin_responses(wsgi_app: WSGIApplication, state: AppState) -> WSGIApplication:
    """Wrap an application so that its responses carry pins.

    Here and not in an ``after_request`` function or a signal: this is later than
    either, so every write before the headers leave is seen, and Flask asks of
    neither whether it is a coroutine, at each request.
    """

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        return wsgi_app(environ, partial(_start, state, environ, start_response))

    return app


def _start(
    app: AppState,
    environ: WSGIEnvironment,
    start_response: StartResponse,
    status: str,
    headers: list[tuple[str, str]],
    *exc_info: Any,
) -> Any:
    environ[ANSWERED] = True
    if COMMITTED in environ and app.settings.pin_seconds:
        state = app.request_state()
        if state is not None and state.wrote_at is not None:
            headers = headers + _pin(app.pins, min(state.wrote_at, time.time()))
    return start_response(status, headers, *exc_info)


def _pin(pins: PinStore, written: float) -> list[tuple[str, str]]:
    """Remember a write; return the headers to send. It cannot fail a response."""
    response = Response()
    response.headers.clear()
    try:
        pins.remember_write(response, written)
    except Exception:
        logger.exception("the write of this request could not be remembered")
    return list(response.headers)
