"""Pin stores at the server, by user: Redis, and any cache that has get and set.

They serve a user on all devices, and clients that keep neither cookies nor headers.
"""

from __future__ import annotations

import importlib
import math
import time
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Protocol

from flask_replicated.settings.validators import close_coroutine

from .stores import MAX_TOKEN, NotStoredError, seconds_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from flask import Request, Response

    from .stores import Lifetime, Merge

    FindKey = Callable[[], object]

__all__ = ["Cache", "CacheStore", "RedisStore", "connect_redis"]

_TIMEOUT = 0.2
"""Seconds for a connect to Redis, and for each of its answers."""

_PATIENCE = 1.0
"""Seconds after which nothing is tried again because others write the same key."""

_ATTEMPTS = 3
"""How often a cache is written where others write the same key."""

# Text that is too long for a token is another program's: it is not sent over the wire,
# and gets overwritten.
_REPLACE = f"""
local now = redis.call('GET', KEYS[1]) or ''
if now ~= ARGV[1] and #now <= {MAX_TOKEN} then return now end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return false
"""


class _KeyedStore:
    """Finds out whose token it is.

    Args:
        prefix: What the names of all keys begin with.
        find_key: Returns the user, or None if there is none, and keeps the answer for
            a request.
        merge: Returns the maximum of several tokens, without those it cannot read.
        seconds: How long a token is kept; or a function of the token.
    """

    def __init__(
        self, prefix: str, find_key: FindKey, merge: Merge, seconds: Lifetime
    ) -> None:
        self._prefix = prefix
        self._find_key = find_key
        self._merge = merge
        self._seconds = seconds

    def _name(self) -> str:
        """Return the key in the store.

        Raises:
            NotStoredError: There is no user.
            TypeError: The user is neither text nor a number.
        """
        user = self._find_key()
        if user is None or user == "":
            raise NotStoredError("REPLICATED_PIN_KEY has returned None")
        close_coroutine(user)
        if not isinstance(user, str | int) or isinstance(user, bool):
            raise TypeError(
                f"REPLICATED_PIN_KEY returned {type(user).__name__}, not str or None"
            )
        # It may be of any length, have any characters, and be an e-mail address.
        digest = sha256(str(user).encode(errors="surrogatepass")).hexdigest()
        return f"{self._prefix}{digest}"

    def _added(self, current: str, token: str) -> str:
        return self._merge((current, token)) or token


class RedisStore(_KeyedStore):
    """Keeps tokens in Redis, and of two that are written at a time the maximum.

    Args:
        client: A ``redis.Redis``, with timeouts of its own.
        prefix: What the names of all keys begin with.
        find_key: Returns the user, or None if there is none.
        merge: Returns the maximum of several tokens, without those it cannot read.
        seconds: How long a token is kept; or a function of the token.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self,
        client: Any,
        prefix: str,
        find_key: FindKey,
        merge: Merge,
        seconds: Lifetime,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(prefix, find_key, merge, seconds)
        self._client = client
        self._clock = clock

    def remember(self, _response: Response, token: str) -> None:
        """Merge the token into what is kept, atomically.

        The script compares, and replaces. Merging itself happens here: Redis cannot
        check a signature.

        Raises:
            NotStoredError: There is no user.
            TimeoutError: Others write the same key all the time.
            redis.RedisError: Redis fails.
        """
        name = self._name()
        until = self._clock() + _PATIENCE
        current, wanted = b"", token
        while True:
            found = self._replace(name, current, wanted)
            if found is None:
                return
            if self._clock() >= until:
                raise TimeoutError("others write the same key in Redis all the time")
            current, wanted = found, self._added(_text(found), token)

    def recall(self, _request: Request) -> str:
        """Read what is kept for the user.

        Raises:
            NotStoredError: There is no user.
            redis.RedisError: Redis fails.
        """
        return _text(_bytes(self._client.getrange(self._name(), 0, MAX_TOKEN)))

    def _replace(self, name: str, current: bytes, wanted: str) -> bytes | None:
        """Replace what is kept, if it is still that; else return what is."""
        milliseconds = max(1, math.ceil(seconds_of(self._seconds, wanted) * 1000))
        found = self._client.eval(_REPLACE, 1, name, current, wanted, milliseconds)
        return None if found is None else _bytes(found)


def connect_redis(url: str) -> Any:
    """Return a client, which connects when it is first used.

    No command is sent twice: the circuit breaker decides when to try again. A query in
    the URL may set other timeouts (``?socket_timeout=0.5``).

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``.

    Raises:
        ImportError: redis-py is not installed.
        ValueError: The URL cannot be used.
    """
    # Imported here, and by name for mypy: redis-py is optional.
    redis: Any = importlib.import_module("redis")
    backoff: Any = importlib.import_module("redis.backoff")
    retry: Any = importlib.import_module("redis.retry")
    return redis.Redis.from_url(
        url,
        socket_timeout=_TIMEOUT,
        socket_connect_timeout=_TIMEOUT,
        retry=retry.Retry(backoff.NoBackoff(), 0),
    )


class Cache(Protocol):
    """What a cache must be able to do, as cachelib's and Flask-Caching's are."""

    def get(self, key: str) -> Any:
        """Return what is kept under a key; None if nothing is."""

    def set(self, key: str, value: Any, *, timeout: int) -> Any:
        """Keep a value for *timeout* seconds; return False if that fails."""


class CacheStore(_KeyedStore):
    """Keeps tokens in a cache that knows get and set.

    It cannot be atomic: of two tokens that are written at the same moment one may be
    lost. It looks again after writing, so the moment is short.

    Args:
        cache: The cache. All workers must share it.
        prefix: What the names of all keys begin with.
        find_key: Returns the user, or None if there is none.
        merge: Returns the maximum of several tokens, without those it cannot read.
        seconds: How long a token is kept; or a function of the token.
    """

    def __init__(
        self,
        cache: Cache,
        prefix: str,
        find_key: FindKey,
        merge: Merge,
        seconds: Lifetime,
    ) -> None:
        super().__init__(prefix, find_key, merge, seconds)
        self._cache = cache

    def remember(self, _response: Response, token: str) -> None:
        """Merge the token into what is kept.

        Raises:
            NotStoredError: There is no user.
            LookupError: The cache does not keep it.
            TypeError: Something else is kept there.
        """
        name = self._name()
        current = self._get(name)
        for _ in range(_ATTEMPTS):
            wanted = self._added(current, token) if current else token
            # Caches count in whole seconds, from the beginning of this one.
            timeout = math.ceil(seconds_of(self._seconds, wanted)) + 1
            if self._cache.set(name, wanted, timeout=timeout) is False:
                break
            current = self._get(name)
            if current == wanted or self._added(current, token) == current:
                return
        kind = type(self._cache).__name__
        raise LookupError(f"{kind} does not keep what it is given")

    def recall(self, _request: Request) -> str:
        """Read what is kept for the user.

        Raises:
            NotStoredError: There is no user.
            TypeError: Something else is kept there.
        """
        return self._get(self._name())

    def _get(self, name: str) -> str:
        found = self._cache.get(name)
        if found is None:
            return ""
        if not isinstance(found, str):
            kind = type(found).__name__
            raise TypeError(f"the cache returned {kind}, not str or None")
        return found


def _bytes(value: object) -> bytes:
    """Return what Redis has answered; a client may decode it already.

    Raises:
        TypeError: It is no text.
    """
    if isinstance(value, str):
        return value.encode(errors="surrogateescape")
    if not isinstance(value, bytes):
        raise TypeError(f"Redis answered {type(value).__name__}, not text")
    return value


def _text(value: bytes) -> str:
    return value.decode(errors="replace")
