"""A replica's connection is read-only for the server too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError

from flask_replicated import WriteOnReplicaError, using_slave
from tests.postgres.support import bind

if TYPE_CHECKING:
    from collections.abc import Callable

    from examples.cluster import Cluster
    from tests.postgres.support import Build, Site

pytestmark = pytest.mark.postgres


def by_text(site: Site) -> None:
    """Write by a function in a textual statement."""
    with using_slave():
        site.db.session.execute(text("select slip()"))


def by_construct(site: Site) -> None:
    """Write by a function in a ``select()``."""
    with using_slave():
        site.db.session.execute(select(func.slip()))


def by_connection(site: Site) -> None:
    """Write by a function on the session's connection."""
    with using_slave():
        site.db.session.connection().execute(text("select slip()"))


def by_engine(site: Site) -> None:
    """Write by a function on a connection of the engine."""
    with using_slave(), site.db.engine.connect() as connection:
        connection.execute(text("select slip()"))


def by_driver_sql(site: Site) -> None:
    """Write by a function in the driver's own SQL."""
    with using_slave(), site.db.engine.connect() as connection:
        connection.exec_driver_sql("select slip()")


def after_rollback(site: Site) -> None:
    """Write by a function in the second transaction of a connection."""
    with using_slave(), site.db.engine.connect() as connection:
        connection.execute(text("select 1"))
        connection.rollback()
        connection.execute(text("select slip()"))


WRITES: tuple[Callable[[Site], None], ...] = (
    by_text,
    by_construct,
    by_connection,
    by_engine,
    by_driver_sql,
    after_rollback,
)


def code_of(error: WriteOnReplicaError) -> str:
    """Return the server's code for its refusal, whatever the driver calls it."""
    cause: Any = error.__cause__
    return str(getattr(cause, "sqlstate", None) or cause.pgcode)


@pytest.mark.parametrize(
    "options",
    [{}, {"isolation_level": "AUTOCOMMIT"}, {"isolation_level": "REPEATABLE READ"}],
    ids=["default", "autocommit", "repeatable_read"],
)
def test_primary_as_replica(
    build: Build, healthy_cluster: Cluster, driver: str, options: dict[str, str]
) -> None:
    """A hidden write is refused even by a replica that is in truth the primary."""
    primary = healthy_cluster.primary
    site = build(
        {"slave_1": {"url": bind(primary, driver), **options}},
        REPLICATED_ROLE_CHECK=False,
    )

    def view(number: int) -> str:
        with pytest.raises(WriteOnReplicaError) as caught:
            WRITES[number](site)
        site.db.session.rollback()
        return code_of(caught.value)

    site.app.add_url_rule("/write/<int:number>", "write", view)
    for number in [*range(len(WRITES))] * 2:
        assert site.client().get(f"/write/{number}").text == "25006"
    assert primary.execute("select text from item") == []
    assert site.checked_out() == 0


def test_primary_stays_writable(
    build: Build, healthy_cluster: Cluster, driver: str
) -> None:
    """The same server takes writes through the primary's connections."""
    site = build({"slave_1": bind(healthy_cluster.primary, driver)})
    for number in range(3):
        site.get()
        site.post(str(number))
    rows = healthy_cluster.primary.execute("select text from item order by id")
    assert rows == [("0",), ("1",), ("2",)]


def test_hidden_write_is_repeated(build: Build, healthy_cluster: Cluster) -> None:
    """A hidden write that comes first in a request is done by the primary, once."""
    site = build(REPLICATED_PIN="time", REPLICATED_PIN_SECONDS=120)

    def slip() -> dict[str, list[str]]:
        site.db.session.execute(text("select slip()"))
        site.db.session.commit()
        return {"servers": [site.who().server], "texts": site.texts()}

    site.app.add_url_rule("/slip", "slip", slip)
    for number in range(1, 4):
        client = site.client()
        answer = site.get(client, "/slip")
        assert answer.servers == ["primary"]
        assert answer.texts == ["slipped"] * number
        assert site.get(client).servers == ["primary", "primary"]
    rows = healthy_cluster.primary.execute("select text from item")
    assert rows == [("slipped",)] * 3


def test_late_hidden_write_is_refused(build: Build, healthy_cluster: Cluster) -> None:
    """A hidden write after a read of the same transaction is refused at first."""
    site = build()

    def slip() -> str:
        site.who()
        with pytest.raises(WriteOnReplicaError) as caught:
            site.db.session.execute(text("select slip()"))
        return code_of(caught.value)

    site.app.add_url_rule("/slip", "slip", slip)
    assert site.client().get("/slip").text == "25006"
    assert healthy_cluster.primary.execute("select text from item") == []


def test_changed_sessions_are_left_to_nobody(
    build: Build, healthy_cluster: Cluster
) -> None:
    """What a user has set on a replica's session does not reach the next one."""
    site = build()
    for _ in range(3):
        with site.app.test_request_context(), using_slave():
            site.db.session.execute(text("set application_name = 'left behind'"))
            site.db.session.commit()
    for _ in range(6):
        with site.app.test_request_context():
            name = site.db.session.scalar(
                text("select current_setting('application_name')")
            )
            assert name != "left behind"


@pytest.mark.parametrize(
    ("sql", "kept"),
    [
        ("set local statement_timeout = 1000", True),
        ("set transaction isolation level repeatable read", True),
        ("set local statement_timeout = 1000; set datestyle = 'German'", False),
        ("set statement_timeout = 1000", False),
    ],
)
def test_local_settings_cost_no_connection(
    build: Build, healthy_cluster: Cluster, sql: str, kept: bool
) -> None:
    """What ends with its transaction leaves nothing behind."""
    url = bind(healthy_cluster.standbys[0], "psycopg")
    one = {"url": url, "pool_size": 1, "max_overflow": 0}
    site = build(dict.fromkeys(("slave_1", "slave_2", "slave_3"), one))
    own = text("select pg_backend_pid()")

    def backend(*before: str) -> object:
        with site.app.test_request_context(), using_slave():
            for statement in before:
                site.db.session.execute(text(statement))
            return site.db.session.scalar(own)

    seen = {backend(sql) for _ in range(6)}
    assert (len(seen) <= 3) is kept


def test_setting_named_by_a_parameter(build: Build, healthy_cluster: Cluster) -> None:
    """A session is not made to write by set_config() either."""
    site = build(
        {"slave_1": bind(healthy_cluster.primary, "psycopg")},
        REPLICATED_ROLE_CHECK=False,
    )
    name = "default_transaction_read_only"
    with (
        site.app.test_request_context(),
        using_slave(),
        site.db.engine.connect() as connection,
        pytest.raises(WriteOnReplicaError),
    ):
        connection.scalar(select(func.set_config(name, "off", False)))


def test_own_read_only_transaction(
    build: Build, healthy_cluster: Cluster, driver: str
) -> None:
    """A program that made its transaction read only keeps its connection."""
    site = build({"slave_1": bind(healthy_cluster.standbys[0], driver)})

    def view() -> str:
        site.db.session.execute(text("set transaction read only"))
        with pytest.raises(DBAPIError), site.db.session.begin_nested():
            site.db.session.execute(text("insert into item (text) values ('x')"))
        return str(site.db.session.scalar(text("select 42")))

    site.app.add_url_rule("/own", "own", view, methods=["POST"])
    assert site.client().post("/own").text == "42"
