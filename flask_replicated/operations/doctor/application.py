"""What an application's own settings tell, without asking any server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flask_replicated.adapters import adapters_of
from flask_replicated.settings.bind_names import RULE, unused_binds
from flask_replicated.sql.dml import Identifier, TableWrite

from .findings import Finding
from .web_server import web_server_findings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flask import Flask

    from flask_replicated.routing.state import AppState

__all__ = ["application_findings"]


def application_findings(app: Flask, state: AppState) -> Iterator[Finding]:
    """Examine an application, with or without replicas.

    Args:
        app: The application.
        state: What the extension keeps for it.
    """
    served = bool(state.routes)
    for key, _, meant in unused_binds(adapters_of(app), served=served):
        name = "as a replica is called" if meant is None else repr(meant)
        yield Finding(
            "warning",
            "misnamed",
            key,
            "it is not taken for a replica, and stays an ordinary bind",
            f"If it is meant as one, call it {name}. {RULE}",
        )
    if served:
        yield from _with_replicas(app, state)


def _with_replicas(app: Flask, state: AppState) -> Iterator[Finding]:
    if not app.secret_key:
        yield Finding(
            "warning",
            "secret_key",
            None,
            "SECRET_KEY is not set, so what pins a client is not signed, and a client "
            "can forge it",
            "Set SECRET_KEY to a long random string, the same in all workers",
        )
    yield from _session_table(app, state)
    yield from web_server_findings()


def _session_table(app: Flask, state: AppState) -> Iterator[Finding]:
    """Find Flask-Session's table, whose writes would pin each visitor."""
    settings = state.settings
    model: Any = getattr(app.session_interface, "sql_session_model", None)
    pins = settings.guarantee != "none" and settings.pin_seconds > 0
    writes_always = app.config.get("SESSION_REFRESH_EACH_REQUEST", True)
    if model is None or not pins or not writes_always:
        return
    bind = getattr(model, "__bind_key__", None)
    routed = state.routes.get(bind)
    if routed is None:
        return
    table = model.__table__
    schema = None if table.schema is None else Identifier(table.schema, quoted=True)
    write = TableWrite(schema, Identifier(table.name, quoted=True), None)
    if state.unpinned.covers([write], routed.dialect):
        return
    known: dict[str, object] = {
        name: "*" if columns is None else sorted(columns)
        for name, columns in settings.unpinned.items()
    }
    rules = {**known, table.fullname: "*"}
    yield Finding(
        "warning",
        "session_table",
        bind or "",
        f"Flask-Session writes its table {table.fullname!r} in each request, which "
        "pins each visitor to the primary",
        f"REPLICATED_UNPINNED = {rules!r}, and after Session(app): "
        "app.session_interface.sql_session_model.__replicated__ = 'master'",
    )
