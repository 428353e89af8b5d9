"""What the package adds to the start of a process: its import, and many replicas."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from benchmarks.pairs import Bound, Loop
from flask_replicated import FlaskReplicated

if TYPE_CHECKING:
    from benchmarks.conftest import Compare

REPLICAS = 100
PEER = "import flask_sqlalchemy"
IMPORTS = {
    "import flask_replicated": Bound(1.05),
    # With all that an application needs.
    "from flask_replicated import FlaskReplicated": None,
}


def run(source: str) -> None:
    """Run Python in a process of its own, whose bytecode is cached."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    subprocess.run([sys.executable, "-c", source], check=True, env=environment)


def make(*, replicated: bool) -> None:
    """Make an application with a primary and many replicas, and dispose of it."""
    app, db = Flask("shop"), SQLAlchemy()
    app.config["SQLALCHEMY_DATABASE_URI"] = "postgresql+psycopg://shop@primary/shop"
    app.config["SQLALCHEMY_BINDS"] = {
        f"slave_{number}": f"postgresql+psycopg://shop@replica{number}/shop"
        for number in range(REPLICAS)
    }
    db.init_app(app)
    if replicated:
        FlaskReplicated(app)


@pytest.mark.parametrize("statement", IMPORTS)
def bench_import(compare: Compare, statement: str) -> None:
    """Measure an import after Flask-SQLAlchemy's, beside a process without it."""
    compare(
        ("start", statement, f"{PEER} alone"),
        Loop("run(source)", {"run": run, "source": f"{PEER}; {statement}"}, unroll=1),
        Loop("run(source)", {"run": run, "source": PEER}, unroll=1),
        bound=IMPORTS[statement],
        seconds=0,
        pairs=30,
    )


def bench_many_replicas(compare: Compare) -> None:
    """Measure the start with many replicas, which is to take 0.2 seconds at most."""
    compare(
        ("start", f"an application with {REPLICAS} replicas", "without the extension"),
        Loop("make(replicated=True)", {"make": make}, unroll=1),
        Loop("make(replicated=False)", {"make": make}, unroll=1),
        seconds=0,
        pairs=15,
    )
