"""``REPLICATED_PIN_STORE``: which store it is or names."""

from __future__ import annotations

import difflib
import inspect
import sys
from importlib import import_module
from operator import attrgetter
from typing import TYPE_CHECKING, Any, cast

from balancers.errors import error_text
from flask_replicated.errors import ConfigurationError
from flask_replicated.settings.validators import REDIS_SCHEMES, misfit

from .safe_store import SafeStore
from .stores import HeaderStore, SessionStore

if TYPE_CHECKING:
    from .shared_stores import FindKey
    from .stores import CookieStore, Lifetime, Merge, PinStore

__all__ = ["make_store", "redis_client"]

_KEY = "REPLICATED_PIN_STORE"
_NAMES = ("cookie", "session", "header")
_CHOICES = (
    "must be 'cookie', 'session', 'header', a URL (redis://, rediss:// or unix://), "
    "the dotted path of a store, a store (with remember(response, token) and "
    "recall(request)), a redis.Redis, or a cache (with get(key) and set(key, value, "
    "timeout=...))."
)


def make_store(
    setting: object,
    *,
    cookie: CookieStore,
    header: str,
    prefix: str,
    find_key: FindKey | None,
    merge: Merge,
    seconds: Lifetime,
) -> SafeStore:
    """Return the store that a setting's value is or names.

    Args:
        setting: The value of ``REPLICATED_PIN_STORE``.
        cookie: The client's cookie: a store of its own, and the stand-in of others.
        header: The name of the client's header.
        prefix: What keys in a shared store begin with; it tells applications apart.
        find_key: Returns the user, and keeps the answer for a request. None if
            ``REPLICATED_PIN_KEY`` is.
        merge: Returns the maximum of several tokens, without those it cannot read.
        seconds: How long a shared store keeps a token; or a function of the token.

    Raises:
        ConfigurationError: It is none, or its library or ``REPLICATED_PIN_KEY`` is
            missing.
    """
    headers = HeaderStore(header, stands_in=setting != "header")
    if setting == "cookie":
        return SafeStore(cookie, (), merge, from_client=True)
    if setting == "header":
        return SafeStore(headers, (cookie,), merge, from_client=True)
    if setting == "session":
        return SafeStore(SessionStore(), (cookie, headers), merge, from_client=True)
    target = _target(setting)
    if _has_methods(target, "remember", "recall"):
        store = _checked(target, setting)
        return SafeStore(store, (cookie, headers), merge)
    kind = _shared_kind(target, setting)
    if find_key is None:
        raise ConfigurationError(
            _KEY,
            setting,
            "is shared by all clients, and needs REPLICATED_PIN_KEY: a function that "
            "returns whose request it is, such as the user's id, or None for nobody.",
        )
    keyed: PinStore = kind(target, prefix, find_key, merge, seconds)
    return SafeStore(keyed, (cookie, headers), merge, find_key=find_key)


def _target(setting: object) -> Any:
    """Return the store, the cache, or the Redis client that a setting stands for."""
    found = setting
    if isinstance(setting, str):
        found = _client(setting) if "://" in setting else _imported(setting)
    if not isinstance(found, type):
        return found
    try:
        return found()
    except Exception as error:
        raise _refusal(setting, error_text(error)) from error


def _client(url: str) -> Any:
    if not url.startswith(REDIS_SCHEMES):
        raise _refusal(url, "it is no URL of Redis")
    return redis_client(_KEY, url)


def redis_client(key: str, url: str) -> Any:
    """Return a client of Redis for a URL, which connects when it is first used.

    Args:
        key: The setting that has the URL.
        url: The URL.

    Raises:
        ConfigurationError: redis-py is not installed, or cannot use the URL.
    """
    from .shared_stores import connect_redis  # noqa: PLC0415 - few need it

    try:
        return connect_redis(url)
    except ImportError:
        raise ConfigurationError(
            key, url, "needs redis-py: pip install redis"
        ) from None
    except Exception:  # noqa: BLE001 - a URL's query may set anything
        # Its text may be a part of the password.
        raise ConfigurationError(
            key, url, "redis-py cannot use this URL; see its redis.Redis.from_url()."
        ) from None


def _imported(path: str) -> object:
    module, _, name = path.partition(":") if ":" in path else path.rpartition(".")
    if not (module and name):
        close = difflib.get_close_matches(path, _NAMES, n=1, cutoff=0.4)
        why = f"did you mean {close[0]!r}?" if close else "no store has this name"
        raise _refusal(path, why)
    try:
        return cast("object", attrgetter(name)(import_module(module)))
    except Exception as error:
        raise _refusal(path, error_text(error)) from error


def _has_methods(target: object, *names: str) -> bool:
    return all(callable(getattr(target, name, None)) for name in names)


def _checked(store: Any, setting: object) -> PinStore:
    for method, arguments in ((store.remember, 2), (store.recall, 1)):
        name = f"{method.__name__}()" if hasattr(method, "__name__") else "a method"
        if inspect.iscoroutinefunction(method):
            raise _refusal(setting, f"{name} must not be async")
        if misfit(method, *[()] * arguments):
            raise _refusal(setting, f"{name} does not take {arguments} argument(s)")
    checked: PinStore = store
    return checked


def _shared_kind(target: object, setting: object) -> Any:
    """Return the class that keeps tokens in a cache, or by a client of Redis."""
    from .shared_stores import CacheStore, RedisStore  # noqa: PLC0415 - few need it

    redis = sys.modules.get("redis")  # a client's class is there if there is a client
    if redis is not None and isinstance(target, redis.Redis | redis.RedisCluster):
        return RedisStore
    if not _has_methods(target, "get", "set"):
        raise _refusal(setting, "it has neither remember and recall nor get and set")
    cache: Any = target
    if inspect.iscoroutinefunction(cache.get) or inspect.iscoroutinefunction(cache.set):
        raise _refusal(setting, "its methods must not be async")
    if misfit(cache.set, "key", "value", timeout=1):
        raise _refusal(setting, "its set() does not take a timeout")
    return CacheStore


def _refusal(value: object, why: str) -> ConfigurationError:
    return ConfigurationError(_KEY, value, f"{_CHOICES} This is not: {why}.")
