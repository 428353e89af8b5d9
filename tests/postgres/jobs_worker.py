"""A worker for the jobs of an example, which notes which server each statement goes to.

Run with ``celery`` or ``rq``. The environment has the application's settings as JSON,
and the file that the notes are added to.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import event

if TYPE_CHECKING:
    from flask import Flask


def note_statements(app: Flask, notes: Path) -> None:
    """Add a line for each statement: the bind that it is sent to.

    Args:
        app: The application.
        notes: The file; forked processes add to it, too.
    """
    state = app.extensions["replicated"].state(app)
    with app.app_context():
        engines = dict(app.extensions["sqlalchemy"].engines)
    engines[None] = state.routes[None].real
    for name, engine in engines.items():
        listen(engine, name or "primary", notes)


def listen(engine: Any, name: str, notes: Path) -> None:
    """Note the statements of one engine."""

    @event.listens_for(engine, "before_cursor_execute")
    def note(*_: object) -> None:
        with notes.open("a") as file:
            file.write(f"{name}\n")


def main(library: str) -> None:
    """Work until a signal ends that."""
    module = importlib.import_module(f"examples.jobs_{library}")
    app = module.create_app(**json.loads(os.environ["JOBS"]))
    note_statements(app, Path(os.environ["NOTES"]))
    if library == "celery":
        quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat")
        arguments = ["worker", "--loglevel", "INFO", "--concurrency", "1", *quiet]
        app.extensions["celery"].worker_main(arguments)
    else:
        module.work(app)


if __name__ == "__main__":
    main(sys.argv[1])
