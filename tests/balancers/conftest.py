"""A clock, a listener and a pool of three."""

from __future__ import annotations

import pytest

from balancers import Pool
from tests.balancers.support import FakeClock, Log, longest, targets


@pytest.fixture
def clock() -> FakeClock:
    """Give a clock that stands still."""
    return FakeClock()


@pytest.fixture
def log() -> Log:
    """Give a listener that keeps events."""
    return Log()


@pytest.fixture
def pool(clock: FakeClock, log: Log) -> Pool[str]:
    """Give a pool of three whose waits are as long as they can be."""
    return Pool(targets(3), clock=clock, listeners=[log], jitter=longest)
