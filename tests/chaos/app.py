"""The application under load: it adds keys, reads them, and tells who served."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from typing import TYPE_CHECKING, Any, Final, cast

from flask import Flask, Response, jsonify, request
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import event, text

from flask_replicated import FlaskReplicated
from tests.damage import ROWS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import QueuePool

__all__ = [
    "DEFAULTS",
    "ENVIRONMENT",
    "MAX_LAG",
    "SETTINGS",
    "Application",
    "served",
]

ENVIRONMENT: Final = "CHAOS_CONFIG"

MAX_LAG: Final = 5
"""Seconds that a replica may be behind."""

DEFAULTS: Final[Mapping[str, Any]] = {
    "SECRET_KEY": "not-a-secret",
    "REPLICATED_MAX_LAG": MAX_LAG,
}
"""The extension's own settings, but for one that a run could not wait for."""

SETTINGS: Final[Mapping[str, Any]] = {
    **DEFAULTS,
    "REPLICATED_BREAKER_RESET": 0.5,
    "REPLICATED_BREAKER_MAX_RESET": 2,
    "REPLICATED_CONNECT_TIMEOUT": 1,
    "REPLICATED_PROBE_INTERVAL": 0.5,
    "REPLICATED_READ_TIMEOUT": 1,
}
"""Shorter waits: a run should not last for the breaker's sake."""

# Threads that come and go with the load, or that a WSGI server adds as it likes.
_OTHERS: Final = ("load-", "churn", "ThreadPoolExecutor")

_PRIMARY: Final = "primary"
_MOMENT: Final = 0.05

# How a server is asked for its name, and to wait.
_WORDS: Final = {
    "postgresql": ("current_setting('cluster_name')", "pg_sleep"),
    "mariadb": ("@@report_host", "sleep"),
}


class Application:
    """A Flask application over a primary and replicas.

    Args:
        config: Of the application; it names the servers.

    Attributes:
        app: What a WSGI server calls.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.app = Flask("chaos")
        self.app.config.update(config)
        self._db = db = SQLAlchemy(self.app)
        columns = {
            "id": db.Column(db.Integer, primary_key=True),
            "name": db.Column(db.String, nullable=False),
        }
        self._entry: Any = type("Entry", (db.Model,), columns)
        self._replicated = FlaskReplicated(self.app)
        # Counted by hand: a breaker that opens gives its engine another pool.
        self._held: set[object] = set()
        with self.app.app_context():
            server, wait = _WORDS[db.engine.dialect.name]
            for engine in db.engines.values():
                event.listen(engine, "checkout", self._out)
                event.listen(engine, "checkin", self._in)
        # The wait keeps a snapshot open where a fault asks for it; and a fault may
        # take some of the pages away.
        self._looks = text(
            f"select {server}, (select coalesce(max(id), 0) from entry), "
            f"{wait}(:hold), (select length(body) from page where id = :page)"
        )
        self._waits = text(f"select {wait}(cast(:hold as decimal(5, 2)))")
        self._finds = text(
            f"select {server}, exists (select 1 from entry where name = :key)"
        )
        self.app.add_url_rule("/", "look", self._look)
        self.app.add_url_rule("/", "add", self._add, methods=["POST"])
        self.app.add_url_rule("/has", "has", self._has)
        self.app.add_url_rule("/state", "state", self._state)
        self.app.register_error_handler(Exception, self._failed)

    def _out(self, _dbapi: object, record: object, _proxy: object) -> None:
        self._held.add(record)

    def _in(self, _dbapi: object, record: object) -> None:
        self._held.discard(record)

    def _answer(self, **fields: object) -> Response:
        live = [member.name for member in self._replicated.pool().live]
        return jsonify(pid=os.getpid(), live=live, **fields)

    def _look(self) -> Response:
        first = self._one(hold=float(request.args.get("hold", 0)))
        again = self._one(hold=0.0)
        # PostgreSQL sends a commit to its standbys first, and shows it a moment later.
        ahead = again[0] == _PRIMARY and again[1] < first[1]
        if ahead:
            time.sleep(_MOMENT)
            again = self._one(hold=0.0)
        return self._answer(
            server=again[0],
            ahead=ahead,
            went_back=again[1] < first[1],
            found=None not in (*first, *again),
        )

    def _one(self, hold: float) -> Sequence[Any]:
        asked = {"hold": hold, "page": random.randint(1, ROWS)}
        return self._db.session.execute(self._looks, asked).one()

    def _add(self) -> Response:
        self._db.session.add(self._entry(name=request.args["key"]))
        if "hold" in request.args:
            self._db.session.execute(self._waits, {"hold": request.args["hold"]})
        self._db.session.commit()
        return self._answer()

    def _has(self) -> Response:
        row = self._db.session.execute(self._finds, request.args).one()
        return self._answer(server=row[0], found=bool(row[1]))

    def _state(self) -> Response:
        names = [thread.name for thread in threading.enumerate()]
        own = [name for name in names if not name.startswith(_OTHERS)]
        return self._answer(held=self.checked_out(), threads=len(own))

    def _failed(self, error: Exception) -> tuple[Response, int]:
        self.app.logger.debug("a request failed", exc_info=error)
        cause = " ".join(str(error).split())[:200]
        return self._answer(error=f"{type(error).__name__}: {cause}"), 500

    def checked_out(self) -> int:
        """Return how many connections are in somebody's hands."""
        with self.app.app_context():
            engines = self._db.engines.values()
            pools = [cast("QueuePool", engine.pool) for engine in engines]
        return max(len(self._held), *(pool.checkedout() for pool in pools))

    def dispose(self) -> None:
        """Close every pooled connection."""
        with self.app.app_context():
            for engine in self._db.engines.values():
                engine.dispose()


def served() -> Flask:
    """Return the application that the environment describes, for a WSGI server."""
    return Application(json.loads(os.environ[ENVIRONMENT])).app
