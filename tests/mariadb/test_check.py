"""``flask replicated check`` on MariaDB: what it finds, and what it advises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.doctor import examined, printed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.mariadb.conftest import Servers
    from tests.mariadb.servers import Server

pytestmark = pytest.mark.mariadb

COMMITTED = {"isolation_level": "READ COMMITTED"}


@pytest.fixture
def account(servers: Servers) -> Iterator[str]:
    """Give an account with a password, that may read one database and no more."""
    primary, replica, _ = servers
    primary.execute("CREATE DATABASE doctor")
    primary.execute("CREATE USER limited IDENTIFIED BY 'hush-hush'")
    primary.execute("GRANT SELECT ON doctor.* TO limited")
    ((position,),) = primary.execute("SELECT @@gtid_binlog_pos")
    replica.execute(f"SELECT MASTER_GTID_WAIT('{position}', 30)")
    yield "limited:hush-hush"
    primary.execute("DROP USER limited")
    primary.execute("DROP DATABASE doctor")


def replica_bind(server: Server, account: str = "root", **more: Any) -> dict[str, Any]:
    """Return a replica's bind as it should be."""
    return {"url": server.url(account, "doctor"), **COMMITTED, **more}


def test_sound(servers: Servers, account: str) -> None:
    """A sound set-up takes one line, and exits with 0."""
    primary, replica, _ = servers
    said = printed(primary.url(account, "doctor"), {"slave": replica_bind(replica)})
    assert said == (0, "sound: 2 servers answered, and nothing is to be mended\n")


def test_default_isolation_level(servers: Servers, account: str) -> None:
    """REPEATABLE READ is a warning, unless each statement is a transaction."""
    primary, replica, _ = servers
    url = primary.url(account, "doctor")
    told = examined(url, {"slave": replica.url("root", "doctor")})
    assert told.found == [("slave", "warning", "isolation")]
    assert told.remedies["slave", "isolation"] == (
        "SQLALCHEMY_BINDS['slave'] = {'url': ..., 'isolation_level': 'READ COMMITTED'}"
    )
    each = replica_bind(replica, isolation_level="AUTOCOMMIT")
    assert examined(url, {"slave": each}).code == 0


def test_rights(servers: Servers, account: str) -> None:
    """What the account may not ask for is a warning, with the SQL that mends it."""
    primary, replica, _ = servers
    places = primary.url(account, "doctor"), {"slave": replica_bind(replica, account)}
    told = examined(*places)
    assert told.found == [("slave", "warning", "privilege")]
    remedy = told.remedies["slave", "privilege"]
    assert "GRANT SLAVE MONITOR ON *.* TO 'limited'@'%';" in remedy
    replica.execute(remedy.partition(": ")[2].replace("%", "%%"))
    try:
        assert examined(*places).code == 0
    finally:
        replica.execute("REVOKE SLAVE MONITOR ON *.* FROM limited")


def test_binds_that_lead_nowhere(servers: Servers, account: str) -> None:
    """All are found at once, each with its remedy, and no password is shown."""
    primary, replica, other = servers
    other.execute("CREATE DATABASE doctor")
    try:
        told = examined(
            primary.url(account, "doctor"),
            {
                "slave_1": replica_bind(replica, "limited:hush-hash"),
                "slave_2": {
                    **replica_bind(replica),
                    "url": replica.url("root", "none"),
                },
                "slave_3": {
                    **replica_bind(replica),
                    "url": replica.url("root", "mysql"),
                },
                "slave_4": replica_bind(other),
                "slave_5": replica_bind(primary),
                "slave_6": replica_bind(replica),
            },
        )
    finally:
        other.execute("DROP DATABASE doctor")
    assert told.found == [
        ("slave_1", "error", "refused"),
        ("slave_2", "error", "refused"),
        ("slave_3", "error", "database"),
        ("slave_4", "error", "role"),
        ("slave_5", "warning", "primary"),
    ]
    assert "account or its password" in told.remedies["slave_1", "refused"]
    assert "name of the database" in told.remedies["slave_2", "refused"]
    assert "a copy of the primary's database" in told.remedies["slave_3", "database"]
    assert "START SLAVE;" in told.remedies["slave_4", "role"]
    assert "hush" not in f"{told}"


def test_leads_to_the_primary(servers: Servers, account: str) -> None:
    """Without another replica that is an error."""
    primary, _, _ = servers
    told = examined(primary.url(account, "doctor"), {"slave": replica_bind(primary)})
    assert told.found == [("slave", "error", "primary")]
    assert "name a replica's server" in told.remedies["slave", "primary"]


def test_frozen(servers: Servers, account: str) -> None:
    """A server that takes connections and says nothing keeps nobody waiting."""
    primary, replica, _ = servers
    replica.freeze()
    try:
        told = examined(
            primary.url(account, "doctor"),
            {"slave": replica_bind(replica)},
            REPLICATED_CONNECT_TIMEOUT=1,
        )
    finally:
        replica.thaw()
    assert told.found == [("slave", "error", "unreachable")]
    assert "see why it hangs" in told.remedies["slave", "unreachable"]
