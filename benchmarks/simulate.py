"""Compare balancers in a simulated fleet: ``python -m benchmarks.simulate --help``.

The same seed gives the same figures. The pools are real, the rest is a model; see
``benchmarks/fleet.py``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.table import Table

from benchmarks.charts import lines, picture, write
from benchmarks.scenarios import SCENARIOS, SWEEPS, Result, balancers, compared, swept

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

HERE: Final = Path(__file__).resolve().parent
_FIGURES: Final = HERE / "results" / "simulation.json"

_COLUMNS: Final[Mapping[str, tuple[str, str]]] = {
    "p50": ("p50 ms", ".1f"),
    "p99": ("p99 ms", ".1f"),
    "p999": ("p99.9 ms", ".0f"),
    "rate": ("req/s", ",.0f"),
    "imbalance": ("max/mean", ".2f"),
    "noticed": ("noticed s", ".1f"),
    "recovered": ("back s", ".1f"),
    "connections": ("conns", "d"),
    "herd": ("herd", "d"),
    "retried": ("retried %", ".2f"),
    "primary": ("primary %", ".2f"),
    "probes": ("probes/s", ".1f"),
}


def _cells(result: Result) -> list[str]:
    values = asdict(result)
    return [
        "-" if values[key] is None else format(values[key], shape)
        for key, (_, shape) in _COLUMNS.items()
    ]


def _table(title: str, first: str, rows: Mapping[str, Result]) -> Table:
    table = Table(title=f"\n{title}", title_justify="left", box=None, padding=(0, 1))
    table.add_column(first)
    for heading, _ in _COLUMNS.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for name, result in rows.items():
        table.add_row(name, *_cells(result))
    return table


def _title(name: str) -> tuple[str, str]:
    """Return what stands above a table, and above its first column."""
    if name in SCENARIOS:
        return f"{name}: {SCENARIOS[name].what}", "balancer"
    sweep = SWEEPS[name.removeprefix("by-")]
    return f"{sweep.setting}, where {sweep.scenario.what}", "value"


def _page(found: Mapping[str, Mapping[str, Result]], seed: int) -> Iterator[str]:
    yield "# A simulated fleet"
    yield ""
    yield (
        f"Written by `make simulate`, seed {seed}: real pools, a model of everything "
        "else, which `benchmarks/fleet.py` describes; `benchmarks/scenarios.py` says "
        "what happens. What follows from it is in "
        "[docs/balancers.md](../docs/balancers.md#what-a-simulation-shows) and "
        "[docs/fleet.md](../docs/fleet.md#two-thousand-workers)."
    )
    yield ""
    yield (
        "p50, p99 and p99.9 are of all requests from the strike on, also those that "
        "were never answered. *max/mean*: what the busiest replica has served, by the "
        "mean. *noticed*: seconds until the struck one got less than half its share. "
        "*back*: seconds from its repair until it served nine tenths of it. *conns*: "
        "connections of all workers to one replica, at the most. *herd*: connections "
        "opened to the struck one in the worst tenth of a second after its repair. "
        "*retried*, *primary*: requests that needed a second replica, or the primary. "
        "*probes/s*: of one replica, by all workers."
    )
    for chart, alt in _CHARTS.items():
        yield ""
        yield picture("charts", chart, alt)
    for name, rows in found.items():
        title, first = _title(name)
        heads = [first, *(heading for heading, _ in _COLUMNS.values())]
        yield f"\n## {title[:1].upper()}{title[1:]}\n"
        yield f"| {' | '.join(heads)} |"
        yield "|---" + "|---:" * len(_COLUMNS) + "|"
        for label, result in rows.items():
            yield f"| {' | '.join([label, *_cells(result)])} |"


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.simulate", description=__doc__
    )
    parser.add_argument("--seed", type=int, default=1, help="default: 1")
    parser.add_argument(
        "--only",
        action="append",
        choices=[*SCENARIOS, *(f"by-{name}" for name in SWEEPS)],
        help="this scenario, or figures by this setting; may be given again",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument(
        "--write",
        action="store_true",
        help="write benchmarks/simulation.md, its charts and its figures",
    )
    parser.add_argument(
        "--draw", action="store_true", help="write those anew, from its figures"
    )
    options = parser.parse_args(words)
    if options.write and options.only:
        parser.error("--write needs all figures, so there is no --only with it")
    return options


def _run(options: argparse.Namespace) -> dict[str, dict[str, Result]]:
    # Wide enough for the tables where the output goes to a file.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    start = time.monotonic()

    def note(text: str) -> None:
        seconds = time.monotonic() - start
        print(f"{seconds:6.1f} s  {text}", file=sys.stderr, flush=True)

    found: dict[str, dict[str, Result]] = {}
    for name in options.only or [*SCENARIOS, *(f"by-{name}" for name in SWEEPS)]:
        note(name)
        if name in SCENARIOS:
            found[name] = compared(options.seed, name)
        else:
            found[name] = swept(options.seed, name.removeprefix("by-"), note)
        console.print(_table(*_title(name), found[name]))
    return found


def _plain(found: Mapping[str, Mapping[str, Result]]) -> str:
    plain = {name: {k: asdict(v) for k, v in it.items()} for name, it in found.items()}
    return json.dumps(plain, indent=1) + "\n"


def main(words: Sequence[str] | None = None) -> int:
    """Run, and print a table for each scenario and each setting."""
    options = _arguments(words)
    if options.draw:
        known = json.loads(_FIGURES.read_text())
        found = {
            name: {label: Result(**one) for label, one in rows.items()}
            for name, rows in known.items()
        }
    else:
        found = _run(options)
    if options.json is not None:
        options.json.write_text(_plain(found))
    if options.write:
        _FIGURES.write_text(_plain(found))
    if options.write or options.draw:
        _draw(HERE / "charts", found)
        page = "\n".join(_page(found, options.seed))
        (HERE / "simulation.md").write_text(f"{page}\n")
    return 0


_CHARTS: Final[Mapping[str, str]] = {
    "simulation-p99": "p99 by balancer and by what happens to one replica",
    "simulation-slow-start": "Reads beside a cold replica, by slow start",
    "simulation-fleet": "p99 of 2,000 workers by REPLICATED_MAX_POOLS",
}


def _draw(folder: Path, found: Mapping[str, Mapping[str, Result]]) -> None:
    chart = lines(
        "p99 of all reads, by balancer and by what happens to one of six replicas",
        "milliseconds, in the simulation; lower is better",
        list(SCENARIOS),
        {one: [found[name][one].p99 for name in SCENARIOS] for one in balancers()},
        joined=False,
    )
    write(folder, "simulation-p99", chart)
    rows = found["by-slow_start"]
    chart = lines(
        "Reads in the minute after a replica has returned with cold caches",
        "milliseconds by REPLICATED_SLOW_START, in the simulation; lower is better",
        [f"{float(value):g} s" for value in rows],
        {
            "p99.9": [one.p999 for one in rows.values()],
            "p99": [one.p99 for one in rows.values()],
            "p50": [one.p50 for one in rows.values()],
        },
    )
    write(folder, "simulation-slow-start", chart)
    values = [str(value) for value in SWEEPS["fleet"].values]
    chart = lines(
        "2,000 workers and 200 replicas, of which ten are slow: p99 of all reads",
        "milliseconds by REPLICATED_MAX_POOLS, in the simulation; lower is better",
        values,
        {
            one: [found["by-fleet"][f"{one} {value}"].p99 for value in values]
            for one in SWEEPS["fleet"].balancers
        },
    )
    write(folder, "simulation-fleet", chart)


if __name__ == "__main__":
    sys.exit(main())
