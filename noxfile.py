"""The tests on every supported Python and on the oldest libraries; lint; docs."""

from pathlib import Path

import nox

nox.options.sessions = ["lint", "docs", "tests", "oldest"]
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = False  # use the Pythons that are installed

TESTS = ["pytest", "--benchmark-disable", "-n", "auto"]
DOCS = ["tests/test_readme.py", *map(str, Path("tests").glob("test_*docs.py"))]
OLDEST = ["flask==2.3.0", "flask-sqlalchemy==3.1.0", "sqlalchemy==2.0.16"]
OLDEST += ["werkzeug<3"]  # Flask 2.3.0 needs that, and does not declare it
# All of the dev extra that works with those; Flask-SQLAlchemy-Lite needs Flask 3.
TOOLS = [
    "aiosqlite",
    "asgiref",
    "celery",
    "factory-boy",
    "flask-migrate",
    "gunicorn",
    "hypothesis",
    "psycopg2-binary",
    "pymysql",
    "redis",
    "rq",
]
TOOLS += ["pytest", "pytest-benchmark", "pytest-flask", "pytest-xdist"]


@nox.session
def lint(session: nox.Session) -> None:
    """Check format, style and types."""
    session.install(".[dev]")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """Run the examples of the documentation and check its tables and links."""
    session.install(".[dev]")
    session.run("pytest", *DOCS, *session.posargs)


@nox.session(python=["3.10", "3.11", "3.12", "3.13", "3.14"])
def tests(session: nox.Session) -> None:
    """Run the tests with the newest libraries that each Python takes."""
    session.install(".[dev]")
    session.run(*TESTS, *session.posargs)


@nox.session(python="3.10")
def oldest(session: nox.Session) -> None:
    """Run the tests with the oldest supported libraries."""
    session.install(".[demo]", *TOOLS, *OLDEST)
    session.run(*TESTS, *session.posargs)
