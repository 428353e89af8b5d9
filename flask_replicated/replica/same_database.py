"""Whether a replica's server has the database that the primary has.

Only servers can say: a pooler may call one database by several names, and an address
may lead anywhere. So each new connection to a replica asks for its database and its
cluster, and what it hears is compared with what the primary has said of itself. Where
that has not been asked, or does not tell, nothing is held against anybody.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from flask_replicated.errors import MisconfiguredReplicaError
from flask_replicated.forks import in_this_process

from .connect_timeout import TimeLimit
from .dbapi_connections import connect_unpooled, prepare_unpooled
from .primary_status import ask_primary
from .replica_status import observe, replication_status

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

    from .dbapi_connections import Surroundings
    from .primary_status import PrimaryReport, PrimaryStatus

__all__ = ["PrimaryIdentity", "SameDatabaseCheck"]

logger = logging.getLogger("flask_replicated")

_MOMENT = 0.25
"""Part of the time to connect for which a new connection waits for the primary."""
_AGAIN = 30.0
"""Seconds after which a primary that has said nothing is asked again."""


class PrimaryIdentity:
    """Asks a primary what it is, at the latest when one of its replicas is met.

    A process that only reads might never connect to its primary. So it is asked in the
    background, over a connection of its own, which is closed at once.

    Args:
        engine: The primary's engine.
        status: What is known of it.
        seconds: How long it may take to say the first words.
        surroundings: Returns the block to connect in.

    Attributes:
        engine: The primary's engine.
        status: What is known of it.
        surroundings: The same as the argument.
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
        # Whether this process has asked, and when: a forked child has none of its
        # parent's threads.
        self._asked: tuple[Callable[[], bool], float, threading.Event] | None = None

    @property
    def known(self) -> PrimaryReport:
        """What the primary has said so far."""
        return self.status.facts

    def make(self, *, wait: bool) -> None:
        """Let the primary be asked, if it has not said anything yet.

        Args:
            wait: Whether to wait for it, for a moment.
        """
        # An async engine's connections are made in the loop of who uses them.
        if self.known.database is None and not self.engine.dialect.is_async:
            done = self._begin()
            if wait:
                done.wait(_MOMENT * self._seconds)

    def _begin(self) -> threading.Event:
        """Return what is set once the primary has been asked."""
        now = time.monotonic()
        if self._asked is not None:
            in_its_process, at, done = self._asked
            if in_its_process() and (not done.is_set() or now - at < _AGAIN):
                return done
        done = threading.Event()
        self._asked = in_this_process(), now, done
        name = "flask_replicated primary"
        thread = threading.Thread(
            target=self._ask, args=(done,), name=name, daemon=True
        )
        try:
            thread.start()
        except RuntimeError:  # no more threads
            done.set()
        return done

    def _ask(self, done: threading.Event) -> None:
        try:
            with suppress(Exception):  # it may be out, and says nothing then
                self.status.accepts(self._asked_anew())
        finally:
            done.set()

    def _asked_anew(self) -> PrimaryReport:
        connection = connect_unpooled(self.engine, self.surroundings)
        limit = TimeLimit(connection, self._seconds).start()
        try:
            prepare_unpooled(self.engine, connection)
            return ask_primary(connection, self.engine.dialect.name)
        finally:
            limit.lift()
            connection.close()


class _DatabaseIdentity(NamedTuple):
    """What a replica's server says of itself.

    Attributes:
        database: The name of the connection's database; None if untold.
        cluster: Its system identifier (PostgreSQL); None if untold.
        renames: Whether its source may call the database otherwise; None if untold.
    """

    database: str | None = None
    cluster: int | None = None
    renames: bool | None = False


class SameDatabaseCheck:
    """Compares what one replica says of itself with what its primary has said.

    Args:
        name: The replica's bind name.
        dialect: SQLAlchemy's name for it.
        primary: What its primary says.
    """

    def __init__(self, name: str, dialect: str, primary: PrimaryIdentity) -> None:
        self._name = name
        self._primary = primary
        self._questions = _QUESTIONS.get(dialect)
        self._may_rename = dialect in {"mysql", "mariadb"}
        self._said = _DatabaseIdentity()
        self._warned = False

    def ask(self, connection: Any) -> None:
        """Ask over a new connection that a caller waits for.

        Raises:
            MisconfiguredReplicaError: The server has another database.
            Exception: The driver's, if it does not answer at all.
        """
        self._compare(connection, wait=True)

    def look(self, connection: Any, *, anew: bool) -> None:
        """Ask over the connection of the background look.

        Args:
            connection: A DBAPI connection.
            anew: Whether it is new, or else was asked before.

        Raises:
            MisconfiguredReplicaError: The server has another database.
            Exception: The driver's, if it does not answer at all.
        """
        self._compare(connection if anew else None, wait=False)

    def _compare(self, connection: Any, *, wait: bool) -> None:
        if self._questions is None:
            return
        self._primary.make(wait=wait)
        if connection is not None:
            self._said = self._hear(connection, *self._questions)
        why = self._difference()
        if why is not None:
            raise MisconfiguredReplicaError(
                self._name,
                why,
                "Let {bind} name a copy of the primary's database, or set "
                "REPLICATED_ROLE_CHECK = False if it replicates logically.",
            )

    def _hear(
        self, connection: Any, *questions: Callable[[Any], _DatabaseIdentity]
    ) -> _DatabaseIdentity:
        said = observe(connection, *questions)
        if not self._may_rename or self._is_same(said.database):
            return said
        return said._replace(renames=observe(connection, _renames, _is_untold))

    def _difference(self) -> str | None:
        """Return what its server has, and the primary has not, if that is sure."""
        ours, theirs = self._primary.known, self._said
        clusters = ours.system_identifier, theirs.cluster
        if None not in clusters and clusters[0] != clusters[1]:
            return (
                f"its server is of another cluster ({clusters[1]}) than the primary's "
                f"({clusters[0]})"
            )
        names = ours.database, theirs.database
        if None in names or self._is_same(theirs.database):
            return None
        what = f"its database is {names[1]!r}, and the primary's is {names[0]!r}"
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
        """Whether the primary's database is known to be called so."""
        known = self._primary.known.database
        if database is None or known is None:
            return False
        if self._may_rename:  # and may not tell small letters from capital ones
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
    return _DatabaseIdentity(*_row(cursor))


def _renames(cursor: Any) -> bool | None:
    """Whether replicate-rewrite-db is set; None if that is not told."""
    status = replication_status(cursor)
    if status == {}:
        return False  # it replicates from nobody
    if status and "Replicate_Rewrite_DB" in status:
        return bool(status["Replicate_Rewrite_DB"])
    cursor.execute("SHOW GLOBAL VARIABLES LIKE 'replicate_rewrite_db'")
    row = _row(cursor)
    return bool(row[-1]) if row else None


def _is_untold(_cursor: Any) -> None:
    return None


def _row(cursor: Any) -> list[Any]:
    """Return a row's values; a bind's own cursor may return a dictionary."""
    row = cursor.fetchone()
    return list(row.values() if isinstance(row, dict) else row or ())


_QUESTIONS: dict[str, tuple[Callable[[Any], _DatabaseIdentity], ...]] = {
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
