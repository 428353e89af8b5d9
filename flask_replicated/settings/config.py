"""From ``app.config`` to frozen settings."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from balancers import Weighted
from flask_replicated.errors import ConfigurationError
from flask_replicated.redaction import safe

from .balancer import read_balancer
from .validators import (
    YEAR,
    boolean,
    choice,
    cookie_name,
    count,
    interval,
    names,
    optional_count,
    predicate,
    seconds,
    tables,
    weight,
)

if TYPE_CHECKING:
    from flask import Request
    from sqlalchemy import URL

__all__ = ["DEFAULTS", "DiscoverySource", "Settings", "read_settings"]

logger = logging.getLogger("flask_replicated")

_PREFIX = "REPLICATED_"
_SWITCH = "AUTO_READ_ON_SLAVE"
_ALIKE = 0.83
"""How much of two words is the same where one is the other with a slip or two."""


class DiscoverySource(NamedTuple):
    """Where DNS names replicas.

    Attributes:
        url: Their URL, with the name to look up as its host.
        options: What else their engines are made with.
        every: Seconds between two looks.
    """

    url: URL
    options: Mapping[str, Any]
    every: float

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{name}={safe(one)!r}" for name, one in self._asdict().items()
        )
        return f"{type(self).__name__}({shown})"


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
        lazy_begin: Whether a replica's transaction is begun on its server only when
            a statement needs it.
        unpinned: What is housekeeping, by table: the columns that an update may set,
            or None for every write.
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
    discovery: Mapping[str, DiscoverySource] = field(default_factory=dict)
    max_connecting: int | None = 4
    max_pools: int | None = None
    slow_start: float = 0
    probe_interval: float = 5
    read_timeout: float | None = None
    max_lag: float | None = 30
    role_check: bool = True
    lazy_begin: bool = True
    unpinned: Mapping[str, frozenset[str] | None] = field(default_factory=dict)


DEFAULTS: Mapping[str, Any] = {
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
    "REPLICATED_LAZY_BEGIN": True,
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
    "REPLICATED_UNPINNED": {},
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
    given = {
        "REPLICATED_READONLY_METHODS": methods,
        "REPLICATED_PIN_COOKIE": _pin_cookie(config),
        **config,
    }
    weights, discovery = _weights(config, replicas), _discovery(config)

    def read(check: Callable[..., Any], key: str, *more: Any, **limits: Any) -> Any:
        return check(key, _get(given, key), *more, **limits)

    return Settings(
        **_times(config),
        balancer=_balancer(config, weights or discovery),
        weights=weights,
        readonly_methods=read(_methods, "REPLICATED_READONLY_METHODS"),
        read_on_replica=read(boolean, "AUTO_READ_ON_SLAVE"),
        is_read=read(predicate, "REPLICATED_IS_READ"),
        write_functions=read(names, "REPLICATED_WRITE_FUNCTIONS", "a list of names"),
        learn_writers=read(boolean, "REPLICATED_LEARN_WRITERS"),
        pin_cookie=read(cookie_name, "REPLICATED_PIN_COOKIE", config),
        fall_back=read(choice, "REPLICATED_FALLBACK", "master", "error") == "master",
        breaker_threshold=read(count, "REPLICATED_BREAKER_THRESHOLD"),
        discovery=discovery,
        max_connecting=read(optional_count, "REPLICATED_MAX_CONNECTING"),
        max_pools=read(optional_count, "REPLICATED_MAX_POOLS"),
        role_check=read(boolean, "REPLICATED_ROLE_CHECK"),
        unpinned=read(tables, "REPLICATED_UNPINNED"),
        lazy_begin=read(boolean, "REPLICATED_LAZY_BEGIN"),
    )


def _times(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in seconds, by the names that they have here."""

    def read(name: str, also: str = "", **limits: float) -> float:
        key = f"REPLICATED_{name.upper()}"
        return seconds(key, _get(config, key), also=also, **limits)

    def optional(name: str, **limits: float) -> float | None:
        unset = _get(config, f"REPLICATED_{name.upper()}") is None
        return None if unset else read(name, ", or None for no limit", **limits)

    probe = "REPLICATED_PROBE_INTERVAL"
    reset = read("breaker_reset", above=0)
    longest = read("breaker_max_reset", above=0)
    if longest < reset:
        raise ConfigurationError(
            "REPLICATED_BREAKER_MAX_RESET",
            longest,
            f"must be at least REPLICATED_BREAKER_RESET = {reset!r}.",
        )
    return {
        "breaker_reset": reset,
        "breaker_max_reset": longest,
        "pin_seconds": read("pin_seconds"),
        "connect_timeout": read("connect_timeout", above=0),
        "failover_timeout": read("failover_timeout"),
        "slow_start": read("slow_start"),
        "probe_interval": interval(probe, _get(config, probe), off=True),
        "read_timeout": optional("read_timeout", above=0),
        # A replica may be days behind on purpose; this is only compared.
        "max_lag": optional("max_lag", most=YEAR),
    }


def _refuse_unknown(config: Mapping[Any, Any]) -> None:
    for key in config:
        if not isinstance(key, str) or key in DEFAULTS:
            continue
        if not key.startswith((_PREFIX, "AUTO_READ_ON")):
            _refuse_misspelt(key, config[key])
        else:
            bare = key.removeprefix(_PREFIX)
            close = difflib.get_close_matches(
                key if bare not in DEFAULTS else bare, DEFAULTS, n=1
            )
            hint = f"did you mean {close[0]}? " if close else ""
            known = ", ".join(sorted(DEFAULTS))
            raise ConfigurationError(
                key, config[key], f"no such setting; {hint}Known are {known}."
            )


def _refuse_misspelt(key: str, value: object) -> None:
    """Refuse a key that is one of these settings but for a slip in what it begins with.

    Most keys are of other extensions. So what follows must be one of these settings'
    names, too; and a word of its own, as in ``REPLICATION_MODE``, is only told of.

    Raises:
        ConfigurationError: It is misspelt.
    """
    letters = _letters(key)
    if not letters.startswith(("R", "AUTO")):
        return
    if letters.startswith("AUTO"):
        head = "REPLICATED"
        meant = _nearest(letters, {_letters(_SWITCH): _SWITCH})
    else:
        names = {_letters(one.removeprefix(_PREFIX)): one for one in DEFAULTS}
        ends = [name for name in names if letters.endswith(name)]
        tail = max(ends, key=len) if ends else _letters(key.partition("_")[2])
        head, meant = letters.removesuffix(tail), _nearest(tail, names)
    if meant is None:
        return
    alike = difflib.SequenceMatcher(None, head, "REPLICATED").ratio()
    if alike > _ALIKE:
        raise ConfigurationError(key, value, f"no such setting; did you mean {meant}?")
    if re.fullmatch("REPLICA(S|TION|TING)?", head):
        logger.warning("%s is not read. If it is meant as %s, call it so.", key, meant)


def _letters(key: str) -> str:
    return re.sub(r"[^A-Z]", "", key.upper())


def _nearest(letters: str, known: Mapping[str, str]) -> str | None:
    close = difflib.get_close_matches(letters, known, n=1, cutoff=_ALIKE)
    return known[close[0]] if close else None


def _get(config: Mapping[str, Any], key: str) -> Any:
    return config.get(key, DEFAULTS[key])


def _pin_cookie(config: Mapping[str, Any]) -> str:
    """Return what the pin is called where no setting says so.

    Applications on one host that keep their sessions apart keep their pins apart, too.
    """
    name = DEFAULTS["REPLICATED_PIN_COOKIE"]
    session = config.get("SESSION_COOKIE_NAME") or "session"
    return name if session == "session" else f"{session}_{name}"


def _methods(key: str, value: object) -> frozenset[str]:
    found = names(key, value, "a set of HTTP methods, such as {'GET', 'HEAD'}")
    return frozenset(name.upper() for name in found)


def _discovery(config: Mapping[str, Any]) -> dict[str, DiscoverySource]:
    key = "REPLICATED_DISCOVERY"
    value = _get(config, key)
    if not isinstance(value, Mapping):
        raise ConfigurationError(
            key, value, "must be a mapping, such as {'slave': {'url': ...}}."
        )
    return {
        name: _source(f"{key}[{safe(name)!r}]", name, value[name]) for name in value
    }


def _source(item: str, name: object, value: object) -> DiscoverySource:
    if not (isinstance(name, str) and re.fullmatch(r"(.+_)?(slave|replica)", name)):
        raise ConfigurationError(
            item,
            value,
            "its key must be 'slave', or 'x_slave' for replicas of a bind 'x'.",
        )
    options: dict[str, Any] = (
        dict(value) if isinstance(value, Mapping) else {"url": value}
    )
    every = interval(f"{item}['every']", options.pop("every", 30))
    try:
        url = make_url(options.pop("url", ""))
    except (ArgumentError, ValueError):  # the latter of a port that is no number
        url = None
    if url is None or not url.host:
        # What stands where a URL should may be anything, a password alone too.
        raise ConfigurationError(
            item,
            None,
            "must be a URL whose host is the DNS name to look up, or a dict with that "
            "'url', with 'every' (seconds) and with engine options.",
        )
    return DiscoverySource(url, options, every)


def _weights(config: Mapping[str, Any], replicas: Collection[str]) -> dict[str, int]:
    key = "REPLICATED_WEIGHTS"
    value = _get(config, key)
    if not isinstance(value, Mapping):
        raise ConfigurationError(
            key, value, "must be a mapping of replica binds, such as {'slave_1': 3}."
        )
    for name, share in value.items():
        item = f"{key}[{safe(name)!r}]"
        # An app without replicas may share its settings with one that has some.
        if replicas and name not in replicas:
            raise ConfigurationError(
                item,
                share,
                f"no such replica; SQLALCHEMY_BINDS has {', '.join(replicas)}.",
            )
        weight(item, share)
    return dict(value)


def _balancer(
    config: Mapping[str, Any], weights: Mapping[str, Any]
) -> Callable[..., Any]:
    key = "REPLICATED_BALANCER"
    if key not in config and weights:
        return Weighted()  # weights that nobody reads would be a trap
    return read_balancer(_get(config, key))
