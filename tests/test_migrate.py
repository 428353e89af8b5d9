"""Flask-Migrate on an application whose replicas cannot be reached."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

pytest.importorskip("flask_migrate")

APPLICATION = """
from flask import Flask
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy
from flask_replicated import FlaskReplicated

app = Flask("site", root_path=r"{folder}")
app.config.update(
    SQLALCHEMY_DATABASE_URI=r"sqlite:///{folder}/master.db",
    SQLALCHEMY_BINDS={{
        "master": r"sqlite:///{folder}/master.db",
        "analytics": r"sqlite:///{folder}/analytics.db",
        "analytics_slave_1": r"sqlite:///{folder}/missing/analytics_slave_1.db",
    }}
    | {{
        f"slave_{{n}}": rf"sqlite:///{folder}/missing/slave_{{n}}.db"
        for n in (1, 2, 3)
    }},
)
db = SQLAlchemy(app)
FlaskReplicated(app)
Migrate(app, db, directory=r"{folder}/migrations")


class Guest(db.Model):
    id = db.Column(db.Integer, primary_key=True)


class Figure(db.Model):
    __bind_key__ = "analytics"
    id = db.Column(db.Integer, primary_key=True)


for command in {commands!r}:
    result = app.test_cli_runner().invoke(args=["db", *command])
    print(result.output)
    if result.exception:
        raise result.exception
"""


def migrate(folder: Path, *commands: list[str]) -> str:
    """Run Flask-Migrate's commands in a process of their own; return the output."""
    # Alembic's configuration switches off every logger that exists.
    script = APPLICATION.format(folder=folder, commands=commands)
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def tables(path: Path) -> set[str]:
    """Return the tables in a database file."""
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        return {name for (name,) in rows}


@pytest.mark.parametrize(
    ("option", "analytics"),
    [([], set[str]()), (["--multidb"], {"alembic_version", "figure"})],
    ids=["plain", "multidb"],
)
def test_replicas_are_left_alone(
    tmp_path: Path, option: list[str], analytics: set[str]
) -> None:
    """init, migrate and upgrade know the primary and other binds, and no replica."""
    output = migrate(
        tmp_path,
        ["init", *option],
        ["migrate", "-m", "first"],
        ["upgrade"],
        ["migrate", "-m", "nothing new"],
    )
    assert "slave" not in output
    assert tables(tmp_path / "master.db") == {"alembic_version", "guest"}
    assert tables(tmp_path / "analytics.db") == analytics
    assert not (tmp_path / "missing").exists()
    scripts = tmp_path / "migrations"
    written = [
        path.read_text()
        for suffix in ("py", "ini")
        for path in scripts.rglob(f"*.{suffix}")
    ]
    assert written
    assert not any("slave" in text for text in written)
    assert len(list((scripts / "versions").glob("*.py"))) == 1


def test_downgrade(tmp_path: Path) -> None:
    """A downgrade drops the primary's tables and touches no replica."""
    migrate(tmp_path, ["init", "--multidb"], ["migrate"], ["upgrade"], ["downgrade"])
    assert tables(tmp_path / "master.db") == {"alembic_version"}
    assert tables(tmp_path / "analytics.db") == {"alembic_version"}
