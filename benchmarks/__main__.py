"""Run the benchmarks and print what they found: ``python -m benchmarks --help``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.pairs import Comparison
from benchmarks.table import make_tables, versions

HERE = Path(__file__).resolve().parent
SUITES = ("pick", "get_bind", "request")


class Progress:
    """Shows what is being measured, and keeps what was found.

    Lines go to standard error and are not redrawn: a live display would be a
    thread beside the measurement.

    Attributes:
        found: The comparisons so far.
    """

    def __init__(self) -> None:
        self.found: list[Comparison] = []

    def tell(self, text: str) -> None:
        """Show one line."""
        print(text, file=sys.stderr, flush=True)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Show which case is next."""
        self.tell(f"measuring {nodeid.rpartition('::')[2].removeprefix('bench_')}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the result of a case."""
        if report.when == "call":
            values = (value for _, value in report.user_properties)
            self.found += (it for it in values if isinstance(it, Comparison))

    def pytest_report_teststatus(
        self, report: pytest.TestReport
    ) -> tuple[str, str, str] | None:
        """Print no dot for a case that went well."""
        return ("passed", "", "") if report.passed else None


def _arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only",
        choices=SUITES,
        action="append",
        help="run this suite alone; may be given again for another",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write every timing to this file"
    )
    parser.add_argument(
        "--strict", action="store_true", help="fail where a bound is exceeded"
    )
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> int:
    """Run the suites; return 0, or 1 for an error or, if strict, a bound exceeded."""
    options = _arguments(given)
    files = [HERE / f"bench_{name}.py" for name in options.only or SUITES]
    arguments = ["-qq", "-s", "-p", "no:cacheprovider", "-c"]
    arguments += [str(HERE.parent / "pyproject.toml"), "--benchmark-quiet"]
    arguments += ["-o", "python_functions=bench_*", *map(str, files)]
    if options.json is not None:
        arguments.append(f"--benchmark-json={options.json}")
    progress = Progress()
    plugins = [_Named(progress)]
    code = pytest.main(arguments, plugins=plugins)
    if progress.found:
        Console().print(*make_tables(progress.found), f"\n{versions()}", sep="\n")
    exceeded = options.strict and any(one.exceeded for one in progress.found)
    return int(code != pytest.ExitCode.OK or exceeded)


class _Named:
    """Registers the progress under the name by which fixtures find it."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def pytest_configure(self, config: pytest.Config) -> None:
        """Register it."""
        config.pluginmanager.register(self._progress, "benchmarks-progress")


if __name__ == "__main__":
    sys.exit(main())
