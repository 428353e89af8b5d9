"""Asks whoever answers at a replica's address what it does for its clients.

Over several new connections at once: where the address stands for several servers, each
may reach another one, and one of them may hang.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

from .activity import list_backends
from .sockets import hang_up, leave_to_parent
from .unpooled import connect_unpooled, prepare_unpooled

if TYPE_CHECKING:
    from queue import SimpleQueue

    from sqlalchemy import Engine

    from .activity import Backend
    from .unpooled import Surroundings

__all__ = ["RoleQuery"]

_TRIES = 3


class RoleQuery:
    """One inquiry, in threads of its own.

    Args:
        engine: The replica's.
        deadline: The clock's reading at which nobody waits for more answers.
        surroundings: Returns the block to connect in.

    Attributes:
        deadline: The same.
        backends: What was found so far.
    """

    def __init__(
        self,
        engine: Engine,
        deadline: float,
        surroundings: Surroundings = contextlib.nullcontext,
    ) -> None:
        self.deadline = deadline
        self.backends: list[Backend] = []
        self._engine = engine
        self._surroundings = surroundings
        self._left = 0
        self._over = self._abandoned = False
        # Each thread has a place of its own, and the count a lock.
        self._open: list[Any] = [None] * _TRIES
        self._lock = threading.Lock()

    @property
    def done(self) -> bool:
        """Whether no more answers will come."""
        return not self._left

    def begin(self, done: SimpleQueue[Any]) -> None:
        """Ask.

        Args:
            done: Gets None once no more answers will come.
        """
        for place in range(_TRIES):
            thread = threading.Thread(
                target=self._run,
                args=(place, done),
                name="flask_replicated inquiry",
                daemon=True,
            )
            self._left += 1
            try:
                thread.start()
            except RuntimeError:  # no more threads
                self._left -= 1

    def _run(self, place: int, done: SimpleQueue[Any]) -> None:
        try:
            found = self._ask(place)
        except Exception:  # noqa: BLE001 - one that cannot be asked tells nothing
            found = []
        with self._lock:
            self.backends += found
            self._left -= 1
        if self.done:
            done.put(None)
        while self._abandoned:
            done.get()  # a greenlet in a forked child

    def _ask(self, place: int) -> list[Backend]:
        connection = connect_unpooled(self._engine, self._surroundings)
        self._open[place] = connection
        try:
            if self._over:  # looked at once it can be ended, or it might be missed
                return []
            prepare_unpooled(self._engine, connection)
            return list_backends(self._engine.dialect.name, connection)
        finally:
            with contextlib.suppress(Exception):
                connection.close()
            self._open[place] = None

    def end(self) -> None:
        """End what still waits on a socket that can be known."""
        self._over = True
        for connection in filter(None, self._open):
            hang_up(connection)

    def abandon(self) -> None:
        """Leave the connections to the parent of this process, for good."""
        self._over = self._abandoned = True
        for connection in filter(None, self._open):
            leave_to_parent(connection)
