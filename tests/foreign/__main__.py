"""Run other projects' tests with and without replicas, and compare the outcomes.

``python -m tests.foreign [NAME ...]`` makes an environment for each suite in the
user's cache folder and keeps it; the first time takes minutes and the package index.
"""

from __future__ import annotations

import argparse
import sys

from rich.console import Console
from rich.table import Table

from .comparison import Comparison, compare
from .environments import Environment
from .suites import SUITES, Suite


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.foreign")
    parser.description = __doc__
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SUITES))
    parser.add_argument(
        "--unpinned",
        action="store_true",
        help="set no pin cookie, so that more is read from replicas",
    )
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in SUITES]
    if unknown:
        parser.error(f"no such suite: {', '.join(unknown)}; known: {', '.join(SUITES)}")
    return arguments


def _try(suite: Suite, options: tuple[str, ...], console: Console) -> Comparison:
    environment = Environment(suite)
    console.print(f"{suite.name} {suite.version}: preparing")
    environment.prepare()
    console.print(f"{suite.name} {suite.version}: without replicas")
    plain = environment.run()
    console.print(f"{suite.name} {suite.version}: with replicas")
    routed = environment.run("--routed", *options)
    console.print(f"{suite.name} {suite.version}: observed")
    observed = environment.run("--observed", *options)
    return compare(suite, plain, routed, observed)


def _show(found: list[tuple[Suite, Comparison]], console: Console) -> None:
    columns = ("tests", "passed", "same", "different", "apps", "reads")
    table = Table("suite", "version", *columns, "predicted", "served")
    table.columns[0].no_wrap = True
    for suite, comparison in found:
        figures = (
            comparison.tests,
            comparison.passed,
            comparison.same,
            len(comparison.differences),
            comparison.routed_apps,
            comparison.replica_statements,
            f"{comparison.predicted:.1%}",
            f"{comparison.served:.1%}",
        )
        table.add_row(suite.name, suite.version, *map(str, figures))
    console.print(table)
    for suite, comparison in found:
        for test in comparison.disturbed:
            console.print(f"{suite.name}: {test}: disturbed by observing", markup=False)
        for it in comparison.differences:
            console.print(
                f"{suite.name}: {it.test}: {it.plain} without replicas, "
                f"{it.routed} with them\n    {it.argument or 'NOT EXPECTED'}\n"
                f"    {it.reason}",
                markup=False,
                soft_wrap=True,
            )


def main() -> int:
    """Run the named suites, or all; return 1 if one tells against the package."""
    arguments = _arguments()
    options = ("--unpinned",) if arguments.unpinned else ()
    console = Console()
    suites = [SUITES[name] for name in arguments.names or SUITES]
    found = [(suite, _try(suite, options, console)) for suite in suites]
    _show(found, console)
    return int(any(comparison.failed for _, comparison in found))


if __name__ == "__main__":
    sys.exit(main())
