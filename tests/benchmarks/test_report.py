"""What is written down of the figures beside peers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from benchmarks.charts import bars, lines, write
from benchmarks.peers.report import FLOOR, render

ROOT = Path(__file__).parents[2]


def figures(median: float) -> dict[str, float]:
    """Return what was measured of one way to pick, or to ask."""
    return {"median": median, "low": median, "high": median, "ratio": median / 20}


def outcome(failed: int) -> dict[str, float]:
    """Return what visitors noticed of one fault."""
    return {
        "requests": 100,
        "failed": failed,
        "stale": 0,
        "slowest": 0.5,
        "replicas": 99.0,
    }


def measured(peer: float) -> dict[str, Any]:
    """Return all that was measured, where a peer needs so many nanoseconds."""
    ours = {"flask_replicated, round_robin": figures(25.0), FLOOR: figures(20.0)}
    requests = {"flask_replicated": figures(400.0), "a <peer>": figures(500.0)}
    faults = {"flask_replicated": outcome(0), "a <peer>": outcome(7)}
    return {
        "date": "2026-01-01",
        "python": "CPython 3.13",
        "processors": 2,
        "versions": {"Flask": "3"},
        "pick": {**ours, "a <peer>": figures(peer)},
        "request": {"GET": requests, "POST": requests},
        "fault": {"well": faults, "killed": faults},
    }


@pytest.mark.parametrize(("peer", "ahead"), [(10.0, True), (30.0, False)])
def test_ahead(tmp_path: Path, peer: float, ahead: bool) -> None:
    """A peer that is ahead is named, with a reason or without; no other one is."""
    render(measured(peer), tmp_path)
    page = (tmp_path / "README.md").read_text()
    assert ("Not ahead of `a <peer>`" in page) is ahead
    assert "| a <peer> | 7 | 7 |" in page


def test_dates(tmp_path: Path) -> None:
    """Where a part was measured on another day, the page says which."""
    found = measured(30.0)
    render(found, tmp_path)
    assert "on 2026-01-01: CPython" in (tmp_path / "README.md").read_text()
    found["dates"] = {"pick": "2026-01-01", "fault": "2026-02-03"}
    render(found, tmp_path)
    said = "on 2026-01-01 (pick), 2026-02-03 (fault): CPython"
    assert said in (tmp_path / "README.md").read_text()


def test_charts(tmp_path: Path) -> None:
    """Every chart is well-formed, for light and for dark pages, whatever it names."""
    render(measured(30.0), tmp_path)
    line = lines("one & all", "ms", ["<1", "2"], {"a": [1.0, 900.0], "b": [2.0, 900.0]})
    write(tmp_path / "charts", "line", line)
    write(tmp_path / "charts", "none", bars("nothing", "ms", []))
    found = sorted((tmp_path / "charts").glob("*.svg"))
    assert len(found) == 10
    texts = {node.text for file in found for node in ET.parse(file).getroot().iter()}
    assert {"one & all", "<1", "a <peer>", "7 failed, 0 stale, 0.5 s"} <= texts


def test_figures_in_docs() -> None:
    """What docs/balancers.md says in milliseconds was found by the simulation."""
    rows = json.loads((ROOT / "benchmarks/results/simulation.json").read_text())
    known = {
        f"{one['p99']:.{digits}f}"
        for results in rows.values()
        for one in results.values()
        for digits in (0, 1)
    }
    text = (ROOT / "docs/balancers.md").read_text()
    section = text.partition("### What a simulation shows")[2].partition("\n### ")[0]
    said = set(re.findall(r"(\d[\d.]*)\s+ms\b", section))
    assert len(said) > 5
    assert said <= known
