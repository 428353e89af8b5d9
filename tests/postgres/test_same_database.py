"""Servers that have another database than the primary, behind a replica's URL."""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from flask import Flask
from sqlalchemy import make_url, text

from examples.cluster import Cluster, wait_until
from flask_replicated import FlaskReplicated, using_slave
from flask_replicated.replica import same_database
from tests.chaos.proxy import Proxy
from tests.pgbouncer import DRIVER_OPTIONS, PROGRAM, pgbouncer
from tests.postgres.support import bind, make_site, named

if TYPE_CHECKING:
    from collections.abc import Iterator

    from examples.cluster import Server
    from tests.postgres.support import Build, Site

pytestmark = pytest.mark.postgres

ELSEWHERE = "elsewhere"
WHAT = {"another database": "its database is 'elsewhere'", "a cluster": "cluster"}


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged of replicas that are not configured right."""
    said = [one.getMessage() for one in caplog.records if one.levelno == logging.ERROR]
    return [one for one in said if "not configured right" in one]


def in_database(server: Server, database: str, sql: str) -> None:
    """Execute a statement in another database of a server."""
    url = make_url(server.url()).set(database=database)
    shown = url.render_as_string(hide_password=False).replace("+psycopg", "")
    with psycopg.connect(shown, autocommit=True) as connection:
        connection.execute(sql.encode())


@pytest.fixture(scope="module")
def _elsewhere(cluster: Cluster) -> Iterator[None]:
    cluster.primary.execute(f"create database {ELSEWHERE}")
    in_database(cluster.primary, ELSEWHERE, "create table item (id int, text text)")
    cluster.wait_replicated()
    yield
    cluster.primary.execute(f"drop database {ELSEWHERE} (force)")


@pytest.fixture(scope="module")
def strangers() -> Iterator[Cluster]:
    """Give a primary and a standby that this process does not know."""
    with Cluster(standbys=1, prefix="stranger") as cluster:
        cluster.primary.execute("create table item (id int, text text)")
        cluster.wait_replicated()
        yield cluster


@pytest.fixture(params=list(WHAT))
def wrong(
    request: pytest.FixtureRequest,
    healthy_cluster: Cluster,
    _elsewhere: None,
    strangers: Cluster,
    driver: str,
) -> dict[str, str]:
    """Give a bind that is another database, and what is said of it."""
    if request.param == "a cluster":
        url = make_url(bind(strangers.standbys[0], driver))
    else:
        url = make_url(bind(healthy_cluster.standbys[1], driver))
        url = url.set(database=ELSEWHERE)
    shown = url.render_as_string(hide_password=False)
    return {"url": shown, "what": WHAT[str(request.param)]}


@pytest.fixture
def right(healthy_cluster: Cluster, driver: str) -> str:
    """Give a bind that is a replica."""
    return bind(healthy_cluster.standbys[0], driver)


@pytest.fixture
def proxy(_schema: None, healthy_cluster: Cluster) -> Iterator[Proxy]:
    """Give a proxy before the primary."""
    with Proxy(healthy_cluster.primary.port) as proxy:
        yield proxy


@contextmanager
def behind(proxy: Proxy, replica: str, **settings: Any) -> Iterator[Site]:
    """Give an application whose primary is behind a proxy, and its replica is not."""
    url = f"postgresql+psycopg://postgres@127.0.0.1:{proxy.port}/postgres"
    often = {"REPLICATED_PROBE_INTERVAL": 0.2, **settings}
    site = make_site(url, {"slave_1": replica}, **often)
    yield site
    site.dispose()


class TestLeftOut:
    """It is not configured right, and serves no read."""

    @pytest.mark.parametrize("interval", [0, 0.2])
    def test_from_the_first(
        self,
        build: Build,
        right: str,
        wrong: dict[str, str],
        interval: float,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """No read at all, though this process has not met its primary before."""
        binds = {"slave_1": right, "slave_2": wrong["url"]}
        site = build(binds, REPLICATED_PROBE_INTERVAL=interval)
        assert site.count(8) == {"standby_1": 8}
        assert site.live() == {"slave_1"}
        assert any(
            wrong["what"] in one and "'slave_2'" in one and "ROLE_CHECK = False" in one
            for one in errors(caplog)
        )

    def test_alone(self, build: Build, wrong: dict[str, str]) -> None:
        """Where there is no other replica the primary reads."""
        site = build({"slave_1": wrong["url"]})
        assert site.count(4) == {"primary": 4}

    def test_added(
        self, build: Build, wrong: dict[str, str], caplog: pytest.LogCaptureFixture
    ) -> None:
        """One that is added later is asked as well."""
        site = build()
        with site.app.app_context():
            site.app.extensions["replicated"].add("slave_4", wrong["url"])
        assert set(site.count(8)) == {"standby_1", "standby_2", "standby_3"}
        assert any("'slave_4'" in one for one in errors(caplog))

    def test_found_later(
        self,
        proxy: Proxy,
        wrong: dict[str, str],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """None is refused while the primary is away; what it says later counts."""
        proxy.refusing = True
        with behind(proxy, wrong["url"]) as site:
            with site.app.test_request_context():
                assert site.who().server != "primary"
            assert site.live() == {"slave_1"}
            assert not errors(caplog)
            proxy.refusing = False
            site.post("something")
            wait_until(lambda: not site.live(), "it to be out", timeout=20)
            wait_until(lambda: len(errors(caplog)) == 1, "that to be said")

    def test_asked_again(
        self,
        proxy: Proxy,
        wrong: dict[str, str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A process that only reads hears it from the primary all the same."""
        monkeypatch.setattr(same_database, "_AGAIN", 0.0)
        proxy.refusing = True
        with behind(proxy, wrong["url"], REPLICATED_FALLBACK="error") as site:
            with site.app.test_request_context():
                assert site.who().server != "primary"
            proxy.refusing = False
            wait_until(lambda: not site.live(), "it to be out", timeout=20)

    @pytest.mark.usefixtures("_elsewhere")
    def test_async(
        self,
        healthy_cluster: Cluster,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """An async engine is asked as soon as the primary has been used."""
        lite = pytest.importorskip("flask_sqlalchemy_lite")
        app = Flask("async")
        other = make_url(bind(healthy_cluster.standbys[0], "psycopg"))
        app.config["SQLALCHEMY_ASYNC_ENGINES"] = {
            "default": bind(healthy_cluster.primary, "psycopg"),
            "slave_1": other.set(database=ELSEWHERE),
        }
        db = lite.SQLAlchemy(app)
        FlaskReplicated(app)

        async def names() -> list[str]:
            found = []
            name = text("select current_database()")
            async with db.async_engine.begin() as connection:
                found.append(await connection.scalar(name))
            with using_slave():
                async with db.async_engine.connect() as connection:
                    found.append(await connection.scalar(name))
            await db.async_engine.dispose()
            return found

        with app.app_context():
            assert asyncio.run(names()) == ["postgres", "postgres"]
        assert len(errors(caplog)) == 1


class TestNoMistake:
    """Nothing is said of what is right, or is not known."""

    @pytest.fixture(autouse=True)
    def _quiet(self, caplog: pytest.LogCaptureFixture) -> Any:
        yield
        assert not errors(caplog)

    def test_logical_replication(
        self, build: Build, healthy_cluster: Cluster, wrong: dict[str, str]
    ) -> None:
        """REPLICATED_ROLE_CHECK = False exempts: a subscriber is of another cluster."""
        site = build({"slave_1": wrong["url"]}, REPLICATED_ROLE_CHECK=False)
        for _ in range(3):
            with site.app.test_request_context():
                assert site.who().server != "primary"

    @pytest.mark.skipif(PROGRAM is None, reason="PgBouncer is not installed")
    def test_an_alias(
        self, build: Build, healthy_cluster: Cluster, driver: str
    ) -> None:
        """A pooler may call the primary's database otherwise."""
        options = DRIVER_OPTIONS if driver == "psycopg" else {}
        standby = healthy_cluster.standbys[0]
        with pgbouncer(standby.port, alias="shop_for_reading") as port:
            url = f"postgresql+{driver}://postgres@127.0.0.1:{port}/shop_for_reading"
            site = build({"slave_1": {"url": url, **options}})
            assert site.count(4) == {"standby_1": 4}

    def test_no_right_to_ask_for_the_cluster(
        self, build: Build, healthy_cluster: Cluster, driver: str
    ) -> None:
        """An account that may not ask is told the database alone, and serves."""
        primary = healthy_cluster.primary
        function = "function pg_control_system() from public"
        primary.execute("drop role if exists few")
        primary.execute("create role few login")
        primary.execute("grant select on item to few")
        primary.execute(f"revoke execute on {function}")
        healthy_cluster.wait_replicated()
        binds = {
            name: make_url(bind(server, driver)).set(username="few")
            for name, server in named(healthy_cluster.standbys)
        }
        try:
            assert set(build(binds).count(6)) == {"standby_1", "standby_2", "standby_3"}
        finally:
            primary.execute(f"grant execute on {function.replace('from', 'to')}")
            primary.execute("drop owned by few; drop role few")

    def test_a_primary_that_hangs(self, healthy_cluster: Cluster, proxy: Proxy) -> None:
        """Reads go on while it says nothing."""
        proxy.silence()
        with behind(proxy, bind(healthy_cluster.standbys[0], "psycopg")) as site:
            for _ in range(3):
                assert site.get().servers == ["standby_1", "standby_1"]
            assert site.live() == {"slave_1"}
            proxy.speak()
