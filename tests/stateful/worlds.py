"""Two applications that take the same steps: one routed, one plain."""

from __future__ import annotations

import functools
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import event

from flask_replicated import FlaskReplicated
from tests.stateful.servers import Opened

if TYPE_CHECKING:
    from collections.abc import Callable

    from flask.ctx import RequestContext
    from sqlalchemy import Engine
    from sqlalchemy.orm import SessionTransaction

    from tests.stateful.servers import Pair

__all__ = ["RoutedWorld", "World", "plain_world", "routed_world"]

R = TypeVar("R")

MOMENTS = (
    "before_cursor_execute",
    "begin",
    "begin_twophase",
    "commit",
    "prepare_twophase",
    "commit_twophase",
    "release_savepoint",
    "rollback",
    "rollback_savepoint",
    "savepoint",
)
"""What an engine tells, each an instant before it happens."""
READS = ("SELECT", "SAVEPOINT", "RELEASE", "ROLLBACK", "WITH")


def _close(connection: Any) -> None:
    connection.close()


@dataclass
class World:
    """One application, its running request, and what the request holds.

    Attributes:
        loaded: The objects that the request has in its hands.
        nested: The savepoints that are open, innermost last.
    """

    app: Flask
    db: SQLAlchemy
    author: Any
    book: Any
    loaded: list[Any] = field(default_factory=list)
    nested: list[SessionTransaction] = field(default_factory=list)
    _kept: list[Any] = field(default_factory=list)
    _opened: Opened = field(default_factory=lambda: Opened(_close))
    _request: RequestContext | None = None
    _context: Context = field(default_factory=copy_context)

    @property
    def session(self) -> Any:
        """The session of the running request."""
        return self.db.session()

    def prepare(self, pair: Pair) -> None:
        """Follow the engines as they are before anything stands in front of them."""
        for engine in self.engines().values():
            pair.prepare(engine)
            self._opened.follow(engine)

    def engines(self) -> dict[str | None, Engine]:
        """Return the engines by bind key."""
        with self.app.app_context():
            return dict(self.db.engines)

    def start(self, method: str) -> None:
        """Start a request."""
        self._context = copy_context()
        self._request = self._context.run(
            self.app.test_request_context, "/", method=method
        )
        self._context.run(self._request.push)
        self._context.run(self._keep_all)

    def _keep_all(self) -> None:
        """Let no object leave the identity map by chance, in one world alone."""
        session = self.session

        def keep(_session: Any, instance: Any) -> None:
            self._kept.append(instance)

        for moment in ("loaded_as_persistent", "transient_to_pending"):
            event.listen(session, moment, keep)

    def run(self, step: Callable[..., R], *args: Any) -> R:
        """Take a step inside this world's request, which the other does not see."""
        return self._context.run(step, self, *args)

    def end(self) -> None:
        """End the request as Flask does."""
        request, self._request = self._request, None
        self.loaded.clear()
        self._kept.clear()
        self.nested.clear()
        if request is not None:
            self._context.run(request.pop)

    def checked_out(self) -> dict[str | None, int]:
        """Return how many connections of each bind are in somebody's hands."""
        held = {
            key: engine.pool.checkedout()  # type: ignore[attr-defined]  # a QueuePool
            for key, engine in self.engines().items()
        }
        return {key: number for key, number in held.items() if number}

    def dispose(self) -> None:
        """Close every connection, also one that somebody has forgotten."""
        for engine in self.engines().values():
            engine.dispose()
        self._opened.lose()


@dataclass
class RoutedWorld(World):
    """An application whose replicas can be lost at a chosen moment.

    Attributes:
        mirrored: The replicas' connections.
        written: What was sent to a replica and is no read.
        served: How many statements the replicas have been sent.
        down: Whether the replicas take no new connection.
    """

    mirrored: Opened = field(kw_only=True)
    written: list[str] = field(default_factory=list)
    served: int = 0
    down: bool = False
    _armed: list[str] = field(default_factory=list)

    def arm(self, role: str, moment: str) -> None:
        """Lose the replicas when this moment comes to a server of this role."""
        self._armed = [f"{role} {moment}"]

    def disarm(self) -> None:
        """Forget a loss that has not happened."""
        self._armed.clear()

    def forget(self) -> None:
        """Start another run as if it were the first."""
        self.disarm()
        self.down = False
        self.served = self.mirrored.losses = 0
        self.written.clear()

    def happens(self, what: str) -> None:
        """Note a moment, and lose the replicas if they wait for it."""
        if what in self._armed:
            self._armed.clear()
            self.mirrored.lose()

    def sent(self, statement: str) -> None:
        """Note a statement that a replica is sent."""
        self.served += 1
        if statement.split(None, 1)[0].upper() not in READS:
            self.written.append(statement)


@functools.cache
def _models(routed: bool, twophase: bool) -> tuple[SQLAlchemy, Any, Any]:
    """Declare the models of one world, for all applications of its kind."""
    db = SQLAlchemy(session_options={"twophase": twophase})
    author = type(
        "Author",
        (db.Model,),
        {
            "__tablename__": "author",
            "id": db.Column(db.Integer, primary_key=True),
            "name": db.Column(db.String(20), nullable=False),
            "books": db.relationship("Book", order_by="Book.id", backref="author"),
        },
    )
    columns = {
        "__tablename__": "book",
        "id": db.Column(db.Integer, primary_key=True),
        "title": db.Column(db.String(20), nullable=False),
        "author_id": db.Column(db.Integer, db.ForeignKey("author.id")),
    }
    return db, author, type("Book", (db.Model,), columns)


def _make_app(
    url: str, binds: dict[str, str], options: dict[str, Any], db: SQLAlchemy
) -> Flask:
    app = Flask("world")
    app.add_url_rule("/", "page", lambda: "", methods=["GET", "POST"])
    app.config.update(
        SECRET_KEY="not-a-secret",
        SQLALCHEMY_DATABASE_URI=url,
        SQLALCHEMY_BINDS={n: {"url": u, **options} for n, u in binds.items()},
        SQLALCHEMY_ENGINE_OPTIONS=options,
    )
    db.init_app(app)
    return app


def plain_world(pair: Pair, *, twophase: bool = False) -> World:
    """Return the application without replicas."""
    db, author, book = _models(routed=False, twophase=twophase)
    world = World(_make_app(pair.plain, {}, pair.options, db), db, author, book)
    world.prepare(pair)
    return world


def routed_world(pair: Pair, *, twophase: bool = False, **config: Any) -> RoutedWorld:
    """Return the application with replicas."""
    db, author, book = _models(routed=True, twophase=twophase)
    app = _make_app(pair.primary, pair.mirrors, pair.options, db)
    # A mirror may be another way to the same server.
    app.config["REPLICATED_ROLE_CHECK"] = pair.primary not in pair.mirrors.values()
    app.config.update(config)
    world = RoutedWorld(app, db, author, book, mirrored=Opened(pair.killer()))
    world.prepare(pair)
    engines = world.engines()
    primary = engines.pop(None)
    for engine in engines.values():
        world.mirrored.follow(engine)
        event.listen(engine, "before_cursor_execute", _sent(world))
        event.listen(engine, "do_connect", _refusing(world))
        _tell(world, engine, "replica")
    FlaskReplicated(app)
    _tell(world, primary, "primary")  # by then it is the primary's alone
    return world


def _sent(world: RoutedWorld) -> Callable[..., None]:
    def sent(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        world.sent(statement)

    return sent


def _refusing(world: RoutedWorld) -> Callable[..., None]:
    def connect(dialect: Any, *_: Any) -> None:
        if world.down:
            raise dialect.dbapi.OperationalError("the replica takes no connection")

    return connect


def _tell(world: RoutedWorld, engine: Engine, role: str) -> None:
    for moment in MOMENTS:

        def tell(*_: Any, what: str = f"{role} {moment}") -> None:
            world.happens(what)

        event.listen(engine, moment, tell)
