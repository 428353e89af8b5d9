"""Every way to read and every way to write, through sessions and Core."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from flask_replicated import WriteOnReplicaError, using_slave
from tests.support import REPLICAS, Build, Site, answer, build_fixture, core

if TYPE_CHECKING:
    from collections.abc import Callable

build = build_fixture


@pytest.fixture
def site(build: Build) -> Site:
    """Give an application with three replicas."""
    return build()


READERS: dict[str, Callable[[Site], Any]] = {
    "select": lambda s: s.db.session.scalar(sa.select(s.marker.name)),
    "execute": lambda s: s.db.session.execute(sa.select(s.marker.name)).scalar(),
    "scalars": lambda s: s.db.session.scalars(sa.select(s.marker.name)).first(),
    "Model.query": lambda s: s.marker.query.one().name,
    "session.query": lambda s: s.db.session.query(s.marker.name).scalar(),
    "paginate": lambda s: s.db.paginate(sa.select(s.marker)).items[0].name,
    "first_or_404": lambda s: s.db.first_or_404(sa.select(s.marker)).name,
    "text": lambda s: s.db.session.scalar(sa.text("SELECT name FROM marker")),
    "core table": lambda s: s.db.session.scalar(sa.select(s.marker.__table__)),
    "from_statement": lambda s: (
        s.db.session.scalars(
            sa.select(s.marker).from_statement(sa.text("SELECT name FROM marker"))
        )
        .one()
        .name
    ),
    "subquery": lambda s: s.db.session.scalar(
        sa.select(sa.select(s.marker.name).subquery().c.name)
    ),
    "alias": lambda s: s.db.session.scalar(sa.select(sa.orm.aliased(s.marker).name)),
    "cte": lambda s: s.db.session.scalar(
        sa.select(sa.select(s.marker.name).cte().c.name)
    ),
    "union": lambda s: s.db.session.scalar(
        sa.union(sa.select(s.marker.name), sa.select(s.marker.name))
    ),
    "stream": lambda s: next(
        iter(
            s.db.session.scalars(
                sa.select(s.marker.name).execution_options(yield_per=1)
            )
        )
    ),
    "engine": lambda s: core(s.db.engine),
    "engines": lambda s: core(s.db.engines[None]),
}


@pytest.mark.parametrize("name", READERS)
def test_reading_in_a_post(site: Site, name: str) -> None:
    """Every way to read reaches the primary in a POST."""
    assert answer(site, lambda: READERS[name](site), "POST") == "master"


@pytest.mark.parametrize("name", READERS)
class TestWaysToRead:
    """A read is routed however it is written."""

    def test_get(self, site: Site, name: str) -> None:
        """Every way to read reaches a replica in a GET."""
        assert answer(site, lambda: READERS[name](site)) in REPLICAS

    def test_same_replica(self, site: Site, name: str) -> None:
        """Every way to read uses the one replica of its request."""

        def both() -> list[str]:
            return [READERS[name](site), site.who(), READERS[name](site)]

        for _ in REPLICAS:
            with site.app.test_request_context():
                assert len(set(both())) == 1
        assert set(site.seen) == set(REPLICAS)


@pytest.mark.filterwarnings("ignore:'get_engine' is deprecated:DeprecationWarning")
def test_get_engine(site: Site) -> None:
    """The deprecated db.get_engine() is routed like db.engine."""
    assert answer(site, lambda: core(site.db.get_engine())) in REPLICAS
    with site.app.app_context():
        assert core(site.db.get_engine()) == "master"


def savepoint(s: Site) -> None:
    """Write inside a savepoint, after a read."""
    s.who()
    with s.db.session.begin_nested():
        s.db.session.add(s.entry(text="new"))


def add_and_flush(s: Site) -> None:
    """Leave a new object to the flush of the commit."""
    s.db.session.add(s.entry(text="new"))


WRITERS: dict[str, Callable[[Site], Any]] = {
    "flush": add_and_flush,
    "bulk_save_objects": lambda s: s.db.session.bulk_save_objects(
        [s.entry(text="new")]
    ),
    "bulk_insert_mappings": lambda s: s.db.session.bulk_insert_mappings(
        s.entry, [{"text": "new"}]
    ),
    "insert": lambda s: s.db.session.execute(sa.insert(s.entry).values(text="new")),
    "insert bulk": lambda s: s.db.session.execute(
        sa.insert(s.entry), [{"text": "new"}]
    ),
    "insert returning": lambda s: s.db.session.scalars(
        sa.insert(s.entry).returning(s.entry), [{"text": "new"}]
    ).one(),
    "insert core": lambda s: s.db.session.execute(
        sa.insert(s.entry.__table__), {"text": "new"}
    ),
    "text": lambda s: s.db.session.execute(
        sa.text("/* SELECT */ INSERT INTO entry (text) VALUES ('new')")
    ),
    "text scalars": lambda s: s.db.session.scalars(
        sa.text("INSERT INTO entry (text) VALUES ('new') RETURNING id")
    ).all(),
    "connection": lambda s: s.db.session.connection().exec_driver_sql(
        "INSERT INTO entry (text) VALUES ('new')"
    ),
    "savepoint": savepoint,
}


def write_and_commit(s: Site, name: str) -> None:
    """Write in one of the ways."""
    WRITERS[name](s)
    s.db.session.commit()


class TestWaysToWrite:
    """A write reaches the primary however it is written."""

    @pytest.mark.parametrize("name", WRITERS)
    def test_get(self, site: Site, name: str) -> None:
        """Every way to write reaches the primary, in a GET that has read too."""

        def write() -> str:
            site.who()
            WRITERS[name](site)
            site.db.session.commit()
            return "done"

        answer(site, write)
        assert site.entries() == ["new"]
        assert [site.entries(replica) for replica in REPLICAS] == [[], [], []]

    @pytest.mark.parametrize("synchronize", ["fetch", "evaluate", "auto", False])
    def test_update_and_delete(self, site: Site, synchronize: Any) -> None:
        """ORM updates and deletes with criteria reach the primary."""
        with site.app.app_context():
            site.write("one")
            site.write("two")

        def change() -> str:
            options = {"synchronize_session": synchronize}
            entry, session = site.entry, site.db.session
            update = sa.update(entry).where(entry.id == 1).values(text="changed")
            session.execute(update, execution_options=options)
            delete = sa.delete(entry).where(entry.id == 2)
            session.execute(delete, execution_options=options)
            session.execute(sa.update(entry), [{"id": 1, "text": "by key"}])
            session.commit()
            return "done"

        answer(site, change)
        assert site.entries() == ["by key"]

    def test_object_from_a_replica(self, site: Site) -> None:
        """An object that a replica gave is changed on the primary."""
        for name in ("master", *REPLICAS):
            engine = sa.create_engine(f"sqlite:///{site.folder}/{name}.db")
            with engine.begin() as made:
                made.exec_driver_sql("INSERT INTO entry VALUES (7, 'old')")
            engine.dispose()

        def change() -> str:
            entry = site.db.get_or_404(site.entry, 7)
            entry.text = "new"
            site.db.session.commit()
            return str(entry.text)

        assert answer(site, change) == "new"
        assert site.entries() == ["new"]
        assert site.entries("slave_1") == ["old"]

    def test_engine_begin(self, site: Site) -> None:
        """``db.engine.begin()`` announces a write: it reaches the primary."""

        def write() -> str:
            with site.db.engine.begin() as connection:
                connection.execute(sa.insert(site.entry), {"text": "new"})
            return site.who()

        assert answer(site, write) == "master"
        assert site.entries() == ["new"]

    def test_raw_connection(self, site: Site) -> None:
        """``db.engine.raw_connection()`` cannot be followed: it is the primary's."""

        def read() -> str:
            raw = site.db.engine.raw_connection()
            try:
                cursor = raw.cursor()
                cursor.execute("SELECT name FROM marker")
                return str(cursor.fetchone()[0])  # type: ignore[index]  # one row
            finally:
                raw.close()

        assert answer(site, read) == "master"


class TestReplicasRefuse:
    """A replica is never written to."""

    def test_session(self, site: Site) -> None:
        """A write inside using_slave() is refused, with the view and both ways out."""

        def write() -> str:
            with using_slave(), pytest.raises(WriteOnReplicaError) as caught:
                WRITERS["insert"](site)
            return str(caught.value)

        message = answer(site, write)
        assert "'view'" in message
        assert "@changes_database" in message
        assert "using_master()" in message
        assert "INSERT INTO entry" in message
        assert site.entries() == []

    @pytest.mark.parametrize("name", WRITERS)
    def test_every_way(self, site: Site, name: str) -> None:
        """No way to write gets past using_slave()."""
        with site.app.test_request_context(), using_slave():
            with pytest.raises(WriteOnReplicaError):
                write_and_commit(site, name)
            site.db.session.rollback()
        assert [site.entries(n) for n in ("master", *REPLICAS)] == [[], [], [], []]

    def test_core(self, site: Site) -> None:
        """A Core connection to a replica refuses to write before it sends."""
        with site.app.test_request_context(), site.db.engine.connect() as connection:
            with pytest.raises(WriteOnReplicaError):
                connection.execute(sa.insert(site.entry), {"text": "new"})
            assert connection.scalar(sa.select(site.marker.name)) in REPLICAS

    @pytest.mark.parametrize("name", REPLICAS)
    def test_server(self, site: Site, name: str) -> None:
        """What classification cannot see the replica's server refuses."""
        with (
            site.app.app_context(),
            site.db.engines[name].connect() as connection,
            pytest.raises(OperationalError, match="readonly"),
        ):
            connection.exec_driver_sql("INSERT INTO entry (text) VALUES ('new')")


class TestGetBind:
    """What somebody gets who asks a session for its bind."""

    def test_is_an_engine(self, site: Site) -> None:
        """It stands for the primary, whatever the session has done."""
        with site.app.test_request_context():
            primary = site.db.session.get_bind()
            assert isinstance(primary, sa.Engine)
            assert primary == site.db.engine.real  # type: ignore[attr-defined]  # the routed engine
            assert core(primary) == "master"
            site.who()
            assert site.db.session.get_bind() is primary
            site.db.session.add(site.entry(text="one"))
            site.db.session.flush()
            assert site.db.session.get_bind() is primary
            with using_slave():
                replicas = site.db.session.get_bind()
                assert isinstance(replicas, sa.Engine)
                assert core(replicas) in REPLICAS

    def test_outside_a_request(self, site: Site) -> None:
        """It is db.engine, until the session's transaction has begun."""
        with site.app.app_context():
            session, ask = site.db.session, {"mapper": site.entry}
            assert session.get_bind() is session.get_bind(**ask) is site.db.engine
            session.add(site.entry(text="one"))
            session.flush()
            assert site.db.engine is not session.get_bind()
            assert session.get_bind() == site.db.engine.real  # type: ignore[attr-defined]  # the routed engine

    @pytest.mark.parametrize("method", ["GET", "POST", None])
    def test_serves_another_session(self, site: Site, method: str | None) -> None:
        """A plain session that is bound to it sees its own rows, in one transaction."""
        app = site.app
        context: Any = app.app_context()
        if method is not None:
            context = app.test_request_context(method=method)
        with context:
            for ask in ({}, {"mapper": site.entry}):
                with sa.orm.Session(bind=site.db.session.get_bind(**ask)) as other:
                    before = len(other.scalars(sa.select(site.entry)).all())
                    other.add(site.entry(text="one"))
                    other.flush()
                    assert len(other.scalars(sa.select(site.entry)).all()) == before + 1
                    other.rollback()
        assert site.entries() == []

    def test_given_back(self, site: Site) -> None:
        """Given back as a statement's bind it means the connection that is there."""
        with site.app.test_request_context():
            bound = {"bind": site.db.session.get_bind()}
            session = site.db.session
            session.add(site.entry(text="one"))
            session.flush()
            found = session.scalars(sa.select(site.entry), bind_arguments=bound)
            assert len(found.all()) == 1
