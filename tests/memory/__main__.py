"""Send 100,000 requests of every kind to one process, and compare what it keeps.

``python -m tests.memory`` fails if its memory grows, a connection is checked out after
a request, or a request is not answered as it should be.
"""

from __future__ import annotations

import argparse
import sys
import time
import tracemalloc
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from rich.console import Console

from .shop import Shop
from .soak import Figures, Report, small_caches, soak

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 2**20


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.memory")
    parser.description = __doc__
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument(
        "--warm-up", type=int, default=8_000, help="visits before anything is counted"
    )
    parser.add_argument(
        "--traced", action="store_true", help="count bytes too; takes thrice as long"
    )
    return parser.parse_args()


def _words(figures: Figures) -> str:
    traced = f", {figures.traced / MIB:,.2f} MiB traced" if figures.traced else ""
    return (
        f"{figures.objects:,} objects, {figures.blocks:,} blocks{traced}, "
        f"{figures.resident / MIB:,.1f} MiB resident"
    )


def _progress(console: Console) -> Callable[[Report], None]:
    start = time.monotonic()

    def note(report: Report) -> None:
        rate = report.requests / (time.monotonic() - start)
        line = f"{report.requests:,} requests, {_words(report.figures[-1])}"
        if console.is_terminal:
            console.print(f"{line}, {rate:.0f}/s", end="\r", soft_wrap=True)
        elif len(report.figures) % 10 == 0:
            console.print(f"{line}, {rate:.0f}/s", soft_wrap=True)

    return note


def main() -> int:
    """Run, print a summary, and return 1 if something is left behind."""
    arguments = _arguments()
    console = Console(highlight=False)
    console.print(f"{arguments.warm_up:,} visits to warm up", soft_wrap=True)
    if arguments.traced:
        tracemalloc.start()
    with TemporaryDirectory(prefix="soak-") as folder, small_caches():
        shop = Shop(Path(folder))
        report = soak(
            shop,
            arguments.requests,
            warm_up=arguments.warm_up,
            note=_progress(console),
        )
        shop.dispose()
    console.print(f"first third: {_words(report.before)}", soft_wrap=True)
    console.print(f"last third:  {_words(report.after)}", soft_wrap=True)
    for line in (report.wrong + report.held)[:10]:
        console.print(line, markup=False, soft_wrap=True)
    console.print(
        f"{report.requests:,} requests: grown by {_words(report.growth)}; "
        f"{len(report.held)} left a connection checked out, "
        f"{len(report.wrong)} answered wrongly",
        soft_wrap=True,
    )
    return int(report.failed)


if __name__ == "__main__":
    sys.exit(main())
