"""The commands ``flask replicated …``."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from flask import Flask
from flask.cli import ScriptInfo
from sqlalchemy import text

from examples.cluster import wait_until
from flask_replicated import ConfigurationError, FlaskReplicated, using_slave
from flask_replicated.errors.redaction import printable
from flask_replicated.operations.commands import replicated
from flask_replicated.operations.control import CONTROL, Control
from flask_replicated.operations.place import OrderKey
from flask_replicated.operations.tables import print_table
from tests.fleets import Fleet, fleet_fixture
from tests.support import Build, break_file, build_fixture, make_file, unpooled

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

build = build_fixture
fleet = fleet_fixture


def run(fleet: Fleet, *words: str) -> Result:
    """Run a command."""
    return fleet.site.app.test_cli_runner().invoke(args=["replicated", *words])


def status(fleet: Fleet, code: int) -> dict[str, Any]:
    """Return what ``status --json`` prints, and check its exit code."""
    result = run(fleet, "status", "--json")
    assert result.exit_code == code, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def states(found: dict[str, Any], bind: str = "") -> dict[str, str]:
    """Return each replica's state."""
    return {one["name"]: one["state"] for one in found["binds"][bind]["replicas"]}


@pytest.fixture
def ordered(build: Build, tmp_path: Path) -> Fleet:
    """Give a site with a control place, whose worker has told its state."""
    binds = {"analytics": unpooled(make_file(tmp_path, "analytics"))}
    binds["analytics_slave_1"] = unpooled(make_file(tmp_path, "analytics_slave_1"))
    fleet = Fleet(
        build,
        binds=binds,
        folder=tmp_path,
        REPLICATED_CONTROL=str(tmp_path / "control"),
        REPLICATED_BREAKER_THRESHOLD=1,
        REPLICATED_BREAKER_RESET=30,
    )
    fleet.site.count(3)
    control(fleet).look_now()
    return fleet


def control(fleet: Fleet) -> Control:
    """Return the worker's part in its control place."""
    found: Control = fleet.site.app.extensions[CONTROL]
    return found


COMMANDS = [
    ("check",),
    ("drain", "slave_1"),
    ("explain", "GET", "/"),
    ("off",),
    ("on",),
    ("report",),
    ("restore", "slave_1"),
    ("status",),
    ("weight", "slave_1", "2"),
]


class TestStatus:
    """``flask replicated status``."""

    def test_without_a_place(self, fleet: Fleet) -> None:
        """The servers are asked: those that are out are found, with the cause."""
        threads = set(threading.enumerate())
        assert states(status(fleet, 0)) == dict.fromkeys(
            ("slave_1", "slave_2", "slave_3"), "closed"
        )
        break_file(fleet.site.folder, "slave_2")
        found = status(fleet, 1)
        assert states(found)["slave_2"] == "open"
        assert found["binds"][""]["replicas"][1]["reason"] in {"down", "misconfigured"}
        assert (found["workers"], found["off"]) == ([], False)
        for name in ("slave_1", "slave_3"):
            break_file(fleet.site.folder, name)
        assert set(states(status(fleet, 2)).values()) == {"open"}
        with fleet.site.app.app_context():  # nothing of that concerns this process
            assert len(fleet.extension.snapshot()[None].live) == 3
        wait_until(lambda: set(threading.enumerate()) <= threads, "threads to end")

    def test_by_workers(self, ordered: Fleet) -> None:
        """Accounts are shown with their workers; what one worker sees suffices."""
        found = status(ordered, 0)
        (replica,) = found["binds"]["analytics"]["replicas"]
        assert replica == {
            "name": "analytics_slave_1",
            "state": "closed",
            "reason": None,
            "since": replica["since"],
            "lag_seconds": None,
            "weight": 1,
            "host": None,
            "port": None,
            "workers": {"closed": 1},
        }
        (worker,) = found["workers"]
        assert worker.keys() == {"host", "pid", "seen"}
        (text,) = control(ordered).place.accounts()
        other = json.loads(text)
        other["binds"][""][1]["state"] = "open"
        other["binds"][""][1]["reason"] = "lag"
        control(ordered).place.publish("other", json.dumps(other), 60)
        found = status(ordered, 1)
        assert len(found["workers"]) == 2
        assert found["binds"][""]["replicas"][1]["workers"] == {"closed": 1, "open": 1}
        assert found["binds"][""]["replicas"][1]["reason"] == "lag"

    def test_no_outage(self, ordered: Fleet) -> None:
        """What was drained, or weighs nothing, is no outage."""
        for name in ("slave_1", "slave_2", "slave_3"):
            assert run(ordered, "drain", name).exit_code == 0
        control(ordered).look_now()
        assert set(states(status(ordered, 0)).values()) == {"drained"}

    def test_off_is_said_first(self, ordered: Fleet) -> None:
        """The kill switch is the first thing that is shown."""
        run(ordered, "off")
        assert status(ordered, 0)["off"] is True
        shown = run(ordered, "status").stdout.splitlines()
        assert shown[0].startswith("Reads are OFF")
        assert shown[1].split()[:3] == ["bind", "replica", "state"]
        run(ordered, "on")
        assert status(ordered, 0)["off"] is False

    def test_it_tells_nothing_of_itself(self, build: Build, tmp_path: Path) -> None:
        """A command, and what it reads, is no worker; the servers are asked."""
        fleet = Fleet(build, REPLICATED_CONTROL=str(tmp_path))

        @fleet.site.app.cli.command("read")
        def read() -> None:
            with fleet.site.app.app_context():
                fleet.extension.snapshot()
            control(fleet).look_now()

        assert fleet.site.app.test_cli_runner().invoke(args=["read"]).exit_code == 0
        assert control(fleet).place.accounts() == []
        for words in (("drain", "slave_1"), ("status",)):
            result = run(fleet, *words)
            assert result.exit_code == 0
            assert "No worker is known" in result.stderr
        assert states(status(fleet, 0))["slave_1"] == "drained"
        control(fleet).end()

    def test_a_command_that_serves(self, build: Build, tmp_path: Path) -> None:
        """It is a worker from its first request on, though it has read before that."""
        fleet = Fleet(build, REPLICATED_CONTROL=str(tmp_path))
        found = []

        @fleet.site.app.cli.command("serve")
        def serve() -> None:
            with fleet.site.app.app_context(), using_slave():
                fleet.site.db.session.execute(text("SELECT 1"))
            for _ in range(2):
                control(fleet).look_now()
                found.append(len(control(fleet).place.accounts()))
                fleet.site.app.test_client().get("/")

        assert fleet.site.app.test_cli_runner().invoke(args=["serve"]).exit_code == 0
        assert found == [0, 1]
        control(fleet).end()

    @pytest.mark.parametrize("words", [("status",), ("status", "--json")])
    def test_an_application_without_replicas(
        self, build: Build, words: tuple[str, ...]
    ) -> None:
        """That is no outage, and one line says it."""
        app = build(()).app
        result = app.test_cli_runner().invoke(args=["replicated", *words])
        assert result.exit_code == 0
        (line,) = [one for one in result.output.splitlines() if one[0] != "{"]
        assert line.startswith("This application has no replicas: SQLALCHEMY_BINDS")


class TestStart:
    """What every command needs."""

    @pytest.mark.parametrize("words", COMMANDS)
    def test_without_the_extension(self, words: tuple[str, ...]) -> None:
        """Where nothing can be learnt or done, the exit code says so."""
        app = Flask("bare")
        app.cli.add_command(replicated)
        result = app.test_cli_runner().invoke(args=["replicated", *words])
        assert result.exit_code == 2
        assert "FlaskReplicated is not registered" in result.output

    @pytest.mark.parametrize("words", COMMANDS)
    def test_without_engines(self, words: tuple[str, ...]) -> None:
        """Where the extension is there and Flask-SQLAlchemy is not, that is said."""
        app = Flask("bare")
        FlaskReplicated(app)
        result = app.test_cli_runner().invoke(args=["replicated", *words])
        assert result.exit_code == 2
        assert "Flask-SQLAlchemy is not registered" in result.output

    @pytest.mark.parametrize("words", COMMANDS)
    @pytest.mark.parametrize(
        "error", [ConfigurationError("REPLICATED_ZONE", "", "must be"), KeyError("URL")]
    )
    def test_an_application_that_does_not_start(
        self, words: tuple[str, ...], error: Exception
    ) -> None:
        """One line names a wrong setting; that is no outage, and no mere warning."""

        def create_app() -> Flask:
            raise error

        result = CliRunner().invoke(
            replicated, words, obj=ScriptInfo(create_app=create_app)
        )
        assert result.exit_code == 2
        assert ("Traceback" in result.output) is isinstance(error, KeyError)
        assert str(error.args[0]) in result.output


class TestOrders:
    """The commands that give orders."""

    def test_of_a_bind(self, ordered: Fleet) -> None:
        """--bind names another bind, --for an end; each is in the place."""
        words = ("analytics_slave_1", "--bind", "analytics")
        result = run(ordered, "drain", *words, "--for", "60")
        assert (result.exit_code, result.stderr) == (0, "")  # a worker is known
        orders = control(ordered).place.read_orders() or {}
        key = OrderKey("drain", "analytics", "analytics_slave_1")
        assert orders[key].until is not None
        assert run(ordered, "restore", *words).exit_code == 0
        orders = control(ordered).place.read_orders() or {}
        assert (orders[key].value, orders[key].until) == (False, None)

    def test_weight(self, build: Build, tmp_path: Path) -> None:
        """A weight reaches the workers; a balancer that reads none is named."""
        place = str(tmp_path / "control")
        fleet = Fleet(build, REPLICATED_CONTROL=place, REPLICATED_BALANCER="weighted")
        fleet.site.count(1)
        assert run(fleet, "weight", "slave_1", "0").exit_code == 0
        assert run(fleet, "weight", "slave_2", "3").exit_code == 0
        control(fleet).look_now()
        found = status(fleet, 0)["binds"][""]["replicas"]
        assert [one["weight"] for one in found] == [0, 3, 1]
        assert found[0]["reason"] == "weight 0"
        assert fleet.site.count(8) == {"slave_2": 6, "slave_3": 2}
        plain = Fleet(build, REPLICATED_CONTROL=place)
        result = run(plain, "weight", "slave_1", "2")
        assert result.exit_code == 1
        assert "would change nothing" in result.output

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("drain", "slave_9"), "the default bind has no replica 'slave_9'"),
            (("drain", "slave_1", "--bind", "x\x1b[2J"), "'x\\x1b[2J'"),
            (("restore", "analytics_slave_1"), "of another bind: --bind analytics."),
            (("drain", "slave_1", "--bind", "x"), "have some: (default), analytics"),
            (("drain", "slave_1", "--for", "nan"), "a number of seconds, above 0"),
            (("drain", "slave_1", "--for", "0"), "a number of seconds, above 0"),
            (("drain", "slave_1", "--for", "15m"), "a number of seconds, above 0"),
            (("restore",), "Missing argument"),
            (("weight", "slave_1", str(10**16)), "is not in the range"),
        ],
    )
    def test_wrong(self, ordered: Fleet, words: tuple[str, ...], said: str) -> None:
        """What cannot be meant is refused, and says what would be right."""
        result = run(ordered, *words)
        assert result.exit_code == 2
        assert said in result.output
        assert "\x1b" not in result.output
        assert control(ordered).place.read_orders() is None

    @pytest.mark.parametrize(
        "words", [("drain", "slave_1"), ("weight", "slave_1", "2"), ("off",)]
    )
    def test_without_a_place(self, fleet: Fleet, words: tuple[str, ...]) -> None:
        """Without a control place an order would reach nobody, and that is said."""
        result = run(fleet, *words)
        assert result.exit_code == 1
        assert "There is no control place" in result.output

    def test_a_place_that_fails(self, build: Build, tmp_path: Path) -> None:
        """What is wrong with the place is said; status asks the servers."""
        (tmp_path / "file").write_text("")
        fleet = Fleet(build, REPLICATED_CONTROL=str(tmp_path / "file" / "place"))
        result = run(fleet, "off")
        assert result.exit_code == 1
        assert "The control place cannot be used" in result.output
        assert set(states(status(fleet, 0)).values()) == {"closed"}


def test_printable() -> None:
    """What would control a terminal is shown, not sent."""
    assert printable("ok\x1b[31m\nä") == "ok\\x1b[31m\\nä"


@pytest.mark.parametrize("rich", [True, False])
def test_tables(
    rich: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a terminal rich draws a table, where it is installed; markup is no markup."""
    if rich:
        pytest.importorskip("rich")
    else:
        monkeypatch.setitem(__import__("sys").modules, "rich.console", None)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    print_table(["name", "state"], [["[red]slave_1[/red]", "open"]])
    shown = capsys.readouterr().out
    assert "[red]slave_1[/red]" in shown
    assert ("┃" in shown or "│" in shown) is rich
