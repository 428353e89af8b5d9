"""The tables at the end, one for each suite."""

from __future__ import annotations

import platform
from importlib.metadata import version
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from benchmarks.pairs import Bound, Comparison

__all__ = ["make_tables", "versions"]

_PACKAGES = ("SQLAlchemy", "Flask-SQLAlchemy", "Flask")


def versions() -> str:
    """Return what the figures were taken with."""
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return ", ".join([python, *(f"{name} {version(name)}" for name in _PACKAGES)])


def make_tables(found: Iterable[Comparison]) -> Iterator[Table]:
    """Yield a table for each suite; all of them fit 80 characters."""
    for (suite, peer), group in groupby(found, attrgetter("suite", "peer")):
        table = Table(
            title=f"\n{suite}, beside {peer}",
            title_justify="left",
            box=None,
            padding=(0, 2, 0, 0),
        )
        table.add_column("case", min_width=27)
        for title in ("time", "beside", "ratio", "±", "bound"):
            table.add_column(title, justify="right", no_wrap=True)
        table.add_column("", min_width=4)
        for one in group:
            table.add_row(*_cells(one))
        yield table


def _cells(one: Comparison) -> Iterator[str]:
    yield one.case
    yield _duration(one.seconds)
    yield _duration(one.peer_seconds)
    yield f"{one.ratio:.3f}"
    yield f"{one.spread:.3f}"
    yield _shown(one.bound)
    yield _verdict(one)


def _duration(seconds: float) -> str:
    for unit, size in (("ns", 1e-6), ("us", 1e-3)):
        if seconds < size:
            return f"{seconds / size * 1000:.3g} {unit}"
    return f"{seconds * 1000:.3g} ms"


def _shown(bound: Bound | None) -> str:
    if bound is None:
        return ""
    aim = "" if bound.aim is None else f" ({bound.aim:g})"
    return f"{bound.required:g}{aim}"


def _verdict(one: Comparison) -> str:
    if one.bound is None:
        return ""
    if one.exceeded:
        return "[bold red]over"
    missed = one.bound.aim is not None and one.ratio > one.bound.aim
    return "[yellow]near" if missed else "[green]ok"
