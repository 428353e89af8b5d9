"""What is seen in a statement when it is about to be sent to a replica."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event, func, select, text

from flask_replicated import StaleReadError, using_slave
from flask_replicated.gate import Gate
from tests.support import Build, Site, answer, build_fixture

if TYPE_CHECKING:
    from sqlalchemy import Engine

build = build_fixture


@pytest.fixture
def site(build: Build) -> Site:
    """Give an application with three replicas."""
    return build()


def engines(site: Site) -> list[Engine]:
    """Return the replicas' engines."""
    with site.app.app_context():
        return [site.db.engines[name] for name in ("slave_1", "slave_2", "slave_3")]


class TestDeepWrites:
    """A write or lock that routing does not look for is not sent to a replica."""

    def test_after_a_read(self, site: Site) -> None:
        """It goes to the primary at any point, for nothing on the replica failed."""

        def view() -> str:
            first = site.role()
            locked = select(func.count()).where(func.get_lock("a", 0) == 1)
            with pytest.raises(sa.exc.OperationalError, match="get_lock"):
                site.db.session.execute(locked)  # SQLite has no such function
            site.db.session.rollback()
            return f"{first} {site.role()}"

        assert answer(site, view) == "replica primary"

    def test_not_counted_as_a_refusal(self, site: Site) -> None:
        """Nobody refused it, so the endpoint is not learnt."""

        def view() -> str:
            inner = text("SELECT 1 WHERE nextval('a') = 1")
            with pytest.raises(sa.exc.OperationalError, match="nextval"):
                site.db.session.execute(select(text("1")).where(sa.exists(inner)))
            return site.role()

        assert answer(site, view) == "primary"
        state = site.app.extensions["replicated"].state(site.app)
        assert not state.writers


class TestStaleReads:
    """A table that must never be read stale is read from the primary."""

    @pytest.fixture
    def site(self, build: Build) -> Site:
        """Give an application whose entries must never be read stale."""
        site = build()
        account = type(
            "Account",
            (site.db.Model,),
            {
                "__tablename__": "entry",
                "__table_args__": {"extend_existing": True},
                "__replicated__": "master",
                "id": site.db.Column(site.db.Integer, primary_key=True),
            },
        )
        with site.app.app_context():
            site.db.session.add(account())
            site.db.session.rollback()
        return site

    def test_only_that_statement(self, site: Site) -> None:
        """The rest of the request goes on with its replica."""

        def view() -> str:
            before = site.who()
            count = site.db.session.scalar(text("SELECT count(*) FROM entry"))
            return f"{count} {site.who() == before}"

        site.entries()
        assert answer(site, view) == "0 True"

    def test_connection(self, site: Site) -> None:
        """A connection to a replica says so, and names the table and the view."""

        def view() -> str:
            with site.db.engine.connect() as connection:
                with pytest.raises(StaleReadError, match="using_master") as caught:
                    connection.execute(text('SELECT * FROM "entry"'))
                return f"{caught.value.table} {caught.value.view}"

        found = answer(site, view)
        assert found.startswith("entry ")

    def test_using_slave(self, site: Site) -> None:
        """Code that asks for a replica gets one."""

        def view() -> str:
            with using_slave(), site.db.engine.connect() as connection:
                return str(connection.scalar(text("SELECT count(*) FROM entry")))

        assert answer(site, view) == "0"

    def test_statement_asks(self, site: Site) -> None:
        """A statement that asks for a replica gets one."""

        def view() -> str:
            chosen = text("SELECT count(*) FROM entry")
            asked = chosen.execution_options(replicated="slave")
            with using_slave():
                name = site.who()
            site.db.session.execute(asked)
            return name

        assert answer(site, view) != "master"


class TestListeners:
    """What an application does to its engines goes on working."""

    def test_begin(self, site: Site) -> None:
        """A listener that begins by hand is no statement of the application's."""
        for engine in engines(site):
            event.listen(engine, "begin", lambda c: c.exec_driver_sql("BEGIN"))

        def view() -> str:
            with site.db.engine.connect() as connection:
                connection.execute(text("SELECT 1"))
                return str(connection.sent)  # type: ignore[attr-defined]  # a replica's

        assert answer(site, view) == "1"

    def test_own_errors(self, site: Site) -> None:
        """An error that is no refusal is raised as it is."""

        def view() -> str:
            with pytest.raises(sa.exc.OperationalError, match="no such table"):
                site.db.session.execute(text("SELECT * FROM nowhere"))
            return site.role()

        assert answer(site, view) == "replica"


def test_texts_are_bounded(
    build: Build, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A program that writes SQL as it runs fills no memory."""
    gates: list[Gate] = []
    guard = Gate.guard

    def caught(gate: Gate, engine: Engine) -> None:
        gates.append(gate)
        guard(gate, engine)

    monkeypatch.setattr(Gate, "guard", caught)
    monkeypatch.setattr("flask_replicated.gate._MANY", 10)
    site = build()

    def view() -> str:
        for number in range(50):
            site.db.session.execute(text(f"SELECT {number}"))
        return "read"

    with caplog.at_level(logging.WARNING):
        assert answer(site, view) == "read"
    assert 0 < len(gates[0]._known_reads) <= 10


class TestEngine:
    """``db.engine`` keeps nothing of its own."""

    @pytest.mark.parametrize(
        "name", ["logger", "logging_name", "echo", "url", "dialect", "pool"]
    )
    def test_attributes(self, site: Site, name: str) -> None:
        """What an engine has is the primary's."""
        with site.app.app_context():
            engine: Any = site.db.engine
            assert getattr(engine, name) is getattr(engine.real, name)
            assert engine.get_execution_options() is engine.real.get_execution_options()

    def test_options(self, site: Site) -> None:
        """Options that are set on it hold for the primary and every replica."""
        with site.app.app_context():
            site.db.engine.update_execution_options(isolation_level="SERIALIZABLE")
            with site.db.engine.connect() as connection:
                assert connection.get_isolation_level() == "SERIALIZABLE"
        for engine in engines(site):
            assert engine.get_execution_options()["isolation_level"] == "SERIALIZABLE"

    def test_echo(self, site: Site) -> None:
        """To set ``echo`` shows the statements of all of them."""
        with site.app.app_context():
            site.db.engine.echo = "debug"
            assert {engine.echo for engine in engines(site)} == {"debug"}
            site.db.engine.echo = False


def test_tables_of_another_application(build: Build) -> None:
    """What one application must never read stale, another may."""
    strict, easy = build(), build()
    with strict.app.app_context():
        columns = {"id": strict.db.Column(strict.db.Integer, primary_key=True)}
        model = {"__tablename__": "entry", "__replicated__": "master", **columns}
        table = {"__table_args__": {"extend_existing": True}}
        type("Account", (strict.db.Model,), {**model, **table})

    def view() -> str:
        with easy.db.engine.connect() as connection:  # which could not change servers
            return str(connection.scalar(text("SELECT count(*) FROM entry")))

    assert answer(easy, view) == "0"
