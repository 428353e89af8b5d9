"""Which package imports which, and that no imports form a circle."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]

# Each package, and each module beside the packages, with all that it may import.
DIRECTIONS: dict[str, str] = {
    "_private": "",
    "blocks": "",
    "signals": "",
    "sql": "_private system",
    "system": "_private",
    "errors": "balancers",
    "replica": "_private balancers errors system",
    "settings": "_private balancers errors system",
    "consistency": "balancers blocks errors replica settings system",
    "routing": "_private balancers blocks consistency errors settings sql system",
    "engine": (
        "_private balancers consistency errors replica routing settings signals sql "
        "system"
    ),
    "adapters": "_private engine errors routing settings",
    "fleet": "balancers engine errors replica routing settings signals system",
    "operations": (
        "_private adapters balancers consistency engine errors fleet replica routing "
        "settings sql system"
    ),
    "extension": (
        "adapters consistency engine errors fleet operations routing settings system"
    ),
    "testing": (
        "_private adapters balancers engine errors extension fleet replica routing "
        "settings"
    ),
    "metrics": "errors routing system",
    "__init__": "consistency engine errors extension fleet routing",
}


def modules() -> dict[str, Path]:
    """Return the files of both packages by their modules' names."""
    found = {}
    for package in ("balancers", "flask_replicated"):
        for path in (ROOT / package).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Return the known modules that one imports, those for types alone included."""
    package = name.split(".") if path.stem == "__init__" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                yield from [one for one in (inner, source) if one in known][:1]


def graph() -> dict[str, set[str]]:
    """Return what each module of both packages imports."""
    known = modules()
    return {name: set(imports(name, path, known)) for name, path in known.items()}


def room(module: str) -> str:
    """Return the package of a module, or its own name where it is beside them."""
    top, _, inner = module.partition(".")
    if top == "balancers":
        return top
    return inner.partition(".")[0] or "__init__"


def test_no_circle_between_modules() -> None:
    """No modules import each other in a circle, not even for types."""
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_directions_between_packages() -> None:
    """A package imports what is listed here, and nothing else."""
    found: dict[str, set[str]] = {}
    for name, targets in graph().items():
        found.setdefault(room(name), set()).update(map(room, targets))
    assert found.pop("balancers") <= {"balancers"}
    assert {name: " ".join(sorted(to - {name})) for name, to in found.items()} == (
        DIRECTIONS
    )


def test_no_circle_between_packages() -> None:
    """The packages can be read in an order in which each imports earlier ones alone."""
    directions = {name: targets.split() for name, targets in DIRECTIONS.items()}
    order = list(TopologicalSorter(directions).static_order())
    rooms = ["sql", "routing", "engine", "fleet", "extension"]
    assert sorted(rooms, key=order.index) == rooms
