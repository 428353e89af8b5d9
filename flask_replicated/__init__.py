"""Read from a pool of database replicas in any Flask-SQLAlchemy application."""

from __future__ import annotations

from . import connecting, connections, engines, events, session, transactions
from .counting import ReplicaPool, ReplicaPoolSnapshot, ReplicaSnapshot
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
    "ReplicaPool",
    "ReplicaPoolSnapshot",
    "ReplicaSnapshot",
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

# SQLAlchemy's warnings name the line that has called it: the first one outside its own
# modules, which it knows by their names. What is called through these is called by the
# program, and so the warning is to name its line.
for _between in (connecting, connections, engines, events, session, transactions):
    _between.__name__ = f"sqlalchemy.ext.{_between.__name__}"
del _between
