"""The test kit on MariaDB: one server stands for all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from flask_replicated import WriteOnReplicaError, using_slave
from flask_replicated.testing import mirror
from tests.kit.contract import MirrorContract
from tests.kit.shop import Shop, isolated, make_shop

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.mariadb.conftest import Servers

pytestmark = pytest.mark.mariadb

NOWHERE = "mariadb+pymysql://nobody@127.0.0.1:1/nothing"
HIDDEN = sa.text("SELECT kit_slip()")
SLIP = sa.text(
    "CREATE OR REPLACE FUNCTION kit_slip() RETURNS INT DETERMINISTIC MODIFIES SQL DATA "
    "BEGIN INSERT INTO kit_guest (name) VALUES (uuid()); RETURN 1; END"
)


class TestMariaDB(MirrorContract):
    """A real server, and replicas that cannot be reached."""

    @pytest.fixture
    def shop(self, servers: Servers) -> Iterator[Shop]:
        """Give a shop with two replicas."""
        binds = {f"slave_{n}": NOWHERE for n in (1, 2)}
        servers.primary.execute("CREATE OR REPLACE DATABASE kit")
        shop = make_shop(servers.primary.url(database="kit"), binds)
        yield shop
        shop.close()
        servers.primary.execute("DROP DATABASE kit")

    def test_a_hidden_write(self, shop: Shop) -> None:
        """The server refuses it, except inside a test's own transaction."""
        with shop.app.app_context():
            shop.db.session.execute(SLIP)
            shop.db.session.commit()
        with mirror(shop.app), shop.app.app_context():
            for _ in range(2):  # the connection is as it was for the next one
                with using_slave(), pytest.raises(WriteOnReplicaError):
                    shop.db.session.execute(HIDDEN)
                shop.db.session.rollback()
                assert shop.names() == []
                shop.db.session.execute(HIDDEN)
                shop.db.session.rollback()
            with isolated(shop):
                with using_slave():
                    shop.db.session.execute(HIDDEN)
                shop.db.session.remove()
        with shop.app.app_context():
            shop.db.session.execute(sa.text("DROP FUNCTION kit_slip"))
