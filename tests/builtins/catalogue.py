"""What a PostgreSQL server's catalogue says of its own functions."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, NamedTuple

import sqlalchemy as sa

from flask_replicated.sql.function_names import LOCKING, SETTING, WRITING

if TYPE_CHECKING:
    from collections.abc import Collection

# Those that initdb has made; what an extension adds has higher numbers. A name counts
# where each function that it stands for is as harmless. What only serves operators,
# types, indexes and aggregates is called by no name of its own, and its name may be a
# user's: charge() compares characters.
_ASK = """
WITH support (oid) AS (
    SELECT unnest(ARRAY[oprcode, oprrest, oprjoin]::oid[]) FROM pg_operator
    UNION SELECT unnest(ARRAY[
        typinput, typoutput, typreceive, typsend, typmodin, typmodout, typanalyze,
        typsubscript
    ]::oid[]) FROM pg_type
    UNION SELECT unnest(ARRAY[rngcanonical, rngsubdiff]::oid[]) FROM pg_range
    UNION SELECT amproc FROM pg_amproc
    UNION SELECT unnest(ARRAY[
        aggtransfn, aggfinalfn, aggcombinefn, aggserialfn, aggdeserialfn, aggmtransfn,
        aggminvtransfn, aggmfinalfn
    ]::oid[]) FROM pg_aggregate
    UNION SELECT oid FROM pg_proc
    WHERE prorettype::regtype::text ~ '(internal|cstring|handler|trigger)$'
    OR proargtypes::oid[] && ARRAY['internal', 'cstring']::regtype[]::oid[]
)
SELECT proname, bool_and(oid IN (SELECT oid FROM support)) FROM pg_proc
WHERE pronamespace = 'pg_catalog'::regnamespace AND oid < 16384
GROUP BY proname HAVING bool_and(provolatile IN ('i', 's'))
"""
# Of these, what is documented as a function, or what applications call all the same:
# hashes for advisory locks, and operators whose "?" a driver takes for a parameter.
_NAMED = """
    array_append array_cat array_prepend bound_box hashint4 hashint4extended
    hashint8 hashint8extended hashtext hashtextextended inet_merge inet_same_family
    json_array_element json_array_element_text json_extract_path
    json_extract_path_text json_object_field json_object_field_text
    jsonb_array_element jsonb_array_element_text jsonb_concat jsonb_contained
    jsonb_contains jsonb_delete jsonb_delete_path jsonb_exists jsonb_exists_all
    jsonb_exists_any jsonb_extract_path jsonb_extract_path_text jsonb_object_field
    jsonb_object_field_text range_contains range_contains_elem
    range_overlaps starts_with ts_match_vq tsquery_and tsquery_not tsquery_or
    tsvector_concat
    """
_CALLED = frozenset(_NAMED.split())
_MODULE = '''"""PostgreSQL {version}'s functions that write nothing, by its catalogue.

Immutable or stable, each of its name, and called by it: what only serves operators,
types, indexes and aggregates is left out. Written by ``python -m tests.builtins``;
not to be changed by hand.
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
        names: Its functions that are immutable or stable and called by name, without
            those that are known to write, to lock or to set something all the same.
        support: Its functions that only serve its operators, types, indexes and
            aggregates.
    """

    version: int
    names: Collection[str]
    support: Collection[str]


def ask(connection: sa.Connection) -> Catalogue:
    """Ask a PostgreSQL server."""
    version = connection.scalar(sa.text("SHOW server_version_num"))
    rows = connection.execute(sa.text(_ASK)).all()
    found: dict[str, bool] = {row[0]: row[1] for row in rows}
    support = {name for name, serves in found.items() if serves} - _CALLED
    names = found.keys() - support - LOCKING - WRITING - SETTING
    return Catalogue(int(version) // 10_000, names, support)


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
