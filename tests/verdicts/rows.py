"""Each way in which a replica's connection can fail, provoked on a real server."""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from examples.cluster import wait_until
from flask_replicated import replicated_engine, using_slave
from tests.damage import create_pages, damaged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from examples.cluster import Cluster
    from flask_replicated.engine.engines import RoutedEngine

DRIVERS = ("psycopg", "psycopg2", "pymysql", "sqlite3")
POSTGRESQL = ("psycopg", "psycopg2")
SERVERS = (*POSTGRESQL, "pymysql")


@dataclass
class Place:
    """Where a driver's replica is.

    Attributes:
        driver: Its name.
        url: A URL that works.
        cluster: The PostgreSQL servers; the first standby is the replica.
        folder: For files.
    """

    driver: str
    url: sa.URL
    cluster: Cluster
    folder: Path

    def engine(
        self, url: sa.URL | None = None, *others: sa.Engine, **options: Any
    ) -> RoutedEngine:
        """Return a pool of one replica, which one failure takes out, and others."""
        replica = sa.create_engine(url or self.url, **options)
        names = (f"slave_{number}" for number in range(1, len(others) + 2))
        return replicated_engine(
            sa.create_engine(self.primary()),
            dict(zip(names, (replica, *others), strict=True)),
            # Of MariaDB there is one server, which is its own replica here.
            REPLICATED_ROLE_CHECK=self.driver != "pymysql",
            REPLICATED_BREAKER_THRESHOLD=1,
            REPLICATED_CONNECT_TIMEOUT=1,
            REPLICATED_PROBE_INTERVAL=0,
        )

    def primary(self) -> sa.URL:
        """Return the URL of the primary."""
        if self.driver in POSTGRESQL:
            return self.url.set(port=self.cluster.primary.port)
        if self.driver == "sqlite3":
            return self.url.set(database=str(self.folder / "primary.db"))
        return self.url

    def execute(self, sql: str) -> None:
        """Execute a statement on the server, past the pool."""
        engine = sa.create_engine(self.url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(sql)
        engine.dispose()


def read(engine: RoutedEngine, sql: str = "SELECT 1") -> None:
    """Read from the replica, and let it fail if it does."""
    with (
        contextlib.suppress(SQLAlchemyError),
        using_slave(),
        engine.connect() as connection,
    ):
        connection.execute(sa.text(sql)).all()


@contextlib.contextmanager
def refused(place: Place) -> Iterator[RoutedEngine]:
    """Nothing listens on the port."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))  # and does not listen
        engine = place.engine(
            place.url.set(host="127.0.0.1", port=sock.getsockname()[1])
        )
        read(engine)
        yield engine


@contextlib.contextmanager
def unknown_host(place: Place) -> Iterator[RoutedEngine]:
    """No name server knows the host."""
    engine = place.engine(place.url.set(host="replica.invalid"))
    read(engine)
    yield engine


@contextlib.contextmanager
def silent(place: Place) -> Iterator[RoutedEngine]:
    """The kernel accepts, and no server ever speaks."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        engine = place.engine(
            place.url.set(host="127.0.0.1", port=sock.getsockname()[1])
        )
        read(engine)
        yield engine


@contextlib.contextmanager
def shutting_down(place: Place) -> Iterator[RoutedEngine]:
    """A client keeps a server from ending, which takes no others."""
    standby = place.cluster.standbys[0]
    holder = sa.create_engine(place.url).connect()
    holder.execute(sa.text("SELECT 1"))
    stopping = threading.Thread(target=standby.stop, args=("smart", 30.0))
    stopping.start()
    engine = place.engine(poolclass=sa.NullPool)
    pool = engine.replicas.replica_pool

    def is_out() -> bool:
        read(engine)
        return not pool.live

    try:
        wait_until(is_out, "the server to refuse")
        yield engine
    finally:
        holder.close()
        holder.engine.dispose()
        stopping.join()
        standby.start()


@contextlib.contextmanager
def too_many(place: Place) -> Iterator[RoutedEngine]:
    """The account has no connection to spare."""
    primary = place.cluster.primary
    if place.driver == "pymysql":
        few = f"few_{os.getpid()}"  # other processes use this server, too
        place.execute(f"CREATE OR REPLACE USER {few} WITH MAX_USER_CONNECTIONS 1")
        url = place.url.set(username=few, database="")
    else:
        few = "few"
        primary.execute("drop role if exists few")
        primary.execute("create role few login connection limit 1")
        place.cluster.wait_replicated()
        url = place.url.set(username=few)
    first = sa.create_engine(url)
    with first.connect():
        engine = place.engine(url)
        read(engine)
        yield engine
    first.dispose()
    if place.driver == "pymysql":
        place.execute(f"DROP USER {few}")
    else:
        primary.execute("drop role few")


@contextlib.contextmanager
def unknown_database(place: Place) -> Iterator[RoutedEngine]:
    """The server has no such database."""
    engine = place.engine(place.url.set(database="nowhere"))
    read(engine)
    yield engine


@contextlib.contextmanager
def unknown_account(place: Place) -> Iterator[RoutedEngine]:
    """The server has no such account."""
    engine = place.engine(place.url.set(username="nobody_here", password="wrong"))
    read(engine)
    yield engine


def _option(place: Place, options: dict[str, Any]) -> RoutedEngine:
    """Return a pool of one replica, which a read has tried with such options."""
    engine = place.engine(connect_args=options)
    read(engine)
    return engine


@contextlib.contextmanager
def refused_setting(place: Place) -> Iterator[RoutedEngine]:
    """The server does not know what is set at each connect."""
    if place.driver in POSTGRESQL:
        yield _option(place, {"options": "-c no_such_setting=1"})
    else:
        yield _option(place, {"init_command": "SET no_such_setting = 1"})


@contextlib.contextmanager
def absent_tls(place: Place) -> Iterator[RoutedEngine]:
    """The bind asks for TLS, and the server has none."""
    if place.driver in POSTGRESQL:
        yield _option(place, {"sslmode": "require"})
    else:
        yield _option(place, {"ssl": {"verify_mode": "none"}})


@contextlib.contextmanager
def unknown_option(place: Place) -> Iterator[RoutedEngine]:
    """The driver does not know an option."""
    yield _option(place, {"no_such_option": 1})


@contextlib.contextmanager
def unknown_service(place: Place) -> Iterator[RoutedEngine]:
    """No file defines the service."""
    engine = place.engine(
        sa.URL.create(place.url.drivername, query={"service": "no_such_service"})
    )
    read(engine)
    yield engine


@contextlib.contextmanager
def serializable(place: Place) -> Iterator[RoutedEngine]:
    """The server's default is a level that no standby knows."""
    yield _option(place, {"options": "-c default_transaction_isolation=serializable"})


@contextlib.contextmanager
def cannot_open(place: Place) -> Iterator[RoutedEngine]:
    """A directory stands in the place of the file."""
    folder = place.folder / "not_a_file.db"
    folder.mkdir(exist_ok=True)
    engine = place.engine(place.url.set(database=str(folder)))
    read(engine)
    yield engine


@contextlib.contextmanager
def is_missing(place: Place) -> Iterator[RoutedEngine]:
    """No file has this name."""
    engine = place.engine(place.url.set(database=str(place.folder / "missing.db")))
    read(engine)
    yield engine


@contextlib.contextmanager
def primary(place: Place) -> Iterator[RoutedEngine]:
    """The URL names the primary."""
    engine = place.engine(place.primary())
    read(engine)
    yield engine


@contextlib.contextmanager
def creator(place: Place) -> Iterator[RoutedEngine]:
    """The engine's own way to connect fails."""

    def fail() -> Any:
        raise OSError("no route")

    engine = place.engine(creator=fail)
    with using_slave(), engine.connect():
        pass
    yield engine


def _own_id(place: Place) -> str:
    return "pg_backend_pid()" if place.driver in POSTGRESQL else "connection_id()"


def _kill(place: Place, number: int) -> None:
    if place.driver in POSTGRESQL:
        place.execute(f"SELECT pg_terminate_backend({number})")
    else:
        place.execute(f"KILL {number}")


@contextlib.contextmanager
def stale(place: Place) -> Iterator[RoutedEngine]:
    """The server ends a connection while it is idle in the pool."""
    engine = place.engine()
    with using_slave(), engine.connect() as connection:
        number = connection.scalar(sa.text(f"SELECT {_own_id(place)}"))
    _kill(place, number)
    read(engine)
    yield engine


@contextlib.contextmanager
def killed(place: Place) -> Iterator[RoutedEngine]:
    """The server ends a connection that is in use."""
    engine = place.engine()
    with using_slave(), engine.connect() as connection:
        number = connection.scalar(sa.text(f"SELECT {_own_id(place)}"))
        _kill(place, number)
        with contextlib.suppress(SQLAlchemyError):
            connection.scalar(sa.text("SELECT 1"))
    yield engine


def statement(*before: str, sql: str) -> Callable[[Place], Any]:
    """Return a row in which a statement fails on a connection that is well."""

    @contextlib.contextmanager
    def fails(place: Place) -> Iterator[RoutedEngine]:
        engine = place.engine()
        with using_slave(), engine.connect() as connection:
            for first in before:
                connection.exec_driver_sql(first)
            failed = False
            try:
                connection.execute(sa.text(sql)).all()
            except Exception:  # noqa: BLE001 - a refused write has its own error
                failed = True
        if not failed:
            raise AssertionError(f"{sql} did not fail")
        yield engine

    return fails


@contextlib.contextmanager
def exhausted(place: Place) -> Iterator[RoutedEngine]:
    """All connections of the pool are in use."""
    engine = place.engine(
        poolclass=sa.QueuePool, pool_size=1, max_overflow=0, pool_timeout=0.1
    )
    with using_slave(), engine.connect():
        read(engine)
    yield engine


@contextlib.contextmanager
def conflict(place: Place) -> Iterator[RoutedEngine]:
    """Let replay on the standby cancel a read."""
    main, standby = place.cluster.primary, place.cluster.standbys[0]
    main.execute("drop table if exists conflict")
    main.execute("create table conflict as select 1 as id")
    place.cluster.wait_replicated()
    standby.execute("alter system set max_standby_streaming_delay = 0")
    standby.execute("select pg_reload_conf()")
    engine = place.engine(isolation_level="REPEATABLE READ")
    with using_slave(), engine.connect() as connection:
        connection.execute(sa.text("SELECT * FROM conflict")).all()
        main.execute("truncate conflict")
        standby.wait_replayed(main.position())
        with contextlib.suppress(SQLAlchemyError):
            connection.execute(sa.text("SELECT * FROM conflict")).all()
            raise AssertionError("replay did not cancel the read")
    yield engine
    main.execute("drop table conflict")
    standby.execute("alter system reset max_standby_streaming_delay")
    standby.execute("select pg_reload_conf()")


@contextlib.contextmanager
def storage_failures(place: Place) -> Iterator[RoutedEngine]:
    """Let a replica's files fail reads, while another one's do not."""
    with contextlib.ExitStack() as stack:
        if place.driver in POSTGRESQL:
            create_pages(place.cluster)
            stack.enter_context(damaged(place.cluster.standbys[0]))
            other = place.url.set(port=place.cluster.standbys[1].port)
            engine = place.engine(None, sa.create_engine(other))
        else:
            file = place.folder / "damaged.db"
            with contextlib.closing(sqlite3.connect(file)) as connection:
                connection.execute("CREATE TABLE page (id INTEGER, body TEXT)")
            content = file.read_bytes()
            file.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
            url = place.url.set(database=str(file))
            engine = place.engine(url, sa.create_engine(place.url))
        for _ in range(4):
            read(engine, "SELECT body FROM page WHERE id = 100")
        yield engine


@dataclass(frozen=True)
class Row:
    """One way to fail.

    Attributes:
        title: What happens.
        provoke: Lets it happen, and gives the engine that it happened to.
        drivers: With which drivers it can.
    """

    title: str
    provoke: Callable[[Place], contextlib.AbstractContextManager[RoutedEngine]]
    drivers: tuple[str, ...]


ROWS = (
    Row("the connection is refused", refused, SERVERS),
    Row("the host's name is not known", unknown_host, SERVERS),
    Row("the server accepts and says nothing", silent, SERVERS),
    Row("the file cannot be opened", cannot_open, ("sqlite3",)),
    Row("the file is not there", is_missing, ("sqlite3",)),
    Row(
        "the server shuts down or starts up (57P03)",
        shutting_down,
        POSTGRESQL,
    ),
    Row("a creator raises `OSError`", creator, DRIVERS),
    Row("the server is no replica", primary, POSTGRESQL),
    Row("too many clients (53300; 1203, 1226)", too_many, SERVERS),
    Row("the database is not known (3D000; 1049)", unknown_database, SERVERS),
    Row("the account is not known (28000; 1045)", unknown_account, SERVERS),
    Row("a setting is refused (42704; 1193)", refused_setting, SERVERS),
    Row("TLS is asked for and absent (2026)", absent_tls, SERVERS),
    Row("the driver does not know an option", unknown_option, DRIVERS),
    Row("the service is not defined", unknown_service, POSTGRESQL),
    Row("serializable on a hot standby (0A000)", serializable, POSTGRESQL),
    Row("a pooled connection was ended while it was idle", stale, SERVERS),
    Row("a connection is ended in mid-session (57P01)", killed, SERVERS),
    Row(
        "a statement times out (57014; 1969)",
        statement("SET statement_timeout = 50", sql="SELECT pg_sleep(5)"),
        POSTGRESQL,
    ),
    Row(
        "a statement times out (57014; 1969) ",
        statement(
            "SET max_statement_time = 0.05",
            sql="SELECT sum(a.seq % b.seq) FROM seq_1_to_99999 a, seq_1_to_99999 b",
        ),
        ("pymysql",),
    ),
    Row("replay cancels a read (40001)", conflict, POSTGRESQL),
    Row(
        "reads go on failing on its disk or memory (58xxx, 53xxx, XX00x)",
        storage_failures,
        (*POSTGRESQL, "sqlite3"),
    ),
    Row("a statement is wrong", statement(sql="SELECT * FROM nowhere_at_all"), DRIVERS),
    Row("a write is refused", statement(sql="DELETE FROM nowhere_at_all"), DRIVERS),
    Row("the connection pool is exhausted", exhausted, DRIVERS),
)


def mariadb_url() -> sa.URL:
    """Return the URL of the MariaDB server that is there, if any."""
    return sa.URL.create(
        "mysql+pymysql",
        os.environ.get("MARIADB_USER", "root"),
        host="127.0.0.1",
        port=3306,
        database="mysql",
    )
