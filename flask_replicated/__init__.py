"""Read from a pool of database replicas in any Flask-SQLAlchemy application."""

from __future__ import annotations

from .errors import (
    AllReplicasOutError,
    ConfigurationError,
    ReplicatedError,
    WriteOnReplicaError,
)
from .extension import FlaskReplicated
from .scopes import (
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
    "ReplicatedError",
    "WriteOnReplicaError",
    "changes_database",
    "use_master_database",
    "use_slave_database",
    "using_master",
    "using_slave",
]
