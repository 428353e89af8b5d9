"""What the value of a setting must be, one check at a time."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from flask_replicated import ConfigurationError
from flask_replicated.settings.bind_names import misnamed_binds
from flask_replicated.settings.binds import read_binds
from flask_replicated.settings.config import read_settings
from tests.support import Build, build_fixture

build = build_fixture


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("AUTO_READ_ON_SLAVE", "no", "True or False"),
        ("AUTO_READ_ON_SLAVE", None, "True or False"),
        ("REPLICATED_EXPLAIN", "yes", "True or False, or None for app.debug"),
        ("REPLICATED_BALANCE", "random", "did you mean REPLICATED_BALANCER?"),
        ("REPLICATED_BALANCER", "round-robin", "'round_robin'"),
        ("REPLICATED_BALANCER", "no.such.path", "dotted path"),
        ("REPLICATED_BALANCER", "sticky", "no balancer has this name. Use"),
        ("REPLICATED_BALANCER", "shop.pick", "No module named 'shop'. Use"),
        ("REPLICATED_BALANCER", 7, "callable"),
        ("REPLICATED_BALANCER", None, "callable"),
        ("REPLICATED_BREAKER_MAX_RESET", 0.5, "REPLICATED_BREAKER_RESET"),
        ("REPLICATED_BREAKER_RESET", 0, "above 0"),
        ("REPLICATED_BREAKER_THRESHOLD", 0, "at least 1"),
        ("REPLICATED_BREAKER_THRESHOLD", 1.5, "whole number"),
        ("REPLICATED_BREAKER_THRESHOLD", True, "whole number"),
        ("REPLICATED_BREAKER_THRESHOLD", 10**7, "at most 1000000"),
        ("REPLICATED_CONNECT_TIMEOUT", 0, "above 0"),
        ("REPLICATED_CONTROL", "run/shop", "absolute path"),
        ("REPLICATED_CONTROL", "http://h/", "URL of Redis"),
        ("REPLICATED_CONTROL", 5, "must be None"),
        ("REPLICATED_CONNECT_TIMEOUT", None, "number of seconds"),
        ("REPLICATED_FALLBACK", "slave", "'master' or 'error'"),
        ("REPLICATED_FALLBACK", "primary", "did you mean 'master'?"),
        ("REPLICATED_FALLBACK", "Master", "did you mean 'master'?"),
        ("REPLICATED_FALLBACK_SHARE", 1.01, "from 0 to 1"),
        ("REPLICATED_FALLBACK_SHARE", -0.1, "from 0 to 1"),
        ("REPLICATED_FALLBACK_SHARE", True, "from 0 to 1"),
        ("REPLICATED_FALLBACK_SHARE", None, "from 0 to 1"),
        ("REPLICATED_FALLBACK_SHARE", float("nan"), "from 0 to 1"),
        ("REPLICATED_FALLBACK_SHARES", 1, "did you mean REPLICATED_FALLBACK_SHARE?"),
        ("REPLICATED_LAG_FALLBACK", "slave", "'least_lagged'"),
        ("REPLICATED_LAG_WEIGHTS", 0, "above 0"),
        ("REPLICATED_LAG_WEIGHTS", True, "number of seconds"),
        ("REPLICATED_LAG_FALLBACK", "primary", "did you mean 'master'?"),
        ("REPLICATED_GUARANTEE", "causal", "'none' or 'read_your_writes' or 'monoto"),
        ("REPLICATED_GUARANTEE", None, "'none' or 'read_your_writes' or 'monotonic'"),
        ("REPLICATED_IS_READ", 7, "a function of the request"),
        ("REPLICATED_MAX_CONNECTING", 0, "or None for no limit"),
        ("REPLICATED_MAX_LAG", -1, "at least 0"),
        ("REPLICATED_MAX_LAG", 1e9, "at most 31536000 (a year)"),
        ("REPLICATED_MAX_POOLS", 10**7, "at most 1000000"),
        ("REPLICATED_NO_SUCH_THING", 1, "REPLICATED_WEIGHTS"),
        ("REPLICATED_STICKY", True, "no such setting; known are AUTO_READ_ON_SLAVE, "),
        ("REPLICATED_PIN_SECOND", 1, "did you mean REPLICATED_PIN_SECONDS?"),
        ("REPLICATED_AUTO_READ_ON_SLAVE", 1, "did you mean AUTO_READ_ON_SLAVE?"),
        ("AUTO_READ_ON_SLAVES", True, "did you mean AUTO_READ_ON_SLAVE?"),
        ("REPLICATED_PIN_COOKIE", "", "cookie"),
        ("REPLICATED_PIN_COOKIE", "a b", "cookie"),
        ("REPLICATED_PIN_COOKIE", "a;b", "cookie"),
        ("REPLICATED_PIN_COOKIE", "é", "cookie"),
        ("REPLICATED_PIN_COOKIE", None, "cookie"),
        ("REPLICATED_PIN_COOKIE", "session", "take another"),
        ("REPLICATED_PIN_COOKIE", "session", "SESSION_COOKIE_NAME"),
        ("REPLICATED_PIN_COOKIE", "x" * 101, "at most 100 characters"),
        ("REPLICATED_PIN_COOKIE", "__Host-pin", "SESSION_COOKIE_SECURE"),
        ("REPLICATED_PIN_COOKIE", "__Secure-pin", "SESSION_COOKIE_SECURE"),
        ("REPLICATED_MODE", "watch", "'route' or 'observe'"),
        ("REPLICATED_MODE", True, "'route' or 'observe'"),
        ("REPLICATED_PIN", "lsn", "'auto' or 'position' or 'time'"),
        ("REPLICATED_PIN", True, "'auto' or 'position' or 'time'"),
        ("REPLICATED_PIN_HEADER", "", "a name that a header may have"),
        ("REPLICATED_PIN_HEADER", None, "a name that a header may have"),
        ("REPLICATED_PIN_HEADER", "X_Position", "with hyphens between them"),
        ("REPLICATED_PIN_HEADER", "X-Position\n", "with hyphens between them"),
        ("REPLICATED_PIN_HEADER", "X-Position: 1", "with hyphens between them"),
        ("REPLICATED_PIN_HEADER", "x" * 101, "at most 100 characters"),
        ("REPLICATED_PIN_HEADER", "Set-Cookie", "take another name"),
        ("REPLICATED_PIN_HEADER", "ETag", "take another name"),
        ("REPLICATED_PIN_SECONDS", -1, "at least 0"),
        ("REPLICATED_PIN_SECONDS", "5", "number of seconds"),
        ("REPLICATED_PIN_SECONDS", True, "number of seconds"),
        ("REPLICATED_PIN_SECONDS", float("inf"), "number of seconds"),
        ("REPLICATED_PIN_SECONDS", 1e12, "at most 86400 (a day)"),
        ("REPLICATED_PIN_SECONDS", float("nan"), "number of seconds"),
        ("REPLICATED_PIN_SECONDS", 86_401, "at most 86400 (a day)"),
        ("REPLICATED_POSITION_SECONDS", 0, "above 0"),
        ("REPLICATED_POSITION_SECONDS", 86_401, "at most 86400 (a day)"),
        ("REPLICATED_PROBE_INTERVAL", None, "number of seconds"),
        ("REPLICATED_PROBE_INTERVAL", 1e300, "at most 86400"),
        ("REPLICATED_PROBE_INTERVAL", 0.001, "at least 0.01 seconds, or 0 for none"),
        ("REPLICATED_PROBE_INTERVAL", -1, "above 0"),
        ("REPLICATED_PROBE_INTERVAL", False, "a number of seconds"),
        ("REPLICATED_READONLY_METHODS", "GET", "{'GET', 'HEAD'}"),
        ("REPLICATED_READONLY_METHODS", [1], "{'GET', 'HEAD'}"),
        ("REPLICATED_READONLY_METHODS", None, "{'GET', 'HEAD'}"),
        ("REPLICATED_READ_TIMEOUT", 0, "above 0"),
        ("REPLICATED_READ_TIMEOUT", 10**7, "at most 86400"),
        ("REPLICATED_ROLE_CHECK", None, "True or False"),
        ("REPLICATED_WAIT", -1, "at least 0"),
        ("REPLICATED_WAIT", None, "number of seconds"),
        ("REPLICATED_WEIGHTS", [("slave_1", 2)], "{'slave_1': 3}"),
        ("REPLICATED_WEIGHTS", None, "{'slave_1': 3}"),
        ("REPLICATED_WEIGHTS", {"slave_4": 2}, "slave_1, slave_2, slave_3"),
        ("REPLICATED_WEIGHTS", {"master": 2}, "slave_1, slave_2, slave_3"),
        ("REPLICATED_WEIGHTS", {"slave_1": -1}, "whole number"),
        ("REPLICATED_WEIGHTS", {"slave_1": 1.5}, "whole number"),
        ("REPLICATED_WEIGHTS", {"slave_1": "2"}, "whole number"),
        ("REPLICATED_WEIGHTS", {"slave_1": 10**16}, "at most"),
        ("REPLICATED_ZONE", "", "the name of a zone"),
        ("REPLICATED_ZONE", 1, "the name of a zone"),
        ("REPLICATED_ZONES", ["slave_1"], "{'slave_1': 'eu-a'}"),
        ("REPLICATED_ZONES", {"slave_4": "eu"}, "slave_1, slave_2, slave_3"),
        ("REPLICATED_ZONES", {"slave_1": None}, "the name of a zone"),
        ("REPLICATED_ZONES", {"slave_1": ""}, "the name of a zone"),
    ],
)
def test_wrong(build: Build, key: str, value: Any, remedy: str) -> None:
    """A value that cannot be right is an error with key, value and remedy."""
    with pytest.raises(ConfigurationError) as caught:
        build(**{key: value})
    bad = next(iter(value.values())) if isinstance(value, dict) else value
    assert f"{caught.value}".startswith(f"{caught.value.key} = {bad!r}: ")
    assert caught.value.key.startswith(key)
    assert repr(caught.value.value) == repr(bad)
    assert remedy in caught.value.remedy
    assert remedy in f"{caught.value}"


@pytest.mark.parametrize("seconds", [86_400, 0.001])
def test_enough(build: Build, seconds: float) -> None:
    """A day is not too much."""
    build(REPLICATED_PIN_SECONDS=seconds, REPLICATED_READ_TIMEOUT=seconds)


@pytest.mark.parametrize("interval", [0, 0.01, 0.5])
def test_pause(interval: float) -> None:
    """No probe at all is a choice; a hundred in a second are the most."""
    found = read_settings({"REPLICATED_PROBE_INTERVAL": interval}, ["GET"], [])
    assert found.probe_interval == interval


@pytest.mark.parametrize("every", [0, 1e-9, 0.009])
def test_pause_of_discovery(every: float) -> None:
    """DNS that is asked without a pause is asked for nothing."""
    source = {"url": "postgresql://replicas.internal/shop", "every": every}
    with pytest.raises(ConfigurationError, match="every") as caught:
        read_settings({"REPLICATED_DISCOVERY": {"slave": source}}, ["GET"], [])
    assert caught.value.value == every


@pytest.mark.parametrize(
    "key",
    [
        *(f"REPLICATED_{name}_TIMEOUT" for name in ("CONNECT", "FAILOVER", "READ")),
        *(f"REPLICATED_BREAKER_{name}" for name in ("RESET", "MAX_RESET")),
        *("REPLICATED_BREAKER_THRESHOLD", "REPLICATED_MAX_CONNECTING"),
        *("REPLICATED_MAX_LAG", "REPLICATED_MAX_POOLS", "REPLICATED_PIN_SECONDS"),
        *("REPLICATED_POSITION_SECONDS", "REPLICATED_WAIT", "REPLICATED_LAG_WEIGHTS"),
        *("REPLICATED_PROBE_INTERVAL", "REPLICATED_SLOW_START"),
    ],
)
def test_too_much(key: str) -> None:
    """No number may be so large that what uses it fails."""
    for value in (10**400, float("inf"), 1e300):
        with pytest.raises(ConfigurationError, match=key) as caught:
            read_settings({key: value}, ["GET"], ["slave_1"])
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize(
    "others",
    [
        {"SESSION_COOKIE_NAME": "wrote"},
        {"REMEMBER_COOKIE_NAME": "wrote"},
        {"JWT_ACCESS_COOKIE_NAME": "wrote"},
        {"SECURITY_CSRF_COOKIE_NAME": "wrote", "MAX_COOKIE_SIZE": 1, 7: "wrote"},
    ],
)
def test_cookie_of_another(others: dict[Any, Any]) -> None:
    """The pin must not overwrite what a log-in is kept in."""
    with pytest.raises(ConfigurationError, match=next(iter(others))):
        read_settings({"REPLICATED_PIN_COOKIE": "wrote", **others}, ["GET"], [])


def test_cookies_by_default(build: Build) -> None:
    """Nor may it have the name that another has where nobody names it."""
    for name, key in (
        ("session", "SESSION_COOKIE_NAME"),
        ("remember_token", "REMEMBER_COOKIE_NAME"),
    ):
        with pytest.raises(ConfigurationError, match=key):
            build(REPLICATED_PIN_COOKIE=name)
        others: dict[str, Any] = {key: "other"}
        build(REPLICATED_PIN_COOKIE=name, **others)


def test_cookie_with_a_prefix(build: Build) -> None:
    """A name that browsers hold to a promise needs what keeps it."""
    secure: dict[str, Any] = {"SESSION_COOKIE_SECURE": True}
    build(REPLICATED_PIN_COOKIE="__Host-pin", **secure)
    build(REPLICATED_PIN_COOKIE="__Secure-pin", SESSION_COOKIE_DOMAIN="x.y", **secure)
    cases: list[dict[str, Any]] = [
        {"SESSION_COOKIE_DOMAIN": "x.y"},
        {"SESSION_COOKIE_PATH": "/shop"},
        {"APPLICATION_ROOT": "/shop"},
    ]
    for broken in cases:
        with pytest.raises(ConfigurationError, match="no SESSION_COOKIE_DOMAIN"):
            build(REPLICATED_PIN_COOKIE="__Host-pin", **secure, **broken)


def test_a_bind_without_a_name() -> None:
    """A key that is no text is an ordinary bind."""
    found = read_binds([None, 1, "slave_1"], "SQLALCHEMY_BINDS")  # type: ignore[list-item]  # that is the point
    assert found.replica_names() == ["slave_1"]
    assert not list(misnamed_binds([None, 1, "slave_1"]))


def test_a_key_without_a_name() -> None:
    """Such a key of app.config is somebody else's."""
    read_settings({1: 2}, ["GET"], [])  # type: ignore[dict-item]  # that is the point


@pytest.mark.parametrize("key", ["REPLICATED_WEIGHT", "AUTO_READ_ON_REPLICA"])
def test_one_guess(key: str) -> None:
    """Where it is clear what is meant, the other settings are not listed."""
    with pytest.raises(ConfigurationError, match="did you mean") as caught:
        read_settings({key: 1}, ["GET"], [])
    assert "REPLICATED_PIN_SECONDS" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "shown", "cause"),
    [
        ("sqlite:////tmp/x", "'sqlite:////tmp/x'", "its URL has no host"),
        ({"url": "sqlite:////tmp/x"}, "'sqlite:////tmp/x'", "its URL has no host"),
        ({"urls": ["postgresql://h/d"]}, "'urls'", "'urls' in place of 'url'"),
        ({"every": 7}, "7", "it has no 'url'"),
        ("hunter2", "'<no URL>'", "it has no valid URL"),
        ({"url": "hunter2"}, "'<no URL>'", "it has no valid URL"),
        (None, "None", "it has no valid URL"),
        ({"url": "postgresql:///d", "connect_args": {"password": "QZQ"}}, "***", "no "),
    ],
)
def test_source_without_a_name(source: Any, shown: str, cause: str) -> None:
    """What DNS is to answer must be named; the error shows what was written."""
    with pytest.raises(ConfigurationError, match="must be a URL") as caught:
        read_settings({"REPLICATED_DISCOVERY": {"slave": source}}, ["GET"], [])
    assert caught.value.key == "REPLICATED_DISCOVERY['slave']"
    assert shown in repr(caught.value.value)
    assert cause in caught.value.remedy
    assert "QZQ" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


async def _asks(_request: object) -> bool:
    return True


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("REPLICATED_IS_READ", _asks, "must not be async"),
        ("REPLICATED_BALANCER", lambda _members: None, "function without arguments"),
        ("REPLICATED_BALANCER", lambda: None, "function without arguments"),
        ("REPLICATED_CONNECT_TIMEOUT", 10**400, "at most 86400"),
    ],
)
def test_found_at_start(build: Build, key: str, value: Any, remedy: str) -> None:
    """What would fail at a request is found when the application starts."""
    with pytest.raises(ConfigurationError, match=remedy) as caught:
        build(**{key: value})
    assert caught.value.key == key
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
