"""Reads through a routed engine that has no application."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import sqlalchemy as sa

from flask_replicated import using_slave

if TYPE_CHECKING:
    from flask_replicated.engine.engines import RoutedEngine
    from flask_replicated.fleet.monitor import Monitor

__all__ = ["live", "monitor_of", "read"]


def read(engine: RoutedEngine) -> None:
    """Read from a replica."""
    with using_slave(), engine.connect() as connection:
        connection.execute(sa.text("SELECT 1")).all()


def live(engine: RoutedEngine) -> set[str]:
    """Return who is in rotation."""
    return {member.name for member in engine.replicas.replica_pool.live}


def monitor_of(engine: RoutedEngine) -> Monitor:
    """Return what probes the replicas, of which the engine knows only a part."""
    return cast("Monitor", engine.monitor)
