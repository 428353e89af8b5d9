"""Read from a pool of database replicas in any Flask-SQLAlchemy application.

A name is imported when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .consistency.guarantees import guarantee, using_token
    from .engine.session import RoutedSession
    from .errors import (
        AllReplicasOutError,
        ConfigurationError,
        PrimaryUnavailableError,
        ReplicatedError,
        StaleReadError,
        WriteOnReplicaError,
    )
    from .extension import FlaskReplicated
    from .fleet.build import replicated_engine
    from .routing.explanations import Explanation
    from .routing.overrides import (
        changes_database,
        use_master_database,
        use_slave_database,
        using_master,
        using_slave,
    )
    from .routing.snapshots import ReplicaPool, ReplicaPoolSnapshot, ReplicaSnapshot

__all__ = [
    "AllReplicasOutError",
    "ConfigurationError",
    "Explanation",
    "FlaskReplicated",
    "PrimaryUnavailableError",
    "ReplicaPool",
    "ReplicaPoolSnapshot",
    "ReplicaSnapshot",
    "ReplicatedError",
    "RoutedSession",
    "StaleReadError",
    "WriteOnReplicaError",
    "changes_database",
    "guarantee",
    "replicated_engine",
    "use_master_database",
    "use_slave_database",
    "using_master",
    "using_slave",
    "using_token",
]

_HOMES = MappingProxyType(
    {
        "AllReplicasOutError": "errors",
        "ConfigurationError": "errors",
        "Explanation": "routing.explanations",
        "FlaskReplicated": "extension",
        "PrimaryUnavailableError": "errors",
        "ReplicaPool": "routing.snapshots",
        "ReplicaPoolSnapshot": "routing.snapshots",
        "ReplicaSnapshot": "routing.snapshots",
        "ReplicatedError": "errors",
        "RoutedSession": "engine.session",
        "StaleReadError": "errors",
        "WriteOnReplicaError": "errors",
        "changes_database": "routing.overrides",
        "guarantee": "consistency.guarantees",
        "replicated_engine": "fleet.build",
        "use_master_database": "routing.overrides",
        "use_slave_database": "routing.overrides",
        "using_master": "routing.overrides",
        "using_slave": "routing.overrides",
        "using_token": "consistency.guarantees",
    }
)
"""The module of each name."""


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = found  # it is asked for here once
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
