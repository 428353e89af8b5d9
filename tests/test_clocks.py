"""What becomes of a pin where the clocks of two workers differ."""

from __future__ import annotations

import time

import pytest

from tests.balancers.support import FakeClock
from tests.support import REPLICAS, Build, build_fixture, get_with_pin, pin_of

build = build_fixture


@pytest.mark.parametrize(
    ("behind", "later", "pinned"),
    [
        # The clock of the worker that reads is so much behind that of the one that
        # wrote, and so many seconds have passed since.
        (0.9, 0.0, True),
        (0.9, 5.5, True),
        (3.0, 0.0, False),
        (3.0, 2.5, True),
        (-2.0, 2.9, True),
        (-2.0, 3.1, False),
    ],
)
def test_clocks_differ(
    build: Build,
    monkeypatch: pytest.MonkeyPatch,
    behind: float,
    later: float,
    pinned: bool,
) -> None:
    """A second is forgiven; a clock further behind ignores the pin meanwhile.

    A clock that is ahead ends the pin sooner by as much, and one behind later.
    """
    clock = FakeClock(1_700_000_000.0)
    monkeypatch.setattr(time, "time", clock)
    site = build(REPLICATED_PIN_SECONDS=5)
    pin = pin_of(site.client().post("/write"))
    clock.now += later - behind
    assert (get_with_pin(site.app, pin) == "master") is pinned
    assert pinned or get_with_pin(site.app, pin) in REPLICAS
