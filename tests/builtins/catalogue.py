"""What a PostgreSQL server's catalogue says of its own functions."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, NamedTuple

import sqlalchemy as sa

from flask_replicated.functions import LOCKING, SETTING, WRITING

if TYPE_CHECKING:
    from collections.abc import Collection

# Those that initdb has made; what an extension adds has higher numbers. A name counts
# where each function that it stands for is as harmless.
_ASK = """
SELECT proname FROM pg_proc
WHERE pronamespace = 'pg_catalog'::regnamespace AND oid < 16384
GROUP BY proname HAVING bool_and(provolatile IN ('i', 's'))
"""
_MODULE = '''"""PostgreSQL {version}'s functions that write nothing, by its catalogue.

Immutable or stable, each of its name. Written by ``python -m tests.builtins``; not to
be changed by hand.
"""

from __future__ import annotations

__all__ = ["STABLE"]

_NAMES = """
{names}
    """

STABLE = frozenset(_NAMES.split())
"""Names of functions that the server itself promises to be free of side effects."""
'''


class Catalogue(NamedTuple):
    """What a server says.

    Attributes:
        version: Its major version.
        names: Its functions that are immutable or stable, without those that are known
            to write, to lock or to set something all the same.
    """

    version: int
    names: Collection[str]


def ask(connection: sa.Connection) -> Catalogue:
    """Ask a PostgreSQL server."""
    version = connection.scalar(sa.text("SHOW server_version_num"))
    names = set(connection.scalars(sa.text(_ASK)))
    return Catalogue(int(version) // 10_000, names - LOCKING - WRITING - SETTING)


def module(found: Catalogue) -> str:
    """Return the text of the module."""
    names = textwrap.fill(
        " ".join(sorted(found.names)),
        width=88,
        initial_indent="    ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return _MODULE.format(version=found.version, names=names)
