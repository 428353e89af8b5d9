"""Run one suite in this process, for ``python -m benchmarks`` to read what it found."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.pairs import Comparison, as_info

__all__ = ["HERE", "SUITES"]

HERE = Path(__file__).resolve().parent
SUITES = ("pick", "get_bind", "request", "pins", "start")


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


class _Named:
    """Registers the progress under the name by which fixtures find it."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def pytest_configure(self, config: pytest.Config) -> None:
        """Register it."""
        config.pluginmanager.register(self._progress, "benchmarks-progress")


def main(name: str, found: str, timings: str) -> int:
    """Run a suite, and return pytest's code.

    Args:
        name: One of ``SUITES``.
        found: The file for its comparisons.
        timings: The file for every timing.
    """
    progress = Progress()
    arguments = ["-qq", "-s", "-p", "no:cacheprovider", "-c"]
    arguments += [str(HERE.parent / "pyproject.toml"), "--benchmark-quiet"]
    arguments += ["-o", "python_functions=bench_*", f"--benchmark-json={timings}"]
    code = pytest.main([*arguments, str(HERE / f"bench_{name}.py")], [_Named(progress)])
    Path(found).write_text(json.dumps([as_info(one) for one in progress.found]))
    return int(code)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
