"""What one server may do for the application, asked over one of its connections."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

from balancers.errors import error_text
from flask_replicated.consistency.sources import position_source
from flask_replicated.errors import ReplicaLagsError
from flask_replicated.replica.connect_timeout import connected_for
from flask_replicated.replica.fitness import ReplicaHistory, unfit_error
from flask_replicated.replica.primary_status import source_of
from flask_replicated.replica.queries import first_row, query_server
from flask_replicated.replica.replica_status import (
    ReplicaReport,
    no_report,
    ping,
    replication_status,
    report_queries,
)
from flask_replicated.settings.sqlite_files import shares_connection

from .connecting import lag_finding
from .facts import value_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

    from flask_replicated.replica.primary_status import PrimaryReport
    from flask_replicated.settings.config import Settings

    from .facts import Facts
    from .findings import Finding
    from .servers import Server

__all__ = ["inspect_primary", "inspect_replica", "is_doubtful", "transaction_mode"]

_MYSQL = frozenset({"mysql", "mariadb"})
_DENIED = re.compile(r"permission denied for function (\w+)")


def inspect_primary(
    connection: Any, server: Server, facts: Facts, settings: Settings
) -> Iterator[Finding]:
    """Ask a bind's primary what its replicas and clients need of it.

    Args:
        connection: A DBAPI connection, as the application has it.
        server: Whose it is.
        facts: What it has said of itself.
        settings: The application's settings.
    """
    ask = position_source(server.dialect)
    if ask is not None and _needs_positions(settings):
        yield from _refusal(connection, server, facts, ask.position, "log position")


def inspect_replica(
    connection: Any,
    server: Server,
    facts: Facts,
    settings: Settings,
    primary: PrimaryReport,
) -> Iterator[Finding]:
    """Ask a replica whether it is one, and how the application may use it.

    Args:
        connection: A DBAPI connection, as the application has it.
        server: Whose it is.
        facts: What it has said of itself.
        settings: The application's settings.
        primary: What is known of its primary.
    """
    yield from _writable(connection, server, facts)
    if server.dialect in _MYSQL:
        yield from _snapshots(connection, server)
    if settings.role_check or settings.max_lag is not None:
        yield from _fitness(connection, server, settings)
        yield from _lag_right(connection, server, facts)
    if settings.role_check and server.dialect in _MYSQL:
        yield from _source(connection, server, primary)
    ask = position_source(server.dialect)
    if ask is not None and _needs_positions(settings):
        yield from _refusal(connection, server, facts, ask.replayed, "log position")


def _needs_positions(settings: Settings) -> bool:
    """Whether clients are pinned by positions, where there are some."""
    return settings.pin != "time" and settings.role_check


# --- rights ---


def _refusal(
    connection: Any,
    server: Server,
    facts: Facts,
    ask: Callable[[Any], object],
    what: str,
) -> Iterator[Finding]:
    """Find a question that the server refuses to answer."""
    try:
        ask(connection)
    except Exception as error:  # noqa: BLE001 - drivers raise what they like
        connection.rollback()
        query_server(connection, ping)  # raises if the server is gone
        connection.rollback()
        yield server.warning(
            "privilege",
            f"{facts.account} has no right to ask for the {what} ({error_text(error)})",
            _grant(error, facts),
        )
    else:
        connection.rollback()


def _grant(error: Exception, facts: Facts) -> str:
    denied = _DENIED.search(str(error))
    if denied is None:
        return f"Run on the primary: GRANT pg_monitor TO {facts.account};"
    grant = f"GRANT EXECUTE ON FUNCTION {denied[1]} TO {facts.account};"
    return f"Run on the primary, in this database: {grant}"


def _lag_right(connection: Any, server: Server, facts: Facts) -> Iterator[Finding]:
    """Find that the account may not ask a replica for its lag."""
    if server.dialect == "postgresql":
        query = report_queries(server.dialect)[0]
        yield from _refusal(
            connection,
            server,
            facts,
            lambda driver: query_server(driver, query),
            "role and lag",
        )
    elif server.dialect in _MYSQL:
        status = query_server(connection, replication_status)
        connection.rollback()
        if status is None:
            dialect: Any = server.engine.dialect
            right = "SLAVE MONITOR" if dialect.is_mariadb else "REPLICATION CLIENT"
            yield server.warning(
                "privilege",
                f"{facts.account} has no right to ask for the replication status, and "
                "so for the lag",
                f"Run on its server: GRANT {right} ON *.* TO {facts.account};",
            )


# --- role and lag ---


def _fitness(connection: Any, server: Server, settings: Settings) -> Iterator[Finding]:
    """Find that the server is behind, or follows another history.

    One that is no replica at all has refused the connection already.
    """
    if server.routed is None or server.dialect not in {"postgresql", *_MYSQL}:
        return
    history = ReplicaHistory(server.routed.status, max_lag=settings.max_lag)
    queries = (*report_queries(server.dialect), no_report)
    found = history.ask(connection, queries, time.monotonic)
    connection.rollback()
    fault = unfit_error(server.bind, found, role_check=False, max_lag=settings.max_lag)
    if isinstance(fault, ReplicaLagsError):
        yield lag_finding(server, fault)


def is_doubtful(connection: Any, server: Server) -> bool:
    """Whether a server that was taken for a replica may be the primary itself."""
    found = _report(connection, server)
    return found.doubtful and server.dialect in _MYSQL


def _report(connection: Any, server: Server) -> ReplicaReport:
    found = query_server(connection, *report_queries(server.dialect), no_report)
    connection.rollback()
    return found


def _source(
    connection: Any, server: Server, primary: PrimaryReport
) -> Iterator[Finding]:
    """Find a MariaDB or MySQL server that replicates from elsewhere, or not at all."""
    found = _report(connection, server)
    if found.alone:
        yield server.error(
            "role",
            "it replicates from no server",
            "Let it replicate from the primary (CHANGE MASTER TO ...; START SLAVE;), "
            f"or let {server.setting} name a replica; if it replicates in another way, "
            "set REPLICATED_ROLE_CHECK = False",
        )
        return
    if found.primary is not False or primary.server is None:
        return
    source = source_of(connection)
    if source not in {None, primary.server}:
        yield server.warning(
            "role",
            f"it replicates from server_id {source}, and the primary's is "
            f"{primary.server}",
            "Let it replicate from the primary, unless a replica of the primary is in "
            "between",
        )


# --- the session ---


def _writable(connection: Any, server: Server, facts: Facts) -> Iterator[Finding]:
    """Find a session that was made read-only, and is not."""
    if facts.pooled:
        return  # each transaction is made so
    if server.routed and shares_connection(server.engine, server.routed.real):
        return  # the primary's own
    for question in _READ_ONLY.get(server.dialect, ()):
        value = value_of(connection, question)
        if value is None:
            continue
        if str(value).lower() in {"0", "off"}:
            yield server.warning(
                "writable",
                "its sessions are not read-only, so its server refuses no write",
                f"Find what listens to 'connect' of {server.setting} and undoes it; "
                "or give it an account of its own: ALTER ROLE ... SET "
                "default_transaction_read_only = on; (PostgreSQL)",
            )
        return


_READ_ONLY = {
    "postgresql": ("SELECT current_setting('default_transaction_read_only')",),
    "mysql": (
        "SELECT @@SESSION.transaction_read_only",
        "SELECT @@SESSION.tx_read_only",
    ),
    "sqlite": ("PRAGMA query_only",),
}
_READ_ONLY["mariadb"] = _READ_ONLY["mysql"]


def _snapshots(connection: Any, server: Server) -> Iterator[Finding]:
    """Find MariaDB's and MySQL's default isolation level."""
    dialect: Any = server.engine.dialect
    level = str(dialect.get_isolation_level(connection))
    connection.rollback()
    if level != "REPEATABLE READ" or value_of(connection, _AUTOCOMMIT):
        return
    yield server.warning(
        "isolation",
        "its isolation level is REPEATABLE READ: a request whose replica is lost fails "
        "at its next read, as its snapshot is gone",
        f"{server.setting} = {{'url': ..., 'isolation_level': 'READ COMMITTED'}}",
    )


_AUTOCOMMIT = "SELECT @@SESSION.autocommit"


# --- a pooler ---


def transaction_mode(
    connection: Any, server: Server, seconds: float
) -> Iterator[Finding]:
    """Find a pooler that gives each transaction to any free server connection.

    It cannot be asked. But in session mode a client that stays keeps its server
    connection. So two clients that stay, and are answered by one backend, are a proof;
    and so is one client that is answered by two. A pooler that has no second server
    connection to give proves nothing.

    Args:
        connection: A DBAPI connection through a pooler (PostgreSQL).
        server: Whose it is.
        seconds: How long a second client may take.
    """
    try:
        shared = _shares_backends(connection, server.engine, seconds)
    except Exception:  # noqa: BLE001 - it may have no connection to spare
        return
    if shared:
        yield server.warning(
            "pooler",
            "there is a connection pooler before its server, in transaction mode: what "
            "a session sets reaches other clients, and not its own next transaction",
            "Set pool_mode = session for this database in pgbouncer.ini, or let "
            f"{server.setting} name the server itself. If it is to stay, use SET LOCAL "
            "in place of SET, no isolation_level = 'AUTOCOMMIT', and before PgBouncer "
            "1.21 connect_args = {'prepare_threshold': None} with psycopg",
        )


def _shares_backends(first: Any, engine: Engine, seconds: float) -> bool:
    one = _backend(first)
    # Whatever is asked of a client that gets no server connection has to wait.
    with connected_for(engine, seconds) as second:
        return bool(one == _backend(second) or one != _backend(first))


def _backend(connection: Any) -> Any:
    """Return the pid of the backend that a transaction has."""
    pid = first_row(connection, "SELECT pg_backend_pid()")[0]
    connection.rollback()
    return pid
