"""New connections that a listener refuses are closed, and once."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from flask_replicated.replica.dbapi_connections import closed_if_refused


class Connection:
    """A driver's connection that takes it for an error to be closed twice."""

    def __init__(self, made: list[Connection]) -> None:
        self.closings = 0
        made.append(self)

    def close(self) -> None:
        """Close it."""
        self.closings += 1
        if self.closings > 1:
            raise ValueError("Already closed")

    def rollback(self) -> None:
        """Do nothing: a pool asks for it."""


@pytest.mark.parametrize("before", [0, 1], ids=["a new record", "a record in use"])
def test_closed_once(before: int, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever the pool does with it, and nothing is logged but the real cause."""
    made: list[Connection] = []
    pool = sa.QueuePool(lambda: Connection(made), pool_size=1)  # type: ignore[arg-type]  # all that a pool needs of it

    @event.listens_for(pool, "connect")
    def admit(connection: Any, record: Any) -> None:
        with closed_if_refused(connection, record):
            if len(made) > before:
                raise LookupError("the real cause")

    if before:
        fairy = pool.connect()
        fairy.invalidate()  # so that its record connects anew
        fairy.close()
    with caplog.at_level(logging.WARNING), pytest.raises(LookupError) as caught:
        pool.connect()
    assert [one.closings for one in made] == [1] * (before + 1)
    assert caught.value.__context__ is None
    assert not caplog.messages
    if before:  # whose place is free again
        with pytest.raises(LookupError, match="the real cause"):
            pool.connect()
    pool.dispose()
