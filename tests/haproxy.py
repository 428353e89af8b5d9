"""HAProxy in front of several servers, for tests that have it installed."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from examples.cluster import wait_until
from examples.servers import free_port
from tests.pgbouncer import listens

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["PROGRAM", "haproxy"]

PROGRAM: Final = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
"""Its path; None where it is not installed."""

_SETTINGS: Final = """
defaults
    mode tcp
    timeout connect 1s
    timeout client {idle}
    timeout server {idle}
listen reads
    bind 127.0.0.1:{port}
    balance roundrobin
    default-server inter 200ms fall 1 rise 1 on-marked-down shutdown-sessions
"""


@contextlib.contextmanager
def haproxy(*targets: int, idle: str = "1h") -> Iterator[int]:
    """Run it in front of the servers on these ports; yield its own port.

    Args:
        targets: On 127.0.0.1.
        idle: For how long a connection may be idle, in HAProxy's words.
    """
    if PROGRAM is None:
        raise RuntimeError("HAProxy is not installed.")
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder, "haproxy.cfg")
        settings.write_text(_SETTINGS.format(port=port, idle=idle) + _servers(targets))
        process = subprocess.Popen([PROGRAM, "-q", "-db", "-f", str(settings)])
        try:
            wait_until(lambda: listens(port), "HAProxy to listen")
            yield port
        finally:
            process.kill()
            process.wait()


def _servers(targets: Sequence[int]) -> str:
    return "".join(f"    server s{one} 127.0.0.1:{one} check\n" for one in targets)
