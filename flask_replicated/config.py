"""From ``app.config`` to frozen settings."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from balancers import Weighted

from .balancing import read_balancer
from .errors import ConfigurationError
from .redaction import safe

if TYPE_CHECKING:
    from flask import Request
    from sqlalchemy import URL

__all__ = ["Settings", "Source", "read_settings"]


class Source(NamedTuple):
    """Where DNS names replicas.

    Attributes:
        url: Their URL, with the name to look up as its host.
        options: What else their engines are made with.
        every: Seconds between two looks.
    """

    url: URL
    options: Mapping[str, Any]
    every: float


@dataclass(frozen=True)
class Settings:
    """The settings of one application.

    Attributes:
        balancer: Turns live replicas into a pick function, one for each pool.
        weights: Shares of the traffic by bind key; others weigh 1.
        readonly_methods: HTTP methods that read from a replica.
        read_on_replica: ``AUTO_READ_ON_SLAVE``.
        is_read: Says whether a request only reads; None leaves it to the method.
        write_functions: Names of SQL functions that write.
        learn_writers: Whether an endpoint whose write a replica has refused
            starts on the primary from then on.
        pin_seconds: How long a client reads its own writes; 0 is off.
        pin_cookie: The name of the cookie that carries the pin.
        fall_back: Whether the primary serves reads when every replica is out.
        connect_timeout: Seconds that one replica may take to connect.
        failover_timeout: Seconds after a failed connect for which others are tried.
        breaker_threshold: Failures in a row that take a replica out.
        breaker_reset: Seconds until the first trial of a replica that is out.
        breaker_max_reset: The longest time between two trials, in seconds.
        discovery: Where DNS names replicas, by what their names begin with.
        max_connecting: How many new connections to one replica this process opens
            at a time; None for any number.
        max_pools: How many replicas of a bind this process uses; None for all.
        slow_start: Seconds over which a replica that is back takes its share again.
        probe_interval: Seconds between two background looks at a replica; 0 is off.
        read_timeout: Seconds that one statement may take on a replica; None for any.
        max_lag: Seconds that a replica may be behind; None for any.
        role_check: Whether a server that is no replica is left out.
    """

    balancer: Callable[..., Any]
    weights: Mapping[str, int] = field(default_factory=dict)
    readonly_methods: frozenset[str] = frozenset({"GET", "HEAD"})
    read_on_replica: bool = True
    is_read: Callable[[Request], bool | None] | None = None
    write_functions: frozenset[str] = frozenset()
    learn_writers: bool = True
    pin_seconds: float = 5
    pin_cookie: str = "replicated_pin"
    fall_back: bool = True
    connect_timeout: float = 2
    failover_timeout: float = 3
    breaker_threshold: int = 2
    breaker_reset: float = 1
    breaker_max_reset: float = 30
    discovery: Mapping[str, Source] = field(default_factory=dict)
    max_connecting: int | None = 4
    max_pools: int | None = None
    slow_start: float = 0
    probe_interval: float = 5
    read_timeout: float | None = None
    max_lag: float | None = 30
    role_check: bool = True


_DEFAULTS: Mapping[str, Any] = {
    "AUTO_READ_ON_SLAVE": True,
    "REPLICATED_BALANCER": "round_robin",
    "REPLICATED_BREAKER_MAX_RESET": 30,
    "REPLICATED_BREAKER_RESET": 1,
    "REPLICATED_BREAKER_THRESHOLD": 2,
    "REPLICATED_CONNECT_TIMEOUT": 2,
    "REPLICATED_DISCOVERY": {},
    "REPLICATED_FAILOVER_TIMEOUT": 3,
    "REPLICATED_FALLBACK": "master",
    "REPLICATED_IS_READ": None,
    "REPLICATED_LEARN_WRITERS": True,
    "REPLICATED_MAX_CONNECTING": 4,
    "REPLICATED_MAX_LAG": 30,
    "REPLICATED_MAX_POOLS": None,
    "REPLICATED_PIN_COOKIE": "replicated_pin",
    "REPLICATED_PIN_SECONDS": 5,
    "REPLICATED_PROBE_INTERVAL": 5,
    "REPLICATED_READONLY_METHODS": frozenset({"GET", "HEAD"}),
    "REPLICATED_READ_TIMEOUT": None,
    "REPLICATED_ROLE_CHECK": True,
    "REPLICATED_SLOW_START": 0,
    "REPLICATED_WEIGHTS": {},
    "REPLICATED_WRITE_FUNCTIONS": (),
}


def read_settings(
    config: Mapping[str, Any], methods: Collection[str], replicas: Collection[str]
) -> Settings:
    """Read and check the settings of one application.

    Args:
        config: ``app.config``; it is not changed.
        methods: The read-only methods where the configuration names none.
        replicas: The names of the replica binds, which weights may name.

    Raises:
        ConfigurationError: A key is unknown or its value cannot be right.
    """
    _refuse_unknown(config)
    reset = _number(config, "REPLICATED_BREAKER_RESET", above=0)
    longest = _number(config, "REPLICATED_BREAKER_MAX_RESET", above=0)
    if longest < reset:
        raise ConfigurationError(
            "REPLICATED_BREAKER_MAX_RESET",
            longest,
            f"must be at least REPLICATED_BREAKER_RESET = {reset!r}.",
        )
    weights, discovery = _weights(config, replicas), _discovery(config)
    return Settings(
        balancer=_balancer(config, weights or discovery),
        weights=weights,
        readonly_methods=_methods(config, methods),
        read_on_replica=_boolean(config, "AUTO_READ_ON_SLAVE"),
        is_read=_callable(config, "REPLICATED_IS_READ"),
        write_functions=_names(config, "REPLICATED_WRITE_FUNCTIONS"),
        learn_writers=_boolean(config, "REPLICATED_LEARN_WRITERS"),
        pin_seconds=_number(config, "REPLICATED_PIN_SECONDS"),
        pin_cookie=_name(config, "REPLICATED_PIN_COOKIE"),
        fall_back=_choice(config, "REPLICATED_FALLBACK", "master", "error") == "master",
        connect_timeout=_number(config, "REPLICATED_CONNECT_TIMEOUT", above=0),
        failover_timeout=_number(config, "REPLICATED_FAILOVER_TIMEOUT"),
        breaker_threshold=_count(config, "REPLICATED_BREAKER_THRESHOLD"),
        breaker_reset=reset,
        breaker_max_reset=longest,
        discovery=discovery,
        max_connecting=_limit(config, "REPLICATED_MAX_CONNECTING"),
        max_pools=_limit(config, "REPLICATED_MAX_POOLS"),
        slow_start=_number(config, "REPLICATED_SLOW_START"),
        probe_interval=_number(config, "REPLICATED_PROBE_INTERVAL"),
        read_timeout=_optional(config, "REPLICATED_READ_TIMEOUT", above=0),
        max_lag=_optional(config, "REPLICATED_MAX_LAG"),
        role_check=_boolean(config, "REPLICATED_ROLE_CHECK"),
    )


def _refuse_unknown(config: Mapping[str, Any]) -> None:
    for key in config:
        ours = key.startswith(("REPLICATED_", "AUTO_READ_ON"))
        if ours and key not in _DEFAULTS:
            bare = key.removeprefix("REPLICATED_")
            close = difflib.get_close_matches(
                key if bare not in _DEFAULTS else bare, _DEFAULTS, n=1
            )
            hint = f"did you mean {close[0]}? " if close else ""
            known = ", ".join(sorted(_DEFAULTS))
            raise ConfigurationError(
                key, config[key], f"no such setting; {hint}Known are {known}."
            )


def _get(config: Mapping[str, Any], key: str) -> Any:
    return config.get(key, _DEFAULTS[key])


def _number(
    config: Mapping[str, Any],
    key: str,
    above: float | None = None,
    shown: str | None = None,
) -> float:
    value = config[key] if shown else _get(config, key)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    floor_met = number and (value > above if above is not None else value >= 0)
    if not floor_met or value == float("inf"):
        least = f"above {above}" if above is not None else "of at least 0"
        shown = key if shown is None else f"{shown}[{key!r}]"
        raise ConfigurationError(shown, value, f"must be a number of seconds {least}.")
    return float(value)


def _optional(
    config: Mapping[str, Any], key: str, above: float | None = None
) -> float | None:
    return None if _get(config, key) is None else _number(config, key, above)


def _count(config: Mapping[str, Any], key: str) -> int:
    value = _get(config, key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigurationError(key, value, "must be a whole number of at least 1.")
    return value


def _limit(config: Mapping[str, Any], key: str) -> int | None:
    value = _get(config, key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigurationError(
            key, value, "must be a whole number of at least 1, or None for no limit."
        )
    return value


def _discovery(config: Mapping[str, Any]) -> dict[str, Source]:
    key = "REPLICATED_DISCOVERY"
    value = _get(config, key)
    if not isinstance(value, Mapping):
        raise ConfigurationError(
            key, None, "must be a mapping, such as {'slave': {'url': ...}}."
        )
    return {
        name: _source(f"{key}[{safe(name)!r}]", name, value[name]) for name in value
    }


def _source(item: str, name: object, value: object) -> Source:
    if not (isinstance(name, str) and re.fullmatch(r"(.+_)?(slave|replica)", name)):
        raise ConfigurationError(
            item,
            None,
            "its key must be 'slave', or 'x_slave' for replicas of a bind 'x'.",
        )
    options: dict[str, Any] = (
        dict(value) if isinstance(value, Mapping) else {"url": value}
    )
    every = _number({"every": options.pop("every", 30)}, "every", above=0, shown=item)
    try:
        url = make_url(options.pop("url", ""))
    except ArgumentError:
        url = None
    if url is None or not url.host:
        # What was given may hold a password in some place where it is not looked for.
        raise ConfigurationError(
            item,
            None,
            "must be a URL whose host is the DNS name to look up, or a dict with that "
            "'url', with 'every' (seconds) and with engine options.",
        )
    return Source(url, options, every)


def _boolean(config: Mapping[str, Any], key: str) -> bool:
    value = _get(config, key)
    if not isinstance(value, bool):
        raise ConfigurationError(key, value, "must be True or False.")
    return value


def _choice(config: Mapping[str, Any], key: str, *choices: str) -> str:
    value = _get(config, key)
    if value not in choices:
        listed = " or ".join(map(repr, choices))
        raise ConfigurationError(key, value, f"must be {listed}.")
    return str(value)


def _callable(config: Mapping[str, Any], key: str) -> Callable[..., Any] | None:
    value = _get(config, key)
    if value is not None and not callable(value):
        raise ConfigurationError(
            key, value, "must be a function of the request: True, False or None."
        )
    if value is not None:
        try:
            inspect.signature(value).bind(object())
        except TypeError as error:
            raise ConfigurationError(key, value, "must take the request.") from error
        except ValueError:
            pass  # a built-in that does not tell
    return value  # type: ignore[no-any-return]  # callable, as was just seen


def _names(config: Mapping[str, Any], key: str) -> frozenset[str]:
    value = _get(config, key)
    named = isinstance(value, Collection) and not isinstance(value, str | bytes)
    if not named or not all(isinstance(name, str) and name for name in value):
        raise ConfigurationError(key, value, "must be a list of names.")
    return frozenset(value)


def _name(config: Mapping[str, Any], key: str) -> str:
    value = _get(config, key)
    if not isinstance(value, str) or not re.fullmatch(
        r"[A-Za-z0-9_!#$%&'*+.^`|~-]+", value
    ):
        raise ConfigurationError(key, value, "must be a name that a cookie may have.")
    return value


def _methods(config: Mapping[str, Any], default: Collection[str]) -> frozenset[str]:
    key = "REPLICATED_READONLY_METHODS"
    value = config.get(key, default)
    named = isinstance(value, Collection) and not isinstance(value, str | bytes)
    if not named or not all(isinstance(name, str) and name for name in value):
        raise ConfigurationError(
            key, value, "must be a set of HTTP methods, such as {'GET', 'HEAD'}."
        )
    return frozenset(name.upper() for name in value)


def _weights(config: Mapping[str, Any], replicas: Collection[str]) -> dict[str, int]:
    key = "REPLICATED_WEIGHTS"
    value = _get(config, key)
    if not isinstance(value, Mapping):
        raise ConfigurationError(
            key, value, "must be a mapping of replica binds, such as {'slave_1': 3}."
        )
    for name, weight in value.items():
        item = f"{key}[{safe(name)!r}]"
        # An app without replicas may share its settings with one that has some.
        if replicas and name not in replicas:
            raise ConfigurationError(
                item,
                weight,
                f"no such replica; SQLALCHEMY_BINDS has {', '.join(replicas)}.",
            )
        if not isinstance(weight, int) or isinstance(weight, bool) or weight < 0:
            raise ConfigurationError(
                item,
                weight,
                "must be a whole number: 0 for no traffic, 1 or more for a share.",
            )
    return dict(value)


def _balancer(
    config: Mapping[str, Any], weights: Mapping[str, Any]
) -> Callable[..., Any]:
    key = "REPLICATED_BALANCER"
    if key not in config and weights:
        return Weighted()  # weights that nobody reads would be a trap
    return read_balancer(_get(config, key))
