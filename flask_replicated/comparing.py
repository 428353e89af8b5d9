"""Whether a replica's server is the primary's own, where it does not say so itself."""

from __future__ import annotations

import os
import threading
import uuid
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from .sockets import hang_up, leave_to_parent
from .unpooled import connect_unpooled, prepare_unpooled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

__all__ = ["Comparison", "can_compare"]


def can_compare(engine: Engine) -> bool:
    """Whether a primary can be asked for it."""
    return engine.dialect.name in {"mysql", "mariadb"} and not engine.dialect.is_async


class Comparison:
    """Asks MariaDB or MySQL whether two engines lead to one server.

    Names, ids and folders are the same in clones of a container, and an address may
    stand for several servers. But a named lock belongs to one server alone: it is not
    replicated, and no privilege is needed to take or to see it. So one of a name that
    nobody else has is taken on the replica, and looked for on the primary.

    Its two connections are opened past the pools, and closed at once.

    Args:
        primary: The one engine.
        replica: The other.
    """

    def __init__(self, primary: Engine, replica: Engine) -> None:
        self._primary = primary
        self._replica = replica
        self._open: list[Any] = []
        self._over = False
        # The process that is asking: a forked child has not its parent's threads.
        self._asking: int | None = None

    def is_twin(self) -> bool:
        """Ask both.

        Raises:
            Exception: One of them does not answer, or another thread is asking.
        """
        if self._goes_on():
            raise RuntimeError("one that has not ended yet may hang")
        self._asking = os.getpid()
        name = f"flask_replicated.{uuid.uuid4().hex}"
        try:
            with self._cursor(self._replica) as ours:
                if not _ask(ours, f"SELECT GET_LOCK('{name}', 0)"):
                    raise RuntimeError("no lock could be taken")
                with self._cursor(self._primary) as theirs:
                    return _ask(theirs, f"SELECT IS_USED_LOCK('{name}')") is not None
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
        return self._asking == os.getpid()

    @contextmanager
    def _cursor(self, engine: Engine) -> Iterator[Any]:
        self._check()
        connection = connect_unpooled(engine)
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


def _ask(cursor: Any, question: str) -> Any:
    cursor.execute(question)
    row = cursor.fetchone()
    # A bind's own cursor may return a dictionary.
    return next(iter(row.values())) if isinstance(row, dict) else row[0]
