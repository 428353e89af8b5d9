"""A routed ``Session.get_bind`` beside Flask-SQLAlchemy's own, for the same call.

Both sessions are in the midst of a GET and have read before, so the routed one
has its replica. The arguments are those that SQLAlchemy hands over itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from benchmarks.apps import sqlite_apps
from benchmarks.pairs import Bound, Loop

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.apps import NotesApp
    from benchmarks.conftest import Compare

BOUND = Bound(1.0, aim=0.5)


@pytest.fixture
def apps(tmp_path: Path) -> Iterator[tuple[NotesApp, NotesApp]]:
    """Give the application with the extension, and without."""
    both = sqlite_apps(tmp_path)
    yield both
    for one in both:
        one.close()


def _loop(notes: NotesApp, statement: Any, *, mapped: bool) -> Loop:
    context = notes.inside_get()
    session = context.run(notes.db.session)
    context.run(session.execute, statement)
    names = {"session": session, "clause": statement}
    call = "session.get_bind(clause=clause)"
    if mapped:
        call = "session.get_bind(mapper=mapper, clause=clause)"
        names["mapper"] = sa.inspect(notes.note)
    return Loop(call, names, context=context)


@pytest.mark.parametrize("case", ["ORM select", "text()", "Core select"])
def bench_get_bind(
    compare: Compare, apps: tuple[NotesApp, NotesApp], case: str
) -> None:
    """Measure one call for each kind of statement."""

    def loop(notes: NotesApp) -> Loop:
        statements = {
            "ORM select": sa.select(notes.note).filter_by(id=42),
            "text()": sa.text("SELECT text FROM note WHERE id = 42"),
            "Core select": sa.select(notes.note.__table__),
        }
        return _loop(notes, statements[case], mapped=case == "ORM select")

    routed, plain = apps
    compare(
        ("get_bind", case, "Flask-SQLAlchemy"),
        loop(routed),
        loop(plain),
        bound=BOUND,
    )
