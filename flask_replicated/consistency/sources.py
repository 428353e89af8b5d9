"""Asks a server for its log position: what was committed, and what a replica shows.

There is one query for each database. It runs over a connection that is in use, and
leaves its transaction as it was. What the background probe has asked anyway becomes a
position, too.
"""

from __future__ import annotations

import hashlib
import zlib
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakSet

from flask_replicated.replica.queries import execute, first_row
from flask_replicated.replica.replica_status import parse_gtids

from .positions import LogPosition

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flask_replicated.replica.primary_status import PrimaryReport
    from flask_replicated.replica.replica_status import Position, ReplicaReport

__all__ = [
    "PositionSource",
    "cluster_digest",
    "from_primary_report",
    "from_replica_report",
    "position_source",
    "register_positions",
]


_BYTES = ""
"""The one stream of a position of PostgreSQL."""


class PositionSource(Protocol):
    """Asks the servers of one database for their log positions."""

    def position(self, connection: Any) -> LogPosition | None:
        """Return a position that covers all that a primary has committed so far.

        Args:
            connection: A DBAPI connection. It may be inside a transaction or not; that
                is left as it was.

        Returns:
            The position; None if the server has none, or is no primary.

        Raises:
            Exception: The driver's, if the server refuses.
        """

    def replayed(self, connection: Any) -> LogPosition | None:
        """Return a position such that a replica shows all that it covers.

        Args:
            connection: As above. A transaction that does not see what is committed
                meanwhile may show less.

        Returns:
            The position; None if the server does not tell, or is no replica.

        Raises:
            Exception: The driver's, if the server refuses.
        """


def register_positions(dialect: str, source: PositionSource) -> None:
    """Set what asks for the log positions of a database.

    Args:
        dialect: SQLAlchemy's name for it.
        source: Asks.
    """
    _SOURCES[dialect] = source


def position_source(dialect: str) -> PositionSource | None:
    """Return what asks for the log positions of a database; None if it has none.

    Args:
        dialect: SQLAlchemy's name for it.
    """
    return _SOURCES.get(dialect)


def cluster_digest(system_identifier: int) -> int:
    """Return what a position has of PostgreSQL's system identifier: 32 bits, not 0."""
    return zlib.crc32(str(system_identifier).encode()) or 1


def from_replica_report(
    report: ReplicaReport, system_identifier: int | None
) -> LogPosition | None:
    """Return what a replica shows; None if it did not tell.

    Args:
        report: That of a fit replica.
        system_identifier: Its primary's, and so its own.
    """
    if report.primary or report.apart is not None:
        return None
    shown = report.applied if report.replayed is None else report.position
    return _position_in(shown, system_identifier, report.timeline)


def from_primary_report(report: PrimaryReport) -> LogPosition | None:
    """Return the end of a primary's log; None if it did not tell."""
    if report.standby:
        return None
    return _position_in(report.position, report.system_identifier, report.timeline)


def _position_in(
    position: Position | None, system_identifier: int | None, timeline: int | None
) -> LogPosition | None:
    """Return the log position that a report tells; None if it is not all there."""
    if not position:
        return None
    if _BYTES not in position:
        return _gtid_position(position)
    if system_identifier is None or not timeline:
        return None
    streams = {0: _end_of_record(position[_BYTES])}
    return LogPosition(cluster_digest(system_identifier), timeline, streams)


def _gtid_position(gtids: Position) -> LogPosition | None:
    streams = {_stream(name): number for name, number in gtids.items()}
    return LogPosition(0, 0, streams) if streams else None


def _stream(name: str) -> int:
    """Return the number of a stream: MariaDB's domain, or a digest of MySQL's uuid."""
    if name.isdigit():
        return int(name)
    digest = hashlib.blake2b(name.lower().encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big")


_PAGE = 8192
_HEADERS = (24, 40)  # of a page, and of the first one of a file


def _end_of_record(position: int) -> int:
    """Return where the last record ends, given where the next one will begin.

    A page begins with a header. A record that fills its page ends where the page does,
    and a replica that has replayed it shows no more. (A record that ends just as far
    behind a header began in the page before. Nothing else ends in between.)
    """
    offset = position % _PAGE
    return position - offset if offset in _HEADERS else position


class _PostgreSQL:
    """Asks PostgreSQL, by psycopg, psycopg2 or asyncpg."""

    def __init__(self) -> None:
        # Connections over which a query has worked already.
        self._answered: dict[str, WeakSet[Any]] = {
            query: WeakSet() for query in (_INSERTED, _REPLAYED)
        }

    def position(self, connection: Any) -> LogPosition | None:
        return self._ask(connection, _INSERTED)

    def replayed(self, connection: Any) -> LogPosition | None:
        return self._ask(connection, _REPLAYED)

    def _ask(self, connection: Any, query: str) -> LogPosition | None:
        status = _transaction_status(connection)
        if status not in {_IDLE, _IN_TRANSACTION}:
            return None
        inside = status == _IN_TRANSACTION
        around = self._undone_if_refused if inside else _without_transaction
        with around(connection, query):
            position, system, timeline, isolation = first_row(connection, query)
        if position is None or system is None or timeline is None:
            return None
        # The snapshot of such a transaction may be older than what is shown by now.
        if query == _REPLAYED and inside and isolation != "read committed":
            return None
        streams = {0: _end_of_record(int(position))}
        return LogPosition(cluster_digest(int(system)), int(timeline), streams)

    @contextmanager
    def _undone_if_refused(self, connection: Any, query: str) -> Iterator[None]:
        """Keep a server that refuses the query from aborting the transaction."""
        answered, driver = self._answered[query], _driver(connection)
        if driver in answered:
            yield
            return
        execute(connection, "SAVEPOINT flask_replicated")
        try:
            yield
        except Exception:
            with suppress(Exception):  # if it is lost, the first error says more
                execute(connection, "ROLLBACK TO SAVEPOINT flask_replicated")
                execute(connection, "RELEASE SAVEPOINT flask_replicated")
            raise
        execute(connection, "RELEASE SAVEPOINT flask_replicated")
        answered.add(driver)


# libpq's numbers for what a connection is in.
_IDLE, _IN_TRANSACTION = 0, 2


def _transaction_status(connection: Any) -> int | None:
    """Return libpq's number for the state of a transaction; None if it is unknown."""
    driver = _driver(connection)
    if hasattr(driver, "pgconn"):  # psycopg
        return int(driver.pgconn.transaction_status)
    if hasattr(driver, "get_transaction_status"):  # psycopg2
        return int(driver.get_transaction_status())
    if hasattr(driver, "is_in_transaction"):  # asyncpg
        return _IN_TRANSACTION if driver.is_in_transaction() else _IDLE
    return None


def _driver(connection: Any) -> Any:
    """Return the driver's own connection, where SQLAlchemy's is around an async one."""
    return getattr(connection, "driver_connection", connection)


@contextmanager
def _without_transaction(connection: Any, _query: str = "") -> Iterator[None]:
    """Let the driver begin no transaction: two round trips less.

    psycopg2 would reset the session's own defaults afterwards, where it has set some.
    """
    if connection.autocommit:
        yield
        return
    if _has_characteristics(connection):
        try:
            yield
        finally:
            connection.rollback()
        return
    connection.autocommit = True
    try:
        yield
    except BaseException:
        # One that is busy or lost takes no setting, and must not stay in autocommit.
        try:
            connection.autocommit = False
        except Exception:  # noqa: BLE001 - the first error says more
            connection.close()
        raise
    connection.autocommit = False


def _has_characteristics(connection: Any) -> bool:
    if not hasattr(connection, "get_transaction_status"):
        return False
    chosen = connection.isolation_level, connection.readonly, connection.deferrable
    return any(one is not None for one in chosen)


# Only the insert position has what is committed asynchronously. The name of a WAL file
# begins with eight digits of the timeline.
_INSERTED = """
SELECT pg_wal_lsn_diff(lsn, '0/0'),
       (SELECT system_identifier FROM pg_control_system()),
       ('x' || left(pg_walfile_name(lsn), 8))::bit(32)::int,
       current_setting('transaction_isolation')
  FROM (SELECT CASE WHEN NOT pg_is_in_recovery()
                    THEN pg_current_wal_insert_lsn() END AS lsn) AS log
"""
# Only members of pg_read_all_stats see the timeline that is received. The other one is
# that of the last restart point: outdated for minutes, never ahead.
_REPLAYED = """
SELECT CASE WHEN pg_is_in_recovery()
            THEN pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0') END,
       (SELECT system_identifier FROM pg_control_system()),
       COALESCE((SELECT received_tli FROM pg_stat_wal_receiver),
                (SELECT timeline_id FROM pg_control_checkpoint())),
       current_setting('transaction_isolation')
"""


class _MySQL:
    """Asks MariaDB and MySQL. To read a variable begins no transaction."""

    def position(self, connection: Any) -> LogPosition | None:
        return self._ask(connection, _WRITTEN)

    def replayed(self, connection: Any) -> LogPosition | None:
        return self._ask(connection, _APPLIED)

    def _ask(self, connection: Any, query: str) -> LogPosition | None:
        gtids, outdated = first_row(connection, query)
        if outdated:
            return None
        text = gtids.decode() if isinstance(gtids, bytes) else str(gtids or "")
        return _gtid_position(parse_gtids(text))


# MariaDB runs the comments with an M, and MySQL the others. Not MariaDB's last_gtid: a
# session that reads has seen more than its own last write.
_WRITTEN = """
SELECT /*M! @@GLOBAL.gtid_binlog_pos */ /*!50700 @@GLOBAL.gtid_executed */, 0
"""
# MySQL does not tell whether there is a transaction, whose snapshot may be older.
_APPLIED = """
SELECT /*M! @@GLOBAL.gtid_slave_pos,
            @@in_transaction AND @@tx_isolation NOT LIKE 'READ-%' */
       /*!50700 @@GLOBAL.gtid_executed, 0 */
"""


_SOURCES: dict[str, PositionSource] = {
    "postgresql": _PostgreSQL(),
    "mysql": _MySQL(),
    "mariadb": _MySQL(),
}
