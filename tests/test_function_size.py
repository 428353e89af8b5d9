"""Functions are short, and not deeply nested."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).parents[1]
FOLDERS = ("balancers", "flask_replicated", "tests", "benchmarks", "examples")
MOST_LINES, DEEPEST = 50, 3

Function = ast.FunctionDef | ast.AsyncFunctionDef
BLOCKS = (
    *(ast.If, ast.For, ast.While, ast.With, ast.Try, ast.Match),
    *(ast.AsyncFor, ast.AsyncWith),
)


@cache
def functions() -> tuple[tuple[str, Function], ...]:
    """Return each function of this project with its place."""
    return tuple(_find_functions())


def _find_functions() -> Iterator[tuple[str, Function]]:
    paths = [*ROOT.glob("*.py")]
    for folder in FOLDERS:
        paths += (ROOT / folder).rglob("*.py")
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, Function):
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node


def depth(statements: Sequence[ast.stmt]) -> int:
    """Return how deeply blocks are nested; functions inside are not counted."""
    return max((_depth_of(one) for one in statements), default=0)


def _depth_of(statement: ast.stmt) -> int:
    if not isinstance(statement, BLOCKS):
        return 0
    otherwise: list[ast.stmt] = getattr(statement, "orelse", [])
    # What "elif" begins is no block inside this one.
    chained = isinstance(statement, ast.If) and len(otherwise) == 1
    if chained and isinstance(otherwise[0], ast.If):
        otherwise, chain = [], _depth_of(otherwise[0])
    else:
        chain = 0
    parts = [getattr(statement, "body", []), otherwise]
    parts += [getattr(statement, "finalbody", [])]
    for inner in (
        *getattr(statement, "handlers", ()),
        *getattr(statement, "cases", ()),
    ):
        parts.append(inner.body)
    return max(chain, 1 + max(map(depth, parts)))


def test_length() -> None:
    """No function has more than 50 lines, its docstring included."""
    lengths = {
        place: node.end_lineno - node.lineno + 1
        for place, node in functions()
        if node.end_lineno is not None
    }
    assert lengths
    assert {one: n for one, n in lengths.items() if n > MOST_LINES} == {}


def test_nesting() -> None:
    """No function has blocks nested deeper than three."""
    depths = {place: depth(node.body) for place, node in functions()}
    assert max(depths.values()) == DEEPEST
    assert {one: n for one, n in depths.items() if n > DEEPEST} == {}
