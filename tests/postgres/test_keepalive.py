"""What the kernel is told about a host that falls silent."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, text

from flask_replicated.system.sockets import socket_of
from tests.postgres.support import bind

if TYPE_CHECKING:
    from examples.cluster import Cluster
    from tests.postgres.support import Build, Site

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.skipif(
        not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux alone has it all"
    ),
]

OPTIONS = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")


def told(site: Site, name: str = "slave_1") -> list[int]:
    """Return what the kernel was told about a new connection of a bind."""
    with site.app.app_context(), site.db.engines[name].connect() as connection:
        connection.execute(text("select 1"))
        with socket_of(connection.connection.dbapi_connection) as sock:
            assert sock is not None
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            return [
                sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, option))
                for option in OPTIONS
            ]


def test_by_default(build: Build) -> None:
    """A host that is gone is noticed after 7 seconds, whatever waits for it."""
    idle, interval, count, milliseconds = told(build())
    assert idle + interval * count == 7
    assert milliseconds == 7000


@pytest.mark.parametrize("how", ["creator", "listener"])
@pytest.mark.parametrize("own", ["", " keepalives_idle=33"])
def test_own_connects(
    build: Build, healthy_cluster: Cluster, driver: str, how: str, own: str
) -> None:
    """It is told of connections that the program opens, unless it does so itself."""
    module: Any = pytest.importorskip(driver)
    server = healthy_cluster.standbys[0]
    dsn = f"host=127.0.0.1 port={server.port} user=postgres dbname=postgres{own}"
    url = bind(server, driver)
    if how == "creator":
        site = build({"slave_1": {"url": url, "creator": lambda: module.connect(dsn)}})
    else:
        site = build({"slave_1": url})
        with site.app.app_context():
            engine = site.db.engines["slave_1"]
        event.listen(engine, "do_connect", lambda *_: module.connect(dsn))
    idle, *_, milliseconds = told(site)
    assert (idle, milliseconds) == ((33, 0) if own else (4, 7000))


def test_the_bind_is_stronger(
    build: Build, healthy_cluster: Cluster, driver: str
) -> None:
    """What the URL says, or connect_args, is left as it is."""
    url = bind(healthy_cluster.standbys[0], driver)
    arguments: dict[str, Any] = {"keepalives_idle": 50, "tcp_user_timeout": 90000}
    site = build(
        {
            "slave_1": f"{url}?keepalives_interval=8&tcp_user_timeout=60000",
            "slave_2": {"url": url, "connect_args": arguments},
        }
    )
    assert told(site) == [4, 8, 3, 60000]
    assert told(site, "slave_2") == [50, 1, 3, 90000]
