"""How a pin gets into the response, and the writes that no response can tell of."""

from __future__ import annotations

import logging
import time
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from flask import Request, Response

from flask_replicated.settings.config import PIN_COOKIE, default_pin_cookie

from .flask_context import app_context, endpoint_name
from .pins import CookiePins, still_counts

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from flask_replicated.settings.config import Settings

    from .flask_context import FindApp
    from .pins import PinStore

    LastWrite = Callable[[Request], float | None]

__all__ = ["OVER_WEBSOCKET", "MissedPin", "Responses", "pin_responses"]

logger = logging.getLogger("flask_replicated")

_AFTER_REQUEST = "(after the request)"
_MAX_WARNED = 1000  # endpoints; a program may create some at run time


class MissedPin(NamedTuple):
    """Why no response can tell its client of a write.

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
_SENT = MissedPin(
    "after its response had left",
    "Write before the response is returned. Where that cannot be, as in an event of a "
    f"socket, {_READ}",
)
OVER_WEBSOCKET = MissedPin(
    "over a WebSocket, which has no response",
    f"What comes over the same connection sees it; elsewhere, {_READ}",
)
_RAISED = MissedPin(
    "and then raised an error that has left the application",
    "Let an errorhandler answer it, or a middleware that is installed before "
    f"FlaskReplicated(app). Where that cannot be, {_READ}",
)
_NO_RESPONSE = MissedPin(
    "in a request that no server waits for, such as an event of a socket",
    f"What comes over the same connection sees it; elsewhere, {_READ}",
)


class Responses:
    """The responses of one application that its server waits for.

    Args:
        settings: The application's settings.
        find_app: Returns the application, or None if there is none.

    Attributes:
        store: Where the time of a client's last write is kept.
        key: Under which a WSGI environment has the response. One environment may reach
            several applications, one inside another.
    """

    def __init__(self, settings: Settings, find_app: FindApp) -> None:
        self.store: PinStore = CookiePins(
            partial(_cookie_name, settings.pin_cookie, find_app), settings.pin_seconds
        )
        self._find_app = find_app
        self._seconds = settings.pin_seconds
        self._warned: set[str] = set()
        self.key = f"flask_replicated.response.{id(self)}"

    def is_pinned(self, last_write: LastWrite, current: Request) -> bool:
        """Whether the client of a request must see a write that replicas may lack.

        Args:
            last_write: Returns when the client last wrote; ``store.last_write``, or
                what remembers its answer.
            current: The request.
        """
        if not self._seconds:
            return False
        pending: _PendingResponse | None = current.environ.get(self.key)
        return (
            pending is not None and pending.wrote_within(self._seconds)
        ) or still_counts(last_write(current), self._seconds)

    def note_write(self, last_write: LastWrite, current: Request) -> MissedPin | None:
        """Note that a request has committed a write, or may do so until it ends.

        Args:
            last_write: Returns when its client last wrote before.
            current: The request.

        Returns:
            Why no response can tell its client; None if one will.
        """
        pending = self._pending(current.environ)
        if self._seconds:
            pending.note_write(last_write)
            pending.endpoint = endpoint_name(current)
        return pending.missed

    def note_late_write(self) -> None:
        """Note that a write was committed when its request was over already.

        That is how it is when the context of its application ends.
        """
        pending = _current.get()
        if pending is not None and pending.owner is self:
            if self._seconds:
                pending.note_write()
            self.warn_missed(pending.missed, _AFTER_REQUEST)

    def note_raised(self, pending: _PendingResponse) -> None:
        """Note that an error has left the application.

        Args:
            pending: The response of the call that has raised it.
        """
        if pending.wrote_at is not None and pending.missed is None:
            self.warn_missed(_RAISED, pending.endpoint)

    def warn_missed(self, missed: MissedPin | None, endpoint: str) -> None:
        """Log, once for an endpoint, that no response tells its client of a write.

        Args:
            missed: Why; None if one does.
            endpoint: The endpoint.
        """
        warned = self._warned
        if missed is None or not self._seconds:
            return
        if endpoint in warned or len(warned) >= _MAX_WARNED:
            return
        warned.add(endpoint)
        logger.warning(
            "endpoint %r committed a write %s: its client is not pinned to the primary "
            "and may not see that write. %s",
            endpoint,
            missed.why,
            missed.remedy,
        )

    def _pending(self, environ: WSGIEnvironment) -> _PendingResponse:
        """Return the response of a request, or one that will never be sent.

        Args:
            environ: The request's environment, which keeps it from now on.
        """
        found: _PendingResponse | None = environ.get(self.key)
        if found is None:
            found = _current.get()
            if found is None or found.owner is not self or found.missed is not None:
                found = _PendingResponse(self, _NO_RESPONSE)
            environ[self.key] = found
        return found

    def pin_headers(
        self, environ: WSGIEnvironment, last_write: LastWrite | None
    ) -> list[tuple[str, str]]:
        """Remember a write; return the headers to send. It never fails a response.

        Args:
            environ: What the server has handed over.
            last_write: Returns when the client last wrote before, or None to ask the
                store.
        """
        response = Response()
        response.headers.clear()
        store = self.store
        try:
            with app_context(self._find_app()):
                request = Request(environ, populate_request=False)
                known = (last_write or store.last_write)(request)
                now = time.time()
                store.remember_write(response, max(now, known or now))
        except Exception:
            logger.exception("the write of this request could not be remembered")
        return list(response.headers)


def _cookie_name(name: str, find_app: FindApp) -> str:
    """Return the name of the pin's cookie, as the application is by now.

    A session interface, or a later setting, may have named the session's.

    Args:
        name: As the application was when the extension was registered.
        find_app: Returns the application, or None if there is none.
    """
    app = find_app()
    if app is None or PIN_COOKIE in app.config:
        return name
    try:
        session = app.session_interface.get_cookie_name(app)
    except Exception:  # noqa: BLE001 - it is the program's own
        return name
    return default_pin_cookie(session)


class _PendingResponse:
    """A response on its way to the client, and whether it has a write to tell of.

    One for each call of the application by its server. The WSGI environment holds it,
    so it is found through any middleware, also in a copy. A context variable holds it
    too, for middleware that makes an environment of its own.

    Attributes:
        owner: The responses of the application that makes it.
        missed: Why it can carry no pin; None while it can.
        last_write: Returns when the client last wrote before, as the request knows that
            has committed a write; None if there is no such request.
        endpoint: The endpoint of that request.
        wrote_at: When it has, in seconds of the monotonic clock. Later requests of
            the same connection, such as events of a socket, go by it.
    """

    __slots__ = ("endpoint", "last_write", "missed", "owner", "wrote_at")

    def __init__(self, owner: Responses, missed: MissedPin | None = None) -> None:
        self.owner = owner
        self.missed = missed
        self.last_write: LastWrite | None = None
        self.endpoint = _AFTER_REQUEST
        self.wrote_at: float | None = None

    def wrote_within(self, seconds: float) -> bool:
        """Whether a write was committed within so many seconds."""
        return self.wrote_at is not None and time.monotonic() - self.wrote_at < seconds

    def note_write(self, last_write: LastWrite | None = None) -> None:
        """Note that a write was committed, now."""
        self.wrote_at = time.monotonic()
        self.last_write = self.last_write or last_write


# The innermost response that this thread or task is to make.
_current: ContextVar[_PendingResponse | None] = ContextVar(
    "flask_replicated_response", default=None
)


def pin_responses(
    wsgi_app: WSGIApplication, responses: Responses, starts: Callable[[], None]
) -> WSGIApplication:
    """Wrap an application so that its responses carry pins.

    This runs later than any ``after_request`` function or signal, so it knows of every
    write before the headers leave. And Flask would ask at each request whether such a
    function is a coroutine.

    Args:
        wsgi_app: The application.
        responses: Its responses.
        starts: Called inside the request when its response starts.
    """
    key = responses.key

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        pending: _PendingResponse | None = environ.get(key)
        if pending is None:
            pending = environ[key] = _PendingResponse(responses)
        else:  # a middleware outside has dropped the first response
            pending.missed = None

        def start(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
            pending.missed = _SENT
            starts()
            if pending.wrote_at is not None:
                pin = responses.pin_headers(environ, pending.last_write)
                headers = [*headers, *pin]
            return start_response(status, headers, *exc_info)

        outer = _current.set(pending)
        try:
            return wsgi_app(environ, start)
        except BaseException:
            responses.note_raised(pending)
            raise
        finally:
            _current.reset(outer)

    return app
