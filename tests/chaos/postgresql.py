"""PostgreSQL's servers, and what may happen to them alone."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any, Final

from examples.cluster import Cluster, wait_until
from tests.damage import create_pages, damaged
from tests.pgbouncer import PROGRAM

from .app import MAX_LAG
from .faults import COMMON, Fault
from .proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from examples.cluster import Standby

    from .faults import Scene

__all__ = ["FAULTS", "OPTIONS", "SCHEMA", "follow", "prepare", "servers", "url"]

OPTIONS: Final[Mapping[str, Any]] = {}
"""Of the replicas' engines."""

SCHEMA: Final = "public"
"""What the application's tables are in."""

_FILLER: Final = "chaos filler"
_HOLD: Final = 0.03


def servers(note: Callable[[str], None]) -> Cluster:
    """Return a primary and three standbys, to be started."""
    # Capacity for two workers, and few enough for a fault that takes them all.
    settings = {"max_connections": "60"}
    return Cluster(standbys=3, progress=note, settings=settings)


def url(port: int) -> str:
    """Return the URL of the server on this port."""
    return f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"


def prepare(cluster: Cluster) -> None:
    """Create the application's tables anew."""
    cluster.primary.execute("drop table if exists entry")
    cluster.primary.execute(
        "create table entry (id serial primary key, name text not null)"
    )
    create_pages(cluster)


@contextlib.contextmanager
def _terminate(_scene: Scene, standby: Standby) -> Iterator[None]:
    standby.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity "
        "where backend_type = 'client backend' and pid <> pg_backend_pid()"
    )
    yield


def _conflict(scene: Scene, standby: Standby) -> AbstractContextManager[None]:
    """Let replay need row versions that reads may still see."""
    primary = scene.cluster.primary
    primary.execute("create table if not exists churn (n int)")

    def clean() -> None:
        primary.execute("insert into churn select generate_series(1, 20)")
        primary.execute("delete from churn")
        primary.execute("vacuum churn")

    return _impatient(scene, standby, clean)


def _lock(scene: Scene, standby: Standby) -> AbstractContextManager[None]:
    """Let replay need a lock that reads are in the way of, also between two of them."""

    def lock() -> None:
        sql = "begin; lock table entry in access exclusive mode; commit"
        scene.cluster.primary.execute(sql)

    return _impatient(scene, standby, lock)


@contextlib.contextmanager
def _impatient(
    scene: Scene, standby: Standby, disturb: Callable[[], None]
) -> Iterator[None]:
    """Let replay end what is in its way at once, and put something there."""

    def churn() -> None:
        while not over.wait(0.05):
            disturb()

    over = threading.Event()
    worker = threading.Thread(target=churn, name="churn")
    standby.execute("alter system set max_standby_streaming_delay = 0")
    standby.execute("select pg_reload_conf()")
    scene.load.hold = _HOLD
    worker.start()
    try:
        yield
    finally:
        over.set()
        worker.join()
        scene.load.hold = 0.0
        standby.execute("alter system reset max_standby_streaming_delay")
        standby.execute("select pg_reload_conf()")


@contextlib.contextmanager
def _crowd(_scene: Scene, standby: Standby) -> Iterator[None]:
    """Take every connection that the standby can give, the application's too."""
    with contextlib.ExitStack() as stack:

        def fill() -> int:
            taken = 0
            with contextlib.suppress(OSError, _driver().OperationalError):
                while True:
                    stack.enter_context(_connect(standby))
                    taken += 1
            return taken

        first = stack.enter_context(_connect(standby))
        fill()
        # The application is back in some of them before all can be taken.
        for _ in range(5):
            first.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where "
                "backend_type = 'client backend' and application_name <> %s",
                (_FILLER,),
            )
            fill()
        yield


def _driver() -> Any:
    import psycopg

    return psycopg


def _connect(standby: Standby) -> Any:
    where = f"host=127.0.0.1 port={standby.port} user=postgres dbname=postgres"
    how = f"sslmode=disable connect_timeout=5 application_name='{_FILLER}'"
    return _driver().connect(f"{where} {how}", autocommit=True)


def _damage(_scene: Scene, standby: Standby) -> AbstractContextManager[None]:
    """Let some reads fail over connections that live, and a probe find nothing."""
    return damaged(standby)


@contextlib.contextmanager
def _silent_link(scene: Scene, standby: Standby) -> Iterator[None]:
    """Let nothing arrive any more from the primary, over a connection that stays."""
    primary = scene.cluster.primary
    ((usual,),) = standby.execute("show primary_conninfo")
    with Proxy(primary.port) as link:
        follow(standby, f"host=127.0.0.1 port={link.port} user=postgres")
        link.silence()
        yield
        follow(standby, str(usual))
        link.speak()
    scene.cluster.wait_replicated()


def follow(standby: Standby, conninfo: str) -> None:
    """Let a standby receive from the server that a connection string names."""
    quoted = conninfo.replace("'", "''")
    ports = "select 1 from pg_stat_wal_receiver where conninfo like '%port={} %'"
    port = conninfo.partition("port=")[2].split()[0].strip("'")
    standby.execute(f"alter system set primary_conninfo = '{quoted}'")
    standby.execute("select pg_reload_conf()")
    wait_until(
        lambda: bool(standby.execute(ports.format(port))),
        f"{standby.name} to receive from port {port}",
    )


@contextlib.contextmanager
def _server_down(_scene: Scene, standby: Standby) -> Iterator[None]:
    """Let a pooler live whose server is dead: who has a connection to it waits."""
    standby.kill()
    yield
    standby.start()


FAULTS: Final[Mapping[str, Fault]] = {
    **COMMON,
    **(
        {"pooler": Fault(_server_down, hangs=True, leaves=True, pooled=True)}
        if PROGRAM
        else {}
    ),
    "silent-link": Fault(_silent_link, leaves=True, seconds=MAX_LAG + 3),
    "terminate": Fault(_terminate, brief=True),
    "conflict": Fault(_conflict, slows=True),
    "locked": Fault(_lock, slows=True),
    "crowded": Fault(_crowd),
    "disk": Fault(_damage, leaves=True),
}
"""What may happen to a replica."""
