"""What a client carries from request to request: its token, in its store."""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING

from flask import current_app, has_request_context, session

from flask_replicated.system.log_lines import Seldom

from .conversations import NOBODY, Carried, Conversations
from .safe_store import UNREADABLE
from .store_setting import make_store
from .stores import CookieStore
from .tokens import encode, merge_texts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

    from flask import Flask, Request, Response

    from .tokens import Token

__all__ = ["ClientTokens"]

logger = logging.getLogger("flask_replicated")

# The proxy's documented way to the object itself, bound once.
_this_app: Callable[[], Flask] = current_app._get_current_object  # type: ignore[attr-defined]  # noqa: SLF001 - it is not in the proxy's type
_WARNED_EVERY = 60.0  # seconds


class ClientTokens:
    """The tokens of one application's clients.

    Args:
        setting: The value of ``REPLICATED_PIN_STORE``.
        cookie: Returns the name of the cookie; called once, in the first request.
        header: The name of the header.
        prefix: What keys in a shared store begin with.
        find_key: Returns the user, for shared stores; or None.
        position_seconds: The longest life of a position.
        time_seconds: Returns how long the time of a write counts whose position is not
            known, in seconds.
        block: Returns the block in which the program's own store is asked: it may keep
            tokens in the database.

    Attributes:
        store: Where they are kept.
        cookie: The store of the client's cookie.
        in_cookies: Whether nothing but the cookie has them, which costs nothing to ask.
        in_session: Whether Flask's session has them, which is saved early.
    """

    def __init__(
        self,
        setting: object,
        *,
        cookie: Callable[[], str],
        header: str,
        prefix: str,
        find_key: Callable[[], object] | None,
        position_seconds: float,
        time_seconds: Callable[[], float],
        block: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self._position_seconds = position_seconds
        self._time_seconds = time_seconds
        self._block = block
        self._unreadable = Seldom(_WARNED_EVERY)
        self._conversations = Conversations(self._alive, position_seconds)
        self.in_cookies = setting == "cookie"
        self.in_session = setting == "session"
        self.cookie = CookieStore(cookie, self._lifetime)
        self.store = make_store(
            setting,
            cookie=self.cookie,
            header=header,
            prefix=prefix,
            find_key=find_key,
            merge=self._merge,
            seconds=self._lifetime,
        )

    def recall(self, current: Request, app: Flask | None = None) -> Carried:
        """Return what the client of a request carries.

        What it sends itself is ignored where it cannot be read.

        Args:
            current: The request.
            app: The application; None is the current one.
        """
        keys = self.keys(app)
        if self.in_cookies:
            sent = self.cookie.values(current.environ.get("HTTP_COOKIE", ""))
            ready = self._conversations.ready(sent[0], keys) if len(sent) == 1 else None
            if ready is not None:
                return ready
            # The cookie alone cannot fail, and needs no circuit breaker.
            texts = self.cookie.recall(current)
        else:
            texts = self._ask_store(current)
        if not texts:
            return NOBODY
        given = texts.split(",")
        if not self.store.from_client:
            return self._kept_elsewhere(given, keys)
        found = self._conversations.find(given, keys)
        found.lost = found.lost and not self.may_ignore()
        return found

    def _ask_store(self, current: Request) -> str:
        """Return what the store has of the client of a request."""
        with self._store_block():
            return self.store.recall(current)

    def _kept_elsewhere(self, given: list[str], keys: list[str | bytes]) -> Carried:
        """Return what a store has that is not the client's."""
        # Of a store that does not answer it is unknown; the outage is logged already.
        out = UNREADABLE in given
        given = [one for one in given if one != UNREADABLE]
        read = self._conversations.read
        token, readable = merge_texts(given, keys, self._alive, read)
        return Carried(token, lost=out or not (readable or self.may_ignore()))

    def remember(self, response: Response, token: Token, heard: Carried) -> None:
        """Keep what a client must be shown from now on.

        Args:
            response: Tells the client.
            token: What it must be shown.
            heard: What its request carried.
        """
        token = self._alive(token)
        keys = self.keys()
        text = encode(token, keys)
        with self._store_block():
            self.store.remember(response, text)
        if self.store.from_client:
            self._conversations.note(heard, text, keys)

    def sets_cookie(self, response: Response) -> bool:
        """Whether a response sets a cookie, such as that of a session that has changed.

        Args:
            response: The response, or what is added to it.
        """
        if "Set-Cookie" in response.headers:
            return True
        in_session = self.in_session and has_request_context()
        return in_session and bool(getattr(session, "modified", False))

    def is_ending(self, token: Token) -> bool:
        """Whether a client that goes on to read would soon lose its token.

        That is so in the second half of its life.
        """
        seconds, now = self._seconds(token), time.time()
        return any(now - mark.at >= seconds / 2 for mark in token.values() if mark.at)

    def may_ignore(self) -> bool:
        """Whether what cannot be read is ignored; that is logged.

        So it is with what the client sends. From another store it means the primary;
        that is a warning, once a minute at most.
        """
        ignored = self.store.from_client
        logger.log(
            logging.WARNING
            if not ignored and self._unreadable.is_due()
            else logging.DEBUG,
            "a client's token cannot be read: %s",
            "it is ignored" if ignored else "the primary serves",
        )
        return ignored

    @staticmethod
    def keys(app: Flask | None = None) -> list[str | bytes]:
        """Return the secret keys of an application, the one to sign with last.

        Args:
            app: The application; None is the current one.
        """
        config = (_this_app() if app is None else app).config
        key, older = config.get("SECRET_KEY"), config.get("SECRET_KEY_FALLBACKS")
        return [*(older or ()), key] if key else []

    def _merge(self, texts: Iterable[str]) -> str:
        keys = self.keys()
        return encode(merge_texts(texts, keys, self._alive)[0], keys)

    def _alive(self, token: Token) -> Token:
        untold = self._time_seconds() if token.latest_untold else 0.0
        return token.alive(time.time(), self._position_seconds, untold)

    def _lifetime(self, text: str) -> float:
        return self._seconds(merge_texts([text], self.keys())[0])

    def _seconds(self, token: Token) -> float:
        """Return how long a token is kept, in seconds."""
        lasts = any(mark.at for mark in token.values())
        seconds = self._time_seconds()
        return max(self._position_seconds, seconds) if lasts else seconds

    def _store_block(self) -> AbstractContextManager[object]:
        """Return the block to ask the store in: only the program's own needs one."""
        return nullcontext() if self.store.from_client else self._block()
