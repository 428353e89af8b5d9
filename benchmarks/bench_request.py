"""A whole GET, from the WSGI call to the closed response.

The application with the extension and the same one without, or with nothing of what
operators see switched on, answer in turn; a ratio is taken of each two neighbours, and
the median of those is shown.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry

from benchmarks.apps import NotesApp, fill_cluster, sqlite_apps
from benchmarks.pairs import Bound, Loop
from flask_replicated.metrics import register
from flask_replicated.routing.explanations import TRACING, logger

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.conftest import Compare
    from examples.cluster import Cluster


# The smallest GET there is, and one as people write them.
CASES = {"one row, JSON": "/notes/42", "page of 20 rows": "/notes"}
every_case = pytest.mark.parametrize("what", CASES)


def _compare(
    compare: Compare,
    case: str,
    apps: tuple[NotesApp, NotesApp],
    bound: float,
    peer: str = "the app without",
) -> None:
    path = CASES[case.partition(": ")[2]]
    routed, plain = (
        Loop("get()", {"get": app.client(path).checked().send}, unroll=1, collect=True)
        for app in apps
    )
    compare(
        ("request", case, peer),
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


@every_case
def bench_operations(compare: Compare, tmp_path: Path, what: str) -> None:
    """Measure a GET that explains itself, with a control place and metrics."""
    for name in ("off", "on"):
        (tmp_path / name).mkdir()
    quiet, plain = sqlite_apps(tmp_path / "off")
    plain.close()
    watched, plain = sqlite_apps(
        tmp_path / "on",
        REPLICATED_CONTROL=str(tmp_path / "control"),
        REPLICATED_EXPLAIN=True,
    )
    plain.close()
    register(CollectorRegistry(), watched.app)
    case = f"header, control place, metrics: {what}"
    _compare(compare, case, (watched, quiet), 1.03, "none of these")


def _compare_switched(
    compare: Compare,
    case: str,
    app: NotesApp,
    switch: tuple[str, str, dict[str, object]],
    bound: Bound | None,
) -> None:
    """Measure one application with something on beside it with that off.

    Args:
        compare: Measures.
        case: What is on, and the GET.
        app: The application.
        switch: Statements that put it on and off, and the names in them.
        bound: What the ratio should not exceed.
    """
    on, off, names = switch
    send = app.client(CASES[case.partition(": ")[2]]).checked().send
    loops = (
        Loop(f"{one}; get()", {"get": send, **names}, unroll=1, collect=True)
        for one in (on, off)
    )
    labels = ("request", case, "without")
    compare(labels, *loops, bound=bound, seconds=0.004, pairs=300)
    app.close()


@every_case
def bench_tracing(compare: Compare, tmp_path: Path, what: str) -> None:
    """Measure a GET within a span, which gets attributes for each read."""
    # Here, and away afterwards: the other cases are without it.
    from opentelemetry import trace  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415

    app, plain = sqlite_apps(tmp_path)
    plain.close()
    names: dict[str, object] = {"m": sys.modules, "it": trace, "name": TRACING}
    switch = "m[name] = it", "m.pop(name, None)", names
    tracer = TracerProvider().get_tracer("benchmark")
    with tracer.start_as_current_span("GET"):
        try:
            _compare_switched(compare, f"tracing: {what}", app, switch, Bound(1.03))
        finally:
            sys.modules.pop(TRACING, None)


@every_case
def bench_log(compare: Compare, tmp_path: Path, what: str) -> None:
    """Measure a GET that logs where it reads, into a file; it is what a line costs."""
    app, plain = sqlite_apps(tmp_path)
    plain.close()
    handler = logging.FileHandler(tmp_path / "routing.log")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    names: dict[str, object] = {"log": logger}
    switch = "log.disabled = False", "log.disabled = True", names
    try:
        _compare_switched(compare, f"DEBUG log: {what}", app, switch, None)
    finally:
        logger.removeHandler(handler)
        handler.close()
        logger.setLevel(logging.NOTSET)
        logger.disabled = False


@pytest.fixture
def postgresql_apps(cluster: Cluster) -> tuple[NotesApp, NotesApp]:
    """Give the application with two standbys, and without."""
    primary = cluster.primary.url()
    plain = fill_cluster(cluster)
    return NotesApp.build(primary, [it.url() for it in cluster.standbys]), plain


@every_case
def bench_postgresql(
    compare: Compare, postgresql_apps: tuple[NotesApp, NotesApp], what: str
) -> None:
    """Measure a GET over PostgreSQL with two streaming standbys."""
    _compare(compare, f"PostgreSQL: {what}", postgresql_apps, 1.02)
