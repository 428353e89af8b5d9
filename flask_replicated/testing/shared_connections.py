"""DBAPI connections that stand for another one, which they share.

A replica's reads run over the primary's connection, in its transaction: so they see
what that has not committed yet. They must neither end that transaction, nor write in
it, nor break it by an error. A session's transactions on the primary become savepoints
in the transaction of a test.
"""

from __future__ import annotations

import re
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

from flask_replicated.replica.queries import execute

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from sqlalchemy import Connection
    from sqlalchemy.engine.interfaces import PoolProxiedConnection

__all__ = ["BorrowedRead", "JoinedConnection", "SharedRead"]

_CONTROL = re.compile(
    r"\s*(?:BEGIN|START\s+TRANSACTION|COMMIT|END|ROLLBACK|SAVEPOINT|RELEASE)\b",
    re.IGNORECASE,
)
"""What begins or ends a transaction or savepoint."""
_BEGIN = re.compile(r"\s*(?:BEGIN|START\s+TRANSACTION)\b", re.IGNORECASE)

_READ = "replicated_read"  # a savepoint's name

_LIMITED = frozenset({"mysql", "mariadb"})
"""Databases that let a session read only, but no part of a transaction."""
_LIMIT = "SET SESSION TRANSACTION"


class _Cursor:
    """A cursor whose statements are run by its connection.

    Args:
        cursor: The driver's own.
        owner: The connection.
    """

    def __init__(self, cursor: Any, owner: _Shared) -> None:
        vars(self).update(_cursor=cursor, _owner=owner)

    def execute(self, statement: Any, *args: Any, **options: Any) -> Any:
        """Execute a statement, or leave it out if it must not reach the server."""
        with self._owner.guard(statement) as passes:
            if passes:
                return self._cursor.execute(statement, *args, **options)
        return None

    def executemany(self, statement: Any, *args: Any, **options: Any) -> Any:
        """Execute a statement with each set of parameters."""
        with self._owner.guard(statement) as passes:
            if passes:
                return self._cursor.executemany(statement, *args, **options)
        return None

    def __iter__(self) -> Iterator[Any]:
        return iter(self._cursor)

    def __enter__(self) -> Any:
        self._cursor.__enter__()
        return self

    def __exit__(self, *raised: object) -> Any:
        return self._cursor.__exit__(*raised)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._cursor, name, value)


class _Shared:
    """A connection that stands for another one.

    What is set on it is ignored: levels and the like are those of the other.

    Args:
        driver: The driver's connection that it stands for.
    """

    def __init__(self, driver: Any) -> None:
        vars(self).update(_driver=driver)

    def cursor(self, *args: Any, **options: Any) -> Any:
        """Return a cursor."""
        return _Cursor(self._driver.cursor(*args, **options), self)

    def execute(self, statement: Any, *args: Any, **options: Any) -> Any:
        """Execute a statement over a new cursor, where the driver can do that too."""
        cursor = self.cursor()
        cursor.execute(statement, *args, **options)
        return cursor

    def guard(self, statement: Any) -> AbstractContextManager[bool]:
        """Return a block to run a statement in; it has False to leave that out."""
        raise NotImplementedError

    def commit(self) -> None:
        """End its part of the transaction."""

    def rollback(self) -> None:
        """End its part of the transaction."""

    def close(self) -> None:
        """Leave the other connection open."""

    terminate = close

    def _send(self, statement: str) -> None:
        execute(self._driver, statement)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Ignore it."""


class SharedRead(_Shared):
    """A replica's connection inside the transaction of another one.

    Args:
        driver: The driver's connection that it stands for.
        dialect: SQLAlchemy's name of the database.
    """

    _passes_control = False

    def __init__(self, driver: Any, dialect: str) -> None:
        super().__init__(driver)
        vars(self).update(_keep=_KEEPERS.get(dialect, _unkept))

    @contextmanager
    def guard(self, statement: Any) -> Iterator[bool]:
        """Run a statement that only reads, as the server sees to."""
        if isinstance(statement, str) and _CONTROL.match(statement):
            yield self._passes_control
            return
        with self._keep(self):
            yield True


class BorrowedRead(SharedRead):
    """A replica's connection over one of the primary's pool, for itself alone.

    Args:
        pooled: The connection.
        dialect: SQLAlchemy's name of the database.
    """

    _passes_control = True

    def __init__(self, pooled: PoolProxiedConnection, dialect: str) -> None:
        super().__init__(pooled.dbapi_connection, dialect)
        vars(self).update(_pooled=pooled, _limits=dialect in _LIMITED)
        if self._limits:
            self._send(f"{_LIMIT} READ ONLY")

    def commit(self) -> None:
        """Commit."""
        self._driver.commit()

    def rollback(self) -> None:
        """Roll back."""
        self._driver.rollback()

    def close(self) -> None:
        """Give the connection back, as it was."""
        try:
            if self._limits:
                self._send(f"{_LIMIT} READ WRITE")
        except Exception:  # noqa: BLE001 - it was lost, and each driver says so its way
            self._pooled.invalidate()
        self._pooled.close()

    terminate = close


class JoinedConnection(_Shared):
    """The primary's connection inside a test's own transaction.

    Each transaction is a savepoint there, which begins with its first statement.

    Args:
        connection: The test's connection.
        driver: The driver's connection behind it.
        name: The name of its savepoints.
    """

    def __init__(self, connection: Connection, driver: Any, name: str) -> None:
        super().__init__(driver)
        vars(self).update(_connection=connection, _name=name, _began=None)

    def cursor(self, *args: Any, **options: Any) -> Any:
        """Return a cursor, in a transaction."""
        if self._began is None and self._inside:
            self._send(f"SAVEPOINT {self._name}")
            vars(self)["_began"] = self._connection.get_transaction()
        return super().cursor(*args, **options)

    def guard(self, statement: Any) -> AbstractContextManager[bool]:
        """Run a statement; a ``BEGIN`` would be one inside the test's transaction."""
        begins = isinstance(statement, str) and _BEGIN.match(statement)
        return nullcontext(not (begins and self._inside))

    def commit(self) -> None:
        """End the savepoint, or a transaction that is no test's."""
        self._end(f"RELEASE SAVEPOINT {self._name}", then=self._driver.commit)

    def rollback(self) -> None:
        """Roll back to the savepoint, or a transaction that is no test's."""
        self._end(
            f"ROLLBACK TO SAVEPOINT {self._name}",
            f"RELEASE SAVEPOINT {self._name}",
            then=self._driver.rollback,
        )

    def close(self) -> None:
        """Roll back."""
        self.rollback()

    terminate = close

    def _end(self, *statements: str, then: Callable[[], Any]) -> None:
        began, vars(self)["_began"] = self._began, None
        if self._connection.closed:
            return
        if began is None:
            if not self._inside:
                then()
        elif began is self._connection.get_transaction():
            for statement in statements:
                self._send(statement)
        # Else the test has ended its transaction, and with it the savepoint.

    @property
    def _inside(self) -> bool:
        """Whether the test has a transaction open."""
        return not self._connection.closed and self._connection.in_transaction()


@contextmanager
def _unkept(_shared: _Shared) -> Iterator[None]:
    """Run a statement: what writes was recognised before, or is not refused."""
    yield


@contextmanager
def _kept_by_postgresql(shared: Any) -> Iterator[None]:
    """Run a statement in a savepoint that only reads and, if it fails, is undone."""
    if getattr(shared._driver, "autocommit", False) is True:  # noqa: SLF001 - a function of that class
        yield
        return
    send = shared._send  # noqa: SLF001 - the same
    send(f"SAVEPOINT {_READ}")
    try:
        # It holds for the savepoint alone.
        send("SET TRANSACTION READ ONLY")
        yield
    except BaseException:
        with suppress(Exception):  # lost: the statement's own error says so
            send(f"ROLLBACK TO SAVEPOINT {_READ}")
            send(f"RELEASE SAVEPOINT {_READ}")
        raise
    send(f"RELEASE SAVEPOINT {_READ}")


@contextmanager
def _kept_by_sqlite(shared: Any) -> Iterator[None]:
    """Run a statement while the connection refuses to write."""
    send = shared._send  # noqa: SLF001 - the same
    send("PRAGMA query_only = ON")
    try:
        yield
    finally:
        send("PRAGMA query_only = OFF")


_KEEPERS = {"postgresql": _kept_by_postgresql, "sqlite": _kept_by_sqlite}
