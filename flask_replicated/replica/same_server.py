"""Whether a replica's server is the primary's own.

A bind that names the primary's server is left out of the pool, and an operator is told
so. MariaDB and MySQL cannot be asked for their role, so nothing else notices it there.
On PostgreSQL the answer tells the primary itself from a second primary.
"""

from __future__ import annotations

import uuid
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from flask_replicated.system.forks import in_this_process

from .dbapi_connections import UnpooledConnections
from .queries import first_row

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

    from .dbapi_connections import Surroundings

__all__ = ["SameServerCheck"]


class SameServerCheck:
    """Finds out whether two engines lead to one server.

    Names, ids and folders are the same in clones of a container, and an address may
    stand for several servers. Two things do belong to one server alone, and need no
    privilege. On MariaDB and MySQL that is a named lock, which is not replicated: one
    with a unique name is taken on the replica, and looked for on the primary. On
    PostgreSQL it is the microsecond in which the server was started.

    The two connections are opened outside the connection pools, and closed at once.

    Args:
        primary: The primary's engine.
        replica: The replica's engine.
        surroundings: Returns the block to connect in.

    Attributes:
        connections: Those that it opens; to be ended when it is not wanted any more.
    """

    def __init__(
        self,
        primary: Engine,
        replica: Engine,
        *,
        surroundings: Surroundings = nullcontext,
    ) -> None:
        self._primary = primary
        self._replica = replica
        self.connections = UnpooledConnections(surroundings)
        # Whether this process is asking: a forked child has no thread of its parent.
        self._asking: Callable[[], bool] | None = None

    def is_same_server(self) -> bool:
        """Ask both servers.

        Raises:
            Exception: One of them does not answer, or does not tell; or another thread
                is asking.
        """
        if self._asking is not None and self._asking():
            raise RuntimeError("one that has not ended yet may hang")
        self._asking = in_this_process()
        try:
            with self.connections.connect(self._replica) as ours:
                compare = _COMPARISONS[self._primary.dialect.name](ours)
                with self.connections.connect(self._primary) as theirs:
                    return compare(theirs)
        finally:
            self._asking = None


def _by_lock(ours: Any) -> Callable[[Any], bool]:
    """Take a lock on the replica; return a function that finds it on the primary."""
    name = f"flask_replicated.{uuid.uuid4().hex}"
    if not _ask(ours, f"SELECT GET_LOCK('{name}', 0)"):
        raise RuntimeError("no lock could be taken")
    return lambda theirs: _ask(theirs, f"SELECT IS_USED_LOCK('{name}')") is not None


def _by_start(ours: Any) -> Callable[[Any], bool]:
    """Ask the replica for its start time; return a function that asks the primary."""
    started = _ask(ours, _STARTED)

    def compare(theirs: Any) -> bool:
        if _ask(theirs, "SELECT pg_is_in_recovery()"):
            raise RuntimeError("the primary's address leads to a standby")
        return bool(_ask(theirs, _STARTED) == started)

    return compare


_STARTED = "SELECT EXTRACT(EPOCH FROM pg_postmaster_start_time())::text"
_COMPARISONS = {"postgresql": _by_start, "mysql": _by_lock, "mariadb": _by_lock}


def _ask(connection: Any, question: str) -> Any:
    return first_row(connection, question)[0]
