"""Why the application gets no connection to a server, and what helps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from balancers.errors import error_text
from flask_replicated.errors import (
    DivergedReplicaError,
    MisconfiguredReplicaError,
    PrimaryUnavailableError,
    ReplicaLagsError,
    ReplicaSilentError,
)
from flask_replicated.replica.failures import Verdict, judge_connect
from flask_replicated.replica.misconfigured import remedy_for

if TYPE_CHECKING:
    from pathlib import Path

    from .findings import Finding
    from .servers import Server

__all__ = [
    "lag_finding",
    "missing_finding",
    "role_finding",
    "silent_finding",
    "unconnected_finding",
]


def unconnected_finding(server: Server, error: Exception) -> Finding:
    """Return what is wrong where a connect has failed.

    Args:
        server: The server.
        error: What the connect raised.
    """
    if isinstance(error, ReplicaSilentError):
        return silent_finding(server, error.seconds)
    if isinstance(error, DivergedReplicaError):
        return server.error(
            "history",
            error.why,
            "Rebuild it from the primary (pg_basebackup or pg_rewind), or let it "
            "follow the present one",
        )
    if isinstance(error, ReplicaLagsError):
        return lag_finding(server, error)
    if isinstance(error, PrimaryUnavailableError) and error.standby:
        return server.error(
            "role",
            "it is the primary's bind, and leads to a standby, which takes no writes",
            f"Let {server.setting} name the primary: its host, or all hosts with "
            "?target_session_attrs=read-write (PostgreSQL)",
        )
    if isinstance(error, PrimaryUnavailableError):
        return _unreachable(server, error.why)
    return _refused(server, error)


def _refused(server: Server, error: Exception) -> Finding:
    verdict = judge_connect(error)
    cause = getattr(error, "orig", None) or error
    said = error_text(cause)
    remedy = remedy_for(error, server.setting)
    if isinstance(error, MisconfiguredReplicaError):
        return server.error("database", error.why, remedy or "")
    if remedy is not None and verdict is Verdict.MISCONFIGURED:
        what = f"no connection can be made ({said})"
        return server.error("refused", what, remedy)
    if verdict is Verdict.BUSY:
        return server.error(
            "connections",
            f"it has no connection to spare ({said})",
            "Raise max_connections on its server, or lower pool_size and max_overflow "
            f"in {server.setting}",
        )
    return _unreachable(server, f"it cannot be reached ({said})")


def _unreachable(server: Server, what: str) -> Finding:
    return server.error(
        "unreachable",
        what,
        "Start its server, or see why it hangs; correct host and port in "
        f"{server.setting}; or let the firewall in between pass. A server that is slow "
        "to connect needs a longer REPLICATED_CONNECT_TIMEOUT",
    )


def silent_finding(server: Server, seconds: float) -> Finding:
    """Return the finding of a server that has not answered in time."""
    return _unreachable(server, f"it has not answered within {seconds:g} s")


def missing_finding(server: Server, file: Path) -> Finding:
    """Return the finding of an SQLite file that a connect would have to create."""
    return server.error(
        "unreachable",
        f"its file {str(file)!r} does not exist",
        "Create it (flask db upgrade, or db.create_all()), or correct "
        f"{server.setting}",
    )


def lag_finding(server: Server, fault: ReplicaLagsError) -> Finding:
    """Return the finding of a replica that is too far behind."""
    return server.warning(
        "lag",
        str(fault),
        "See that it is connected to the primary and that its replay is not paused "
        "(PostgreSQL: SELECT * FROM pg_stat_wal_receiver; MariaDB and MySQL: SHOW "
        "REPLICA STATUS;), or allow for more in REPLICATED_MAX_LAG",
    )


def role_finding(server: Server, *, own: bool | None) -> Finding:
    """Return the finding of a replica's bind that leads to a primary.

    Args:
        server: The replica.
        own: False if it is another one than its own; None if that is unknown.
    """
    a, writes = "a", ""
    if own is False:
        a, writes = "another", " than the one that writes go to"
    return server.error(
        "role",
        f"it is no replica but {a} primary{writes}: it was promoted, or never was one",
        f"Make it a standby of the primary again, or let {server.setting} name one; if "
        "it replicates logically, set REPLICATED_ROLE_CHECK = False",
    )
