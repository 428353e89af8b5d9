"""One of two standbys answers late."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.chaos.proxy import Proxy
from tests.postgres.support import Load, bind

if TYPE_CHECKING:
    from examples.cluster import Cluster
    from tests.postgres.support import Build

pytestmark = pytest.mark.postgres

_LATE = 0.2  # seconds: a probe over a new connection ends well within its two


@pytest.mark.parametrize(
    "options", [{}, {"pool_size": 2, "max_overflow": 0}], ids=["roomy", "small"]
)
def test_slow(
    build: Build, healthy_cluster: Cluster, driver: str, options: dict[str, Any]
) -> None:
    """Reads do not line up behind it, and it has its turns again when it is well."""
    first, second = healthy_cluster.standbys[:2]
    with Proxy(first.port) as proxy:
        near = bind(first, driver).replace(str(first.port), str(proxy.port))
        site = build(
            {
                "slave_1": {"url": near, **options},
                "slave_2": {"url": bind(second, driver), "pool_size": 10},
            },
            REPLICATED_PROBE_INTERVAL=1,
        )
        site.wait_live("slave_1", "slave_2")
        with Load(site, threads=6) as load:
            load.next(100)
            proxy.delay = _LATE
            load.next(100)  # so that it is found to be slow
            found = load.next(200)
            assert found["standby_2"] > 5 * found["standby_1"]
            assert site.live() == {"slave_1", "slave_2"}
            proxy.delay = 0
            load.next(200)
            assert load.next(200)["standby_1"] > 20
        assert not load.failures
