"""A whole GET, from the WSGI call to the closed response.

The application with the extension and the same one without answer in turn; a
ratio is taken of each two neighbours, and the median of those is shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from benchmarks.apps import NotesApp, sqlite_apps
from benchmarks.pairs import Bound, Loop

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    from benchmarks.conftest import Compare
    from examples.cluster import Cluster


def _get(notes: NotesApp, path: str) -> Callable[[], bytes]:
    environ, app = notes.environ(path), notes.app
    answers: list[str] = []

    def start(status: str, _headers: Any, _error: Any = None) -> Any:
        answers.append(status)

    def get() -> bytes:
        answers.clear()
        body = app(dict(environ), start)
        try:
            return b"".join(body)
        finally:
            getattr(body, "close", int)()

    if b"note " not in get() or answers != ["200 OK"]:
        raise RuntimeError(f"The application answered {answers} to a GET.")
    return get


# The smallest GET there is, and one as people write them.
CASES = {"one row, JSON": "/notes/42", "page of 20 rows": "/notes"}
every_case = pytest.mark.parametrize("what", CASES)


def _compare(
    compare: Compare, case: str, apps: tuple[NotesApp, NotesApp], bound: float
) -> None:
    path = CASES[case.partition(": ")[2]]
    routed, plain = (
        Loop("get()", {"get": _get(app, path)}, unroll=1, collect=True) for app in apps
    )
    compare(
        ("request", case, "the app without"),
        routed,
        plain,
        bound=Bound(bound),
        seconds=0.004,
        pairs=300,
    )
    for app in apps:
        app.close()


@every_case
def bench_sqlite(compare: Compare, tmp_path: Path, what: str) -> None:
    """Measure a GET over SQLite files."""
    _compare(compare, f"SQLite files: {what}", sqlite_apps(tmp_path), 1.06)


@pytest.fixture
def postgresql_apps(cluster: Cluster) -> tuple[NotesApp, NotesApp]:
    """Give the application with two standbys, and without."""
    primary = cluster.primary.url()
    plain = NotesApp.build(primary)
    with plain.app.app_context():
        plain.db.drop_all()
    plain.fill()
    cluster.wait_replicated()
    return NotesApp.build(primary, [it.url() for it in cluster.standbys]), plain


@every_case
def bench_postgresql(
    compare: Compare, postgresql_apps: tuple[NotesApp, NotesApp], what: str
) -> None:
    """Measure a GET over PostgreSQL with two streaming standbys."""
    _compare(compare, f"PostgreSQL: {what}", postgresql_apps, 1.02)
