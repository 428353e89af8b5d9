"""PgBouncer in front of one PostgreSQL server, for tests that have it installed."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from examples.cluster import wait_until
from examples.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["DRIVER_OPTIONS", "PROGRAM", "listens", "pgbouncer"]

PROGRAM: Final = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
"""Its path; None where it is not installed."""

DRIVER_OPTIONS: Final[Mapping[str, Any]] = {"connect_args": {"prepare_threshold": None}}
"""What psycopg 3 needs behind it: before 1.21 it knows no prepared statements."""

_SETTINGS: Final = """
[databases]
postgres = host=127.0.0.1 port={target} dbname=postgres user=postgres
{alias} = host=127.0.0.1 port={target} dbname=postgres user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = {size}
max_client_conn = 500
server_login_retry = 1
logfile = {folder}/log
pidfile = {folder}/pid
"""


@contextlib.contextmanager
def pgbouncer(
    target: int, mode: str = "session", size: int = 50, alias: str = "other_name"
) -> Iterator[int]:
    """Run it in front of the server on port *target*; yield its own port.

    Args:
        target: On 127.0.0.1.
        mode: ``session`` or ``transaction``.
        size: How many connections to the server it keeps at most.
        alias: What the database ``postgres`` is called besides.
    """
    if PROGRAM is None:
        raise RuntimeError("PgBouncer is not installed.")
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)  # it will not run as root
        settings = Path(folder, "settings.ini")
        settings.write_text(
            _SETTINGS.format(
                target=target,
                port=port,
                mode=mode,
                size=size,
                folder=folder,
                alias=alias,
            )
        )
        settings.chmod(0o644)
        account = ["-u", "nobody"] if os.geteuid() == 0 else []
        process = subprocess.Popen([PROGRAM, "-q", *account, str(settings)])
        try:
            wait_until(lambda: listens(port), "PgBouncer to listen")
            yield port
        finally:
            process.kill()
            process.wait()


def listens(port: int) -> bool:
    """Whether somebody takes connections on this port of 127.0.0.1."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False
