"""A replica that lags takes less, and its lag may swing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st

from examples.cluster import wait_until
from flask_replicated.fleet.probe import ReplicaProbe
from flask_replicated.replica.lag import share_for_lag
from tests.support import Build, build_fixture

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest

build = build_fixture


def shares(lags: Sequence[float | None], share: float = 1.0) -> list[float]:
    """Return the share after each of these lags, where two seconds halve it."""
    found = []
    for lag in lags:
        share = share_for_lag(share, lag, 2.0)
        found.append(share)
    return found


def test_steps() -> None:
    """Half, a quarter, an eighth; at once, and back by steps."""
    assert shares([0, 1.9, 2, 4, 8, 100]) == [1, 1, 1 / 2, 1 / 4, 1 / 8, 1 / 8]
    assert shares([100, 0, 0, 0, 0]) == [1 / 8, 1 / 4, 1 / 2, 1, 1]
    assert shares([4, None, None]) == [1 / 4, 1 / 4, 1 / 4]


@given(st.lists(st.floats(1.01, 3.99), max_size=30))
def test_swings(lags: list[float]) -> None:
    """A lag around a limit lowers the share once, and changes nothing after that."""
    assert set(shares(lags, share=1 / 2)) <= {1 / 2}


@given(st.lists(st.none() | st.floats(0, 1e6), max_size=30))
def test_nobody_starves(lags: list[float | None]) -> None:
    """Whatever comes, a share is left; who is up to date has the full one."""
    found = shares([*lags, 0, 0, 0])
    assert min(found) >= 1 / 8
    assert found[-1] == 1


def test_by_the_probe(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the probe measures changes the share, with any balancer, and back."""
    site = build(
        ("slave_1", "slave_2"),
        REPLICATED_LAG_WEIGHTS=2,
        REPLICATED_PROBE_INTERVAL=0.02,
    )
    lag, look = {"slave_1": 3.0}, ReplicaProbe.check

    def lagging(probe: ReplicaProbe, *args: Any, **options: Any) -> Any:
        found = look(probe, *args, **options)
        return found._replace(lag=lag.get(probe.member.name, 0.0))

    monkeypatch.setattr(ReplicaProbe, "check", lagging)
    with site.app.app_context():
        pool = site.app.extensions["replicated"].pool()
    site.get()
    records = pool._membership.records
    one = records[pool.member("slave_1")]
    wait_until(lambda: one.share == 1 / 2, "a lower share")
    counts = site.count(300)
    assert 40 < counts["slave_1"] < 110
    assert pool.member("slave_1").weight == 1
    lag.clear()
    wait_until(lambda: one.share == 1, "the full share")
    assert records[pool.member("slave_2")].share == 1
