"""Replicas for an application that has none, for the time of a block."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import NullPool

from flask_replicated.adapters import Adapter, adapters_of
from flask_replicated.errors import ConfigurationError
from flask_replicated.extension.routes import pin_responses_of, publish
from flask_replicated.fleet.build import routed_engine
from flask_replicated.fleet.fleet import fleet_of
from flask_replicated.settings.binds import is_replica_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import Engine

    from flask_replicated.engine.engines import RoutedEngine

    from .kit import Kit

__all__ = ["virtual_replicas"]


@contextmanager
def virtual_replicas(kit: Kit, names: Sequence[str]) -> Iterator[None]:
    """Return a block in which the default bind has replicas.

    Their engines are never connected: ``mirror()`` gives them connections.

    Args:
        kit: What the tests have put in place.
        names: The replicas' names.

    Raises:
        ConfigurationError: A name is no replica's, or there is no default bind.
    """
    _check(names)
    app, state = kit.app, kit.state
    with ExitStack() as stack:
        for adapter in adapters_of(app):
            if adapter.default in adapter.engines:
                routed = _routed(kit, adapter, names)
                routes = {adapter.default: routed}
                stack.enter_context(_published(kit, adapter, routes))
        if not state.routes:
            raise ConfigurationError(
                "SQLALCHEMY_DATABASE_URI",
                None,
                "mirror() needs a default bind whose replicas it can stand for.",
            )
        stack.enter_context(_pinning(kit))
        yield


def _check(names: Sequence[str]) -> None:
    if isinstance(names, str) or not names:
        raise ConfigurationError(
            "mirror(replicas)", names, "name one replica or more: ['slave_1']."
        )
    for name in names:
        if not is_replica_of(name, None):
            raise ConfigurationError(
                "mirror(replicas)",
                name,
                "replicas of the default bind are called 'slave', 'slave_1', ...",
            )


def _routed(kit: Kit, adapter: Adapter, names: Sequence[str]) -> RoutedEngine:
    """Return the routed engine of the default bind.

    It is made once, since the primary's engine keeps its listeners.
    """
    found: Any = adapter.engines[adapter.default]
    if isinstance(found, sa.Connection):  # a test has put it there
        found = found.engine
    real: Engine = getattr(found, "real", found)
    key = (adapter.setting, *names)
    known = kit.virtual.get(key)
    if known is not None and known.real is real:
        return known
    targets = {name: sa.create_engine(real.url, poolclass=NullPool) for name in names}
    made = routed_engine(kit.state, real, targets, adapter.primary, adapter.setting)
    fleet = fleet_of(made)
    fleet.adapter, fleet.owner = adapter, None
    kit.virtual[key] = made
    return made


@contextmanager
def _published(
    kit: Kit, adapter: Adapter, routes: dict[str | None, RoutedEngine]
) -> Iterator[None]:
    engines: dict[str | None, Any] = adapter.engines
    known = set(kit.routes)
    stand_in = engines[adapter.default]
    publish(adapter, routes, kit.state)
    if isinstance(stand_in, sa.Connection):
        engines[adapter.default] = stand_in
    try:
        yield
    finally:
        for routed in routes.values():
            _remove_added(routed)
        for key in set(kit.routes) - known:
            del kit.routes[key]
        adapter.unroute(routes)


def _remove_added(routed: RoutedEngine) -> None:
    """Remove the replicas that ``add()`` has added inside the block."""
    fleet, engines = fleet_of(routed), routed.app.engines
    for member in routed.replicas.replica_pool.members:
        if member.name in engines:
            fleet.remove(member.name)


@contextmanager
def _pinning(kit: Kit) -> Iterator[None]:
    """Return a block in which responses carry pins."""
    app, state = kit.app, kit.state
    own, before = vars(app), app.wsgi_app
    pin_responses_of(app, state)
    ours = app.wsgi_app
    functions = app.after_request_funcs.setdefault(None, [])
    save = state.responses.save_in_session
    if state.responses.tokens.in_session:
        functions.append(save)
    try:
        yield
    finally:
        if save in functions:
            functions.remove(save)
        if app.wsgi_app is ours:
            own["wsgi_app"] = before
