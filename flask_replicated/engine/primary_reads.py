"""The reads that wait for the primary, which may be ended without any harm.

A write in flight is never ended: whether it was done would not be known. Nor is
anything whose transaction has written, locked or set something.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from sqlalchemy import event

from flask_replicated.replica.open_connections import OpenConnections, end_record

from .primary_connection import USER

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.pool import ConnectionPoolEntry

    from flask_replicated.replica.in_flight import PendingAnswer

    from .primary_connection import PrimaryConnection

__all__ = ["PrimaryReads"]


class PrimaryReads:
    """Finds and ends the sure reads that wait for the primary's answer.

    Args:
        engine: The primary's engine, before its first connection.

    Attributes:
        outages: How often its open connections were found to be silent. One that was
            opened before the last time is not used again.
        slow_until: Until when its answers count as slow, by the monotonic clock.
    """

    def __init__(self, engine: Engine) -> None:
        self.outages = 0
        self.slow_until = -math.inf
        self._open = OpenConnections(engine.dialect)
        if self._open.show_pending:
            event.listen(engine, "connect", self._note)

    def _note(self, _connection: Any, record: ConnectionPoolEntry) -> None:
        self._open.add(record)

    @property
    def in_use(self) -> bool:
        """Whether a sure read uses a connection."""
        return any(map(_only_reads, self._open.records()))

    def pending_answers(self) -> list[PendingAnswer]:
        """Return the answers that sure reads wait for, as far as can be seen."""
        return self._open.pending_answers(_only_reads)

    def end_connection(self, pending: PendingAnswer) -> bool:
        """End a connection if its read still waits for that answer; return if so."""
        if not (self._open.waits_still(pending) and _only_reads(pending.record)):
            return False
        return end_record(pending.record)

    def hang_up(self) -> int:
        """End each read that waits for an answer; return how many there were."""
        return sum(map(self.end_connection, self.pending_answers()))

    def retire_connections(self) -> None:
        """Let no connection that is open now be used again."""
        self.outages += 1


def _only_reads(record: ConnectionPoolEntry) -> bool:
    reference = record.info.get(USER)
    user: PrimaryConnection | None = None if reference is None else reference()
    return user is not None and not user.closed and user.only_reads
