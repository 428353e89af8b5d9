"""What is done with a driver's own connection to a real primary."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import pin_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from examples.cluster import Cluster
    from tests.postgres.support import Build, Site

pytestmark = pytest.mark.postgres

COPY = "copy item (text) from stdin"


def copy_in(connection: Any, driver: str) -> None:
    """Copy one row into the table, each driver in its way."""
    with closing(connection.cursor()) as cursor:
        if driver == "psycopg":
            with cursor.copy(COPY) as copy:
                copy.write_row(["copied"])
        else:
            lines = iter(["copied\n", ""])
            cursor.copy_expert(COPY, type("File", (), {"read": lambda *_: next(lines)}))


def by_session(site: Site, driver: str) -> None:
    """Copy in the session's transaction."""
    copy_in(site.db.session.connection().connection, driver)
    site.db.session.commit()


def by_autocommit(site: Site, driver: str) -> None:
    """Copy where each statement is committed at once."""
    options = {"isolation_level": "AUTOCOMMIT"}
    connection = site.db.session.connection(execution_options=options)
    copy_in(connection.connection, driver)
    site.db.session.rollback()


def by_engine(site: Site, driver: str) -> None:
    """Copy on a connection that the engine gives out."""
    with closing(site.db.engine.raw_connection()) as raw:
        copy_in(raw, driver)
        raw.commit()


@pytest.mark.parametrize("way", [by_session, by_autocommit, by_engine])
def test_copy(
    build: Build,
    healthy_cluster: Cluster,
    driver: str,
    way: Callable[[Site, str], None],
) -> None:
    """A COPY from the program ties its request and its client to the primary."""
    site = build(REPLICATED_PIN_SECONDS=120)

    def view() -> dict[str, list[str]]:
        way(site, driver)
        return {"servers": [site.who().server], "texts": site.texts()}

    site.app.add_url_rule("/copy", "copy", view)
    client = site.client()
    assert site.get(client, "/copy") == (["primary"], ["copied"])
    rows = healthy_cluster.primary.execute("select text from item")
    assert rows == [("copied",)]
    assert site.get(client) == (["primary", "primary"], ["copied"])
    assert site.get().servers[0] != "primary"


@pytest.mark.parametrize("twophase", [False, True])
def test_own_use(build: Build, healthy_cluster: Cluster, *, twophase: bool) -> None:
    """What SQLAlchemy and the driver's dialect do themselves pins nobody."""
    allowed = healthy_cluster.primary.execute("show max_prepared_transactions")
    if twophase and allowed == [("0",)]:
        pytest.skip("max_prepared_transactions is 0")
    site = build(twophase=twophase)

    def view() -> str:
        connection = site.db.session.connection()
        connection.get_isolation_level()
        with site.db.session.begin_nested():
            server = site.who().server
        site.db.session.commit()
        return server

    site.app.add_url_rule("/read", "read", view, methods=["POST"])
    response = site.client().post("/read")
    assert response.text == "primary"
    assert pin_of(response) is None
