"""``REPLICATED_MODE = 'observe'``: what would have been, and what to do about it."""

from __future__ import annotations

import json
import random
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import insert, select, text, update

from examples import guestbook
from flask_replicated import FlaskReplicated, using_master, using_slave
from flask_replicated.operations.control import CONTROL, Control
from flask_replicated.operations.report_texts import report_from, report_to
from flask_replicated.routing.reports import EndpointReport, Report
from tests.support import Build, Site, build_fixture

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

build = build_fixture

PATHS = ("/", "/", "/", "/seen", "/blocks", "/undone", "/taken", "/core", "/both")
POSTS = ("/write", "/search")


def add_traffic_views(site: Site) -> None:
    """Add views of every kind."""
    session, entry, marker = site.db.session, site.entry, site.marker

    def read() -> None:
        session.scalars(select(marker.name)).all()

    @site.app.get("/seen")
    def seen() -> str:
        read()
        session.execute(update(entry).values(text="seen"))
        session.commit()
        read()
        return ""

    @site.app.get("/blocks")
    def blocks() -> str:
        with using_master():
            read()
        with using_slave():
            read()
        session.rollback()
        read()
        return ""

    @site.app.get("/undone")
    def undone() -> str:
        session.add(entry(text="undone"))
        session.flush()
        session.rollback()
        read()
        return ""

    @site.app.get("/taken")
    def taken() -> str:
        read()
        session.connection()
        session.rollback()
        read()
        return ""

    _add_other_views(site)


def _add_other_views(site: Site) -> None:
    session, entry, marker = site.db.session, site.entry, site.marker

    @site.app.get("/core")
    def core() -> str:
        with site.db.engine.connect() as connection:
            connection.execute(select(marker.name))
            connection.execute(select(entry.id))
        return ""

    @site.app.route("/both", methods=["GET", "POST"])
    def both() -> str:
        session.execute(text("SELECT count(*) FROM entry"))
        statement = select(entry.id).execution_options(replicated="master")
        session.execute(statement)
        return ""

    @site.app.post("/search")
    def search() -> str:
        session.scalars(select(marker.name)).all()
        return ""


def drive(site: Site, seed: int, requests: int = 250) -> None:
    """Send random requests of five visitors, some of whom lose their cookies."""
    chance = random.Random(seed)
    visitors = [site.client() for _ in range(5)]
    for _ in range(requests):
        if chance.random() < 0.1:
            visitors[chance.randrange(5)] = site.client()
        path = chance.choice(PATHS + POSTS)
        method = "POST" if path in POSTS else "GET"
        response = chance.choice(visitors).open(path, method=method)
        assert response.status_code == 200, (path, response.text)


def extension(site: Site) -> FlaskReplicated:
    """Return a site's extension."""
    found: FlaskReplicated = site.app.extensions["replicated"]
    return found


def counts(site: Site) -> tuple[dict[str, int], int]:
    """Return the reads of the primary by reason, and those of all replicas."""
    with site.app.app_context():
        found = extension(site).snapshot()[None]
    return dict(found.primary_reads), sum(one.reads for one in found.members)


def report(site: Site) -> Report:
    """Return what a site's process has observed."""
    with site.app.app_context():
        found = extension(site).report()
    assert found is not None
    return found


@pytest.mark.parametrize("unpinned", [{}, {"entry": ["text"]}])
def test_prediction(build: Build, tmp_path: Path, unpinned: Any) -> None:
    """The same visits read as much from replicas as was predicted without them."""
    rules = {"REPLICATED_PIN_SECONDS": 600, "REPLICATED_UNPINNED": unpinned}
    for place in ("observed", "routed"):
        (tmp_path / place).mkdir()
    observed = build(
        [], folder=tmp_path / "observed", REPLICATED_MODE="observe", **rules
    )
    routed = build(folder=tmp_path / "routed", **rules)
    for site in (observed, routed):
        add_traffic_views(site)
        drive(site, 17)
    predicted, by_replicas = counts(observed)
    primary, served = counts(routed)
    assert by_replicas == 0
    assert predicted.pop("observe") == served > 30
    assert predicted == primary
    found = report(observed)
    assert (found.moved, found.reads) == (served, served + sum(primary.values()))
    assert found.binds == {"": {"reads": found.reads, "moved": served}}


def test_guestbook(tmp_path: Path) -> None:
    """So it is with the guestbook, whose visitors read and sign."""
    shares = []
    for mode in ("observe", "route"):
        url = f"sqlite:///{tmp_path / mode}.db"
        replicas = [url] if mode == "route" else []
        app = guestbook.create_app(
            url, replicas, REPLICATED_MODE=mode, REPLICATED_PIN_SECONDS=600
        )
        chance = random.Random(5)
        visitors = [app.test_client() for _ in range(40)]
        for _ in range(150):
            visitor = chance.choice(visitors)
            if chance.random() < 0.2:
                visitor.post("/", data={"author": "Ada", "message": "Hello"})
            assert visitor.get(chance.choice(["/", "/who"])).status_code == 200
        with app.app_context():
            found = guestbook.replicated.snapshot()[None]
            for engine in guestbook.db.engines.values():
                engine.dispose()
        served = sum(one.reads for one in found.members)
        primary = found.primary_reads
        moved, reads = served + primary["observe"], served + sum(primary.values())
        shares.append(moved / reads)
    predicted, real = shares
    assert 0.2 < predicted < 0.9
    assert predicted == pytest.approx(real, abs=0.01)


def test_reasons(build: Build) -> None:
    """The report tells which table's write keeps which reads from replicas."""
    site = build([], REPLICATED_MODE="observe")
    add_traffic_views(site)
    client = site.client()
    for path in ("/", "/seen", "/", "/undone", "/taken"):
        client.get(path)
    found = report(site).endpoints
    assert found["who"] == EndpointReport(
        requests=2,
        only_reading=2,
        reads=2,
        moved=1,
        held={"pinned": 1},
        held_by={"entry": 1},
        demanding=1,
    )
    seen, undone, taken = found["seen"], found["undone"], found["taken"]
    assert (seen.moved, seen.held, seen.held_by) == (1, {"latched": 1}, {"entry": 1})
    assert (seen.writing, seen.mixed) == (1, 1)
    assert seen.written == {"entry": (1, ("text",))}
    assert (undone.writing, undone.written) == (1, {})
    assert undone.held_by == {"entry": 1}
    assert taken.held_by == {"entry": 1, "(the session's connection was asked for)": 1}


def test_advice(build: Build, tmp_path: Path) -> None:
    """The line that the report gives moves the reads that it says are held back."""
    before = build([], REPLICATED_MODE="observe", REPLICATED_PIN_SECONDS=600)
    add_traffic_views(before)
    client = before.client()
    for _ in range(25):
        for path in ("/seen", "/"):
            client.get(path)
        before.client().post("/search")
    first, second = report(before).advice()
    assert first.startswith("entry.text is written by 50 % of the requests that only")
    assert "set REPLICATED_UNPINNED = {'entry': ['text']}, which" in first
    assert "'search'" in second
    assert "@use_slave_database" in second
    after = build(
        REPLICATED_PIN_SECONDS=600,
        REPLICATED_UNPINNED={"entry": ["text"]},
        folder=tmp_path,
    )
    add_traffic_views(after)
    client = after.client()
    for path in ("/seen", "/"):
        client.get(path)
    assert counts(after) == ({}, 3)
    assert report(before).share == pytest.approx(1 / 100)


def test_advice_on_all_that_is_written() -> None:
    """What is written beside the table that holds reads back is named at once."""
    topic = EndpointReport(
        requests=100,
        only_reading=100,
        reads=200,
        held={"latched": 100},
        held_by={"users": 100},
        written={
            "users": (100, ("seen",)),
            "topics": (99, ("views",)),
            "notes": (20, None),
            "rare": (1, ("x",)),
        },
    )
    first, second = Report(0.0, 1.0, {}, {"topic": topic}).advice()
    assert first.startswith("users.seen is written by 100 % of the requests that only")
    rules = "'users': ['seen'], 'topics': ['views']"
    assert f"set REPLICATED_UNPINNED = {{{rules}}}, which" in first
    assert second.startswith("notes is written by 20 %")
    assert f"set REPLICATED_UNPINNED = {{{rules}, 'notes': '*'}}, which" in second


def test_nothing_fails(build: Build) -> None:
    """What a replica would refuse is written, and told."""
    site = build([], REPLICATED_MODE="observe")

    @site.app.get("/refused")
    def refused() -> str:
        with site.db.engine.connect() as connection:
            connection.execute(insert(site.entry).values(text="by Core"))
            connection.commit()
        with using_slave():
            site.write("by a session")
        return ""

    assert site.client().get("/refused").status_code == 200
    assert site.entries() == ["by Core", "by a session"]
    found = report(site)
    assert found.endpoints["refused"].refused == 1
    assert "@changes_database" in found.advice()[-1]


def test_faults(
    build: Build, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What fails while it observes is logged, and fails no request."""
    site = build([], REPLICATED_MODE="observe")
    state = site.app.extensions["replicated.state"]

    @site.app.get("/mixed")
    def mixed() -> str:
        site.who()
        with using_slave():
            site.write()
        return site.who()

    client = site.client()
    assert client.get("/write").status_code == 200
    monkeypatch.setattr(state.observation, "note_demand", None)
    monkeypatch.setattr(state.observation, "_of", None)
    for path in ("/", "/write", "/mixed"):
        assert client.get(path).text == "master"
        assert site.get(path) == "master"
    assert {one.levelname for one in caplog.records} == {"ERROR"}
    assert "it could not be observed where a request has read" in caplog.text


def test_bounds(build: Build) -> None:
    """Many endpoints and tables are summed up; a report is never long."""
    site = build([], REPLICATED_MODE="observe")
    tables = [f"table_{number}" for number in range(40)]

    def view() -> str:
        for table in tables:
            site.db.session.execute(text(f"UPDATE {table} SET x = 'secret'"))
        site.db.session.commit()
        return ""

    with site.app.app_context(), site.db.engine.begin() as connection:
        for table in tables:
            connection.execute(text(f"CREATE TABLE {table} (x text)"))
    for number in range(150):
        name = f"view_{number}_{'x' * 400}"
        site.app.add_url_rule(f"/{number}", name, view)
    for number in range(150):
        assert site.client().get(f"/{number}").status_code == 200
    found = report(site)
    assert len(found.endpoints) <= 101
    assert found.endpoints["(other)"].requests >= 50
    assert sum(one.requests for one in found.endpoints.values()) == 150
    assert all(len(one.written) <= 20 for one in found.endpoints.values())
    sent = report_to(found, "host", 1)
    assert len(sent) <= 200_000
    assert "secret" not in sent
    again = report_from(sent)
    assert again is not None
    assert sum(one.requests for one in again.report.endpoints.values()) == 150


def test_a_fork_begins_anew(build: Build) -> None:
    """A forked worker tells what it has seen itself."""
    site = build([], REPLICATED_MODE="observe")
    site.get()
    assert report(site).reads == 1
    site.app.extensions["replicated.state"].begin_anew()
    assert report(site).reads == 0
    site.get()
    assert report(site).reads == 1


def test_every_bind(build: Build, tmp_path: Path) -> None:
    """Each bind is observed; where none is, there is no report."""
    binds = {"analytics": f"sqlite:///{tmp_path / 'analytics.db'}"}
    site = build(["slave_1"], binds=binds, REPLICATED_MODE="observe")
    site.get()
    with site.app.test_request_context("/"):
        site.db.session.execute(
            text("SELECT 1"), bind_arguments={"bind": site.db.engines["analytics"]}
        )
        site.db.session.remove()
    found = report(site).binds
    one_read = {"reads": 1, "moved": 1}
    assert found == {"": one_read, "analytics": one_read}
    assert counts(site) == ({"observe": 1}, 0)
    routed = build(["slave_1"])
    with routed.app.app_context():
        assert extension(routed).report() is None


# --- all workers ---


def run(site: Site, *options: str) -> Result:
    """Run the command."""
    runner = site.app.test_cli_runner()
    return runner.invoke(args=["replicated", "report", *options])


def control(site: Site) -> Control:
    """Return a worker's part in the control place."""
    found: Control = site.app.extensions[CONTROL]
    return found


def test_all_workers(build: Build, tmp_path: Path) -> None:
    """All workers are added up, also one that has ended; a pin tells each its table."""
    place = tmp_path / "control"
    one, other, command = (
        build([], REPLICATED_MODE="observe", REPLICATED_CONTROL=str(place))
        for _ in range(3)
    )
    for site in (one, other):
        add_traffic_views(site)
    client = one.client()
    client.get("/seen")
    pin = client.get_cookie("replicated_pin")
    assert pin is not None
    assert "entry" not in pin.value
    headers = {"Cookie": f"replicated_pin={pin.value}"}
    other.app.test_client(use_cookies=False).get("/", headers=headers)
    for site in (one, other):
        control(site).look_now()
    for damaged in ("{}", "no JSON", '{"host": 1}'):
        control(other).place.keep_report(f"damaged {len(damaged)}", damaged)
    control(one).end()
    result = run(command, "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 0
    assert found["workers"]["running"] + found["workers"]["ended"] == 2
    assert found["endpoints"]["who"]["held_by"] == {"entry": 1}
    assert (found["reads"], found["moved"]) == (3, 1)
    assert run(command, "--json").stdout == result.stdout  # it is no worker itself
    shown = run(command)
    assert "1 read must show what its client" in shown.stdout
    assert "Replicas would have served 33 % of 3 reads." in shown.stdout
    assert "1 entry" in shown.stdout
    assert "REPLICATED_UNPINNED = {'entry': ['text']}" in shown.stdout
    status = site.app.test_cli_runner().invoke(args=["replicated", "status"])
    assert status.exit_code == 0, status.output
    assert status.stdout.startswith("REPLICATED_MODE is 'observe'")


def test_clear(build: Build, tmp_path: Path) -> None:
    """All workers begin anew, also one that ends before it looks again."""
    place = str(tmp_path / "control")
    one, other, late, command = (
        build([], REPLICATED_MODE="observe", REPLICATED_CONTROL=place) for _ in range(4)
    )
    for site in (one, other):
        site.count(3)
        control(site).look_now()
    assert json.loads(run(command, "--json").stdout)["reads"] == 6
    result = run(command, "--clear")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("What was observed is forgotten. Workers obey ")
    assert json.loads(run(command, "--json").stdout).get("reads", 0) == 0
    control(other).end()
    control(one).look_now()
    late.count(1)
    control(late).look_now()
    for _ in range(2):
        found = json.loads(run(command, "--json").stdout)
        assert found["reads"] == 1
        control(one).look_now()  # an order is obeyed once
    one.count(2)
    control(one).look_now()
    assert json.loads(run(command, "--json").stdout)["reads"] == 3


def test_clear_without_a_place(build: Build, tmp_path: Path) -> None:
    """Where no order reaches the workers, or the place fails, the command says so."""
    lonely = run(build([], REPLICATED_MODE="observe"), "--clear")
    assert lonely.exit_code == 1
    assert "no control place that would take an order" in lonely.stderr
    (tmp_path / "control").write_text("no directory")
    place = str(tmp_path / "control")
    site = build([], REPLICATED_MODE="observe", REPLICATED_CONTROL=place)
    broken = run(site, "--clear")
    assert broken.exit_code == 1
    assert "The control place cannot be used" in broken.stderr


def test_the_last_word(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that ends while a thread tells an older report has the last word."""
    place = str(tmp_path / "control")
    site = build([], REPLICATED_MODE="observe", REPLICATED_CONTROL=place)
    site.count(1)
    control(site).look_now()
    kept, begun, go_on = control(site).place.keep_report, Event(), Event()

    def keep_late(name: str, text: str) -> None:
        if not begun.is_set():
            begun.set()
            go_on.wait(20)
        kept(name, text)

    monkeypatch.setattr(control(site).place, "keep_report", keep_late)
    site.count(1)
    thread = Thread(target=control(site).look_now)
    thread.start()
    assert begun.wait(20)
    site.count(1)
    end = Thread(target=control(site).end)
    end.start()
    end.join(0.2)  # it waits for the other one, or has told before it
    go_on.set()
    for one in (thread, end):
        one.join(20)
    assert json.loads(run(site, "--json").stdout)["reads"] == 3


def test_nobody_is_told_that_replicas_serve(build: Build) -> None:
    """The command that explains, and the page, say that the primary serves."""
    extension = FlaskReplicated()
    site = build(["slave_1"], extension=extension, REPLICATED_MODE="observe")
    site.app.register_blueprint(extension.page(lambda: True))
    explained = site.app.test_cli_runner().invoke(
        args=["replicated", "explain", "GET", "/"]
    )
    assert "from the primary: REPLICATED_MODE is 'observe'" in explained.stdout
    page = site.client().get("/replicated/").text
    assert "the primary serves every read; 1 of 1 replicas are well." in page


def test_no_report(build: Build, tmp_path: Path) -> None:
    """Where nothing can be known, the command says what to set."""
    lonely = run(build([], REPLICATED_MODE="observe"))
    assert (lonely.exit_code, lonely.stdout) == (2, "")
    assert "Set REPLICATED_CONTROL to a directory" in lonely.stderr
    routed = run(build())
    assert "set REPLICATED_MODE = 'observe'" in routed.stderr
    early = build(
        [], REPLICATED_MODE="observe", REPLICATED_CONTROL=str(tmp_path / "control")
    )
    assert "anything yet" in json.loads(run(early, "--json").stdout)["note"]


def test_hostile_names(build: Build, tmp_path: Path) -> None:
    """What would control a terminal is escaped."""
    place = str(tmp_path / "control")
    site = build([], REPLICATED_MODE="observe", REPLICATED_CONTROL=place)
    site.app.add_url_rule("/evil", "evil\x1b[2J[red]\n", site.who)
    site.client().get("/evil")
    control(site).look_now()
    shown = run(site).stdout
    assert "\x1b" not in shown
    assert "evil\\x1b[2J[red]\\n" in shown
