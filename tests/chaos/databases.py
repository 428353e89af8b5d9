"""The databases whose servers a run can be about."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from . import mariadb, postgresql

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from .faults import Fault
    from .servers import Servers

__all__ = ["DATABASES", "MARIADB", "POSTGRESQL", "Database"]


@dataclass(frozen=True)
class Database:
    """One of them.

    Attributes:
        faults: What may happen to a replica, by name.
        options: Of the replicas' engines.
        servers: Makes a primary and three replicas, told whom to tell each step.
        prepare: Creates the application's tables anew.
        schema: What its tables are in, for somebody who connects to none.
        url: Returns the URL of the server on a port.
    """

    faults: Mapping[str, Fault]
    options: Mapping[str, Any]
    servers: Callable[[Callable[[str], None]], AbstractContextManager[Servers]]
    prepare: Callable[[Any], None]
    schema: str
    url: Callable[[int], str]

    def entries(self, cluster: Servers) -> Counter[str]:
        """Return how often each key is there, that somebody has written."""
        rows = cluster.primary.execute(f"select name from {self.schema}.entry")
        return Counter(name for (name,) in rows)


POSTGRESQL: Final = Database(
    postgresql.FAULTS,
    postgresql.OPTIONS,
    postgresql.servers,
    postgresql.prepare,
    postgresql.SCHEMA,
    postgresql.url,
)
MARIADB: Final = Database(
    mariadb.FAULTS,
    mariadb.OPTIONS,
    mariadb.servers,
    mariadb.prepare,
    mariadb.SCHEMA,
    mariadb.url,
)
DATABASES: Final = {"postgresql": POSTGRESQL, "mariadb": MARIADB}
