"""The settings: keys of ``app.config``, defaults, checks; and unknown keys."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from balancers import Weighted, Zoned
from flask_replicated.errors import ConfigurationError
from flask_replicated.errors.redaction import safe

from .balancer import read_balancer
from .validators import (
    YEAR,
    boolean,
    choice,
    control_place,
    cookie_name,
    count,
    fraction,
    header_name,
    interval,
    names,
    optional_boolean,
    optional_count,
    optional_seconds,
    pin_key,
    predicate,
    refuse_cookie_conflict,
    seconds,
    tables,
)
from .validators import (
    weights as read_weights,
)

if TYPE_CHECKING:
    from flask import Request
    from sqlalchemy import URL

__all__ = [
    "DEFAULTS",
    "GUARANTEES",
    "PIN_COOKIE",
    "DiscoverySource",
    "Settings",
    "default_pin_cookie",
    "read_settings",
]

logger = logging.getLogger("flask_replicated")

PIN_COOKIE = "REPLICATED_PIN_COOKIE"
"""The key of the name of the pin's cookie, which has a default that is computed."""

GUARANTEES = ("none", "read_your_writes", "monotonic")
"""What a client's reads may rely on, the weakest first."""

_PREFIX = "REPLICATED_"
_SWITCH = "AUTO_READ_ON_SLAVE"
_NEARLY_PREFIX = "REPLICATE_"
_API_CLIENT = "REPLICATE_API_"
"""Keys of the client for Replicate, which applications copy from the environment."""
_ALIKE = 0.83
"""How similar two words are if one is the other with one or two typos."""
_A_PART = re.compile("REP|LIC|ATED|AUTO|READ|SLAVE")
"""Parts of the names; two typos do not touch all of them."""
_ALIKE_SWITCH = 0.86
"""The same for a word of 15 letters. ``READ_ON_SLAVE`` is below that."""


class DiscoverySource(NamedTuple):
    """A DNS name that resolves to replicas.

    Attributes:
        url: The replicas' URL, whose host is the name to look up.
        options: Further engine options.
        every: Seconds between two lookups.
    """

    url: URL
    options: Mapping[str, Any]
    every: float

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{name}={safe(one)!r}" for name, one in self._asdict().items()
        )
        return f"{type(self).__name__}({shown})"


def _setting(
    key: str,
    default: object,
    check: Callable[..., Any],
    *,
    shown: bool = True,
    **limits: Any,
) -> Any:
    """Return a field of :class:`Settings`.

    Args:
        key: The key of ``app.config``.
        default: What the key has where it is not set.
        check: Takes the key and its value; returns what the field holds, or raises.
        shown: Whether the field is in the settings' ``repr``; not if it may hold a
            password.
        limits: Further arguments of *check*.
    """
    read = partial(check, key, **limits)
    return field(repr=shown, metadata={"key": key, "default": default, "read": read})


def _falls_back(key: str, value: object) -> bool:
    return _fallback(key, value, ("master", "error")) == "master"


def _fallback(key: str, value: object, choices: tuple[str, ...]) -> str:
    meant = isinstance(value, str) and value.lower() in {"master", "primary"}
    if meant and value != "master":
        listed = f"{', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}"
        raise ConfigurationError(
            key, value, f"must be {listed}; did you mean 'master'?"
        )
    return choice(key, value, choices)


def _methods(key: str, value: object) -> frozenset[str]:
    found = names(key, value, wanted="a set of HTTP methods, such as {'GET', 'HEAD'}")
    return frozenset(name.upper() for name in found)


def _zone(key: str, value: object) -> str | None:
    if value is None or (isinstance(value, str) and value):
        return value
    raise ConfigurationError(
        key, value, "must be the name of a zone, such as 'eu-a', or None."
    )


def _zones(key: str, value: object) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise ConfigurationError(
            key,
            value,
            "must be a mapping of replica binds, such as {'slave_1': 'eu-a'}.",
        )
    for name, zone in value.items():
        if not (isinstance(zone, str) and zone):
            raise ConfigurationError(
                f"{key}[{safe(name)!r}]",
                zone,
                "must be the name of a zone, such as 'eu-a'.",
            )
    return dict(value)


def _discovery(key: str, value: object) -> dict[str, DiscoverySource]:
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
    given = options.pop("url", None)
    try:
        url = make_url(given)
    except (ArgumentError, ValueError):  # the latter for a port that is not a number
        url = None
    if url is None or not url.host:
        cause = "its URL has no host" if url is not None else "it has no valid URL"
        if given is None and isinstance(value, Mapping):
            near = difflib.get_close_matches("url", map(str, options), n=1)
            cause = (
                f"it has {near[0]!r} in place of 'url'" if near else "it has no 'url'"
            )
        raise _no_source(item, value, cause)
    return DiscoverySource(url, options, every)


def _no_source(item: str, value: object, cause: str) -> ConfigurationError:
    shown = _without_bare_text(value)
    if isinstance(value, Mapping):
        shown = {
            key: _without_bare_text(one) if "url" in f"{key}".lower() else one
            for key, one in value.items()
        }
    return ConfigurationError(
        item,
        shown,
        f"{cause}. It must be a URL whose host is the DNS name to look up, such as "
        "'postgresql://app@replicas.internal/shop', or a dict with that 'url', with "
        "'every' (seconds) and with engine options.",
    )


def _without_bare_text(value: object) -> object:
    """Return a value that is no text without a URL: that may be a bare password."""
    bare = isinstance(value, str) and "//" not in value
    return "<no URL>" if bare else value


@dataclass(frozen=True)
class Settings:
    """The settings of one application.

    Each field names its key of ``app.config``, its default and its check; nothing
    else knows the defaults.

    Attributes:
        balancer: Turns live replicas into a pick function; called once for each pool.
        breaker_max_reset: The longest wait between two trials, in seconds.
        breaker_reset: Seconds until the first trial of a replica that is out.
        breaker_threshold: Failures in a row that open a replica's breaker.
        connect_timeout: Seconds that one replica may take to connect.
        control: Where workers tell their state and find orders: an absolute path, or a
            URL of Redis; None for nowhere.
        discovery: Where DNS names replicas, by the prefix of their names.
        explain: Whether responses say where their request has read, and why; None for
            what ``app.debug`` is when they leave.
        failover_timeout: Seconds after a failed connect for which others are tried.
        fall_back: Whether the primary serves reads when every replica is out.
        fallback_share: At most this share of the reads of the last 10 seconds may
            fall on the primary in place of replicas; 1 for no bound.
        guarantee: What a client's reads may rely on: ``'none'``, ``'read_your_writes'``
            or ``'monotonic'``.
        is_read: Says whether a request only reads; None leaves it to the method.
        lag_fallback: What serves when every replica is out for its lag: ``'master'``,
            ``'least_lagged'`` or ``'error'``.
        lag_weights: Seconds of lag that halve a replica's share; None for any.
        lazy_begin: Whether a replica's transaction is begun on its server only when
            a statement needs it.
        learn_writers: Whether an endpoint whose write a replica has refused starts
            on the primary from then on.
        max_connecting: How many new connections to one replica this process opens
            at a time; None for no limit.
        max_lag: Seconds that a replica may be behind; None for no limit.
        max_pools: How many replicas of a bind this process uses; None for all.
        mode: ``'route'``, or ``'observe'``: the primary serves every read, and it is
            counted where reads would have gone.
        pin: What a pin holds: ``'position'``, ``'time'``, or with ``'auto'`` a position
            where the database has them.
        pin_cookie: The name of the cookie that carries the pin.
        pin_header: The name of the header that carries it.
        pin_key: Returns whose request it is, for stores that clients share; or None.
        pin_seconds: How long a pin by time lasts; 0 switches pins off.
        pin_store: Where pins are kept, as it was given.
        position_seconds: The longest life of a pin with a position.
        probe_interval: Seconds between two background probes of a replica; 0
            switches them off.
        read_on_replica: ``AUTO_READ_ON_SLAVE``.
        read_timeout: Seconds that one statement may take on a replica; None for no
            limit.
        readonly_methods: HTTP methods that read from a replica.
        role_check: Whether a server that is not a replica is left out.
        slow_start: Seconds over which a replica that is back takes its share again.
        unpinned: What is housekeeping, by table: the columns that an update may set,
            or None for every write.
        wait: Seconds that a read waits for a replica to show what its client must see.
        weights: Shares of the traffic by bind key; others weigh 1.
        write_functions: Names of SQL functions that write.
        zone: The zone whose replicas are used while one of them is live; or None.
        zones: The zones of replicas by bind key.
    """

    balancer: Callable[..., Any] = _setting(  # noqa: RUF009 - it returns field()
        "REPLICATED_BALANCER", "round_robin", lambda _, value: read_balancer(value)
    )
    breaker_max_reset: float = _setting(
        "REPLICATED_BREAKER_MAX_RESET", 30, seconds, above=0
    )
    breaker_reset: float = _setting("REPLICATED_BREAKER_RESET", 1, seconds, above=0)
    breaker_threshold: int = _setting("REPLICATED_BREAKER_THRESHOLD", 2, count)
    connect_timeout: float = _setting("REPLICATED_CONNECT_TIMEOUT", 2, seconds, above=0)
    # A URL of Redis may have a password.
    control: str | None = _setting(
        "REPLICATED_CONTROL", None, control_place, shown=False
    )
    discovery: Mapping[str, DiscoverySource] = _setting(
        "REPLICATED_DISCOVERY", {}, _discovery
    )
    explain: bool | None = _setting("REPLICATED_EXPLAIN", None, optional_boolean)
    failover_timeout: float = _setting("REPLICATED_FAILOVER_TIMEOUT", 3, seconds)
    fall_back: bool = _setting("REPLICATED_FALLBACK", "master", _falls_back)
    fallback_share: float = _setting("REPLICATED_FALLBACK_SHARE", 1, fraction)
    guarantee: str = _setting(
        "REPLICATED_GUARANTEE", "read_your_writes", choice, choices=GUARANTEES
    )
    is_read: Callable[[Request], bool | None] | None = _setting(  # noqa: RUF009 - the same
        "REPLICATED_IS_READ", None, predicate
    )
    lag_fallback: str = _setting(
        "REPLICATED_LAG_FALLBACK",
        "master",
        _fallback,
        choices=("master", "least_lagged", "error"),
    )
    lag_weights: float | None = _setting(
        "REPLICATED_LAG_WEIGHTS", None, optional_seconds, above=0
    )
    lazy_begin: bool = _setting("REPLICATED_LAZY_BEGIN", True, boolean)
    learn_writers: bool = _setting("REPLICATED_LEARN_WRITERS", True, boolean)
    max_connecting: int | None = _setting(
        "REPLICATED_MAX_CONNECTING", 4, optional_count
    )
    # A replica may be days behind on purpose; this is only compared.
    max_lag: float | None = _setting(
        "REPLICATED_MAX_LAG", 30, optional_seconds, most=YEAR
    )
    max_pools: int | None = _setting("REPLICATED_MAX_POOLS", None, optional_count)
    mode: str = _setting(
        "REPLICATED_MODE", "route", choice, choices=("route", "observe")
    )
    pin: str = _setting(
        "REPLICATED_PIN", "auto", choice, choices=("auto", "position", "time")
    )
    pin_cookie: str = _setting(PIN_COOKIE, "replicated_pin", cookie_name)
    pin_header: str = _setting(
        "REPLICATED_PIN_HEADER", "Replicated-Position", header_name
    )
    pin_key: Callable[[], object] | None = _setting(  # noqa: RUF009 - the same
        "REPLICATED_PIN_KEY", None, pin_key
    )
    pin_seconds: float = _setting("REPLICATED_PIN_SECONDS", 5, seconds)
    # A URL of Redis may have a password.
    pin_store: object = _setting(
        "REPLICATED_PIN_STORE", "cookie", lambda _, value: value, shown=False
    )
    position_seconds: float = _setting(
        "REPLICATED_POSITION_SECONDS", 300, seconds, above=0
    )
    probe_interval: float = _setting("REPLICATED_PROBE_INTERVAL", 5, interval, off=True)
    read_on_replica: bool = _setting("AUTO_READ_ON_SLAVE", True, boolean)
    read_timeout: float | None = _setting(
        "REPLICATED_READ_TIMEOUT", None, optional_seconds, above=0
    )
    readonly_methods: frozenset[str] = _setting(
        "REPLICATED_READONLY_METHODS", frozenset({"GET", "HEAD"}), _methods
    )
    role_check: bool = _setting("REPLICATED_ROLE_CHECK", True, boolean)
    slow_start: float = _setting("REPLICATED_SLOW_START", 0, seconds)
    unpinned: Mapping[str, frozenset[str] | None] = _setting(
        "REPLICATED_UNPINNED", {}, tables
    )
    wait: float = _setting("REPLICATED_WAIT", 0, seconds)
    weights: Mapping[str, int] = _setting("REPLICATED_WEIGHTS", {}, read_weights)
    write_functions: frozenset[str] = _setting(
        "REPLICATED_WRITE_FUNCTIONS", (), names, wanted="a list of names"
    )
    zone: str | None = _setting("REPLICATED_ZONE", None, _zone)
    zones: Mapping[str, str] = _setting("REPLICATED_ZONES", {}, _zones)


DEFAULTS: Mapping[str, Any] = {
    one.metadata["key"]: one.metadata["default"] for one in fields(Settings)
}
"""What each key of ``app.config`` has where it is not set."""


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
        **DEFAULTS,
        "REPLICATED_READONLY_METHODS": methods,
        PIN_COOKIE: default_pin_cookie(config.get("SESSION_COOKIE_NAME")),
        **config,
    }
    settings = Settings(
        **{
            one.name: one.metadata["read"](given[one.metadata["key"]])
            for one in fields(Settings)
        }
    )
    refuse_cookie_conflict(PIN_COOKIE, settings.pin_cookie, config)
    _check_resets(settings)
    _check_names("REPLICATED_WEIGHTS", settings.weights, replicas)
    _check_names("REPLICATED_ZONES", settings.zones, replicas)
    return replace(_settle_pins(settings), balancer=_balancer(settings, config))


def _balancer(settings: Settings, config: Mapping[str, Any]) -> Callable[..., Any]:
    """Return the balancer, over the local zone if there is one."""
    balancer = settings.balancer
    if "REPLICATED_BALANCER" not in config and (settings.weights or settings.discovery):
        # Weights that no balancer reads would be a trap.
        balancer = Weighted()
    if settings.zone is None:
        return balancer
    if settings.zone not in settings.zones.values():
        logger.warning(
            "REPLICATED_ZONE = %r is the zone of no replica in REPLICATED_ZONES: all "
            "replicas serve alike.",
            settings.zone,
        )
    return Zoned(balancer, settings.zone, settings.zones)


def _check_resets(settings: Settings) -> None:
    if settings.breaker_max_reset < settings.breaker_reset:
        raise ConfigurationError(
            "REPLICATED_BREAKER_MAX_RESET",
            settings.breaker_max_reset,
            f"must be at least REPLICATED_BREAKER_RESET = {settings.breaker_reset!r}.",
        )


def _settle_pins(settings: Settings) -> Settings:
    """Return settings in which those of pins agree.

    Raises:
        ConfigurationError: They contradict each other.
    """
    if not settings.pin_seconds:
        if settings.guarantee == "monotonic":
            raise ConfigurationError(
                "REPLICATED_GUARANTEE",
                settings.guarantee,
                "needs pins, which REPLICATED_PIN_SECONDS = 0 switches off. Leave that "
                "out, or set REPLICATED_GUARANTEE = 'none'.",
            )
        settings = replace(settings, guarantee="none")
    if not settings.role_check:
        # With logical replication a replica's log is another one than the primary's.
        if settings.pin == "position":
            raise ConfigurationError(
                "REPLICATED_PIN",
                settings.pin,
                "cannot be had beside REPLICATED_ROLE_CHECK = False: with logical "
                "replication a replica has a log of its own. Use 'time', or leave it "
                "out.",
            )
        settings = replace(settings, pin="time")
    return settings


def _check_names(
    key: str, given: Mapping[str, object], replicas: Collection[str]
) -> None:
    # An app without replicas may share its settings with one that has some.
    for name, value in given.items() if replicas else ():
        if name not in replicas:
            raise ConfigurationError(
                f"{key}[{safe(name)!r}]",
                value,
                f"no such replica; SQLALCHEMY_BINDS has {', '.join(replicas)}.",
            )


def _refuse_unknown(config: Mapping[Any, Any]) -> None:
    for key in config:
        if not isinstance(key, str) or key in DEFAULTS:
            continue
        if not key.startswith((_PREFIX, "AUTO_READ_ON")):
            _refuse_misspelt(key, config[key])
            _refuse_nearly_prefixed(key, config[key])
        else:
            meant = _nearest(key.removeprefix(_PREFIX), _TAILS, _ALIKE_KEY)
            raise _unknown(key, config[key], meant)


_TAILS = {name.removeprefix(_PREFIX): name for name in DEFAULTS}
"""The keys without their prefix, which would make any two of them similar."""
_ALIKE_KEY = 0.6
_ALIKE_TAIL = 0.5


def _refuse_nearly_prefixed(key: str, value: object) -> None:
    """Refuse a ``REPLICATE_*`` key that resembles a setting, and warn of any other.

    Raises:
        ConfigurationError: It resembles one.
    """
    upper = key.upper()
    if not upper.startswith(_NEARLY_PREFIX) or upper.startswith(_API_CLIENT):
        return
    meant = _nearest(upper.removeprefix(_NEARLY_PREFIX), _TAILS, _ALIKE_TAIL)
    if meant is not None:
        raise _unknown(key, value, meant)
    logger.warning(
        "%s is no setting of this extension: they begin with %s.", key, _PREFIX
    )


def _refuse_misspelt(key: str, value: object) -> None:
    """Refuse a key with a typo in its prefix, such as ``REPLICATE_PIN_SECONDS``.

    Most keys belong to other extensions, so the rest of the key must be the name of a
    setting. If the prefix is another word, as in ``REPLICATION_MAX_LAG``, the key is
    only warned of.

    Raises:
        ConfigurationError: The key is misspelt.
    """
    letters = _letters(key)
    if not _A_PART.search(letters):  # comparing takes a tenth of a millisecond
        return
    cutoff = _ALIKE if letters.startswith("AUTO") else _ALIKE_SWITCH
    head = "REPLICATED"
    meant = _nearest(letters, {_letters(_SWITCH): _SWITCH}, cutoff)
    if meant is None:
        names = {_letters(tail): name for tail, name in _TAILS.items()}
        ends = [name for name in names if letters.endswith(name)]
        tail = max(ends, key=len) if ends else _letters(key.partition("_")[2])
        head, meant = letters.removesuffix(tail), _nearest(tail, names)
    if meant is None:
        return
    alike = difflib.SequenceMatcher(None, head, "REPLICATED").ratio()
    # With a word before the prefix it is the key of another program.
    if alike > _ALIKE and not re.fullmatch("..+REPLICATED", head):
        raise _unknown(key, value, meant)
    if re.fullmatch("REPLICA(S|TION|TING)?|(FLASK|SQLALCHEMY)REPLICATED", head):
        logger.warning("%s is not read. If it is meant as %s, call it so.", key, meant)


def _unknown(key: str, value: object, meant: str | None) -> ConfigurationError:
    known = f"known are {', '.join(sorted(DEFAULTS))}."
    hint = known if meant is None else f"did you mean {meant}?"
    return ConfigurationError(key, value, f"no such setting; {hint}")


def _letters(key: str) -> str:
    return re.sub(r"[^A-Z]", "", key.upper())


def _nearest(
    letters: str, known: Mapping[str, str], cutoff: float = _ALIKE
) -> str | None:
    close = difflib.get_close_matches(letters, known, n=1, cutoff=cutoff)
    return known[close[0]] if close else None


def default_pin_cookie(session: str | None) -> str:
    """Return the default name of the pin's cookie.

    Applications on one host that have separate session cookies get separate pins.

    Args:
        session: The name of the session cookie; None is Flask's default.
    """
    name: str = DEFAULTS[PIN_COOKIE]
    return name if session in {None, "", "session"} else f"{session}_{name}"
