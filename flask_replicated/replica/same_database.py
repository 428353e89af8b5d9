"""Refuses a replica whose server has another database than the primary.

Only servers can tell: a pooler may give one database several names, and an address may
lead anywhere. So each new connection to a replica asks for its database and its
cluster, and the answer is compared with the primary's. As long as the primary has not
been asked, or does not tell, no replica is refused.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from flask_replicated.errors import MisconfiguredReplicaError
from flask_replicated.system.forks import in_this_process
from flask_replicated.system.threads import start_thread

from .connect_timeout import connected_for
from .primary_status import ask_primary
from .queries import query_server, row_values, untold
from .replica_status import replication_status

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

    from .dbapi_connections import Surroundings
    from .primary_status import PrimaryReport, PrimaryStatus

__all__ = ["PrimaryIdentity", "SameDatabaseCheck"]

logger = logging.getLogger("flask_replicated")

_WAIT_SHARE = 0.25
"""Share of the connect timeout for which a new connection waits for the primary."""
_AGAIN = 30.0
"""Seconds after which a primary that did not answer is asked again."""


class PrimaryIdentity:
    """Asks a primary for its database and cluster, when one of its replicas is asked.

    A process that only reads might never connect to its primary. So this asks in the
    background, over a connection of its own, which is closed at once.

    Args:
        engine: The primary's engine.
        status: What is known of the primary.
        seconds: How long its server may take to answer.
        surroundings: Returns the block to connect in.

    Attributes:
        engine: The primary's engine.
        status: What is known of the primary.
        surroundings: As the argument.
    """

    def __init__(
        self,
        engine: Engine,
        status: PrimaryStatus,
        seconds: float,
        surroundings: Surroundings = nullcontext,
    ) -> None:
        self.engine = engine
        self.status = status
        self._seconds = seconds
        self.surroundings = surroundings
        # Whether this process has asked, and when: a forked child has no thread of it.
        self._asked: tuple[Callable[[], bool], float, threading.Event] | None = None

    def ensure_asked(self, *, wait: bool) -> None:
        """Ask the primary in the background, unless it has answered already.

        Args:
            wait: Whether to wait a moment for the answer.
        """
        # Connections of an async engine are made in the event loop that uses them.
        if self.status.report.database is None and not self.engine.dialect.is_async:
            done = self._begin()
            if wait:
                done.wait(_WAIT_SHARE * self._seconds)

    def _begin(self) -> threading.Event:
        """Return the event that is set once the primary has been asked."""
        now = time.monotonic()
        if self._asked is not None:
            in_its_process, at, done = self._asked
            if in_its_process() and (not done.is_set() or now - at < _AGAIN):
                return done
        done = threading.Event()
        self._asked = in_this_process(), now, done
        if not start_thread("primary", self._ask, done):
            done.set()
        return done

    def _ask(self, done: threading.Event) -> None:
        try:
            with suppress(Exception):  # it may be out
                self.status.accept(self._asked_anew())
        finally:
            done.set()

    def _asked_anew(self) -> PrimaryReport:
        with connected_for(self.engine, self._seconds, self.surroundings) as connection:
            return ask_primary(connection, self.engine.dialect.name)


class _DatabaseIdentity(NamedTuple):
    """Which database a replica's server has.

    Attributes:
        database: The name of the connection's database; None if untold, and empty if
            it has none.
        cluster: Its system identifier (PostgreSQL); None if untold.
        renames: Whether its source may use another name for it; None if untold.
    """

    database: str | None = None
    cluster: int | None = None
    renames: bool | None = False


class SameDatabaseCheck:
    """Compares one replica's database and cluster with the primary's.

    Args:
        name: The replica's bind name.
        dialect: SQLAlchemy's name for its dialect.
        primary: Knows the primary's.
    """

    def __init__(self, name: str, dialect: str, primary: PrimaryIdentity) -> None:
        self._name = name
        self._primary = primary
        self._queries = _QUERIES.get(dialect)
        self._may_rename = dialect in {"mysql", "mariadb"}
        self._found = _DatabaseIdentity()
        self._warned = False

    def check(self, connection: Any) -> None:
        """Ask over a new connection that a caller waits for.

        Raises:
            MisconfiguredReplicaError: The server has another database.
            Exception: The driver's, if it does not answer at all.
        """
        self._compare(connection, wait=True)

    def check_probe(self, connection: Any, *, anew: bool) -> None:
        """Ask over the connection of a background probe.

        Args:
            connection: A DBAPI connection.
            anew: Whether it is new; one that was asked before is not asked again.

        Raises:
            MisconfiguredReplicaError: The server has another database.
            Exception: The driver's, if it does not answer at all.
        """
        self._compare(connection if anew else None, wait=False)

    def _compare(self, connection: Any, *, wait: bool) -> None:
        if self._queries is None:
            return
        self._primary.ensure_asked(wait=wait)
        if connection is not None:
            self._found = self._identity(connection, *self._queries)
        why = self._difference()
        if why is not None:
            raise MisconfiguredReplicaError(
                self._name,
                why,
                "Let {bind} name a copy of the primary's database, or set "
                "REPLICATED_ROLE_CHECK = False if it replicates logically.",
            )

    def _identity(
        self, connection: Any, *queries: Callable[[Any], _DatabaseIdentity]
    ) -> _DatabaseIdentity:
        found = query_server(connection, *queries)
        # Only what has a name may have been given another one.
        if not (self._may_rename and found.database) or self._is_same(found.database):
            return found
        return found._replace(renames=query_server(connection, _renames, untold))

    def _difference(self) -> str | None:
        """Return how its database differs from the primary's, if that is certain."""
        ours, theirs = self._primary.status.report, self._found
        clusters = ours.system_identifier, theirs.cluster
        if None not in clusters and clusters[0] != clusters[1]:
            return (
                f"its server is of another cluster ({clusters[1]}) than the primary's "
                f"({clusters[0]})"
            )
        names = ours.database, theirs.database
        if None in names or self._is_same(theirs.database):
            return None
        its = f"its database is {names[1]!r}" if names[1] else "it names no database"
        what = f"{its}, and the primary's is {names[0]!r}"
        if theirs.renames is None and not self._warned:
            self._warned = True
            logger.warning(
                "replica %r: %s. Correct its URL, unless replicate-rewrite-db is set "
                "on its server, which this account is not told.",
                self._name,
                what,
            )
        return what if theirs.renames is False else None

    def _is_same(self, database: str | None) -> bool:
        """Whether this is known to be the name of the primary's database."""
        known = self._primary.status.report.database
        if database is None or known is None:
            return False
        if self._may_rename:  # MariaDB and MySQL, whose names may ignore case
            return database.casefold() == known.casefold()
        return database == known


def _postgresql(question: str) -> Callable[[Any], _DatabaseIdentity]:
    def ask(cursor: Any) -> _DatabaseIdentity:
        cursor.execute(question)
        database, cluster = _row(cursor)
        return _DatabaseIdentity(database, cluster)

    return ask


def _mysql(cursor: Any) -> _DatabaseIdentity:
    cursor.execute("SELECT DATABASE()")
    (database,) = _row(cursor)
    return _DatabaseIdentity(database or "")  # NULL is an answer too


def _renames(cursor: Any) -> bool | None:
    """Whether replicate-rewrite-db is set; None if that is not told."""
    status = replication_status(cursor)
    if status == {}:
        return False  # it has no source
    if status and "Replicate_Rewrite_DB" in status:
        return bool(status["Replicate_Rewrite_DB"])
    cursor.execute("SHOW GLOBAL VARIABLES LIKE 'replicate_rewrite_db'")
    row = _row(cursor)
    return bool(row[-1]) if row else None


def _row(cursor: Any) -> list[Any]:
    return row_values(cursor.fetchone())


_QUERIES: dict[str, tuple[Callable[[Any], _DatabaseIdentity], ...]] = {
    "postgresql": (
        _postgresql(
            "SELECT current_database(), "
            "(SELECT system_identifier FROM pg_control_system())"
        ),
        _postgresql("SELECT current_database(), NULL"),
    ),
    "mysql": (_mysql,),
    "mariadb": (_mysql,),
}
