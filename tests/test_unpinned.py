"""Writes that leave no trace: REPLICATED_UNPINNED and using_master(pin=False)."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert as upsert

from flask_replicated import (
    ConfigurationError,
    WriteOnReplicaError,
    using_master,
    using_slave,
)
from flask_replicated.routing.state import current_request_state
from tests.support import REPLICAS, Build, Site, build_fixture, pin_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from werkzeug.test import TestResponse

build = build_fixture

HOUSEKEEPING = {
    "visit": "*",
    "account": ["seen", "Pages"],
    "account_tag": ["note"],
    "main.log": "*",
}


class Shop(NamedTuple):
    """An application with tables of which some are housekeeping.

    Attributes:
        site: The application.
        visit: A model that is housekeeping as a whole.
        account: A model of which two columns are.
        admin: A model whose rows are in the account's table, too.
        post: A model with a version, and a column that each update sets.
        tag: A model whose table is none.
    """

    site: Site
    visit: Any
    account: Any
    admin: Any
    post: Any
    tag: Any

    @property
    def session(self) -> Any:
        """The session."""
        return self.site.db.session

    def do(self, act: Callable[[Shop], Any], method: str = "GET") -> TestResponse:
        """Let a request act, and say in its answer who serves it afterwards."""

        def view() -> str:
            act(self)
            return self.site.role()

        if "do" in self.site.app.view_functions:
            self.site.app.view_functions["do"] = view
        else:
            self.site.app.add_url_rule("/do", "do", view, methods=["GET", "POST"])
        response = self.site.client().open("/do", method=method)
        assert response.status_code == 200, response.text
        return response

    def leaves_trace(self, act: Callable[[Shop], Any]) -> bool:
        """Whether a GET that acts is latched; it is pinned then, and only then."""
        response = self.do(act)
        latched = response.text == "primary"
        assert latched == (pin_of(response) is not None)
        return latched


def _make_tables(site: Site) -> None:
    for name in ("master", *REPLICAS):
        engine = sa.create_engine(f"sqlite:///{site.folder / name}.db")
        site.db.metadata.create_all(engine)
        with engine.begin() as connection:
            for sql in ROWS:
                connection.execute(sa.text(sql))
        engine.dispose()


def make_shop(build: Build, **config: Any) -> Shop:
    """Make the application; its tables are in every file."""
    site = build(**config)
    db = site.db

    class Visit(db.Model):  # type: ignore[name-defined,misc]  # made at run time
        id = db.Column(db.Integer, primary_key=True)
        page = db.Column(db.String)

    class Account(db.Model):  # type: ignore[name-defined,misc]  # the same
        id = db.Column(db.Integer, primary_key=True)
        name = db.Column(db.String)
        seen = db.Column(db.Integer, default=0)
        pages = db.Column("Pages", db.Integer, default=0)
        kind = db.Column(db.String, default="account")
        __mapper_args__ = {  # noqa: RUF012 - SQLAlchemy's own form
            "polymorphic_on": kind,
            "polymorphic_identity": "account",
        }

    class Admin(Account):
        id = db.Column(db.ForeignKey("account.id"), primary_key=True)
        level = db.Column(db.Integer, default=1)
        __mapper_args__ = {"polymorphic_identity": "admin"}  # noqa: RUF012 - the same

    class Post(db.Model):  # type: ignore[name-defined,misc]  # the same
        id = db.Column(db.Integer, primary_key=True)
        views = db.Column(db.Integer, default=0)
        updated = db.Column(db.Integer, default=0, onupdate=7)
        version = db.Column(db.Integer, nullable=False)
        __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - the same

    account_tag = db.Table(
        "account_tag",
        db.Column("account_id", db.ForeignKey("account.id"), primary_key=True),
        db.Column("tag_id", db.ForeignKey("tag.id"), primary_key=True),
        db.Column("note", db.String),
    )

    class Tag(db.Model):  # type: ignore[name-defined,misc]  # the same
        id = db.Column(db.Integer, primary_key=True)
        accounts = db.relationship(Account, secondary=account_tag, backref="tags")

    db.Table("log", db.Column("line", db.String))
    _make_tables(site)
    return Shop(site, Visit, Account, Admin, Post, Tag)


ROWS = (
    "INSERT INTO visit VALUES (1, 'home'), (2, 'shop')",
    "INSERT INTO account VALUES (1, 'ann', 0, 0, 'account'), (2, 'bob', 0, 0, 'admin')",
    "INSERT INTO admin VALUES (2, 1)",
    "INSERT INTO post VALUES (1, 0, 0, 1)",
    "INSERT INTO tag VALUES (1)",
    "INSERT INTO account_tag VALUES (2, 1, '')",
)


@pytest.fixture
def shop(build: Build) -> Shop:
    """Give the application with its housekeeping named."""
    return make_shop(build, REPLICATED_UNPINNED=HOUSEKEEPING)


def account(shop: Shop, **values: Any) -> Any:
    """Change an account that was read, and return it."""
    return change(shop, shop.session.get(shop.account, 1), values)


def admin(shop: Shop, **values: Any) -> Any:
    """Do the same with one whose row is in two tables."""
    return change(shop, shop.session.get(shop.admin, 2), values)


def change(shop: Shop, found: Any, values: dict[str, Any]) -> Any:
    """Change an object, and return it."""
    for name, value in values.items():
        setattr(found, name, value)
    shop.session.flush()
    return found


def relate(shop: Shop) -> None:
    """Add a row to the table between two others."""
    found = account(shop)
    found.tags.append(shop.session.get(shop.tag, 1))
    shop.session.flush()


def text(sql: str) -> Callable[[Shop], None]:
    """Return what executes a text."""

    def act(shop: Shop) -> None:
        shop.session.execute(sa.text(sql))

    return act


def saved(shop: Shop) -> None:
    """Write in a savepoint, and roll back another."""
    with shop.session.begin_nested():
        account(shop, seen=1)
    with contextlib.suppress(KeyError), shop.session.begin_nested():
        account(shop, seen=2)
        raise KeyError


def by_engine(shop: Shop) -> None:
    """Write over a connection of the engine's."""
    with shop.site.db.engine.begin() as connection:
        connection.execute(sa.update(shop.account.__table__).values(seen=1))


def in_autocommit(shop: Shop) -> None:
    """Write where each statement commits itself."""
    engine = shop.site.db.engine.execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.update(shop.account.__table__).values(seen=1))
        connection.execute(sa.insert(shop.visit.__table__).values(page="x"))


def in_other_session(shop: Shop) -> None:
    """Write in another session of the request."""
    with shop.site.app.app_context():
        account(shop, seen=1)
        shop.session.commit()


def many(shop: Shop) -> None:
    """Write more rows than one statement takes."""
    rows = [{"page": str(number)} for number in range(3000)]
    shop.session.execute(sa.insert(shop.visit).returning(shop.visit.id), rows).all()


def fetched(shop: Shop) -> None:
    """Update rows that have to be found out first."""
    found = shop.session.get(shop.account, 1)
    update = sa.update(shop.account).where(sa.func.lower(shop.account.name) == "ann")
    options = {"synchronize_session": "fetch"}
    shop.session.execute(update.values(seen=9), execution_options=options)
    assert found.seen == 9


# Without the defaults of the model's table.
PLAIN = sa.table("account", *map(sa.column, ("id", "seen", "Pages", "name")))
BOTH: list[dict[str, Any]] = [{"seen": 1}, {"name": "x"}]
NO_TRACE: dict[str, Callable[[Shop], Any]] = {
    "flush of a new object": lambda s: (
        s.session.add(s.visit(page="x")),
        s.session.flush(),
    ),
    "flush of a change": lambda s: account(s, seen=5),
    "flush of a column by another name": lambda s: account(s, pages=5),
    "flush of an expression": lambda s: account(s, seen=s.account.seen + 1),
    "flush of a deletion": lambda s: (
        s.session.delete(s.session.get(s.visit, 1)),
        s.session.flush(),
    ),
    "flush of the base of two tables": lambda s: admin(s, seen=5),
    "savepoints": saved,
    "bulk_save_objects": lambda s: s.session.bulk_save_objects([s.visit(page="x")]),
    "bulk_insert_mappings": lambda s: s.session.bulk_insert_mappings(
        s.visit, [{"page": "x"}]
    ),
    "bulk_update_mappings": lambda s: s.session.bulk_update_mappings(
        s.account, [{"id": 1, "seen": 1}]
    ),
    "insert(Model), rows": lambda s: s.session.execute(
        sa.insert(s.visit), [{"page": "x"}, {"page": "y"}]
    ),
    "insert(Model), many rows": many,
    "update(Model), rows": lambda s: s.session.execute(
        sa.update(s.account), [{"id": 1, "seen": 3}, {"id": 2, "seen": 4}]
    ),
    "update(Model)": lambda s: s.session.execute(sa.update(s.account).values(seen=1)),
    "update(Model), fetched": fetched,
    "delete(Model)": lambda s: s.session.execute(sa.delete(s.visit)),
    "Query.update()": lambda s: s.session.query(s.account).update({"seen": 3}),
    "Query.delete()": lambda s: s.session.query(s.visit).delete(),
    "returning()": lambda s: s.session.scalars(
        sa.insert(s.visit).values(page="x").returning(s.visit.id)
    ).all(),
    "insert(table)": lambda s: s.session.execute(
        sa.insert(s.visit.__table__).values(page="x")
    ),
    "update(table) of several": lambda s: s.session.execute(
        sa.update(s.account.__table__).values({"seen": 1, "Pages": 2})
    ),
    "update(table) of a join's": lambda s: s.session.execute(
        sa.update(s.site.db.metadata.tables["account_tag"]).values(note="x")
    ),
    "upsert": lambda s: s.session.execute(
        upsert(s.visit)
        .values(id=1, page="x")
        .on_conflict_do_update(index_elements=["id"], set_={"page": "y"})
    ),
    "upsert of listed columns": lambda s: s.session.execute(
        upsert(PLAIN)
        .values(seen=1)
        .on_conflict_do_update(index_elements=["id"], set_={"Pages": 2})
    ),
    "upsert that does nothing": lambda s: s.session.execute(
        upsert(PLAIN).values(seen=1).on_conflict_do_nothing()
    ),
    "insert().from_select()": lambda s: s.session.execute(
        sa.insert(s.visit).from_select(["page"], sa.select(s.account.name))
    ),
    "update() .. from": lambda s: s.session.execute(
        sa.update(s.account.__table__)
        .values(seen=s.post.views)
        .where(s.post.id == s.account.__table__.c.id)
    ),
    "text, insert": text("INSERT INTO visit (page) VALUES ('x')"),
    "text, update": text("UPDATE Account SET \"SEEN\" = seen + 1 WHERE name = 'ann'"),
    "text, delete": text("DELETE FROM main.visit WHERE id = 1"),
    "text, replace": text("INSERT OR REPLACE INTO visit VALUES (1, 'y')"),
    "text, upsert": text(
        "INSERT INTO account (seen) VALUES (1) ON CONFLICT (id) DO UPDATE SET seen = 2"
    ),
    "text, the default schema's": text("INSERT INTO log VALUES (date('now'))"),
    "engine": by_engine,
    "autocommit": in_autocommit,
    "another session": in_other_session,
    "nothing": lambda _: None,
}

TRACE: dict[str, Callable[[Shop], Any]] = {
    "flush of another table": lambda s: (
        s.session.add(s.tag()),
        s.session.flush(),
    ),
    "flush of another column": lambda s: account(s, name="x"),
    "flush of a column too many": lambda s: account(s, seen=1, name="x"),
    "flush of a new row": lambda s: (s.session.add(s.account()), s.session.flush()),
    "flush of a deletion": lambda s: (
        s.session.delete(s.session.get(s.account, 1)),
        s.session.flush(),
    ),
    "flush of the other of two tables": lambda s: admin(s, level=5),
    "flush of both of two tables": lambda s: admin(s, level=5, seen=3),
    "flush of a relationship": relate,
    "bulk_insert_mappings": lambda s: s.session.bulk_insert_mappings(
        s.account, [{"name": "x"}]
    ),
    "bulk_update_mappings": lambda s: s.session.bulk_update_mappings(
        s.account, [{"id": 1, "seen": 1, "name": "x"}]
    ),
    "insert(Model), rows": lambda s: s.session.execute(
        sa.insert(s.account), [{"seen": 1}, {"seen": 2}]
    ),
    "update(Model)": lambda s: s.session.execute(sa.update(s.account).values(name="")),
    "delete(Model)": lambda s: s.session.execute(
        sa.delete(s.tag.__table__).where(sa.false())
    ),
    "upsert": lambda s: s.session.execute(
        upsert(s.account.__table__)
        .values(id=1)
        .on_conflict_do_update(index_elements=["id"], set_={"seen": 1})
    ),
    "upsert that sets another column": lambda s: s.session.execute(
        upsert(PLAIN)
        .values(seen=1)
        .on_conflict_do_update(index_elements=["id"], set_={"name": "x"})
    ),
    "upsert that inserts another column": lambda s: s.session.execute(
        upsert(PLAIN).values(seen=1, name="x").on_conflict_do_nothing()
    ),
    "text, upsert without columns": text(
        "INSERT INTO account VALUES (1, 'x', 2, 3, 'account') "
        "ON CONFLICT (id) DO UPDATE SET seen = 2"
    ),
    "text, update": text("UPDATE account SET seen = 1, name = 'x'"),
    "text, insert": text("INSERT INTO account (seen) VALUES (1)"),
    "text, a table of another schema": text("DELETE FROM temp.visit"),
    "text, a function that nobody knows": text("UPDATE account SET seen = touch()"),
    "text, ddl": text("CREATE TABLE more (id INTEGER)"),
    "housekeeping as well": lambda s: [account(s, **one) for one in BOTH],
    "housekeeping as well, later": lambda s: [account(s, **one) for one in BOTH[::-1]],
    "the driver's connection": lambda s: s.session.connection().connection,
}


def committing(act: Callable[[Shop], Any]) -> Callable[[Shop], None]:
    """Return what acts and commits, whatever SQLite says of it."""

    def acts(shop: Shop) -> None:
        with contextlib.suppress(sa.exc.OperationalError):
            act(shop)
        shop.session.commit()

    return acts


class TestSetting:
    """What REPLICATED_UNPINNED takes."""

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ({}, {}),
            ({"visit": "*"}, {"visit": None}),
            ({"shop.visit": ["a"]}, {"shop.visit": {"a"}}),
            ({"my visits": ("a b", "a b")}, {"my visits": {"a b"}}),
            ({"visit": {"a", "b"}}, {"visit": {"a", "b"}}),
        ],
    )
    def test_given(self, build: Build, value: Any, expected: Any) -> None:
        """It names tables, each with a star or with columns."""
        site = build(REPLICATED_UNPINNED=value)
        state = site.app.extensions["replicated"].state(site.app)
        assert state.settings.unpinned == expected

    @pytest.mark.parametrize(
        ("value", "key", "remedy"),
        [
            (None, "REPLICATED_UNPINNED", "a mapping of tables, such as {'sessions'"),
            ("visit", "REPLICATED_UNPINNED", "a mapping of tables"),
            (["visit"], "REPLICATED_UNPINNED", "a mapping of tables"),
            ({"": "*"}, "REPLICATED_UNPINNED['']", "its key must be the name of a"),
            ({" ": "*"}, "REPLICATED_UNPINNED[' ']", "its key must be the name of a"),
            ({"*": "*"}, "REPLICATED_UNPINNED['*']", "its key must be the name of a"),
            ({".a": "*"}, "REPLICATED_UNPINNED['.a']", "its key must be the name"),
            ({"a.b.c": "*"}, "REPLICATED_UNPINNED['a.b.c']", "'forum.topics'"),
            ({'"A"': "*"}, "REPLICATED_UNPINNED['\"A\"']", "without quotes"),
            ({1: "*"}, "REPLICATED_UNPINNED[1]", "its key must be the name of a table"),
            ({"a": "seen"}, "REPLICATED_UNPINNED['a']", "such as ['seen']."),
            ({"a": []}, "REPLICATED_UNPINNED['a']", "such as ['last_seen']."),
            ({"a": ["*"]}, "REPLICATED_UNPINNED['a']", "must be '*'"),
            ({"a": [""]}, "REPLICATED_UNPINNED['a']", "a list of the columns"),
            ({"a": [7]}, "REPLICATED_UNPINNED['a']", "a list of the columns"),
            ({"a": ["a.seen"]}, "REPLICATED_UNPINNED['a']", "a list of the columns"),
            ({"a": {"seen": 1}}, "REPLICATED_UNPINNED['a']", "a list of the columns"),
            ({"a": None}, "REPLICATED_UNPINNED['a']", "a list of the columns"),
            ({"a": True}, "REPLICATED_UNPINNED['a']", "a list of the columns"),
        ],
    )
    def test_wrong(self, build: Build, value: Any, key: str, remedy: str) -> None:
        """Anything else is an error at start, which says what would be right."""
        with pytest.raises(ConfigurationError) as caught:
            build(REPLICATED_UNPINNED=value)
        assert caught.value.key == key
        assert remedy in caught.value.remedy


class TestTables:
    """What REPLICATED_UNPINNED names."""

    @pytest.mark.parametrize("what", NO_TRACE)
    def test_no_trace(self, shop: Shop, what: str) -> None:
        """A transaction that writes nothing but housekeeping leaves no trace."""
        assert not shop.leaves_trace(committing(NO_TRACE[what]))

    @pytest.mark.parametrize("what", TRACE)
    def test_trace(self, shop: Shop, what: str) -> None:
        """Any other write counts as ever."""
        assert shop.leaves_trace(committing(TRACE[what]))

    @pytest.mark.parametrize("what", NO_TRACE)
    def test_without_the_setting(self, build: Build, what: str) -> None:
        """Nothing is housekeeping of itself."""
        shop = make_shop(build)
        assert shop.leaves_trace(committing(NO_TRACE[what])) is (what != "nothing")

    def test_what_an_update_sets_by_itself(self, build: Build) -> None:
        """A version, or a column that each update sets, has to be listed, too."""

        def view(shop: Shop) -> None:
            shop.session.get(shop.post, 1).views += 1
            shop.session.commit()

        few = make_shop(build, REPLICATED_UNPINNED={"post": ["views"]})
        assert few.leaves_trace(view)

    def test_all_that_an_update_sets(self, build: Build) -> None:
        """With all of them listed it is housekeeping."""

        def view(shop: Shop) -> None:
            shop.session.get(shop.post, 1).views += 1
            shop.session.commit()

        columns = {"views", "updated", "version"}
        every = make_shop(build, REPLICATED_UNPINNED={"post": columns})
        assert not every.leaves_trace(view)

    def test_rows_of_its_own(self, shop: Shop) -> None:
        """Until it commits, a transaction reads its own rows; then its replica's."""

        def act(shop: Shop) -> None:
            before = shop.site.who()
            shop.session.add(shop.visit(id=7, page="mine"))
            mine = sa.select(shop.visit.page).where(shop.visit.id == 7)
            assert shop.session.scalar(mine) == "mine"
            assert shop.site.who() == "master"
            shop.session.commit()
            assert shop.session.scalar(mine) is None
            assert shop.site.who() == before

        assert not shop.leaves_trace(act)

    def test_rows_in_autocommit(self, shop: Shop) -> None:
        """So it does where each statement commits itself."""

        def act(shop: Shop) -> None:
            options = {"isolation_level": "AUTOCOMMIT"}
            bind = {"bind": shop.site.db.engine}
            session = shop.session()
            update = sa.update(shop.account.__table__).values(seen=5)
            session.connection(bind, execution_options=options).execute(update)
            assert shop.session.get(shop.account, 1).seen == 5

        shop.do(act, "POST")

    def test_rolled_back(self, shop: Shop) -> None:
        """A transaction that is rolled back leaves none either."""

        def act(shop: Shop) -> None:
            account(shop, seen=5)
            shop.session.rollback()

        assert not shop.leaves_trace(act)

    def test_each_transaction(self, shop: Shop) -> None:
        """Another transaction of the request counts for itself."""

        def act(shop: Shop) -> None:
            account(shop, seen=5)
            shop.session.commit()
            assert shop.site.role() == "replica"
            account(shop, name="x")
            shop.session.commit()

        assert shop.leaves_trace(act)

    def test_another_session(self, shop: Shop) -> None:
        """Another session of the request does not see what is not committed."""

        def act(shop: Shop) -> None:
            account(shop, seen=5)
            with shop.site.app.app_context():
                assert shop.site.role() == "replica"
            shop.session.commit()

        assert not shop.leaves_trace(act)

    def test_locks_count(self, shop: Shop) -> None:
        """A lock ties the request to the primary, whatever is written under it."""

        def act(shop: Shop) -> None:
            shop.session.scalars(sa.select(shop.visit).with_for_update()).all()
            shop.session.commit()

        response = shop.do(act)
        assert (response.text, pin_of(response)) == ("primary", None)

    def test_inside_using_slave(self, shop: Shop) -> None:
        """A write inside using_slave() is refused, housekeeping or not."""

        def act(shop: Shop) -> None:
            with using_slave(), pytest.raises(Exception, match="tried to write"):
                account(shop, seen=5)
            shop.session.rollback()

        assert not shop.leaves_trace(act)

    def test_on_a_connection_to_a_replica(self, shop: Shop) -> None:
        """And so is one on a connection of a GET's."""

        def act(shop: Shop) -> None:
            with (
                shop.site.db.engine.connect() as connection,
                pytest.raises(Exception, match="tried to write"),
            ):
                connection.execute(sa.delete(shop.visit.__table__))

        assert not shop.leaves_trace(act)

    def test_a_renewal(self, shop: Shop) -> None:
        """Housekeeping does not renew a pin."""

        def act(shop: Shop) -> None:
            account(shop, seen=5)
            shop.session.commit()

        shop.do(act)  # the page is there
        client = shop.site.client()
        client.post("/write")
        response = client.get("/do")
        assert (response.text, pin_of(response)) == ("primary", None)

    def test_a_learnt_endpoint(self, shop: Shop) -> None:
        """Nor does it begin one where an endpoint is known to write something else."""
        shop.do(lambda _: None)
        state = shop.site.app.extensions["replicated"].state(shop.site.app)
        state.decider.learn_writer(
            WriteOnReplicaError("SELECT slip()", "do", "refused"), {}
        )

        def touch(shop: Shop) -> None:
            shop.session.execute(sa.update(shop.account).values(seen=5))
            shop.session.commit()

        assert pin_of(shop.do(touch)) is None

        def read(shop: Shop) -> None:
            touch(shop)
            shop.site.who()
            shop.session.commit()

        assert pin_of(shop.do(read)) is not None


def write(shop: Shop) -> None:
    """Write what is no housekeeping."""
    shop.session.execute(sa.update(shop.account).values(name="x"))


class TestBlock:
    """What is inside of using_master(pin=False)."""

    @pytest.fixture
    def shop(self, build: Build) -> Shop:
        """Give an application that names no housekeeping."""
        return make_shop(build)

    @pytest.mark.parametrize("what", [*TRACE, "a lock", "a setting"])
    def test_no_trace(self, shop: Shop, what: str) -> None:
        """Whatever is done inside is forgotten."""
        more = {
            "a lock": lambda s: s.session.scalars(
                sa.select(s.visit).with_for_update()
            ).all(),
            "a setting": text("PRAGMA case_sensitive_like = 1"),
        }
        act = committing((TRACE | more)[what])

        def acts(shop: Shop) -> None:
            before = shop.site.who()
            with using_master(pin=False):
                assert shop.site.role() == "primary"
                act(shop)
            assert shop.site.who() == before

        assert not shop.leaves_trace(acts)

    def test_committed_outside(self, shop: Shop) -> None:
        """It is forgotten wherever it is committed; until then its rows are seen."""

        def act(shop: Shop) -> None:
            with using_master(pin=False):
                account(shop, name="mine")
            name = sa.select(shop.account.name).where(shop.account.id == 1)
            assert shop.session.scalar(name) == "mine"
            shop.session.commit()

        assert not shop.leaves_trace(act)

    def test_sent_before(self, shop: Shop) -> None:
        """A write that was sent before counts, though it is committed inside."""

        def act(shop: Shop) -> None:
            account(shop, name="x")
            with using_master(pin=False):
                account(shop, seen=1)
                shop.session.commit()

        assert shop.leaves_trace(act)

    @pytest.mark.parametrize("inside", [True, False])
    @pytest.mark.parametrize("how", ["new", "changed", "deleted"])
    def test_pending_before(self, shop: Shop, how: str, inside: bool) -> None:
        """So does what a session had to flush before, wherever it is committed."""

        def act(shop: Shop) -> None:
            if how == "new":
                shop.session.add(shop.tag())
            elif how == "changed":
                shop.session.get(shop.account, 1).name = "x"
            else:
                shop.session.delete(shop.session.get(shop.visit, 1))
            with using_master(pin=False):
                shop.session.scalars(sa.select(shop.account)).all()  # flushes
                shop.session.execute(sa.update(shop.account).values(seen=1))
                if inside:
                    shop.session.commit()
            shop.session.commit()

        assert shop.leaves_trace(act)

    def test_pending_in_another_session(self, shop: Shop) -> None:
        """What another session has pending does not matter to this one's flush."""

        def act(shop: Shop) -> None:
            shop.session.add(shop.tag())
            with shop.site.app.app_context(), using_master(pin=False):
                account(shop, name="x")
                shop.session.commit()
            shop.session.rollback()

        assert not shop.leaves_trace(act)

    def test_flushed_outside(self, shop: Shop) -> None:
        """A change that is made inside and flushed outside counts."""

        def act(shop: Shop) -> None:
            with using_master(pin=False):
                shop.session.get(shop.account, 1).name = "x"
            shop.session.commit()

        assert shop.leaves_trace(act)

    @pytest.mark.parametrize("outer", [using_master, using_slave])
    def test_within_another_block(self, shop: Shop, outer: Any) -> None:
        """It may stand in another block, which goes on behind it."""

        def act(shop: Shop) -> None:
            with outer():
                with using_master(pin=False):
                    committing(write)(shop)
                expected = "replica" if outer is using_slave else "primary"
                assert shop.site.role() == expected

        assert not shop.leaves_trace(act)

    def test_around_another_block(self, shop: Shop) -> None:
        """Another block in it may choose a server, and remembers nothing either."""

        def act(shop: Shop) -> None:
            with using_master(pin=False):
                with using_slave():
                    assert shop.site.role() == "replica"
                with using_master():
                    committing(write)(shop)

        assert not shop.leaves_trace(act)

    def test_ends(self, shop: Shop) -> None:
        """A write behind it counts as ever, also when it has raised."""

        def act(shop: Shop) -> None:
            with contextlib.suppress(KeyError), using_master(pin=False):
                raise KeyError
            committing(write)(shop)

        assert shop.leaves_trace(act)

    def test_decorator(self, shop: Shop) -> None:
        """It decorates functions."""
        touch = using_master(pin=False)(committing(write))
        assert not shop.leaves_trace(touch)

    def test_async_decorator(self, shop: Shop) -> None:
        """And ``async`` ones; what else their loop does counts."""

        @using_master(pin=False)
        async def touch() -> None:
            committing(write)(shop)

        def act(_: Shop) -> None:
            asyncio.run(touch())

        assert not shop.leaves_trace(act)

    def test_another_thread(self, shop: Shop) -> None:
        """It is of the thread that opened it, and of no other."""

        def act(shop: Shop) -> None:
            state = current_request_state()
            assert state is not None
            entered, done = threading.Event(), threading.Event()

            def hold() -> None:
                with using_master(pin=False):
                    entered.set()
                    done.wait(10)

            thread = threading.Thread(target=hold)
            thread.start()
            entered.wait(10)
            committing(write)(shop)
            done.set()
            thread.join()

        assert shop.leaves_trace(act)

    def test_by_engine(self, shop: Shop) -> None:
        """A transaction of the engine's own is forgotten, too."""

        def act(shop: Shop) -> None:
            with using_master(pin=False):
                by_engine(shop)
                shop.site.db.engine.raw_connection().close()

        assert not shop.leaves_trace(act)

    def test_a_generator(self) -> None:
        """It cannot be put around a generator, like any block."""

        def steps() -> Any:
            yield 1

        with pytest.raises(TypeError, match="is a generator"):
            using_master(pin=False)(steps)
