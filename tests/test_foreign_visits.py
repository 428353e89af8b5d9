"""What visits to other projects' applications do with what the package says."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from flask_replicated.routing.housekeeping import HousekeepingAdvice, Sent
from flask_replicated.routing.reports import EndpointReport, Report
from flask_replicated.sql.dml import Identifier, TableWrite
from tests.foreign.applications import APPLICATIONS
from tests.foreign.visits import Lines

if TYPE_CHECKING:
    import pytest


def _write(table: str, *columns: str) -> TableWrite:
    names = tuple(Identifier(one, quoted=False) for one in columns)
    return TableWrite(None, Identifier(table, quoted=False), names or None)


def test_lines_from_warnings(caplog: pytest.LogCaptureFixture) -> None:
    """What the warnings suggest is written: a setting, and for rows a block or mark."""
    writes = {"seen": _write("users", "lastseen"), "note": _write("topicsread")}
    asked = {"index": ["seen"], "topic": ["seen", "note"], "inbox": ["note"]}
    advice = HousekeepingAdvice(lambda sql, _dialect: [writes[sql]], {})
    with caplog.at_level(logging.WARNING, "flask_replicated"):
        for endpoint, texts in asked.items():
            for _ in range(8):
                advice.note(endpoint, [Sent(text, "postgresql") for text in texts])
    visited = replace(
        APPLICATIONS["microblog"],
        blocks={"inbox": "inbox"},
        marks={"topicsread": "forum:TopicsRead"},
    )
    lines = Lines().warned(caplog.messages, visited)
    unpinned: dict[str, str | list[str]] = {"topicsread": "*", "users": ["lastseen"]}
    assert lines == Lines(unpinned, ("inbox",), ("forum:TopicsRead",))
    assert lines.warned(caplog.messages, visited) == lines
    assert len(lines.text()) == 4


def test_lines_from_a_report() -> None:
    """What a report suggests is written, until it suggests no more."""
    written = {"users": (100, ("lastseen",)), "topicsread": (20, None)}
    held = {"users": 100}
    reading = EndpointReport(
        requests=100, only_reading=100, reads=200, held_by=held, written=written
    )
    marks = {"topicsread": "forum:TopicsRead"}
    visited = replace(APPLICATIONS["microblog"], blocks={}, marks=marks)
    lines = Lines().reported(Report(0.0, 1.0, {}, {"topic": reading}), visited)
    unpinned: dict[str, str | list[str]] = {"topicsread": "*", "users": ["lastseen"]}
    assert lines == Lines(unpinned, (), ("forum:TopicsRead",))
    blocks = {"topic": "topic"}
    lines = Lines().reported(
        Report(0.0, 1.0, {}, {"topic": reading}), replace(visited, blocks=blocks)
    )
    assert lines == Lines({"users": ["lastseen"]}, ("topic",), ())
