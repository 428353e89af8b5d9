"""MariaDB's and SQLite's own functions are known, by what they say of themselves."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing

import pytest
import sqlalchemy as sa

from flask_replicated.sql.constructs import Classifier
from flask_replicated.sql.function_names import LOCKING, PURE, WRITING


def may_write(sql: str, dialect: str) -> bool:
    """Whether a statement may write on a server of this dialect."""
    return Classifier(dialect=dialect).text.may_write(sql)


# What writes outside the database, or is told what to do by its arguments.
SQLITE_WRITES = {"fts3_tokenizer", "load_extension", "optimize", "sqlite_log"}
SQLITE_INTERNAL = {"fts5", "fts5_source_id"}
MARIADB = "mysql+pymysql://root@127.0.0.1:3306/mysql"
MANUAL = """
SELECT topic.name FROM help_topic AS topic JOIN help_category AS category
USING (help_category_id) WHERE category.name IN ('Bit Functions',
'Control flow functions', 'Date and Time Functions', 'Encryption Functions',
'Information Functions',
'Functions and Modifiers for Use with GROUP BY', 'Miscellaneous Functions',
'Numeric Functions', 'String Functions', 'Geometry constructors',
'Geometry properties', 'Geometry relations', 'WKB', 'WKT')
"""
# Headings and operators among the manual's functions.
NO_FUNCTIONS = {"parentheses"}


def test_sqlite() -> None:
    """Each function that SQLite has from the start is known, or known to be no read."""
    if sqlite3.sqlite_version_info >= (3, 52):
        pytest.skip("a newer SQLite may have more of them")
    with closing(sqlite3.connect(":memory:")) as connection:
        rows = connection.execute("SELECT name FROM pragma_function_list WHERE builtin")
        names = {name for (name,) in rows if re.fullmatch(r"\w+", name)}
    unknown = {n for n in names if may_write(f"SELECT {n}(1)", "sqlite")}
    assert unknown <= SQLITE_WRITES | SQLITE_INTERNAL
    assert "json_extract" in names - unknown


def test_mariadb() -> None:
    """Each function of MariaDB's manual is known, or known to write or lock."""
    engine = sa.create_engine(MARIADB, connect_args={"connect_timeout": 2})
    try:
        with engine.connect() as connection:
            topics = set(connection.scalars(sa.text(MANUAL)))
    except (sa.exc.OperationalError, sa.exc.NoSuchModuleError, ImportError):
        pytest.skip("no MariaDB server takes root on port 3306")
    finally:
        engine.dispose()
    if not topics:
        pytest.skip("its manual is not installed")
    plain = {topic.replace("\\", "").removesuffix(" Function") for topic in topics}
    names = {name.lower() for name in plain if re.fullmatch(r"\w+", name)}
    unknown = {n for n in names if may_write(f"SELECT {n}(1)", "mysql")}
    assert unknown <= LOCKING | WRITING | NO_FUNCTIONS
    assert "date_format" in names - unknown


@pytest.mark.parametrize(
    ("dialect", "sql"),
    [
        ("mysql", "SELECT JSON_EXTRACT(doc, '$.a'), COLUMN_GET(c, 'x' AS CHAR) FROM t"),
        ("mariadb", "SELECT ST_Distance(a, b), DATE_ADD(d, INTERVAL 1 DAY) FROM t"),
        (
            "mysql",
            "SELECT id FROM post WHERE MATCH (body) AGAINST ('a' IN BOOLEAN MODE)",
        ),
        ("mariadb", "SELECT n FROM JSON_TABLE(d, '$' COLUMNS (n INT PATH '$')) AS j"),
        (
            "postgresql",
            "SELECT uuid_generate_v1mc(), encode(digest('a', 'md5'), 'hex')",
        ),
        ("postgresql", "SELECT id FROM u WHERE hash = crypt('x', hash)"),
        ("postgresql", "SELECT pgp_key_id(k), show_trgm(a), levenshtein(a, b) FROM t"),
        ("postgresql", "SELECT ST_X(ST_Transform(g, 4326)) FROM t"),
        ("postgresql", "SELECT id FROM t ORDER BY l2_distance(v, '[1,2]'::vector(2))"),
        ("mysql", "SELECT UUID(), SLEEP(0), BENCHMARK(1, SHA2('a', 256))"),
        (
            "sqlite",
            "SELECT unixepoch('now'), json_group_array(id), iif(1, 2, 3) FROM t",
        ),
        (
            "sqlite",
            "SELECT highlight(mail, 0, '<', '>') FROM mail WHERE mail MATCH 'x'",
        ),
    ],
)
def test_what_computes_only(dialect: str, sql: str) -> None:
    """A query that calls what its own server documents is no suspicion."""
    assert not may_write(sql, dialect)


@pytest.mark.parametrize(
    ("dialect", "sql"),
    [
        ("mysql", "SELECT jsonb_set(doc) FROM t"),  # PostgreSQL's
        ("mariadb", "SELECT shop.date_format(d) FROM t"),
        ("mysql", "SELECT LAST_INSERT_ID(7)"),
        ("postgresql", "SELECT set_limit(0.3)"),  # a setting
        ("postgresql", "SELECT * FROM crosstab('SELECT touch()')"),
        ("postgresql", "SELECT ST_AddIsoNode('roads', 1, g)"),
        ("postgresql", "SELECT ST_CreateOverview('rasters', 'rast', 2)"),
        ("postgresql", "SELECT shop.digest(a, 'md5') FROM t"),
        ("sqlite", "SELECT crypt('x', 'y')"),
        ("sqlite", "SELECT adddate(d) FROM t"),  # MariaDB's
        ("sqlite", "SELECT load_extension('x')"),
    ],
)
def test_what_may_write(dialect: str, sql: str) -> None:
    """Another server's function is not known, nor is one of a schema of the user's."""
    assert may_write(sql, dialect)


def test_each_dialect() -> None:
    """What locks or writes is known as harmless nowhere."""
    assert set(PURE) == {"postgresql", "mysql", "mariadb", "sqlite"}
    for known in PURE.values():
        assert not known & (LOCKING | WRITING)


def test_another_dialect() -> None:
    """Where the server is none of these, what any of them documents is known."""
    assert not may_write("SELECT adddate(jsonb_set(unixepoch()))", "oracle")
    assert may_write("SELECT count_visit()", "oracle")
