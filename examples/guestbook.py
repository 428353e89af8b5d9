"""A guestbook: one primary takes the entries, any number of replicas show them.

    app = create_app("postgresql+psycopg://...", ["postgresql+psycopg://...", ...])

Everything that concerns replication is in `create_app`; models and views are what
they would be on a single database. `GET /` shows the page, its form posts to ``/``,
`GET /who` says as JSON which server has answered, `GET /pool` how each replica does.
"""

from __future__ import annotations

import secrets
from datetime import datetime  # noqa: TC003 - SQLAlchemy reads the annotation
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from flask import Blueprint, Flask, abort, redirect, render_template, request, url_for
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import String, func, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from flask_replicated import ConfigurationError, FlaskReplicated

if TYPE_CHECKING:
    from collections.abc import Sequence

    from werkzeug import Response

    from balancers.events import MemberSnapshot

__all__ = ["Entry", "create_app", "db"]


class Base(DeclarativeBase):
    """The base class of all models."""


db = SQLAlchemy(model_class=Base)
replicated = FlaskReplicated()
pages = Blueprint("guestbook", __name__)


class Entry(db.Model):  # type: ignore[misc, name-defined]  # a run-time class
    """What a visitor wrote."""

    id: Mapped[int] = mapped_column(primary_key=True)
    author: Mapped[str] = mapped_column(String(40))
    message: Mapped[str] = mapped_column(String(400))
    written: Mapped[datetime] = mapped_column(server_default=func.now())


def create_app(
    primary_url: str, replica_urls: Sequence[str], **settings: object
) -> Flask:
    """Return a guestbook that writes to the primary and reads from the replicas.

    Args:
        primary_url: Where the primary is, for SQLAlchemy.
        replica_urls: Where the replicas are; they become ``slave_1``, ``slave_2`` ...
        settings: Further configuration, such as ``REPLICATED_PIN_SECONDS=3``.
    """
    app = Flask(__name__)
    app.config.update(
        # Give a key of your own: this one is another after every start.
        SECRET_KEY=secrets.token_hex(),
        SQLALCHEMY_DATABASE_URI=primary_url,
        SQLALCHEMY_BINDS={f"slave_{n}": url for n, url in enumerate(replica_urls, 1)},
    )
    app.config.update(settings)
    db.init_app(app)
    replicated.init_app(app)
    app.register_blueprint(pages)
    with app.app_context():
        db.create_all()
    return app


@pages.get("/")
def index() -> str:
    """Show the latest entries, and who served them."""
    entries = db.session.scalars(select(Entry).order_by(Entry.id.desc()).limit(20))
    return render_template(
        "guestbook.html", entries=entries.all(), served=who_serves(), pool=members()
    )


@pages.post("/")
def sign() -> Response:
    """Add an entry, then show the page."""
    author, message = (request.form[name].strip() for name in ("author", "message"))
    if not (author and message) or len(author) > 40 or len(message) > 400:
        abort(400, "A name of up to 40 characters and a message of up to 400, please.")
    db.session.add(Entry(author=author, message=message))
    db.session.commit()
    return redirect(url_for(".index"), 303)


@pages.get("/who")
def who() -> dict[str, str]:
    """Say which server has answered."""
    return who_serves()._asdict()


@pages.get("/pool")
def pool() -> list[dict[str, object]]:
    """Say how each replica does; asks no database."""
    return [{"name": one.name, "live": one.live} for one in members()]


class Served(NamedTuple):
    """A server's name and its role, ``primary`` or ``replica``."""

    server: str
    role: str


_WHO = {
    "postgresql": text(
        "SELECT coalesce(nullif(current_setting('cluster_name'), ''),"
        " concat(host(inet_server_addr()), ':', inet_server_port())),"
        " pg_is_in_recovery()"
    ),
    "sqlite": text(
        "SELECT file, query_only FROM pragma_database_list, pragma_query_only"
        " WHERE name = 'main'"
    ),
}


def who_serves() -> Served:
    """Ask the server that reads of this request go to for its name and role."""
    name, copies = db.session.execute(_WHO[db.engine.dialect.name]).one()
    return Served(Path(name).name, "replica" if copies else "primary")


def members() -> tuple[MemberSnapshot, ...]:
    """Return the present condition of every replica of this application."""
    try:
        return replicated.pool().snapshot().members
    except ConfigurationError:  # this application has no replicas
        return ()
