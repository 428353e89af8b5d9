"""After a write: how its time is kept with the client, and for how long it counts."""

from __future__ import annotations

import logging
import math
import time
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from flask import Request, Response, current_app
from itsdangerous import BadData, URLSafeSerializer

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from .state import AppState, RequestState

__all__ = [
    "CURRENT",
    "NO_RESPONSE",
    "OVER_A_SOCKET",
    "CookiePins",
    "NoPin",
    "Outgoing",
    "PinStore",
    "pin_responses",
    "still_counts",
]

logger = logging.getLogger("flask_replicated")


class NoPin(NamedTuple):
    """Why no response tells its client of a write.

    Attributes:
        why: Where the write was committed.
        remedy: What to do about it.
    """

    why: str
    remedy: str


_READ = (
    "read from the primary what must be seen: @use_master_database, or 'with "
    "using_master():'."
)
_LEFT = NoPin(
    "after its response had left",
    "Write before the response is returned. Where that cannot be, as in an event of a "
    f"socket, {_READ}",
)
OVER_A_SOCKET = NoPin(
    "over a WebSocket, which has no response",
    f"What comes over the same connection sees it; elsewhere, {_READ}",
)
NO_RESPONSE = NoPin(
    "in a request that no server waits for, such as an event of a socket",
    f"What comes over the same connection sees it; elsewhere, {_READ}",
)

# Clocks of two workers differ by a little, in seconds; more than that is a forgery.
_CLOCKS = 1.0


class PinStore(Protocol):
    """Where the time of a client's last write is kept.

    Both calls are made inside the application's context, each once at the most in a
    request; a write is remembered again where an error's response replaces one that has
    begun. The request may be over, where a middleware has held its response back.
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

        Should it read from the database, the primary answers.
        None where nothing credible is known; never an error.
        """


class CookiePins:
    """Keeps the time of the last write in a cookie of the client.

    The cookie has the session cookie's path, domain, ``Secure``, ``SameSite`` and
    ``Partitioned``, and is signed where the application has a ``SECRET_KEY``. Without
    one a client can pin itself to the primary, and nobody else.

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
        more = {}
        if getattr(cookies, "get_cookie_partitioned", _never)(current_app):
            more["partitioned"] = True  # which not every Werkzeug knows
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


class Outgoing:
    """A response on its way to the client, and whether it has a write to tell of.

    One for each call of the application by its server. It lies in the WSGI environment,
    where it is found through any middleware, also in a copy; and in a context variable,
    for those that make an environment of their own.

    Attributes:
        app: The application's state.
        lost: Why it can bring no pin; None while it can.
        state: The request that has committed a write, or None.
        wrote_at: When that was, in seconds of a clock that never goes backwards. Later
            requests of the same connection, such as events of a socket, go by it.
    """

    __slots__ = ("app", "lost", "state", "wrote_at")

    def __init__(self, app: AppState, lost: NoPin | None = None) -> None:
        self.app = app
        self.lost = lost
        self.state: RequestState | None = None
        self.wrote_at: float | None = None

    def wrote_within(self, seconds: float) -> bool:
        """Whether a write was committed within so many seconds."""
        return self.wrote_at is not None and time.monotonic() - self.wrote_at < seconds

    def note(self, state: RequestState | None = None) -> None:
        """Note that a write was committed, by a request that is over if not given."""
        if self.app.settings.pin_seconds:
            self.wrote_at = time.monotonic()
            self.state = self.state or state

    def pins(self, environ: WSGIEnvironment) -> list[tuple[str, str]]:
        """Remember the write; return the headers to send. It cannot fail a response.

        Args:
            environ: What the server has handed over.
        """
        response = Response()
        response.headers.clear()
        pins = self.app.pins
        try:
            with self.app.context():
                request = Request(environ, populate_request=False)
                known = (self.state or pins).last_write(request)
                now = time.time()
                pins.remember_write(response, max(now, known or now))
        except Exception:
            logger.exception("the write of this request could not be remembered")
        return list(response.headers)


CURRENT: ContextVar[Outgoing | None] = ContextVar(
    "flask_replicated_outgoing", default=None
)
"""The innermost response that this thread or task is to make."""


def pin_responses(wsgi_app: WSGIApplication, state: AppState) -> WSGIApplication:
    """Wrap an application so that its responses carry pins.

    Here and not in an ``after_request`` function or a signal: this is later than
    either, so every write before the headers leave is seen, and Flask asks of
    neither whether it is a coroutine, at each request.
    """

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        outgoing: Outgoing | None = environ.get(state.outgoing_key)
        if outgoing is None:
            outgoing = environ[state.outgoing_key] = Outgoing(state)
        else:  # a middleware outside has dropped the first response
            outgoing.lost = None
        outer = CURRENT.set(outgoing)
        try:
            return wsgi_app(environ, partial(_start, outgoing, environ, start_response))
        finally:
            CURRENT.reset(outer)

    return app


def _start(
    outgoing: Outgoing,
    environ: WSGIEnvironment,
    start_response: StartResponse,
    status: str,
    headers: list[tuple[str, str]],
    *exc_info: Any,
) -> Any:
    outgoing.lost = _LEFT
    if outgoing.app.habits.active:
        outgoing.app.answered()
    if outgoing.wrote_at is not None:
        headers = [*headers, *outgoing.pins(environ)]
    return start_response(status, headers, *exc_info)


def _never(_app: object) -> bool:
    return False
