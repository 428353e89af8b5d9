"""MariaDB servers of the tests' own: a primary and what replicates from it.

They are driven as those of `examples.cluster` are, so that what is done to the one
can be done to the other, and the same watchdog ends them, whatever ended their owner.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa

from examples._watchdog import start_watchdog
from examples.cluster import wait_until
from examples.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from typing_extensions import Self

__all__ = ["Cluster", "Replica", "Server", "have_programs"]

_S = TypeVar("_S", bound="Server")
_PROGRAMS = ("mariadbd", "mariadb-install-db")


def have_programs() -> bool:
    """Whether a MariaDB server can be started here."""
    return all(shutil.which(program) for program in _PROGRAMS)


def _account() -> pwd.struct_passwd | None:
    """Return who runs the servers, where root must not; None for who runs the tests."""
    return pwd.getpwnam("mysql") if os.geteuid() == 0 else None


def _as(account: pwd.struct_passwd | None) -> dict[str, Any]:
    """Return what starts a process as one.

    Not a server's own option: the watchdog might not see then where it works.
    """
    if account is None:
        return {}
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _scratch(data: Path) -> Path:
    """Make the folder for the temporary files of the server with this data directory.

    Each has one of its own: a server that starts removes all temporary tables that it
    finds in its folder, those of a server that runs, too.
    """
    scratch = Path(f"{data}.tmp")
    scratch.mkdir()
    if (account := _account()) is not None:
        os.chown(scratch, account.pw_uid, account.pw_gid)
    return scratch


def _install(data: Path) -> None:
    """Make a data directory whose root needs no password."""
    subprocess.run(
        [
            "mariadb-install-db",
            "--no-defaults",
            f"--datadir={data}",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(_scratch(data))},
        **_as(_account()),
    )


class Server:
    """One MariaDB server.

    Attributes:
        name: What it calls itself, in ``@@report_host`` too.
        port: On 127.0.0.1.
    """

    def __init__(
        self, template: Path, name: str, number: int, options: Sequence[str] = ()
    ) -> None:
        self.name = name
        self.port = free_port()
        self._number = number
        self._options = options
        self._data = template.with_name(name)
        self._scratch = _scratch(self._data)
        subprocess.run(
            ["cp", "-a", template, self._data], check=True, **_as(_account())
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._admin = sa.create_engine(
            self.url(),
            isolation_level="AUTOCOMMIT",
            poolclass=sa.NullPool,
            # Without TLS: PyMySQL would load the system's certificates each time.
            connect_args={"connect_timeout": 5, "ssl_disabled": True},
        )

    def url(self, user: str = "root", database: str = "") -> str:
        """Return how to reach it, for SQLAlchemy."""
        return f"mariadb+pymysql://{user}@127.0.0.1:{self.port}/{database}"

    @property
    def is_running(self) -> bool:
        """Whether its process exists, be it frozen."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, if it is not running, and wait until it answers."""
        if self.is_running:
            return
        command = [
            "mariadbd",
            "--no-defaults",
            f"--datadir={self._data}",
            f"--tmpdir={self._scratch}",
            f"--socket={self._data}.sock",
            f"--pid-file={self._data}.pid",
            f"--port={self.port}",
            f"--server-id={self._number}",
            f"--report-host={self.name}",
            "--bind-address=127.0.0.1",
            "--log-bin",
            "--skip-slave-start",
            # What was committed survives the end of the process, not of the machine.
            "--innodb-flush-log-at-trx-commit=2",
            "--innodb-buffer-pool-size=8M",
            *self._options,
        ]
        with Path(f"{self._data}.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, **_as(_account())
            )
        wait_until(self._answers, f"{self.name} to answer", timeout=60)

    def _answers(self) -> bool:
        try:
            self.execute("SELECT 1")
        except sa.exc.OperationalError:
            return False
        return True

    def execute(self, sql: str) -> list[tuple[Any, ...]]:
        """Execute a statement, and return its rows."""
        return [tuple(row.values()) for row in self._rows(sql)]

    def _rows(self, sql: str) -> list[Mapping[str, Any]]:
        with self._admin.connect() as connection:
            found = connection.exec_driver_sql(sql)
            return [dict(row) for row in found.mappings()] if found.returns_rows else []

    def stop(self, _mode: str = "fast") -> None:
        """Shut it down, frozen or not, as fast as it can."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self.thaw()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
            self.kill()

    def restart(self, mode: str = "fast") -> None:
        """Stop and start it, on the same port."""
        self.stop(mode)
        self.start()

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def freeze(self) -> None:
        """Stop its process: it takes connections and never answers."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Undo `freeze`."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)


class Replica(Server):
    """A server that replicates, once it was told from whom."""

    _source: Server | None = None

    def start(self) -> None:
        """Start it, if it is not running, and let it go on replicating."""
        running = self.is_running
        super().start()
        if self._source is not None and not running:
            self.execute("START SLAVE")
            wait_until(self.follows, f"{self.name} to replicate", timeout=30)

    def follow(self, primary: Server) -> None:
        """Replicate from another server, and wait until it does."""
        self._source = primary
        self.execute(
            f"CHANGE MASTER TO MASTER_HOST='127.0.0.1', MASTER_PORT={primary.port}, "
            "MASTER_USER='root', MASTER_CONNECT_RETRY=1, MASTER_USE_GTID=slave_pos"
        )
        self.execute("START SLAVE")
        wait_until(self.follows, f"{self.name} to replicate", timeout=30)

    def follows(self) -> bool:
        """Whether it replicates, and knows how far it is behind."""
        rows = self._rows("SHOW SLAVE STATUS")
        return bool(rows) and rows[0]["Seconds_Behind_Master"] is not None

    @property
    def is_promoted(self) -> bool:
        """Whether it replicates from nobody."""
        return not self._rows("SHOW SLAVE STATUS")

    def promote(self) -> None:
        """Let it replicate from nobody."""
        self.execute("STOP SLAVE")
        self.execute("RESET SLAVE ALL")

    def rebuild(self) -> None:
        """Let it replicate from the same server again; nobody has written to it."""
        if self._source is not None:
            self.follow(self._source)


class Cluster:
    """A primary and its replicas; a context manager that leaves nothing behind.

    Args:
        standbys: How many replicas.
        options: Of every server.

    Attributes:
        primary: Takes writes.
        standbys: Replicate from it.
    """

    primary: Server
    standbys: tuple[Replica, ...] = ()

    def __init__(self, standbys: int = 2, options: Sequence[str] = ()) -> None:
        self._count = standbys
        self._options = options
        self._root = Path()
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._root = stack.enter_context(_folder())
            self._open = stack
            _install(self._root / "template")
            self.primary = self.started(Server, "primary", 1)
            self.standbys = tuple(
                self.started(Replica, f"standby_{number}", number + 1)
                for number in range(1, self._count + 1)
            )
            for standby in self.standbys:
                standby.follow(self.primary)
            self._open = stack.pop_all()
        return self

    def started(self, kind: type[_S], name: str, number: int) -> _S:
        """Start one more server, which replicates from nobody yet.

        Args:
            kind: Its class.
            name: What it calls itself.
            number: Its server id.
        """
        server = kind(self._root / "template", name, number, self._options)
        self._open.callback(server.kill)
        server.start()
        return server

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def wait_replicated(self) -> None:
        """Wait until every replica shows what the primary has written."""
        ((position,),) = self.primary.execute("SELECT @@gtid_binlog_pos")
        for standby in self.standbys:
            standby.execute(f"SELECT MASTER_GTID_WAIT('{position}', 30)")

    def heal(self) -> None:
        """Bring every server back: running, thawed, replicating."""
        for server in (self.primary, *self.standbys):
            server.thaw()
            server.start()
        for standby in self.standbys:
            if standby.is_promoted:
                standby.rebuild()
        self.wait_replicated()


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    root = Path(tempfile.mkdtemp(prefix="flask-replicated-mariadb-")).resolve()
    account = _account()
    if account is not None:
        os.chown(root, account.pw_uid, account.pw_gid)
    watchdog = start_watchdog(root, account)
    try:
        yield root
    finally:
        watchdog.communicate(b"stop")
        shutil.rmtree(root, ignore_errors=True)
