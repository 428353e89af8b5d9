"""Read from a pool of database replicas in any Flask-SQLAlchemy application."""

from __future__ import annotations

from .errors import (
    AllReplicasOutError,
    ConfigurationError,
    PrimaryUnavailableError,
    ReplicatedError,
    StaleReadError,
    WriteOnReplicaError,
)
from .extension import FlaskReplicated
from .pools import replicated_engine
from .scopes import (
    changes_database,
    use_master_database,
    use_slave_database,
    using_master,
    using_slave,
)
from .session import RoutedSession

__all__ = [
    "AllReplicasOutError",
    "ConfigurationError",
    "FlaskReplicated",
    "PrimaryUnavailableError",
    "ReplicatedError",
    "RoutedSession",
    "StaleReadError",
    "WriteOnReplicaError",
    "changes_database",
    "replicated_engine",
    "use_master_database",
    "use_slave_database",
    "using_master",
    "using_slave",
]
