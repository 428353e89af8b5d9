"""Tables on a terminal: by rich where that is installed, else in plain text."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

import click

from flask_replicated.errors.redaction import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["print_table"]


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table.

    Args:
        columns: The headings.
        rows: The cells, as many in each row.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    if not (sys.stdout.isatty() and _print_by_rich(columns, cells)):
        _print_plainly([list(columns), *cells])


def _print_by_rich(columns: Sequence[str], rows: list[list[str]]) -> bool:
    """Print a table by rich; return whether that is installed."""
    try:
        # By name for mypy: rich is optional.
        console: Any = importlib.import_module("rich.console")
        table: Any = importlib.import_module("rich.table")
        text: Any = importlib.import_module("rich.text")
    except ImportError:
        return False
    shown = table.Table(*columns)
    for row in rows:
        shown.add_row(*map(text.Text, row))  # else brackets in a name were markup
    console.Console().print(shown)
    return True


def _print_plainly(rows: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(padded).rstrip())
