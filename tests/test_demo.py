"""The guestbook and the tour through it do what they show."""

from __future__ import annotations

import importlib.util
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask

from examples import tour
from examples.guestbook import create_app, db

if TYPE_CHECKING:
    from collections.abc import Iterator

psutil = pytest.importorskip("psutil")
pytest.importorskip("rich")

from examples.faults import Faults  # noqa: E402
from examples.tour_stage import Check, Screen  # noqa: E402

ROOT = Path(__file__).parent.parent


@contextmanager
def opened(primary: Path, *copies: Path) -> Iterator[Flask]:
    """Give a guestbook on files, and close them in the end."""
    app = create_app(f"sqlite:///{primary}", [f"sqlite:///{copy}" for copy in copies])
    yield app
    with app.app_context():
        for engine in db.engines.values():
            engine.dispose()


@pytest.fixture
def guestbook(tmp_path: Path) -> Iterator[Flask]:
    """Give a guestbook on a primary and two copies, with one entry."""
    primary, *copies = [tmp_path / f"{name}.db" for name in ("primary", "one", "two")]
    with opened(primary) as app:
        entry = {"author": "Eve", "message": "<b>before</b>"}
        app.test_client().post("/", data=entry)
    for copy in copies:
        shutil.copy(primary, copy)
    with opened(primary, *copies) as app:
        yield app


def test_guestbook_reads_in_turn(guestbook: Flask) -> None:
    """Visitors are served by the copies in turn, and the page says by whom."""
    pages = [guestbook.test_client().get("/").text for _ in range(4)]
    for name in ("one.db", "two.db"):
        assert sum(f"served by {name} (replica)" in page for page in pages) == 2


def test_guestbook_shows_its_pool(guestbook: Flask) -> None:
    """Page and JSON list the replicas."""
    client = guestbook.test_client()
    assert client.get("/pool").json == [
        {"name": "slave_1", "live": True},
        {"name": "slave_2", "live": True},
    ]
    assert '<td id="slave_2">in rotation' in client.get("/").text


def test_guestbook_reads_its_writes(guestbook: Flask) -> None:
    """Who has signed reads the primary; others go on reading copies."""
    author, other = guestbook.test_client(), guestbook.test_client()
    entry = {"author": "Ann", "message": "new"}
    page = author.post("/", data=entry, follow_redirects=True).text
    assert "<strong>Ann</strong>" in page
    assert author.get("/who").json == {"server": "primary.db", "role": "primary"}
    assert other.get("/who").json in (
        {"server": "one.db", "role": "replica"},
        {"server": "two.db", "role": "replica"},
    )


def test_guestbook_escapes_what_visitors_write(guestbook: Flask) -> None:
    """Markup in an entry is shown, not obeyed."""
    page = guestbook.test_client().get("/").text
    assert "&lt;b&gt;before&lt;/b&gt;" in page
    assert "<b>" not in page


@pytest.mark.parametrize(
    "form",
    [
        {"author": " ", "message": "hello"},
        {"author": "Ann", "message": ""},
        {"author": "Ann", "message": "x" * 401},
        {"author": "Ann"},
    ],
)
def test_guestbook_refuses_incomplete_forms(
    guestbook: Flask, form: dict[str, str]
) -> None:
    """A form without a name or a message, or with too long ones, is refused."""
    assert guestbook.test_client().post("/", data=form).status_code == 400


def test_guestbook_does_without_replicas(tmp_path: Path) -> None:
    """With no replica at all the primary serves everything."""
    with opened(tmp_path / "only.db") as app:
        assert "served by only.db (primary)" in app.test_client().get("/").text
        assert app.test_client().get("/pool").json == []


def test_summary_tells_what_did_not_happen(capsys: pytest.CaptureFixture[str]) -> None:
    """One failed check is shown as such and makes the status 1."""
    good, bad = Check.same("a", 1, 1), Check.same("b", 1, 2)
    assert tour.conclude(Screen(), [good]) == 0
    assert "All 1 happened" in capsys.readouterr().out
    assert tour.conclude(Screen(), [good, bad]) == 1
    assert "NOT OK" in capsys.readouterr().out


def test_tour_that_breaks_off_has_failed(capsys: pytest.CaptureFixture[str]) -> None:
    """An error keeps the checks made so far and adds one that failed."""

    def checks() -> Iterator[Check]:
        yield Check.same("a", 1, 1)
        raise TimeoutError("too late")

    assert [check.ok for check in tour.collect(Screen(), checks())] == [True, False]
    assert "too late" in capsys.readouterr().out


def test_missing_extra_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra the tour says what to install, and nothing else."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    message = str(tour.main([]))
    assert "pip install '.[demo]' in a clone" in message
    assert "\n" not in message


def commands(target: str, environment: Path) -> list[str]:
    """Return what ``make`` would do for a target, with its files in a folder."""
    program = shutil.which("make")
    if program is None:
        pytest.skip("make is not installed")
    command = [program, "--dry-run", "--no-print-directory", target]
    variables = [f"VENV={environment}", "PYTHON=python3"]
    run = subprocess.run(
        [*command, *variables], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [line for line in run.stdout.splitlines() if "pip install" in line]


def test_make_installs_what_is_needed(tmp_path: Path) -> None:
    """The demo gets its own extra, once; what the tests have will do for it, too."""
    (installed,) = commands("demo", tmp_path)
    assert "'.[demo]'" in installed
    (installed,) = commands("test", tmp_path)
    assert "'.[dev]'" in installed
    (tmp_path / ".demo").touch()
    assert commands("demo", tmp_path) == []
    assert len(commands("test", tmp_path)) == 1
    (tmp_path / ".demo").unlink()
    (tmp_path / ".ready").touch()
    assert commands("demo", tmp_path) == commands("test", tmp_path) == []


@contextmanager
def started_tour(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start the tour as ``make demo`` does, and let it end."""
    with subprocess.Popen(
        [sys.executable, "-m", "examples.tour", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()  # unless it has ended, or this would wait for ever


def remains(pid: int) -> list[str]:
    """List directories and living processes that a tour has left behind."""
    mark = f"flask-replicated-{pid}-"
    found = [str(path) for path in Path(tempfile.gettempdir()).glob(f"{mark}*")]
    for process in psutil.process_iter(["cwd", "cmdline"]):
        places = [process.info["cwd"] or "", *(process.info["cmdline"] or [])]
        found += [place for place in places if mark in place]
    return found


@pytest.mark.postgres
def test_tour_shows_what_it_promises() -> None:
    """On real servers everything happens as announced, and nothing is left."""
    with started_tour("--once") as process:
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert output.startswith("\nWatch it live at http://127.0.0.1:")
    summary = output.partition("\nSummary\n")[2]
    assert summary.count(" ok ") == 13
    assert "All 13 happened as expected." in summary
    assert "NOT OK" not in summary
    assert "\x1b" not in output
    # A server has one name: that of its bind.
    assert "slave_2 is killed now" in output
    assert "standby_" not in output
    assert remains(process.pid) == []


@pytest.mark.postgres
def test_page_with_its_buttons() -> None:
    """The page is at the address that comes first, and Ctrl-C ends all of it."""
    with started_tour("--page") as process:
        assert process.stdout is not None
        said = ""
        while "Press Ctrl-C" not in said:
            line = process.stdout.readline()
            assert line, "it has ended"
            said += line
        address = said.split()[4]
        assert address.endswith("/replicated/")
        with urllib.request.urlopen(address) as page:
            assert b'aria-label="Kill slave_1"' in page.read()
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "Stopping" in output
    assert "Traceback" not in output
    assert remains(process.pid) == []


@pytest.fixture
def faults() -> tuple[Flask, Faults, SimpleNamespace]:
    """Give the page of an application, over a cluster that is none."""

    def note(what: str) -> Any:
        return lambda: standby.done.append(what)

    standby = SimpleNamespace(
        name="standby_1",
        is_running=True,
        is_frozen=False,
        done=[],
        **{name: note(name) for name in ("kill", "pause_replay")},
    )
    made = Faults(SimpleNamespace(standbys=(standby,)))  # type: ignore[arg-type]
    app = Flask("demo", template_folder=str(ROOT / "examples" / "templates"))
    made.add_page(app)
    return app, made, standby


@pytest.mark.parametrize(
    ("form", "busy", "status"),
    [
        ({"fault": "kill", "server": "standby_1"}, "", 200),
        ({"fault": "kill", "server": "primary"}, "", 409),
        ({"fault": "restore", "server": "standby_1"}, "", 409),
        ({"fault": "drop", "server": "standby_1"}, "", 409),
        ({"fault": "kill", "server": "standby_1"}, "the tour goes on", 409),
    ],
)
def test_faults(
    faults: tuple[Flask, Faults, SimpleNamespace],
    form: dict[str, str],
    busy: str,
    status: int,
) -> None:
    """A fault strikes only what it can strike, and nothing while the tour goes on."""
    app, made, standby = faults
    made.busy_with = busy
    client = app.test_client()
    page = client.get("/replicated/").text
    (token,) = set(re.findall(r'name="replicated_token" value="([^"]+)"', page))
    form["replicated_token"] = token
    headers = {"Accept": "application/json"}
    assert client.post("/replicated/faults", data=form).status_code == 403
    headers["Origin"] = "http://localhost"
    answer = client.post("/replicated/faults", data=form, headers=headers)
    assert answer.status_code == status
    assert standby.done == (["kill"] if status == 200 else [])
    made.busy_with = "the tour goes on"
    form |= {"order": "off"}  # a button of the page's own
    answer = client.post("/replicated/", data=form, headers=headers)
    assert (answer.status_code, answer.json) == (409, {"message": "the tour goes on"})


@pytest.mark.postgres
def test_tour_can_be_interrupted() -> None:
    """Ctrl-C while servers start ends the tour and leaves nothing behind."""
    with started_tour() as process:
        assert process.stdout is not None
        while "primary on port" not in (line := process.stdout.readline()):
            assert line, "it has ended"
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Stopped" in output
    assert "Traceback" not in output
    assert remains(process.pid) == []
