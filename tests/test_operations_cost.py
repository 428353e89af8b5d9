"""What a GET pays for what operators see: calls are counted, as time is not exact."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import flask_replicated
from flask_replicated.routing.explanations import TRACING
from tests.support import Build, Site, build_fixture

if TYPE_CHECKING:
    from types import FrameType

build = build_fixture

PACKAGE = Path(flask_replicated.__file__).parent
ASKS = "isEnabledFor"
FACES = ("metrics.py", "operations", "routing/explanations.py", "signals.py")
OTHERS = (
    "blinker",
    "flask_debugtoolbar",
    "logging",
    "opentelemetry",
    "prometheus_client",
)


def serves_operators(frame: FrameType) -> bool:
    """Whether a function serves operators, or is a library's that it is asked for."""
    if frame.f_code.co_filename.startswith(tuple(f"{PACKAGE / one}" for one in FACES)):
        return True
    library = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    caller = frame.f_back
    return (
        library in OTHERS
        and caller is not None
        and caller.f_code.co_filename.startswith(f"{PACKAGE}")
    )


def calls_of(site: Site) -> Counter[str]:
    """Return which functions a GET calls that serve operators, and how often.

    Each read asks the logger whether it is enabled, which is not counted.
    """
    found: Counter[str] = Counter()

    def note(frame: FrameType, event: str, _argument: object) -> None:
        name = frame.f_code.co_name
        if event == "call" and name != ASKS and serves_operators(frame):
            found[name] += 1

    client = site.client()
    for _ in range(3):  # the first one looks whether the logger is enabled
        assert client.get("/").status_code == 200
    sys.setprofile(note)
    try:
        client.get("/")
    finally:
        sys.setprofile(None)
    return found


@pytest.fixture
def site(
    request: pytest.FixtureRequest, build: Build, monkeypatch: pytest.MonkeyPatch
) -> Site:
    """Give an application with replicas, in a process that imports no tracing."""
    monkeypatch.delitem(sys.modules, TRACING, raising=False)
    return build(("slave_1", "slave_2"), **getattr(request, "param", {}))


def test_off_is_free(site: Site) -> None:
    """With all of it off, no function of it is called, but to ask whether it is."""
    assert calls_of(site) == {}


@pytest.mark.usefixtures("site")
def test_place_and_metrics(build: Build, tmp_path: Path) -> None:
    """A control place and metrics call nothing: they cost looks and scrapes."""
    metrics = pytest.importorskip("flask_replicated.metrics")
    client = pytest.importorskip("prometheus_client")
    watched = build(("slave_1",), REPLICATED_CONTROL=str(tmp_path / "control"))
    metrics.register(client.CollectorRegistry(), watched.app)
    assert calls_of(watched) == {}


@pytest.mark.parametrize("site", [{"REPLICATED_EXPLAIN": True}], indirect=True)
def test_header(site: Site) -> None:
    """The header is made once, with one entry for each server and reason."""
    assert calls_of(site) == {"add_server_timing": 1, "_entry": 1}


def test_log(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """A line of the log is one call for each read, as this way to count sees it."""
    with caplog.at_level(logging.DEBUG, "flask_replicated.routing"):
        found = calls_of(site)
    assert (found["tell"], found["_log"]) == (1, 1)


def test_trace(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """So are the attributes of a span, which is asked for once."""
    trace: Any = pytest.importorskip(TRACING)
    monkeypatch.setitem(sys.modules, TRACING, trace)
    assert calls_of(site) == {"tell": 1, "get_current_span": 1, "is_recording": 1}
