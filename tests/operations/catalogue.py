"""What an operation is, and the list of all of them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.operations.world import World

SQLITE, POSTGRESQL, MARIADB = SERVERS = ("sqlite", "postgresql", "mariadb")

Run: TypeAlias = "Callable[[World], object]"

ROOMS = (
    "orm_reads",
    "orm_loads",
    "core_reads",
    "orm_writes",
    "dml",
    "dml_dialects",
    "locks",
    "texts",
    "texts_dialects",
    "functions",
    "schema",
    "connections",
    "preferences",
    "binds",
)


@dataclass(frozen=True)
class Operation:
    """One way to use the database.

    Attributes:
        name: What the table calls it.
        run: Does it. A generator prepares up to its ``yield`` and operates after.
        why: The reason that the table gives.
        servers: Where it can run; the table shows what the first one did.
        intended: The cells that are right, where they are not yet observed.
    """

    name: str
    run: Run
    why: str
    servers: tuple[str, ...] = SERVERS
    intended: tuple[str, ...] | None = None

    @property
    def title(self) -> str:
        """The first cell of its row."""
        only = "" if self.servers[0] == SQLITE else f" ({_SHOWN[self.servers]})"
        return f"{self.name}{only}"


_SHOWN = {
    (POSTGRESQL,): "PostgreSQL",
    (MARIADB,): "MariaDB",
    (POSTGRESQL, MARIADB): "PostgreSQL, MariaDB",
}


@dataclass
class Section:
    """Operations that stand together in the table.

    Attributes:
        title: Its heading.
        operations: In the order of the table.
    """

    title: str
    operations: list[Operation] = field(default_factory=list)

    def operation(
        self,
        name: str,
        *,
        on: tuple[str, ...] = SERVERS,
        intended: tuple[str, ...] | None = None,
    ) -> Callable[[Run], Run]:
        """Add the decorated function, whose docstring is the reason."""

        def add(run: Run) -> Run:
            why = inspect.getdoc(run) or ""
            self.operations.append(Operation(name, run, why, on, intended))
            return run

        return add

    def text(self, sql: str, why: str, *, on: tuple[str, ...] = SERVERS) -> None:
        """Add a string of SQL, executed by the session."""

        def run(world: World) -> object:
            return world.text(sql)

        shown = sql.replace("\n", "⏎").replace("|", "\\|")
        self.operations.append(Operation(f"`{shown.strip()}`", run, why, on))


def sections() -> list[Section]:
    """Return the whole catalogue, in the order of the table."""
    found = (import_module(f"tests.operations.{room}").SECTION for room in ROOMS)
    return list(found)


def operations() -> list[Operation]:
    """Return every operation, in the order of the table."""
    return [operation for section in sections() for operation in section.operations]
