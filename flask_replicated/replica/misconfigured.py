"""Binds that are not configured right, by what drivers and servers say of them.

A server that lives, and will never take this connection as it is asked for: only the
configuration can mend it. Drivers of PostgreSQL give no SQLSTATE on connect, unless
they speak the protocol themselves, so the English messages are known too.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    NotSupportedError,
    ProgrammingError,
)

from flask_replicated.errors import MisconfiguredReplicaError

__all__ = ["codes_of", "remedy_for"]

BIND = "{bind}"
"""What stands in a remedy for the setting that names the bind."""


def _words(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns))


class _Fault(NamedTuple):
    """One thing that may be wrong.

    Attributes:
        remedy: What to do about it.
        words: What a driver or a server says.
        states: SQLSTATEs, or the two characters of a whole class of them.
        codes: Numbers of MariaDB and MySQL, and of their drivers.
    """

    remedy: str
    words: re.Pattern[str]
    states: frozenset[str] = frozenset()
    codes: frozenset[int] = frozenset()

    def explains(self, text: str, state: str, code: object) -> bool:
        """Whether an error with this text, SQLSTATE and number is of its kind."""
        return (
            state in self.states
            or state[:2] in self.states
            or code in self.codes
            or self.words.search(text) is not None
        )


# More special ones first.
_FAULTS = (
    _Fault(
        "A hot standby knows no SERIALIZABLE. Give {bind} connect_args={'options': '-c "
        "default_transaction_isolation=read\\\\ committed'} and no isolation_level of "
        "that name, or set it for its account.",
        _words(r"serializable mode in a hot standby"),
    ),
    _Fault(
        "Leave target_session_attrs out of {bind}: a replica takes no writes.",
        _words(r"session is read-only", r"server is in hot standby mode"),
    ),
    _Fault(
        "Define it in ~/.pg_service.conf, or in the file that the environment's "
        "PGSERVICEFILE names; or name host and database in {bind}.",
        _words(r"definition of service", r"service file"),
    ),
    _Fault(
        "Let what {bind} says of TLS (sslmode, sslrootcert; ssl, ssl_ca) agree with "
        "what its server offers and demands.",
        _words(
            r"SSL was required",
            r"(?:SSL|GSSAPI encryption) required",
            r"SSL not in use",
            r"[Rr]efuses SSL",
            r"rejected SSL",
            r"(?:SSL|TLS) is required",
            r"support GSSAPI encryption",
            r"certificate verify failed",
            r"server certificate for",
            r"(?:certificate|private key|revocation list) file",
            r"wrong version number|unsupported protocol|handshake failure",
            r"alert (?:unknown ca|certificate required|protocol version)",
        ),
        codes=frozenset({2026, 3159}),
    ),
    _Fault(
        "Let that server's pg_hba.conf admit them. Where it demands TLS, say "
        "sslmode=require in {bind}.",
        _words(r"no pg_hba\.conf entry", r"pg_hba\.conf rejects"),
    ),
    _Fault(
        "Correct the account or its password in {bind}, or add what its server demands "
        "besides, such as TLS.",
        _words(
            r"role \".*\" does not exist",
            r"(?:password|authentication) (?:authentication )?failed",
            r"is not permitted to log in",
            r"no password supplied",
            r"no such user",
            r"login rejected",
            r"authentication method requirement",
        ),
        states=frozenset({"28"}),
        codes=frozenset(
            # A wrong password, host, way to log in; one that has expired; a lock.
            {1045, 1129, 1130, 1251, 1275, 1524, 1698, 1820, 1862, 2054, 2059}
            | {3118, 4151}
        ),
    ),
    _Fault(
        "Correct the name of the database in {bind}, or let the account connect to it.",
        _words(
            r"database \".*\" does not exist",
            r"no such database",
            r"permission denied for database",
            r"is not currently accepting connections",
        ),
        states=frozenset({"3D"}),
        codes=frozenset({1044, 1049}),
    ),
    _Fault(
        "Install it where the application runs.", _words(r"package is required for")
    ),
    _Fault(
        "Correct that option of {bind}, or leave it out.",
        _words(
            r"invalid connection option",
            r"invalid (?:\w+ value|port number|integer value|URI|value for)\b",
            r"bad value for ",
            r"unexpected keyword argument|invalid keyword argument",
            r"Unsupported argument",
            r"in connection info string",
            r"could not match \d+",
            r"requires a value",
        ),
    ),
    _Fault(
        "Correct what {bind} sets at each connect, or leave it out: its server, or a "
        "pooler before it, does not take it.",
        _words(
            r"unrecognized configuration parameter",
            r"permission denied to set parameter",
            r"parameter \".*\" cannot be (?:changed|set)",
            r"invalid command-line argument",
            r"[Uu]nsupported startup parameter",
        ),
        # What is not supported, no value, no such thing, not allowed, not now.
        states=frozenset({"0A", "22", "3F", "42", "55"}),
        # No such variable, value, right; a character set that is not known.
        codes=frozenset({1064, 1115, 1193, 1227, 1229, 1231, 1232, 1238, 1273, 2019}),
    ),
)
_OTHERWISE = (
    "Correct {bind}: its options, its creator, or what listens to its connects."
)
# A program's mistakes; what a server does raises other things.
_MISTAKES = (
    ArgumentError,
    AttributeError,
    FileNotFoundError,
    ImportError,
    LookupError,
    NotImplementedError,
    PermissionError,
    TypeError,
    ValueError,
)
_REFUSED_BY_DRIVER = (DataError, NotSupportedError, ProgrammingError)
# A peer that goes away in the midst of TLS is no matter of the configuration.
_LOST = re.compile(r"SYSCALL|EOF|eof|reset by peer|timed out")


def remedy_for(error: BaseException, bind: str = BIND) -> str | None:
    """Return what would mend a bind whose server lives; None if nothing is wrong there.

    Args:
        error: What a connect raised.
        bind: The setting that names the bind, in Python syntax.

    Returns:
        One or two sentences.
    """
    if isinstance(error, MisconfiguredReplicaError):
        return error.remedy.replace(BIND, bind)
    state, code = codes_of(error)
    text = str(getattr(error, "orig", error))
    fault = next((one for one in _FAULTS if one.explains(text, state, code)), None)
    if fault is None:
        return (
            _OTHERWISE.replace(BIND, bind) if _is_mistake(error, state, code) else None
        )
    return None if _LOST.search(text) else fault.remedy.replace(BIND, bind)


def _is_mistake(error: BaseException, state: str, code: object) -> bool:
    """Whether a program, or a driver before it has asked any server, has failed."""
    if isinstance(error, DBAPIError):
        coded = state or (isinstance(code, int) and code > 0)
        return isinstance(error, _REFUSED_BY_DRIVER) and not coded
    return isinstance(error, _MISTAKES) and not isinstance(error, UnicodeError)


def codes_of(error: BaseException) -> tuple[str, object]:
    """Return an error's SQLSTATE, or '', and the first thing that its driver says."""
    driver = error.orig if isinstance(error, DBAPIError) else error
    state = getattr(driver, "sqlstate", None) or getattr(driver, "pgcode", None)
    arguments = getattr(driver, "args", None) or (None,)
    first = arguments[0]
    if isinstance(first, dict):  # pg8000
        state, first = state or first.get("C"), first.get("M")
    return str(state or ""), first if isinstance(first, int | str) else None
