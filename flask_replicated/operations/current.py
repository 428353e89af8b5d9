"""What a command works on: the current application's replicas and control place."""

from __future__ import annotations

import functools
import traceback
from typing import TYPE_CHECKING, Any

import click
from flask import current_app
from flask.cli import ScriptInfo

from flask_replicated.errors import ConfigurationError
from flask_replicated.errors.redaction import printable
from flask_replicated.routing.state import current_app_state

from .control import CONTROL

if TYPE_CHECKING:
    from collections.abc import Callable

    from flask_replicated.engine.engines import RoutedEngine

    from .control import Control
    from .place import ControlPlace

__all__ = [
    "NoReplicasError",
    "current_control",
    "current_place",
    "current_routes",
    "enter_app",
    "missing_extension",
    "refuse_unregistered",
    "with_app",
]

_FAILED = 2  # an uncaught error gives 1, which has a meaning of its own


class NoReplicasError(click.ClickException):
    """A command has nothing to work on; its message is the one line that says why."""

    exit_code = _FAILED

    def __init__(self, why: str) -> None:
        super().__init__(printable(why))


def with_app(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command run with the application's context, as Flask's own do.

    Where a setting keeps the application from starting, one line says so.
    """

    @click.pass_context
    @functools.wraps(command)
    def run(ctx: click.Context, /, *args: Any, **kwargs: Any) -> None:
        try:
            enter_app(ctx)
        except ConfigurationError as error:
            why = f"the application does not start: {error}"
            raise NoReplicasError(why) from error
        ctx.invoke(command, *args, **kwargs)

    return run


def missing_extension() -> str | None:
    """Return which extension the current application lacks to have replicas."""
    if current_app_state() is not None:
        return None
    registered = "replicated" in current_app.extensions  # and waits for the engines
    return "Flask-SQLAlchemy" if registered else "FlaskReplicated"


def refuse_unregistered() -> None:
    """Raise NoReplicasError if the current application lacks an extension."""
    missing = missing_extension()
    if missing is not None:
        raise NoReplicasError(f"{missing} is not registered on this application.")


def enter_app(ctx: click.Context) -> None:
    """Push the application's context, for a command whose exit codes have a meaning.

    Raises:
        ConfigurationError: A setting keeps the application from starting.
        click.exceptions.Exit: Another error does; its traceback is printed.
    """
    if current_app:
        return
    try:
        app = ctx.ensure_object(ScriptInfo).load_app()
    except (ConfigurationError, click.ClickException):
        raise
    except Exception:  # noqa: BLE001 - of the application's own code
        traceback.print_exc()
        ctx.exit(_FAILED)
    ctx.with_resource(app.app_context())


def current_routes() -> dict[str | None, RoutedEngine]:
    """Return the current application's binds that have replicas."""
    state = current_app_state()
    return {} if state is None else state.routes


def current_control() -> Control | None:
    """Return the current application's part in its control place, if it has one."""
    control: Control | None = current_app.extensions.get(CONTROL)
    return control


def current_place() -> ControlPlace | None:
    """Return the current application's control place; None if it has none."""
    control = current_control()
    return None if control is None else control.place
