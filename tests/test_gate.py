"""What is seen in a statement when it is about to be sent to a replica."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import sqlalchemy as sa
from sqlalchemy import event, func, select, text
from sqlalchemy.orm import Session

from flask_replicated import StaleReadError, using_master, using_slave
from flask_replicated.engine.gate import Gate
from flask_replicated.routing.hints import _PrimaryTables, named_table
from flask_replicated.sql.constructs import Classifier
from flask_replicated.sql.text import Kind
from tests.support import Build, Site, answer, build_fixture

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from flask_replicated.replica.connection_events import ReplicaServer

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
        assert not state.decider.writers


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


class TestAskedForPrimary:
    """``replicated='master'`` over a connection that is a replica's."""

    ASKS: ClassVar = {"execution_options": {"replicated": "master"}}
    READ = text("SELECT count(*) FROM entry")

    @pytest.mark.parametrize("kind", ["statement", "argument", "connection", "driver"])
    @pytest.mark.parametrize("name", ["master", "primary"])
    def test_connection(self, site: Site, kind: str, name: str) -> None:
        """It cannot change servers: nothing is sent, and the error says so."""
        asks: dict[str, Any] = {"execution_options": {"replicated": name}}

        def view() -> str:
            with site.db.engine.connect() as connection:
                execute = {
                    "statement": lambda: connection.execute(
                        self.READ.execution_options(replicated=name)
                    ),
                    "argument": lambda: connection.execute(self.READ, **asks),
                    "connection": lambda: connection.execution_options(
                        replicated=name
                    ).execute(self.READ),
                    "driver": lambda: connection.exec_driver_sql(
                        str(self.READ), **asks
                    ),
                }
                with pytest.raises(StaleReadError, match="cannot change") as caught:
                    execute[kind]()
                return f"{caught.value.table} {caught.value.view}"

        assert answer(site, view).startswith("None ")

    def test_session(self, site: Site) -> None:
        """So is a session of SQLAlchemy's own, which a replica has served before."""

        def view() -> str:
            with Session(site.db.engine) as session:
                session.execute(self.READ)
                with pytest.raises(StaleReadError, match="using_master"):
                    session.execute(self.READ, **self.ASKS)
            return "refused"

        assert answer(site, view) == "refused"

    def test_primary(self, site: Site) -> None:
        """Over a connection to the primary it is what it asks for."""

        def view() -> str:
            with using_master(), site.db.engine.connect() as connection:
                return str(connection.execute(self.READ, **self.ASKS).scalar())

        assert answer(site, view) == "0"


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

    def caught(gate: Gate, engine: Engine, replica: ReplicaServer) -> None:
        gates.append(gate)
        guard(gate, engine, replica)

    monkeypatch.setattr(Gate, "guard", caught)
    monkeypatch.setattr("flask_replicated.engine.gate._MANY", 10)
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
            assert getattr(engine, name) == getattr(engine.real, name)
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


DIALECTS = [
    sa.make_url(f"{name}://").get_dialect()() for name in ("postgresql", "sqlite")
]
METADATA = sa.MetaData()
LOG = sa.Table(
    "log", METADATA, *(sa.Column(n, sa.Integer) for n in ("id", "update", "delete"))
)
MERGE = sa.Table("merge", METADATA, sa.Column("into", sa.Integer))
CTE = select(LOG.c.id).cte("replace")
OWN = {
    "columns": select(LOG),
    "order": select(LOG.c.id)
    .order_by(LOG.c["update"].desc())
    .where(LOG.c["delete"] > 0),
    "label": select(LOG.c.id.label("merge"), LOG.c["delete"].label("insert")),
    "table": select(MERGE),
    "CTE": select(CTE).join(LOG, LOG.c.id == CTE.c.id),
    "union": select(LOG.c["update"]).union(select(MERGE.c.into)),
}
HIDDEN = {
    "CTE": select(sa.delete(LOG).returning(LOG.c.id).cte("gone")),
    "text": select(LOG.c.id).where(text("id IN (SELECT nextval('a'))")),
    "literal": select(sa.literal_column("nextval('a')")),
    "in a subquery": select(LOG.c.id).where(
        LOG.c.id.in_(select(sa.insert(LOG).returning(LOG.c.id).cte("new").c.id))
    ),
    "lock": select(LOG.c.id).where(
        sa.exists(select(MERGE.c.into).with_for_update(read=True))
    ),
    "function": select(LOG.c["update"]).where(func.pg_try_advisory_lock(1)),
    "hint": select(LOG.c.id).with_statement_hint("INTO OUTFILE 'rows'"),
}


class TestNames:
    """A name that looks like a write is none; a write that looks like a name is."""

    @pytest.mark.parametrize("dialect", DIALECTS)
    @pytest.mark.parametrize("name", OWN)
    def test_own(self, name: str, dialect: sa.Dialect) -> None:
        """Columns, labels, tables and CTEs may be called as they like."""
        statement = OWN[name]
        sql = str(statement.compile(dialect=dialect))
        assert Classifier().sent(sql, statement) is Kind.READ

    @pytest.mark.parametrize("name", HIDDEN)
    def test_hidden(self, name: str) -> None:
        """What does write or lock is seen beside them."""
        statement = HIDDEN[name]
        sql = str(statement.compile(dialect=DIALECTS[0]))
        assert Classifier().sent(sql, statement) >= Kind.LOCK

    @pytest.mark.parametrize(
        ("sql", "kind"),
        [
            ("SELECT l.update, l.replace FROM log AS l", Kind.READ),
            ("SELECT make_interval(days := 3)", Kind.READ),
            ("SELECT @a := 1", Kind.WRITE),
            ("SELECT @`a b` := 1", Kind.WRITE),
            ("WITH x AS (DELETE FROM log RETURNING id) SELECT * FROM x", Kind.WRITE),
            ("WITH x AS (SELECT 1) UPDATE ONLY log SET id = 1", Kind.WRITE),
            ("WITH x AS (SELECT 1)\nINSERT INTO log SELECT 1", Kind.WRITE),
            ("WITH x AS (SELECT 1) MERGE INTO log USING x ON true", Kind.WRITE),
            ("SELECT id INTO copy FROM log", Kind.WRITE),
            ("SELECT id FROM log INTO OUTFILE '/tmp/a'", Kind.WRITE),
        ],
    )
    def test_text(self, sql: str, kind: Kind) -> None:
        """In text, a name is known by what stands beside it."""
        assert Classifier().sent(sql, None) is kind


class TestTableNames:
    """A table is known by its name in SQL, and little else by the same name."""

    PLAIN = ("status", None)
    ELSEWHERE = ("status", "audit")

    @pytest.mark.parametrize(
        ("sql", "named"),
        [
            ("SELECT status.id FROM status", True),
            ('SELECT 1 FROM "status"', True),
            ("SELECT 1 FROM note JOIN status ON true", True),
            ("SELECT 1 FROM note, status", True),
            ("SELECT 1 FROM public.status", True),
            ('SELECT 1 FROM "shop"."public"."status"', True),
            ("SELECT 1 FROM note WHERE id IN (SELECT note_id FROM status)", True),
            ("SELECT 'it\\'s' FROM status", True),
            ("SELECT 1 /*! FROM status */", True),
            ("SELECT 1 FROM audit.status", True),
            ("SELECT 1 FROM note, audit.status", True),
            ("SELECT note.id, note.status AS note_status FROM note", False),
            ("SELECT note.id AS status FROM note", False),
            ("SELECT 'status' FROM note", False),
            ("SELECT 1 FROM note -- status\n", False),
            ("SELECT 1 FROM note /* status */", False),
            ("SELECT 1 FROM note WHERE id = %(status)s AND id > :status", False),
            ("SELECT 1 FROM statuses", False),
        ],
    )
    def test_named(self, sql: str, named: bool) -> None:
        """It is found wherever it is read, with its schema or without."""
        metadata, tables = sa.MetaData(), _PrimaryTables()
        made = [
            sa.Table(n, metadata, schema=s) for n, s in (self.PLAIN, self.ELSEWHERE)
        ]
        tables.add(made)
        found = named_table(tables.pattern([metadata]), sql)
        assert found == ("status" if named else None)
