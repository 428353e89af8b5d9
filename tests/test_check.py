"""``flask replicated check`` without a server: settings, tables, and what it prints."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pytest
from click.testing import CliRunner
from flask import Flask
from flask.cli import FlaskGroup
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.pool import QueuePool, StaticPool

from flask_replicated import FlaskReplicated
from flask_replicated.operations.check import check
from flask_replicated.operations.commands import __name__ as replicated_module
from flask_replicated.operations.commands import replicated
from flask_replicated.operations.doctor.findings import Kind
from tests.doctor import examined, printed

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parents[1]
SHARED = "sqlite:///file:check?mode=memory&cache=shared&uri=true"


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """Give the URLs of a primary's file and of its copy."""
    urls = []
    for name in ("primary", "replica"):
        sqlite3.connect(tmp_path / name).close()
        urls.append(f"sqlite:///{tmp_path / name}")
    return urls[0], urls[1]


def test_sound(files: tuple[str, str]) -> None:
    """One line; without replicas and without a key, too."""
    said = 0, "sound: 2 servers answered, and nothing is to be mended\n"
    assert printed(files[0], {"slave": files[1]}) == said
    said = 0, "sound: 1 server answered, and nothing is to be mended\n"
    assert printed(files[0], {}, SECRET_KEY=None) == said


def test_misnamed(files: tuple[str, str]) -> None:
    """A misspelt replica is told its name, beside others and alone."""
    for beside in ({}, {"slave_2": files[1]}):
        told = examined(files[0], {"salve_1": files[1], "reports": files[0], **beside})
        assert told.found == [("salve_1", "warning", "misnamed")]
        assert "call it 'slave_1'." in told.remedies["salve_1", "misnamed"]


def test_every_kind_is_documented() -> None:
    """The table of findings is complete."""
    rows = (ROOT / "docs" / "check.md").read_text().splitlines()
    listed = {row.split("`")[1] for row in rows if row.startswith("| `")}
    assert listed - {"kind"} == {*get_args(Kind)}


def test_secret_key(files: tuple[str, str]) -> None:
    """Without one a client can forge its pin, and nothing of that is masked."""
    told = examined(files[0], {"slave": files[1]}, SECRET_KEY=None)
    assert told.found == [(None, "warning", "secret_key")]
    assert "so what pins a client is not signed" in told.whats[None, "secret_key"]
    assert "***" not in told.whats[None, "secret_key"]
    assert "Set SECRET_KEY" in told.remedies[None, "secret_key"]


@pytest.mark.parametrize(
    ("binds", "why"),
    [
        ({"slave": "sqlite://"}, "is a memory database"),
        ({"slave": "postgresql+psycopg://u:hush@h/d"}, "Test configuration"),
    ],
    ids=["memory", "dialect"],
)
def test_the_application_does_not_start(
    files: tuple[str, str], binds: Mapping[str, str], why: str
) -> None:
    """What stops it from starting is a finding like any other."""
    pytest.importorskip("psycopg")
    told = examined(files[0], binds)
    assert told.found == [("slave", "error", "configuration")]
    key = "slave", "configuration"
    assert why.lower() in f"{told.whats[key]}. {told.remedies[key]}".lower()
    assert "hush" not in f"{told}"
    wrong = examined(files[0], {}, REPLICATED_PIN="yes")
    assert wrong.found == [(None, "error", "configuration")]


def test_memory_that_others_do_not_see() -> None:
    """A shared memory database does for tests, and not for several processes."""
    kind = {"poolclass": QueuePool}
    told = examined(
        SHARED,
        {"slave": {"url": SHARED, **kind}},
        SQLALCHEMY_ENGINE_OPTIONS=kind,
        REPLICATED_ROLE_CHECK=False,
    )
    assert told.found == [("", "error", "memory"), ("slave", "error", "memory")]
    keeper = sqlite3.connect(":memory:", check_same_thread=False)
    given = {"url": "sqlite://", "poolclass": StaticPool, "creator": lambda: keeper}
    told = examined("sqlite://", {"slave": given}, SQLALCHEMY_ENGINE_OPTIONS=given)
    assert ("slave", "error", "memory") in told.found
    keeper.close()


def test_one_file(files: tuple[str, str]) -> None:
    """The primary's file as its only replica is an error, unless on purpose."""
    told = examined(files[0], {"slave": files[0]})
    assert told.found == [("slave", "error", "primary")]
    assert "REPLICATED_ROLE_CHECK = False" in told.remedies["slave", "primary"]
    assert (
        examined(files[0], {"slave": files[0]}, REPLICATED_ROLE_CHECK=False).code == 0
    )


def test_schemas_apart(files: tuple[str, str]) -> None:
    """The table is the one that Flask-Migrate was told to use."""
    migrate = pytest.importorskip("flask_migrate")
    for url, version in zip(files, ("new", "old"), strict=True):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as file:
            file.execute("create table versions (version_num text)")
            file.execute("insert into versions values (?)", (version,))
            file.commit()
    places = files[0], {"slave": files[1]}
    assert examined(*places).code == 0

    def set_up(app: Flask, db: SQLAlchemy) -> None:
        migrate.Migrate(app, db, version_table="versions")

    told = examined(*places, set_up=set_up)
    assert told.found == [("slave", "warning", "schema")]
    assert "is 'old', and the primary's is 'new'" in told.whats["slave", "schema"]


def test_left_out(files: tuple[str, str]) -> None:
    """A replica of production, in a configuration that reads from none, is no error."""
    binds = {"slave": "sqlite://", "slave_2": f"{files[1]}s"}
    assert examined(files[0], binds, AUTO_READ_ON_SLAVE=False).found == [
        ("slave_2", "error", "database")
    ]


def test_missing_file(files: tuple[str, str]) -> None:
    """No file is created."""
    told = examined(files[0], {"slave_1": files[1], "slave_2": f"{files[1]}s"})
    assert told.found == [("slave_2", "error", "database")]
    assert "name a copy of the primary's file" in told.remedies["slave_2", "database"]
    told = examined(f"{files[0]}s", {"slave": files[1]})
    assert told.found == [("", "error", "unreachable")]
    assert "correct SQLALCHEMY_DATABASE_URI" in told.remedies["", "unreachable"]
    for url in files:
        assert not Path(f"{url}s".removeprefix("sqlite:///")).exists()


def test_session_table(files: tuple[str, str]) -> None:
    """Flask-Session's table pins each visitor, until it is named as housekeeping."""
    flask_session = pytest.importorskip("flask_session")

    def set_up(app: Flask, db: SQLAlchemy) -> None:
        app.config.update(SESSION_TYPE="sqlalchemy", SESSION_SQLALCHEMY=db)
        flask_session.Session(app)

    options: dict[str, Any] = {"set_up": set_up}
    mine = {"users": ["last_seen"]}
    binds = {"slave": files[1]}
    told = examined(files[0], binds, **options, REPLICATED_UNPINNED=mine)
    assert told.found == [("", "warning", "session_table")]
    remedy = told.remedies["", "session_table"]
    rules = {"users": ["last_seen"], "sessions": "*"}
    assert f"REPLICATED_UNPINNED = {rules!r}" in remedy
    assert "sql_session_model.__replicated__ = 'master'" in remedy
    for mended in ({"REPLICATED_UNPINNED": rules}, {"REPLICATED_GUARANTEE": "none"}):
        assert examined(files[0], binds, **options, **mended).code == 0


def test_uwsgi(
    files: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its options are read where it would read them, and those that harm are named."""
    monkeypatch.chdir(tmp_path)
    places = files[0], {"slave": files[1]}
    settings = tmp_path / "uwsgi.ini"
    settings.write_text("[uwsgi]\nmodule = shop:app\nmaster\nprocesses = 7\n")
    told = examined(*places)
    assert told.found == [(None, "warning", "web_server")] * 2
    settings.write_text("[uwsgi]\nenable-threads = true\npy-call-osafterfork = false\n")
    told = examined(*places)
    assert told.found == [(None, "warning", "web_server")]
    assert "py-call-osafterfork = true" in told.remedies[None, "web_server"]
    monkeypatch.setenv("UWSGI_LAZY_APPS", "1")
    assert examined(*places).code == 0


def test_hostile_names(files: tuple[str, str]) -> None:
    """No name of a bind reaches the terminal as it is, nor does markup in it."""
    owner = "a\x1b]0;owned\x07\t[bold red]\u202e"
    binds = {owner: files[0], f"{owner}_slave": f"{files[1]}\x1b[2J\nno"}
    code, text = printed(files[0], binds)
    assert code == 2
    assert len(text.splitlines()) == 2
    assert all(one.isprintable() for one in text.splitlines())
    assert "[bold red]" in text
    told = examined(files[0], binds)
    assert told.found == [(f"{owner}_slave", "error", "database")]


@pytest.mark.parametrize("starts", [True, False])
def test_through_flask(files: tuple[str, str], *, starts: bool) -> None:
    """The command is there before the application, and after it."""

    def create_app() -> Flask:
        app = Flask("shop")
        app.config["SQLALCHEMY_DATABASE_URI"] = files[0]
        app.config["SQLALCHEMY_BINDS"] = {"slave": files[1] if starts else "sqlite://"}
        app.config["SECRET_KEY"] = "not-a-secret"
        SQLAlchemy(app)
        FlaskReplicated(app)
        return app

    installed = FlaskGroup(create_app=create_app)
    installed.add_command(replicated)  # as the entry point does
    result = CliRunner().invoke(installed, ["replicated", "check"])
    assert result.exit_code == (0 if starts else 2), result.output
    assert ("memory database" in result.output) is not starts
    if starts:
        result = create_app().test_cli_runner().invoke(args=["replicated", "check"])
        assert result.exit_code == 0
    place = f'replicated = "{replicated_module}:replicated"'
    assert place in (ROOT / "pyproject.toml").read_text()


def test_not_registered() -> None:
    """An application without the extension is told so."""
    app = Flask("shop")
    with app.app_context():
        result = CliRunner().invoke(check, [])
    assert result.exit_code == 2
    assert "FlaskReplicated is not registered" in result.output
