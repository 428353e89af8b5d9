"""Applications over SQLite files, each of which tells its own name."""

from __future__ import annotations

import functools
import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from hypothesis import settings
from sqlalchemy import Engine, NullPool, event, select, text

from flask_replicated import FlaskReplicated, WriteOnReplicaError, using_slave

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from flask.testing import FlaskClient
    from werkzeug.test import TestResponse

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
COOKIE = "replicated_pin"
REPLICAS = ("slave_1", "slave_2", "slave_3")
SECRET = "not-a-secret"

# How long one example takes says more about the machine than about the code.
unhurried = settings(deadline=None, max_examples=60)


@functools.cache
def database_bytes(name: str) -> bytes:
    """Return a database file whose marker row says *name*."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "template.db"
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript(
                f"""
                PRAGMA synchronous = OFF;
                CREATE TABLE marker (name VARCHAR PRIMARY KEY);
                CREATE TABLE entry (id INTEGER PRIMARY KEY, text VARCHAR NOT NULL);
                INSERT INTO marker VALUES ('{name}');
                """
            )
        return path.read_bytes()


def make_file(folder: Path, name: str) -> Path:
    """Create the database file *name*, also in place of a broken one."""
    path = folder / f"{name}.db"
    if path.is_dir():
        path.rmdir()
    if not path.exists():
        path.write_bytes(database_bytes(name))
    return path


def break_file(folder: Path, name: str) -> None:
    """Make the database *name* impossible to open."""
    path = folder / f"{name}.db"
    path.unlink(missing_ok=True)
    path.mkdir()


def sqlite_url(path: Path) -> str:
    """Return the URL of a database file."""
    return f"sqlite:///{path}"


def unpooled(path: Path) -> dict[str, Any]:
    """Return a bind that opens its file anew for every connection."""
    return {"url": sqlite_url(path), "poolclass": NullPool}


def make_models(db: SQLAlchemy) -> tuple[Any, Any]:
    """Declare the two models that every file has a table for."""
    marker = type(
        "Marker",
        (db.Model,),
        {"__tablename__": "marker", "name": db.Column(db.String, primary_key=True)},
    )
    entry = type(
        "Entry",
        (db.Model,),
        {
            "__tablename__": "entry",
            "id": db.Column(db.Integer, primary_key=True),
            "text": db.Column(db.String, nullable=False),
        },
    )
    return marker, entry


@dataclass
class Site:
    """An application, its files, and short ways to ask who serves.

    Attributes:
        seen: Who served each call of :meth:`who`, in order.
    """

    app: Flask
    db: SQLAlchemy
    marker: Any
    entry: Any
    folder: Path
    seen: list[str] = field(default_factory=list)

    def who(self) -> str:
        """Return the name of the server that a read goes to now."""
        name = self.db.session.scalars(select(self.marker.name)).one()
        self.seen.append(name)
        return str(name)

    def role(self) -> str:
        """Return ``'primary'`` or ``'replica'`` for what :meth:`who` says."""
        return "primary" if self.who() == "master" else "replica"

    def write(self, entry: str = "written") -> None:
        """Add an entry and commit."""
        self.db.session.add(self.entry(text=entry))
        self.db.session.commit()

    def refused(self) -> str:
        """Write where a replica was asked for, which is refused."""
        with using_slave(), pytest.raises(WriteOnReplicaError):
            self.write()
        self.db.session.rollback()
        return "refused"

    def entries(self, name: str = "master") -> list[str]:
        """Return the entries in one database file, read without the application."""
        with closing(sqlite3.connect(self.folder / f"{name}.db")) as connection:
            rows = connection.execute("SELECT text FROM entry ORDER BY id").fetchall()
        return [entry for (entry,) in rows]

    def client(self) -> FlaskClient:
        """Return a client that has no cookies yet."""
        return self.app.test_client()

    def get(self, path: str = "/") -> str:
        """Return the body of a GET by a fresh client."""
        response = self.client().get(path)
        assert response.status_code == 200, response.text
        return response.text

    def count(self, requests: int, path: str = "/") -> Counter[str]:
        """Return who served so many GETs by fresh clients."""
        return Counter(self.get(path) for _ in range(requests))

    def dispose(self) -> None:
        """Close every pooled connection."""
        with self.app.app_context():
            for engine in self.db.engines.values():
                engine.dispose()


def add_views(site: Site) -> None:
    """Add ``/``, which reads, and ``/write``, which commits and then reads."""
    site.app.add_url_rule(
        "/", "who", site.who, methods=METHODS, provide_automatic_options=False
    )

    def write() -> str:
        site.write()
        return site.who()

    site.app.add_url_rule("/write", "write", write, methods=["GET", "POST"])


class Build(Protocol):
    """Make an application over files called master, slave_1 and so on."""

    def __call__(
        self,
        replicas: Iterable[str] = REPLICAS,
        *,
        binds: Mapping[str, Any] | None = None,
        db: SQLAlchemy | None = None,
        extension: FlaskReplicated | None = None,
        folder: Path | None = None,
        **config: Any,
    ) -> Site:
        """Return the site.

        Args:
            replicas: Bind names, each with a file of its own.
            binds: Further binds, which win over *replicas*.
            db: A ``db`` to share; its models are declared by the first site.
            extension: An extension to share.
            folder: Where the files are.
            config: Settings.
        """


@pytest.fixture
def build_fixture(tmp_path: Path) -> Iterator[Build]:
    """Give a function that makes applications, and close what they opened."""
    sites: list[Site] = []

    def build(
        replicas: Iterable[str] = REPLICAS,
        *,
        binds: Mapping[str, Any] | None = None,
        db: SQLAlchemy | None = None,
        extension: FlaskReplicated | None = None,
        folder: Path | None = None,
        **config: Any,
    ) -> Site:
        folder = folder or tmp_path
        app = Flask("site")
        primary = make_file(folder, "master")
        named = {name: sqlite_url(make_file(folder, name)) for name in replicas}
        app.config.update(
            {
                "SECRET_KEY": SECRET,
                "SQLALCHEMY_DATABASE_URI": sqlite_url(primary),
                "SQLALCHEMY_BINDS": named | dict(binds or {}),
            }
            | config
        )
        known = next((site for site in sites if site.db is db), None)
        if db is None:
            db = SQLAlchemy()
        marker, entry = (known.marker, known.entry) if known else make_models(db)
        db.init_app(app)
        site = Site(app, db, marker, entry, folder)
        sites.append(site)
        (extension or FlaskReplicated()).init_app(app)
        add_views(site)
        return site

    yield build
    for site in sites:
        site.dispose()


def answer(site: Site, function: Callable[[], Any], *methods: str) -> str:
    """Add a view at ``/view`` and return what a request to it answers."""
    method = methods[0] if methods else "GET"
    site.app.add_url_rule("/view", "view", function, methods=[method])
    response = site.client().open("/view", method=method)
    assert response.status_code == 200, response.text
    return response.text


def core(engine: Engine) -> Any:
    """Return who serves a Core connection."""
    with engine.connect() as connection:
        return connection.scalar(text("SELECT name FROM marker"))


def pin_of(response: TestResponse) -> str | None:
    """Return the pin that a response sets, or None."""
    for header in response.headers.getlist("Set-Cookie"):
        name, _, value = header.partition("=")
        if name == COOKIE:
            return value.partition(";")[0]
    return None


def get_with_pin(app: Flask, pin: object) -> str:
    """Return the body of a GET that brings this text as its pin."""
    # A client that keeps cookies would drop the header.
    client = app.test_client(use_cookies=False)
    response = client.get("/", headers={"Cookie": f"{COOKIE}={pin}"})
    assert response.status_code == 200, response.text
    return response.text


def connect_arguments_of(engine: Engine) -> dict[str, Any]:
    """Return what a driver is told to connect with, in place of connecting."""
    seen: list[dict[str, Any]] = []

    @event.listens_for(engine, "do_connect")
    def stop(_dialect: Any, _record: Any, _cargs: Any, cparams: dict[str, Any]) -> None:
        seen.append(cparams)
        raise ConnectionRefusedError

    with pytest.raises(ConnectionRefusedError):
        engine.connect()
    return seen[0]
