"""Housekeeping on PostgreSQL: each write by what is really sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects.postgresql import insert as upsert

from flask_replicated import using_master
from tests.support import pin_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from examples.cluster import Cluster
    from tests.postgres.support import Build, Site

    Act = Callable[[Site], Any]

pytestmark = pytest.mark.postgres

HOUSEKEEPING = {
    "visit": "*",
    "forum.topic": ["views"],
    "public.Guest": ["Last Seen"],
}
META = sa.MetaData()
VISIT = sa.Table(
    "visit",
    META,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("at", sa.Text),
)
TOPIC = sa.Table(
    "topic",
    META,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("views", sa.Integer),
    sa.Column("title", sa.Text),
    schema="forum",
)
GUEST = sa.Table(
    "Guest",
    META,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("Last Seen", sa.Integer),
    sa.Column("name", sa.Text),
)


@pytest.fixture(scope="module", autouse=True)
def _tables(cluster: Cluster) -> Iterator[None]:
    engine = sa.create_engine(cluster.primary.url())
    with engine.begin() as connection:
        connection.execute(sa.text("create schema forum"))
        connection.execute(sa.text("create schema annex"))
        META.create_all(connection)
        connection.execute(sa.text("create table annex.visit (id int, at text)"))
        connection.execute(sa.insert(TOPIC).values(id=1, views=0))
        connection.execute(sa.insert(GUEST).values({"id": 1, "Last Seen": 0}))
    cluster.wait_replicated()
    yield
    with engine.begin() as connection:
        META.drop_all(connection)
        connection.execute(sa.text("drop schema annex, forum cascade"))
    engine.dispose()


def execute(statement: Any, *parameters: Any, **options: Any) -> Act:
    """Return what executes a statement in the session."""

    def act(site: Site) -> None:
        site.db.session.execute(statement, *parameters, execution_options=options)

    return act


def text(sql: str) -> Act:
    """Return what executes a text."""
    return execute(sa.text(sql))


def many(site: Site) -> None:
    """Insert more rows than one statement takes, and have their keys."""
    rows = [{"at": str(number)} for number in range(2500)]
    returning = sa.insert(VISIT).returning(VISIT.c.id)
    assert len(site.db.session.execute(returning, rows).all()) == 2500


deleted = sa.delete(VISIT).returning(VISIT.c.id).cte("deleted")
viewed = sa.update(TOPIC).values(views=1).returning(TOPIC.c.id).cte("viewed")
renamed = sa.update(TOPIC).values(title="x").returning(TOPIC.c.id).cte("renamed")

NO_TRACE: dict[str, Act] = {
    "with a schema": execute(sa.update(TOPIC).values(views=TOPIC.c.views + 1)),
    "with quotes": execute(sa.update(GUEST).values({"Last Seen": 5})),
    "several rows": execute(sa.insert(VISIT), [{"at": "x"}, {"at": "y"}]),
    "many rows": many,
    "upsert": execute(
        upsert(VISIT)
        .values(id=-1, at="x")
        .on_conflict_do_update(index_elements=["id"], set_={"at": "y"})
    ),
    "a CTE": execute(sa.select(deleted.c.id)),
    "CTEs, added": execute(sa.select(sa.literal(1)).add_cte(deleted, viewed)),
    "update .. from": execute(
        sa.update(TOPIC).values(views=GUEST.c.id).where(GUEST.c.id == TOPIC.c.id)
    ),
    "another schema at run time": execute(
        sa.insert(VISIT).values(id=1, at="x"), schema_translate_map={None: "annex"}
    ),
    "text with a schema": text("update forum.topic set views = views + 1"),
    "text with the default schema": text("delete from public.visit"),
    "text with quotes": text('update "Guest" set "Last Seen" = 3'),
    "text in upper case": text("INSERT INTO VISIT (AT) VALUES (clock_timestamp())"),
    "text with a CTE": text(
        "with d as (delete from visit returning *) insert into visit select * from d"
    ),
    "text with a sequence": text("insert into visit values (nextval('visit_id_seq'))"),
}
TRACE: dict[str, Act] = {
    "another column": execute(sa.update(TOPIC).values(title="x")),
    "another column too": execute(sa.update(TOPIC).values(title="x", views=1)),
    "a row": execute(sa.insert(TOPIC).values(id=7).returning(TOPIC.c.id)),
    "upsert": execute(
        upsert(TOPIC)
        .values(id=1)
        .on_conflict_do_update(index_elements=["id"], set_={"views": 2})
    ),
    "a CTE": execute(sa.select(renamed.c.id)),
    "one CTE of two": execute(sa.select(sa.literal(1)).add_cte(deleted, renamed)),
    "text without the schema": text("update topic set views = 1"),
    "text with another": text("delete from annex.visit"),
    "text with another case": text('insert into "VISIT" values (1)'),
    "text without its quotes": text("update guest set last_seen = 1"),
    "two statements": text("delete from visit; update forum.topic set title = 'x'"),
    "a function of the user's": text("update forum.topic set views = slip()"),
    "a lock": text(
        "update forum.topic set views = 1 where id = "
        "(select id from forum.topic for update)"
    ),
    "truncate": text("truncate visit"),
    "a block": text("do $$ begin delete from visit; end $$"),
    "one of each": lambda site: [
        text("delete from visit")(site),
        text("update forum.topic set title = 'x'")(site),
    ],
}


class Visits:
    """GETs that do something, and tell who serves them before and after it."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self._act: Act = bool
        site.app.add_url_rule("/act", "act", self._view)

    def _view(self) -> str:
        before = self.site.who().server
        try:
            self._act(self.site)
        except (sa.exc.ProgrammingError, sa.exc.IntegrityError):
            self.site.db.session.commit()  # of a transaction that has failed
        self.site.db.session.commit()
        after = self.site.who().server
        return "kept" if after == before else after

    def leave_trace(self, act: Act) -> bool:
        """Whether a GET is latched; it is pinned then, and only then."""
        self._act = act
        response = self.site.client().get("/act")
        assert response.status_code == 200, response.text
        latched = response.text != "kept"
        return latched or pin_of(response) is not None


@pytest.fixture
def visits(build: Build) -> Visits:
    """Give visits to an application that names its housekeeping."""
    return Visits(build(REPLICATED_UNPINNED=HOUSEKEEPING))


@pytest.mark.parametrize("what", NO_TRACE)
def test_no_trace(visits: Visits, what: str) -> None:
    """Housekeeping leaves no trace, however it is written."""
    assert not visits.leave_trace(NO_TRACE[what])


@pytest.mark.parametrize("what", TRACE)
def test_trace(visits: Visits, what: str) -> None:
    """Any other write counts as ever."""
    assert visits.leave_trace(TRACE[what])


@pytest.mark.parametrize("what", NO_TRACE)
def test_two_phases(build: Build, what: str) -> None:
    """So it is where sessions commit in two phases."""
    site = build(twophase=True, REPLICATED_UNPINNED=HOUSEKEEPING)
    assert not Visits(site).leave_trace(NO_TRACE[what])


@pytest.mark.parametrize("setting", ["set local x.y = '1'", "set x.y = '1'"])
def test_what_prepares_a_transaction(visits: Visits, setting: str) -> None:
    """What a listener sets for each transaction is none; what lasts counts."""

    def prepare(_session: object, _transaction: object, connection: Any) -> None:
        connection.execute(sa.text(setting))

    event.listen(visits.site.db.session, "after_begin", prepare)
    last = not setting.startswith("set local")
    assert visits.leave_trace(NO_TRACE["with a schema"]) is last
    with_parameters = sa.select(sa.func.set_config("x.y", "1", True))
    assert visits.leave_trace(execute(with_parameters))


def test_a_block(build: Build) -> None:
    """Whatever is done inside of using_master(pin=False) is forgotten."""
    visits = Visits(build())
    for act in (*NO_TRACE.values(), *TRACE.values(), text("set x.y = '1'")):

        def inside(site: Site, act: Act = act) -> None:
            with using_master(pin=False):
                act(site)

        assert not visits.leave_trace(inside)
    assert visits.leave_trace(TRACE["a row"])
