"""SQLAlchemy's warnings name the line of the program, as they do without replicas."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event, select
from sqlalchemy.exc import LegacyAPIWarning, SADeprecationWarning, SAWarning

from flask_replicated import RoutedSession, replicated_engine, using_slave
from tests.support import Build, Site, build_fixture, make_file, sqlite_url

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

build = build_fixture
MARKER = sa.table("marker", sa.column("name"))
ENTRY = sa.table("entry", sa.column("text"))
# Of two tables that nothing joins: SQLAlchemy warns of it.
PRODUCT = select(MARKER.c.name, ENTRY.c.text)


@pytest.fixture
def site(build: Build) -> Site:
    """Give an application over a primary and replicas."""
    return build()


def by_savepoint(site: Site) -> None:
    """Execute in a savepoint."""
    with site.db.session.begin_nested():
        site.db.session.execute(PRODUCT)


def by_replica(site: Site) -> None:
    """Execute in a block."""
    with using_slave():
        site.db.session.scalar(sa.union(PRODUCT, PRODUCT))


def by_connection(site: Site) -> None:
    """Execute over a connection."""
    with site.db.engine.connect() as connection:
        connection.execute(PRODUCT)


def by_connection_for_one(site: Site) -> None:
    """Execute over a connection, for a single value."""
    with site.db.engine.connect() as connection:
        connection.scalar(PRODUCT)


def by_connection_for_some(site: Site) -> None:
    """Execute over a connection, for single values, as the statement asks."""
    with site.db.engine.connect() as connection:
        connection.scalars(PRODUCT, execution_options={"yield_per": 2}).all()


def by_transaction(site: Site) -> None:
    """Execute over a connection in a transaction."""
    with site.db.engine.begin() as connection:
        connection.execute(PRODUCT)


def by_session_of_sqlalchemy(site: Site) -> None:
    """Execute in a session that is not routed."""
    with sa.orm.Session(site.db.engine) as session:
        session.execute(PRODUCT)


WAYS: dict[str, Callable[[Site], object]] = {
    "execute": lambda site: site.db.session.execute(PRODUCT),
    "scalars": lambda site: site.db.session.scalars(PRODUCT),
    "scalar": lambda site: site.db.session.scalar(PRODUCT),
    "option": lambda site: site.db.session.execute(
        PRODUCT, execution_options={"replicated": "master"}
    ),
    "statement's option": lambda site: site.db.session.execute(
        PRODUCT.execution_options(replicated="slave")
    ),
    "query": lambda site: site.db.session.query(site.marker, site.entry).all(),
    "count": lambda site: site.db.session.query(site.marker, site.entry).count(),
    "Model.query": lambda site: site.marker.query.add_columns(site.entry.id).first(),
    "connection of a session": lambda site: site.db.session.connection().execute(
        PRODUCT
    ),
    "savepoint": by_savepoint,
    "using_slave()": by_replica,
    "Core": by_connection,
    "Core, scalar": by_connection_for_one,
    "Core, scalars": by_connection_for_some,
    "Core, begin": by_transaction,
    "plain session": by_session_of_sqlalchemy,
}


def heard_of(category: type[Warning], work: Callable[[], object]) -> set[str]:
    """Return the files whose lines the warnings of some work name."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        work()
    return {one.filename for one in caught if issubclass(one.category, category)}


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("way", WAYS)
def test_of_a_statement(site: Site, way: str, method: str) -> None:
    """A warning of a statement names the line that has it executed."""
    with site.app.test_request_context(method=method):
        found = heard_of(SAWarning, lambda: WAYS[way](site))
    assert found == {__file__}


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_of_a_listener(site: Site, method: str) -> None:
    """A warning of a listener's old signature names the line that it is called for."""

    def before(_connection: Any, _clause: Any, _multi: Any, _parameters: Any) -> None:
        pass

    with site.app.test_request_context(method=method):
        event.listen(site.db.engine, "before_execute", before)
        found = heard_of(SADeprecationWarning, site.who)
    assert found == {make_file.__code__.co_filename}  # where site.who() is


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_of_an_old_call(site: Site, method: str) -> None:
    """A warning of a call that is going to go names its line."""
    with site.app.test_request_context(method=method):
        found = heard_of(
            LegacyAPIWarning, lambda: site.db.session.query(site.marker).get("a")
        )
    assert found == {__file__}


def test_of_a_flush(site: Site) -> None:
    """A warning of what a statement flushes first names the statement's line."""
    model = {
        "__tablename__": "note",
        "id": site.db.Column(sa.Integer, primary_key=True),
    }
    owner = site.db.Column(sa.ForeignKey("entry.id"))
    note: Any = type("Note", (site.db.Model,), {**model, "entry_id": owner})
    site.entry.notes = site.db.relationship(note, backref="entry")

    def flush() -> None:
        session, first, second = site.db.session, site.entry(text="a"), note()
        session.add(first)
        first.notes.append(second)
        session.expunge(second)
        session.execute(select(site.marker))  # which flushes

    with site.app.test_request_context():
        assert heard_of(SAWarning, flush) == {__file__}


def test_outside_an_application(tmp_path: Path) -> None:
    """So it is for an engine and a session without Flask."""
    primary, replica = (
        sa.create_engine(sqlite_url(make_file(tmp_path, name)))
        for name in ("master", "slave_1")
    )
    engine = replicated_engine(primary, {"slave_1": replica})

    def read() -> None:
        with RoutedSession(engine) as session:
            session.execute(PRODUCT)
        with using_slave(), engine.connect() as connection:
            connection.execute(PRODUCT)

    assert heard_of(SAWarning, read) == {__file__}
    engine.dispose()
