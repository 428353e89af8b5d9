"""Read from a pool of database replicas in any Flask-SQLAlchemy application."""

from __future__ import annotations

from .engine import connections, engines, events, session, transactions
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
from .replica import throttle
from .routing.counts import ReplicaPool, ReplicaPoolSnapshot, ReplicaSnapshot
from .routing.overrides import (
    changes_database,
    use_master_database,
    use_slave_database,
    using_master,
    using_slave,
)

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

# SQLAlchemy's warnings name the first line outside its own modules, which it knows by
# their names. These modules call it on behalf of the program, whose line the warning is
# to name.
for _between in (connections, engines, events, session, throttle, transactions):
    _between.__name__ = f"sqlalchemy.ext.{_between.__name__}"
del _between
