"""One small application, with the extension or without."""

from __future__ import annotations

import contextvars
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flask import Flask, render_template
from flask_sqlalchemy import SQLAlchemy
from jinja2 import DictLoader
from sqlalchemy.orm import Mapped, mapped_column
from werkzeug.test import EnvironBuilder

from flask_replicated import FlaskReplicated

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["NotesApp", "sqlite_apps"]

ROWS = 100
PAGE = """<!doctype html><title>Notes</title><h1>Notes</h1>
<ul>
{% for note in notes %}
  <li><a href="{{ url_for('show', number=note.id) }}">{{ note.text }}</a>
{% endfor %}
</ul>
"""


@dataclass(frozen=True)
class NotesApp:
    """An application that shows notes as JSON.

    Attributes:
        app: The application; ``/notes/<id>`` reads one row by its primary key,
            ``/notes`` renders a page of twenty.
        db: Its Flask-SQLAlchemy object.
        note: Its one model.
    """

    app: Flask
    db: SQLAlchemy
    note: Any

    @classmethod
    def build(cls, primary: str, replicas: Sequence[str] = ()) -> NotesApp:
        """Build the application.

        Args:
            primary: The URL of its database.
            replicas: The URLs of replicas; without any, the extension is left out.
        """
        app = Flask("notes")
        app.config["SECRET_KEY"] = "benchmark"
        app.config["SQLALCHEMY_DATABASE_URI"] = primary
        app.config["SQLALCHEMY_BINDS"] = {
            f"slave_{number}": url for number, url in enumerate(replicas, 1)
        }
        db = SQLAlchemy(app)

        class Note(db.Model):  # type: ignore[name-defined,misc]  # made at run time
            id: Mapped[int] = mapped_column(primary_key=True)
            text: Mapped[str]

        @app.get("/notes/<int:number>")
        def show(number: int) -> dict[str, Any]:
            note = db.get_or_404(Note, number)
            return {"id": note.id, "text": note.text}

        @app.get("/notes")
        def page() -> str:
            recent = db.select(Note).order_by(Note.id.desc()).limit(20)
            return render_template("notes.html", notes=db.session.scalars(recent))

        app.jinja_loader = DictLoader({"notes.html": PAGE})
        if replicas:
            FlaskReplicated(app)
        return cls(app, db, Note)

    def fill(self) -> None:
        """Make the table, and write some rows."""
        with self.app.app_context():
            self.db.create_all()
            self.db.session.add_all(
                self.note(id=number, text=f"note {number}")
                for number in range(1, ROWS + 1)
            )
            self.db.session.commit()

    def close(self) -> None:
        """Close every pooled connection."""
        with self.app.app_context():
            for engine in self.db.engines.values():
                engine.dispose()

    def inside_get(self) -> contextvars.Context:
        """Return a context in which the application answers a GET, for good."""
        context = contextvars.copy_context()
        context.run(self.app.test_request_context("/notes/1").push)
        return context

    def environ(self, path: str) -> dict[str, Any]:
        """Return what a WSGI server hands over for one GET."""
        return EnvironBuilder(path=path).get_environ()


def sqlite_apps(folder: Path) -> tuple[NotesApp, NotesApp]:
    """Return the application with two replicas, and without, over SQLite files."""
    files = [folder / f"{name}.sqlite" for name in ("primary", "one", "two")]
    primary, *replicas = (f"sqlite:///{file}" for file in files)
    plain = NotesApp.build(primary)
    plain.fill()
    for file in files[1:]:
        shutil.copy(files[0], file)
    return NotesApp.build(primary, replicas), plain
