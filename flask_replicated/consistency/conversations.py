"""What this process knows of its clients, by the tokens that they carry.

A client sends the same token again and again, so what follows from it is kept.

And two answers to one client may cross on the wire, and the older token then replaces
the newer one. The process that has sent both knows: a request that comes back with one
of them is shown what the other one demands, too. No client is named for that. Its
tokens lead from one to the next, as an answer's token goes on from what its request
carried.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from hashlib import blake2b
from os import getpid
from threading import Lock
from typing import TYPE_CHECKING, Any

from .tokens import NOTHING, Token, decode, merge_texts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Keys = Sequence[str | bytes]
    Heard = Sequence[tuple["_Kept", Token]]

__all__ = ["NOBODY", "Carried", "Conversations"]

_MOST = 3000
"""Tokens that are known; at 200 writes a second, those of ten seconds and more."""
_SHORT = 512
"""Characters of a token that is kept: five binds. Of a longer one a digest is."""


class _Conversation:
    """What one client was told, as all of its tokens know."""

    __slots__ = ("token",)

    def __init__(self, token: Token) -> None:
        self.token = token


class Carried:
    """What the client of a request carries.

    Attributes:
        token: What it must be shown, without what is too old.
        lost: Whether there is more that cannot be read: the primary is to serve.
        forgot: Whether the client itself carries less than it was told.
        derived: What follows from the token alone, by who has worked that out.
    """

    def __init__(
        self,
        token: Token = NOTHING,
        *,
        lost: bool = False,
        forgot: bool = False,
        heard: Heard = (),
    ) -> None:
        self.token = token
        self.lost = lost
        self.forgot = forgot
        self.derived: dict[object, Any] = {}
        self._heard = heard

    @property
    def heard(self) -> Heard:
        """The tokens that are known here, with what their client had been told.

        That is as it was when the request came.
        """
        return self._heard

    def without(self, bind: int) -> Carried:
        """Return the same without what is demanded of one bind."""
        marks = {one: mark for one, mark in self.token.items() if one != bind}
        return Carried(
            Token(marks), lost=self.lost, forgot=self.forgot, heard=self.heard
        )


NOBODY = Carried()
"""Nothing is carried."""


class _Kept(Carried):
    """A token that is known: what a client carries that sends nothing else.

    Attributes:
        key: Under which it is known.
        conversation: What it belongs to.
        keys: The secret keys with which it was read; None if it is to be read again.
        since: From when none of it is from the future, in seconds of Unix time.
        until: From when a part of it is too old.
    """

    keys: Keys | None = None
    since = until = 0.0

    def __init__(self, key: str | bytes, token: Token) -> None:
        super().__init__(token)
        self.key = key
        self.conversation = _Conversation(token)

    @property
    def heard(self) -> Heard:
        """The token itself: where it is ready, its client had been told just that."""
        return ((self, self.token),)


class Conversations:
    """The latest ones; several threads may use it. A forked child begins anew.

    What cannot be read is not kept, or clients could fill it with that.

    Args:
        alive: Returns a token without what is too old.
        seconds: The longest life of a position.
    """

    def __init__(self, alive: Callable[[Token], Token], seconds: float) -> None:
        self._alive = alive
        self._seconds = seconds
        self._renew()

    def _renew(self) -> None:
        self._lock = Lock()
        self._known: OrderedDict[str | bytes, _Kept] = OrderedDict()
        self._process = getpid()

    def ready(self, text: str, keys: Keys) -> Carried | None:
        """Return what a client carries that sends one token, if nothing has changed.

        That is so nearly always. None if it has to be found.

        Args:
            text: The token.
            keys: The secret keys.
        """
        one = self._known.get(text)
        if (
            one is not None
            and one.token is one.conversation.token  # else it has missed an answer
            and one.keys == keys
            and one.since <= time.time() < one.until
        ):
            return one
        return None

    def find(self, texts: Sequence[str], keys: Keys) -> Carried:
        """Return what a client carries, with what it was told besides.

        Args:
            texts: The tokens that its request carries.
            keys: The secret keys.
        """
        token, whole = merge_texts(texts, keys, self._alive, self.read)
        there = filter(None, map(self._known.get, map(_key, texts)))
        # Without the lock: what comes from now on is a change.
        heard = [(one, one.conversation.token) for one in there]
        told, forgot = NOTHING, False
        for _, now in heard:
            told = told.merged(now)
        if told is not token:
            told = self._alive(told)
            forgot = not token.covers(told)
            token = token.merged(told)
        return Carried(token, lost=not whole, forgot=forgot, heard=heard)

    def read(self, text: str, keys: Keys) -> Token | None:
        """Return the token that a text is, and keep it; None if it cannot be read.

        Args:
            text: The text.
            keys: The secret keys.
        """
        if self._process != getpid():  # the lock may be one that the parent held
            self._renew()
        key = _key(text)
        one = self._known.get(key)
        if one is not None and one.keys == keys:
            return one.token
        token = decode(text, keys)
        if not token:
            self._known.pop(key, None)  # a former key could read it
        elif one is None:
            self._keep(key, token, keys)
        elif one.keys is not None:  # a former one that counts, too
            one.keys, token = list(keys), one.token
        return token

    def _keep(self, key: str | bytes, token: Token, keys: Keys) -> None:
        made = _Kept(key, token if isinstance(key, str) else NOTHING)
        if made.token is token:
            made.keys = list(keys)
            made.since, made.until = token.life(self._seconds)
        with self._lock:
            self._known.setdefault(key, made)
            while len(self._known) > _MOST:
                self._known.popitem(last=False)

    def note(self, heard: Carried, text: str, keys: Keys) -> None:
        """Note what a client is told.

        Args:
            heard: What its request carried.
            text: The token that the answer carries. It demands what the request
                carried.
            keys: The secret keys.
        """
        token = self.read(text, keys) or NOTHING
        with self._lock:
            for one, told in heard.heard:
                now = one.conversation.token
                if now is not told:  # an answer has crossed this one
                    token = now.merged(token)
            tokens = [one for one, _ in heard.heard]
            conversation = tokens[0].conversation if tokens else _Conversation(token)
            conversation.token = token
            self._join(tokens, conversation)
            answer = self._known.get(_key(text))
            for one in tokens if answer is None else (*tokens, answer):
                one.conversation = conversation
                if one.key in self._known:
                    self._known.move_to_end(one.key)

    def _join(self, tokens: Sequence[_Kept], conversation: _Conversation) -> None:
        """Let what several tokens belong to be one conversation from now on.

        Their client has sent them at a time, in cookies of several paths.
        """
        others = {one.conversation for one in tokens} - {conversation}
        if others:
            for one in list(self._known.values()):
                if one.conversation in others:
                    one.conversation = conversation


def _key(text: str) -> str | bytes:
    if len(text) <= _SHORT:
        return text
    # It may have four thousand characters.
    return blake2b(text.encode(), digest_size=16).digest()
