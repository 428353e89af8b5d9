"""An application whose requests do all that requests do, well and badly."""

from __future__ import annotations

import contextlib
import sqlite3
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import event, select

from flask_replicated import FlaskReplicated

from .views import DECORATORS, VIEWS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sqlalchemy import Engine

__all__ = ["SECRET", "Shop"]

SECRET: Final = "not-a-secret"
_KEPT: Final = 50
"""Rows that the table is cut back to."""


class Shop:
    """The application, over one SQLite file that its replicas open, too.

    Args:
        folder: Where the file is.
        query_cache_size: How many compiled statements each engine keeps.
        config: Further settings.

    Attributes:
        app: What is asked.
        held: Connections that are checked out.
    """

    def __init__(
        self, folder: Path, *, query_cache_size: int = 100, **config: Any
    ) -> None:
        url = f"sqlite:///{folder / 'shop.db'}"
        self._bind = {"url": url, "query_cache_size": query_cache_size}
        self.held: set[object] = set()
        self.app = Flask("shop")
        self.app.config.update(
            SECRET_KEY=SECRET,
            SQLALCHEMY_DATABASE_URI=url,
            SQLALCHEMY_ENGINE_OPTIONS={"query_cache_size": query_cache_size},
            SQLALCHEMY_BINDS={f"slave_{n}": self._bind for n in (1, 2, 3)},
            **config,
        )
        # To fail is what half of the views are there for.
        self.app.logger.disabled = True
        self.db = db = SQLAlchemy(self.app)
        columns = {
            "id": db.Column(db.Integer, primary_key=True),
            "text": db.Column(db.String, nullable=False),
        }
        self.entry: Any = type("Entry", (db.Model,), columns)
        self._replicated = FlaskReplicated(self.app)
        self._route()
        self._fill()

    def _route(self) -> None:
        for name, view in VIEWS.items():
            decorate: Callable[..., Any] = DECORATORS.get(name, _as_it_is)
            bound = decorate(partial(view, self))
            rule = f"/{name}/<int:number>"
            self.app.add_url_rule(rule, name, bound, methods=["GET", "POST"])

    def _fill(self) -> None:
        with self.app.app_context():
            for engine in self.db.engines.values():
                self._watch(getattr(engine, "real", engine))
            self.db.create_all()
            self.db.session.add_all(self.entry(text=f"{n}") for n in range(_KEPT))
            self.db.session.commit()

    def _watch(self, engine: Engine) -> None:
        event.listen(engine, "connect", _prepare, insert=True)
        event.listen(engine, "checkout", lambda _, one, __: self.held.add(one))
        event.listen(engine, "checkin", lambda _, one: self.held.discard(one))

    def texts(self) -> list[str]:
        """Read by way of the model."""
        entries = select(self.entry).order_by(self.entry.id.desc()).limit(5)
        return [entry.text for entry in self.db.session.scalars(entries)]

    def write(self, number: int) -> None:
        """Commit an entry, and cut the table back now and then."""
        self.db.session.add(self.entry(text=f"{number}"))
        self.db.session.flush()
        if number % 7 == 0:
            newest: Any = self.db.session.scalar(select(sa.func.max(self.entry.id)))
            old = sa.delete(self.entry).where(self.entry.id < newest - _KEPT)
            self.db.session.execute(old)
        self.db.session.commit()

    def renew(self) -> None:
        """Let one replica go, and another come."""
        with self.app.app_context():
            self._replicated.remove("slave_3")
            self._replicated.add("slave_3", self._bind)
            self._watch(self.db.engines["slave_3"])

    def forget_names(self) -> None:
        """Let SQLAlchemy's dialects forget the names that they have quoted.

        They keep each for good, and some visits make names up.
        """
        with self.app.app_context():
            for engine in self.db.engines.values():
                preparer: Any = engine.dialect.identifier_preparer
                preparer._strings.clear()

    def dispose(self) -> None:
        """Close every pooled connection."""
        with self.app.app_context():
            for engine in self.db.engines.values():
                engine.dispose()


def _as_it_is(function: Any) -> Any:
    return function


def _prepare(connection: Any, _record: object) -> None:
    # A function that is known to write, and does nothing here.
    connection.create_function("nextval", 1, lambda _: 1)
    with (
        contextlib.suppress(sqlite3.OperationalError),
        closing(connection.cursor()) as cursor,
    ):
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = OFF")
