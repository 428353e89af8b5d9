"""MariaDB's servers, and what may happen to them alone."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

from tests.damage import ROWS
from tests.mariadb.servers import Cluster, have_programs

from .faults import COMMON, Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tests.mariadb.servers import Replica

    from .faults import Scene

__all__ = ["FAULTS", "OPTIONS", "SCHEMA", "prepare", "servers", "url"]

OPTIONS: Final[Mapping[str, Any]] = {
    # Under REPEATABLE READ, the default, what was seen before a replica was lost
    # is a snapshot that no other server has: the request could not go on.
    "isolation_level": "READ COMMITTED",
}
"""Of the replicas' engines."""

SCHEMA: Final = "chaos"
"""What the application's tables are in."""

_BODY: Final = "repeat('x', 4100)"
_NUMBERS: Final = f"{SCHEMA}.seq_1_to_{ROWS}"


def servers(note: Callable[[str], None]) -> Cluster:
    """Return a primary and three replicas, to be started."""
    if not have_programs():
        raise RuntimeError("MariaDB's server is not installed.")
    note("starting MariaDB: a primary and three replicas")
    # Capacity for two workers, and few enough for a fault that takes them all.
    return Cluster(standbys=3, options=["--max-connections=60"])


def url(port: int) -> str:
    """Return the URL of the server on this port.

    Without TLS: PyMySQL would load the system's certificates for each connection, which
    takes seconds where a dozen threads connect on a busy machine.
    """
    return f"mariadb+pymysql://root@127.0.0.1:{port}/{SCHEMA}?ssl_disabled=true"


def prepare(cluster: Cluster) -> None:
    """Create the application's tables anew."""
    for sql in (
        f"create database if not exists {SCHEMA}",
        f"drop table if exists {SCHEMA}.entry, {SCHEMA}.page",
        f"create table {SCHEMA}.entry (id serial, name varchar(100) not null)",
        f"create table {SCHEMA}.page (id int primary key, body text not null)",
        f"insert into {SCHEMA}.page select seq, {_BODY} from {_NUMBERS}",
    ):
        cluster.primary.execute(sql)
    cluster.wait_replicated()


def _connect(replica: Replica) -> Any:
    import pymysql

    return pymysql.connect(
        host="127.0.0.1", port=replica.port, user="root", connect_timeout=5
    )


def _end_clients(connection: Any, spared: set[int]) -> None:
    """End every connection of a client but some, by their numbers."""
    with connection.cursor() as cursor:
        cursor.execute(
            "select id from information_schema.processlist "
            "where user = 'root' and command <> 'Binlog Dump'"
        )
        for number in {number for (number,) in cursor.fetchall()} - spared:
            with contextlib.suppress(_errors()):  # it may have ended by itself
                cursor.execute(f"kill {number}")


def _errors() -> type[Exception]:
    import pymysql

    return pymysql.MySQLError


@contextlib.contextmanager
def _terminate(_scene: Scene, replica: Replica) -> Iterator[None]:
    with contextlib.closing(_connect(replica)) as connection:
        _end_clients(connection, {connection.thread_id()})
    yield


@contextlib.contextmanager
def _crowd(_scene: Scene, replica: Replica) -> Iterator[None]:
    """Take every connection that the replica can give, the application's too."""
    with contextlib.ExitStack() as stack:
        taken: set[int] = set()

        def take() -> Any:
            connection = stack.enter_context(contextlib.closing(_connect(replica)))
            taken.add(connection.thread_id())
            return connection

        def fill() -> None:
            with contextlib.suppress(OSError, _errors()):
                while True:
                    take()

        first = take()
        fill()
        # The application is back in some of them before all can be taken.
        for _ in range(5):
            _end_clients(first, taken)
            fill()
        yield


FAULTS: Final[Mapping[str, Fault]] = {
    **COMMON,
    "terminate": Fault(_terminate, brief=True),
    "crowded": Fault(_crowd),
}
"""What may happen to a replica."""
