"""The pytest plugin, as projects meet it; and what production does not import."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROJECT = """
import pytest
from flask import Flask
from flask_replicated import FlaskReplicated
from flask_sqlalchemy import SQLAlchemy

db = SQLAlchemy()

@pytest.fixture
def app():
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    db.init_app(app)
    FlaskReplicated(app)
    app.add_url_rule("/", view_func=lambda: str(db.session.scalar(db.text("select 7"))))
    yield app
    with app.app_context():
        db.session.remove()
        db.engine.dispose()
"""

TESTS = """
import sys
import pytest
from flask_replicated.testing import Replicated

@pytest.mark.parametrize("number", range(4))
def test_methods(replicated, app, number):
    with replicated.mirror():
        with replicated.assert_served(replica=1):
            assert app.test_client().get("/").text == "7"
        with replicated.replica_down("slave_1"), replicated.replica_lags("slave_2", 40):
            with replicated.recorded_decisions() as found:
                app.test_client().get("/")
    assert [one.reason for one in found] == ["fallback"]

def test_a_failure(replicated, app):
    with replicated.mirror(), replicated.assert_served(primary=1):
        app.test_client().get("/")
"""

BROKEN = """
import pytest

@pytest.fixture
def app(nothing):
    return None

def test_it(replicated):
    pass
"""

OVERRIDDEN = """
import pytest

@pytest.fixture
def replicated():
    return "the project's own"

def test_own(replicated):
    assert replicated == "the project's own"
"""

LIGHT = """
import sys

def test_nothing_is_imported():
    assert "pytest_flask_replicated" in sys.modules
    loaded = {name.partition(".")[0] for name in sys.modules}
    assert not loaded & {"flask", "sqlalchemy", "flask_replicated"}
"""


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run pytest in a folder as a project of its own does, with the plugin alone."""
    known = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    paths = [str(folder), str(ROOT), *filter(None, [known.get("PYTHONPATH")])]
    known["PYTHONPATH"] = os.pathsep.join(paths)
    known.pop("PYTEST_ADDOPTS", None)
    plugin = ["-p", "pytest_flask_replicated", "-p", "no:cacheprovider"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", *plugin, *options],
        cwd=folder,
        env=known,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("options", [(), ("-p", "xdist", "-n", "2")])
def test_the_fixture(tmp_path: Path, options: tuple[str, ...]) -> None:
    """It has all of the kit for the project's application, also with pytest-xdist."""
    if options and find_spec("xdist") is None:
        pytest.skip("pytest-xdist is not installed")
    (tmp_path / "conftest.py").write_text(PROJECT)
    (tmp_path / "test_it.py").write_text(TESTS)
    done = run(tmp_path, *options)
    assert "4 passed" in done.stdout, done.stdout + done.stderr
    assert "1 failed" in done.stdout
    assert "expected 1 reads by the primary and 0 by replicas" in done.stdout


def test_pytest_flask(tmp_path: Path) -> None:
    """pytest-flask's client and context go together with it."""
    if find_spec("pytest_flask") is None:
        pytest.skip("pytest-flask is not installed")
    (tmp_path / "conftest.py").write_text(PROJECT)
    test = "def test_it(replicated, client):\n    with replicated.mirror():\n"
    test += "        with replicated.assert_served(replica=1):\n"
    (tmp_path / "test_it.py").write_text(test + "            client.get('/')\n")
    done = run(tmp_path, "-p", "pytest_flask.plugin")
    assert "1 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("code", [OVERRIDDEN, LIGHT])
def test_it_is_in_nobodys_way(tmp_path: Path, code: str) -> None:
    """A fixture of the project's own wins, and without use nothing is imported."""
    (tmp_path / "test_it.py").write_text(code)
    done = run(tmp_path)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_a_broken_application(tmp_path: Path) -> None:
    """What the project's own fixture lacks is what pytest complains of."""
    (tmp_path / "test_it.py").write_text(BROKEN)
    assert "fixture 'nothing' not found" in run(tmp_path).stdout


def test_the_entry_point() -> None:
    """The plugin is found the plugin by pytest, under the name that ``-p`` takes."""
    name = "pytest_flask_replicated"
    project = (ROOT / "pyproject.toml").read_text()
    assert f'[project.entry-points.pytest11]\n{name} = "{name}"\n' in project
    assert find_spec(name) is not None


def test_production_imports_nothing_of_it(tmp_path: Path) -> None:
    """An application that serves requests has not imported the kit."""
    program = """
import sys
from flask import Flask
from flask_replicated import FlaskReplicated
from flask_sqlalchemy import SQLAlchemy
app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///one.db"
app.config["SQLALCHEMY_BINDS"] = {"slave_1": "sqlite:///one.db"}
db = SQLAlchemy(app)
FlaskReplicated(app)
app.add_url_rule("/", view_func=lambda: str(db.session.scalar(db.text("select 7"))))
assert app.test_client().get("/").text == "7"
assert not [name for name in sys.modules if "testing" in name and "replicated" in name]
assert "pytest" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
