"""Statements that name what a replica does not have yet: the primary answers them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError

from flask_replicated import using_slave
from flask_replicated.engine.lacking import LackingLog
from flask_replicated.replica.failures import is_missing_object
from tests.balancers.support import FakeClock
from tests.support import Build, Site, answer, build_fixture, pin_of

build = build_fixture

SHIPPED = text("SELECT count(*) FROM shipment")
NOWHERE = text("SELECT count(*) FROM nowhere")


@pytest.fixture
def site(build: Build) -> Site:
    """Give an application whose primary has a table more than its replica."""
    site = build(["slave_1"])
    with closing(sqlite3.connect(site.folder / "master.db")) as primary:
        primary.executescript(
            "CREATE TABLE shipment (id INTEGER); INSERT INTO shipment VALUES (1);"
            "ALTER TABLE entry ADD COLUMN stars INTEGER;"
        )
    return site


@pytest.fixture
def asked(site: Site) -> list[str]:
    """Give the statements that the primary was asked so far."""
    seen: list[str] = []
    with site.app.app_context():
        primary: Any = site.db.engine
        event.listen(
            getattr(primary, "real", primary),
            "before_cursor_execute",
            lambda *arguments: seen.append(arguments[2]),
        )
    return seen


def state_of(site: Site) -> Any:
    """Return what the extension keeps for an application."""
    return site.app.extensions["replicated"].state(site.app)


class TestFirst:
    """The first statement of a transaction."""

    @pytest.mark.parametrize(
        "statement",
        [
            SHIPPED,
            text("SELECT count(*) + 1 - count(stars) FROM entry"),
            sa.select(sa.func.count()).select_from(sa.table("shipment")),
        ],
        ids=["table", "column", "construct"],
    )
    def test_answered(self, site: Site, statement: Any) -> None:
        """The primary answers it, and the view notices nothing."""
        assert answer(site, lambda: str(site.db.session.scalar(statement))) == "1"

    def test_latched(self, site: Site) -> None:
        """So it does the rest of the request, which must see nothing older."""

        def view() -> str:
            site.db.session.scalar(SHIPPED)
            site.db.session.commit()
            return site.who()

        assert answer(site, view) == "master"

    def test_nothing_is_learnt(self, site: Site) -> None:
        """The client is not pinned, and the next request is a replica's."""
        site.app.add_url_rule(
            "/count", "count", lambda: str(site.db.session.scalar(SHIPPED))
        )
        client = site.client()
        assert pin_of(client.get("/count")) is None
        assert client.get("/").text == "slave_1"
        assert not state_of(site).decider.writers

    def test_each_request(self, site: Site, asked: list[str]) -> None:
        """Once for each request, as the latch knows nothing of the next."""
        site.app.add_url_rule(
            "/count", "count", lambda: str(site.db.session.scalar(SHIPPED))
        )
        assert [site.get("/count") for _ in range(3)] == ["1", "1", "1"]
        assert len(asked) == 3

    def test_of_a_later_transaction(self, site: Site) -> None:
        """After a rollback the transaction is another."""

        def view() -> str:
            seen = site.who()
            site.db.session.rollback()
            return f"{seen} {site.db.session.scalar(SHIPPED)}"

        assert answer(site, view) == "slave_1 1"

    def test_written_meanwhile(self, site: Site) -> None:
        """A write that follows latches as ever."""

        def view() -> str:
            site.db.session.scalar(SHIPPED)
            site.write()
            return site.who()

        assert answer(site, view) == "master"
        assert site.entries() == ["written"]


class TestNowhere:
    """What no server has."""

    def test_raised(self, site: Site, asked: list[str]) -> None:
        """The error is the primary's, as if nothing else had been asked."""

        def view() -> str:
            with pytest.raises(OperationalError, match="no such table: nowhere") as one:
                site.db.session.scalar(NOWHERE)
            assert one.value.__context__ is one.value.__cause__
            assert one.value.__cause__ is one.value.orig
            assert one.value.orig is not None
            assert one.value.orig.__context__ is None
            return "raised"

        assert answer(site, view) == "raised"
        assert asked == [NOWHERE.text]

    def test_not_latched(self, site: Site, asked: list[str]) -> None:
        """A view that goes on after it reads from its replica as before."""

        def view() -> str:
            with pytest.raises(OperationalError):
                site.db.session.execute(NOWHERE)
            site.db.session.rollback()
            return site.who()

        assert answer(site, view) == "slave_1"
        assert len(asked) == 1

    def test_latched_by_a_write(self, site: Site) -> None:
        """A write in the attempt itself stays what it was: the request has written."""

        def write(state: Any) -> None:
            if state.statement is NOWHERE and state_of(site).role().value == "primary":
                site.db.session.execute(text("INSERT INTO entry VALUES (1, 'x', 1)"))

        def view() -> str:
            event.listen(site.db.session, "do_orm_execute", write)
            with pytest.raises(OperationalError):
                site.db.session.scalar(NOWHERE)
            return site.who()

        assert answer(site, view) == "master"


class TestStands:
    """Where a replica's word is final."""

    @pytest.mark.parametrize("first", [SHIPPED, NOWHERE], ids=["shipment", "nowhere"])
    def test_not_first(self, site: Site, asked: list[str], first: Any) -> None:
        """A transaction that has read is one snapshot of SQLite's."""

        def view() -> str:
            seen = site.who()
            with pytest.raises(OperationalError, match="no such table"):
                site.db.session.scalar(first)
            return seen

        assert answer(site, view) == "slave_1"
        assert not asked

    def test_using_slave(self, site: Site, asked: list[str]) -> None:
        """Whoever asks for a replica gets its answer."""

        def view() -> str:
            with using_slave(), pytest.raises(OperationalError, match="no such table"):
                site.db.session.scalar(SHIPPED)
            return "raised"

        assert answer(site, view) == "raised"
        assert not asked

    def test_option(self, site: Site, asked: list[str]) -> None:
        """So does a statement that asks for one."""
        statement = SHIPPED.execution_options(replicated="slave")

        def view() -> str:
            with pytest.raises(OperationalError, match="no such table"):
                site.db.session.execute(statement)
            return "raised"

        assert answer(site, view) == "raised"
        assert not asked

    def test_core(self, site: Site, asked: list[str]) -> None:
        """A connection of Core's belongs to whoever has opened it."""

        def view() -> str:
            with (
                site.db.engine.connect() as connection,
                pytest.raises(OperationalError, match="no such table"),
            ):
                connection.execute(SHIPPED)
            return "raised"

        assert answer(site, view) == "raised"
        assert not asked


class TestForLong:
    """What is missing for longer than a migration takes."""

    @pytest.fixture
    def clock(self, site: Site) -> FakeClock:
        """Give the clock by which it is told that something is still missing."""
        clock = FakeClock()
        with site.app.app_context():
            routed: Any = site.db.engine
        routed.replicas.lacking = LackingLog(routed.outages.setting, clock)
        return clock

    def read(self, site: Site, statement: sa.TextClause) -> None:
        """Read by a GET of its own."""
        with site.app.test_request_context():
            site.db.session.scalar(statement)

    def told(self, caplog: pytest.LogCaptureFixture) -> list[str]:
        """Return what was logged of it."""
        return [one for one in caplog.messages if "lacked" in one]

    def test_told_once(
        self, site: Site, clock: FakeClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A WARNING names the replica, what it lacks, and where it is set."""
        self.read(site, SHIPPED)
        clock.advance(59)
        self.read(site, SHIPPED)
        assert not self.told(caplog)
        clock.advance(2)
        for _ in range(3):
            self.read(site, SHIPPED)
        (line,) = self.told(caplog)
        assert "'slave_1' has lacked for 61 s" in line
        assert "no such table: shipment" in line
        assert "SQLALCHEMY_BINDS['slave_1']" in line

    def test_each_thing(
        self, site: Site, clock: FakeClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What is missing only now may be a migration's."""
        self.read(site, SHIPPED)
        clock.advance(61)
        self.read(site, text("SELECT count(stars) FROM entry"))
        assert not self.told(caplog)

    def test_each_night(
        self, site: Site, clock: FakeClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What is missing for a moment each night was there in between."""
        for _ in range(3):
            self.read(site, SHIPPED)
            clock.advance(1)
            self.read(site, SHIPPED)
            clock.advance(24 * 3600)
        assert not self.told(caplog)

    def test_nowhere(
        self, site: Site, clock: FakeClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A name that the primary does not know either says nothing of replicas."""
        for _ in range(2):
            with pytest.raises(OperationalError):
                self.read(site, NOWHERE)
            clock.advance(61)
        assert not self.told(caplog)

    def test_bounded(self, clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
        """A program that writes SQL as it runs is not remembered for ever."""
        log = LackingLog(str, clock)
        for number in range(150):
            log.note("slave_1", ValueError(f"no such table: t{number}"))
        clock.advance(61)
        log.note("slave_1", ValueError("no such table: t0"))
        assert not self.told(caplog)
        log.note("slave_1", ValueError("no such table: t149"))
        assert len(self.told(caplog)) == 1


def _error(*arguments: object, **attributes: object) -> OperationalError:
    driver = Exception(*arguments)
    vars(driver).update(attributes)
    return OperationalError("SELECT 1", None, driver)


@pytest.mark.parametrize(
    "raised",
    [
        _error("la relation n'existe pas", sqlstate="42P01"),
        _error("column does not exist", pgcode="42703"),
        _error({"S": "ERROR", "C": "42883", "M": "function f() does not exist"}),
        _error("type does not exist", sqlstate="42704"),
        _error("schema does not exist", sqlstate="3F000"),
        _error('ungültiger Eingabewert für Enum mood: "new"', sqlstate="22P02"),
        _error(1146, "Table 'shop.shipment' doesn't exist"),
        _error(1054, "Unknown column 'stars' in 'field list'"),
        _error(1305, "FUNCTION shop.f does not exist"),
        _error(1109, "Unknown table 'x' in information_schema"),
        _error(1176, "Key 'by_stars' doesn't exist in table 'entry'"),
        _error("no such table: main.shipment"),
        _error("no such column: stars"),
        _error("no such function: f"),
    ],
)
def test_names(raised: OperationalError) -> None:
    """Each database has its own way to say that something is not there."""
    assert is_missing_object(raised)


@pytest.mark.parametrize(
    "raised",
    [
        _error('invalid input syntax for type integer: "x"', sqlstate="22P02"),
        _error("permission denied for table item", sqlstate="42501"),
        _error("syntax error", sqlstate="42601"),
        _error(1064, "You have an error in your SQL syntax"),
        _error(1142, "SELECT command denied"),
        _error("no such savepoint: a"),
        _error("misuse of aggregate: count()"),
        _error(),
    ],
)
def test_other_errors(raised: OperationalError) -> None:
    """What is wrong with a statement everywhere costs the primary nothing."""
    assert not is_missing_object(raised)
