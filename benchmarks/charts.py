"""Charts as SVG, each for light and for dark pages, without a library."""

from __future__ import annotations

import math
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = ["Bar", "bars", "lines", "picture", "write"]

_WIDTH: Final = 860
_LEFT: Final = 285
_RIGHT: Final = 190
_ROW: Final = 24
_TOP: Final = 58
_PLOT: Final = 240


class _Theme(NamedTuple):
    ground: str
    ink: str
    faint: str
    ours: str
    others: str
    lines: tuple[str, ...]


_THEMES: Final = {
    "light": _Theme(
        *("#ffffff", "#1f2328", "#d0d7de", "#0969da", "#8c959f"),
        ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#cf222e", "#57606a"),
    ),
    "dark": _Theme(
        *("#0d1117", "#e6edf3", "#30363d", "#58a6ff", "#6e7681"),
        ("#58a6ff", "#f0883e", "#3fb950", "#bc8cff", "#ff7b72", "#8b949e"),
    ),
}


class Bar(NamedTuple):
    """One bar.

    Attributes:
        label: What is shown.
        value: Its length; None where nothing was measured.
        text: What is written behind it.
        ours: Whether it is this project's.
    """

    label: str
    value: float | None
    text: str
    ours: bool = False


def write(folder: Path, name: str, chart: Callable[[_Theme], str]) -> None:
    """Write a chart to ``<name>-light.svg`` and ``<name>-dark.svg``."""
    folder.mkdir(parents=True, exist_ok=True)
    for theme, colours in _THEMES.items():
        (folder / f"{name}-{theme}.svg").write_text(chart(colours))


def picture(folder: str, name: str, alt: str) -> str:
    """Return the HTML that shows the one that fits the reader's page."""
    dark, light = (f"{folder}/{name}-{theme}.svg" for theme in ("dark", "light"))
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img alt="{escape(alt)}" src="{light}"></picture>'
    )


def bars(
    title: str, subtitle: str, rows: Sequence[Bar], *, log: bool = False
) -> Callable[[_Theme], str]:
    """Return a chart with a horizontal bar for each row.

    Args:
        title: Above it.
        subtitle: Below that: the unit, and what is better.
        rows: From the top.
        log: Whether ten times as much is one step further.
    """
    values = [row.value for row in rows if row.value]
    most, least = max(values, default=1.0), min(values, default=1.0) / 2

    def length(value: float) -> float:
        share = value / most
        if log:
            share = math.log(max(value, least) / least) / math.log(most / least)
        return max(2.0, share * (_WIDTH - _LEFT - _RIGHT))

    def draw(theme: _Theme) -> str:
        parts = []
        for number, row in enumerate(rows):
            y = _TOP + number * _ROW
            long = 0.0 if row.value is None else length(row.value)
            colour = theme.ours if row.ours else theme.others
            weight = "bold" if row.ours else "normal"
            parts += [
                _text(_LEFT - 8, y + 14, row.label, theme.ink, "end", weight=weight),
                _rect(y + 3, long, colour),
                _text(_LEFT + long + 6, y + 14, row.text, theme.ink),
            ]
        return _page(theme, title, subtitle, _TOP + len(rows) * _ROW + 12, parts)

    return draw


def _grid_line(
    theme: _Theme, left: int, wide: int, at: float, label: str
) -> Iterator[str]:
    yield f'<path d="M{left} {at:.1f}H{left + wide}" stroke="{theme.faint}"/>'
    yield _text(left - 8, at + 4, label, theme.ink, "end")


def lines(
    title: str,
    subtitle: str,
    places: Sequence[str],
    series: Mapping[str, Sequence[float]],
    *,
    joined: bool = True,
) -> Callable[[_Theme], str]:
    """Return a chart with a line for each series, on a logarithmic scale.

    Args:
        title: Above it.
        subtitle: Below that: the unit, and what is better.
        places: The words along the bottom.
        series: The values of each line, one for each place; all above 0.
        joined: Whether places are steps of one scale; else there are dots alone.
    """
    values = [value for line in series.values() for value in line]
    low = math.floor(math.log10(min(values)))
    high = max(low + 1, math.ceil(math.log10(max(values))))
    left, wide = 70, _WIDTH - 70 - 180

    def x(number: int) -> float:
        return left + 24 + (wide - 48) * number / max(1, len(places) - 1)

    def y(value: float) -> float:
        return _TOP + _PLOT * (high - math.log10(value)) / (high - low)

    def draw(theme: _Theme) -> str:
        parts: list[str] = []
        for power in range(low, high + 1):
            parts += _grid_line(theme, left, wide, y(10.0**power), f"{10.0**power:g}")
        for number, place in enumerate(places):
            at = _TOP + _PLOT + 20
            parts.append(_text(x(number), at, place, theme.ink, "middle"))
        heights = _apart([y(line[-1]) for line in series.values()])
        for index, (name, line) in enumerate(series.items()):
            colour = theme.lines[index % len(theme.lines)]
            points = [(x(n), y(value)) for n, value in enumerate(line)]
            aside = 7 * (index - (len(series) - 1) / 2)
            parts += (
                [_line(points, colour)]
                if joined
                else [_dot(px + aside, py, colour) for px, py in points]
            )
            parts.append(_text(left + wide + 10, heights[index] + 4, name, colour))
        return _page(theme, title, subtitle, _TOP + _PLOT + 36, parts)

    return draw


def _apart(heights: Sequence[float], gap: float = 15.0) -> list[float]:
    """Return heights for labels that want these, moved so that none hides another."""
    placed = list(heights)
    order = sorted(range(len(placed)), key=placed.__getitem__)
    for above, below in pairwise(order):
        placed[below] = max(placed[below], placed[above] + gap)
    beyond = max(0.0, max(placed, default=0.0) - _TOP - _PLOT)
    return [height - beyond for height in placed]


def _rect(y: float, width: float, colour: str) -> str:
    size = f'width="{width:.1f}" height="15"'
    return f'<rect x="{_LEFT}" y="{y:.1f}" {size} rx="2" fill="{colour}"/>'


def _line(points: Sequence[tuple[float, float]], colour: str) -> str:
    words = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    style = f'fill="none" stroke="{colour}" stroke-width="2.5"'
    return f'<polyline points="{words}" {style}/>'


def _dot(x: float, y: float, colour: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{colour}"/>'


def _text(
    x: float, y: float, text: str, colour: str, anchor: str = "start", **more: str
) -> str:
    style = "".join(f' font-{name}="{value}"' for name, value in more.items())
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}"{style}>'
        f"{escape(text)}</text>"
    )


def _page(
    theme: _Theme, title: str, subtitle: str, height: float, parts: Iterable[str]
) -> str:
    size = f'viewBox="0 0 {_WIDTH} {height:g}" width="{_WIDTH}" height="{height:g}"'
    font = 'font-size="12" font-family="system-ui, sans-serif"'
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" {font}>',
        f"<title>{escape(title)}</title>",
        f'<rect width="100%" height="100%" fill="{theme.ground}"/>',
        _text(16, 24, title, theme.ink, size="15", weight="bold"),
        _text(16, 43, subtitle, theme.ink),
    ]
    return "\n".join([*head, *parts, "</svg>\n"])
