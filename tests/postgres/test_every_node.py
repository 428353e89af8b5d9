"""Binds that name every node of a cluster, so that one is always the primary."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event

from examples.cluster import Cluster, wait_until
from tests.postgres.support import Site, bind, make_site

if TYPE_CHECKING:
    from collections.abc import Iterator

    from examples.cluster import Server, Standby

pytestmark = pytest.mark.postgres

OFTEN: dict[str, Any] = {"REPLICATED_PROBE_INTERVAL": 0.2, "REPLICATED_PIN_SECONDS": 0}


class Nodes:
    """Three servers, of which any may be the primary, and one address for that."""

    def __init__(self, cluster: Cluster) -> None:
        self.primary: Server = cluster.primary
        self.all: tuple[Server, ...] = (cluster.primary, *cluster.standbys)
        self._standbys = cluster.standbys
        self._sites: list[Site] = []

    def site(self, driver: str, **config: Any) -> Site:
        """Make an application whose binds name all of them."""
        binds = {
            f"slave_{number}": bind(server, driver)
            for number, server in enumerate(self.all, start=1)
        }
        return self._made(driver, binds, **config)

    def alone(self, driver: str) -> Site:
        """Make one whose only bind names the primary."""
        return self._made(driver, {"slave_1": bind(self.primary, driver)})

    def _made(self, driver: str, binds: dict[str, str], **config: Any) -> Site:
        site = make_site(bind(self.primary, driver), binds, **{**OFTEN, **config})
        self._sites.append(site)
        with site.app.app_context():
            primary: Any = site.db.engine

        @event.listens_for(primary.real, "do_connect")
        def find(_: Any, __: Any, ___: Any, arguments: dict[str, Any]) -> None:
            arguments["port"] = str(self.primary.port)

        return site

    def dispose(self) -> None:
        """Let the applications go."""
        for site in self._sites:
            site.dispose()

    def switch_over(self) -> Standby:
        """Make a standby the primary, and the primary a standby; return the former."""
        successor, other = self._standbys
        old = self.primary
        old.stop()
        successor.promote()
        self.primary = successor
        source = f"host=127.0.0.1 port={successor.port} user=postgres"
        other.execute(f"alter system set primary_conninfo = '{source}'")
        other.execute("select pg_reload_conf()")
        with (old.data / "postgresql.auto.conf").open("a") as settings:
            settings.write(f"primary_conninfo = '{source}'\n")
        (old.data / "standby.signal").touch()
        old.start()
        return successor


@pytest.fixture
def nodes(driver: str) -> Iterator[Nodes]:
    """Give a cluster of their own to tests that change its roles."""
    with Cluster(standbys=2) as cluster:
        cluster.primary.execute("create table item (id serial primary key, text text)")
        cluster.wait_replicated()
        nodes = Nodes(cluster)
        yield nodes
        nodes.dispose()


def said(caplog: pytest.LogCaptureFixture, level: int = logging.INFO) -> list[str]:
    """Return what was logged of replicas' roles and outages, from a level on."""
    return [
        f"{record.levelname} {record.getMessage()}"
        for record in caplog.records
        if record.levelno >= level and record.getMessage().startswith("replica ")
    ]


def test_switchover(
    nodes: Nodes, driver: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The primary among them is said at INFO, once; a switchover is no news."""
    caplog.set_level(logging.INFO, "flask_replicated")
    site = nodes.site(driver)
    site.post("before")
    site.get()
    wait_until(lambda: bool(said(caplog)), "a word about it", 20)
    (line,) = said(caplog)
    assert line.startswith("INFO replica 'slave_1' is the primary itself")
    assert "SQLALCHEMY_BINDS['slave_1']" in line
    site.wait_live("slave_2", "slave_3")
    nodes.switch_over()
    site.wait_live("slave_1", "slave_3")
    assert site.post("after").texts == ["before", "after"]
    # Until its server is known to be the one that writes go to.
    history = site.app.extensions["replicated"].state(site.app).routes[None]
    own = history.servers["slave_2"].history
    wait_until(lambda: own.own is True, "it to be compared", 20)
    assert said(caplog) == [line]


def test_two_primaries(
    nodes: Nodes, driver: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A standby that is promoted beside the primary is told of, with right advice."""
    caplog.set_level(logging.WARNING, "flask_replicated")
    site = nodes.site(driver)
    site.wait_live("slave_2", "slave_3")
    nodes.all[1].execute("select pg_promote()")
    wait_until(lambda: bool(said(caplog)), "a word about it", 20)
    (line,) = said(caplog)
    assert line.startswith("WARNING replica 'slave_2' is out: ")
    assert "writes go to another one" in line
    assert "every node is a bind" not in line
    assert site.live() == {"slave_3"}


def test_primary_alone(
    nodes: Nodes, driver: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A bind that names the primary by mistake, and is the only one, is told of."""
    caplog.set_level(logging.WARNING, "flask_replicated")
    site = nodes.alone(driver)
    site.get()
    wait_until(lambda: "'slave_1' is out" in caplog.text, "a word about it", 20)
    assert "REPLICATED_ROLE_CHECK = False" in caplog.text


def test_without_the_probe(
    nodes: Nodes, driver: str, caplog: pytest.LogCaptureFixture
) -> None:
    """New connections find the same out, in a thread that nobody waits for."""
    caplog.set_level(logging.INFO, "flask_replicated")
    site = nodes.site(driver, REPLICATED_PROBE_INTERVAL=0)

    def told() -> bool:
        site.get()
        return bool(said(caplog))

    wait_until(told, "a word about it", 20)
    (line,) = said(caplog)
    assert line.startswith("INFO replica 'slave_1' is the primary itself")
