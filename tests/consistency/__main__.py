"""Look for what a client must never see, on replicas that lag, die and are promoted.

``python -m tests.consistency`` starts a primary and three replicas in a temporary
folder, an application on them, and clients that read and write at random. It prints
the anomalies that their histories show, and fails if there is one that is promised
not to be.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tests.chaos.databases import DATABASES

from .plan import GUARANTEES, PINS, STORES, Plan
from .report import report_of
from .run import run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .checker import Anomaly


def _arguments(words: Sequence[str] | None) -> tuple[str, Plan]:
    parser = argparse.ArgumentParser(
        prog="python -m tests.consistency",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--seed", type=int, help="another one each time, if not given")
    add("--operations", type=int, metavar="N", help="in all")
    add(
        "--guarantee",
        choices=GUARANTEES,
        help="REPLICATED_GUARANTEE",
    )
    add("--pin", choices=PINS, help="REPLICATED_PIN")
    add(
        "--pin-seconds",
        type=float,
        metavar="S",
        help="REPLICATED_PIN_SECONDS",
    )
    add(
        "--lag",
        type=float,
        metavar="S",
        help="seconds that a replica is held back at the most",
    )
    add(
        "--store",
        choices=STORES,
        help="REPLICATED_PIN_STORE; Redis by REDIS_URL",
    )
    add("--database", choices=DATABASES, default="postgresql", help="whose servers")
    add("--workers", type=int, metavar="N", help="processes")
    add("--clients", type=int, metavar="N", help="how many")
    add(
        "--parallel",
        type=int,
        metavar="N",
        help="requests at the same time of every third client",
    )
    add(
        "--no-promotion",
        dest="promotes",
        action="store_false",
        help="keep the primary",
    )
    parser.set_defaults(**{**vars(Plan()), "seed": None})
    return _plan(vars(parser.parse_args(words)))


def _plan(found: dict[str, Any]) -> tuple[str, Plan]:
    if found["seed"] is None:
        found["seed"] = random.randrange(10_000)
    database = found.pop("database")
    return database, Plan(**found)


def _describe(one: Anomaly) -> str:
    servers = " then ".join(look.server for look in one.later.looks) or "the primary"
    seconds = one.later.began - one.earlier.ended
    return (
        f"{one.kind.value}: client {one.later.client} saw version {one.seen} of "
        f"register {one.register} instead of {one.wanted} on {servers}, "
        f"{seconds:.3f} s after"
        + (" (answers of two workers crossed)" if one.crossed else "")
    )


def main(words: Sequence[str] | None = None) -> int:
    """Run; return 1 if there is an anomaly that is promised not to be."""
    database, plan = _arguments(words)
    terminal = sys.stdout.isatty()
    console = Console(highlight=False, markup=False, width=None if terminal else 120)
    start = time.monotonic()

    def note(text: str) -> None:
        console.print(f"{time.monotonic() - start:6.1f} s  {text}", soft_wrap=True)

    console.print(
        f"seed {plan.seed}, guarantee {plan.guarantee}, pin {plan.pin}, "
        f"store {plan.store}"
    )
    with DATABASES[database].servers(note) as cluster:
        result = run(cluster, database, plan, note)
    report = report_of(result)
    broken = report.broken()
    for anomaly in (broken or report.anomalies)[:5]:
        console.print(f"  {_describe(anomaly)}", soft_wrap=True)
    for error, times in report.failed.most_common(5):
        console.print(f"  {times} x {error}", soft_wrap=True)
    console.print(report.table())
    return 1 if broken or report.uses_replicas is False else 0


if __name__ == "__main__":
    sys.exit(main())
