"""Applications over real servers, and who executed what."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from flask import Flask, request
from sqlalchemy import event, text

from flask_replicated import (
    FlaskReplicated,
    changes_database,
    use_master_database,
    use_slave_database,
)
from tests.operations.hidden import do_hidden_write, hidden_write
from tests.operations.models import Country, db

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flask import Request
    from flask.testing import FlaskClient
    from flask_sqlalchemy.session import Session
    from sqlalchemy import Engine
    from sqlalchemy.orm import scoped_session

    from flask_replicated.routing.state import AppState

METHODS = ("GET", "HEAD", "POST")


class Seen(NamedTuple):
    """A statement and who executed it.

    Attributes:
        bind: The bind key; None is the default.
        role: ``'primary'``, ``'replica'`` or ``'other'``.
        sql: The statement; empty where a connection was only taken.
    """

    bind: str | None
    role: str
    sql: str


def is_read(current: Request) -> bool | None:
    """Read ``?reads=yes`` and ``?reads=no``; say nothing else."""
    return {"yes": True, "no": False}.get(current.args.get("reads", ""))


def make_app(binds: Mapping[str | None, str], *, switch: bool) -> Flask:
    """Make an application whose pages do what the test wants.

    Args:
        binds: URLs by bind key; the primary under None.
        switch: ``AUTO_READ_ON_SLAVE``.
    """
    app = Flask("site")
    app.testing = True
    app.config.update(
        SECRET_KEY="not-a-secret",
        SQLALCHEMY_DATABASE_URI=binds[None],
        SQLALCHEMY_BINDS={key: url for key, url in binds.items() if key},
        AUTO_READ_ON_SLAVE=switch,
        REPLICATED_PIN="time",
        REPLICATED_PIN_SECONDS=3600,
        REPLICATED_IS_READ=is_read,
        REPLICATED_WRITE_FUNCTIONS=["declared"],
        # There its databases are all one server's.
        REPLICATED_ROLE_CHECK=not binds[None].startswith("mariadb"),
    )
    db.init_app(app)
    FlaskReplicated(app)
    return app


@dataclass
class World:
    """A primary with replicas, other binds, and two applications.

    Attributes:
        server: The dialect.
        apps: The usual application, and one that is switched off.
        act: What a page does.
        seen: Who executed what.
        reads: Who executes a plain read, by the name of the context.
    """

    server: str
    apps: dict[str, Flask]
    act: Callable[[], object] = lambda: None
    reads: dict[str, str] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Add the pages, listen to every engine and pin one client."""
        for app in self.apps.values():
            self._add_pages(app)
            self._listen(app)
        self.pinned = self.app.test_client()
        self._visit(self.pinned, self.write, "/plain", "POST")
        self._visit(self.app.test_client(), self._hidden_write, "/learnt", "GET")
        assert self.state(self.app).decider.writers == {"learnt": 1}
        assert self.pinned.get_cookie("replicated_pin")

    @property
    def app(self) -> Flask:
        """The usual application."""
        return self.apps["usual"]

    @property
    def session(self) -> scoped_session[Session]:
        """The session of the current application context."""
        return db.session

    @property
    def engine(self) -> Engine:
        """``db.engine``."""
        return db.engine

    @property
    def engines(self) -> Mapping[str | None, Engine]:
        """``db.engines``."""
        return db.engines

    @staticmethod
    def state(app: Flask) -> AppState:
        """Return what the extension keeps for an application."""
        state = app.extensions["replicated"].state(app)
        assert state is not None
        return state  # type: ignore[no-any-return]  # app.extensions holds anything

    def one(self, model: type[Any], key: int) -> Any:
        """Return an object that is there."""
        found = self.session.get(model, key)
        assert found is not None
        return found

    def text(self, sql: str) -> object:
        """Execute a string in the session."""
        return self.session.execute(text(sql))

    def write(self) -> None:
        """Commit a new country."""
        self.session.add(Country(name="new"))
        self.session.commit()

    def visit(self, client: FlaskClient, path: str, method: str) -> None:
        """Ask for a page, which calls :attr:`act`."""
        response = client.open(path, method=method)
        assert response.status_code == 200, response.text

    def forget_writers(self) -> None:
        """Unlearn what the operation taught about the plain pages."""
        for app in self.apps.values():
            writers = self.state(app).decider.writers
            for endpoint in writers.keys() - {"learnt"}:
                del writers[endpoint]

    def close(self) -> None:
        """Close every pooled connection."""
        for app in self.apps.values():
            with app.app_context():
                for engine in db.engines.values():
                    engine.dispose()

    def _visit(
        self, client: FlaskClient, act: Callable[[], object], path: str, method: str
    ) -> None:
        self.act = act
        self.visit(client, path, method)

    def _hidden_write(self) -> None:
        self.session.execute(hidden_write())
        self.session.rollback()

    def _add_pages(self, app: Flask) -> None:
        def page() -> str:
            assert request.endpoint
            self.act()
            return "done"

        def add(name: str, view: Callable[[], str]) -> None:
            app.add_url_rule(f"/{name}", name, view, methods=METHODS)

        add("plain", page)
        add("learnt", page)
        add("master", use_master_database(page))
        add("changes", changes_database(page))
        add("slave", use_slave_database(page))

    def _listen(self, app: Flask) -> None:
        with app.app_context():
            found: dict[Engine, tuple[str | None, str]] = {}
            for bind, routed in self.state(app).routes.items():
                found[routed.real] = (bind, "primary")
                for member in routed.replicas.replica_pool.members:
                    found[member.target] = (bind, "replica")
            found[db.engines["drafts"]] = ("drafts", "other")
        for engine, (bind, role) in found.items():
            self._listen_to(engine, bind, role)

    def _listen_to(self, engine: Engine, bind: str | None, role: str) -> None:
        def executed(_cursor: Any, sql: str, *_: Any) -> None:
            self.seen.append(Seen(bind, role, sql))

        def taken(*_: Any) -> None:
            self.seen.append(Seen(bind, role, ""))

        event.listen(engine, "before_cursor_execute", do_hidden_write, retval=True)
        # These come after the extension's own, and so hear what is really sent.
        event.listen(engine, "do_execute", executed)
        event.listen(engine, "do_executemany", executed)
        event.listen(engine, "do_execute_no_params", executed)
        event.listen(engine, "checkout", taken)
