"""One small application, with the extension or without."""

from __future__ import annotations

import contextvars
import shutil
import time
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

    from examples.cluster import Cluster

__all__ = ["Client", "NotesApp", "fill_cluster", "sqlite_apps"]

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
        app: The application; ``/notes/<id>`` reads one row by its primary key, a
            POST there changes it, ``/notes`` renders a page of twenty.
        db: Its Flask-SQLAlchemy object.
        note: Its one model.
    """

    app: Flask
    db: SQLAlchemy
    note: Any

    @classmethod
    def build(
        cls, primary: str, replicas: Sequence[str] = (), **settings: object
    ) -> NotesApp:
        """Build the application.

        Args:
            primary: The URL of its database.
            replicas: The URLs of replicas; without any, the extension is left out.
            settings: More for ``app.config``.
        """
        app = Flask("notes")
        app.config.update(settings)
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

        @app.post("/notes/<int:number>")
        def change(number: int) -> dict[str, Any]:
            note = db.get_or_404(Note, number)
            note.text = f"note {number} of {time.time_ns()}"
            db.session.commit()
            return {"id": number}

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

    def client(self, path: str, method: str = "GET") -> Client:
        """Return a client that sends one request again and again."""
        return Client(self.app, path, method)


class Client:
    """Sends one request again and again, as a WSGI server would hand it over.

    Args:
        app: The application.
        path: The request's path.
        method: Its method.
    """

    def __init__(self, app: Flask, path: str, method: str) -> None:
        self._app = app
        self._environ = EnvironBuilder(path=path, method=method).get_environ()
        self._status = ""
        self._headers: list[tuple[str, str]] = []

    def send(self) -> bytes:
        """Send it, and return the body of the response."""
        body: Any = self._app(dict(self._environ), self._start)
        try:
            return b"".join(body)
        finally:
            getattr(body, "close", int)()

    def _start(
        self, status: str, headers: list[tuple[str, str]], _error: Any = None
    ) -> Any:
        self._status, self._headers = status, headers

    def checked(self) -> Client:
        """Send it once; return this client, if the response is a good one.

        Raises:
            RuntimeError: It is not.
        """
        body = self.send()
        if self._status != "200 OK":
            raise RuntimeError(f"The response is {self._status}: {body!r}")
        return self

    @property
    def cookie(self) -> str:
        """The cookie that the last response has set, as a request has it; or ``""``."""
        given = dict(self._headers).get("Set-Cookie", "")
        return given.partition(";")[0]

    def carry(self, cookie: str) -> None:
        """Send a cookie from now on."""
        self._environ["HTTP_COOKIE"] = cookie


def fill_cluster(cluster: Cluster) -> NotesApp:
    """Return the application without replicas, its rows on every server."""
    plain = NotesApp.build(cluster.primary.url())
    with plain.app.app_context():
        plain.db.drop_all()
    plain.fill()
    cluster.wait_replicated()
    return plain


def sqlite_apps(folder: Path, **settings: object) -> tuple[NotesApp, NotesApp]:
    """Return the application with two replicas, and without, over SQLite files.

    Args:
        folder: A folder for the files that has none of them yet.
        settings: More for ``app.config`` of the first one.
    """
    files = [folder / f"{name}.sqlite" for name in ("primary", "one", "two")]
    primary, *replicas = (f"sqlite:///{file}" for file in files)
    plain = NotesApp.build(primary)
    plain.fill()
    for file in files[1:]:
        shutil.copy(files[0], file)
    return NotesApp.build(primary, replicas, **settings), plain
