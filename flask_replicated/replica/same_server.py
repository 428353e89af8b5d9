"""Whether a replica's server is the primary's own."""

from __future__ import annotations

import threading
import uuid
from contextlib import closing, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

from flask_replicated.forks import in_this_process, leave_to_parent
from flask_replicated.sockets import hang_up

from .dbapi_connections import connect_unpooled, prepare_unpooled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

    from .dbapi_connections import Surroundings

__all__ = ["SameServerCheck", "can_compare"]


def can_compare(engine: Engine) -> bool:
    """Whether a primary can be asked for it."""
    return engine.dialect.name in _WAYS and not engine.dialect.is_async


class SameServerCheck:
    """Asks two servers whether they are one.

    Names, ids and folders are the same in clones of a container, and an address may
    stand for several servers. What does belong to one server alone, and takes no
    privilege to ask: on MariaDB and MySQL a named lock, which is not replicated. So one
    of a name that nobody else has is taken on the replica, and looked for on the
    primary. On PostgreSQL the microsecond in which the server was started.

    Its two connections are opened past the pools, and closed at once.

    Args:
        primary: The one engine.
        replica: The other.
        surroundings: Returns the block to connect in.
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
        self._surroundings = surroundings
        self._open: list[Any] = []
        self._over = False
        # Whether this is the process that asks: a forked child has not its parent's
        # threads. None if none does.
        self._asking: Callable[[], bool] | None = None

    def is_twin(self) -> bool:
        """Ask both.

        Raises:
            Exception: One of them does not answer, or leaves it open; or another thread
                is asking.
        """
        if self._goes_on():
            raise RuntimeError("one that has not ended yet may hang")
        self._asking = in_this_process()
        try:
            with self._cursor(self._replica) as ours:
                way = _WAYS[self._primary.dialect.name](ours)
                with self._cursor(self._primary) as theirs:
                    return way(theirs)
        finally:
            self._asking = None

    def begin(self, tell: Callable[[bool], None]) -> None:
        """Ask both in a thread of its own, so that nobody waits for the primary.

        Args:
            tell: Told whether it is one server; not called where nobody knows.
        """
        if self._goes_on():
            return
        name = "flask_replicated comparison"
        thread = threading.Thread(
            target=self._find_out, args=(tell,), name=name, daemon=True
        )
        with suppress(RuntimeError):  # no more threads
            thread.start()

    def _find_out(self, tell: Callable[[bool], None]) -> None:
        try:
            twin = self.is_twin()
        except Exception:  # noqa: BLE001 - the primary may be out
            return
        tell(twin)

    def _goes_on(self) -> bool:
        """Whether somebody is asking."""
        asking = self._asking
        return asking is not None and asking()

    @contextmanager
    def _cursor(self, engine: Engine) -> Iterator[Any]:
        self._check()
        connection = connect_unpooled(engine, self._surroundings)
        self._open.append(connection)
        try:
            self._check()  # again: it may have been ended meanwhile
            prepare_unpooled(engine, connection)
            with closing(connection.cursor()) as cursor:
                yield cursor
        finally:
            self._open.remove(connection)
            connection.close()

    def _check(self) -> None:
        if self._over:
            raise RuntimeError("nobody wants to know any more")

    def end(self) -> None:
        """End it for good, if it waits on a socket that can be known."""
        self._over = True
        for connection in list(self._open):
            hang_up(connection)

    def abandon(self) -> None:
        """Leave its connections to the parent of this process, for good."""
        self._over = True
        for connection in list(self._open):
            leave_to_parent(connection)


def _by_lock(ours: Any) -> Callable[[Any], bool]:
    """Take a lock on the replica; return what looks for it on the primary."""
    name = f"flask_replicated.{uuid.uuid4().hex}"
    if not _ask(ours, f"SELECT GET_LOCK('{name}', 0)"):
        raise RuntimeError("no lock could be taken")
    return lambda theirs: _ask(theirs, f"SELECT IS_USED_LOCK('{name}')") is not None


def _by_start(ours: Any) -> Callable[[Any], bool]:
    """Ask the replica when it was started; return what asks the primary."""
    started = _ask(ours, _STARTED)

    def compare(theirs: Any) -> bool:
        if _ask(theirs, "SELECT pg_is_in_recovery()"):
            raise RuntimeError("the primary's address leads to a standby")
        return bool(_ask(theirs, _STARTED) == started)

    return compare


_STARTED = "SELECT EXTRACT(EPOCH FROM pg_postmaster_start_time())::text"
_WAYS = {"postgresql": _by_start, "mysql": _by_lock, "mariadb": _by_lock}


def _ask(cursor: Any, question: str) -> Any:
    cursor.execute(question)
    row = cursor.fetchone()
    # A bind's own cursor may return a dictionary.
    return next(iter(row.values())) if isinstance(row, dict) else row[0]
