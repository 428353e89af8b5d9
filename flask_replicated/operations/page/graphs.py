"""Small graphs, as the text of SVG paths."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["HEIGHT", "WIDTH", "Graph", "graph", "rates"]

WIDTH, HEIGHT = 120, 28
"""The size of a graph, in its own units."""
_LONGEST_GAP = 20.0
"""Seconds without a figure that a line still bridges."""


class Graph(NamedTuple):
    """One line.

    Attributes:
        path: The text of an SVG path; empty if there is nothing to draw.
        area: The same of what is below the line.
        highest: The highest one; None if there is none at all.
    """

    path: str
    area: str
    highest: float | None


def graph(figures: Iterable[tuple[float, float | None]], seconds: float) -> Graph:
    """Draw figures of the last so many seconds.

    Args:
        figures: The moment of each, and the figure; the last moment is now.
        seconds: How many.
    """
    found = list(figures)
    known = [figure for _, figure in found if figure is not None]
    if not known:
        return Graph("", "", None)
    now, highest = found[-1][0], max(known)
    scale = (HEIGHT - 2) / (highest or 1)
    lines: list[list[str]] = []
    before: float | None = None
    for at, figure in found:
        if figure is None or now - at > seconds:
            before = None
            continue
        x = round(WIDTH * (1 - (now - at) / seconds))
        y = round(HEIGHT - 1 - figure * scale, 1)
        if before is None or at - before > _LONGEST_GAP:
            lines.append([])
        lines[-1].append(f"{x} {y:g}")
        before = at
    return Graph(
        "".join(f"M{'L'.join(line)}" for line in lines),
        "".join(map(_below, lines)),
        highest,
    )


def _below(line: list[str]) -> str:
    first = line[0].partition(" ")[0]
    return f"M{first} {HEIGHT - 1}L{'L'.join(line)}V{HEIGHT - 1}H{first}Z"


def rates(
    totals: Iterable[tuple[float, float]],
) -> Iterable[tuple[float, float | None]]:
    """Return how much is added in each second, from totals that only grow.

    Args:
        totals: The moment of each, and the total.
    """
    before: tuple[float, float] | None = None
    for at, total in totals:
        rate = None
        if before is not None and at > before[0] and total >= before[1]:
            rate = (total - before[1]) / (at - before[0])
        yield at, rate
        before = at, total
