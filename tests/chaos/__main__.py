"""Let faults strike real servers while an application is under load.

``python -m tests.chaos`` starts a primary and three replicas in a temporary folder,
and an application on them: first in this process, then in two workers of gunicorn.
The seed decides which fault strikes whom, and when.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import random
import sys
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING

from rich.console import Console

from .app import DEFAULTS, SETTINGS
from .databases import DATABASES
from .run import run
from .schedule import schedule
from .table import checks, faults_table, summary_table
from .workers import greenlets, gunicorn, in_process

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .run import Report
    from .schedule import Strike

_SETTINGS = {"quick": SETTINGS, "default": DEFAULTS}


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, help="default: another one each time")
    parser.add_argument(
        "--seconds-per-fault",
        type=float,
        metavar="S",
        help="how long a fault lasts that is not over at once (default: 3; 12 with "
        "--settings default)",
    )
    parser.add_argument(
        "--settings",
        choices=_SETTINGS,
        default="quick",
        help="the application's: with shorter waits, or the extension's own "
        "(default: quick)",
    )
    parser.add_argument(
        "--database",
        choices=DATABASES,
        default="postgresql",
        help="whose servers (default: postgresql)",
    )
    parser.add_argument(
        "--faults",
        type=lambda names: names.split(","),
        metavar="A,B",
        help="which of "
        + "; of ".join(
            f"{name}: {', '.join(it.faults)}" for name, it in DATABASES.items()
        )
        + " (default: all)",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=1,
        metavar="N",
        help="how often each fault strikes (default: 1)",
    )
    parser.add_argument(
        "--workers",
        choices=("threads", "gunicorn", "gevent", "both"),
        default="both",
        help="who serves: threads of this process, two processes, two processes of "
        "greenlets (default: both of the first)",
    )
    return _completed(parser, parser.parse_args(words))


def _completed(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace
) -> argparse.Namespace:
    known = DATABASES[arguments.database].faults
    arguments.faults = arguments.faults or list(known)
    unknown = [name for name in arguments.faults if name not in known]
    if unknown:
        parser.error(f"no such fault: {', '.join(unknown)}; known: {', '.join(known)}")
    if arguments.seconds_per_fault is None:
        # Above the time limits of the settings.
        arguments.seconds_per_fault = 3.0 if arguments.settings == "quick" else 12.0
    if arguments.seed is None:
        arguments.seed = random.randrange(10_000)
    return arguments


class _Log(logging.Handler):
    """Tells what the application logs, without the causes."""

    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()
        self._note = note

    def emit(self, record: logging.LogRecord) -> None:
        self._note(f"  log: {record.getMessage().partition(': ')[0]}")


def _is_installed(name: str, console: Console) -> bool:
    needed = {"gunicorn": ("gunicorn",), "gevent": ("gunicorn", "gevent")}
    missing = [one for one in needed.get(name, ()) if find_spec(one) is None]
    if missing:
        console.print(f"{missing[0]} is not installed: its workers serve nothing.")
    return not missing


def _show(report: Report, console: Console) -> None:
    console.print(faults_table(report))
    for outcome in report.outcomes:
        for error, times in outcome.errors.most_common(3):
            console.print(f"  {outcome.strike.name}: {times} x {error}")
    console.print(summary_table(report))


def main(words: Sequence[str] | None = None) -> int:
    """Run; return 1 if something did not hold that must."""
    arguments = _arguments(words)
    # Wide enough for the table where the output goes to a file.
    terminal = sys.stdout.isatty()
    console = Console(highlight=False, markup=False, width=None if terminal else 120)
    start = time.monotonic()

    def note(text: str) -> None:
        console.print(f"{time.monotonic() - start:6.1f} s  {text}", soft_wrap=True)

    logging.getLogger("flask_replicated").addHandler(_Log(note))
    servers = {"threads": in_process, "gunicorn": gunicorn, "gevent": greenlets}
    both = arguments.workers == "both"
    wanted = ["threads", "gunicorn"] if both else [arguments.workers]
    chosen = [name for name in wanted if _is_installed(name, console)]
    if not chosen:
        return 1
    console.print(f"seed {arguments.seed}")
    database = DATABASES[arguments.database]
    strikes = schedule(
        arguments.seed,
        database.faults,
        arguments.faults * arguments.rounds,
        arguments.seconds_per_fault,
    )
    held = True
    with database.servers(note) as cluster:
        for name, some in itertools.product(chosen, _apart(strikes)):
            note(f"served by {name}")
            report = run(
                cluster,
                servers[name],
                some,
                database=database,
                settings=_SETTINGS[arguments.settings],
                note=note,
            )
            cluster.heal()
            _show(report, console)
            held &= all(check.ok is not False for check in checks(report))
    return 0 if held else 1


def _apart(strikes: Sequence[Strike]) -> list[list[Strike]]:
    """Return a run for most faults, and one for those that need a pooler in front."""
    pooled = [strike for strike in strikes if strike.fault.pooled]
    others = [strike for strike in strikes if not strike.fault.pooled]
    return [some for some in (others, pooled) if some]


if __name__ == "__main__":
    sys.exit(main())
