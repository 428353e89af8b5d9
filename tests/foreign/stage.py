"""One application of another project on a primary and its replicas, as a web server.

``python stage.py PLAN`` runs in that application's environment. The plan is a JSON
file: which application, on which servers, with which lines of configuration. With
``"install": true`` it makes the schema and what a forum's owner would set up, and
ends. Otherwise it serves until SIGTERM, then writes what it has counted.

Nothing is imported from the project's tests: that environment has none of it.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flask import has_request_context, request
from sqlalchemy import Engine, event, text
from werkzeug.serving import WSGIRequestHandler, make_server

from flask_replicated import FlaskReplicated, using_master
from flask_replicated.engine.replica_connection import ReplicaConnection
from flask_replicated.operations.report_texts import report_to

if TYPE_CHECKING:
    from flask import Flask, Response

VISITOR = "X-Visitor"
"""The header by which a visitor says whether it has signed in."""


def flaskbb(plan: dict[str, Any]) -> Flask:
    """Make the forum as its ``wsgi.py`` does, with its data outside its sources."""
    default = import_module("flaskbb.configs.default").DefaultConfig
    values = {
        **plan["config"],
        "CELERY_CONFIG": {"task_always_eager": True},
        "RATELIMIT_ENABLED": False,  # all visitors come from one address
        "USE_DEFAULT_LOGGING": False,
        "WHOOSHEE_DIR": str(Path("whoosh").absolute()),
    }
    config = type("Config", (default,), values)
    app: Flask = import_module("flaskbb.app").create_app(
        config, instance_path=str(Path("instance").absolute())
    )
    return app


def install_flaskbb(app: Flask) -> None:
    """Do what ``flaskbb install`` does, and let people in without an email."""
    populate = import_module("flaskbb.utils.populate")
    settings = import_module("flaskbb.management.models").Setting
    with app.app_context():
        populate.create_latest_db()
        # Too short for what today's Werkzeug makes; SQLite would not mind.
        alter = "alter table users alter column password type varchar(255)"
        with import_module("flaskbb.extensions").db.engine.begin() as connection:
            connection.execute(text(alter))
        populate.create_default_groups()
        populate.create_default_settings()
        populate.create_user("admin", "secret", "admin@example.org", "admin")
        populate.create_welcome_forum()
        _fill_forum()
        settings.update({"activate_account": False})


def _fill_forum() -> None:
    models = import_module("flaskbb.forum.models")
    session = import_module("flaskbb.extensions").db.session
    user = session.get(import_module("flaskbb.user.models").User, 1)
    for number in range(2, 11):
        topic = models.Topic(title=f"Topic {number}")
        forum = session.get(models.Forum, 1)
        topic.save(user=user, forum=forum, post=models.Post(content="Hello"))


def microblog(plan: dict[str, Any]) -> Flask:
    """Make the blog as ``microblog.py`` does."""
    sys.path.insert(0, plan["checkout"])
    config = type("Config", (import_module("config").Config,), plan["config"])
    app: Flask = import_module("app").create_app(config)
    return app


def install_microblog(app: Flask) -> None:
    """Make the tables."""
    with app.app_context():
        import_module("app").db.create_all()


def ihatemoney(plan: dict[str, Any]) -> Flask:
    """Make the budget manager, which makes its tables itself."""
    values = {**plan["config"], "SESSION_COOKIE_SECURE": False, "MAIL_DEBUG": 0}
    config = type("Config", (), {**values, "MAIL_SUPPRESS_SEND": True})
    app: Flask = import_module("ihatemoney.run").create_app(
        config, instance_path=str(Path("instance").absolute())
    )
    return app


APPLICATIONS = {
    "flaskbb": (flaskbb, install_flaskbb),
    "microblog": (microblog, install_microblog),
    "ihatemoney": (ihatemoney, lambda _app: None),
}


def decorate(app: Flask, targets: list[str]) -> None:
    """Do as the line ``@using_master(pin=False)`` above a function does.

    Args:
        app: The application.
        targets: Each as ``package.module:Class.method``, or an endpoint.
    """
    for target in targets:
        module, colon, names = target.partition(":")
        if not colon:
            view: Any = app.view_functions[target]
            app.view_functions[target] = using_master(pin=False)(view)
            continue
        path, _, name = names.rpartition(".")
        owner = _named(module, path)
        setattr(owner, name, using_master(pin=False)(getattr(owner, name)))


def mark(models: list[str]) -> None:
    """Do as the line ``__replicated__ = "master"`` in a model's class does.

    Args:
        models: Each as ``package.module:Class``.
    """
    for model in models:
        module, _, name = model.partition(":")
        _named(module, name).__replicated__ = "master"


def _named(module: str, path: str) -> Any:
    found: Any = import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    return found


class Counts(logging.Handler):
    """What each kind of visitor has read from which server, and what was advised."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._lock = threading.Lock()
        self.statements: Counter[str] = Counter()
        self.reads: Counter[str] = Counter()
        self.warnings: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a warning of the package."""
        self.warnings.append(record.getMessage())

    def watch(self, app: Flask, replicated: FlaskReplicated) -> None:
        """Count from now on."""
        logging.getLogger("flask_replicated").addHandler(self)
        event.listen(Engine, "before_cursor_execute", self._count_statement)

        @app.after_request
        def count_reads(response: Response) -> Response:
            visitor = request.headers.get(VISITOR, "guest")
            for one in replicated.explanation():
                found = [visitor, one.replica or "primary", one.reason]
                with self._lock:
                    self.reads[json.dumps(found)] += 1
            return response

    def _count_statement(
        self, connection: Any, _cursor: Any, sql: str, *_: Any
    ) -> None:
        if has_request_context() and sql.lstrip()[:6].upper() == "SELECT":
            visitor = request.headers.get(VISITOR, "guest")
            server = "primary"
            if isinstance(connection, ReplicaConnection):
                server = connection.member.name
            found = [visitor, server]
            with self._lock:
                self.statements[json.dumps(found)] += 1

    def write(self, path: Path, replicated: FlaskReplicated) -> None:
        """Write all that was counted, and what the package itself has."""
        report = replicated.report()
        text = None if report is None else report_to(report, "visits", os.getpid())
        pool = replicated.snapshot()[None]
        found = {
            "statements": [[*json.loads(k), n] for k, n in self.statements.items()],
            "reads": [[*json.loads(k), n] for k, n in self.reads.items()],
            "warnings": self.warnings,
            "report": text,
            "by_replicas": sum(one.reads for one in pool.members),
            "by_primary": sum(pool.primary_reads.values()),
        }
        path.write_text(json.dumps(found))


class _Quiet(WSGIRequestHandler):
    def log_request(self, *_: Any) -> None:
        """Say nothing."""


def serve(app: Flask, port: int) -> None:
    """Serve until SIGTERM."""
    server = make_server("127.0.0.1", port, app, threaded=True, request_handler=_Quiet)
    stop = lambda *_: threading.Thread(target=server.shutdown).start()  # noqa: E731
    signal.signal(signal.SIGTERM, stop)
    server.serve_forever(poll_interval=0.1)


def main() -> None:
    """Install or serve, as the plan says."""
    plan = json.loads(Path(sys.argv[1]).read_text())
    make, install = APPLICATIONS[plan["name"]]
    app = make(plan)
    if plan.get("install"):
        install(app)
        return
    decorate(app, plan["decorated"])
    mark(plan["marked"])
    replicated = FlaskReplicated(app)
    counts = Counts()
    counts.watch(app, replicated)
    serve(app, plan["port"])
    with app.app_context():
        counts.write(Path(plan["counts"]), replicated)


if __name__ == "__main__":
    main()
