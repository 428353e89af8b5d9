"""Run the benchmarks and print what they found: ``python -m benchmarks --help``."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.pairs import Comparison, from_info, merged
from benchmarks.suite import HERE, SUITES
from benchmarks.table import make_tables, versions


def _starts(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only",
        choices=SUITES,
        action="append",
        help="run this suite alone; may be given again for another",
    )
    parser.add_argument(
        "--starts",
        type=_starts,
        default=5,
        metavar="N",
        help="how many processes measure requests, one after the other: where things "
        "lie in a process's memory moves a ratio by 0.01 (default: 5)",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write every timing to this file"
    )
    parser.add_argument(
        "--strict", action="store_true", help="fail where a bound is exceeded"
    )
    return parser.parse_args(given)


def _run(name: str, timings: dict[str, Any]) -> tuple[int, list[Comparison]]:
    """Run a suite in a process of its own; add its timings to those there are."""
    with tempfile.TemporaryDirectory() as folder:
        found, times = Path(folder, "found.json"), Path(folder, "timings.json")
        command = [sys.executable, "-m", "benchmarks.suite", name]
        command += [str(found), str(times)]
        code = subprocess.run(command, cwd=HERE.parent, check=False).returncode
        if times.exists() and times.stat().st_size:
            one = json.loads(times.read_text())
            one["benchmarks"] = timings.get("benchmarks", []) + one["benchmarks"]
            timings.update(one)
        infos = json.loads(found.read_text()) if found.exists() else []
    return code, [from_info(info) for info in infos]


def main(given: list[str] | None = None) -> int:
    """Run the suites; return 0, or 1 for an error or, if strict, a bound exceeded."""
    options = _arguments(given)
    results: list[Comparison] = []
    timings: dict[str, Any] = {}
    failed = False
    for name in options.only or SUITES:
        starts = options.starts if name in {"request", "pins"} else 1
        found: list[list[Comparison]] = []
        for number in range(1, starts + 1):
            of = f", start {number} of {starts}" if starts > 1 else ""
            print(f"{name}{of}", file=sys.stderr, flush=True)
            code, these = _run(name, timings)
            failed |= code != 0
            found.append(these)
        results += merged(found)
    if results:
        Console().print(*make_tables(results), f"\n{versions()}", sep="\n")
    if options.json is not None:
        options.json.write_text(json.dumps(timings, indent=4))
    exceeded = options.strict and any(one.exceeded for one in results)
    return int(failed or exceeded)


if __name__ == "__main__":
    sys.exit(main())
