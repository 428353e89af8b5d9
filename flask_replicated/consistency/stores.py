"""Pin stores: where the token of a client's last write is kept between its requests.

These three hand it to the client. Those in ``shared_stores.py`` keep it at the server,
by user. A token is opaque here: URL-safe text, without a comma.
"""

from __future__ import annotations

import math
import re
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from flask import after_this_request, current_app, has_request_context, session
from flask.sessions import SecureCookieSessionInterface

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from flask import Request, Response

    Lifetime = float | Callable[[str], float]
    Merge = Callable[[Iterable[str]], str]

__all__ = [
    "MAX_TOKEN",
    "MAX_TOKENS",
    "CookieStore",
    "HeaderStore",
    "NotStoredError",
    "PinStore",
    "SessionStore",
    "before_session_is_saved",
    "seconds_of",
]

MAX_TOKEN = 4096
"""Characters that a token may have; a browser keeps no longer cookie either."""

MAX_TOKENS = 10
"""Tokens that are looked at of one request: each costs a signature."""

_IN_SESSION = "_replicated_pin"
"""Where in Flask's session the token is."""


class PinStore(Protocol):
    """Where the token of a client's last write is kept.

    Both methods are called inside the application's context, each at most once a
    request. Only where an error's response replaces one that has begun, the token is
    remembered again. What a method raises is logged, and fails no request.
    """

    def remember(self, response: Response, token: str) -> None:
        """Keep what this client must see from now on.

        Args:
            response: The response on its way to the client. Its headers count, its
                body does not.
            token: URL-safe text. It covers what the client's own request carried.
        """

    def recall(self, request: Request) -> str:
        """Return what this client must see.

        Args:
            request: The client's request.

        Returns:
            The token; several, separated by commas, add up; ``""`` if there is none.
        """


class NotStoredError(Exception):
    """A store cannot keep the token of this one request, which is no outage."""


class CookieStore:
    """Keeps the token in a cookie of the client.

    The cookie has the session cookie's path, domain, ``Secure``, ``SameSite`` and
    ``Partitioned``, and is ``HttpOnly``.

    Args:
        name: The cookie's name, or a function that returns it, which is called once,
            inside the application's context.
        seconds: How long the browser keeps it; or a function of the token.
    """

    def __init__(self, name: str | Callable[[], str], seconds: Lifetime) -> None:
        self._find_name = name
        self._seconds = seconds

    @cached_property
    def name(self) -> str:
        """The cookie's name."""
        found = self._find_name
        return found if isinstance(found, str) else found()

    @cached_property
    def values(self) -> Callable[[str], list[str]]:
        """Finds its values in the header of a request, without a look at their form."""
        # What a pattern begins with is found fastest, so the name comes first.
        name = re.escape(self.name)
        return re.compile(rf"{name}(?<![^; \t]{name})[ \t]*=([^;]*)").findall

    def remember(self, response: Response, token: str) -> None:
        """Set the cookie."""
        cookies = current_app.session_interface
        more = {}
        if getattr(cookies, "get_cookie_partitioned", _never)(current_app):
            more["partitioned"] = True  # older versions of Werkzeug do not take it
        response.set_cookie(
            self.name,
            token,
            max_age=math.ceil(seconds_of(self._seconds, token)),
            path=cookies.get_cookie_path(current_app),
            domain=cookies.get_cookie_domain(current_app),
            secure=cookies.get_cookie_secure(current_app),
            httponly=True,
            samesite=cookies.get_cookie_samesite(current_app) or "Lax",
            **more,
        )

    def recall(self, request: Request) -> str:
        """Read the cookie. A browser sends one for each path and domain that set it."""
        # Flask would parse all cookies. In a token nothing is ever escaped.
        sent = self.values(request.environ.get("HTTP_COOKIE", ""))
        return _joined(one.strip(' \t"') for one in sent)


class HeaderStore:
    """Tells the client the token in a header, which it is to send back.

    For clients that keep no cookies, such as apps and other services. Of several
    responses that crossed, a client may send all tokens: the header repeated, or their
    values separated by commas.

    Args:
        name: The header's name.
        stands_in: Whether it does so for another store that fails. Clients send nothing
            as a rule then, so what is read for them does not depend on it.
    """

    def __init__(self, name: str, *, stands_in: bool = False) -> None:
        self.name = name
        self._stands_in = stands_in

    def remember(self, response: Response, token: str) -> None:
        """Set the header, and name it in ``Vary``."""
        response.headers[self.name] = token
        response.vary.add(self.name)

    def recall(self, request: Request) -> str:
        """Read the header, and name it in the ``Vary`` of what depends on it.

        A shared cache then never answers a client that has a token with what it has
        kept for one that has none, or an older one.
        """
        if not self._stands_in and has_request_context():
            after_this_request(self._vary)
        # Servers join repeated headers by commas.
        given = request.headers.getlist(self.name)
        return _joined(part for one in given for part in one.split(",", MAX_TOKENS))

    def _vary(self, response: Response) -> Response:
        response.vary.add(self.name)
        return response


_unsaved: ContextVar[bool] = ContextVar("flask_replicated_unsaved", default=False)


@contextmanager
def before_session_is_saved() -> Iterator[None]:
    """Allow :meth:`SessionStore.remember`: Flask will save the session after this.

    It does so after all ``after_request`` functions, before the headers leave.
    """
    token = _unsaved.set(True)
    try:
        yield
    finally:
        _unsaved.reset(token)


class SessionStore:
    """Keeps the token in Flask's session, wherever the application keeps that.

    A session that is cleared, as at a logout, loses it.
    """

    def remember(self, _response: Response, token: str) -> None:
        """Put the token into the session.

        Raises:
            NotStoredError: The session may be saved already; see
                :func:`before_session_is_saved`.
        """
        if not (_unsaved.get() and has_request_context()):
            raise NotStoredError("the session is saved already")
        if session.get(_IN_SESSION) != token:
            session[_IN_SESSION] = token

    def recall(self, request: Request) -> str:
        """Look into the session.

        Raises:
            NotStoredError: The request is over, and its session gone.
            TypeError: The application has put something else there.
        """
        if not has_request_context():
            raise NotStoredError("the request is over")
        if _has_no_session(request):
            return ""
        found: object = session.get(_IN_SESSION, "")
        if not isinstance(found, str):
            raise TypeError(
                f"session[{_IN_SESSION!r}] is {type(found).__name__}, not str"
            )
        return _joined([found])


def _has_no_session(request: Request) -> bool:
    """Whether the client certainly has none.

    Looking for it there would add ``Vary: Cookie`` to its response.
    """
    sessions = current_app.session_interface
    return isinstance(sessions, SecureCookieSessionInterface) and (
        sessions.get_cookie_name(current_app)
        not in request.environ.get("HTTP_COOKIE", "")
    )


def seconds_of(lifetime: Lifetime, token: str) -> float:
    """Return how many seconds a token is to be kept."""
    return lifetime(token) if callable(lifetime) else lifetime


def _joined(texts: Iterable[str]) -> str:
    """Return tokens as one text, without those that cannot be any.

    A client may send anything, in any number.
    """
    found: dict[str, None] = {}
    for number, text in enumerate(texts):
        if number >= MAX_TOKENS:
            break
        one = text.strip()
        if one and len(one) <= MAX_TOKEN and one.isascii() and "," not in one:
            found[one] = None
    return ",".join(found)


def _never(_app: object) -> bool:
    return False
