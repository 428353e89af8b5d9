"""Connections that fall silent, where new ones are refused, or hang, or are well."""

from __future__ import annotations

import gc
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, text

from examples.cluster import wait_until
from flask_replicated import using_slave
from tests.chaos.proxy import Proxy
from tests.pgbouncer import DRIVER_OPTIONS, PROGRAM, pgbouncer
from tests.postgres.support import bind, run_greenlets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from examples.cluster import Cluster, Standby
    from tests.postgres.support import Build, Site

pytestmark = pytest.mark.postgres

OFTEN: dict[str, Any] = {
    "REPLICATED_PROBE_INTERVAL": 0.5,
    "REPLICATED_CONNECT_TIMEOUT": 2,
}
ENDED = "does not answer: ended"
LOST = "no server works on what they wait for"
SLEEPS = "select pid from pg_stat_activity where wait_event = 'PgSleep'"


@pytest.fixture
def proxy(healthy_cluster: Cluster) -> Iterator[Proxy]:
    """Give what stands between the applications and the first standby."""
    with Proxy(healthy_cluster.standbys[0].port) as proxy:
        yield proxy
        proxy.speak()


@pytest.fixture
def site(build: Build, healthy_cluster: Cluster, proxy: Proxy, driver: str) -> Site:
    """Give an application with the first two standbys, one through the proxy."""
    first, second = (bind(server, driver) for server in healthy_cluster.standbys[:2])
    port = healthy_cluster.standbys[0].port
    binds = {"slave_1": first.replace(str(port), str(proxy.port)), "slave_2": second}
    return build(binds, **OFTEN)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Give threads that read."""
    with ThreadPoolExecutor(4) as threads:
        yield threads


def read(site: Site, seconds: float, elsewhere: float | None = None) -> str:
    """Read for so long, and return who has answered.

    Args:
        site: The application.
        seconds: How long a server takes.
        elsewhere: How long any but the first standby takes, if that is another time.
    """
    query = text(
        "select name from current_setting('cluster_name') name, pg_sleep("
        "case name when 'standby_1' then :seconds else :elsewhere end)"
    )
    times = {
        "seconds": seconds,
        "elsewhere": seconds if elsewhere is None else elsewhere,
    }
    with site.app.app_context(), using_slave():
        return str(site.db.session.scalar(query, times))


def begin(
    site: Site,
    threads: ThreadPoolExecutor,
    cluster: Cluster,
    seconds: float,
    elsewhere: float | None = None,
) -> Future[str]:
    """Let a thread read from the first standby for so long, and see it begin."""
    site.pool.drain("slave_2")
    running = threads.submit(read, site, seconds, elsewhere)
    wait_until(lambda: bool(cluster.standbys[0].execute(SLEEPS)), "it to begin")
    site.pool.restore("slave_2")
    return running


def end_reads(standby: Standby) -> None:
    """End the reads that go on though nobody waits for them any more."""
    end = f"select pg_terminate_backend(pid) from ({SLEEPS}) as reads"
    standby.execute(end)
    wait_until(lambda: not standby.execute(SLEEPS), "reads to end")


def take_out(site: Site) -> None:
    """Let the first replica be out, as the requests do that connect in vain."""
    site.pool.trip(site.pool.member("slave_1"), 0.1, OSError("in vain"))


def wait_for_a_probe(site: Site) -> None:
    """Wait until the first replica was probed, over a connection that is kept."""
    site.wait_live("slave_1", "slave_2")
    with site.app.app_context():
        monitor = site.db.engine.monitor  # type: ignore[attr-defined]  # a RoutedEngine
    known: Any = monitor._loop._known
    member = site.pool.member("slave_1")

    def kept() -> bool:
        one = known.get(member)
        return bool(one and one.probe and one.probe._connection is not None)

    wait_until(kept, "a probe of slave_1")


def probes(site: Site, how_many: int, why: str) -> None:
    """Wait until so many probes have found the first replica out for this reason."""
    for _ in range(how_many):
        take_out(site)
        wait_until(lambda: why in site.pool.causes()["slave_1"], f"{why!r}", 20)


class TestNewOnesAreRefused:
    """A probe connects in vain, and knows it at once."""

    def test_old_ones_are_silent(
        self,
        site: Site,
        proxy: Proxy,
        threads: ThreadPoolExecutor,
        healthy_cluster: Cluster,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Who waits for a host that is gone is answered by another server."""
        waiting = begin(site, threads, healthy_cluster, 15, elsewhere=0)
        proxy.refusing = True
        proxy.silence_open()
        take_out(site)
        assert waiting.result(20) == "standby_2"
        assert ENDED in caplog.text
        end_reads(healthy_cluster.standbys[0])

    def test_old_ones_are_served(
        self,
        site: Site,
        proxy: Proxy,
        threads: ThreadPoolExecutor,
        healthy_cluster: Cluster,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A server that takes no new connections finishes what it has begun."""
        wait_for_a_probe(site)
        running = begin(site, threads, healthy_cluster, 6)
        proxy.refusing = True
        probes(site, 4, "closed the connection")
        assert running.result(20) == "standby_1"
        assert ENDED not in caplog.text


def test_new_ones_hang(
    site: Site,
    proxy: Proxy,
    threads: ThreadPoolExecutor,
    healthy_cluster: Cluster,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where new connections hang and old ones do not, these finish what they do."""
    wait_for_a_probe(site)
    running = begin(site, threads, healthy_cluster, 7)
    proxy.holding = True
    take_out(site)
    wait_until(lambda: "said nothing" in site.pool.causes()["slave_1"], "a probe", 20)
    assert running.result(20) == "standby_1"
    assert ENDED not in caplog.text


def test_smart_shutdown(
    site: Site, threads: ThreadPoolExecutor, healthy_cluster: Cluster
) -> None:
    """A standby that lets its clients finish is left to do so."""
    standby = healthy_cluster.standbys[0]
    running = begin(site, threads, healthy_cluster, 8)
    process: Any = standby._process
    process.send_signal(signal.SIGTERM)
    probes(site, 3, "shutting down")
    assert running.result(20) == "standby_1"
    standby.stop("fast")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("interval", [0, 60])
def test_first_words(
    build: Build,
    healthy_cluster: Cluster,
    proxy: Proxy,
    driver: str,
    interval: int,
) -> None:
    """Who waits for a new server's first words waits no longer than to connect."""
    first, second = (bind(server, driver) for server in healthy_cluster.standbys[:2])
    port = str(healthy_cluster.standbys[0].port)
    binds = {"slave_1": first.replace(port, str(proxy.port)), "slave_2": second}
    site = build(
        binds, REPLICATED_PROBE_INTERVAL=interval, REPLICATED_CONNECT_TIMEOUT=1
    )
    with site.app.app_context():
        engine = site.db.engines["slave_1"]
    event.listen(engine, "connect", lambda *_: proxy.silence_open(), insert=True)
    began = time.monotonic()
    assert {site.get().servers[0] for _ in range(8)} == {"standby_2"}
    assert time.monotonic() - began < 20  # it was tried at most four times
    assert site.live() == {"slave_2"}
    gc.collect()


@pytest.mark.skipif(PROGRAM is None, reason="PgBouncer is not installed")
@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_server_down_behind_a_pooler(
    build: Build, healthy_cluster: Cluster, driver: str, mode: str
) -> None:
    """Who waits in a pooler whose server is down is answered by another server."""
    first, second = healthy_cluster.standbys[:2]
    with pgbouncer(first.port, mode) as port, ThreadPoolExecutor(4) as threads:
        through: dict[str, Any] = {
            "url": f"postgresql+{driver}://postgres@127.0.0.1:{port}/postgres",
            **(DRIVER_OPTIONS if driver == "psycopg" else {}),
        }
        site = build({"slave_1": through, "slave_2": bind(second, driver)}, **OFTEN)
        site.wait_live("slave_1", "slave_2")
        site.pool.drain("slave_2")
        read(site, 0)  # so that a connection of the pooler's is in its pool
        first.kill()
        waiting = [threads.submit(read, site, 0.1) for _ in range(4)]
        site.pool.restore("slave_2")
        found = {one.result(20) for one in waiting}
        site.dispose()
    assert found <= {"standby_2", "primary"}


class TestOnlySomeAreSilent:
    """The probe's own connection is well, and so are new ones."""

    def test_flows_are_forgotten(
        self,
        site: Site,
        proxy: Proxy,
        threads: ThreadPoolExecutor,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Who waits over a silent connection is answered by another server."""
        wait_for_a_probe(site)
        site.pool.drain("slave_2")
        read(site, 0)
        proxy.silence_open(b"pg_sleep")
        waiting = threads.submit(read, site, 0)
        wait_until(lambda: bool(site.held), "it to begin")
        site.pool.restore("slave_2")
        assert waiting.result(20) == "standby_2"
        assert caplog.text.count(LOST) == 1
        wait_until(lambda: site.live() == {"slave_1", "slave_2"}, "slave_1 to be back")
        assert {read(site, 0) for _ in range(6)} == {"standby_1", "standby_2"}

    def test_an_answer_is_lost(
        self,
        site: Site,
        proxy: Proxy,
        threads: ThreadPoolExecutor,
        healthy_cluster: Cluster,
    ) -> None:
        """A statement that its server has answered long ago is run again."""
        wait_for_a_probe(site)
        waiting = begin(site, threads, healthy_cluster, 2.5)
        proxy.silence_open(b"pg_sleep")
        assert waiting.result(20) == "standby_2"

    def test_a_long_read(
        self,
        site: Site,
        threads: ThreadPoolExecutor,
        healthy_cluster: Cluster,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A statement that runs for long is left to run, through a proxy as well."""
        running = begin(site, threads, healthy_cluster, 5)
        site.pool.drain("slave_1")
        direct = threads.submit(read, site, 5)
        assert running.result(20) == "standby_1"
        assert direct.result(20) == "standby_2"
        assert LOST not in caplog.text


class TestSeveralServers:
    """One address stands for two servers."""

    @pytest.fixture
    def proxy(self, healthy_cluster: Cluster) -> Iterator[Proxy]:
        """Give what sends connections to the first and the third standby in turn."""
        first, _, third = healthy_cluster.standbys
        with Proxy(first.port, third.port) as proxy:
            yield proxy
            proxy.speak()

    def test_a_long_read(
        self,
        site: Site,
        threads: ThreadPoolExecutor,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Whichever of them works on a statement, it is left to run."""
        site.pool.drain("slave_2")
        running = [threads.submit(read, site, 5) for _ in range(4)]
        found = {one.result(20) for one in running}
        assert found == {"standby_1", "standby_3"}
        assert LOST not in caplog.text

    def test_one_is_frozen(
        self, site: Site, threads: ThreadPoolExecutor, healthy_cluster: Cluster
    ) -> None:
        """Who waits for one that hangs is answered by another server."""
        first, _, third = healthy_cluster.standbys
        site.pool.drain("slave_2")
        running = [threads.submit(read, site, 3) for _ in range(2)]
        for server in (first, third):
            wait_until(lambda one=server: bool(one.execute(SLEEPS)), "a read")  # type: ignore[misc]  # its default is a server
        third.freeze()
        site.pool.restore("slave_2")
        found = {one.result(20) for one in running}
        third.thaw()
        assert found <= {"standby_1", "standby_2", "primary"}


@pytest.mark.skipif(PROGRAM is None, reason="PgBouncer is not installed")
@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_behind_a_pooler(
    build: Build,
    healthy_cluster: Cluster,
    driver: str,
    mode: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No server there knows its clients, and yet what runs and what is lost is told."""
    first, second = healthy_cluster.standbys[:2]
    with pgbouncer(first.port, mode) as port, Proxy(port) as proxy:
        through: dict[str, Any] = {
            "url": f"postgresql+{driver}://postgres@127.0.0.1:{proxy.port}/postgres",
            **(DRIVER_OPTIONS if driver == "psycopg" else {}),
        }
        site = build({"slave_1": through, "slave_2": bind(second, driver)}, **OFTEN)
        site.pool.drain("slave_2")
        with ThreadPoolExecutor(2) as threads:
            running = threads.submit(read, site, 4)
            assert running.result(20) == "standby_1"
            assert LOST not in caplog.text
            proxy.silence_open(b"pg_sleep")
            waiting = threads.submit(read, site, 0)
            wait_until(lambda: bool(site.held), "it to begin")
            site.pool.restore("slave_2")
            assert waiting.result(20) == "standby_2"
        assert LOST in caplog.text
        proxy.speak()
        site.dispose()


GREENLETS = """
import sys
from gevent import monkey

monkey.patch_all()

import threading
from tests.postgres.support import make_site
from tests.postgres.test_silence import OFTEN, read

primary, near, far = sys.argv[1:]
site = make_site(primary, {"slave_1": near, "slave_2": far}, **OFTEN)
site.pool.drain("slave_2")
read(site, 0)
print("ready", flush=True)
sys.stdin.readline()
found = []
waiting = threading.Thread(target=lambda: found.append(read(site, 0)))
waiting.start()
while not site.held:
    threading.Event().wait(0.01)
site.pool.restore("slave_2")
long = threading.Thread(target=lambda: found.append(read(site, 4)))
long.start()
waiting.join(20)
long.join(20)
print(*found)
"""


@pytest.mark.parametrize("driver", ["psycopg"])
def test_greenlets(healthy_cluster: Cluster, proxy: Proxy, driver: str) -> None:
    """Under gevent who waits in vain is released, and who waits for long is not."""
    pytest.importorskip("gevent", reason="gevent is not installed")
    primary, (first, second, _) = healthy_cluster.primary, healthy_cluster.standbys
    near = bind(first, driver).replace(str(first.port), str(proxy.port))
    urls = (bind(primary, driver), near, bind(second, driver))
    output, errors = run_greenlets(
        GREENLETS, urls, lambda: proxy.silence_open(b"pg_sleep")
    )
    lost, running = output.split()
    assert lost == "standby_2"
    assert running in {"standby_1", "standby_2"}
    assert errors.count(LOST) == 1


def test_the_last_replica(
    build: Build, proxy: Proxy, healthy_cluster: Cluster, driver: str
) -> None:
    """Where there is no other, it serves on over new connections."""
    first = healthy_cluster.standbys[0]
    near = bind(first, driver).replace(str(first.port), str(proxy.port))
    site = build({"slave_1": near}, **OFTEN)
    read(site, 0)
    proxy.silence_open(b"pg_sleep")
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(read, site, 0).result(20) == "standby_1"
    assert site.live() == {"slave_1"}


def test_no_wait(site: Site, proxy: Proxy, caplog: pytest.LogCaptureFixture) -> None:
    """A connection over which nothing is asked for long is kept."""
    site.pool.drain("slave_2")
    with site.app.test_request_context():
        before = site.who()
        assert read(site, 3) == "standby_1"
        assert site.who() == before
    assert LOST not in caplog.text
