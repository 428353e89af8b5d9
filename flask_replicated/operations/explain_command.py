"""``flask replicated explain``: what would serve a request, without its view."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from flask import current_app
from werkzeug.exceptions import HTTPException
from werkzeug.routing import RequestRedirect

from balancers.errors import error_text
from flask_replicated.errors.redaction import printable
from flask_replicated.routing.decision import Role, observed
from flask_replicated.routing.flask_context import this_request
from flask_replicated.routing.state import current_app_state

from .current import current_routes, refuse_unregistered, with_app
from .fleet_status import fleet_status

if TYPE_CHECKING:
    from flask_replicated.routing.decision import Decision

__all__ = ["explain"]

_UNSEEN = (
    "The view is not run. In it a write, a block, a statement's option or a model may "
    "ask for another server, and a client that has just written may be shown its write "
    "by the primary."
)


@click.command()
@click.argument("method")
@click.argument("path")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@with_app
def explain(*, method: str, path: str, as_json: bool) -> None:
    """Say what would serve the reads of a request, and why.

    \b
    flask replicated explain GET /orders/7
    flask replicated explain POST https://shop.example/search

    Neither the view nor a function before it is run. Exits with 1 if no view answers.
    """  # noqa: D301 - click's own mark
    if not path.startswith(("/", "http://", "https://")):
        raise click.UsageError(
            "the path begins with a slash: flask replicated explain GET /orders/7"
        )
    refuse_unregistered()
    found = _found(method.upper(), path)
    if as_json:
        click.echo(json.dumps(found._asdict()))
    else:
        _print(found)
    if found.endpoint is None:
        raise click.exceptions.Exit(1)


class _Found(NamedTuple):
    """What is found out of a request.

    Attributes:
        method: Its method.
        path: Its path, or its whole URL.
        endpoint: The endpoint of its view; None if no view answers.
        role: ``'primary'`` or ``'replica'``; None if that cannot be told.
        reason: Why; or why no view answers, or why it cannot be told.
        serve: The replicas that may serve it, by bind; ``''`` is the default one.
        out: Why others would not, by bind and name.
    """

    method: str
    path: str
    endpoint: str | None
    role: str | None
    reason: str
    serve: dict[str, list[str]]
    out: dict[str, dict[str, str]]


def _found(method: str, path: str) -> _Found:
    for routed in current_routes().values():
        routed.obey_orders()  # 'flask replicated off' may be one
    endpoint, decision, reason = _decided(method, path)
    role = None if decision is None else decision.role
    serve: dict[str, list[str]] = {}
    out: dict[str, dict[str, str]] = {}
    if role is Role.REPLICA:
        for bind, replicas in fleet_status().binds.items():
            wrong = {one["name"]: _why_not(one) for one in replicas}
            serve[bind] = [name for name, why in wrong.items() if why is None]
            out[bind] = {name: why for name, why in wrong.items() if why is not None}
    shown = None if role is None else role.value
    return _Found(method, path, endpoint, shown, reason, serve, out)


def _decided(method: str, path: str) -> tuple[str | None, Decision | None, str]:
    """Return a request's endpoint, where it reads, and why."""
    # Flask's own, not the test client's: no cookie, and no function before the view.
    with current_app.test_request_context(path, method=method):
        current, state = this_request(), current_app_state()
        if current.url_rule is None:
            return None, None, _unmatched(current.routing_exception)
        requested = None if state is None else state.request_state()
        if state is None or requested is None or not state.routes:
            return current.endpoint, None, "no bind of this application has replicas"
        try:
            decision = requested.decision
        except Exception as error:  # noqa: BLE001 - REPLICATED_IS_READ is the program's
            why = f"REPLICATED_IS_READ has failed here: {error_text(error)}"
            return current.endpoint, None, why
        if state.observation is not None and decision.role is Role.REPLICA:
            decision = observed(decision)
        return current.endpoint, decision, decision.reason


def _unmatched(error: Exception | None) -> str:
    if isinstance(error, RequestRedirect):
        return f"it is redirected to {error.new_url}"
    if isinstance(error, HTTPException):
        return f"no view answers it: {error.code} {error.name}"
    return "no view answers it"


def _why_not(one: dict[str, Any]) -> str | None:
    """Return why a replica would not serve; None if it would."""
    if one["state"] != "closed":
        return one["reason"] or str(one["state"])
    return one["reason"] or (None if one["weight"] else "weight 0")


def _print(found: _Found) -> None:
    asked = f"{found.method} {found.path}"
    if found.endpoint is None:
        click.echo(printable(f"{asked}: {found.reason}."))
        return
    asked = f"{asked} (endpoint {found.endpoint!r})"
    if found.role is None:
        click.echo(printable(f"{asked}: {found.reason}."))
        return
    server = "the primary" if found.role == "primary" else "a replica"
    click.echo(printable(f"{asked} reads from {server}: {found.reason}."))
    for bind, names in found.serve.items():
        _print_bind(bind, names, found.out[bind])
    click.echo(_UNSEEN)


def _print_bind(bind: str, names: list[str], out: dict[str, str]) -> None:
    state = current_app_state()
    if names:
        serving = f"one of {', '.join(names)}" if len(names) > 1 else names[0]
    elif state is not None and state.settings.fall_back:
        serving = "the primary, as no replica does (REPLICATED_FALLBACK = 'master')"
    else:
        serving = "none, and reads fail (REPLICATED_FALLBACK = 'error')"
    click.echo(printable(f"  {bind or '(default)'}: {serving}"))
    for name, why in out.items():
        click.echo(printable(f"    not {name}: {why}"))
