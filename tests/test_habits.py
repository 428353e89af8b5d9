"""An endpoint that writes whenever it is to read is named, with what to do about it."""

from __future__ import annotations

import ast
import logging
import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from flask.sessions import SessionInterface

from flask_replicated import changes_database, using_master
from flask_replicated.routing.housekeeping import HousekeepingAdvice, Sent
from flask_replicated.sql.constructs import Classifier
from tests.support import REPLICAS, Build, Site, build_fixture, pin_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from flask_replicated.sql.dml import TableWrite

build = build_fixture

LINE = re.compile(r"REPLICATED_UNPINNED = (\{.*?\})")


@pytest.fixture
def site(build: Build) -> Site:
    """Give an application with three replicas."""
    return build()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was said at the level of a warning."""
    levels = {logging.WARNING, logging.ERROR}
    return [one.getMessage() for one in caplog.records if one.levelno in levels]


def find_writes(sql: str, dialect: str) -> tuple[TableWrite, ...] | None:
    """Return what a statement does to which tables."""
    return Classifier(dialect=dialect).text.writes(sql)


def add(site: Site, view: Callable[[], Any], name: str = "page") -> str:
    """Add a view and return its path."""

    def page() -> str:
        view()
        return "done"

    methods = ["GET", "HEAD", "POST"]
    site.app.add_url_rule(f"/{name}", name, changes(page, view), methods=methods)
    return f"/{name}"


def changes(page: Callable[[], str], view: Callable[[], Any]) -> Callable[[], str]:
    """Decorate a view's page as the view is."""
    return changes_database(page) if hasattr(view, "changes") else page


def ask(site: Site, path: str, times: int = 8, method: str = "GET") -> None:
    """Ask for a page so many times, each as a fresh client."""
    for _ in range(times):
        assert site.client().open(path, method=method).status_code == 200


def update(site: Site, **values: Any) -> None:
    """Update every entry, and commit."""
    site.db.session.execute(sa.update(site.entry).values(**values))
    site.db.session.commit()


def test_the_line_helps(
    build: Build, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """It names endpoint, table and columns; what it says to set ends the habit."""
    ask(site, add(site, lambda: update(site, text="x")))
    (said,) = warnings(caplog)
    assert "'page' has committed a write in 8 of 8 requests" in said
    assert "entry (text)" in said
    assert "using_master(pin=False)" in said
    assert "@changes_database" in said
    (line,) = LINE.findall(said)
    rules = ast.literal_eval(line)
    assert rules == {"entry": ["text"]}
    assert "holds for writes to these tables in every endpoint, POST included" in said
    assert said.index("REPLICATED_UNPINNED") < said.index("using_master(pin=False)")

    caplog.clear()
    other = build(REPLICATED_UNPINNED=rules)
    path = add(other, lambda: update(other, text="x"))
    ask(other, path, 20)
    assert pin_of(other.client().get(path)) is None
    assert warnings(caplog) == []


def test_once(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """Each endpoint is told of once, whoever asks and how often."""
    paths = [add(site, lambda: update(site, text="x"), one) for one in ("one", "two")]
    for path in paths:
        ask(site, path, 40)
        ask(site, path, 40, "HEAD")
    assert [said.split("'")[1] for said in warnings(caplog)] == ["one", "two"]


def test_threads(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """Once, also where several threads find it out together."""
    path = add(site, lambda: update(site, text="x"))
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: ask(site, path, 1), range(60)))
    assert len([said for said in warnings(caplog) if "'page'" in said]) == 1


@pytest.mark.parametrize("seconds", [0, 5])
def test_whatever_pins(
    build: Build, caplog: pytest.LogCaptureFixture, seconds: int
) -> None:
    """It matters without pins, too: the request itself is latched."""
    site = build(REPLICATED_PIN_SECONDS=seconds)
    ask(site, add(site, lambda: update(site, text="x")))
    assert len(warnings(caplog)) == 1


@pytest.mark.parametrize(
    ("pattern", "told"),
    [("1111110", True), ("1101111", True), ("10", False), ("110", False), ("1", True)],
)
def test_nearly_each_time(
    site: Site, caplog: pytest.LogCaptureFixture, pattern: str, told: bool
) -> None:
    """Six of seven is nearly each time; two of three is not."""
    turns = list(pattern * 50)
    path = add(site, lambda: update(site, text="x") if turns.pop() == "1" else None)
    ask(site, path, 42)
    assert bool(warnings(caplog)) is told


def test_from_some_time_on(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """A habit that begins later is noticed, too."""
    turns = ["1"] * 100 + ["0", "1"] * 20
    path = add(site, lambda: update(site, text="x") if turns.pop() == "1" else None)
    ask(site, path, 40)
    assert warnings(caplog) == []
    ask(site, path, 100)
    assert len(warnings(caplog)) == 1


def decorated(site: Site) -> Callable[[], Any]:
    """Return what writes in a view that says so."""

    def view() -> None:
        update(site, text="x")

    view.changes = True  # type: ignore[attr-defined]  # see changes()
    return view


def in_block(site: Site) -> Callable[[], Any]:
    """Return what writes in a block that leaves no trace."""

    def view() -> None:
        with using_master(pin=False):
            update(site, text="x")

    return view


def rolled_back(site: Site) -> Callable[[], Any]:
    """Return what writes and takes it back."""

    def view() -> None:
        site.db.session.execute(sa.delete(site.entry))
        site.db.session.rollback()

    return view


def reading(site: Site) -> Callable[[], Any]:
    """Return what reads from the primary."""

    def view() -> None:
        with using_master():
            site.who()
        site.db.session.commit()

    return view


@pytest.mark.parametrize("make", [decorated, in_block, rolled_back, reading])
def test_nothing_to_tell(
    site: Site,
    caplog: pytest.LogCaptureFixture,
    make: Callable[[Site], Callable[[], Any]],
) -> None:
    """What is meant so, or what leaves no trace, is no such habit."""
    ask(site, add(site, make(site)), 20)
    assert warnings(caplog) == []


def test_other_methods(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """A POST is there to write."""
    ask(site, add(site, lambda: update(site, text="x")), 20, "POST")
    assert warnings(caplog) == []


def test_switched_off(build: Build, caplog: pytest.LogCaptureFixture) -> None:
    """Where no replica serves, none idles."""
    site = build(AUTO_READ_ON_SLAVE=False)
    ask(site, add(site, lambda: update(site, text="x")), 20)
    assert warnings(caplog) == []


def test_all_that_is_written(build: Build, caplog: pytest.LogCaptureFixture) -> None:
    """The line has every table, and what the setting names already."""
    site = build(REPLICATED_UNPINNED={"visit": "*", "entry": ["id"]})
    site.db.Table("visit", site.db.Column("page", sa.String))

    def view() -> None:
        update(site, text="x")
        marker = sa.update(site.marker).where(sa.false())
        site.db.session.execute(marker.values(name=site.marker.name))
        site.db.session.execute(sa.delete(site.marker).where(sa.false()))
        site.db.session.commit()

    ask(site, add(site, view))
    (line,) = LINE.findall(warnings(caplog)[0])
    expected = {"visit": "*", "entry": ["id", "text"], "marker": "*"}
    assert ast.literal_eval(line) == expected
    # For whole tables the narrower way out comes first.
    (said,) = warnings(caplog)
    assert said.index("using_master(pin=False)") < said.index("REPLICATED_UNPINNED")
    # With the setting, whether such a row is there must be asked of the primary.
    assert "where a row of 'marker' is looked for before it is inserted" in said
    assert "__replicated__ = 'master'" in said


@pytest.mark.parametrize("order", ["before", "after", "apart"])
def test_what_may_write(
    site: Site, caplog: pytest.LogCaptureFixture, order: str
) -> None:
    """A function that may write is named, and no line hides it."""

    def charge() -> None:
        with using_master():
            site.db.session.scalar(sa.text("SELECT charge_guest(7)"))

    def view() -> None:
        if order == "before":
            charge()
        site.db.session.execute(sa.update(site.entry).values(text="x"))
        if order == "apart":
            site.db.session.commit()
        if order != "before":
            charge()
        site.db.session.commit()

    with site.app.app_context():

        @sa.event.listens_for(site.db.engine, "connect")
        def prepare(connection: Any, _record: Any) -> None:
            connection.create_function("charge_guest", 1, lambda _: 1)

        site.db.engine.dispose()

    ask(site, add(site, view))
    (said,) = warnings(caplog)
    assert "entry (text)" in said
    assert "SELECT charge_guest(7)" in said
    assert LINE.findall(said) == []


def test_what_cannot_be_told(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """A statement whose table cannot be told has the other way out alone."""
    sql = "UPDATE entry SET text = replace(add_guest(), 'hunter2', '')"

    def view() -> None:
        with site.db.engine.begin() as connection:
            connection.connection.create_function("add_guest", 0, lambda: "x")
            connection.exec_driver_sql(sql)

    ask(site, add(site, view))
    (said,) = warnings(caplog)
    assert "'UPDATE entry SET text = replace(add_guest(),…'" in said
    assert "hunter2" not in said
    assert "'with using_master(pin=False):'" in said
    assert LINE.findall(said) == []


def test_sessions_in_the_database(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever saves its session at the end of each request is noticed."""

    class Saving(SessionInterface):
        def open_session(self, app: Any, request: Any) -> Any:
            return {}

        def save_session(self, app: Any, session: Any, response: Any) -> None:
            site.write("session")

    site.app.session_interface = Saving()
    ask(site, "/")
    (said,) = warnings(caplog)
    assert "'who'" in said
    assert "entry" in said
    assert ast.literal_eval(LINE.findall(said)[0]) == {"entry": "*"}
    assert site.get() in {*REPLICAS, "master"}


def test_memory_is_bounded() -> None:
    """It keeps no more than so many endpoints, tables, columns and statements."""
    habits = HousekeepingAdvice(find_writes, {})
    many = [Sent(f"UPDATE t{n} SET c{n} = 1", "sqlite") for n in range(300)]
    same = [Sent(f"UPDATE t SET c{n} = 1", "sqlite") for n in range(300)]
    odd = [Sent(f"UPDATE t SET c = f{n}()", "sqlite") for n in range(300)]
    for number in range(3000):
        habits.note(f"view {number}", [*many, *same, *odd] if number < 5 else many[:1])
    assert len(habits._samples) == 1000
    sample = habits._samples["view 0"]
    assert len(sample.tables) <= 20
    assert len(sample.unknown) <= 20
    assert all(len(columns or ()) <= 20 for columns in sample.tables.values())


@pytest.mark.parametrize(
    ("dialect", "sql"),
    [
        ("postgresql", 'UPDATE "shop.guest" SET seen = 1'),
        ("postgresql", 'UPDATE guest SET "last.seen" = 1'),
        ("postgresql", 'DELETE FROM "eu.shop".guest'),
        ("mysql", "INSERT INTO `guest*` VALUES (1)"),
        ("sqlite", "UPDATE [guest ] SET seen = 1"),
    ],
)
def test_names_that_the_setting_cannot_have(
    caplog: pytest.LogCaptureFixture, dialect: str, sql: str
) -> None:
    """No line is given that would be refused, or would name another table."""
    habits = HousekeepingAdvice(find_writes, {})
    for _ in range(8):
        habits.note("page", [Sent(sql, dialect)])
    (line,) = warnings(caplog)
    assert "wrap them in 'with using_master(pin=False):'" in line
    assert not LINE.findall(line)


@pytest.mark.parametrize(
    ("dialect", "sql", "rules"),
    [
        ("postgresql", "UPDATE Shop.Guest SET Seen = 1", {"shop.guest": ["seen"]}),
        ("postgresql", 'UPDATE "Guest" SET "Seen" = 1', {"Guest": ["Seen"]}),
        ("mysql", "UPDATE `Guest` SET Seen = 1", {"Guest": ["Seen"]}),
        ("sqlite", "REPLACE INTO Guest VALUES (1)", {"Guest": "*"}),
        (
            "sqlite",
            "INSERT INTO guest (id) VALUES (1) ON CONFLICT DO UPDATE SET seen = 1",
            {"guest": ["id", "seen"]},
        ),
    ],
)
def test_names(
    caplog: pytest.LogCaptureFixture, dialect: str, sql: str, rules: Any
) -> None:
    """Names are shown as the setting has to have them."""
    habits = HousekeepingAdvice(find_writes, {})
    writes: Iterable[Sent] = [Sent(sql, dialect)]
    for _ in range(8):
        habits.note("page", list(writes))
    (line,) = LINE.findall(warnings(caplog)[0])
    assert ast.literal_eval(line) == rules
    assert not habits.active
