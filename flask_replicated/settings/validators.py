"""Checks of single settings: each returns a valid value or raises an error."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flask_replicated.errors import ConfigurationError
from flask_replicated.errors.redaction import safe

if TYPE_CHECKING:
    from flask import Request

__all__ = [
    "DAY",
    "MAX_COUNT",
    "MAX_WEIGHT",
    "REDIS_SCHEMES",
    "YEAR",
    "boolean",
    "choice",
    "close_coroutine",
    "control_place",
    "cookie_name",
    "count",
    "fraction",
    "header_name",
    "interval",
    "is_number",
    "misfit",
    "names",
    "optional_count",
    "optional_seconds",
    "pin_key",
    "predicate",
    "refuse_cookie_conflict",
    "seconds",
    "tables",
    "weight",
    "weights",
]

DAY = 24 * 3600
"""The most that a setting in seconds may be.

No request waits that long: a larger number means milliseconds. Everything that gets
such a number can handle a day: the Max-Age of cookies (400 days in browsers), timeouts
of locks and sockets (292 years, 49 days on Windows), and milliseconds in 32 bits at
the servers (24 days).
"""

YEAR = 365 * DAY
"""The same for values that are only compared: a replica may lag days on purpose."""

MAX_COUNT = 1_000_000
"""The most that a count may be: no process has so many connections or failures."""

REDIS_SCHEMES = ("redis://", "rediss://", "unix://")
"""How the URLs of Redis begin."""

_MIN_INTERVAL = 0.01
"""The shortest interval of something periodic, in seconds.

A smaller number is meant as milliseconds, or as "at once": a thread that probes more
than a hundred times a second does nothing else.
"""

MAX_WEIGHT = 10**15
"""The most that a weight may be; weights in bytes of memory stay well below."""

# Browsers drop cookies of more than 4096 bytes, value included.
_TOKEN = re.compile(r"[A-Za-z0-9_!#$%&'*+.^`|~-]{1,100}")
# Servers and proxies drop headers with an underscore, or take it for a hyphen.
_HEADER = re.compile(r"[A-Za-z0-9]+(-[A-Za-z0-9]+)*")
_MAX_HEADER = 100
_HTTP_HEADERS = frozenset(
    {"accept", "allow", "authorization", "cache-control", "connection", "cookie"}
    | {"content-encoding", "content-length", "content-type", "date", "etag", "expires"}
    | {"host", "location", "origin", "referer", "server", "set-cookie", "upgrade"}
    | {"transfer-encoding", "user-agent", "vary"}
)
"""Headers that a response, or a request, has for another purpose."""
# Without quotes, dots and stars.
_COLUMN = re.compile(r"""(?!\s)[^."`*]+(?<!\s)""")
_TABLE = re.compile(rf"(?:{_COLUMN.pattern}\.)?{_COLUMN.pattern}")
_COOKIES = {"SESSION_COOKIE_NAME": "session", "REMEMBER_COOKIE_NAME": "remember_token"}
_PREFIXES = ("__host-", "__secure-")


def is_number(value: object) -> bool:
    """Whether this is a number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def seconds(
    key: str,
    value: Any,
    *,
    above: float | None = None,
    most: float = DAY,
    also: str = "",
) -> float:
    """Return a number of seconds.

    Args:
        key: The setting.
        value: What it has.
        above: The number must be above this; None means at least 0.
        most: The largest number allowed.
        also: What else would be right, for the error.
    """
    enough = is_number(value) and (value > above if above is not None else value >= 0)
    if not enough or value > most:
        least = f"above {above}" if above is not None else "of at least 0"
        raise ConfigurationError(
            key,
            value,
            f"must be a number of seconds {least}, and at most {most} (a "
            f"{'day' if most == DAY else 'year'}){also}.",
        )
    return float(value)


def fraction(key: str, value: Any) -> float:
    """Return a share: a number from 0 to 1."""
    if not is_number(value) or not 0 <= value <= 1:
        raise ConfigurationError(
            key, value, "must be a number from 0 to 1, such as 0.2 for a fifth."
        )
    return float(value)


def optional_seconds(key: str, value: Any, **limits: float) -> float | None:
    """Return what :func:`seconds` does; None means that there is no limit."""
    if value is None:
        return None
    return seconds(key, value, also=", or None for no limit", **limits)


def interval(key: str, value: Any, *, off: bool = False) -> float:
    """Return the seconds between two probes; with *off*, 0 means no probes."""
    if off and value == 0:
        return seconds(key, value)
    found = seconds(key, value, above=0)
    if found < _MIN_INTERVAL:
        never = ", or 0 for none at all" if off else ""
        raise ConfigurationError(
            key, value, f"must be at least {_MIN_INTERVAL} seconds{never}."
        )
    return found


def count(key: str, value: Any, also: str = "") -> int:
    """Return a whole number from 1 up; *also* is what else is right, for the error."""
    if not _is_whole(value) or not 1 <= value <= MAX_COUNT:
        raise ConfigurationError(
            key,
            value,
            f"must be a whole number of at least 1, and at most {MAX_COUNT}{also}.",
        )
    return int(value)


def optional_count(key: str, value: Any) -> int | None:
    """Return what :func:`count` does; None means that there is no limit."""
    return None if value is None else count(key, value, ", or None for no limit")


def weight(key: str, value: Any) -> int:
    """Return a weight: a whole number from 0 up."""
    if not _is_whole(value) or not 0 <= value <= MAX_WEIGHT:
        raise ConfigurationError(
            key,
            value,
            "must be a whole number: 0 for no traffic, 1 or more for a share, at "
            f"most {MAX_WEIGHT}.",
        )
    return int(value)


def weights(key: str, value: object) -> dict[str, int]:
    """Return weights by replica bind."""
    if not isinstance(value, Mapping):
        raise ConfigurationError(
            key, value, "must be a mapping of replica binds, such as {'slave_1': 3}."
        )
    return {
        name: weight(f"{key}[{safe(name)!r}]", share) for name, share in value.items()
    }


def boolean(key: str, value: object) -> bool:
    """Return True or False."""
    if not isinstance(value, bool):
        raise ConfigurationError(key, value, "must be True or False.")
    return value


def optional_boolean(key: str, value: object) -> bool | None:
    """Return True or False, or None for what the application's debug mode says."""
    if value is not None and not isinstance(value, bool):
        raise ConfigurationError(
            key, value, "must be True or False, or None for app.debug."
        )
    return value


def choice(key: str, value: object, choices: tuple[str, ...]) -> str:
    """Return one of *choices*."""
    if value not in choices:
        listed = " or ".join(map(repr, choices))
        raise ConfigurationError(key, value, f"must be {listed}.")
    return str(value)


def control_place(key: str, value: object) -> str | None:
    """Return None, a URL of Redis, or the absolute path of a directory."""
    if value is None:
        return None
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else value
    if isinstance(text, str) and (
        text.startswith(REDIS_SCHEMES)
        or ("://" not in text and Path(text).is_absolute())
    ):
        return text
    raise ConfigurationError(
        key,
        value,
        "must be None, the absolute path of a directory, or a URL of Redis (redis://, "
        "rediss:// or unix://). All processes must find the same one, wherever they "
        "are started.",
    )


def names(key: str, value: Any, wanted: str) -> frozenset[str]:
    """Return a set of names; *wanted* describes it in the error."""
    named = isinstance(value, Collection) and not isinstance(value, str | bytes)
    if not named or not all(isinstance(name, str) and name for name in value):
        raise ConfigurationError(key, value, f"must be {wanted}.")
    return frozenset(value)


def tables(key: str, value: object) -> dict[str, frozenset[str] | None]:
    """Return columns by table; None for all writes to a table."""
    if not isinstance(value, Mapping):
        raise ConfigurationError(
            key,
            value,
            "must be a mapping of tables, such as {'sessions': '*', 'users': "
            "['last_seen']}.",
        )
    for name, columns in value.items():
        if not isinstance(name, str) or not _TABLE.fullmatch(name):
            raise ConfigurationError(
                f"{key}[{safe(name)!r}]",
                columns,
                "its key must be the name of a table, without quotes: 'sessions', or "
                "with its schema 'forum.topics'.",
            )
    return {
        name: _columns(f"{key}[{name!r}]", columns) for name, columns in value.items()
    }


def _columns(item: str, value: Any) -> frozenset[str] | None:
    if value == "*":
        return None
    listed = isinstance(value, Collection) and not isinstance(
        value, str | bytes | Mapping
    )
    if not listed or not value or not all(map(_is_column, value)):
        example = value if _is_column(value) else "last_seen"
        raise ConfigurationError(
            item,
            value,
            "must be '*' for whatever is written to the table, or a list of the "
            f"columns that an update may set, such as [{example!r}].",
        )
    return frozenset(value)


def _is_column(name: object) -> bool:
    return isinstance(name, str) and _COLUMN.fullmatch(name) is not None


def cookie_name(key: str, value: object) -> str:
    """Return a name that a cookie may have."""
    if not isinstance(value, str) or not _TOKEN.fullmatch(value):
        raise ConfigurationError(
            key,
            value,
            "must be a name that a cookie may have: letters, digits and _ - . alone, "
            "at most 100 characters.",
        )
    return value


def header_name(key: str, value: object) -> str:
    """Return a name that a header of the program's own may have."""
    text = value if isinstance(value, str) and len(value) <= _MAX_HEADER else ""
    if not _HEADER.fullmatch(text):
        raise ConfigurationError(
            key,
            value,
            "must be a name that a header may have, such as 'Replicated-Position': "
            "letters and digits with hyphens between them, at most "
            f"{_MAX_HEADER} characters.",
        )
    if text.lower() in _HTTP_HEADERS:
        raise ConfigurationError(
            key, value, "is a header of HTTP's own; take another name."
        )
    return text


def refuse_cookie_conflict(key: str, value: str, config: Mapping[str, Any]) -> None:
    """Refuse a cookie's name that this application cannot use.

    Args:
        key: The setting.
        value: The name.
        config: ``app.config``.

    Raises:
        ConfigurationError: Another of its cookies has the name, or browsers would
            drop the cookie.
    """
    for other, name in {**_COOKIES, **config}.items():
        # Of extensions: JWT_ACCESS_COOKIE_NAME, SECURITY_CSRF_COOKIE_NAME.
        if str(other).endswith("_COOKIE_NAME") and value == name:
            raise ConfigurationError(
                key,
                value,
                f"is {other} as well: each would overwrite the other and log people "
                "out; take another name.",
            )
    if value.lower().startswith(_PREFIXES):
        _refuse_unless_secure(key, value, config)


def _refuse_unless_secure(key: str, value: str, config: Mapping[str, Any]) -> None:
    """Refuse a prefixed name unless the cookie will have what the prefix promises."""
    wanted = ["SESSION_COOKIE_SECURE = True"]
    kept = bool(config.get("SESSION_COOKIE_SECURE"))
    if value.lower().startswith("__host-"):
        wanted += ["no SESSION_COOKIE_DOMAIN", "SESSION_COOKIE_PATH = '/'"]
        root = config.get("APPLICATION_ROOT", "/")
        kept = kept and not config.get("SESSION_COOKIE_DOMAIN")
        kept = kept and (config.get("SESSION_COOKIE_PATH") or root) == "/"
    if not kept:
        raise ConfigurationError(
            key,
            value,
            "browsers drop a cookie of this name unless the application has "
            f"{', '.join(wanted)}; set that, or take another name.",
        )


def predicate(key: str, value: Any) -> Callable[[Request], bool | None] | None:
    """Return a function of the request that returns True, False or None; or None."""
    if value is None:
        return None
    if not callable(value):
        raise ConfigurationError(
            key, value, "must be a function of the request: True, False or None."
        )
    _require_plain(key, value, [object()], "must take the request.")
    return partial(_ask, key, value)


def pin_key(key: str, value: Any) -> Callable[[], object] | None:
    """Return a function that says whose request it is; or None."""
    if value is None:
        return None
    if not callable(value):
        raise ConfigurationError(
            key,
            value,
            "must be a function that returns whose request it is, such as the user's "
            "id, or None for nobody.",
        )
    _require_plain(key, value, [], "must take no arguments.")
    function: Callable[[], object] = value
    return function


def _require_plain(
    key: str, function: Callable[..., Any], arguments: list[object], takes: str
) -> None:
    """Refuse a function that is ``async`` or takes other arguments.

    Args:
        key: The setting.
        function: What it has.
        arguments: What the function will get.
        takes: What it must take, for the error.
    """
    error = misfit(function, *arguments)
    if error is not None:
        raise ConfigurationError(key, function, takes) from error
    if _is_async(function):
        raise ConfigurationError(
            key,
            function,
            "must not be async: the answer is needed inside of statements, where "
            "nothing can be awaited. Write it as a plain function.",
        )


def misfit(
    function: Callable[..., Any], *args: object, **kwargs: object
) -> TypeError | None:
    """Return why a function does not take these arguments; None if it may."""
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except TypeError as error:
        return error
    except ValueError:
        pass  # a built-in without a signature
    return None


def close_coroutine(value: object) -> bool:
    """Close what an async function has returned; return whether it was a coroutine."""
    if not inspect.iscoroutine(value):
        return False
    value.close()  # or Python warns that it was never awaited
    return True


def _is_async(function: Callable[..., Any]) -> bool:
    inner: Any = function
    while isinstance(inner, partial):
        inner = inner.func
    call = getattr(type(inner), "__call__", None)  # noqa: B004 - not whether it is one
    return any(
        asks(one)
        for one in (inner, call)
        for asks in (inspect.iscoroutinefunction, inspect.isasyncgenfunction)
    )


def _ask(
    key: str, function: Callable[[Request], object], request: Request
) -> bool | None:
    answer = function(request)
    if answer is None or isinstance(answer, bool):
        return answer
    close_coroutine(answer)
    # No truth values: a coroutine is true, and None from re.match() would leave the
    # decision to the method.
    raise ConfigurationError(
        f"{key}(request)", answer, "must be True, False or None; say bool(...)."
    )
