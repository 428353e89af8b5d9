"""What replicas are, beside what the primary says in the background."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, make_url

from examples.cluster import Cluster, wait_until
from flask_replicated import AllReplicasOutError
from tests.chaos.proxy import Proxy
from tests.pgbouncer import DRIVER_OPTIONS, PROGRAM, pgbouncer
from tests.postgres.support import CLIENTS, bind, make_site

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

    from examples.cluster import Server, Standby
    from tests.postgres.support import Build, Site

    Make = Callable[..., Site]

pytestmark = pytest.mark.postgres

BINDS = ("slave_1", "slave_2", "slave_3")
OFTEN: dict[str, Any] = {
    "REPLICATED_PROBE_INTERVAL": 0.3,
    "REPLICATED_CONNECT_TIMEOUT": 1,
    "REPLICATED_MAX_LAG": 1.5,
    "REPLICATED_PIN_SECONDS": 0,
}
# Where no server falls silent: on a busy machine one may be late with an answer.
PATIENT = {**OFTEN, "REPLICATED_CONNECT_TIMEOUT": 10}


def use(engine: Engine, account: str) -> None:
    """Let an engine connect by an account."""

    def by_account(_d: object, _r: object, _a: object, options: dict[str, Any]) -> None:
        options["user"] = account

    event.listen(engine, "do_connect", by_account)


def settle(site: Site, *binds: str) -> None:
    """Wait until the monitor alone has left these in rotation: no request asks."""
    wait_until(lambda: site.live() == set(binds), f"only {binds} to be live", 20)


def why(site: Site, name: str) -> str:
    """Return why a replica is out."""
    return site.pool.causes()[name]


def status(site: Site) -> Any:
    """Return what is known of the primary."""
    return site.app.extensions["replicated"].state(site.app).routes[None].status


def wait_known(site: Site) -> None:
    """Wait until the primary and each replica were probed."""
    site.get()
    routed = site.app.extensions["replicated"].state(site.app).routes[None]
    replicas = routed.servers.values()

    def known() -> bool:
        seen = all(one.history.latest.replayed for one in replicas)
        return seen and bool(routed.status._positions._spans)

    wait_until(known, "all of them to be known")


def known_site(build: Build, cluster: Cluster, text: str, **settings: Any) -> Site:
    """Return an application that has written what each server shows by now."""
    site = build(**{**OFTEN, **settings})
    site.post(text)
    cluster.wait_replicated()
    wait_known(site)
    return site


def hold_back(site: Site, cluster: Cluster) -> None:
    """Let all standbys lag too far to be used."""
    for standby in cluster.standbys:
        standby.pause_replay()
    site.post("not replayed")
    settle(site)


def follow(standby: Server, port: int) -> None:
    """Let a standby receive from another address; 0 for none."""
    source = f"host=127.0.0.1 port={port} user=postgres" if port else ""
    standby.execute(f"alter system set primary_conninfo = '{source}'")
    standby.execute("select pg_reload_conf()")


def receives(standby: Server) -> bool:
    """Whether a standby receives what it has not shown yet."""
    found = standby.execute(
        "select pg_last_wal_receive_lsn() >= pg_last_wal_replay_lsn()"
        " from pg_stat_wal_receiver"
    )
    return found == [(True,)]


@contextmanager
def following(standby: Standby, port: int, back: int) -> Iterator[None]:
    """Let a standby receive from another address for a while."""
    follow(standby, port)
    try:
        wait_until(lambda: receives(standby) is bool(port), "it to turn there", 20)
        yield
    finally:
        follow(standby, back)
        wait_until(lambda: receives(standby), "it to turn back", 20)


POSITION = "select pg_current_wal_insert_lsn()"


class TestLag:
    """It counts from when the primary has passed what a standby shows."""

    def test_silent_link(self, build: Build, healthy_cluster: Cluster) -> None:
        """Silence between primary and standby is no sign that it is in step."""
        primary, (standby, *_) = healthy_cluster.primary, healthy_cluster.standbys
        with (
            Proxy(primary.port) as proxy,
            following(standby, proxy.port, primary.port),
        ):
            site = build(**OFTEN)
            wait_known(site)
            proxy.silence()
            site.post("not received")
            settle(site, "slave_2", "slave_3")
            assert receives(standby)
            assert "behind the primary, more than REPLICATED_MAX_LAG" in why(
                site, "slave_1"
            )
            proxy.speak()
            settle(site, *BINDS)

    def test_cut_off_while_idle(self, build: Build, healthy_cluster: Cluster) -> None:
        """One that receives nothing lacks nothing while nothing is written."""
        primary, (standby, *_) = healthy_cluster.primary, healthy_cluster.standbys
        site = build(**PATIENT)
        wait_known(site)
        for _ in range(10):
            primary.execute("checkpoint")  # or it logs its state a while later
            healthy_cluster.wait_replicated()
            before = primary.execute(POSITION)
            with following(standby, 0, primary.port):
                time.sleep(2)  # longer than it may lag
                live, after = site.live(), primary.execute(POSITION)
            if after == before:  # it was idle: no vacuum, no snapshot of its own
                break
            settle(site, *BINDS)
        assert live == set(BINDS)
        with following(standby, 0, primary.port):
            site.post("missed")
            settle(site, "slave_2", "slave_3")
        settle(site, *BINDS)

    def test_one_connection(self, build: Build, healthy_cluster: Cluster) -> None:
        """One connection to the primary is kept, and closed at the end."""
        clients = f"select count(*) {CLIENTS}"
        primary = healthy_cluster.primary
        wait_until(lambda: primary.execute(clients) == [(0,)], "older ones to end")
        site = build(**OFTEN)
        wait_known(site)
        asked = status(site).asked
        wait_until(lambda: status(site).asked > asked + 1, "some more probes")
        assert primary.execute(clients) == [(1,)]
        site.dispose()
        wait_until(lambda: primary.execute(clients) == [(0,)], "it to end")

    @pytest.mark.skipif(PROGRAM is None, reason="PgBouncer is not installed")
    def test_pooler(self, build: Build, healthy_cluster: Cluster, driver: str) -> None:
        """A pooler that has one connection to spare has it for the application."""
        with pgbouncer(healthy_cluster.primary.port, "session", size=1) as port:
            options = DRIVER_OPTIONS if driver == "psycopg" else {}
            url = make_url(bind(healthy_cluster.primary, driver)).set(port=port)
            site = build(
                **OFTEN,
                SQLALCHEMY_DATABASE_URI=url.render_as_string(hide_password=False),
                SQLALCHEMY_ENGINE_OPTIONS=dict(options),
            )
            wait_known(site)
            asked = status(site).asked
            wait_until(lambda: status(site).asked > asked, "another probe")
            assert site.post("written").texts == ["written"]

    def test_primary_is_full(
        self, build: Build, healthy_cluster: Cluster, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A primary that has no connection to spare is not out, and no other is."""
        primary = healthy_cluster.primary
        primary.execute("drop role if exists none_left")
        primary.execute("create role none_left login connection limit 0")
        site = build(**PATIENT)
        with site.app.app_context():
            real = site.db.engine.real  # type: ignore[attr-defined]  # a RoutedEngine
        use(real, "none_left")
        site.get()
        time.sleep(2)
        assert site.live() == set(BINDS)
        assert not status(site).out
        assert "the primary does not answer" not in caplog.text


class TestPrimaryIsOut:
    """Its standbys serve, for what they cannot know is not held against them."""

    @pytest.mark.parametrize("frozen", [False, True])
    def test_all_serve(
        self,
        build: Build,
        healthy_cluster: Cluster,
        caplog: pytest.LogCaptureFixture,
        frozen: bool,
    ) -> None:
        """No replica goes out, however long it lasts, and that is said once."""
        primary = healthy_cluster.primary
        limit = 3 if frozen else 10  # of patience with a busy machine
        site = known_site(
            build, healthy_cluster, "kept", REPLICATED_CONNECT_TIMEOUT=limit
        )
        (primary.freeze if frozen else primary.kill)()
        wait_until(lambda: "does not answer" in caplog.text, "that to be known", 20)
        until = time.monotonic() + 3  # longer than they may lag
        while time.monotonic() < until:
            assert site.get().servers[0] != "primary"
            assert site.live() == set(BINDS)
        (primary.thaw if frozen else primary.start)()
        wait_until(lambda: "answers again" in caplog.text, "it to be back", 20)
        assert site.live() == set(BINDS)
        said = [r.getMessage() for r in caplog.records if r.name == "flask_replicated"]
        assert len([one for one in said if "primary does not answer" in one]) == 1
        assert len([one for one in said if "primary answers again" in one]) == 1

    @pytest.mark.parametrize("frozen", [False, True])
    def test_least_stale(
        self,
        build: Build,
        healthy_cluster: Cluster,
        caplog: pytest.LogCaptureFixture,
        frozen: bool,
    ) -> None:
        """Where all lag, the one that shows most serves; that is said once."""
        primary, standbys = healthy_cluster.primary, healthy_cluster.standbys
        site = known_site(build, healthy_cluster, "seen by all")
        for standby, item in zip(standbys, ("one", "two", "three"), strict=True):
            standby.pause_replay()
            site.post(item)
            for other in standbys:
                if other.execute("select pg_is_wal_replay_paused()") == [(False,)]:
                    other.wait_replayed()
        settle(site)
        assert site.get().servers[0] == "primary"
        (primary.freeze if frozen else primary.kill)()
        if frozen:  # no read on an open connection would ever end
            wait_until(lambda: "does not answer" in caplog.text, "that to be known", 20)
        for _ in range(6):
            answer = site.get()
            assert answer.servers == ["standby_3", "standby_3"]
            assert answer.texts == ["seen by all", "one", "two"]
        errors = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
        (said,) = [one for one in errors if "the primary does not connect" in one]
        assert "'slave_3'" in said
        assert not site.live()
        (primary.thaw if frozen else primary.start)()
        wait_until(lambda: site.get().servers[0] == "primary", "the way back", 20)
        assert "the primary connects again" in caplog.text
        for standby in standbys:
            standby.resume_replay()
        settle(site, *BINDS)
        assert site.get().servers[0] != "primary"
        assert caplog.text.count("replicas serve reads again") == 1

    def test_falls_silent(self, build: Build, healthy_cluster: Cluster) -> None:
        """A read that waits for it already is answered by one that lags."""
        primary = healthy_cluster.primary
        site = known_site(build, healthy_cluster, "seen")
        hold_back(site, healthy_cluster)
        assert site.get().servers[0] == "primary"
        primary.freeze()
        began = time.monotonic()
        answer = site.get()
        assert time.monotonic() - began < 8
        assert answer.servers[0] == answer.servers[1] != "primary"
        assert answer.texts == ["seen"]
        primary.thaw()
        wait_until(lambda: site.get().servers[0] == "primary", "the way back", 20)

    def test_begins_meanwhile(
        self, build: Build, healthy_cluster: Cluster, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A process that begins then knows of no lag, and reads all the same."""
        primary, standbys = healthy_cluster.primary, healthy_cluster.standbys
        primary.execute("insert into item (text) values ('kept')")
        healthy_cluster.wait_replicated()
        primary.kill()
        age = "select clock_timestamp() - pg_last_xact_replay_timestamp() > '2 s'"
        wait_until(lambda: standbys[0].execute(age) == [(True,)], "it to grow old")
        site = build(**OFTEN)
        for _ in range(8):
            answer = site.get()
            assert answer.servers[0] != "primary"
            assert answer.texts == ["kept"]
        assert caplog.text.count("the primary does not connect") == 1
        primary.start()
        settle(site, *BINDS)
        assert site.get().servers[0] != "primary"

    def test_without_a_probe(self, build: Build, healthy_cluster: Cluster) -> None:
        """So it is where only connects tell; the kept one is kept by its request."""
        primary, standbys = healthy_cluster.primary, healthy_cluster.standbys
        for standby in standbys:
            standby.pause_replay()
        primary.execute("insert into item (text) values ('not replayed')")
        wait_until(lambda: receives(standbys[0]), "it to be received")
        time.sleep(0.7)
        primary.kill()
        site = build(REPLICATED_PROBE_INTERVAL=0, REPLICATED_MAX_LAG=0.5)
        assert site.get().servers[0] != "primary"
        assert not site.live()

    def test_error(self, build: Build, healthy_cluster: Cluster) -> None:
        """With REPLICATED_FALLBACK = 'error' what lags too far never serves."""
        primary = healthy_cluster.primary
        site = known_site(build, healthy_cluster, "seen", REPLICATED_FALLBACK="error")
        hold_back(site, healthy_cluster)
        primary.kill()
        with pytest.raises(AllReplicasOutError, match="REPLICATED_MAX_LAG"):
            site.get()


@pytest.fixture
def own() -> Iterator[Cluster]:
    """Give a cluster that is lost afterwards: its servers change their parts."""
    with Cluster(standbys=2) as servers:
        servers.primary.execute("create table item (id serial primary key, text text)")
        servers.wait_replicated()
        yield servers


@pytest.fixture
def make() -> Iterator[Make]:
    """Give a function that makes an application over any servers."""
    sites: list[Site] = []
    threads = set(threading.enumerate())

    def make(primary: str, *replicas: Server, **config: Any) -> Site:
        pairs = enumerate(replicas, start=1)
        binds = {f"slave_{n}": bind(server, "psycopg") for n, server in pairs}
        sites.append(make_site(primary, binds, **{**PATIENT, **config}))
        return sites[-1]

    yield make
    for site in sites:
        site.dispose()
    wait_until(lambda: set(threading.enumerate()) <= threads, "the threads to end")


def become_standby(server: Server, source: Server) -> None:
    """Start a primary as a hot standby of another server, as it is: no pg_rewind."""
    server.stop("immediate")
    (server.data / "standby.signal").write_text("")
    where = f"host=127.0.0.1 port={source.port} user=postgres"
    with (server.data / "postgresql.conf").open("a") as settings:
        settings.write(f"primary_conninfo = '{where}'\n")
    server.start()


@pytest.mark.parametrize("seen", [True, False])
def test_diverged(
    make: Make, own: Cluster, caplog: pytest.LogCaptureFixture, seen: bool
) -> None:
    """An old primary that has what the new one has not serves no read as a standby.

    Each server is a bind, and the primary has an address that moves.
    """
    caplog.set_level(logging.INFO)
    old, (new, other) = own.primary, own.standbys
    with Proxy(old.port) as proxy:
        url = make_url(bind(old, "psycopg")).set(port=proxy.port)
        primary = url.render_as_string(hide_password=False)
        site = make(primary, new, other, old)
        wait_known_of_two(site)
        for standby in own.standbys:
            follow(standby, 0)
            wait_until(lambda one=standby: not receives(one), "it to be cut off")  # type: ignore[misc]  # mypy cannot see the default
        old.execute("insert into item (text) values ('lost')")
        old.stop("immediate")
        new.promote()
        proxy.target = new.port
        new.execute("insert into item (text) values ('new')")
        follow(other, new.port)
        wait_until(lambda: receives(other) and other.replayed(new.position()), "it", 20)
        settle(site, "slave_2")
        if not seen:  # a process that began after all that
            site.dispose()
            site = make(primary, new, other, old)
            wait_until(
                lambda: site.get() and status(site).timeline == 2, "the timeline"
            )
        become_standby(old, new)
        assert old.execute("select text from item") == [("lost",)]
        until = time.monotonic() + 3
        while time.monotonic() < until:
            answer = site.get()
            assert answer.servers[0] != "primary", "of which it has the name still"
            assert answer.texts == ["new"]
        settle(site, "slave_2")
        assert "pg_rewind" in why(site, "slave_3")
        # Nor when the new primary has written more than the old one had.
        new.execute(
            "insert into item (text) select 'more' from generate_series(1, 500)"
        )
        time.sleep(1)
        assert site.live() == {"slave_2"}


def wait_known_of_two(site: Site) -> None:
    """Wait until the two standbys are probed, and the primary is left out."""
    site.get()
    settle(site, "slave_1", "slave_2")
    wait_until(lambda: bool(status(site)._positions._spans), "the primary to be known")


@pytest.mark.parametrize("account", ["postgres", "few"])
def test_cascaded(make: Make, own: Cluster, account: str) -> None:
    """A standby whose source was promoted beside the primary is no copy of it."""
    primary, (parent, child) = own.primary, own.standbys
    primary.execute("create role few login")
    primary.execute("grant all on item, item_id_seq to few")
    own.wait_replicated()
    with following(child, parent.port, parent.port):
        site = make(bind(primary, "psycopg"), parent, child)
        with site.app.app_context():
            for engine in site.db.engines.values():
                use(getattr(engine, "real", engine), account)
        wait_known(site)
        settle(site, "slave_1", "slave_2")
        parent.promote()
        for _ in range(20):
            parent.execute("insert into item (text) values ('other')")
        settle(site)
        assert "history" in why(site, "slave_2") or "timeline" in why(site, "slave_2")
        assert site.get().servers[0] == "primary"


def test_subscription(make: Make) -> None:
    """A logical subscriber is out while its subscription is disabled and lacks rows."""
    settings = {"wal_level": "logical"}
    with (
        Cluster(standbys=0, settings=settings) as publisher,
        Cluster(standbys=0, settings=settings) as subscriber,
    ):
        primary, copy = publisher.primary, subscriber.primary
        for server in (primary, copy):
            server.execute("create table item (id serial primary key, text text)")
        primary.execute("create publication all_of_it for all tables")
        source = f"host=127.0.0.1 port={primary.port} user=postgres dbname=postgres"
        copy.execute(
            f"create subscription one connection '{source}' publication all_of_it"
        )
        try:
            site = make(bind(primary, "psycopg"), copy, REPLICATED_ROLE_CHECK=False)
            primary.execute("insert into item (text) values ('first')")
            count = "select count(*) from item"
            wait_until(lambda: copy.execute(count) == [(1,)], "it to be copied", 20)
            site.get()
            wait_until(
                lambda: bool(status(site)._positions._spans), "the primary to be known"
            )
            time.sleep(2)
            assert site.live() == {"slave_1"}
            copy.execute("alter subscription one disable")
            primary.execute("insert into item (text) values ('missed')")
            settle(site)
            assert "REPLICATED_MAX_LAG" in why(site, "slave_1")
            copy.execute("alter subscription one enable")
            settle(site, "slave_1")
        finally:
            copy.execute("drop subscription one")
