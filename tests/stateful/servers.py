"""Databases in pairs: one behind a primary and its mirrors, one plain.

Each kind of server can lose every connection to its mirrors at once, as when a
replica dies: the driver's connections are ended for good, and both SQLAlchemy and
the code under test learn of it as they would in earnest, from the next use.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import create_engine, event, text

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sqlalchemy import Connection, Engine

__all__ = ["FRESH", "LONG", "Opened", "Pair", "Rows", "SQLitePair", "ServerPair"]

LONG = os.environ.get("STEPS") == "long"
FRESH = bool(os.environ.get("FRESH"))
Rows = dict[str, list[tuple[Any, ...]]]

TABLES = {
    "author": "SELECT id, name FROM author ORDER BY id",
    "book": "SELECT id, title, author_id FROM book ORDER BY id",
}
ROWS = (
    "INSERT INTO author (name) VALUES ('first'), ('second'), ('third')",
    "INSERT INTO book (title, author_id) VALUES ('a', 1), ('b', 1), ('c', 2)",
)
SCHEMA = (
    "CREATE TABLE author (id {key}, name VARCHAR(20) NOT NULL)",
    "CREATE TABLE book (id {key}, title VARCHAR(20) NOT NULL, author_id INTEGER)",
)


class Opened:
    """The driver's connections of some engines, and a way to end them all.

    Attributes:
        losses: How often there was something to end.
    """

    def __init__(self, end: Callable[[Any], None]) -> None:
        self._end = end
        self._open: list[Any] = []
        self.losses = 0

    def follow(self, engine: Engine) -> None:
        """Note each connection that this engine opens from now on."""

        @event.listens_for(engine, "connect")
        def opened(connection: Any, _record: Any) -> None:
            self._open.append(connection)

        @event.listens_for(engine, "close")
        def closed(connection: Any, _record: Any) -> None:
            self._forget(connection)

    def _forget(self, gone: Any) -> None:
        self._open = [known for known in self._open if known is not gone]

    def lose(self) -> None:
        """End every one of them."""
        self.losses += bool(self._open)
        for connection in self._open:
            self._end(connection)
        self._open = []


class Pair(Protocol):
    """Two databases of one kind, and how to lose the mirrors of the first.

    Attributes:
        primary: The URL that the routed application writes to.
        mirrors: The URLs of replicas that show what the primary has committed.
        plain: The URL of the plain application.
        options: Engine options of every bind.
        runs: How often a test that depends on chance is repeated.
        continues: Whether a read may go on elsewhere after its mirror was lost:
            each statement sees the newest data anyway.
    """

    primary: str
    mirrors: dict[str, str]
    plain: str
    options: dict[str, Any]
    runs: int
    continues: bool

    def killer(self) -> Callable[[Any], None]:
        """Return what ends a mirror's connection, as the server would."""

    def prepare(self, engine: Engine) -> None:
        """Add what an engine of this kind needs."""

    def rows(self) -> tuple[Rows, Rows]:
        """Return what is committed: behind the routed, and the plain application."""

    def reset(self) -> None:
        """Go back to the first rows, and number the next as if it were the first."""

    def close(self) -> None:
        """Remove both."""


class SQLitePair:
    """Two SQLite files; the mirrors are the first, opened for reading alone.

    A loss closes the driver's connection. That is no imitation: whatever uses it
    next, be it a statement, a rollback or a savepoint, gets the driver's own
    ``ProgrammingError``, which the dialect knows for a disconnect.

    Reads outside a transaction see what is committed at that moment, as at READ
    COMMITTED elsewhere, because the driver begins one only before it writes.
    """

    runs = 40

    def __init__(self, folder: Path, *, continues: bool) -> None:
        self.continues = continues
        self._files = [folder / "routed.db", folder / "plain.db"]
        # Without one open connection, a read-only one could not join the log.
        self._watchers = [_new_file(path) for path in self._files]
        self.primary, self.plain = (f"sqlite:///{path}" for path in self._files)
        mirror = f"sqlite:///file:{self._files[0]}?mode=ro&uri=true"
        self.mirrors = {"slave_1": mirror, "slave_2": mirror}
        level = "READ UNCOMMITTED" if continues else "SERIALIZABLE"
        self.options = {"isolation_level": level, "connect_args": {"timeout": 0}}
        self.reset()

    def killer(self) -> Callable[[Any], None]:
        """Return what closes a driver's connection."""
        return lambda connection: connection.close()

    def prepare(self, engine: Engine) -> None:
        """Do without the disk, and put savepoints into a transaction."""
        event.listen(engine, "connect", _be_quick)
        event.listen(engine, "savepoint", _begin_before)

    def rows(self) -> tuple[Rows, Rows]:
        """Return what both files hold, read without any engine."""
        routed, plain = (
            {name: watcher.execute(sql).fetchall() for name, sql in TABLES.items()}
            for watcher in self._watchers
        )
        return routed, plain

    def reset(self) -> None:
        """Go back to the first rows, and number the next as if it were the first."""
        for watcher in self._watchers:
            for name in TABLES:
                watcher.execute(f"DELETE FROM {name}")
            for statement in ROWS:
                watcher.execute(statement)

    def close(self) -> None:
        """Remove both files."""
        for watcher, path in zip(self._watchers, self._files, strict=True):
            watcher.close()
            path.unlink()


def _new_file(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = OFF")
    for statement in SCHEMA:
        connection.execute(statement.format(key="INTEGER PRIMARY KEY"))
    return connection


def _be_quick(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA synchronous = OFF").close()


def _begin_before(connection: Connection, _name: str) -> None:
    """Begin, or the release of the first savepoint would be a commit."""
    driver: Any = connection.connection.driver_connection
    # A closed connection is met by the savepoint itself, an instant later.
    with contextlib.suppress(sqlite3.ProgrammingError):
        if not driver.in_transaction:
            driver.execute("BEGIN")


class ServerPair:
    """Two databases on a real server, which ends the mirrors' connections itself.

    Args:
        primary: The URL of the routed application's database.
        mirrors: The URLs of its replicas, by bind name.
        plain: The URL of the plain application's database.
        kill: Ends one driver's connection from the server's side.
    """

    continues = True
    # A connection that is ended costs a server a process, or a thread.
    runs = 40 if LONG else 4

    def __init__(
        self,
        primary: str,
        mirrors: dict[str, str],
        plain: str,
        kill: Callable[[Any], None],
        options: dict[str, Any] | None = None,
    ) -> None:
        self.primary, self.mirrors, self.plain = primary, mirrors, plain
        self.options = options or {}
        self._kill = kill
        self._watchers = [
            create_engine(url, isolation_level="AUTOCOMMIT", pool_size=1)
            for url in (primary, plain)
        ]
        self._create()
        self.reset()

    def _create(self) -> None:
        for engine in self._watchers:
            key = "SERIAL PRIMARY KEY"
            if engine.dialect.name != "postgresql":
                key = "INTEGER PRIMARY KEY AUTO_INCREMENT"
            with engine.connect() as connection:
                for table in TABLES:
                    connection.execute(text(f"DROP TABLE IF EXISTS {table}"))
                for statement in SCHEMA:
                    connection.execute(text(statement.format(key=key)))

    def reset(self) -> None:
        """Go back to the first rows, and number the next as if it were the first."""
        for engine in self._watchers:
            again = " RESTART IDENTITY" if engine.dialect.name == "postgresql" else ""
            with engine.connect() as connection:
                for name in TABLES:
                    connection.execute(text(f"TRUNCATE TABLE {name}{again}"))
                for statement in ROWS:
                    connection.execute(text(statement))

    def killer(self) -> Callable[[Any], None]:
        """Return what makes the server end a connection."""
        return self._kill

    def prepare(self, engine: Engine) -> None:
        """Leave the engine as it is."""

    def rows(self) -> tuple[Rows, Rows]:
        """Return what both databases hold, read on connections of their own."""
        routed, plain = (self._read(engine) for engine in self._watchers)
        return routed, plain

    def _read(self, engine: Engine) -> Rows:
        with engine.connect() as connection:
            return {
                name: [tuple(row) for row in connection.execute(text(sql))]
                for name, sql in TABLES.items()
            }

    def close(self) -> None:
        """Forget both."""
        for engine in self._watchers:
            engine.dispose()
