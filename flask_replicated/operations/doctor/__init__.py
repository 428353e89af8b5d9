"""The doctor: what may be wrong with a set-up, found by asking every server once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .application import application_findings
from .comparisons import compare_looks
from .findings import Report
from .servers import servers_of
from .visits import look_at_all
from .web_server import worker_count

if TYPE_CHECKING:
    from flask import Flask

    from flask_replicated.routing.state import AppState

__all__ = ["examine"]


def examine(app: Flask, state: AppState, workers: int | None = None) -> Report:
    """Ask every server of an application, all at once, and compare the answers.

    Nothing is written. It takes five times ``REPLICATED_CONNECT_TIMEOUT`` at most; what
    has not answered by then is an error.

    Args:
        app: The application.
        state: What the extension keeps for it.
        workers: How many worker processes there are; None for what the environment
            says (``WEB_CONCURRENCY``), or else for each one alone.
    """
    workers = workers or worker_count()
    servers = servers_of(app, state)
    looks = look_at_all(state, servers, _version_table(app))
    found = [finding for look in looks for finding in look.findings]
    found += compare_looks(looks, state.settings, workers)
    found += application_findings(app, state)
    found.sort(key=lambda one: one.severity)  # errors first; else as they were found
    return Report(tuple(found), len(servers), workers)


def _version_table(app: Flask) -> str:
    """Return Alembic's table, as Flask-Migrate was told to call it."""
    arguments = getattr(app.extensions.get("migrate"), "configure_args", {})
    names = (
        arguments.get("version_table_schema"),
        arguments.get("version_table", "alembic_version"),
    )
    return ".".join(str(name) for name in names if name)
