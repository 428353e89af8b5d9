"""URLs that name several hosts, which libpq's drivers try one after the other.

Their limit on connecting is one for each host. So each has a share of what the replica
has; where the shares would be less than a driver takes, the operator is told.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Engine
    from sqlalchemy.engine import Dialect

__all__ = ["NAME_A_LIMIT", "ONE_BIND_EACH", "share_of", "warn_of_hosts"]

logger = logging.getLogger("flask_replicated")

_LIBPQ = frozenset({"psycopg", "psycopg2"})
_LIMIT = "connect_timeout"
_TAKES_ONE = 170000  # the version of libpq from which on a second is not taken for two


ONE_BIND_EACH = "Give each host a bind of its own"
"""What helps a replica."""
NAME_A_LIMIT = "Say how long each host may take, as in '?connect_timeout=2'"
"""What helps a primary, whose successors its URL may well name."""


def share_of(seconds: int, dialect: Dialect, arguments: Mapping[str, Any]) -> int:
    """Return the whole seconds that each of a replica's hosts may take to connect.

    Args:
        seconds: What all may take together; drivers take no fractions.
        dialect: The replica's.
        arguments: What the driver is told.
    """
    tries = _tries(dialect, arguments)
    return seconds if tries == 1 else max(seconds // tries, _least(dialect))


def warn_of_hosts(whose: str, engine: Engine, seconds: int, remedy: str) -> None:
    """Say so if a URL's hosts together may take longer to connect than a server may.

    Args:
        whose: Whose URL it is.
        engine: Its engine.
        seconds: What a connect may take.
        remedy: What to do, unless more time is given.
    """
    dialect = engine.dialect
    if dialect.driver not in _LIBPQ:
        return
    _, arguments = dialect.create_connect_args(engine.url)
    tries = _tries(dialect, arguments)
    longest = tries * share_of(seconds, dialect, arguments)
    if longest > seconds and _LIMIT not in arguments:
        logger.warning(
            "%s: for the hosts in its URL the driver tries %d times, one after "
            "the other, and for no less than %d seconds each. So a connect may take %d "
            "seconds, and not REPLICATED_CONNECT_TIMEOUT = %d. %s, "
            "or set REPLICATED_CONNECT_TIMEOUT = %d.",
            whose,
            tries,
            _least(dialect),
            longest,
            seconds,
            remedy,
            longest,
        )


def _tries(dialect: Dialect, arguments: Mapping[str, Any]) -> int:
    """Return how many connects a driver may try for one; a name's addresses apart."""
    if dialect.driver not in _LIBPQ:
        return 1
    hosts = arguments.get("hostaddr") or arguments.get("host") or ""
    # It looks for a standby first, and then takes what there is.
    twice = arguments.get("target_session_attrs") == "prefer-standby"
    return (str(hosts).count(",") + 1) * (2 if twice else 1)


def _least(dialect: Dialect) -> int:
    """Return the fewest seconds that a driver gives to a host, whatever it is told."""
    # psycopg 3 says no such thing, and takes 1 for 2 with every libpq.
    libpq: int = getattr(dialect.dbapi, "__libpq_version__", 0)
    return 1 if libpq >= _TAKES_ONE else 2
