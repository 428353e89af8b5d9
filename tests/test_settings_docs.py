"""The tables of settings in the documentation say what the code does."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from flask_replicated.settings.config import DEFAULTS

ROOT = Path(__file__).parent.parent
README, REFERENCE = ROOT / "README.md", ROOT / "docs" / "settings.md"
ROW = re.compile(r"^\|\s*`((?:REPLICATED|AUTO)_\w+)`\s*\|\s*`([^`]+)`", re.MULTILINE)
KEY = re.compile(r"^\|[^|]*`((?:REPLICATED|AUTO)_\w+)`[^|]*\|", re.MULTILINE)


def documented(page: Path) -> dict[str, Any]:
    """Return the defaults that the tables of a page tell, by key."""
    rows = ROW.findall(page.read_text())
    return {key: ast.literal_eval(default) for key, default in rows}


def test_the_reference_has_every_setting() -> None:
    """The page with all settings leaves none out, and names none that is unknown."""
    assert documented(REFERENCE) == DEFAULTS


@pytest.mark.parametrize("page", [README, REFERENCE], ids=lambda page: page.name)
def test_defaults(page: Path) -> None:
    """Each table of settings names the defaults that hold."""
    found = documented(page)
    assert found == {key: DEFAULTS[key] for key in found}
    rows = KEY.findall(page.read_text())
    assert sorted(rows) == sorted(found)  # each once, and with a default
