"""The command ``flask replicated check``: is this set-up sound?"""

from __future__ import annotations

import json

import click
from flask import current_app

from flask_replicated.errors import ConfigurationError
from flask_replicated.errors.redaction import printable
from flask_replicated.routing.state import current_app_state
from flask_replicated.system.log_lines import counted

from .current import enter_app, missing_extension
from .doctor import examine
from .doctor.findings import Finding, Report, misconfigured_app

__all__ = ["check"]

_INTERRUPTED = 130  # as a shell has it for SIGINT; 1 would stand for warnings


@click.command("check")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="How many worker processes there are; by default WEB_CONCURRENCY.",
)
@click.pass_context
def check(ctx: click.Context, *, as_json: bool, workers: int | None) -> None:
    """Find what is wrong with the databases' set-up, and what to do about it.

    Connects to every bind as the application does, and writes nothing. Exits with 0 if
    all is sound, 1 with warnings, 2 with errors.
    """
    try:
        report = _report(ctx, workers)
    except KeyboardInterrupt:
        click.echo("Interrupted.", err=True)
        ctx.exit(_INTERRUPTED)
    if as_json:
        click.echo(json.dumps(report.as_json(), indent=2))
    else:
        _print(report)
    ctx.exit(report.exit_code)


def _report(ctx: click.Context, workers: int | None) -> Report:
    try:
        enter_app(ctx)
    except ConfigurationError as error:
        return misconfigured_app(error)
    missing, state = missing_extension(), current_app_state()
    if missing is not None or state is None:
        what = f"{missing} is not registered on this application"
        remedy = "Call db.init_app(app) and FlaskReplicated(app)"
        return Report((Finding("error", "configuration", None, what, remedy),))
    return examine(current_app, state, workers)


def _print(report: Report) -> None:
    """Print one line if all is sound, else two for each finding."""
    if not report.findings:
        many = counted(report.servers, "server")
        click.echo(f"sound: {many} answered, and nothing is to be mended")
    for one in report.findings:
        where = {None: "", "": " the default bind"}.get(one.bind, f" {one.bind}")
        severity = click.style(one.severity, fg=_COLOURS[one.severity], bold=True)
        click.echo(f"{severity}{printable(f'{where}: {one.what}.')}")
        click.echo(f"    {printable(one.remedy)}")


_COLOURS = {"error": "red", "warning": "yellow"}
