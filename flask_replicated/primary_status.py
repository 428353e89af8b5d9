"""What a bind's primary says of itself, and what this process knows of it.

One question for each database. It needs no privilege, and is asked over a connection
that somebody else has opened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from .positions import observe, replication_status

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Facts", "PrimaryStatus", "ask_primary"]


class Facts(NamedTuple):
    """What a server has said of itself that a primary's engine leads to.

    Attributes:
        standby: Whether it replicates and takes no writes; None where it does not tell.
        proven: Whether that is sure; or else it may be a primary's state, too.
        server: What tells it from the other servers that replicate from each other
            (MariaDB, MySQL); None if untold.
        system_identifier: The cluster's, the same on a primary and its standbys; None
            where it does not tell, as only PostgreSQL does.
        database: The name of the connection's database; None if untold.
        timeline: The one that it writes to (PostgreSQL); None if untold.
    """

    standby: bool | None = None
    proven: bool = False
    server: int | None = None
    system_identifier: int | None = None
    database: str | None = None
    timeline: int | None = None


class PrimaryStatus:
    """What this process knows of one bind's primary, from whoever asked it.

    Attributes:
        facts: What it said last; each is None until then. A standby that its address
            has led to is not heard.
    """

    def __init__(self) -> None:
        self.facts = Facts()

    def accepts(self, facts: Facts) -> bool:
        """Keep what a server has said; return False instead if it is a standby.

        MariaDB and MySQL do not say so for sure: a primary that replicates from another
        server may have been made read only for a while. So one that was seen to take
        writes stays the primary until its address leads to another one.
        """
        if facts.standby and (facts.proven or facts.server != self.facts.server):
            return False
        self.facts = facts
        return True


def ask_primary(connection: Any, dialect: str) -> Facts:
    """Ask a server for its role and identity; it tells less if it knows less.

    Args:
        connection: A DBAPI connection. What has begun on it is committed, or rolled
            back if the server does not understand what it is asked.
        dialect: SQLAlchemy's name for it.

    Raises:
        Exception: The driver's, if the server does not answer at all.
    """
    facts = observe(connection, *_QUESTIONS.get(dialect, ()), _tells_nothing)
    # Not a rollback, which would take back what a listener has just set.
    connection.commit()
    return facts


def _tells_nothing(_cursor: Any) -> Facts:
    return Facts()


# The first eight digits of the name of a file of its log are those of the timeline.
_POSTGRESQL = """
SELECT pg_is_in_recovery(),
       current_database(),
       (SELECT system_identifier FROM pg_control_system()),
       CASE WHEN NOT pg_is_in_recovery()
            THEN left(pg_walfile_name(pg_current_wal_lsn()), 8) END
"""
_POSTGRESQL_ROLE = "SELECT pg_is_in_recovery(), current_database(), NULL, NULL"


def _postgresql(question: str) -> Callable[[Any], Facts]:
    def ask(cursor: Any) -> Facts:
        cursor.execute(question)
        standby, database, system, digits = cursor.fetchone()
        return Facts(
            standby=standby,
            proven=True,
            system_identifier=system,
            database=database,
            timeline=None if digits is None else int(digits, 16),
        )

    return ask


def _mysql(cursor: Any) -> Facts:
    """Take for a standby what is read only, and replicates from another server.

    Neither alone is enough: a primary may be made read only on purpose, and may itself
    replicate from another server.
    """
    cursor.execute("SELECT DATABASE(), @@GLOBAL.server_id, @@GLOBAL.read_only")
    row = cursor.fetchone()
    # A bind's own cursor may return a dictionary.
    database, server, read_only = row.values() if isinstance(row, dict) else row
    # A number, or a word in newer versions.
    standby = str(read_only) not in {"0", "OFF"} and _replicates(cursor)
    return Facts(standby, server=server, database=database)


def _replicates(cursor: Any) -> bool:
    """Whether it says that it is connected to a source, or tries to be."""
    row = replication_status(cursor) or {}
    return any(row.get(name, "No") != "No" for name in _RECEIVES)


_RECEIVES = ("Replica_IO_Running", "Slave_IO_Running")


_QUESTIONS: dict[str, tuple[Callable[[Any], Facts], ...]] = {
    "postgresql": (_postgresql(_POSTGRESQL), _postgresql(_POSTGRESQL_ROLE)),
    "mysql": (_mysql,),
    "mariadb": (_mysql,),
}
