"""The test kit on PostgreSQL: one server stands for all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from flask_replicated import WriteOnReplicaError, using_slave
from flask_replicated.testing import assert_served, mirror
from tests.kit.contract import MirrorContract
from tests.kit.shop import Shop, isolated, make_shop
from tests.postgres.support import bind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from examples.cluster import Cluster

pytestmark = pytest.mark.postgres

NOWHERE = "postgresql+{}://nobody@127.0.0.1:1/nothing"


class TestPostgreSQL(MirrorContract):
    """A real server, and replicas that cannot be reached."""

    @pytest.fixture
    def shop(self, cluster: Cluster, driver: str) -> Iterator[Shop]:
        """Give a shop with two replicas."""
        binds = {f"slave_{n}": NOWHERE.format(driver) for n in (1, 2)}
        shop = make_shop(bind(cluster.primary, driver), binds)
        yield shop
        shop.close()

    def test_a_hidden_write(self, shop: Shop) -> None:
        """The server refuses what only it recognises, and the transaction goes on."""
        hidden = sa.text(
            "CREATE FUNCTION kit_slip() RETURNS void LANGUAGE sql AS "
            "$$ INSERT INTO kit_guest (name) VALUES ('slipped') $$"
        )
        calls = sa.text("SELECT kit_slip() FROM generate_series(1, 2)")
        with mirror(shop.app), isolated(shop), shop.app.app_context():
            session = shop.db.session
            session.execute(hidden)
            session.add(shop.guest(name="Ada"))
            session.flush()
            with using_slave(), pytest.raises(WriteOnReplicaError):
                session.execute(calls)
            session.commit()
            assert shop.names() == ["Ada"]

    def test_cursors_of_the_server(self, shop: Shop) -> None:
        """A result that is still being read survives the statements around it."""
        with mirror(shop.app), isolated(shop):
            with shop.app.app_context():
                shop.db.session.add_all(shop.guest(name=f"{n}") for n in range(30))
                shop.db.session.commit()
            with shop.app.test_request_context("/"), assert_served(replica=1):
                names = sa.select(shop.guest.name).order_by(shop.guest.id)
                found = shop.db.session.scalars(names.execution_options(yield_per=5))
                assert next(found) == "0"
                assert shop.db.session.scalars(names.limit(1)).one() == "0"
                assert len(found.all()) == 29


@pytest.mark.parametrize("replicas", [(), ("slave_1", "slave_2")])
def test_asyncpg(cluster: Cluster, replicas: tuple[str, ...]) -> None:
    """Async sessions over asyncpg are mirrored, too."""
    pytest.importorskip("asyncpg")
    lite = pytest.importorskip("tests.kit.test_lite")
    nowhere = dict.fromkeys(replicas, NOWHERE.format("asyncpg"))
    lite.visit_async(cluster.primary.url("postgresql+asyncpg"), nowhere)
