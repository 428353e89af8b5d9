"""The group of commands ``flask replicated``."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from flask import Flask

__all__ = ["add_commands", "replicated"]

_COMMANDS = {
    "check": "check:check",
    "drain": "orders:drain",
    "explain": "explain_command:explain",
    "off": "orders:off",
    "on": "orders:on",
    "report": "report:report",
    "restore": "orders:restore",
    "status": "status:status",
    "weight": "orders:weight",
}
"""Each command's module in this package, and its name there. A module is imported when
its command is asked for, so that an application does not pay for it."""


class _Commands(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, in alphabetical order."""
        return sorted({*_COMMANDS, *super().list_commands(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command by its name; None if there is none."""
        place = _COMMANDS.get(cmd_name)
        if place is None:
            return super().get_command(ctx, cmd_name)
        module, _, name = place.partition(":")
        found: click.Command = getattr(import_module(f".{module}", __package__), name)
        return found


replicated = _Commands(
    "replicated", help="Look at the database replicas, and act on them."
)
"""The group; an entry point gives it to ``flask``, also where no application starts."""


def add_commands(app: Flask) -> None:
    """Give an application's command line the group ``replicated``."""
    app.cli.add_command(replicated)
