"""When each replica showed what, seen from beside the application."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import defaultdict
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from tests.background import Background

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


__all__ = ["Watch"]

_EVERY: Final = 0.02


class _Sightings:
    """When a server was first seen with which versions."""

    def __init__(self) -> None:
        self._times: list[float] = []
        self._versions: list[tuple[int, ...]] = []

    def add(self, at: float, versions: tuple[int, ...]) -> None:
        """Note what it shows."""
        if not self._versions or self._versions[-1] != versions:
            self._versions.append(versions)
            self._times.append(at)

    def first(self, register: int, version: int) -> float:
        """Return when a register was there at this version; infinity if never."""
        index = bisect_left(self._versions, version, key=lambda one: one[register])
        return self._times[index] if index < len(self._times) else float("inf")


class Watch(Background):
    """Look at each standby again and again, over connections of its own.

    Args:
        urls: Of the standbys, by name.
        schema: What the table is in.
    """

    def __init__(self, urls: Mapping[str, str], schema: str) -> None:
        self._sightings: dict[str, _Sightings] = defaultdict(_Sightings)
        super().__init__()
        self._looks = sa.text(f"select version from {schema}.register order by id")
        self._threads = [
            threading.Thread(target=self._run, args=(name, url), name=f"watch-{name}")
            for name, url in urls.items()
        ]

    def add(self, name: str, at: float, versions: tuple[int, ...]) -> None:
        """Note what one of them shows, in the order of time."""
        self._sightings[name].add(at, versions)

    def first(self, register: int, version: int, *, but: str = "") -> float:
        """Return when any of them, but one, showed a version; infinity if none did."""
        others = (one for name, one in self._sightings.items() if name != but)
        times = (one.first(register, version) for one in others)
        return min(times, default=float("inf"))

    def _run(self, name: str, url: str) -> None:
        engine = sa.create_engine(
            url,
            isolation_level="AUTOCOMMIT",
            poolclass=sa.NullPool,
            connect_args={"connect_timeout": 2},
        )
        while not self._over.wait(_EVERY):
            try:
                with engine.connect() as connection:
                    self._look(connection, name)
            except sa.exc.DBAPIError:
                continue  # it is dead, or has ended our connection

    def _look(self, connection: sa.Connection, name: str) -> None:
        while not self._over.wait(_EVERY):
            versions: Iterable[int] = connection.scalars(self._looks)
            seen = tuple(versions)
            self.add(name, time.monotonic(), seen)
