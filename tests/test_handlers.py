"""The option ``replicated``, given to a statement by a ``do_orm_execute`` handler."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import sqlalchemy as sa
from sqlalchemy import event, orm

from flask_replicated import (
    ConfigurationError,
    RoutedSession,
    WriteOnReplicaError,
    replicated_engine,
    using_slave,
)
from flask_replicated.routing.hints import note_primary_models
from tests.operations.hidden import hidden_write
from tests.support import REPLICAS, Build, Site, answer, build_fixture

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from sqlalchemy.orm import ORMExecuteState

    Handler = Callable[[ORMExecuteState], Any]
    Listen = Callable[..., AbstractContextManager[None]]

pytestmark = pytest.mark.usefixtures("hidden_writes")

build = build_fixture

TABLES = """
    CREATE TABLE author (id INTEGER PRIMARY KEY, name VARCHAR, about VARCHAR);
    CREATE TABLE book (id INTEGER PRIMARY KEY, title VARCHAR, author_id INTEGER);
    INSERT INTO author VALUES (1, '{0}', '{0}');
    INSERT INTO book VALUES (1, '{0}', 1);
"""


@dataclass
class Library:
    """A site whose rows name the server that they are read from."""

    site: Site
    author: Any
    book: Any

    @property
    def session(self) -> Any:
        """The session of the running request."""
        return self.site.db.session

    def who(self, **options: Any) -> str:
        """Return who serves a query for an author."""
        return str(self.session.scalars(sa.select(self.author), **options).one().name)

    def ask(self, view: Callable[[], str], method: str = "GET") -> str:
        """Return what a view answers, with the replicas' names as one."""
        said = answer(self.site, view, method)
        for name in REPLICAS:
            said = said.replace(name, "replica")
        return said


@pytest.fixture
def library(build: Build) -> Library:
    """Give an application with three replicas and two related models."""
    site = build()
    db: Any = site.db
    for name in ("master", *REPLICAS):
        with contextlib.closing(sqlite3.connect(site.folder / f"{name}.db")) as file:
            file.executescript(TABLES.format(name))

    class Author(db.Model):  # type: ignore[misc]  # made at run time
        id = db.Column(db.Integer, primary_key=True)
        name = db.Column(db.String)
        about = orm.deferred(db.Column(db.String))
        books = db.relationship("Book", back_populates="author")

    class Book(db.Model):  # type: ignore[misc]  # the same
        id = db.Column(db.Integer, primary_key=True)
        title = db.Column(db.String)
        author_id = db.Column(db.ForeignKey("author.id"))
        author = db.relationship("Author", back_populates="books")

    return Library(site, Author, Book)


@pytest.fixture
def listen(library: Library) -> Listen:
    """Give what lets handlers listen to the session's statements."""

    @contextlib.contextmanager
    def listening(*handlers: Handler) -> Iterator[None]:
        for handler in handlers:
            event.listen(library.session, "do_orm_execute", handler)
        try:
            yield
        finally:
            for handler in handlers:
                event.remove(library.session, "do_orm_execute", handler)

    return listening


def on_statement(state: ORMExecuteState, role: str) -> None:
    """Put it on the statement."""
    state.statement = state.statement.execution_options(replicated=role)


def updated(state: ORMExecuteState, role: str) -> None:
    """Add it to the options of the execution."""
    state.update_execution_options(replicated=role)


def invoked_with_options(state: ORMExecuteState, role: str) -> Any:
    """Run the statement with it."""
    return state.invoke_statement(execution_options={"replicated": role})


def invoked_with_statement(state: ORMExecuteState, role: str) -> Any:
    """Run another statement, which has it."""
    return state.invoke_statement(
        statement=state.statement.execution_options(replicated=role)
    )


def invoked_twice(state: ORMExecuteState, role: str) -> Any:
    """Run the statement with it, after it was run with the other one."""
    other = "slave" if role == "master" else "master"
    invoked_with_options(state, other).close()
    return invoked_with_options(state, role)


WAYS = [
    on_statement,
    updated,
    invoked_with_options,
    invoked_with_statement,
    invoked_twice,
]
every_way = pytest.mark.parametrize("way", WAYS)


class Case(NamedTuple):
    """A request's method, the role that a handler asks for, and who serves then."""

    method: str
    role: str
    served: str

    @property
    def own(self) -> str:
        """Who serves what no handler asks for."""
        return "replica" if self.method == "GET" else "master"


both_roles = pytest.mark.parametrize(
    "case", [Case("GET", "master", "master"), Case("POST", "slave", "replica")]
)


def asking(way: Callable[..., Any], role: str) -> Handler:
    """Return a handler that gives the option to each statement."""
    return lambda state: way(state, role)


def relationships(way: Callable[..., Any], role: str) -> Handler:
    """Return a handler that gives it to loads of relationships alone."""
    return lambda state: way(state, role) if state.is_relationship_load else None


def columns(way: Callable[..., Any], role: str) -> Handler:
    """Return a handler that gives it to loads of columns alone."""
    return lambda state: way(state, role) if state.is_column_load else None


CALLS: dict[str, Callable[[Library], object]] = {
    "execute": lambda one: one.session.execute(sa.select(one.author.name)).scalar_one(),
    "scalar": lambda one: one.session.scalar(sa.select(one.author.name)),
    "scalars": lambda one: one.session.scalars(sa.select(one.author.name)).one(),
    "get": lambda one: one.session.get(one.author, 1).name,
    "query": lambda one: one.session.query(one.author).one().name,
    "paginate": lambda one: one.site.db.paginate(sa.select(one.author)).items[0].name,
    "table": lambda one: one.session.scalar(sa.select(one.author.__table__.c.name)),
    "text": lambda one: one.session.scalar(sa.text("SELECT name FROM author")),
    "union": lambda one: one.session.scalar(
        sa.union(sa.select(one.author.name), sa.select(one.author.name))
    ),
    "session": lambda one: one.session().scalar(sa.select(one.author.name)),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("way", [on_statement, invoked_with_options])
@both_roles
def test_calls(
    library: Library, listen: Listen, way: Any, case: Case, call: str
) -> None:
    """It is obeyed, whichever call the statement was executed by."""
    with listen(asking(way, case.role)):
        said = library.ask(lambda: str(CALLS[call](library)), case.method)
    assert said == case.served


@every_way
@both_roles
class TestObeyed:
    """As if it had been given to ``execute()``."""

    def test_not_the_rest(
        self, library: Library, listen: Listen, way: Any, case: Case
    ) -> None:
        """The request's other statements are free."""

        def view() -> str:
            with listen(asking(way, case.role)):
                first = library.who()
            return f"{first} {library.site.role()}"

        rest = "replica" if case.method == "GET" else "primary"
        assert library.ask(view, case.method) == f"{case.served} {rest}"

    def test_lazy_loads(
        self, library: Library, listen: Listen, way: Any, case: Case
    ) -> None:
        """What the objects load later asks for the same, without the handler."""

        def view() -> str:
            with listen(asking(way, case.role)):
                found = library.session.scalars(sa.select(library.author)).one()
            return f"{found.about} {found.books[0].title}"

        assert library.ask(view, case.method) == f"{case.served} {case.served}"

    def test_of_relationships(
        self, library: Library, listen: Listen, way: Any, case: Case
    ) -> None:
        """A handler may ask for the loads of relationships alone."""

        def view() -> str:
            found = library.session.scalars(sa.select(library.author)).one()
            return f"{found.name} {found.books[0].title}"

        with listen(relationships(way, case.role)):
            assert library.ask(view, case.method) == f"{case.own} {case.served}"

    def test_of_selectinload(
        self, library: Library, listen: Listen, way: Any, case: Case
    ) -> None:
        """And for the ones that follow a query at once."""

        def view() -> str:
            loads = orm.selectinload(library.author.books)
            chosen = sa.select(library.author).options(loads)
            found = library.session.scalars(chosen).one()
            return f"{found.name} {found.books[0].title}"

        with listen(relationships(way, case.role)):
            assert library.ask(view, case.method) == f"{case.own} {case.served}"

    def test_refreshes(
        self, library: Library, listen: Listen, way: Any, case: Case
    ) -> None:
        """And for refreshes and expired attributes."""

        def view() -> str:
            found = library.session.scalars(sa.select(library.author)).one()
            own = found.name
            library.session.refresh(found)
            refreshed = found.name
            library.session.expire(found)
            return f"{own} {refreshed} {found.name}"

        with listen(columns(way, case.role)):
            assert (
                library.ask(view, case.method)
                == f"{case.own} {case.served} {case.served}"
            )


class TestWhoIsStronger:
    """The last word that is said of a statement counts."""

    @every_way
    def test_than_the_caller(self, library: Library, listen: Listen, way: Any) -> None:
        """A handler is asked after its caller, and what its objects load obeys it."""

        def view() -> str:
            options = (
                {}
                if way in (on_statement, invoked_with_statement)
                else {"execution_options": {"replicated": "master"}}
            )
            chosen = sa.select(library.author).execution_options(replicated="master")
            found = library.session.scalars(chosen, **options).one()
            with library.session.no_autoflush:
                return f"{found.name} {found.books[0].title}"

        def once(state: ORMExecuteState) -> Any:
            return way(state, "slave") if not state.is_relationship_load else None

        with listen(once):
            assert library.ask(view) == "replica replica"

    def test_than_an_earlier_handler(self, library: Library, listen: Listen) -> None:
        """Of several handlers the last one decides, also if an earlier one runs it."""
        with listen(asking(updated, "master"), asking(updated, "slave")):
            assert library.ask(library.who, "POST") == "replica"
        with listen(asking(invoked_with_options, "slave"), asking(updated, "master")):
            answers = library.site.client().post("/view")
            assert answers.text == "master"

    def test_than_the_model(self, library: Library, listen: Listen) -> None:
        """A replica that a handler asks for serves a model that prefers none."""
        library.author.__replicated__ = "master"
        with listen(asking(updated, "slave")):
            assert library.ask(library.who) == "replica"

    def test_handler_without_a_wish(self, library: Library, listen: Listen) -> None:
        """One that asks for nothing changes nothing, and is called once."""
        calls: list[bool] = []
        library.author.__replicated__ = "master"

        def count(state: ORMExecuteState) -> None:
            calls.append(state.is_select)

        def view() -> str:
            given = {"replicated": "slave"}
            return f"{library.who()} {library.who(execution_options=given)}"

        with listen(count):
            assert library.ask(view) == "master replica"
        assert calls == [True, True]

    def test_a_table_that_is_never_stale(
        self, library: Library, listen: Listen
    ) -> None:
        """Its read goes to the primary when it is seen, handlers or not."""
        library.author.__replicated__ = "master"
        note_primary_models([sa.inspect(library.author)])

        def view() -> str:
            chosen = sa.select(library.book.title).join(library.author)
            return str(library.session.scalar(chosen))

        with listen(lambda state: state.update_execution_options(yield_per=10)):
            assert library.ask(view) == "master"

    def test_session(self, library: Library, listen: Listen) -> None:
        """The options of a whole session are weaker than those of a statement."""
        if not hasattr(orm.Session, "execution_options"):
            pytest.skip("SQLAlchemy 2.0 has none")

        def view() -> str:
            options = {"replicated": "slave"}
            with library.session.session_factory(execution_options=options) as session:
                chosen = sa.select(library.author.name)
                first = session.scalar(chosen)
                fresh = chosen.execution_options(replicated="master")
                return f"{first} {session.scalar(fresh)}"

        assert library.ask(view, "POST") == "replica master"
        with listen(lambda _: None):
            assert library.site.client().post("/view").text in {
                f"{name} master" for name in REPLICAS
            }


class TestWrites:
    """What a handler asks for is no way around what a replica may do."""

    @every_way
    def test_refused(self, library: Library, listen: Listen, way: Any) -> None:
        """A write that it sends to a replica is refused."""

        def view() -> str:
            with pytest.raises(WriteOnReplicaError):
                library.session.execute(sa.delete(library.book))
            return "refused"

        with listen(asking(way, "slave")):
            assert library.ask(view, "POST") == "refused"

    @pytest.mark.parametrize("wish", [{}, {"replicated": "master"}])
    def test_its_own_reads(
        self, library: Library, listen: Listen, wish: dict[str, str]
    ) -> None:
        """A write that fetches its rows first does so on the primary."""

        def view() -> str:
            changed = library.session.execute(
                sa.update(library.book)
                .where(library.book.title == "master")
                .values(title="new")
                .execution_options(synchronize_session="fetch")
            )
            library.session.commit()
            return str(changed.rowcount)

        with listen(lambda state: state.update_execution_options(**wish)):
            assert library.ask(view) == "1"

    def test_hidden(self, library: Library, listen: Listen) -> None:
        """A write that only a replica recognises runs again on the primary."""
        sql = "INSERT INTO entry (text) VALUES ('hidden') RETURNING text"

        def view() -> str:
            library.session.execute(hidden_write(sql)).all()
            library.session.commit()
            return "done"

        with listen(lambda state: state.update_execution_options(logging_token="x")):
            assert library.ask(view) == "done"
        assert library.site.entries() == ["hidden"]


class TestOtherSessions:
    """Handlers of sessions that are no request's."""

    @every_way
    def test_alone(self, library: Library, way: Any, tmp_path: Path) -> None:
        """A routed session outside Flask obeys them, too."""
        engines = [
            sa.create_engine(f"sqlite:///{tmp_path}/{name}.db")
            for name in ("master", "slave_1")
        ]
        routed = replicated_engine(engines[0], {"slave_1": engines[1]})
        sessions = orm.sessionmaker(routed, class_=RoutedSession)
        chosen = sa.select(library.author.name)
        event.listen(sessions, "do_orm_execute", asking(way, "slave"))
        with sessions() as session:
            assert session.scalar(chosen) == "slave_1"
        with sessions() as session, using_slave():
            asked = chosen.execution_options(replicated="slave")
            assert session.scalar(asked) == "slave_1"
        for engine in engines:
            engine.dispose()


@every_way
@pytest.mark.parametrize("value", ["leader", "", 1])
def test_wrong_word(library: Library, listen: Listen, way: Any, value: Any) -> None:
    """Another word is an error that says which would be right."""
    with (
        listen(asking(way, value)),
        library.site.app.test_request_context(),
        pytest.raises(ConfigurationError, match="'master' or 'slave'"),
    ):
        library.who()


def test_a_named_bind(library: Library, listen: Listen) -> None:
    """A bind that a handler names is obeyed to the letter, db.engine is routed."""

    def view() -> str:
        engines = library.site.db.engines
        options = {"replicated": "master"}
        found = []
        for name in ("slave_2", None):
            bound = {"bind": engines[name]}

            def handler(state: ORMExecuteState, bound: Any = bound) -> Any:
                return state.invoke_statement(
                    bind_arguments=bound, execution_options=options
                )

            with listen(handler):
                found.append(
                    str(library.session.scalar(sa.select(library.author.name)))
                )
        return " ".join(found)

    assert answer(library.site, view) == "slave_2 master"


def test_async_view(library: Library, listen: Listen) -> None:
    """A coroutine's statements have handlers, too."""

    async def view() -> str:
        await asyncio.sleep(0)
        return library.who()

    with listen(asking(updated, "master")):
        assert library.ask(view) == "master"  # type: ignore[arg-type]  # Flask awaits it
