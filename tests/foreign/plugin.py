"""A pytest plugin that gives replicas to a suite which knows nothing of them.

It is loaded into the environment of another project's tests by ``-p plugin``. Each
``SQLAlchemy`` that such a test initialises works on SQLite files, in-memory databases
included, so that several connections see the same commits. With ``--routed`` it also
gets three replicas, which are the same files, and ``FlaskReplicated``; with
``--observed`` that in place of replicas, so that it predicts what they would serve.
"""

from __future__ import annotations

import functools
import itertools
import json
import sqlite3
import weakref
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Engine, StaticPool, event, make_url
from sqlalchemy.exc import ArgumentError

from flask_replicated import FlaskReplicated
from flask_replicated.engine.replica_connection import ReplicaConnection
from flask_replicated.routing.decision import Role

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flask import Flask

    from flask_replicated.routing.counts import ReadCounts

REPLICAS = 3


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add this plugin's options."""
    group = parser.getgroup("foreign")
    group.addoption("--outcomes", metavar="FILE", help="where to write the outcomes")
    group.addoption("--routed", action="store_true", help="register FlaskReplicated")
    group.addoption("--observed", action="store_true", help="the same, and no replica")
    group.addoption("--unpinned", action="store_true", help="without a pin cookie")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Take Flask-SQLAlchemy over before any conftest makes an application."""
    options = early_config.known_args_namespace
    directory = TemporaryDirectory(prefix="foreign-", ignore_cleanup_errors=True)
    early_config.add_cleanup(directory.cleanup)
    mirrors = Mirrors(
        Path(directory.name),
        routed=options.routed,
        observed=options.observed,
        unpinned=options.unpinned,
    )
    mirrors.install()
    if options.outcomes:
        early_config.pluginmanager.register(
            Outcomes(mirrors, Path(options.outcomes).absolute())
        )


class Outcomes:
    """Writes how each test has ended into a JSON file."""

    def __init__(self, mirrors: Mirrors, path: Path) -> None:
        self._mirrors = mirrors
        self._path = path
        self._outcomes: dict[str, str] = {}
        self._reasons: dict[str, str] = {}

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note a module that cannot be imported."""
        if report.failed:
            self._outcomes[report.nodeid] = "not collected"
            self._reasons[report.nodeid] = report.longreprtext[-400:]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the outcome of a test; its worst phase counts."""
        outcome: str = report.outcome
        if report.failed and report.when != "call":
            outcome = f"error in {report.when}"
        elif hasattr(report, "wasxfail"):
            outcome = "xpassed" if report.passed else "xfailed"
        if report.when == "call" or outcome != "passed":
            self._outcomes[report.nodeid] = outcome
        if report.failed:
            self._reasons[report.nodeid] = _reason(report)

    def pytest_sessionfinish(self) -> None:
        """Write the file."""
        found = {
            "outcomes": self._outcomes,
            "reasons": self._reasons,
            "routed_apps": self._mirrors.routed_apps,
            "replica_statements": self._mirrors.replica_statements,
            "share": self._mirrors.share(),
        }
        self._path.write_text(json.dumps(found))


def _reason(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(getattr(crash, "message", report.longreprtext[-400:]))


class Mirrors:
    """Puts applications on SQLite files, and those on replicas.

    Attributes:
        routed_apps: How many applications got replicas.
        replica_statements: How many statements replicas have served.
    """

    def __init__(
        self, directory: Path, *, routed: bool, observed: bool, unpinned: bool
    ) -> None:
        self.routed_apps = 0
        self.replica_statements = 0
        self._reads = self._moved = 0
        self._ends: list[weakref.finalize[Any, Any]] = []
        self._routed = routed
        self._observed = observed
        self._unpinned = unpinned
        self._files = (directory / f"{n}.sqlite" for n in itertools.count(1))

    def install(self) -> None:
        """Take over what happens when a ``SQLAlchemy`` meets an application."""
        # The suites must run unchanged, and Flask-SQLAlchemy has no signal for this
        # moment; so this plugin, unlike the package, replaces a method.
        original = SQLAlchemy.init_app

        @functools.wraps(original)
        def init_app(db: SQLAlchemy, app: Flask) -> None:
            if "sqlalchemy" in app.extensions:
                return original(db, app)  # raises
            replicas = self._settle(app)
            if not (self._routed or self._observed) or not replicas:
                return original(db, app)
            if self._observed:
                app.config["REPLICATED_MODE"] = "observe"
            else:
                app.config["SQLALCHEMY_BINDS"] |= replicas
            # The primary would hide it if the mirrors could not be read.
            app.config["REPLICATED_FALLBACK"] = "error"
            if self._unpinned:
                app.config["REPLICATED_PIN_SECONDS"] = 0
            original(db, app)
            # A test that registers Flask-SQLAlchemy anew means this one, too.
            app.extensions.pop("replicated", None)
            state = FlaskReplicated(app).state(app)
            reads = (
                [] if state is None else [one.reads for one in state.routes.values()]
            )
            self._ends.append(weakref.finalize(app, self._add, reads))
            self.routed_apps += 1
            return None

        SQLAlchemy.init_app = init_app  # type: ignore[method-assign,assignment]  # as was said
        event.listen(Engine, "connect", _share_file)
        event.listen(Engine, "before_cursor_execute", self._count)

    def _add(self, reads: list[ReadCounts]) -> None:
        """Add the reads of an application that is no more."""
        for one in reads:
            primary, replicas = one.by_reason(Role.PRIMARY), one.by_reason(Role.REPLICA)
            self._moved += primary["observe"] + sum(replicas.values())
            self._reads += sum(primary.values()) + sum(replicas.values())

    def share(self) -> float:
        """Return the share of the reads that replicas have served, or would have."""
        for end in self._ends:
            end()
        return self._moved / self._reads if self._reads else 0.0

    def _count(self, connection: Any, *_: Any) -> None:
        self.replica_statements += isinstance(connection, ReplicaConnection)

    def _settle(self, app: Flask) -> dict[str, dict[str, Any]]:
        """Move in-memory databases to files; return the replicas of all files."""
        config = app.config
        config["SQLALCHEMY_BINDS"] = binds = dict(config.get("SQLALCHEMY_BINDS") or {})
        replicas: dict[str, dict[str, Any]] = {}
        for key, value in list(binds.items()):
            given = dict(value) if isinstance(value, dict) else {"url": value}
            bind = self._on_file(given)
            if bind is not None:
                if bind != given:
                    binds[key] = bind
                replicas |= _replicas(key, bind)
        options = dict(config.get("SQLALCHEMY_ENGINE_OPTIONS") or {})
        if config.get("SQLALCHEMY_DATABASE_URI") is not None:
            options["url"] = config["SQLALCHEMY_DATABASE_URI"]
        default = self._on_file(options)
        if default is not None:
            replicas |= _replicas(None, default)
            config["SQLALCHEMY_DATABASE_URI"] = default["url"]
            if default != options:
                default.pop("url")
                config["SQLALCHEMY_ENGINE_OPTIONS"] = default
        return replicas

    def _on_file(self, bind: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return a bind on a SQLite file, or None where it is another database."""
        try:
            url = make_url(bind["url"])
        except (KeyError, ArgumentError):
            return None
        if url.get_backend_name() != "sqlite" or "creator" in bind:
            return None
        in_memory = url.database in {None, "", ":memory:"}
        if not in_memory and url.query.get("mode") != "memory":
            return dict(bind)
        found = {**bind, "url": f"sqlite:///{next(self._files)}"}
        if found.get("poolclass") is StaticPool:
            del found["poolclass"]  # it held the one connection to the memory
        return found


def _replicas(key: str | None, bind: dict[str, Any]) -> dict[str, dict[str, Any]]:
    prefix = "" if key is None else f"{key}_"
    return {f"{prefix}slave_{n}": dict(bind) for n in range(1, REPLICAS + 1)}


def _share_file(connection: Any, _record: Any) -> None:
    """Let a file be read while it is written, and do without safety for speed."""
    if isinstance(connection, sqlite3.Connection):
        with suppress(sqlite3.OperationalError), closing(connection.cursor()) as cursor:
            cursor.execute("PRAGMA synchronous = OFF")
            cursor.execute("PRAGMA journal_mode = WAL")
