"""A migration has run, and a standby has not replayed it yet."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, func, make_url, select, text
from sqlalchemy.exc import DBAPIError, ProgrammingError
from sqlalchemy.orm import selectinload

from flask_replicated import using_slave
from tests.postgres.support import bind
from tests.postgres.support import make_site as application

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from examples.cluster import Cluster, Standby
    from tests.postgres.support import Build, Site

pytestmark = pytest.mark.postgres

MIGRATION = (
    "create table label (id serial primary key, item_id int, name text)",
    "insert into label (item_id, name) select id, 'new' from item",
    "alter table item add column stars int",
    "create function stars() returns int language sql as 'select 1'",
    "create type mood as enum ('fine')",
    "create schema archive",
    "create function archive.stars() returns int language sql as 'select 1'",
    "alter type pace add value 'fast'",
)
NEW = {
    "table": "select count(*) from label",
    "column": "select count(stars) + 1 from item",
    "function": "select stars()",
    "type": "select count(*) from (values ('fine'::mood)) as v",
    "schema": "select archive.stars()",
    "label of an enum": "select count(*) from (values ('fast'::pace)) as v",
}
SERVER = text("select current_setting('cluster_name')")


@pytest.fixture
def late(build: Build, healthy_cluster: Cluster) -> Iterator[Standby]:
    """Give a standby that replays nothing from the migration on."""
    primary, standby = healthy_cluster.primary, healthy_cluster.standbys[0]
    primary.execute("insert into item (text) values ('old')")
    primary.execute("create type pace as enum ('slow')")
    healthy_cluster.wait_replicated()
    standby.pause_replay()
    for statement in MIGRATION:
        primary.execute(statement)
    yield standby
    standby.resume_replay()
    primary.execute("drop table label")
    primary.execute("alter table item drop column stars")
    primary.execute("drop function stars")
    primary.execute("drop type mood, pace")
    primary.execute("drop schema archive cascade")
    healthy_cluster.wait_replicated()


@pytest.fixture
def site(late: Standby, build: Build, driver: str) -> Site:
    """Give an application that reads from it."""
    return make_site(late, build, driver)


def make_site(late: Standby, build: Build, driver: str, **options: Any) -> Site:
    """Make an application that reads from a standby, and models of what is new."""
    site = build({"slave_1": {"url": bind(late, driver), **options}})
    db = site.db
    label = type(
        "Label",
        (db.Model,),
        {
            "__tablename__": "label",
            "id": db.Column(db.Integer, primary_key=True),
            "item_id": db.Column(db.ForeignKey("item.id")),
            "name": db.Column(db.String),
        },
    )
    site.item.labels = db.relationship(label)
    site.item.label_class = label
    return site


def count_on_primary(site: Site) -> list[str]:
    """Return the list of what the primary is asked from here on."""
    seen: list[str] = []
    with site.app.app_context():
        primary: Any = site.db.engine
        event.listen(
            primary.real, "before_cursor_execute", lambda *args: seen.append(args[2])
        )
    return seen


def ask(site: Site, view: Callable[[], object]) -> Any:
    """Return what a GET answers that calls a function."""
    site.app.add_url_rule("/view", "view", lambda: {"seen": view()})
    response = site.client().get("/view")
    assert response.status_code == 200
    return response.get_json()["seen"]


def test_unlogged(build: Build, healthy_cluster: Cluster) -> None:
    """An unlogged table is on no standby: the primary answers, first or later."""
    primary = healthy_cluster.primary
    primary.execute("create unlogged table cached (n int)")
    primary.execute("insert into cached values (1)")
    healthy_cluster.wait_replicated()
    site = build()
    query = text("select n from cached")

    def view() -> list[object]:
        before = site.who().server.partition("_")[0]
        return [before, site.db.session.scalar(query), site.who().server]

    assert ask(site, view) == ["standby", 1, "primary"]
    with site.app.test_request_context():
        assert site.db.session.scalar(query) == 1
    primary.execute("drop table cached")


def test_prepared_before(build: Build, healthy_cluster: Cluster) -> None:
    """What was prepared before a migration is no error, and keeps its replica."""
    primary = healthy_cluster.primary
    primary.execute("create table plan (n int)")
    primary.execute("insert into plan values (1)")
    healthy_cluster.wait_replicated()
    site = build({"slave_1": bind(healthy_cluster.standbys[0], "psycopg")})
    query = text("select * from plan")

    def view() -> list[object]:
        return [*site.db.session.execute(query).one(), site.who().server]

    site.app.add_url_rule("/view", "view", lambda: {"seen": view()})
    client = site.client()
    for _ in range(8):  # psycopg prepares what it is given often
        assert client.get("/view").get_json()["seen"] == [1, "standby_1"]
    primary.execute("alter table plan add column m int default 2")
    healthy_cluster.wait_replicated()
    seen = [client.get("/view").get_json()["seen"] for _ in range(4)]
    assert seen == [[1, 2, "primary"], *[[1, 2, "standby_1"]] * 3]
    primary.execute("drop table plan")


@pytest.mark.parametrize("what", NEW)
def test_first(site: Site, what: str) -> None:
    """As first statement it is answered, and the request goes on at the primary."""

    def view() -> list[object]:
        return [site.db.session.scalar(text(NEW[what])), site.who().server]

    assert ask(site, view) == [1, "primary"]
    assert site.get().servers[0] == "standby_1"


@pytest.mark.parametrize("what", NEW)
def test_later(site: Site, what: str) -> None:
    """Later, too, where each statement sees the newest data anyway."""

    def view() -> list[object]:
        first = site.who().server
        return [first, site.db.session.scalar(text(NEW[what])), site.who().server]

    assert ask(site, view) == ["standby_1", 1, "primary"]


def ways_to_read(site: Site) -> dict[str, Callable[[], Any]]:
    """Return the ways in which a session reads, each of which finds one label."""
    session: Any = site.db.session
    item, label = site.item, site.item.label_class
    stream = select(label).execution_options(yield_per=1)
    return {
        "execute": lambda: session.execute(select(label)).scalar_one(),
        "scalar": lambda: session.scalar(select(label)),
        "scalars": lambda: session.scalars(select(label)).one(),
        "stream": lambda: max(session.scalars(stream), key=lambda one: one.id),
        "get": lambda: session.get(label, 1),
        "query": lambda: session.query(label).one(),
        "model_query": lambda: label.query.filter_by(name="new").one(),
        "count": lambda: session.query(label).count() and session.query(label).one(),
        "lazy": lambda: session.scalars(select(item)).one().labels[0],
        "selectin": lambda: session.scalar(
            select(item).options(selectinload(item.labels))
        ).labels[0],
        "savepoint": lambda: _in_savepoint(session, lambda: session.get(label, 1)),
        "compound": lambda: session.get(
            label, session.scalar(select(label.id).union(select(label.id)))
        ),
    }


def _in_savepoint(session: Any, read: Callable[[], Any]) -> Any:
    with session.begin_nested():
        return read()


def test_ways(site: Site) -> None:
    """However a session is asked."""

    def read(way: str) -> str:
        return str(ways_to_read(site)[way]().name)

    site.app.add_url_rule("/read/<way>", "read", read)
    for way in ways_to_read(site):
        response = site.client().get(f"/read/{way}")
        assert (way, response.status_code, response.text) == (way, 200, "new")
    assert site.live() == {"slave_1"}


def test_refresh(site: Site) -> None:
    """An object that a replica gave is read again from where it is known."""
    item = site.item

    def view() -> str:
        found = site.db.session.scalars(select(item)).one()
        site.db.session.refresh(found, ["labels"])
        return str(found.labels[0].name)

    assert ask(site, view) == "new"


def test_nowhere(site: Site) -> None:
    """What is nowhere costs the primary one statement, and its error is raised."""
    asked = count_on_primary(site)
    missing = "select count(*) from nowhere"

    def view() -> list[str]:
        with pytest.raises(ProgrammingError, match="nowhere") as caught:
            site.db.session.scalar(text(missing))
        assert caught.value.orig is caught.value.__context__
        # Nothing newer was seen than the replica has, whose transaction goes on.
        servers = [site.who().server]
        site.db.session.rollback()
        with pytest.raises(ProgrammingError, match="no_column"):
            site.db.session.scalar(text("select no_column from item"))
        return [*servers, site.who().server]

    assert ask(site, view) == ["standby_1", "standby_1"]
    assert asked[0] == missing
    assert len(asked) == 2


def test_fixed_snapshot(late: Standby, build: Build, driver: str) -> None:
    """Under REPEATABLE READ the first statement alone is free to go."""
    site = make_site(late, build, driver, isolation_level="REPEATABLE READ")
    query = text(NEW["table"])

    def view() -> list[object]:
        first = site.db.session.scalar(query)
        site.db.session.commit()
        return [first, site.who().server]

    def later() -> str:
        server = site.who().server
        with pytest.raises(ProgrammingError, match="label"):
            site.db.session.scalar(query)
        return server

    site.app.add_url_rule("/later", "later", later)
    assert ask(site, view) == [1, "primary"]
    asked = count_on_primary(site)
    assert site.client().get("/later").text == "standby_1"
    assert not asked


def test_after_a_setting(site: Site) -> None:
    """What a SET has changed would not hold on the primary."""
    asked = count_on_primary(site)

    def view() -> str:
        with using_slave():
            site.db.session.execute(text("set local work_mem = '1MB'"))
        with pytest.raises(ProgrammingError, match="label"):
            site.db.session.scalar(text(NEW["table"]))
        return "raised"

    assert ask(site, view) == "raised"
    assert not asked


@pytest.mark.parametrize("level", [None, "REPEATABLE READ"])
def test_prepared_by_a_listener(
    late: Standby, build: Build, driver: str, level: str | None
) -> None:
    """What after_begin sets is set on the primary, too: row-level security holds."""
    options = {} if level is None else {"isolation_level": level}
    site = make_site(late, build, driver, **options)

    def set_tenant(_session: object, _transaction: object, connection: Any) -> None:
        connection.execute(select(func.set_config("app.tenant", "7", True)))

    event.listen(site.db.session, "after_begin", set_tenant)
    query = "select count(*) || current_setting('app.tenant') from label"

    def view() -> list[object]:
        return [site.db.session.scalar(text(query)), site.who().server]

    assert ask(site, view) == ["17", "primary"]


def test_wrong_values(site: Site) -> None:
    """A value that is wrong everywhere is the replica's to refuse."""
    asked = count_on_primary(site)

    def view() -> str:
        with pytest.raises(DBAPIError, match="integer"):
            site.db.session.scalar(text("select count(*) from item where id = 'x'"))
        return "raised"

    assert ask(site, view) == "raised"
    assert not asked


@pytest.mark.parametrize("silent", [False, True], ids=["refused", "silent"])
def test_primary_out_of_reach(late: Standby, driver: str, *, silent: bool) -> None:
    """The replica's own error is raised; a primary that is out is not tried again."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if silent:
            server.listen()
        url = make_url(bind(late, driver)).set(port=server.getsockname()[1])
        site = application(
            url.render_as_string(hide_password=False),
            {"slave_1": bind(late, driver)},
            REPLICATED_CONNECT_TIMEOUT=1,
            REPLICATED_BREAKER_RESET=60,
            REPLICATED_BREAKER_MAX_RESET=60,
            REPLICATED_PROBE_INTERVAL=0,
        )
        tried: list[object] = []
        with site.app.app_context():
            primary: Any = site.db.engine
            event.listen(primary.real, "do_connect", lambda *_: tried.append(1))

        def view() -> str:
            with pytest.raises(ProgrammingError, match="nowhere") as caught:
                site.db.session.scalar(text("select count(*) from nowhere"))
            assert caught.value.orig is caught.value.__context__
            site.db.session.rollback()
            return site.who().server

        site.app.add_url_rule("/view", "view", view)
        try:
            assert site.client().get("/view").text == "standby_1"
            once = len(tried)
            assert once
            assert site.client().get("/view").text == "standby_1"
            assert len(tried) == once
        finally:
            site.dispose()


def test_primary_known_to_be_out(site: Site) -> None:
    """What the probe has found spares a statement its try."""
    asked = count_on_primary(site)
    routed = site.app.extensions["replicated"].state(site.app).routes[None]

    def view() -> str:
        site.who()
        routed.status.mark_unreachable()
        with pytest.raises(ProgrammingError, match="label"):
            site.db.session.scalar(text(NEW["table"]))
        return "raised"

    assert ask(site, view) == "raised"
    assert not asked
