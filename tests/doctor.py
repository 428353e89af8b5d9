"""Runs ``flask replicated check`` as ``flask`` does, on an application of a test's."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from click.testing import CliRunner
from flask import Flask
from flask.cli import ScriptInfo
from flask_sqlalchemy import SQLAlchemy

from flask_replicated import FlaskReplicated
from flask_replicated.operations.check import check

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Told", "examined", "printed"]


class Told(NamedTuple):
    """What ``check --json`` says.

    Attributes:
        code: The exit code.
        found: Bind, severity and kind of each finding, in alphabetical order.
        whats: What was found, by bind and kind.
        remedies: What helps, by bind and kind.
    """

    code: int
    found: list[tuple[str | None, str, str]]
    whats: dict[tuple[str | None, str], str]
    remedies: dict[tuple[str | None, str], str]


def examined(
    primary: str,
    binds: Mapping[str, Any],
    *arguments: str,
    set_up: Callable[[Flask, SQLAlchemy], object] | None = None,
    **config: Any,
) -> Told:
    """Run ``check --json``.

    Args:
        primary: The primary's URL.
        binds: The other binds.
        arguments: Of the command.
        set_up: Called with the application before its servers are asked.
        config: Settings; there is a ``SECRET_KEY``.
    """
    code, shown = _run(primary, binds, (*arguments, "--json"), set_up, config)
    report = json.loads(shown)
    findings = report["findings"]
    severities = [one["severity"] for one in findings]
    assert severities == sorted(severities)
    assert report["errors"] == severities.count("error")
    assert report["warnings"] == severities.count("warning")
    assert code == (2 if report["errors"] else 1 if findings else 0)
    assert report["sound"] is (code == 0)
    return Told(
        code,
        sorted(
            ((one["bind"], one["severity"], one["kind"]) for one in findings), key=str
        ),
        {(one["bind"], one["kind"]): one["what"] for one in findings},
        {(one["bind"], one["kind"]): one["remedy"] for one in findings},
    )


def printed(
    primary: str,
    binds: Mapping[str, Any],
    *arguments: str,
    set_up: Callable[[Flask, SQLAlchemy], object] | None = None,
    **config: Any,
) -> tuple[int, str]:
    """Return the exit code of ``check``, and what it prints; as :func:`examined`."""
    return _run(primary, binds, arguments, set_up, config)


def _run(
    primary: str,
    binds: Mapping[str, Any],
    arguments: tuple[str, ...],
    set_up: Callable[[Flask, SQLAlchemy], object] | None,
    config: Mapping[str, Any],
) -> tuple[int, str]:
    made: list[tuple[Flask, SQLAlchemy]] = []

    def create_app() -> Flask:
        app = Flask("shop")
        app.config.update(
            {
                "SECRET_KEY": "not-a-secret",
                "SQLALCHEMY_DATABASE_URI": primary,
                "SQLALCHEMY_BINDS": dict(binds),
                **config,
            }
        )
        db = SQLAlchemy(app)
        made.append((app, db))
        FlaskReplicated(app)
        if set_up is not None:
            set_up(app, db)
        return app

    try:
        info = ScriptInfo(create_app=create_app)
        result = CliRunner().invoke(
            check, list(arguments), obj=info, catch_exceptions=False
        )
    finally:
        for app, db in made:
            _dispose(app, db)
    return result.exit_code, result.stdout


def _dispose(app: Flask, db: SQLAlchemy) -> None:
    with app.app_context():
        for engine in db.engines.values():
            engine.dispose()
