"""A shop whose tests use the kit, over any database."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from flask_replicated import FlaskReplicated, using_slave

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flask.testing import FlaskClient

__all__ = ["Shop", "isolated", "make_shop"]


@dataclass
class Shop:
    """An application with guests.

    Attributes:
        app: The application.
        db: Its Flask-SQLAlchemy.
        guest: Its model.
        logged: A model on the bind ``audit``, if that is configured.
    """

    app: Flask
    db: SQLAlchemy
    guest: Any
    logged: Any

    def client(self) -> FlaskClient:
        """Return a client without cookies."""
        return self.app.test_client()

    def names(self, client: FlaskClient | None = None) -> list[str]:
        """Return what a GET shows; by default that of a client without a pin."""
        return cast("list[str]", (client or self.client()).get("/").json)

    def close(self) -> None:
        """Drop the tables, and close every connection."""
        with self.app.app_context():
            self.db.session.remove()
            self.db.drop_all()
            for engine in self.db.engines.values():
                engine.dispose()


def _send_begin(db: SQLAlchemy) -> None:
    """Let SQLite's driver begin transactions where SQLAlchemy does.

    As SQLAlchemy's documentation of its SQLite dialects says.
    """

    @sa.event.listens_for(db.engine, "connect")
    def leave_transactions_to_us(driver: Any, _record: Any) -> None:
        driver.isolation_level = None

    @sa.event.listens_for(db.engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN")


def make_shop(url: str, binds: dict[str, Any] | None = None, **config: Any) -> Shop:
    """Return a shop with its tables.

    Args:
        url: Its database.
        binds: Other binds; no replicas by default.
        config: Other settings.
    """
    app, db = Flask("shop"), SQLAlchemy()
    app.config.update(SECRET_KEY="not-a-secret", SQLALCHEMY_DATABASE_URI=url)
    app.config.update(SQLALCHEMY_BINDS=binds or {}, TESTING=True, **config)

    class Guest(db.Model):  # type: ignore[name-defined,misc]  # Flask-SQLAlchemy's way
        __tablename__ = "kit_guest"
        id = db.Column(db.Integer, primary_key=True)
        name = db.Column(db.String(50), unique=True, nullable=False)

    class Logged(db.Model):  # type: ignore[name-defined,misc]  # the same
        __tablename__ = "kit_logged"
        __bind_key__ = "audit" if "audit" in (binds or {}) else None
        id = db.Column(db.Integer, primary_key=True)
        text = db.Column(db.String(50))

    db.init_app(app)
    FlaskReplicated(app)
    shop = Shop(app, db, Guest, Logged)
    _add_views(shop)
    with app.app_context():
        if (
            db.engine.dialect.name == "sqlite"
            and db.engine.dialect.driver != "aiosqlite"
        ):
            _send_begin(db)
        db.create_all()
    return shop


def _add_views(shop: Shop) -> None:
    app, session, guest = shop.app, shop.db.session, shop.guest

    @app.get("/")
    def guests() -> list[str]:
        return list(session.scalars(sa.select(guest.name).order_by(guest.id)))

    @app.post("/<name>")
    def add(name: str) -> list[str]:
        session.add(guest(name=name))
        session.commit()
        return guests()

    @app.post("/twice/<name>")
    def add_twice(name: str) -> list[str]:
        session.add(guest(name=name))
        session.commit()
        session.add(guest(name=name))
        try:
            session.commit()
        except sa.exc.IntegrityError:
            session.rollback()
        session.add(guest(name=f"{name} the second"))
        session.flush()
        session.rollback()
        return guests()

    @app.get("/report")
    def report() -> str:
        with using_slave():
            session.add(guest(name="written by a report"))
            session.commit()
        return "written"

    @app.get("/logged")
    def logged() -> list[str]:
        names = guests()
        return [*names, *session.scalars(sa.select(shop.logged.text))]


@contextmanager
def isolated(shop: Shop, *, every: bool = False) -> Iterator[None]:
    """Put a connection, in a transaction that is rolled back, in each engine's place.

    As a fixture does that isolates tests.

    Args:
        shop: The shop.
        every: Also in the places of the replicas' engines.
    """
    with shop.app.app_context():
        engines: Any = shop.db.engines
        shop.db.session.configure(join_transaction_mode="create_savepoint")
    replaced = []
    for key, engine in list(engines.items()):
        if "slave" in str(key) and not every:
            continue
        connection = engine.connect()
        transaction = connection.begin()
        engines[key] = connection
        replaced.append((key, engine, connection, transaction))
    try:
        yield
    finally:
        for key, engine, connection, transaction in replaced:
            transaction.rollback()
            connection.close()
            engines[key] = engine
