"""How the replicas of each database are held back, and led to another primary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from examples.cluster import wait_until
from tests.chaos.postgresql import follow

from .clients import REGISTERS

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["REPLICATIONS", "Replication"]


_NUMBERS: Final = f"chaos.seq_0_to_{REGISTERS - 1}"


class Replication(Protocol):
    """What a database offers for that."""

    def prepare(self, cluster: Any) -> None:
        """Create the registers anew, at version 0."""

    def pause(self, standby: Any) -> None:
        """Let the standby show nothing new."""

    def resume(self, standby: Any) -> None:
        """Undo `pause`."""

    def delay(self, standby: Any, seconds: float) -> None:
        """Let each commit be shown so much later than on the primary."""

    def retire(self, cluster: Any) -> None:
        """Shut the primary down, which no client can reach, and lose nothing."""

    def follow(self, standby: Any, primary: Any) -> None:
        """Let a standby replicate from another server."""


class _PostgreSQL:
    def prepare(self, cluster: Any) -> None:
        primary = cluster.primary
        primary.execute("drop table if exists register")
        primary.execute(
            "create table register (id int primary key, version int not null)"
        )
        rows = f"select n, 0 from generate_series(0, {REGISTERS - 1}) n"
        primary.execute(f"insert into register {rows}")
        cluster.wait_replicated()

    def pause(self, standby: Any) -> None:
        standby.execute("select pg_wal_replay_pause()")

    def resume(self, standby: Any) -> None:
        standby.execute("select pg_wal_replay_resume()")

    def delay(self, standby: Any, seconds: float) -> None:
        wanted = f"{seconds * 1000:.0f}ms"
        standby.execute(f"alter system set recovery_min_apply_delay = '{wanted}'")
        standby.execute("select pg_reload_conf()")

    def retire(self, cluster: Any) -> None:
        cluster.wait_replicated()
        # It waits until its standbys have received all that it has written.
        cluster.primary.stop("fast")

    def follow(self, standby: Any, primary: Any) -> None:
        follow(standby, f"host=127.0.0.1 port={primary.port} user=postgres")


class _MariaDB:
    def prepare(self, cluster: Any) -> None:
        for sql in (
            "create database if not exists chaos",
            "drop table if exists chaos.register",
            "create table chaos.register (id int primary key, version int not null)",
            f"insert into chaos.register select seq, 0 from {_NUMBERS}",
        ):
            cluster.primary.execute(sql)
        cluster.wait_replicated()

    def pause(self, standby: Any) -> None:
        standby.execute("STOP SLAVE SQL_THREAD")

    def resume(self, standby: Any) -> None:
        standby.execute("START SLAVE")

    def delay(self, standby: Any, seconds: float) -> None:
        standby.execute("STOP SLAVE")
        standby.execute(f"CHANGE MASTER TO MASTER_DELAY = {round(seconds)}")
        standby.execute("START SLAVE")

    def retire(self, cluster: Any) -> None:
        # A client that was cut off in its commit is no excuse to lose it.
        others = (
            "select id from information_schema.processlist where user = 'root' "
            "and command <> 'Binlog Dump' and id <> connection_id()"
        )
        wait_until(lambda: not cluster.primary.execute(others), "clients to be gone")
        cluster.wait_replicated()
        cluster.primary.stop()

    def follow(self, standby: Any, primary: Any) -> None:
        standby.execute("STOP SLAVE")
        standby.follow(primary)


REPLICATIONS: Final[Mapping[str, Replication]] = {
    "postgresql": _PostgreSQL(),
    "mariadb": _MariaDB(),
}
