"""Tells of a replica that goes on lacking what reads name.

A migration is replayed after some seconds. What is still missing then will be: the
bind leads to another schema, or the replica has a part of the database only. Nobody
notices, because the primary answers such reads.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LackingLog"]

logger = logging.getLogger("flask_replicated")

_SECONDS = 60.0
"""For how long something may be missing before that is told."""
_APART = 1800.0
"""Seconds without a read of it after which it is missing anew: a job may make the same
table each night.
"""
_MANY = 100  # errors that are remembered


class LackingLog:
    """Tells once of each thing that a replica has not got after a minute.

    Args:
        setting: Returns the setting of a replica by its name, in Python syntax.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self, setting: Callable[[str], str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._setting = setting
        self._clock = clock
        # When it was missed first and last, by replica and message; None once told.
        self._missed: dict[tuple[str, str], tuple[float, float] | None] = {}

    def note(self, replica: str, error: Exception) -> None:
        """Note that the primary has answered in place of a replica.

        Args:
            replica: Its name.
            error: What the replica has said.
        """
        message = str(getattr(error, "orig", error)).partition("\n")[0]
        now, key = self._clock(), (replica, message)
        if key not in self._missed and len(self._missed) >= _MANY:
            self._missed = {}  # of a program that writes SQL as it runs
        missed = self._missed.setdefault(key, (now, now))
        if missed is None:
            return
        since = now if now - missed[1] > _APART else missed[0]
        told = now - since >= _SECONDS
        self._missed[key] = None if told else (since, now)
        if not told:
            return
        logger.warning(
            "replica %r has lacked for %.0f s what reads name, and the primary answers "
            "them: %s. If it is not behind a migration, let %s lead to the same schema "
            "(search_path, and the schema that is called like the account), or let its "
            "server replicate the whole database. An unlogged table is on no replica: "
            "__replicated__ = 'master' on its model spares the attempt.",
            replica,
            now - since,
            message,
            self._setting(replica),
        )
