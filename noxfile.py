"""The oldest and the newest of what is supported: ``nox`` runs the tests on both."""

import nox

nox.options.sessions = ["tests", "oldest"]
nox.options.reuse_existing_virtualenvs = True

TESTS = ["pytest", "--benchmark-disable", "-n", "auto"]
OLDEST = ["flask==2.3.0", "flask-sqlalchemy==3.1.0", "sqlalchemy==2.0.16"]
OLDEST += ["werkzeug<3"]  # which Flask 2.3.0 forgot to ask for
# All of the dev extra that works with those; Flask-SQLAlchemy-Lite needs Flask 3.
TOOLS = [
    "aiosqlite",
    "asgiref",
    "flask-migrate",
    "hypothesis",
    "psycopg2-binary",
    "pymysql",
]
TOOLS += ["pytest", "pytest-benchmark", "pytest-xdist"]


@nox.session(python=["3.10", "3.11", "3.12", "3.13"])
def tests(session: nox.Session) -> None:
    """Run the tests with the newest libraries that each Python takes."""
    session.install(".[dev]")
    session.run(*TESTS, *session.posargs)


@nox.session(python="3.10")
def oldest(session: nox.Session) -> None:
    """Run the tests with the oldest libraries that are promised to work."""
    session.install(".[demo]", *TOOLS, *OLDEST)
    session.run(*TESTS, *session.posargs)
