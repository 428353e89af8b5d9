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


def _get(notes: NotesApp) -> Callable[[], bytes]:
    environ, app = notes.environ(), notes.app
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

    if b"note 42" not in get() or answers != ["200 OK"]:
        raise RuntimeError(f"The application answered {answers} to a GET.")
    return get


def _compare(
    compare: Compare, case: str, apps: tuple[NotesApp, NotesApp], bound: float
) -> None:
    routed, plain = (
        Loop("get()", {"get": _get(app)}, unroll=1, collect=True) for app in apps
    )
    compare(
        ("request", case, "the app without"),
        routed,
        plain,
        bound=Bound(bound),
        seconds=0.004,
        pairs=1500,
    )
    for app in apps:
        app.close()


def bench_sqlite(compare: Compare, tmp_path: Path) -> None:
    """Measure a GET over SQLite files."""
    _compare(compare, "GET, SQLite files", sqlite_apps(tmp_path), 1.03)


@pytest.fixture
def postgresql_apps(cluster: Cluster) -> tuple[NotesApp, NotesApp]:
    """Give the application with two standbys, and without."""
    primary = cluster.primary.url()
    plain = NotesApp.build(primary)
    plain.fill()
    cluster.wait_replicated()
    return NotesApp.build(primary, [it.url() for it in cluster.standbys]), plain


def bench_postgresql(
    compare: Compare, postgresql_apps: tuple[NotesApp, NotesApp]
) -> None:
    """Measure a GET over PostgreSQL with two streaming standbys."""
    _compare(compare, "GET, PostgreSQL", postgresql_apps, 1.02)
