"""What drivers and servers say of a bind that is not configured right."""

from __future__ import annotations

import pickle
import ssl
from typing import Any

import pytest
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InterfaceError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
)

from flask_replicated.errors import MisconfiguredReplicaError, ReplicaSilentError
from flask_replicated.replica.failures import Verdict, judge_connect
from flask_replicated.replica.misconfigured import remedy_for

PLACE = 'connection to server at "10.0.0.7", port 5432 failed: '
FATAL = f"{PLACE}FATAL:  "


def error(
    *arguments: object,
    kind: type[DBAPIError] = OperationalError,
    **attributes: object,
) -> DBAPIError:
    """Return a driver's error as SQLAlchemy raises it."""
    driver = Exception(*arguments)
    vars(driver).update(attributes)
    return kind("", None, driver)


ACCOUNT, DATABASE, TLS, OPTION = "the account", "the database", "of TLS", "that option"
SETTING, SERVICE = "sets at each connect", "PGSERVICEFILE"

WRONG = {
    "password": (error(f'{FATAL}password authentication failed for user "x"'), ACCOUNT),
    "no password": (error(f"{PLACE}fe_sendauth: no password supplied"), ACCOUNT),
    "no login": (error(f'{FATAL}role "x" is not permitted to log in'), ACCOUNT),
    "MySQL's account": (error(1045, "Access denied for user 'x'@'y'"), ACCOUNT),
    "MariaDB's lock": (error(4151, "Access denied, this account is locked"), ACCOUNT),
    "MySQL's host": (error(1130, "Host 'y' is not allowed to connect"), ACCOUNT),
    "pg8000's password": (error({"C": "28P01", "M": "mot de passe"}), ACCOUNT),
    "asyncpg's password": (error("Passwort", sqlstate="28P01"), ACCOUNT),
    "no such role": (error(f'{FATAL}role "shop" does not exist'), "-c role="),
    "channel binding": (
        error(
            f"{PLACE}channel binding required, but server authenticated client without "
            "channel binding"
        ),
        "channel_binding",
    ),
    "no channel binding": (
        error(f"{PLACE}channel binding is required, but server did not offer it"),
        "channel_binding",
    ),
    "hostaddr": (
        error('could not parse network address "db": Name or service not known'),
        OPTION,
    ),
    "asyncpg's read-write": (
        Exception(
            "None of the hosts match the target attribute requirement "
            "SessionAttribute.primary"
        ),
        "target_session_attrs",
    ),
    "not admitted": (
        error(f'{FATAL}no pg_hba.conf entry for host "y", user "x", no encryption'),
        "pg_hba.conf admit",
    ),
    "rejected": (error(f'{FATAL}pg_hba.conf rejects connection for "y"'), "pg_hba"),
    "database": (error(f'{FATAL}database "x" does not exist'), DATABASE),
    "closed": (
        error(f'{FATAL}database "x" is not currently accepting connections'),
        DATABASE,
    ),
    "MySQL's database": (error(1049, "Unknown database 'x'"), DATABASE),
    "PgBouncer's": (error(f"{FATAL}no such database: x"), DATABASE),
    "TLS is absent": (
        error(f"{PLACE}server does not support SSL, but SSL was required"),
        TLS,
    ),
    "TLS is demanded": (
        error(3159, "Connections using insecure transport are prohibited"),
        TLS,
    ),
    "PyMySQL's TLS": (error(2026, "SSL is required but the server doesn't"), TLS),
    "pg8000's TLS": (error("Server refuses SSL", kind=InterfaceError), TLS),
    "asyncpg's TLS": (ConnectionError('server at "y" rejected SSL upgrade'), TLS),
    "certificate": (
        ssl.SSLCertVerificationError(1, "[SSL] certificate verify failed: expired"),
        TLS,
    ),
    "certificate's name": (
        error(f'{PLACE}server certificate for "a" does not match host name "b"'),
        TLS,
    ),
    "authority": (
        error(f'{PLACE}root certificate file "/ca.pem" does not exist'),
        TLS,
    ),
    "psycopg's option": (
        error('invalid connection option "nope"', kind=ProgrammingError),
        OPTION,
    ),
    "libpq's value": (error('invalid sslmode value: "sure"'), OPTION),
    "libpq's port": (error('invalid port number: "99999"'), OPTION),
    "PyMySQL's option": (TypeError("got an unexpected keyword argument 'a'"), OPTION),
    "mysqlclient's option": (
        TypeError("'a' is an invalid keyword argument for connect()"),
        OPTION,
    ),
    "startup parameter": (
        error(f'{FATAL}unrecognized configuration parameter "a"'),
        SETTING,
    ),
    "its right": (error(f'{FATAL}permission denied to set parameter "a"'), SETTING),
    "PgBouncer's parameter": (
        error(f"{FATAL}unsupported startup parameter: extra_float_digits"),
        SETTING,
    ),
    "asyncpg's parameter": (error("Parameter", sqlstate="42704"), SETTING),
    "init_command": (error(1193, "Unknown system variable 'a'"), SETTING),
    "collation": (error(1273, "Unknown collation: 'utf8mb4_0900_ai_ci'"), SETTING),
    "service": (error('definition of service "x" not found'), SERVICE),
    "service file": (error('service file "/x.conf" not found'), SERVICE),
    "serializable": (
        error(
            "cannot use serializable mode in a hot standby",
            kind=NotSupportedError,
            sqlstate="0A000",
        ),
        r"default_transaction_isolation=read\\ committed",
    ),
    "read-write": (error(f"{PLACE}session is read-only"), "target_session_attrs"),
    "package": (RuntimeError("'cryptography' package is required for this"), "Install"),
    "ports": (ArgumentError("number of hosts and ports don't match"), "creator"),
    "a file of PyMySQL's": (FileNotFoundError(2, "No such file"), "creator"),
    "a creator's mistake": (KeyError("token"), "creator"),
    "mysqlconnector's": (
        error(-1, "Character set 'x' unsupported", kind=ProgrammingError),
        "creator",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_remedies(name: str) -> None:
    """Each has a remedy, which names the bind's setting or the place to go to."""
    raised, word = WRONG[name]
    assert judge_connect(raised) is Verdict.MISCONFIGURED
    remedy = remedy_for(raised, "SQLALCHEMY_BINDS['slave_1']")
    assert remedy is not None
    assert word in remedy
    assert "{bind}" not in remedy
    assert remedy.endswith(".")


def test_said_already() -> None:
    """An error of this package's own says what to do by itself."""
    raised = MisconfiguredReplicaError("slave_1", "it has another database")
    assert judge_connect(raised) is Verdict.MISCONFIGURED
    assert remedy_for(raised) == ""
    raised = MisconfiguredReplicaError("slave_1", "it is not there", "Let {bind} be.")
    assert remedy_for(raised, "BINDS['slave_1']") == "Let BINDS['slave_1'] be."
    again = pickle.loads(pickle.dumps(raised))
    assert vars(again) == vars(raised)


@pytest.mark.parametrize(
    "raised",
    [
        error(f"{PLACE}Connection refused"),
        error(f"{FATAL}the database system is starting up"),
        error(f"{FATAL}the database system is shutting down", sqlstate="57P03"),
        error({"C": "57P03", "M": "starting up"}, kind=ProgrammingError),
        error("[Errno -2] Name or service not known"),
        error(f"{PLACE}SSL SYSCALL error: EOF detected"),
        error(2026, "SSL connection error: unexpected eof while reading"),
        error(2003, "Can't connect to MySQL server on 'y' (timed out)"),
        error(2013, "Lost connection to MySQL server during query"),
        error(f"{FATAL}query_wait_timeout"),
        OSError("no route to host"),
        UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "a message in another language"),
        ReplicaSilentError("slave_1", 2),
    ],
)
def test_down(raised: Any) -> None:
    """What time may mend is no matter of the configuration."""
    assert judge_connect(raised) is Verdict.DOWN
    assert remedy_for(raised) is None


@pytest.mark.parametrize(
    "raised",
    [
        error(f"{FATAL}sorry, too many clients already"),
        error(f"{FATAL}no more connections allowed (max_client_conn)"),
        error(1226, "has exceeded the 'max_questions' resource", sqlstate="42000"),
        error(1203, "too many", sqlstate="42000"),
    ],
)
def test_busy(raised: DBAPIError) -> None:
    """A server that is full is configured right, whatever the class of its code."""
    assert judge_connect(raised) is Verdict.BUSY
