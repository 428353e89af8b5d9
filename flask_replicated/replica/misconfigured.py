"""Recognises misconfigured binds by the errors of drivers and servers.

The server is alive, and will never accept this connection: only a change of the
configuration helps. Drivers that use libpq give no SQLSTATE on connect, so the English
messages are matched too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    NotSupportedError,
    ProgrammingError,
)

from flask_replicated.errors import MisconfiguredReplicaError
from flask_replicated.system.patterns import pattern

if TYPE_CHECKING:
    import re

__all__ = ["codes_of", "is_file_error", "remedy_for"]

BIND = "{bind}"
"""The placeholder in a remedy for the setting that names the bind."""


def _words(*patterns: str) -> re.Pattern[str]:
    return pattern("|".join(patterns))


class _Mistake(NamedTuple):
    """One kind of misconfiguration.

    Attributes:
        remedy: What to do about it.
        words: Matches the message of a driver or a server.
        states: SQLSTATEs, or the first two characters of a whole class.
        codes: Error codes of MariaDB and MySQL, and of their drivers.
    """

    remedy: str
    words: re.Pattern[str]
    states: frozenset[str] = frozenset()
    codes: frozenset[int] = frozenset()

    def explains(self, text: str, state: str, code: object) -> bool:
        """Whether an error with this text, SQLSTATE and code is of this kind."""
        return (
            state in self.states
            or state[:2] in self.states
            or code in self.codes
            or self.words.search(text) is not None
        )


# The more specific ones first.
_KNOWN = (
    _Mistake(
        "A hot standby knows no SERIALIZABLE. Give {bind} connect_args={'options': '-c "
        "default_transaction_isolation=read\\\\ committed'} and no isolation_level of "
        "that name, or set it for its account.",
        _words(r"serializable mode in a hot standby"),
    ),
    _Mistake(
        "Leave target_session_attrs out of {bind}: a replica takes no writes.",
        _words(
            r"session is read-only",
            r"server is in hot standby mode",
            r"[Nn]one of the hosts match the target attribute requirement",
        ),
    ),
    _Mistake(
        "Define it in ~/.pg_service.conf, or in the file that the environment's "
        "PGSERVICEFILE names; or name host and database in {bind}.",
        _words(r"definition of service", r"service file"),
    ),
    _Mistake(
        "Let what {bind} says of TLS (sslmode, channel_binding, sslrootcert; ssl, "
        "ssl_ca) agree with what its server offers and demands.",
        _words(
            r"SSL was required",
            r"(?:SSL|GSSAPI encryption) required",
            r"SSL not in use",
            r"[Rr]efuses SSL",
            r"rejected SSL",
            r"(?:SSL|TLS) is required",
            r"support GSSAPI encryption",
            r"channel binding (?:is )?required",
            r"certificate verify failed",
            r"server certificate for",
            r"(?:certificate|private key|revocation list) file",
            r"wrong version number|unsupported protocol|handshake failure",
            r"alert (?:unknown ca|certificate required|protocol version)",
        ),
        codes=frozenset({2026, 3159}),
    ),
    _Mistake(
        "Let that server's pg_hba.conf admit them. Where it demands TLS, say "
        "sslmode=require in {bind}.",
        _words(r"no pg_hba\.conf entry", r"pg_hba\.conf rejects"),
    ),
    _Mistake(
        "Correct the account in {bind}, or the role that its options set at each "
        "connect (-c role=...); its server does not know one of them.",
        _words(r"role \".*\" does not exist"),
    ),
    _Mistake(
        "Correct the account or its password in {bind}, or add what its server demands "
        "besides, such as TLS.",
        _words(
            r"(?:password|authentication) (?:authentication )?failed",
            r"is not permitted to log in",
            r"no password supplied",
            r"no such user",
            r"login rejected",
            r"authentication method requirement",
        ),
        states=frozenset({"28"}),
        codes=frozenset(
            # A wrong password, client host or login method; an expired one; a lock.
            {1045, 1129, 1130, 1251, 1275, 1524, 1698, 1820, 1862, 2054, 2059}
            | {3118, 4151}
        ),
    ),
    _Mistake(
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
    _Mistake(
        "Install it where the application runs.", _words(r"package is required for")
    ),
    _Mistake(
        "Correct that option of {bind}, or leave it out.",
        _words(
            r"invalid connection option",
            r"invalid (?:\w+ value|port number|integer value|URI|value for)\b",
            r"bad value for ",
            r"unexpected keyword argument|invalid keyword argument",
            r"Unsupported argument",
            r"in connection info string",
            r"could not parse network address",
            r"could not match \d+",
            r"requires a value",
        ),
    ),
    _Mistake(
        "Correct what {bind} sets at each connect, or leave it out: its server, or a "
        "pooler before it, does not take it.",
        _words(
            r"unrecognized configuration parameter",
            r"permission denied to set parameter",
            r"parameter \".*\" cannot be (?:changed|set)",
            r"invalid command-line argument",
            r"[Uu]nsupported startup parameter",
        ),
        # Not supported, an invalid value, no such object, not allowed, not now.
        states=frozenset({"0A", "22", "3F", "42", "55"}),
        # An unknown variable, value, privilege or character set.
        codes=frozenset({1064, 1115, 1193, 1227, 1229, 1231, 1232, 1238, 1273, 2019}),
    ),
)
_OTHERWISE = (
    "Correct {bind}: its options, its creator, or what listens to its connects."
)
# Mistakes in a program; a server causes other errors.
_PROGRAMMING_ERRORS = (
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
# A peer that disconnects during the TLS handshake is no misconfiguration.
_LOST = pattern(r"SYSCALL|EOF|eof|reset by peer|timed out")


def remedy_for(error: BaseException, bind: str = BIND) -> str | None:
    """Return how to correct a bind; None if the error is no misconfiguration.

    Args:
        error: What a connect raised.
        bind: The setting that names the bind, in Python syntax.

    Returns:
        One or two sentences.
    """
    if isinstance(error, MisconfiguredReplicaError):
        return error.remedy.replace(BIND, bind)
    if is_file_error(error):
        return None
    state, code = codes_of(error)
    text = str(getattr(error, "orig", error))
    mistake = next((one for one in _KNOWN if one.explains(text, state, code)), None)
    if mistake is None:
        return (
            _OTHERWISE.replace(BIND, bind) if _is_mistake(error, state, code) else None
        )
    return None if _LOST.search(text) else mistake.remedy.replace(BIND, bind)


def _is_mistake(error: BaseException, state: str, code: object) -> bool:
    """Whether the error was raised before any server was asked."""
    if isinstance(error, DBAPIError):
        coded = state or (isinstance(code, int) and code > 0)
        return isinstance(error, _REFUSED_BY_DRIVER) and not coded
    return isinstance(error, _PROGRAMMING_ERRORS) and not isinstance(
        error, UnicodeError
    )


# A file that must not be opened has the SQLSTATE of a table that must not be read; one
# that is no file, that of an object of the wrong kind.
_FILE = pattern(r'"(?:base|global|pg_tblspc)/\d')
_FILE_STATES = frozenset({"42501", "42809"})


def is_file_error(error: BaseException) -> bool:
    """Whether a PostgreSQL server cannot open one of its own files."""
    state, _ = codes_of(error)
    text = str(getattr(error, "orig", error))
    return state in _FILE_STATES and _FILE.search(text) is not None


def codes_of(error: BaseException) -> tuple[str, object]:
    """Return an error's SQLSTATE, or '', and its driver's code or first message."""
    driver = error.orig if isinstance(error, DBAPIError) else error
    state = getattr(driver, "sqlstate", None) or getattr(driver, "pgcode", None)
    arguments = getattr(driver, "args", None) or (None,)
    first = arguments[0]
    if isinstance(first, dict):  # pg8000
        state, first = state or first.get("C"), first.get("M")
    return str(state or ""), first if isinstance(first, int | str) else None
