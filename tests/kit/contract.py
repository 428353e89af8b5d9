"""What holds under ``mirror()`` on any database."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier, Event
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from flask_replicated import WriteOnReplicaError, using_slave
from flask_replicated.testing import (
    assert_served,
    mirror,
    recorded_decisions,
    replica_down,
)
from tests.kit.shop import isolated

if TYPE_CHECKING:
    from collections.abc import Callable

    from flask_replicated import FlaskReplicated
    from tests.kit.shop import Shop


class MirrorContract:
    """Tests for a fixture ``shop``: an application with replicas, or with none."""

    def test_roles(self, shop: Shop) -> None:
        """Reads go to replicas, writes and pinned clients to the primary."""
        client = shop.client()
        with mirror(shop.app):
            with assert_served(replica=1, app=shop.app):
                assert shop.names(client) == []
            with assert_served(primary=1, app=shop.app):
                assert client.post("/Ada").json == ["Ada"]
            with assert_served(primary=1, app=shop.app):
                assert shop.names(client) == ["Ada"]
            with assert_served(replica=1, app=shop.app):
                assert shop.names() == ["Ada"]

    def test_which_application(self, shop: Shop) -> None:
        """Inside a mirror the other blocks are about its application."""
        with mirror(shop.app), mirror(shop.app):
            with assert_served(replica=1) as reads:
                assert shop.names() == []
            (name,) = [read.replica or "" for read in reads]
            with replica_down(name), assert_served(replica=2) as reads:
                assert shop.names() == shop.names() == []
            assert name not in {read.replica for read in reads}
        with pytest.raises(RuntimeError, match=r"or give it app=app"):
            assert_served().__enter__()

    def test_writes_are_refused(self, shop: Shop) -> None:
        """A write inside using_slave() raises, in a request and outside."""
        with mirror(shop.app):
            with pytest.raises(WriteOnReplicaError):
                shop.client().get("/report")
            with shop.app.app_context(), using_slave():
                shop.db.session.add(shop.guest(name="Ada"))
                with pytest.raises(WriteOnReplicaError):
                    shop.db.session.flush()
            assert shop.names() == []

    def test_the_server_refuses_as_well(self, shop: Shop) -> None:
        """A replica's connection takes no write that goes past all other checks."""
        with mirror(shop.app):
            with shop.app.app_context():
                pool = shop.app.extensions["replicated"].pool()
            connection = pool.pick().target.raw_connection()
            cursor = connection.cursor()
            with pytest.raises(Exception, match=r"(?i)read[- ]?only"):
                cursor.execute("INSERT INTO kit_guest (name) VALUES ('Ada')")
            cursor.close()
            connection.close()
            assert shop.names() == []

    def test_inside_a_transaction(self, shop: Shop) -> None:
        """All see what a test's transaction has written, until it is rolled back."""
        for every in (False, True):  # the second time as if nothing had been
            with mirror(shop.app), isolated(shop, every=every):
                with shop.app.app_context():
                    shop.db.session.add(shop.guest(name="Ada"))
                    shop.db.session.commit()
                client = shop.client()
                with assert_served(replica=1, app=shop.app):
                    assert shop.names(client) == ["Ada"]
                with assert_served(primary=1, app=shop.app):
                    assert client.post("/Bob").json == ["Ada", "Bob"]
                with assert_served(primary=1, replica=1, app=shop.app):
                    assert shop.names(client) == shop.names() == ["Ada", "Bob"]
                with pytest.raises(WriteOnReplicaError):
                    client.get("/report")
            assert shop.names() == []

    def test_a_transaction_from_before(self, shop: Shop) -> None:
        """The test's transaction may be older than the mirror."""
        with isolated(shop):
            with mirror(shop.app):
                client = shop.client()
                with assert_served(primary=2, app=shop.app):
                    assert client.post("/Ada").json == shop.names(client) == ["Ada"]
                with assert_served(replica=1, app=shop.app):
                    assert shop.names() == ["Ada"]
            assert shop.names() == ["Ada"]
        assert shop.names() == []

    def test_a_request_context_around(self, shop: Shop) -> None:
        """A test that is a request itself reads from a replica until it writes."""
        with mirror(shop.app), isolated(shop), shop.app.test_request_context("/"):
            session, count = shop.db.session, sa.select(sa.func.count(shop.guest.id))
            with assert_served(replica=1):
                assert session.scalar(count) == 0
                session.commit()
            session.add(shop.guest(name="Ada"))
            session.flush()
            assert session.scalar(count) == 1
            session.commit()
            with assert_served(primary=1):
                assert session.scalar(count) == 1
            session.rollback()
            with assert_served(replica=1):  # of this request's session, which it shares
                assert shop.names() == ["Ada"]

    def test_a_request_that_goes_on(self, shop: Shop) -> None:
        """A request around the block goes on reading after it."""
        count = sa.select(sa.func.count(shop.guest.id))
        with shop.app.test_request_context("/"):
            session = shop.db.session
            with mirror(shop.app):
                assert session.scalar(count) == 0
            assert session.scalar(count) == 0
            session.rollback()
            session.add(shop.guest(name="Ada"))
            session.commit()
            assert session.scalar(count) == 1

    def test_a_transaction_that_ends(self, shop: Shop) -> None:
        """A session that is still open when the test's transaction ends is no harm."""
        with mirror(shop.app), shop.app.app_context():
            with isolated(shop):
                shop.db.session.add(shop.guest(name="Ada"))
                shop.db.session.flush()
                with using_slave():
                    assert shop.db.session.scalar(sa.select(shop.guest.name)) == "Ada"
            shop.db.session.rollback()
            with using_slave():
                assert shop.db.session.scalar(sa.select(shop.guest.name)) is None

    def test_no_transaction(self, shop: Shop) -> None:
        """On a connection without a transaction, sessions commit for good."""
        with shop.app.app_context():
            engines: Any = shop.db.engines
            engine = shop.db.engine
        with mirror(shop.app), engine.connect() as connection:
            engines[None] = connection
            assert shop.client().post("/twice/Ada").json == ["Ada"]
            assert shop.names() == ["Ada"]
            connection.rollback()
            engines[None] = engine
            assert shop.names() == ["Ada"]

    @pytest.mark.parametrize("inside", [False, True])
    def test_rollbacks(self, shop: Shop, inside: bool) -> None:
        """A rollback undoes the transaction of its session, and no more."""
        with mirror(shop.app):
            if inside:
                with isolated(shop):
                    assert shop.client().post("/twice/Ada").json == ["Ada"]
                    assert shop.names() == ["Ada"]
                assert shop.names() == []
            else:
                assert shop.client().post("/twice/Ada").json == ["Ada"]
                assert shop.names() == ["Ada"]

    def test_a_read_that_fails(self, shop: Shop) -> None:
        """A failed read breaks nothing of what is being written."""
        with mirror(shop.app), isolated(shop), shop.app.test_request_context("/"):
            session = shop.db.session
            session.add(shop.guest(name="Ada"))
            session.flush()
            with using_slave(), pytest.raises(sa.exc.DBAPIError):
                session.execute(sa.text("SELECT nothing FROM kit_guest"))
            session.commit()
            assert shop.names() == ["Ada"]

    def test_savepoints(self, shop: Shop) -> None:
        """A session's savepoints work where it has read from a replica, too."""
        with mirror(shop.app), isolated(shop), shop.app.test_request_context("/"):
            session = shop.db.session
            assert session.scalars(sa.select(shop.guest.name)).all() == []
            session.add(shop.guest(name="Ada"))
            with session.begin_nested():
                session.add(shop.guest(name="Bob"))
            nested = session.begin_nested()
            session.add(shop.guest(name="Eve"))
            session.flush()
            nested.rollback()
            session.commit()
            assert shop.names() == ["Ada", "Bob"]

    def test_factory_boy(self, shop: Shop) -> None:
        """What factory_boy makes is there for requests."""
        factory, guest = pytest.importorskip("factory"), shop.guest

        class GuestFactory(factory.alchemy.SQLAlchemyModelFactory):  # type: ignore[name-defined,misc]  # it may not be installed
            class Meta:
                model = guest
                sqlalchemy_session_factory = lambda: shop.db.session  # noqa: E731
                sqlalchemy_session_persistence = "commit"

            name = factory.Sequence(lambda number: f"guest {number}")

        with mirror(shop.app), isolated(shop):
            with shop.app.app_context():
                names = [one.name for one in GuestFactory.create_batch(2)]
            with assert_served(replica=1, app=shop.app):
                assert shop.names() == names
        assert shop.names() == []

    def test_core(self, shop: Shop) -> None:
        """Code with a connection of the engine's sees the same."""
        with mirror(shop.app):
            with shop.app.app_context():
                engine: Any = shop.db.engine
                with engine.begin() as connection:
                    connection.execute(sa.insert(shop.guest).values(name="Ada"))
            with (
                shop.app.test_request_context("/"),
                assert_served(replica=1),
                engine.connect() as connection,
            ):
                found = connection.scalars(sa.select(shop.guest.name)).all()
            assert found == ["Ada"]

    def test_pools_that_are_made_anew(self, shop: Shop) -> None:
        """Connection pools may be copied and disposed of inside a mirror."""
        with mirror(shop.app):
            shop.client().post("/Ada")
            with shop.app.app_context():
                engines = list(shop.db.engines.values())
            for engine in engines:
                if not isinstance(engine.pool, sa.StaticPool):  # its database would end
                    engine.pool.recreate().dispose()
                    assert shop.names() == ["Ada"]
                    engine.dispose()
            assert shop.names() == ["Ada"]

    def test_failover(self, shop: Shop) -> None:
        """A replica that is out is left out, and the other one shows the same."""
        with mirror(shop.app), isolated(shop):
            shop.client().post("/Ada")
            with (
                replica_down("slave_1", app=shop.app),
                assert_served(replica=3, app=shop.app) as reads,
            ):
                assert [shop.names() for _ in range(3)] == 3 * [["Ada"]]
            assert {one.replica for one in reads} == {"slave_2"}

    def test_as_before(self, shop: Shop) -> None:
        """Afterwards, also after an error, everything is as it was."""
        before = state(shop)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError), mirror(shop.app):
                fail_inside(shop)
            assert state(shop) == before
        shop.client().post("/Ada")
        assert shop.names() == ["Ada"]

    def test_a_replica_that_is_added(self, shop: Shop) -> None:
        """A replica that is added inside the block shows the same as the others."""
        extension: FlaskReplicated = shop.app.extensions["replicated"]
        before = state(shop)
        url = url_of_none(shop)

        def add_and_read() -> None:
            with shop.app.app_context():
                extension.add("slave_3", url)
            with isolated(shop):
                shop.client().post("/Ada")
                with recorded_decisions(shop.app) as reads:
                    assert [shop.names() for _ in range(3)] == 3 * [["Ada"]]
                served = {one.replica for one in reads}
                assert served == {"slave_1", "slave_2", "slave_3"}
            with shop.app.app_context():
                if "slave_1" in shop.db.engines:  # else it goes with the others
                    extension.remove("slave_3")

        for _ in range(2):
            with mirror(shop.app):
                add_and_read()
            assert state(shop) == before

    def test_threads(self, shop: Shop) -> None:
        """Two threads may have a block each, which end in any order."""
        before = state(shop)
        both, one_left = Barrier(2, timeout=30), Event()

        def read(wait: Callable[[], object]) -> list[str]:
            with mirror(shop.app):
                both.wait()
                names = shop.names()
                wait()
                return names + shop.names()

        with ThreadPoolExecutor(2) as pool:
            later = pool.submit(read, partial(one_left.wait, 30))
            sooner = pool.submit(read, lambda: None)
            assert sooner.result(30) == []
            one_left.set()
            assert later.result(30) == []
        assert state(shop) == before


def url_of_none(shop: Shop) -> str:
    """Return the URL of a server of the shop's driver that is not there."""
    with shop.app.app_context():
        url: sa.URL = shop.db.engine.url
    database = url.database if url.host else "nowhere.db"
    found = url.set(database=f"{database}_none", port=1 if url.host else None)
    return found.render_as_string(hide_password=False)


def fail_inside(shop: Shop) -> None:
    """Raise an error in another block within a block."""
    with mirror(shop.app):
        assert shop.names() == []
    assert shop.names() == []
    raise ZeroDivisionError


def state(shop: Shop) -> dict[str, object]:
    """Return what a mirror changes of an application."""
    with shop.app.app_context():
        engines = dict(shop.db.engines)
    return {
        "engines": engines,
        "pools": {key: id(engine.pool) for key, engine in engines.items()},
        "routes": dict(shop.app.extensions["replicated"].state(shop.app).routes),
        "settings": shop.app.extensions["replicated"].state(shop.app).settings,
        "wsgi_app": shop.app.wsgi_app,
        "functions": repr(shop.app.after_request_funcs.get(None, [])),
    }
