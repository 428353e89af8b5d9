"""``flask replicated status``."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from flask_replicated.errors.redaction import printable
from flask_replicated.routing.state import current_app_state

from .current import refuse_unregistered, with_app
from .fleet_status import fleet_status
from .tables import print_table

if TYPE_CHECKING:
    from .fleet_status import FleetStatus

__all__ = ["status"]

_COLUMNS = (
    "bind",
    "replica",
    "state",
    "reason",
    "since",
    "lag",
    "weight",
    "server",
    "workers",
)
_NONE = (
    "This application has no replicas: SQLALCHEMY_BINDS names none, such as 'slave_1'."
)
_EVERY = 2.0
"""Seconds between two looks of ``--watch``."""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--watch", is_flag=True, help="Look again and again, until Ctrl-C.")
@with_app
def status(*, as_json: bool, watch: bool) -> None:
    """Show how each replica is, as all workers see it.

    By the control place (REPLICATED_CONTROL); without one the servers are asked.

    \b
    Exit code: 0 all is well (drained, or of weight 0, is no outage),
    1 a replica is out, lags or has the wrong role,
    2 all replicas of a bind are, or nothing could be learnt.
    """  # noqa: D301 - click's own mark
    refuse_unregistered()
    found = fleet_status()
    try:
        while watch:
            click.clear()
            _print(found, as_json=as_json)
            time.sleep(_EVERY)
            found = fleet_status()
    except KeyboardInterrupt:
        sys.exit(found.health)
    _print(found, as_json=as_json)
    sys.exit(found.health)


def _print(found: FleetStatus, *, as_json: bool) -> None:
    if as_json:
        if not found.binds:
            click.echo(_NONE, err=True)
        click.echo(json.dumps(found.to_json()))
        return
    if found.off:
        click.echo(
            "Reads are OFF the replicas: all go to the primary, unless a decorator or "
            "a block asks for a replica."
        )
    state = current_app_state()
    if state is not None and state.observation is not None:
        click.echo("REPLICATED_MODE is 'observe': the primary serves every read.")
    if found.binds:
        _print_binds(found)
    else:
        click.echo(_NONE)


def _print_binds(found: FleetStatus) -> None:
    if found.note is not None:
        click.echo(printable(found.note), err=True)
    rows = [
        _row(bind, one) for bind, replicas in found.binds.items() for one in replicas
    ]
    if rows:
        print_table(_COLUMNS, rows)
    else:
        click.echo("No replicas are known.")


def _row(bind: str, one: dict[str, Any]) -> tuple[object, ...]:
    host, port, lag = one["host"], one["port"], one["lag_seconds"]
    since = one["since"]
    return (
        bind or "(default)",
        one["name"],
        one["state"],
        one["reason"] or "",
        ""
        if since is None
        else time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(since)),
        "" if lag is None else f"{lag:.1f} s",
        one["weight"],
        "" if host is None else f"{host}:{port}",
        ", ".join(f"{count} {state}" for state, count in one["workers"].items()),
    )
