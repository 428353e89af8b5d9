"""A name in REPLICATED_UNPINNED that no model has is told of, once."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import sqlalchemy as sa

from tests.support import Build, Site, build_fixture

build = build_fixture


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "flask_replicated")


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was said of the setting."""
    lines = [one.getMessage() for one in caplog.records]
    return [line for line in lines if line.startswith("REPLICATED_UNPINNED")]


def write(site: Site) -> None:
    """Write something, in a request that the application may not know yet."""
    with site.app.test_request_context("/", method="POST"):
        site.db.session.execute(sa.update(site.entry).values(text="x"))
        site.db.session.commit()


@pytest.mark.parametrize(
    ("rules", "lines"),
    [
        ({"entry": "*"}, []),
        ({"entry": ["text", "id"]}, []),
        ({"main.entry": ["Text"], "ENTRY": "*"}, []),  # SQLite does not mind
        (
            {"entrys": "*"},
            ["REPLICATED_UNPINNED['entrys'] names a table that no model has (did you"],
        ),
        (
            {"entry": ["txt"]},
            ["REPLICATED_UNPINNED['entry'] names a column 'txt' that no model has ("],
        ),
        (
            {"forum.topics": ["views"]},
            ["REPLICATED_UNPINNED['forum.topics'] names a table that no model has. "],
        ),
        ({"audit": "*"}, ["REPLICATED_UNPINNED['audit'] names a table that no model"]),
        ({"old.audit": "*"}, []),
    ],
)
def test_names(
    build: Build, caplog: pytest.LogCaptureFixture, rules: Any, lines: list[str]
) -> None:
    """Each table and column that is named must be some model's."""
    site = build(REPLICATED_UNPINNED=rules)
    site.db.Table("audit", site.db.Column("line", sa.String), schema="old")
    assert said(caplog) == []
    write(site)
    found = said(caplog)
    assert len(found) == len(lines)
    assert all(one.startswith(line) for one, line in zip(found, lines, strict=True))


def test_once(build: Build, caplog: pytest.LogCaptureFixture) -> None:
    """It is said once, however much is written."""
    site = build(REPLICATED_UNPINNED={"entrys": "*", "entry": ["txt", "id"]})
    for _ in range(3):
        write(site)
    assert len(said(caplog)) == 2


def test_nothing_is_asked_for_it(
    build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    """No statement is sent, and none is needed: an application at rest says nothing."""
    site = build(REPLICATED_UNPINNED={"entrys": "*"})
    site.get("/")
    assert said(caplog) == []
    sent: list[str] = []
    with site.app.app_context():
        sa.event.listen(
            site.db.engine,
            "before_cursor_execute",
            lambda *args: sent.append(args[2]),
        )
    write(site)
    assert len(said(caplog)) == 1
    assert [sql for sql in sent if not sql.startswith("UPDATE")] == []


def test_unknown_models(build: Build, caplog: pytest.LogCaptureFixture) -> None:
    """Where the models are not known there is nothing to say."""
    site = build(REPLICATED_UNPINNED={"entrys": "*"})
    state = site.app.extensions["replicated.state"]
    for unknown in (None, ()):
        state.metadatas = lambda unknown=unknown: unknown
        write(site)
    assert said(caplog) == []
