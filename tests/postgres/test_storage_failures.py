"""A standby whose files fail reads, over connections that live."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from tests.damage import ROWS, create_pages, damaged
from tests.postgres.support import STANDBYS

if TYPE_CHECKING:
    from examples.cluster import Cluster
    from tests.postgres.support import Build, Site

BINDS = ("slave_1", "slave_2", "slave_3")
STATES = ("53000", "53100", "53200", "53400", "58030", "58P01", "XX000", "XX002")

pytestmark = pytest.mark.postgres


def add_page(site: Site, *, reads_before: int) -> None:
    """Add ``/page``, which reads a row that the damaged file has no more."""
    query = text(f"select length(body) from page where id = {ROWS}")

    def page() -> dict[str, list[str]]:
        before = [site.who().server for _ in range(reads_before)]
        assert site.db.session.scalar(query) == 4100
        return {"servers": [*before, site.who().server], "texts": []}

    site.app.add_url_rule("/page", "page", page)


def test_first(build: Build, healthy_cluster: Cluster) -> None:
    """It runs again on another standby; when it goes on, the damaged one is out."""
    create_pages(healthy_cluster)
    site = build(REPLICATED_BREAKER_RESET=60, REPLICATED_BREAKER_MAX_RESET=60)
    add_page(site, reads_before=0)
    with damaged(healthy_cluster.standbys[1]):
        servers = {site.get(path="/page").servers[0] for _ in range(12)}
        assert servers == {"standby_1", "standby_3"}
        assert site.live() == {"slave_1", "slave_3"}
    assert site.checked_out() == 0


def test_later(build: Build, healthy_cluster: Cluster) -> None:
    """The rest of the request reads from the primary, which knows all it has seen."""
    create_pages(healthy_cluster)
    site = build(REPLICATED_WEIGHTS={"slave_2": 0, "slave_3": 0})
    add_page(site, reads_before=1)
    with damaged(healthy_cluster.standbys[0]):
        for _ in range(3):
            assert site.get(path="/page").servers == ["standby_1", "primary"]
    assert site.live() == {"slave_1"}


def test_back(build: Build, healthy_cluster: Cluster) -> None:
    """A standby whose files are whole again is used again."""
    create_pages(healthy_cluster)
    site = build(REPLICATED_BREAKER_RESET=0.1, REPLICATED_BREAKER_MAX_RESET=0.1)
    add_page(site, reads_before=0)
    with damaged(healthy_cluster.standbys[1]):
        while site.live() == set(BINDS):
            site.get(path="/page")
    site.wait_live(*BINDS)
    servers = {site.get(path="/page").servers[0] for _ in range(12)}
    assert servers == set(STANDBYS)


@pytest.mark.parametrize("state", STATES)
def test_states(build: Build, healthy_cluster: Cluster, state: str) -> None:
    """Whatever keeps a server from its work: disk, memory, a limit, damage."""
    healthy_cluster.primary.execute(
        "create or replace function ail() returns int language plpgsql as $$ begin "
        "if current_setting('cluster_name') = 'standby_2' then "
        f"raise exception 'no luck' using errcode = '{state}'; "
        "end if; return 1; end $$"
    )
    healthy_cluster.wait_replicated()
    site = build(REPLICATED_BREAKER_RESET=60, REPLICATED_BREAKER_MAX_RESET=60)

    def ail() -> dict[str, list[str]]:
        assert site.db.session.scalar(text("select ail()")) == 1
        return {"servers": [site.who().server], "texts": []}

    site.app.add_url_rule("/ail", "ail", ail)
    servers = {site.get(path="/ail").servers[0] for _ in range(12)}
    assert servers == {"standby_1", "standby_3"}
    assert site.live() == {"slave_1", "slave_3"}
