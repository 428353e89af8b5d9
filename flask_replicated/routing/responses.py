"""How a pin gets into the response, and the writes that no response can tell of."""

from __future__ import annotations

import logging
import math
import time
from contextlib import nullcontext
from contextvars import ContextVar
from functools import partial
from itertools import chain, islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from flask import Request, Response, has_request_context
from werkzeug.wsgi import ClosingIterator

from flask_replicated.consistency.client import ClientTokens
from flask_replicated.consistency.shared_caches import keep_private, may_be_private
from flask_replicated.consistency.stores import before_session_is_saved
from flask_replicated.consistency.tokens import NOTHING, UNKNOWN_SERVER, Mark, Token
from flask_replicated.settings.config import PIN_COOKIE, default_pin_cookie

from .flask_context import app_context, endpoint_name, this_request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from contextlib import AbstractContextManager
    from weakref import ReferenceType

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from flask_replicated.consistency.conversations import Carried
    from flask_replicated.consistency.positions import LogPosition
    from flask_replicated.settings.config import Settings

    from .flask_context import FindApp

    FindCarried = Callable[[Request], Carried]
    Headers = list[tuple[str, str]]

__all__ = [
    "OVER_WEBSOCKET",
    "AsksPosition",
    "Explain",
    "MissedPin",
    "Responses",
    "pin_responses",
]

logger = logging.getLogger("flask_replicated")

_NOT_REMEMBERED = "the write of this request could not be remembered"
_AFTER_REQUEST = "(after the request)"
_CROSSING = 5.0
"""Seconds for which the answer to a write may have been on its way, when a request of
the same client came."""
_UNANSWERED = "_replicated_unanswered"  # an attribute of the request object
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


class Explain(NamedTuple):
    """Whether and how responses say where their request has read.

    Attributes:
        setting: ``REPLICATED_EXPLAIN``; None for debug mode.
        config: The application's configuration, whose ``DEBUG`` may change.
        add_reads: Takes the headers of the running request's response, and returns
            those to send.
    """

    setting: bool | None
    config: Mapping[str, object]
    add_reads: Callable[[Headers], Headers]


class WantsStarts(Protocol):
    """Something that may want to know when responses start.

    Attributes:
        active: Whether it does.
    """

    active: bool


class AsksPosition(Protocol):
    """A connection to a primary that can be asked for the log's position."""

    def ask_position(self) -> LogPosition | None:
        """Ask; None if it does not tell, or is closed."""


class Responses:
    """The responses of one application that its server waits for.

    Args:
        settings: The application's settings.
        find_app: Returns the application, or None if there is none.
        time_seconds: Returns how long the time of a write counts whose position is not
            known, in seconds.
        complete: Returns a token with what this process has committed since some time,
            by the monotonic clock.

    Attributes:
        tokens: What clients must be shown.
        quiet_block: Returns the block in which a store that is not the client's is
            asked, and ``REPLICATED_PIN_KEY`` called. They may use the database: the
            primary, and they pin nobody.
        key: Under which a WSGI environment has the response. One environment may reach
            several applications, one inside another.
    """

    def __init__(
        self,
        settings: Settings,
        find_app: FindApp,
        time_seconds: Callable[[], float],
        complete: Callable[[Token, float], Token],
    ) -> None:
        app = find_app()
        self.tokens = ClientTokens(
            settings.pin_store,
            cookie=partial(_cookie_name, settings.pin_cookie, find_app),
            header=settings.pin_header,
            prefix=f"flask_replicated.{'' if app is None else app.name}.",
            find_key=None if settings.pin_key is None else self._find_key,
            position_seconds=settings.position_seconds,
            time_seconds=time_seconds,
            block=self._enter_quietly,
        )
        self._find_app = find_app
        self._pin_key = settings.pin_key
        self._complete = complete
        self._warned: set[str] = set()
        self.quiet_block: Callable[[], AbstractContextManager[object]] = nullcontext
        self.key = f"flask_replicated.response.{id(self)}"

    def noted_before(self, current: Request) -> Token:
        """Return what was written over the connection of a request that never ends."""
        pending: PendingResponse | None = current.environ.get(self.key)
        return NOTHING if pending is None else pending.token

    def note_write(
        self, carried: FindCarried, current: Request, token: Token
    ) -> MissedPin | None:
        """Note that a request has committed a write, or may do so until it ends.

        Args:
            carried: Returns what its client carries.
            current: The request.
            token: What was written; without any it is not remembered.

        Returns:
            Why no response can tell its client; None if one will.
        """
        pending = self.pending(current.environ)
        if token:
            pending.note(token, carried)
            pending.endpoint = endpoint_name(current)
        return pending.missed if token else None

    def note_seen(self, carried: FindCarried, current: Request, token: Token) -> None:
        """Note what the server showed at least that a request reads from.

        Args:
            carried: Returns what its client carries.
            current: The request.
            token: What the server showed.
        """
        self.pending(current.environ).note_seen(token, carried)

    def note_primary_read(
        self,
        carried: FindCarried,
        current: Request,
        bind: int,
        connection: ReferenceType[AsksPosition],
    ) -> None:
        """Note that a request reads from the primary, where that counts.

        Args:
            carried: Returns what its client carries.
            current: The request.
            bind: The bind's id.
            connection: The connection.
        """
        pending = self.pending(current.environ)
        pending.carried, pending.has_news = pending.carried or carried, True
        pending.primary_reads = {**pending.primary_reads, bind: connection}

    def note_late_write(self, token: Token) -> None:
        """Note that a write was committed when its request was over already.

        That is how it is when the context of its application ends.
        """
        pending = _current.get()
        if pending is not None and pending.owner is self and token:
            pending.note(token)
            self.warn_missed(pending.missed, _AFTER_REQUEST)

    def note_raised(self, pending: PendingResponse) -> None:
        """Note that an error has left the application.

        Args:
            pending: The response of the call that has raised it.
        """
        if pending.token and pending.missed is None:
            self.warn_missed(_RAISED, pending.endpoint)

    def warn_missed(self, missed: MissedPin | None, endpoint: str) -> None:
        """Log, once for an endpoint, that no response tells its client of a write.

        Args:
            missed: Why; None if one does.
            endpoint: The endpoint.
        """
        warned = self._warned
        if missed is None:
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

    def pending(self, environ: WSGIEnvironment) -> PendingResponse:
        """Return the response of a request, or one that will never be sent.

        Args:
            environ: The request's environment, which keeps it from now on.
        """
        found: PendingResponse | None = environ.get(self.key)
        if found is None:
            found = _current.get()
            if found is None or found.owner is not self or found.missed is not None:
                found = PendingResponse(self, _NO_RESPONSE)
            environ[self.key] = found
        return found

    def start(
        self,
        environ: WSGIEnvironment,
        pending: PendingResponse,
        begun: _Begun,
        held: list[_HeldStart] | None,
    ) -> Any:
        """Start a response that has something to tell its client.

        Args:
            environ: What the server has handed over.
            pending: The response.
            begun: How the application has begun it.
            held: Takes the start if it is held until the body begins; None if that
                cannot be waited for.
        """
        if held:
            held.clear()  # it is begun anew

        def send() -> Any:
            pending.missed = _SENT
            headers = self.pin_headers(environ, pending, begun.headers)
            return begun.send(headers)

        if held is None or not self._may_hold(pending, begun.headers):
            return send()
        pending.missed = None
        held.append(_HeldStart(send))
        return held[0].write

    def _may_hold(self, pending: PendingResponse, headers: Headers) -> bool:
        """Whether a response that is about to start had better wait for its body.

        So it had where a pin is a time, and the body is made while it is sent. It has
        left its request by then, so only the client's own stores can be told.
        """
        if not pending.token.latest_untold or pending.primary_reads:
            return False
        if not self.tokens.store.from_client or self.tokens.in_session:
            return False
        return not any(name.lower() == "content-length" for name, _ in headers)

    def pin_headers(
        self,
        environ: WSGIEnvironment,
        pending: PendingResponse,
        headers: list[tuple[str, str]],
    ) -> list[tuple[str, str]]:
        """Remember a write; return the headers to add. It never fails a response.

        Args:
            environ: What the server has handed over.
            pending: The response.
            headers: What it has already.
        """
        response = Response()
        response.headers.clear()
        outer = _current.set(pending)
        try:
            with app_context(self._find_app()):
                request = Request(environ, populate_request=False)
                self._remember(pending, request, headers, response)
        except Exception:
            logger.exception(_NOT_REMEMBERED)
        finally:
            _current.reset(outer)
        return [header for header in response.headers if header not in headers]

    def save_in_session(self, response: Response) -> Response:
        """Remember a write before Flask saves the session; return the same response."""
        pending = _current.get()
        if pending is not None and pending.owner is self and pending.has_news:
            headers = list(response.headers)
            try:
                with before_session_is_saved():
                    self._remember(pending, this_request(), headers, response)
            except Exception:
                logger.exception(_NOT_REMEMBERED)
            else:
                pending.saved = pending.token, pending.seen
        return response

    def _remember(
        self,
        pending: PendingResponse,
        current: Request,
        headers: list[tuple[str, str]],
        response: Response,
    ) -> None:
        """Remember what a response is to tell its client.

        Args:
            pending: The response on its way.
            current: Its request.
            headers: What it has already.
            response: Takes the headers to add.
        """
        heard = (pending.carried or self.recall)(current)
        carried = token = heard.token
        if pending.token:
            written = pending.leaving()
            # The primary had all that it can ever have shown. What is beyond was lost.
            token = carried.without_positions(
                bind for bind, mark in written.items() if mark.position is not None
            )
            token = self._complete(token.merged(written), -math.inf)
        seen, ending = pending.ask_seen(), False
        if pending.saved == (pending.token, seen):
            return
        if seen and may_be_private(headers):
            marks = {bind: carried.of(bind) for bind in seen}
            ending = self.tokens.is_ending(Token(marks))
            read = {bind: mark.after_read(seen[bind]) for bind, mark in marks.items()}
            token = self._complete(
                Token({**token, **read}).merged(token.without_servers()),
                pending.began - _CROSSING,
            )
        if pending.token or heard.forgot or ending or not carried.covers(token):
            self.tokens.remember(response, token, heard)
            if self.tokens.sets_cookie(response):
                keep_private(current, headers, response)

    def _enter_quietly(self) -> AbstractContextManager[object]:
        return self.quiet_block()

    def _find_key(self) -> object:
        """Return whose request it is; ``REPLICATED_PIN_KEY`` is called once in each."""
        pending = _current.get()
        if pending is None or pending.owner is not self:
            pending = self._unanswered()
        if pending.user is None:
            try:
                pending.user = ((self._pin_key or _nobody)(), None)
            except Exception as error:  # noqa: BLE001 - the program's own
                pending.user = (None, error)
        user, failure = pending.user
        if failure is not None:
            raise failure
        return user

    def _unanswered(self) -> PendingResponse:
        """Return what keeps the user of a request that no server waits for."""
        if not has_request_context():
            return PendingResponse(self)
        current = this_request()
        kept: PendingResponse | None = getattr(current, _UNANSWERED, None)
        if kept is None or kept.owner is not self:
            kept = PendingResponse(self)
            setattr(current, _UNANSWERED, kept)
        return kept

    def recall(self, current: Request) -> Carried:
        """Return what the client of a request carries; its store is asked.

        What this process has told the client, and another answer has overwritten, is
        in it.
        """
        return self.tokens.recall(current, self._find_app())


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


def _nobody() -> None:
    return None


class PendingResponse:
    """A response on its way to the client, and whether it has a write to tell of.

    One for each call of the application by its server. The WSGI environment holds it,
    so it is found through any middleware, also in a copy. A context variable holds it
    too, for middleware that makes an environment of its own.

    Attributes:
        owner: The responses of the application that makes it.
        missed: Why it can carry no token; None while it can.
        carried: Returns what the client carries, as the request knows that has
            committed a write; None if there is no such request.
        endpoint: The endpoint of that request.
        token: What was written. Later requests of the same connection, such as events
            of a socket, go by it, too.
        seen: What the servers showed at least that were read from, where that counts.
        primary_reads: Connections to primaries that were read from, where that counts,
            by bind.
        user: What ``REPLICATED_PIN_KEY`` has returned or raised; None if it was not
            called.
        saved: What of it the session has, which is saved early.
        began: When its request came, by the monotonic clock.
        has_news: Whether there is something to tell the client.
    """

    # Of the class, as most responses change none of them, and each request has one.
    carried: FindCarried | None = None
    endpoint = _AFTER_REQUEST
    token = seen = NOTHING
    primary_reads: Mapping[int, ReferenceType[AsksPosition]] = MappingProxyType({})
    user: tuple[object, Exception | None] | None = None
    saved: tuple[Token, Token] | None = None
    has_news = False

    def __init__(self, owner: Responses, missed: MissedPin | None = None) -> None:
        self.owner = owner
        self.missed = missed
        self.began = time.monotonic()

    def note(self, token: Token, carried: FindCarried | None = None) -> None:
        """Note what was committed."""
        self.token, self.has_news = self.token.merged(token), True
        self.carried = self.carried or carried

    def note_seen(self, token: Token, carried: FindCarried) -> None:
        """Note what the server showed at least that the request reads from."""
        self.seen, self.has_news = self.seen.merged(token), True
        self.carried = self.carried or carried

    def leaving(self) -> Token:
        """Return what was written, for a response that leaves now."""
        now = time.time()
        return Token(
            {
                bind: mark._replace(
                    at=now if mark.position is not None else mark.at,
                    untold=now if mark.untold else 0.0,
                )
                for bind, mark in self.token.items()
            }
        )

    def ask_seen(self) -> Token:
        """Return what later reads must show, too, because of what was read."""
        for bind, find in self.primary_reads.items():
            connection = find()
            found = None if connection is None else connection.ask_position()
            mark = Mark(found, time.time(), replica=0 if found else UNKNOWN_SERVER)
            self.seen = self.seen.merged(Token({bind: mark}))
        self.primary_reads = {}
        return self.seen


class _Begun(NamedTuple):
    """How an application has begun its response.

    Attributes:
        start_response: The server's.
        status: The status line.
        headers: What it has already.
        exc_info: The exception whose response this is, or nothing.
    """

    start_response: StartResponse
    status: str
    headers: Headers
    exc_info: tuple[Any, ...]

    def send(self, added: Headers) -> Any:
        """Send the headers, and more; return the server's ``write()``."""
        return self.start_response(self.status, [*self.headers, *added], *self.exc_info)


class _HeldStart:
    """Headers that leave with the first part of a body that is being streamed.

    A server sends them no earlier. So a body that takes long to begin shortens no pin,
    and what is written before its first part is in time.

    Args:
        send: Sends the headers; returns the server's ``write()``.
    """

    def __init__(self, send: Callable[[], Any]) -> None:
        self._send: Callable[[], Any] | None = send
        self._write: Any = None

    def write(self, data: bytes) -> None:
        """Send a part as the standard's older way is, which needs no body."""
        self._release()
        self._write(data)

    def with_first_part(self, body: Iterable[bytes]) -> Iterable[bytes]:
        """Wait for the first part of a body, and return the same body."""
        close = getattr(body, "close", None)
        parts = iter(body)
        try:
            first = list(islice(parts, 1))
            self._release()
        except BaseException:
            if close is not None:
                close()
            raise
        return ClosingIterator(chain(first, parts), close)

    def _release(self) -> None:
        send, self._send = self._send, None
        if send is not None:
            self._write = send()


# The innermost response that this thread or task is to make.
_current: ContextVar[PendingResponse | None] = ContextVar(
    "flask_replicated_response", default=None
)


def pin_responses(
    wsgi_app: WSGIApplication,
    responses: Responses,
    starts: Callable[[], None],
    advice: WantsStarts,
    explain: Explain,
) -> WSGIApplication:
    """Wrap an application so that its responses carry pins, and say where they read.

    This runs later than any ``after_request`` function, so it knows of every write.

    Args:
        wsgi_app: The application.
        responses: Its responses.
        starts: Called inside the request when its response starts.
        advice: What wants that call; while it is not active there is none.
        explain: Whether and how responses say where their request has read.
    """
    key, (explains, config, add_reads) = responses.key, explain

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        pending: PendingResponse | None = environ.get(key)
        if pending is None:
            pending = environ[key] = PendingResponse(responses)
        else:  # a middleware outside has dropped the first response
            pending.missed = None
        held: list[_HeldStart] | None = []

        def start(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
            pending.missed = _SENT
            if advice.active:
                starts()
            if config.get("DEBUG") if explains is None else explains:
                headers = add_reads(headers)
            if not pending.has_news:
                return start_response(status, headers, *exc_info)
            begun = _Begun(start_response, status, headers, exc_info)
            return responses.start(environ, pending, begun, held)

        outer = _current.set(pending)
        try:
            body, waiting, held = wsgi_app(environ, start), held, None
            return waiting[0].with_first_part(body) if waiting else body
        except BaseException:
            responses.note_raised(pending)
            raise
        finally:
            _current.reset(outer)

    return app
