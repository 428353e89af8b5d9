"""What is asked of a connection for a while leaves nothing behind for its next user."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import InvalidRequestError

from flask_replicated import WriteOnReplicaError, using_master, using_slave
from tests.postgres.support import bind

if TYPE_CHECKING:
    from collections.abc import Callable

    from examples.cluster import Cluster
    from tests.postgres.support import Build, Site

pytestmark = pytest.mark.postgres

ONE = {"pool_size": 1, "max_overflow": 0}
LAZY = pytest.mark.parametrize("lazy", [True, False], ids=["lazy", "eager"])
OPTIONS = pytest.mark.parametrize(
    "options",
    [
        {"postgresql_readonly": True},
        {"postgresql_readonly": False},
        {"postgresql_readonly": True, "postgresql_deferrable": True},
        {"postgresql_readonly": True, "isolation_level": "REPEATABLE READ"},
        {"postgresql_readonly": True, "isolation_level": "AUTOCOMMIT"},
        {"isolation_level": "AUTOCOMMIT"},
    ],
    ids=lambda options: "-".join(f"{key}={value}" for key, value in options.items()),
)


@pytest.fixture
def make(build: Build, healthy_cluster: Cluster, driver: str) -> Callable[..., Site]:
    """Give a function that makes an application with one connection to a standby."""

    def make(lazy: bool, **more: Any) -> Site:
        one = {"url": bind(healthy_cluster.standbys[0], driver), **ONE, **more}
        return build({"slave_1": one}, REPLICATED_LAZY_BEGIN=lazy)

    return make


def ask(site: Site, options: dict[str, Any]) -> int:
    """Read in a request that asks for options, and return the backend."""
    with site.app.test_request_context(), using_slave():
        site.db.session.connection(execution_options=options)
        assert site.db.session.scalar(select(func.now())) is not None
        return site.who().pid


def read_on(site: Site, *, in_block: bool = True) -> int:
    """Read in ways that need a block, or may have one, and return the backend."""
    with site.app.test_request_context(), using_slave():
        session = site.db.session
        assert session.scalar(select(func.now())) is not None
        if in_block:
            with session.begin_nested():
                session.execute(select(1))
        session.rollback()
        assert session.scalar(text("show transaction_read_only")) == "on"
        return site.who().pid


@LAZY
@OPTIONS
def test_next_user(
    make: Callable[..., Site], lazy: bool, options: dict[str, Any]
) -> None:
    """Options that one request asks for fail no read of the next one."""
    site = make(lazy)
    backends = set()
    for _ in range(2):
        backends |= {ask(site, options), read_on(site)}
    assert len(backends) == 1


@LAZY
@OPTIONS
def test_guard_holds(
    build: Build,
    healthy_cluster: Cluster,
    driver: str,
    lazy: bool,
    options: dict[str, Any],
) -> None:
    """No option lets a connection write, nor its next user, were it to the primary."""
    primary = healthy_cluster.primary
    site = build(
        {"slave_1": {"url": bind(primary, driver), **ONE}},
        REPLICATED_LAZY_BEGIN=lazy,
        REPLICATED_ROLE_CHECK=False,
    )
    session = site.db.session
    for asked in (options, {}) * 2:
        with site.app.test_request_context(), using_slave():
            session.connection(execution_options=asked)
            with pytest.raises(WriteOnReplicaError):
                session.execute(text("select slip()"))
    assert primary.execute("select text from item") == []


@LAZY
@OPTIONS
def test_of_an_engine(
    make: Callable[..., Site], lazy: bool, options: dict[str, Any]
) -> None:
    """Options of a bind, or of all engines, hold for each request and fail none."""
    in_block = options.get("isolation_level") != "AUTOCOMMIT"
    for site in (make(lazy, execution_options=options), make(lazy)):
        with site.app.app_context():
            site.db.engine.update_execution_options(**options)
        backends = {read_on(site, in_block=in_block) for _ in range(3)}
        assert len(backends) == 1


@LAZY
def test_level_and_mode(make: Callable[..., Site], lazy: bool) -> None:
    """A level that is asked for together with read-only holds once."""
    site = make(lazy)
    options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    level = text("show transaction_isolation")
    for _ in range(2):
        with site.app.test_request_context(), using_slave():
            site.db.session.connection(execution_options=options)
            assert site.db.session.scalar(level) == "repeatable read"
        with site.app.test_request_context(), using_slave():
            assert site.db.session.scalar(level) == "read committed"


def test_too_late(make: Callable[..., Site]) -> None:
    """In a transaction the option is refused, as on any connection."""
    site = make(lazy=True)
    with (
        site.app.test_request_context(),
        using_slave(),
        site.db.engine.connect() as connection,
    ):
        connection.execute(text("select 1"))
        with pytest.raises(InvalidRequestError):
            connection.execution_options(postgresql_readonly=True)


def test_own_engine(make: Callable[..., Site]) -> None:
    """Who takes a connection from a replica's own engine leaves nothing behind."""
    site = make(lazy=True)
    with site.app.app_context():
        engine = site.db.engines["slave_1"]
    own = engine.execution_options(postgresql_readonly=True)
    for _ in range(2):
        with own.connect() as connection:
            connection.execute(text("select 1"))
        driver = engine.raw_connection()
        driver.cursor().execute("select 1")
        driver.close()
        read_on(site)


def test_primary_has_its_own(make: Callable[..., Site]) -> None:
    """On the primary the option makes one transaction read-only, and no other."""
    site = make(lazy=True)
    mode = text("show transaction_read_only")
    with site.app.test_request_context(), using_master():
        session = site.db.session
        session.connection(execution_options={"postgresql_readonly": True})
        assert session.scalar(mode) == "on"
        session.rollback()
        assert session.scalar(mode) == "off"
