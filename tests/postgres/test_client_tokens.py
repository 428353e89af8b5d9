"""Tokens that ask for more than a request has read so far, on real servers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from examples.cluster import wait_until
from flask_replicated import guarantee, use_slave_database, using_slave, using_token
from tests.postgres.support import STANDBYS, bind, named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from examples.cluster import Cluster
    from tests.postgres.support import Build, Site

pytestmark = pytest.mark.postgres


@pytest.fixture
def paused(healthy_cluster: Cluster) -> Iterator[Cluster]:
    """Let no standby show anything new until its end."""
    for standby in healthy_cluster.standbys:
        standby.execute("select pg_wal_replay_pause()")
    yield healthy_cluster
    resume(healthy_cluster)


def resume(cluster: Cluster) -> None:
    """Let the standbys go on."""
    for standby in cluster.standbys:
        standby.execute("select pg_wal_replay_resume()")


def write(site: Site) -> str:
    """Commit an item in another thread, and return a token for it."""

    def commit() -> str:
        with site.app.app_context(), using_token(None):
            site.db.session.add(site.item(text="new"))
            site.db.session.commit()
            return str(site.app.extensions["replicated"].token())

    with ThreadPoolExecutor(1) as threads:
        return threads.submit(commit).result()


def ask(site: Site, view: Callable[[], Any], client: Any = None) -> Any:
    """Return what a view answers to a GET."""
    site.app.view_functions["show"] = view
    response = (client or site.client()).get("/")
    assert response.status_code == 200, response.text
    return response.get_json()


def test_open_transaction(site: Site, paused: Cluster) -> None:
    """It stays on its replica if that shows enough by now; else the primary goes on."""

    def view() -> Any:
        first, token = site.who(), write(site)
        with using_token(token):
            behind = site.who()
            seen = site.texts()
        return [first.server, behind.server, seen, site.who().server]

    first, behind, seen, after = ask(site, view)
    assert first in STANDBYS
    assert (behind, seen, after) == ("primary", ["new"], "primary")

    def caught_up() -> Any:
        before = site.who()
        token = write(site)
        resume(paused)
        paused.wait_replicated()
        with using_token(token):
            return [before == site.who(), site.texts()]

    assert ask(site, caught_up) == [True, ["new", "new"]]


def test_old_snapshot(build: Build, paused: Cluster, driver: str) -> None:
    """A snapshot that is older than the token does not do, wherever its server is."""
    options = {"isolation_level": "REPEATABLE READ"}
    binds = {
        name: {"url": bind(standby, driver), **options}
        for name, standby in named(paused.standbys)
    }
    site = build(binds)
    resume(paused)

    def view() -> Any:
        first, token = site.who(), write(site)
        paused.wait_replicated()
        with using_token(token):
            return [first.server in STANDBYS, site.who().server, site.texts()]

    assert ask(site, view) == [True, "primary", ["new"]]


def test_outside_a_request(site: Site, paused: Cluster) -> None:
    """So it is in a job, inside ``using_slave()``."""
    with site.app.app_context(), using_slave():
        assert site.who().server in STANDBYS
        token = write(site)
        with using_token(token):
            assert (site.who().server, site.texts()) == ("primary", ["new"])
        site.db.session.rollback()
        assert site.who().server in STANDBYS


def test_after_a_block(site: Site, paused: Cluster) -> None:
    """A client sees its write after a block in which it need not."""
    client = site.client()
    site.post("new", client)

    def view() -> Any:
        with guarantee("none"):
            inside = [site.who().server in STANDBYS, site.texts()]
        return [inside, site.who().server, site.texts()]

    assert ask(site, view, client) == [[True, []], "primary", ["new"]]


class Cache(dict[str, str]):
    """A cache that all clients share."""

    def set(self, key: str, value: str, *, timeout: int) -> None:
        """Keep a value."""
        assert timeout > 0
        self[key] = value


@pytest.mark.parametrize("decorated", [False, True])
def test_key_in_the_database(build: Build, paused: Cluster, decorated: bool) -> None:
    """A user who is looked up over the view's own session is nobody's pin."""
    asked = []

    def key() -> str:
        asked.append(site.who().server)
        return "ann"

    site = build(REPLICATED_PIN_STORE=Cache(), REPLICATED_PIN_KEY=key)

    def view() -> Any:
        return [site.who().server, site.texts()]

    wanted = use_slave_database(view) if decorated else view
    assert ask(site, wanted)[0] in STANDBYS
    site.post("new")
    assert ask(site, wanted) == ["primary", ["new"]]
    resume(paused)
    paused.wait_replicated()
    wait_until(lambda: ask(site, wanted)[0] in STANDBYS, "standbys to serve")
    assert ask(site, wanted)[1] == ["new"]
    assert set(asked) == {"primary"}
