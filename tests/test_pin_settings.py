"""The settings of pins and guarantees, and what they say of each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from flask_replicated import ConfigurationError
from flask_replicated.settings.config import GUARANTEES, Settings, read_settings
from tests.support import Build, build_fixture

if TYPE_CHECKING:
    from collections.abc import Callable

build = build_fixture


def read(**config: Any) -> Settings:
    """Return the settings of an application with two replicas."""
    return read_settings(config, ["GET"], ["slave_1", "slave_2"])


def test_defaults() -> None:
    """An application that sets nothing has read-your-writes, by position, no wait."""
    found = read()
    assert (found.guarantee, found.pin) == ("read_your_writes", "auto")
    assert (found.pin_seconds, found.position_seconds, found.wait) == (5, 300, 0)
    assert (found.pin_store, found.pin_key) == ("cookie", None)
    assert found.pin_header == "Replicated-Position"


@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_each_guarantee(guarantee: str) -> None:
    """Each guarantee may be an application's."""
    assert read(REPLICATED_GUARANTEE=guarantee).guarantee == guarantee


@pytest.mark.parametrize("given", [{}, {"REPLICATED_GUARANTEE": "read_your_writes"}])
def test_no_pins(given: dict[str, str]) -> None:
    """Without pins there is no guarantee."""
    assert read(REPLICATED_PIN_SECONDS=0, **given).guarantee == "none"


def test_no_pins_beside_monotonic() -> None:
    """Reads that never go back in time cannot be had without pins."""
    with pytest.raises(
        ConfigurationError, match="REPLICATED_PIN_SECONDS = 0"
    ) as caught:
        read(REPLICATED_PIN_SECONDS=0, REPLICATED_GUARANTEE="monotonic")
    assert caught.value.key == "REPLICATED_GUARANTEE"


@pytest.mark.parametrize("given", [{}, {"REPLICATED_PIN": "time"}])
def test_logical_replication(given: dict[str, str]) -> None:
    """A replica with a log of its own has no positions of the primary's."""
    assert read(REPLICATED_ROLE_CHECK=False, **given).pin == "time"


def test_positions_beside_logical_replication() -> None:
    """Whoever insists on positions there is told why there are none."""
    with pytest.raises(
        ConfigurationError, match="REPLICATED_ROLE_CHECK = False"
    ) as got:
        read(REPLICATED_ROLE_CHECK=False, REPLICATED_PIN="position")
    assert got.value.key == "REPLICATED_PIN"


def test_positions_where_there_are_none(build: Build) -> None:
    """Whoever insists on positions is told at first use, before a write is sent."""
    site = build(REPLICATED_PIN="position")
    for method in ("POST", "GET"):
        with (
            site.app.test_request_context(method=method),
            pytest.raises(ConfigurationError, match="sqlite has no log positions"),
        ):
            site.write()
    assert site.entries() == []


def test_positions_without_a_probe(build: Build) -> None:
    """The same at the first read, where nothing goes on in the background."""
    site = build(REPLICATED_PIN="position", REPLICATED_PROBE_INTERVAL=0)
    for _ in range(2):
        with (
            site.app.test_request_context(),
            pytest.raises(ConfigurationError, match="sqlite has no log positions"),
        ):
            site.who()


async def waits() -> str:
    """Be no key: nothing can await it."""
    return "7"


class WaitsToo:
    """The same as an object."""

    async def __call__(self) -> str:
        """Return a user."""
        return "7"


@pytest.mark.parametrize("function", [waits, WaitsToo()])
def test_async_key(function: Callable[[], object]) -> None:
    """A key that must be awaited is refused at start."""
    with pytest.raises(ConfigurationError, match="must not be async"):
        read(REPLICATED_PIN_KEY=function)


@pytest.mark.parametrize(
    ("value", "remedy"),
    [("QZQ", "a function that returns whose"), (len, "must take no arguments")],
)
def test_no_key(value: object, remedy: str) -> None:
    """A key's value is not shown: it may have been taken for a secret key."""
    with pytest.raises(ConfigurationError, match=remedy) as caught:
        read(REPLICATED_PIN_KEY=value)
    assert "QZQ" not in str(caught.value)


@pytest.mark.parametrize("function", [lambda: None, lambda *_: "7", int])
def test_key(function: Callable[[], object]) -> None:
    """What can be called without arguments is a key."""
    assert read(REPLICATED_PIN_KEY=function).pin_key is function


@pytest.mark.parametrize("store", ["session", None, 7, object(), "no such store"])
def test_store_as_given(store: object) -> None:
    """Which store it is, is judged where one is made."""
    assert read(REPLICATED_PIN_STORE=store).pin_store is store


def test_no_password_is_shown() -> None:
    """The password in the URL of a store is not in the settings' text."""
    assert "QZQ" not in repr(read(REPLICATED_PIN_STORE="redis://:QZQ@redis/0"))
