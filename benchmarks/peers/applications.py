"""One application, whose session is this project's or one of its peers'."""

from __future__ import annotations

import contextlib
import random
import time
from typing import TYPE_CHECKING, Any, Final

from advanced_alchemy.config.routing import RoutingConfig
from advanced_alchemy.routing import RoutingSyncSessionMaker
from flask import Flask, jsonify, request
from flask.globals import app_ctx
from flask_sqlalchemy import SQLAlchemy
from flask_sqlalchemy.session import Session
from sqlalchemy import Delete, Update, func, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, scoped_session

from flask_replicated import FlaskReplicated
from tests.chaos.app import DEFAULTS
from tests.haproxy import PROGRAM as HAPROXY
from tests.haproxy import haproxy
from tests.pgbouncer import DRIVER_OPTIONS, pgbouncer
from tests.pgbouncer import PROGRAM as PGBOUNCER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from flask import Response
    from sqlalchemy import Engine

__all__ = ["OURS", "PLAIN", "UNPINNED", "Base", "PeerApp", "applications"]

OURS: Final = "flask_replicated"
UNPINNED: Final = "flask_replicated, guarantee 'none'"
PLAIN: Final = "the primary alone"
_OPTIONS: Final = {"connect_args": {"connect_timeout": 2}}
"""The others have the connect timeout that is this project's default."""


class Base(DeclarativeBase):
    """The tables of all applications."""


class Note(Base):
    """A row to read and to change."""

    __tablename__ = "peer_note"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


class Entry(Base):
    """A row that a visitor has written."""

    __tablename__ = "peer_entry"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(index=True)


_LOOKS: Final = select(func.current_setting("cluster_name"), func.max(Entry.id))
_FINDS: Final = text(
    "select current_setting('cluster_name'), "
    "exists (select 1 from peer_entry where name = :key)"
)


class _Recipe(Session):
    """Routes as the custom ``get_bind`` in SQLAlchemy's documentation does.

    "Partitioning Strategies", "Custom Vertical Partitioning": what is flushed, updates
    and deletes go to the leader, all else to a follower by chance.
    """

    def get_bind(
        self,
        mapper: Any = None,  # noqa: ARG002 - SQLAlchemy's signature
        clause: Any = None,
        bind: Any = None,
        **_: Any,
    ) -> Any:
        """Return the engine for a statement."""
        engines = self._db.engines
        if bind is not None or self._flushing or isinstance(clause, Update | Delete):
            return engines[None] if bind is None else bind
        return engines[random.choice([key for key in engines if key is not None])]


class PeerApp:
    """The application.

    ``/notes/<id>`` reads one row by its primary key as JSON, and a POST changes it.
    ``/`` tells which server has answered, and a POST adds a key; ``/has`` tells whether
    it is there.

    Args:
        app: Where it is served.
        session: What it executes statements by.
        engines: Returns the engines of that.
    """

    def __init__(
        self, app: Flask, session: Any, engines: Callable[[], Iterable[Engine]]
    ) -> None:
        self.app = app
        self._session = session
        self._engines = engines
        app.add_url_rule("/notes/<int:number>", "show", self._show)
        app.add_url_rule(
            "/notes/<int:number>", "change", self._change, methods=["POST"]
        )
        app.add_url_rule("/", "look", self._look)
        app.add_url_rule("/", "add", self._add, methods=["POST"])
        app.add_url_rule("/has", "has", self._has)
        app.register_error_handler(Exception, self._failed)

    def _failed(self, error: Exception) -> tuple[Response, int]:
        return jsonify(error=type(error).__name__), 500

    def dispose(self) -> None:
        """Close every pooled connection."""
        with self.app.app_context():
            for engine in self._engines():
                engine.dispose()

    def _show(self, number: int) -> dict[str, Any]:
        note = self._session.get(Note, number)
        return {"id": note.id, "text": note.text}

    def _change(self, number: int) -> dict[str, Any]:
        note = self._session.get(Note, number)
        note.text = f"note {number} of {time.time_ns()}"
        self._session.commit()
        return {"id": number}

    def _look(self) -> Response:
        return jsonify(server=self._session.execute(_LOOKS).one()[0])

    def _add(self) -> Response:
        self._session.add(Entry(name=request.args["key"]))
        self._session.commit()
        return jsonify()

    def _has(self) -> Response:
        server, found = self._session.execute(_FINDS, dict(request.args)).one()
        return jsonify(server=server, found=bool(found))


def _flask(
    primary: str,
    replicas: Sequence[Any] = (),
    *,
    session: type[Session] = Session,
    options: Mapping[str, Any] = _OPTIONS,
    **settings: Any,
) -> tuple[Flask, SQLAlchemy]:
    app = Flask("peer")
    app.config.update(settings, SECRET_KEY="not-a-secret")
    app.config["SQLALCHEMY_DATABASE_URI"] = primary
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = dict(options)
    app.config["SQLALCHEMY_BINDS"] = {
        f"slave_{n}": {"url": url, **options} for n, url in enumerate(replicas, 1)
    }
    return app, SQLAlchemy(app, session_options={"class_": session})


def _served(app: Flask, db: SQLAlchemy) -> PeerApp:
    def engines() -> Iterable[Engine]:
        return db.engines.values()

    return PeerApp(app, db.session, engines)


def _ours(primary: str, replicas: Sequence[str], **settings: Any) -> PeerApp:
    # Its defaults; the one setting that is not is a limit to the lag, of five seconds.
    app, db = _flask(primary, replicas, options={}, **DEFAULTS, **settings)
    FlaskReplicated(app)
    return _served(app, db)


def _plain(primary: str) -> PeerApp:
    app, db = _flask(primary)
    return _served(app, db)


def _recipe(primary: str, replicas: Sequence[str], **options: Any) -> PeerApp:
    app, db = _flask(
        primary, replicas, session=_Recipe, options={**_OPTIONS, **options}
    )
    return _served(app, db)


def _app_context() -> int:
    """Return what a session lives for, as Flask-SQLAlchemy does."""
    return id(app_ctx._get_current_object())  # type: ignore[attr-defined]  # noqa: SLF001


def _advanced_alchemy(primary: str, replicas: Sequence[str]) -> PeerApp:
    routing = RoutingConfig(
        primary_connection_string=primary, read_replicas=list(replicas)
    )
    maker = RoutingSyncSessionMaker(routing, engine_config=dict(_OPTIONS))
    app = Flask("peer")
    session = scoped_session(maker, scopefunc=_app_context)
    app.teardown_appcontext(lambda _: session.remove())
    engines = (maker.primary_engine, *maker.replica_engines)
    return PeerApp(app, session, lambda: engines)


def _libpq(primary: str, ports: Sequence[int]) -> PeerApp:
    hosts = "&".join(f"host=127.0.0.1:{port}" for port in ports)
    url = f"postgresql+psycopg://postgres@/postgres?{hosts}&load_balance_hosts=random"
    return _recipe(primary, [url])


@contextlib.contextmanager
def applications(primary: int, standbys: Sequence[int]) -> Iterator[dict[str, PeerApp]]:
    """Yield each application by name, the proxies running that it needs.

    Args:
        primary: The port of the primary.
        standbys: The ports of the standbys.
    """

    def url(port: int) -> str:
        return f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"

    leader, followers = url(primary), [url(port) for port in standbys]
    found = {
        PLAIN: _plain(leader),
        OURS: _ours(leader, followers),
        f"{OURS}, least_outstanding": _ours(
            leader, followers, REPLICATED_BALANCER="least_outstanding"
        ),
        UNPINNED: _ours(leader, followers, REPLICATED_GUARANTEE="none"),
        "SQLAlchemy's recipe": _recipe(leader, followers),
        "the recipe, pool_pre_ping": _recipe(leader, followers, pool_pre_ping=True),
        "advanced-alchemy": _advanced_alchemy(leader, followers),
        "libpq, load_balance_hosts": _libpq(leader, standbys),
    }
    with contextlib.ExitStack() as stack:
        if HAPROXY:
            balanced = stack.enter_context(haproxy(*standbys))
            found["HAProxy in front"] = _recipe(leader, [url(balanced)])
            if PGBOUNCER:
                pooled = stack.enter_context(pgbouncer(balanced))
                options = {**_OPTIONS["connect_args"], **DRIVER_OPTIONS["connect_args"]}
                found["PgBouncer and HAProxy"] = _recipe(
                    leader, [url(pooled)], connect_args=options
                )
        try:
            yield found
        finally:
            for peer in found.values():
                peer.dispose()
