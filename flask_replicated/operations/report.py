"""``flask replicated report``."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from flask_replicated.errors.redaction import printable

from .all_reports import COLUMNS, all_reports, rows, summary
from .current import current_place, refuse_unregistered, with_app
from .orders import forget_reports
from .tables import print_table

if TYPE_CHECKING:
    from flask_replicated.routing.reports import Report

    from .all_reports import AllReports

__all__ = ["report"]

_NOTHING_LEARNT = 2


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--clear",
    is_flag=True,
    help="Print no report; forget what was observed, in all workers.",
)
@with_app
def report(*, as_json: bool, clear: bool) -> None:
    """Show what replicas would have served, and what keeps reads from them.

    With REPLICATED_MODE = 'observe', by what all workers tell in the control place
    (REPLICATED_CONTROL).

    \b
    Exit code: 0 there is a report, 2 there is none.
    """  # noqa: D301 - click's own mark
    refuse_unregistered()
    if clear:
        forget_reports()
        return
    found = all_reports(current_place())
    if as_json:
        click.echo(json.dumps(found.to_json()))
    elif found.report is None:
        click.echo(found.note, err=True)
    else:
        _print(found, found.report)
    sys.exit(0 if found.report is not None else _NOTHING_LEARNT)


def _print(found: AllReports, total: Report) -> None:
    for line in summary(found, total):
        click.echo(line)
    print_table(COLUMNS, rows(total))
    advice = total.advice()
    click.echo("What to write:" if advice else "There is nothing to advise.")
    for number, text in enumerate(advice, 1):
        click.echo(f"{number}. {printable(text)}")
