"""Standbys that are down, die, hang and return: no visitor notices."""

from __future__ import annotations

import gc
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, select, text

from examples.cluster import wait_until
from flask_replicated import AllReplicasOutError
from tests.postgres.support import STANDBYS, Load, bind, end_backends, named, spread

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from examples.cluster import Cluster, Standby
    from tests.postgres.support import Backend, Build, Site

pytestmark = pytest.mark.postgres

BINDS = ("slave_1", "slave_2", "slave_3")
PASSWORD = "hunter2-very-secret"


def difference(counts: Counter[str], names: tuple[str, ...]) -> int:
    """Return by how much the largest share exceeds the smallest."""
    shares = [counts[name] for name in names]
    return max(shares) - min(shares)


def test_down_at_start(build: Build, healthy_cluster: Cluster) -> None:
    """A standby that is down when the app starts costs nothing, and joins later."""
    dead = healthy_cluster.standbys[0]
    dead.kill()
    site = build()
    counts = site.count(30)
    assert counts.total() == 30
    assert set(counts) == {"standby_2", "standby_3"}
    assert difference(counts, ("standby_2", "standby_3")) <= 2
    assert site.live() == {"slave_2", "slave_3"}
    dead.start()
    site.wait_live(*BINDS)
    assert site.count(30) == dict.fromkeys(STANDBYS, 10)


def test_all_down_at_start(build: Build, healthy_cluster: Cluster) -> None:
    """With every standby down when the app starts, the primary reads meanwhile."""
    for standby in healthy_cluster.standbys:
        standby.kill()
    site = build()
    assert site.count(12) == {"primary": 12}
    healthy_cluster.standbys[1].start()
    site.wait_live("slave_2")
    assert site.count(6) == {"standby_2": 6}


def test_all_down_later(site: Site, healthy_cluster: Cluster) -> None:
    """The primary reads when every standby is lost, and no longer than that."""
    assert site.count(6) == dict.fromkeys(STANDBYS, 2)
    for standby in healthy_cluster.standbys:
        standby.kill()
    assert site.count(12) == {"primary": 12}
    for standby in healthy_cluster.standbys:
        standby.start()
    site.wait_live(*BINDS)
    assert site.count(30) == dict.fromkeys(STANDBYS, 10)


def lose_and_regain(load: Load, victim: Standby, lost: str) -> None:
    """Kill a standby under load and start it, as soon as reads have settled."""
    others = [name for name in STANDBYS if name != victim.name]
    victim.kill()
    load.wait_live(*(name for name in BINDS if name != lost))
    shares = load.next(240)
    assert set(shares) <= set(others)
    assert spread(shares, others) <= 1.1
    victim.start()
    load.wait_live(*BINDS)
    assert load.next(60)[victim.name]


def test_killed_under_load(build: Build, healthy_cluster: Cluster) -> None:
    """Standbys killed one after the other fail no request and lose no write."""
    site = build(REPLICATED_PIN_SECONDS=0)
    with Load(site) as load:
        load.next(60)
        for lost, victim in named(healthy_cluster.standbys):
            lose_and_regain(load, victim, lost)
    assert load.failures == []
    rows = healthy_cluster.primary.execute("select text from item")
    assert sorted(rows) == sorted((item,) for item in load.written)
    assert site.count(30) == dict.fromkeys(STANDBYS, 10)


def test_killed_between_statements(site: Site, healthy_cluster: Cluster) -> None:
    """A standby killed between two statements of a request does not fail it."""
    site.post("kept")
    healthy_cluster.wait_replicated()
    standbys = {standby.name: standby for standby in healthy_cluster.standbys}
    site.between = lambda backend: standbys[backend.server].kill()
    answer = site.get()
    assert answer.servers[0] in STANDBYS
    assert answer.servers[1] != answer.servers[0]
    assert answer.texts == ["kept"]


# The first statement of a request may go to any other standby; a later one must not
# see less than the earlier ones.
@pytest.mark.parametrize("reads_before", [0, 1])
def test_killed_in_a_statement(
    build: Build, healthy_cluster: Cluster, reads_before: int
) -> None:
    """A standby killed while it works on a statement does not fail the request."""
    victim = healthy_cluster.standbys[0]
    site = build(REPLICATED_WEIGHTS={"slave_2": 0, "slave_3": 0})
    sleepy = text(
        "select case current_setting('cluster_name') when 'standby_1'"
        " then pg_sleep(60)::text end, current_setting('cluster_name')"
    )

    def slow() -> dict[str, list[str]]:
        servers = [site.who().server for _ in range(reads_before)]
        servers.append(site.db.session.execute(sleepy).one()[1])
        return {"servers": [*servers, site.who().server], "texts": site.texts()}

    site.app.add_url_rule("/slow", "slow", slow)
    asleep = "select count(*) from pg_stat_activity where wait_event = 'PgSleep'"
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(site.get, path="/slow")
        wait_until(lambda: victim.execute(asleep) == [(1,)], "the statement")
        victim.kill()
        servers = answer.result(30).servers
    assert servers == ["standby_1"] * reads_before + ["primary", "primary"]


def test_ended_where_a_listener_prepares(site: Site, healthy_cluster: Cluster) -> None:
    """What after_begin has set for a transaction is set where the read goes on."""

    def set_tenant(_session: object, _transaction: object, connection: Any) -> None:
        connection.execute(text("set local app.tenant = '7'"))

    event.listen(site.db.session, "after_begin", set_tenant)
    tenant = text("select current_setting('app.tenant')")

    def view() -> dict[str, list[str]]:
        first = site.db.session.scalar(tenant)
        for standby in healthy_cluster.standbys:
            end_backends(standby)
        return {"servers": [first, site.db.session.scalar(tenant)], "texts": []}

    site.app.add_url_rule("/ended", "ended", view)
    assert site.get(path="/ended").servers == ["7", "7"]


def test_restarted_between_requests(build: Build, healthy_cluster: Cluster) -> None:
    """A standby that restarted while connections to it idled keeps its turn."""
    # No probe: on a busy machine it comes while a server starts.
    site = build(REPLICATED_PROBE_INTERVAL=0)
    assert len(site.at_once(12)) == 12
    for standby in healthy_cluster.standbys[:2]:
        standby.restart("fast")
    assert site.count(36) == dict.fromkeys(STANDBYS, 12)
    assert site.live() == set(BINDS)


def test_terminated_between_requests(site: Site, healthy_cluster: Cluster) -> None:
    """Connections that a standby ended while they idled are replaced unnoticed."""
    site.at_once(12)
    for standby in healthy_cluster.standbys:
        end_backends(standby)
    assert site.count(36) == dict.fromkeys(STANDBYS, 12)


def test_terminated_between_statements(site: Site, healthy_cluster: Cluster) -> None:
    """Connections that end between two statements of a request do not fail it."""
    site.post("kept")
    healthy_cluster.wait_replicated()

    def end(_backend: Backend) -> None:
        for standby in healthy_cluster.standbys:
            end_backends(standby)

    site.at_once(9)
    site.between = end
    for _ in range(12):
        answer = site.get()
        assert answer.servers[0] in STANDBYS
        assert answer.texts == ["kept"]
    assert site.live() == set(BINDS)


def ways_to_read(site: Site) -> dict[str, Callable[[], object]]:
    """Return the ways in which a session reads, each of which finds an item."""
    session, item = site.db.session, site.item
    return {
        "execute": lambda: session.execute(select(item)).one(),
        "scalar": lambda: session.scalar(select(item)),
        "scalars": lambda: session.scalars(select(item)).one(),
        "get": lambda: session.get(item, 1),
        "query": lambda: session.query(item).one(),
        "count": lambda: session.query(item).count(),
        "model_query": lambda: item.query.filter_by(text="kept").one(),
    }


def test_terminated_before_any_way_to_read(
    site: Site, healthy_cluster: Cluster
) -> None:
    """A loss between statements goes unnoticed, however the session is asked next."""

    def read(way: str) -> str:
        server = site.who().server
        for standby in healthy_cluster.standbys:
            end_backends(standby)
        assert ways_to_read(site)[way]()
        return server

    site.app.add_url_rule("/read/<way>", "read", read)
    site.post("kept")
    healthy_cluster.wait_replicated()
    for way in ways_to_read(site):
        assert site.client().get(f"/read/{way}").text in STANDBYS


def test_terminated_before_a_lazy_load(site: Site, healthy_cluster: Cluster) -> None:
    """A loss goes unnoticed when an expired object is read next."""

    def read() -> str:
        item = site.db.session.scalars(select(site.item)).one()
        site.db.session.expire(item)
        for standby in healthy_cluster.standbys:
            end_backends(standby)
        return str(item.text)

    site.app.add_url_rule("/read", "read", read)
    site.post("kept")
    healthy_cluster.wait_replicated()
    assert site.client().get("/read").text == "kept"


def test_outage_leaves_no_connection_open(site: Site, healthy_cluster: Cluster) -> None:
    """A connection that was in use when its replica went out is closed later on."""
    standby = healthy_cluster.standbys[0]
    seen: list[Backend] = []

    def fail(backend: Backend) -> None:
        seen.append(backend)
        if backend.server == standby.name:
            member = site.pool.member("slave_1")
            for _ in range(2):
                site.pool.failed(
                    member, OSError("unreachable"), site.pool.permit(member)
                )

    site.between = fail
    while not seen or seen[-1].server != standby.name:
        site.get()
    lost = seen[-1].pid
    site.between = lambda _: None
    count = "select count(*) from pg_stat_activity where pid = %s"
    gc.disable()
    try:
        site.wait_live(*BINDS)
        site.count(9)
        wait_until(lambda: standby.execute(count, lost) == [(0,)], "its end", 3)
    finally:
        gc.enable()
        gc.collect()  # what is wrong with this test stays in it


def test_frozen_at_connect(build: Build, healthy_cluster: Cluster) -> None:
    """A standby that accepts and never answers is given up; others serve."""
    site = build(REPLICATED_CONNECT_TIMEOUT=1, REPLICATED_BREAKER_MAX_RESET=60)
    healthy_cluster.standbys[0].freeze()
    # Without a limit, psycopg would wait for two minutes.
    with ThreadPoolExecutor(1) as threads:
        try:
            counts = threads.submit(site.count, 8).result(30)
        finally:
            healthy_cluster.standbys[0].thaw()
    assert counts.total() == 8
    assert set(counts) == {"standby_2", "standby_3"}


def error_of(site: Site) -> AllReplicasOutError:
    """Return what a GET raises."""
    with pytest.raises(AllReplicasOutError) as caught:
        site.get()
    shown = "".join(traceback.format_exception(caught.value))
    assert PASSWORD not in shown + repr(caught.value)
    return caught.value


def test_fallback_error(
    build: Build,
    healthy_cluster: Cluster,
    driver: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With ``'error'``, each standby is listed with its own cause, no password."""
    binds = {
        name: bind(server, driver, PASSWORD)
        for name, server in named(healthy_cluster.standbys)
    }
    binds["slave_3"] += "_of_nobody"
    site = build(binds, REPLICATED_FALLBACK="error", REPLICATED_CONNECT_TIMEOUT=1)
    healthy_cluster.standbys[0].kill()
    healthy_cluster.standbys[1].freeze()
    # Once with fresh failures, then with breakers open.
    for _ in range(4):
        causes = error_of(site).causes
        assert set(causes) == set(BINDS)
        assert "refused" in causes["slave_1"]
        assert "timeout" in causes["slave_2"]
        assert '"postgres_of_nobody" does not exist' in causes["slave_3"]
    healthy_cluster.standbys[1].thaw()
    site.app.config["PROPAGATE_EXCEPTIONS"] = False
    wait_until(lambda: site.client().get("/").status_code == 200, "slave_2")
    assert set(site.count(4)) == {"standby_2"}
    assert PASSWORD not in caplog.text


@pytest.mark.parametrize("when", ["first", "later"])
def test_replay_conflict(build: Build, healthy_cluster: Cluster, when: str) -> None:
    """A read that a standby's replay cancels is answered by another server."""
    for standby in healthy_cluster.standbys:
        standby.execute("alter system set max_standby_streaming_delay = 0")
        standby.execute("select pg_reload_conf()")
    site = build()
    primary = healthy_cluster.primary

    def slow() -> str:
        if when == "later":
            site.who()
        with ThreadPoolExecutor(1) as threads:
            locked = threads.submit(lock)
            site.db.session.execute(text("select text, pg_sleep(0.6) from item"))
            locked.result()
        return site.who().server

    def lock() -> None:
        time.sleep(0.2)
        primary.execute("do $$ begin lock table item in access exclusive mode; end $$")

    primary.execute("insert into item (text) values ('one')")
    healthy_cluster.wait_replicated()
    site.app.add_url_rule("/slow", "slow", slow)
    try:
        answer = site.client().get("/slow")
        assert answer.status_code == 200
        assert site.live() == set(BINDS)
    finally:
        for standby in healthy_cluster.standbys:
            standby.execute("alter system reset max_standby_streaming_delay")
            standby.execute("select pg_reload_conf()")
