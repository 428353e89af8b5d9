"""What serves when all standbys lag, on real servers with paused replay."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from examples.cluster import wait_until
from flask_replicated import AllReplicasOutError

if TYPE_CHECKING:
    from collections.abc import Callable

    from examples.cluster import Cluster
    from tests.postgres.support import Build, Site

pytestmark = pytest.mark.postgres

OFTEN: dict[str, Any] = {
    "REPLICATED_PROBE_INTERVAL": 0.3,
    "REPLICATED_MAX_LAG": 1,
    "REPLICATED_PIN_SECONDS": 0,
}
BINDS = {"slave_1", "slave_2", "slave_3"}


@pytest.fixture
def lagging(build: Build, healthy_cluster: Cluster) -> Callable[..., Site]:
    """Give a function that makes a site whose standbys have come to lag."""

    def make(**config: Any) -> Site:
        site = build(**OFTEN, **config)
        site.post("replayed")
        healthy_cluster.wait_replicated()
        site.get()  # reads count in a share of them, so that there are few
        wait_until(lambda: site.live() == BINDS, "all to serve", 20)
        for standby in healthy_cluster.standbys:
            standby.pause_replay()
        site.post("not replayed")
        wait_until(lambda: not site.live(), "all of them to lag", 20)
        return site

    return make


def server_of(site: Site) -> str | None:
    """Return who serves a GET; None if that raises."""
    try:
        return site.get().servers[0]
    except AllReplicasOutError:
        return None


def test_master(lagging: Callable[..., Site]) -> None:
    """By default the primary serves, and shows everything."""
    answer = lagging().get()
    assert set(answer.servers) == {"primary"}
    assert answer.texts == ["replayed", "not replayed"]


def test_least_lagged(lagging: Callable[..., Site], healthy_cluster: Cluster) -> None:
    """Old rows are served by one standby a request, until they are in step again."""
    site = lagging(REPLICATED_LAG_FALLBACK="least_lagged")
    for _ in range(5):
        first, last = (answer := site.get()).servers
        assert first == last != "primary"
        assert answer.texts == ["replayed"]
    assert site.post("written").servers == ["primary", "primary"]
    for standby in healthy_cluster.standbys:
        standby.resume_replay()
    wait_until(lambda: site.live() == BINDS, "them to be back", 20)
    assert site.get().texts == ["replayed", "not replayed", "written"]


def test_error(lagging: Callable[..., Site]) -> None:
    """A read raises, and names the lag of each; a write goes on."""
    site = lagging(REPLICATED_LAG_FALLBACK="error")
    with pytest.raises(AllReplicasOutError, match="REPLICATED_LAG_FALLBACK") as caught:
        site.get()
    assert all("behind the primary" in one for one in caught.value.causes.values())
    assert site.post("written").servers == ["primary", "primary"]


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_share(lagging: Callable[..., Site], share: float) -> None:
    """Beyond the share a standby that lags serves, and nothing fails."""
    site = lagging(REPLICATED_FALLBACK_SHARE=share)
    with ThreadPoolExecutor(4) as threads:
        found = Counter(threads.map(lambda _: server_of(site), range(200)))
    assert None not in found
    # A few reads before count as well, and a few are on their way.
    assert abs(found["primary"] - share * 200) <= (15 if share == 0.5 else 0)


def test_share_without_any(
    lagging: Callable[..., Site], healthy_cluster: Cluster
) -> None:
    """With all standbys gone as well, what is beyond the share raises."""
    site = lagging(REPLICATED_FALLBACK_SHARE=0)
    for standby in healthy_cluster.standbys:
        standby.kill()
    wait_until(
        lambda: not any("behind" in one for one in site.pool.causes().values()),
        "the probe to find out",
        20,
    )
    wait_until(lambda: server_of(site) is None, "reads to raise", 20)
    with pytest.raises(AllReplicasOutError) as caught:
        site.get()
    assert (caught.value.setting, caught.value.share) == (
        "REPLICATED_FALLBACK_SHARE",
        0.0,
    )
