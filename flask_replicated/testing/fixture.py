"""What the pytest fixture ``replicated`` gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .beliefs import replica_down, replica_lags
from .mirroring import mirror
from .recorder import RecordedDecision, assert_served, recorded_decisions

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from flask import Flask

__all__ = ["Replicated"]


class Replicated:
    """The functions of this package as methods, for one application.

    Args:
        app: The application; None for the one that is current at each call.
    """

    def __init__(self, app: Flask | None = None) -> None:
        self._app = app

    def mirror(
        self,
        app: Flask | None = None,
        replicas: Sequence[str] = ("slave_1", "slave_2"),
    ) -> AbstractContextManager[None]:
        """As :func:`flask_replicated.testing.mirror`."""
        return mirror(app or self._app, replicas)

    def assert_served(
        self, primary: int = 0, replica: int = 0, app: Flask | None = None
    ) -> AbstractContextManager[list[RecordedDecision]]:
        """As :func:`flask_replicated.testing.assert_served`."""
        return assert_served(primary, replica, app or self._app)

    def recorded_decisions(
        self, app: Flask | None = None
    ) -> AbstractContextManager[list[RecordedDecision]]:
        """As :func:`flask_replicated.testing.recorded_decisions`."""
        return recorded_decisions(app or self._app)

    def replica_down(
        self, name: str, app: Flask | None = None
    ) -> AbstractContextManager[None]:
        """As :func:`flask_replicated.testing.replica_down`."""
        return replica_down(name, app or self._app)

    def replica_lags(
        self, name: str, seconds: float, app: Flask | None = None
    ) -> AbstractContextManager[None]:
        """As :func:`flask_replicated.testing.replica_lags`."""
        return replica_lags(name, seconds, app or self._app)
