"""PostgreSQL's own functions are known, by what its catalogue says of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from flask_replicated.sql.constructs import Classifier
from flask_replicated.sql.function_names import LOCKING, PURE, WRITING
from flask_replicated.sql.postgresql_functions import STABLE
from tests.builtins.__main__ import TARGET
from tests.builtins.catalogue import Catalogue, ask, module

if TYPE_CHECKING:
    from collections.abc import Iterator

    from examples.cluster import Cluster

pytestmark = pytest.mark.postgres

may_write = Classifier(dialect="postgresql").text.may_write
# Renamed or dropped since, and of no use to an application.
GONE = {"interval_accum", "interval_accum_inv", "interval_combine"}
OLDER = "postgresql+psycopg://postgres:postgres@127.0.0.1:5432/postgres"


def calls(name: str) -> str:
    """Return a query that calls a function by its name."""
    return f'SELECT "{name}"(1)'


@pytest.fixture
def catalogue(cluster: Cluster) -> Iterator[Catalogue]:
    """Give what the wheel's server says."""
    engine = sa.create_engine(cluster.primary.url())
    with engine.connect() as connection:
        yield ask(connection)
    engine.dispose()


def test_the_module_is_what_the_server_says(catalogue: Catalogue) -> None:
    """Nobody has changed it by hand, and it is of this version, or of a newer one."""
    head = TARGET.read_text(encoding="utf-8").partition("'")[0]
    generated = int(head.removeprefix('"""PostgreSQL '))
    assert generated >= catalogue.version
    if generated == catalogue.version:
        assert TARGET.read_text(encoding="utf-8") == module(catalogue)
        assert set(catalogue.names) == STABLE


def test_none_of_them_may_write(catalogue: Catalogue) -> None:
    """What the server itself calls free of side effects is no suspicion."""
    known = [name for name in catalogue.names if name in STABLE]
    assert len(known) > 600
    assert not [name for name in known if may_write(calls(name))]


def test_what_nobody_calls(catalogue: Catalogue) -> None:
    """A user's own function may be named as what serves an operator or a type."""
    named = {"charge", "texteq", "textin", "float8_accum", "btint4cmp", "eqsel"}
    assert named <= set(catalogue.support)
    assert not set(catalogue.support) & STABLE
    known = [n for n in catalogue.support if not may_write(calls(n))]
    assert known == []


CALLED = """
    lower upper date_part date_trunc jsonb_set jsonb_agg jsonb_exists int4range text
    date float8 timezone power position substring overlaps starts_with hashtext
    array_append array_cat json_extract_path to_char to_tsvector ts_rank count sum
    age pg_typeof pg_get_viewdef quote_literal string_agg percentile_cont unnest
    """


@pytest.mark.parametrize("name", CALLED.split())
def test_what_is_called_is_kept(name: str) -> None:
    """What applications call by name is known, also where it serves an operator."""
    assert name in STABLE


def test_an_older_server() -> None:
    """One of version 15 has few that are not known, and statistics are all of them."""
    engine = sa.create_engine(OLDER, connect_args={"connect_timeout": 2})
    try:
        with engine.connect() as connection:
            found = ask(connection)
    except sa.exc.OperationalError:
        pytest.skip("no PostgreSQL takes postgres on port 5432")
    finally:
        engine.dispose()
    unknown = set(found.names) - STABLE - GONE
    assert not [one for one in unknown if not one.startswith(("pg_stat_", "pg_time"))]


EXTENSIONS = (
    "pg_trgm unaccent fuzzystrmatch cube earthdistance hstore ltree tablefunc vector "
    "pgcrypto uuid-ossp postgis"
)
OF_EXTENSIONS = """
SELECT DISTINCT proname, provolatile FROM pg_proc JOIN pg_depend
ON objid = pg_proc.oid AND classid = 'pg_proc'::regclass AND deptype = 'e'
"""
# Each makes new values, and nothing else.
MAKES_VALUES = {"normal_rand", "gen_salt", "gen_random_bytes", "gen_random_uuid"}


def test_extensions(cluster: Cluster) -> None:
    """Of extensions' functions those are known that only compute, if they are there."""
    engine = sa.create_engine(cluster.primary.url())
    with engine.connect() as connection:
        offered = sa.text("SELECT name FROM pg_available_extensions")
        names = set(connection.scalars(offered)) & set(EXTENSIONS.split())
        for name in sorted(names):  # never committed
            connection.execute(
                sa.text(f'CREATE EXTENSION IF NOT EXISTS "{name}" CASCADE')
            )
        found = connection.execute(sa.text(OF_EXTENSIONS)).all()
    engine.dispose()
    if "pg_trgm" not in names:
        pytest.skip("the server has no extensions")
    known = [row for row in found if not may_write(calls(row.proname))]
    assert {"show_trgm", "earth_distance", "nlevel"} <= {row.proname for row in known}
    volatile = {row.proname for row in known if row.provolatile == "v"}
    assert {n for n in volatile if not n.startswith(("uuid_", "pgp_"))} <= MAKES_VALUES


def test_what_writes_all_the_same(cluster: Cluster) -> None:
    """What is known to write or lock is in no list, whatever the server calls it."""
    stable = "SELECT proname FROM pg_proc WHERE provolatile = 's'"
    found = {name for (name,) in cluster.primary.execute(stable)}
    assert {"txid_current", "pg_current_xact_id"} <= found & WRITING
    assert not (LOCKING | WRITING) & PURE["postgresql"]
    assert all(may_write(calls(name)) for name in WRITING)


def test_volatile_ones_by_hand(cluster: Cluster) -> None:
    """What is listed by hand is there, and only what the server calls volatile."""
    volatile = "SELECT DISTINCT proname FROM pg_proc WHERE provolatile = 'v'"
    found = {name for (name,) in cluster.primary.execute(volatile)}
    listed = found & PURE["postgresql"]
    assert {"random", "clock_timestamp", "pg_sleep", "gen_random_uuid"} <= listed
    assert not [name for name in listed if may_write(calls(name))]
    # Beside these there are such as write.
    assert {"nextval", "lo_put", "pg_advisory_lock", "ts_stat"} <= found - listed


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT jsonb_set(extra, '{seen}', '1') FROM item",
        "SELECT array_to_json(array_agg(id)), bool_or(true) FROM item",
        "SELECT pg_catalog.make_timestamptz(2030, 1, 1, 0, 0, 0)",
        "SELECT xmlelement(name a, xmlattributes('b' AS c)), xmlagg(x) FROM item",
        "SELECT * FROM json_table('[1]', '$[*]' COLUMNS (a int PATH '$')) AS t",
        "SELECT ST_AsText(place), uuidv7(), array_shuffle(tags) FROM item",
    ],
)
def test_what_applications_call(sql: str) -> None:
    """A query that calls what computes only is no suspicion."""
    assert not may_write(sql)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT shop.jsonb_set(extra) FROM item",
        'SELECT "shop"."length"(text) FROM item',
        "SELECT count_visit()",
        "SELECT pg_catalog.count_visit()",
        "SELECT jsonb_set(extra, '{seen}', note_visit()) FROM item",
        "SELECT adddate(1)",  # MariaDB's
    ],
)
def test_what_is_not_the_servers(sql: str) -> None:
    """A user's own function is not taken for the server's of the same name."""
    assert may_write(sql)
