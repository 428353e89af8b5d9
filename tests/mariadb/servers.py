"""MariaDB servers of the tests' own: a primary and what replicates from it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from examples.cluster import wait_until
from examples.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Server", "have_programs", "install"]

_PROGRAMS = ("mariadbd", "mariadb-install-db")


def have_programs() -> bool:
    """Whether a MariaDB server can be started here."""
    return all(shutil.which(program) for program in _PROGRAMS)


def _account() -> list[str]:
    return ["--user=mysql"] if os.geteuid() == 0 else []


def install(data: Path) -> None:
    """Make a data directory whose root needs no password."""
    if os.geteuid() == 0:
        shutil.chown(data.parent, "mysql")
    subprocess.run(
        [
            "mariadb-install-db",
            "--no-defaults",
            *_account(),
            f"--datadir={data}",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


class Server:
    """One MariaDB server.

    Attributes:
        url: How to reach it as root.
        name: What it calls itself.
    """

    def __init__(self, template: Path, name: str, number: int) -> None:
        self.name = name
        self.port = free_port()
        self.url = sa.URL.create(
            "mariadb+pymysql", "root", host="127.0.0.1", port=self.port
        )
        self._number = number
        self._data = template.with_name(name)
        subprocess.run(["cp", "-a", template, self._data], check=True)
        self._process: subprocess.Popen[bytes] | None = None
        self._admin = sa.create_engine(
            self.url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool
        )

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [
            "mariadbd",
            "--no-defaults",
            *_account(),
            f"--datadir={self._data}",
            f"--socket={self._data}.sock",
            f"--pid-file={self._data}.pid",
            f"--port={self.port}",
            f"--server-id={self._number}",
            "--bind-address=127.0.0.1",
            "--log-bin",
            "--skip-slave-start",
            "--innodb-flush-log-at-trx-commit=0",
            "--innodb-buffer-pool-size=8M",
        ]
        with Path(f"{self._data}.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_until(self._answers, f"{self.name} to answer", timeout=60)

    def _answers(self) -> bool:
        try:
            self.execute("SELECT 1")
        except sa.exc.OperationalError:
            return False
        return True

    def execute(self, sql: str) -> list[Mapping[str, Any]]:
        """Execute a statement, and return its rows."""
        with self._admin.connect() as connection:
            found = connection.exec_driver_sql(sql)
            return [dict(row) for row in found.mappings()] if found.returns_rows else []

    def follow(self, primary: Server) -> None:
        """Replicate from another server, and wait until it does."""
        self.execute(
            f"CHANGE MASTER TO MASTER_HOST='127.0.0.1', MASTER_PORT={primary.port}, "
            "MASTER_USER='root', MASTER_CONNECT_RETRY=1, MASTER_USE_GTID=slave_pos"
        )
        self.execute("START SLAVE")
        wait_until(self.follows, f"{self.name} to replicate", timeout=30)

    def follows(self) -> bool:
        """Whether it replicates, and knows how far it is behind."""
        rows = self.execute("SHOW SLAVE STATUS")
        return bool(rows) and rows[0]["Seconds_Behind_Master"] is not None

    def promote(self) -> None:
        """Let it replicate from nobody."""
        self.execute("STOP SLAVE")
        self.execute("RESET SLAVE ALL")

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
