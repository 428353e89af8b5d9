"""Puts routed engines, and responses with pins, in the place of an application's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flask_replicated.consistency.tokens import bind_id
from flask_replicated.fleet.build import routed_engine
from flask_replicated.fleet.fleet import fleet_of
from flask_replicated.routing.responses import Explain, pin_responses
from flask_replicated.settings.binds import replicated_bind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flask import Flask

    from flask_replicated.adapters import Adapter
    from flask_replicated.engine.engines import RoutedEngine
    from flask_replicated.routing.state import AppState
    from flask_replicated.settings.binds import BindRoles

    from .plans import Plan
    from .waiting import Waiting

__all__ = ["pin_responses_of", "publish", "route"]


def route(plan: Plan, state: AppState) -> None:
    """Put the replicas of a plan into pools, and let the application use those."""
    adapter, binds, copies, sources = plan
    routes: dict[str | None, RoutedEngine] = {}
    observed = [] if state.observation is None else _owners(adapter, binds)
    for owner in dict.fromkeys([*copies, *map(replicated_bind, sources), *observed]):
        key = adapter.key(owner)
        targets = copies.get(owner, {})
        setting = adapter.primary_bind(owner).setting
        routes[key] = routed_engine(
            state, adapter.engines[key], targets, setting, adapter.setting
        )
        fleet = fleet_of(routes[key])
        fleet.adapter, fleet.owner = adapter, owner
    if sources:
        # Only here, as few need it.
        from flask_replicated.fleet.discovery import Discovery  # noqa: PLC0415
    for name, source in sources.items():
        key = adapter.key(replicated_bind(name))
        fleet_of(routes[key]).add_discovery(Discovery(name, source))
    adapter.hide(binds)
    publish(adapter, routes, state)


def _owners(adapter: Adapter, binds: BindRoles) -> list[str | None]:
    """Return the binds that may have replicas one day."""
    hidden = binds.hidden()
    return [
        None if key == adapter.default else key
        for key in adapter.engines
        if key not in hidden
    ]


def publish(
    adapter: Adapter, routes: Mapping[str | None, RoutedEngine], state: AppState
) -> None:
    """Let an application use routed engines.

    Args:
        adapter: What owns its engines.
        routes: The routed engines by the adapter's keys.
        state: The application's state.
    """
    if routes:
        adapter.route(routes)
    if adapter.default is None:
        state.engines, state.metadatas = adapter.engines, adapter.metadatas
    for key, routed in routes.items():
        plain = key == adapter.default and not adapter.prefix
        routed.reads.bind = None if plain else f"{adapter.prefix}{key}"
        routed.announcer.bind = routed.reads.bind
        state.routes[routed.reads.bind] = routed
        # Engines for sync and async sessions lead to the same databases.
        routed.bind = bind_id(None if key == adapter.default else key)


def pin_responses_of(
    app: Flask, state: AppState, waiting: Waiting | None = None
) -> None:
    """Let the responses of an application carry pins."""
    around: Any = waiting or app
    explain = Explain(state.settings.explain, app.config, state.add_reads)
    wants_starts = state.observation or state.advice
    around.wsgi_app = pin_responses(
        around.wsgi_app, state.responses, state.response_starts, wants_starts, explain
    )
