"""Measure this project beside its peers, and write ``benchmarks/README.md``.

``python -m benchmarks.peers`` installs the peers from PyPI into a virtual environment
of its own, once, and measures there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.peers.report import render
from tests.foreign.environments import cache

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parents[1]
PEERS: Final = (
    "advanced-alchemy",
    "aws-advanced-python-wrapper",
    "circuitbreaker",
    "django-multidb-router",
    "django-replicated",
    "purgatory",
    "pybreaker",
)


def _environment(*, fresh: bool) -> Path:
    """Return the Python that has the peers; install them if there is none."""
    version = f"py{sys.version_info.major}.{sys.version_info.minor}"
    home = cache().with_name("peers") / version
    python, ready = home / "bin" / "python", home / "ready"
    recipe = f"{ROOT}\n{PEERS}"
    if fresh or not ready.is_file() or ready.read_text() != recipe:
        print(f"installing {', '.join(PEERS)} into {home} ...", file=sys.stderr)
        shutil.rmtree(home, ignore_errors=True)
        venv.create(home, with_pip=True)
        command = [str(python), "-m", "pip", "--disable-pip-version-check", "-q"]
        wanted = ["--editable", f"{ROOT}[demo]", *PEERS]
        subprocess.run([*command, "install", *wanted], check=True)
        ready.write_text(recipe)
    return python


def _measured(options: argparse.Namespace, only: Sequence[str]) -> dict[str, Any]:
    """Measure beside the peers, in their environment."""
    python = _environment(fresh=options.fresh)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "found.json")
        command = [str(python), "-m", "benchmarks.peers.measure", str(file)]
        command += ["--only", *only]
        if options.faults:
            command += ["--faults", *options.faults]
        subprocess.run(command, cwd=ROOT, check=True)
        found: dict[str, Any] = json.loads(file.read_text())
    return found


def _known_dates(known: Mapping[str, Any]) -> dict[str, str]:
    """Return when each part was measured that is not measured now."""
    parts = [one for one in ("pick", "request", "fault") if one in known]
    return {**dict.fromkeys(parts, known.get("date", "")), **known.get("dates", {})}


def main(words: Sequence[str] | None = None) -> int:
    """Measure, and write what was found."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=("pick", "request", "fault", "throughput"),
        help="measure this alone; the other figures stay. May be given again",
    )
    parser.add_argument(
        "--faults", action="append", metavar="NAME", help="this fault alone, likewise"
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        default=HERE.parent / "results" / "peers.json",
        help="the figures (default: benchmarks/results/peers.json)",
    )
    parser.add_argument(
        "--draw", action="store_true", help="measure nothing; write the page anew"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="install the peers' newest versions"
    )
    options = parser.parse_args(words)
    known = json.loads(options.json.read_text()) if options.json.is_file() else {}
    if not options.draw:
        start = time.monotonic()
        chosen = set(options.only or ["pick", "request", "fault", "throughput"])
        if beside := sorted(chosen - {"throughput"}):
            found = _measured(options, beside)
            measured = dict.fromkeys(beside, found["date"])
            found["dates"] = {**_known_dates(known), **measured}
            if "fault" in found:
                found["fault"] = {**known.get("fault", {}), **found["fault"]}
            known |= found
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(known, indent=1) + "\n")
        if "throughput" in chosen:
            command = [sys.executable, "-m", "benchmarks.throughput", "--write"]
            subprocess.run(command, cwd=ROOT, check=True)
        print(f"measured in {time.monotonic() - start:.0f} s", file=sys.stderr)
    render(known, HERE.parent)
    print(f"see {HERE.parent / 'README.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
