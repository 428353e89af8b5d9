"""The open connections of one engine: finds those that wait, and ends them."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakSet

from flask_replicated.system.sockets import hang_up

from .activity import can_list_backends
from .in_flight import pending_answer, shows_pending

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Dialect
    from sqlalchemy.pool import ConnectionPoolEntry

    from .in_flight import PendingAnswer

__all__ = ["OpenConnections", "end_record"]

_ENDED = "flask_replicated.ended"


class OpenConnections:
    """The entries of an engine's connection pool.

    Args:
        dialect: The engine's.

    Attributes:
        show_pending: Whether it can be seen which of them wait for an answer, and their
            server can be asked whether it works on it.
    """

    def __init__(self, dialect: Dialect) -> None:
        self._driver = dialect.driver
        self.show_pending = shows_pending(dialect.driver) and can_list_backends(
            dialect.name
        )
        self._records: WeakSet[ConnectionPoolEntry] = WeakSet()

    def add(self, record: ConnectionPoolEntry) -> None:
        """Add the entry of a new connection."""
        self._records.add(record)

    def records(self) -> list[ConnectionPoolEntry]:
        """Return the entries."""
        while True:
            try:
                return list(self._records)
            except RuntimeError:  # another thread has just connected
                continue

    def pending_answers(
        self, counts: Callable[[ConnectionPoolEntry], bool]
    ) -> list[PendingAnswer]:
        """Return the answers that they wait for, as far as can be seen.

        Args:
            counts: Whether to look at one.
        """
        if not self.show_pending:
            return []
        found = (
            pending_answer(self._driver, one) for one in self.records() if counts(one)
        )
        return [pending for pending in found if pending is not None]

    def waits_still(self, pending: PendingAnswer) -> bool:
        """Whether a connection waits for that answer, and not for another one."""
        now = pending_answer(self._driver, pending.record)
        return (
            now is not None
            and now.connection is pending.connection
            and now.received == pending.received
        )


def end_record(record: ConnectionPoolEntry) -> bool:
    """End a record's connection; return whether it had not been ended before.

    Its socket does not tell: it can be shut down repeatedly without an error.
    """
    connection = record.dbapi_connection
    if connection is None or record.info.get(_ENDED) is connection:
        return False
    # The connection itself is noted: the record may get another one at any moment.
    record.info[_ENDED] = connection
    return hang_up(connection)
