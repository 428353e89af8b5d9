"""The table in the documentation: made from what was observed, and compared."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from tests.operations.catalogue import sections
from tests.operations.contexts import COLUMNS, CONTEXTS
from tests.operations.observe import Cell, observe

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tests.operations.catalogue import Operation
    from tests.operations.contexts import Context
    from tests.operations.world import World

DOCUMENT = Path(__file__).parents[2] / "docs" / "routing.md"
BEGIN = "<!-- table: begin -->"
END = "<!-- table: end -->"
_ROW = re.compile(r"^\| (.+) \|$", re.MULTILINE)


class UnevenError(AssertionError):
    """Contexts that share a column differ in a cell."""


def merge(cells: Mapping[Context, Cell]) -> list[str]:
    """Return one cell for each column.

    Raises:
        UnevenError: Two contexts of one column have different outcomes.
    """
    return [_merge_column(cells, column) for column in COLUMNS]


def _merge_column(cells: Mapping[Context, Cell], column: str) -> str:
    found = {c.name: cell for c, cell in cells.items() if c.column == column}
    outcomes = {cell.outcome for cell in found.values()}
    latches = {cell.latched for cell in found.values()} - {None}
    if len(outcomes) != 1 or len(latches) > 1:
        raise UnevenError(f"{column}: {found}")
    return str(Cell(outcomes.pop(), latches.pop() if latches else None))


def row_of(
    world: World, operation: Operation, contexts: Iterable[Context] = CONTEXTS
) -> list[str]:
    """Return an operation's row: its title, a cell for each column, the reason."""
    cells = {context: observe(world, operation, context) for context in contexts}
    return [operation.title, *merge(cells), operation.why]


def render(rows: Mapping[str, list[str]]) -> str:
    """Return the whole table, from rows by title."""
    lines = ["| | context |", "|---|---|"]
    for column in COLUMNS:
        names = "; ".join(c.name for c in CONTEXTS if c.column == column)
        lines.append(f"| **{column}** | {names} |")
    for section in sections():
        lines += ["", f"### {section.title}", ""]
        lines.append(_line(["operation", *COLUMNS, "reason"]))
        lines.append("|" + "---|" * (len(COLUMNS) + 2))
        lines += [_line(rows[operation.title]) for operation in section.operations]
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def published() -> dict[str, list[str]]:
    """Return the rows of the document by their titles."""
    lines = _ROW.findall(between())
    rows = [re.split(r" (?<!\\)\| ", line) for line in lines]
    return {row[0]: row for row in rows if len(row) == len(COLUMNS) + 2}


def between() -> str:
    """Return what stands between the markers in the document."""
    text = DOCUMENT.read_text()
    return text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip("\n")


def publish(table: str) -> None:
    """Replace what stands between the markers in the document."""
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}")
