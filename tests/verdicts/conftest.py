"""``--rewrite-verdicts`` puts what was found into docs/failover.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option, where this directory is named on the command line."""
    parser.addoption("--rewrite-verdicts", action="store_true")
