"""What a text does where the dialect of its server is known."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_replicated.sql.constructs import Classifier, Kind
from flask_replicated.sql.strip import strip
from tests.support import unhurried
from tests.test_statements import TEXTS, quoted, reads, writes

READ, LOCK, WRITE = Kind.READ, Kind.LOCK, Kind.WRITE
DIALECTS = ("postgresql", "mysql", "mariadb", "sqlite")
KNOWN = {dialect: Classifier(dialect=dialect) for dialect in DIALECTS}

OF_ONE_SERVER = [
    ("postgresql", "SELECT a # b FROM item -- ; DELETE FROM item", READ),
    ("postgresql", "SELECT tags #>> '{a}' FROM item WHERE 5 # 3 > 1", READ),
    ("postgresql", "SELECT 5 # 3 FROM item FOR UPDATE", LOCK),
    ("postgresql", "SELECT 5 # pg_advisory_lock(1)", LOCK),
    ("postgresql", "SELECT 1 # '\n; DELETE FROM item; SELECT '", READ),
    ("postgresql", "SELECT $é$ ' $é$; DELETE FROM item; SELECT ' '", WRITE),
    ("postgresql", "SELECT 1 AS a$b$; DELETE FROM item; SELECT 1 AS c$b$", WRITE),
    ("postgresql", "SELECT $b$; DELETE FROM item; SELECT $b$", READ),
    ("postgresql", "SELECT 1 -- a\r; DELETE FROM item", WRITE),
    ("postgresql", 'SELECT "pg_advisory_lock" -- a call\r(1)', LOCK),
    ("postgresql", 'SELECT U&"pg\\005fadvisory_lock"(1)', WRITE),
    ("postgresql", "SELECT 7 %('x)s'), pg_advisory_lock(1)", LOCK),
    ("mysql", "SELECT 1 #; DELETE FROM item", READ),
    ("mysql", "SELECT 1 #'\n; DELETE FROM item #'", WRITE),
    ("mysql", "SELECT 5--1, get_lock('a', 1)", LOCK),
    ("mysql", "SELECT 1 --\u00a0'\n, get_lock('a', 1) -- '", LOCK),
    ("mysql", "SELECT 1 AS $$, get_lock('a', 1) AS $$", LOCK),
    ("mariadb", "SELECT $$; DELETE FROM item; SELECT $$", WRITE),
    ("mysql", "SELECT 1 -- a\r; DELETE FROM item", READ),
    ("mysql", "SELECT 'it''s' -- ; DELETE FROM item\n", READ),
    ("mariadb", "SELECT `get_lock` # a call\n('a', 1)", LOCK),
    ("mysql", "SELECT \"get_lock\"('a', 1)", LOCK),
    ("mysql", "SELECT @a := 1", WRITE),
    ("mysql", "SELECT 1 /*! INTO OUTFILE '/tmp/x' */", WRITE),
    ("sqlite", "SELECT [update], [into] FROM [delete]", READ),
    ("sqlite", "SELECT 1 AS [a'b]; DELETE FROM item; SELECT 1 AS [c'd]", WRITE),
    ("sqlite", "SELECT 1 -- a\r; DELETE FROM item", READ),
]
# What a backslash means in a plain string is a setting, of PostgreSQL and of MySQL.
ESCAPES = [
    "SELECT '\\'; DELETE FROM item; -- '",
    "SELECT '\\\\'; DELETE FROM item; -- \\'",
]


@pytest.mark.parametrize(("dialect", "sql", "kind"), OF_ONE_SERVER)
def test_as_its_server_reads(dialect: str, sql: str, kind: Kind) -> None:
    """What hides a keyword, and what does not, is what the server takes for it."""
    assert KNOWN[dialect].kind(sql) is kind
    assert KNOWN[dialect].sent(sql, None) is kind


@pytest.mark.parametrize("dialect", ["postgresql", "mysql", "mariadb"])
@pytest.mark.parametrize("sql", ESCAPES)
def test_settings_of_the_server(dialect: str, sql: str) -> None:
    """Where a server's setting decides, the worst reading counts."""
    assert KNOWN[dialect].kind(sql) is WRITE


def test_empty_quotes_do_not_swap_the_rest() -> None:
    """An empty name, which SQLite takes for a string, ends where it begins."""
    text = KNOWN["sqlite"].text
    assert text.may_write("""SELECT "", load_extension('x'), "" FROM item""")
    assert not text.may_write("""SELECT "", 'load_extension(1)', "" FROM item""")


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    "sql", [sql for sql, kind in TEXTS if kind is READ and "#" not in sql and sql]
)
def test_reads(dialect: str, sql: str) -> None:
    """To know the dialect makes no write of a read that it has."""
    foreign = {"postgresql": "`", "mysql": "$", "mariadb": "$", "sqlite": "$E"}
    if not set(foreign[dialect]) & set(sql.replace("EXPLAIN", "")):
        assert KNOWN[dialect].kind(sql) is READ


# Writes for each server, as none hides them in a way of its own.
plain = writes.filter(lambda sql: not set("\r#`$\\") & set(sql))
blanks = st.sampled_from([" ", "\n", "\t", " /* ; DELETE */ ", " -- ; INTO x\n"])


@unhurried
@given(st.sampled_from(DIALECTS), blanks, plain, blanks)
def test_comments_never_hide_a_write(
    dialect: str, before: str, sql: str, after: str
) -> None:
    """A write behind comments is no read."""
    assert KNOWN[dialect].kind(f"{before}{sql}\n{after}") is not READ


@unhurried
@given(st.sampled_from(DIALECTS), reads, blanks, plain)
def test_a_read_never_hides_a_write(
    dialect: str, first: str, comment: str, second: str
) -> None:
    """A write after a read in one string is no read."""
    assert KNOWN[dialect].kind(f"{first}\n;{comment}{second}") is not READ


@unhurried
@given(strings=st.lists(quoted, min_size=1), comment=blanks)
def test_quotations_never_change_a_read(strings: list[str], comment: str) -> None:
    """Quoted text in a read, whatever it says, leaves it a read."""
    columns = f" {comment} , ".join(strings)
    assert KNOWN["postgresql"].kind(f"SELECT {columns} FROM item") is READ


@unhurried
@given(st.sampled_from(DIALECTS), st.text())
def test_any_text_has_a_verdict(dialect: str, sql: str) -> None:
    """No text at all is an error."""
    assert KNOWN[dialect].kind(sql) in set(Kind)
    assert KNOWN[dialect].text.may_write(sql) in {True, False}
    assert all(strip(sql, dialect).every()) or not sql


PIECES = """
    SELECT 1 , ; ( ) FROM t u 'x' '' "b" "" [a] `b` -- /* /**/ */ # ' " [ ] ` - \\ $$
    DELETE_FROM_t ;_DELETE_FROM_t ;_UPDATE_t_SET_a=1 ;_INSERT_INTO_t_VALUES(1,2) ; $a
    :b ?1 WITH x AS (SELECT 1)
    """
pieces = st.sampled_from([*(piece.replace("_", " ") for piece in PIECES.split()), "\n"])


def sqlite_writes(sql: str) -> bool:
    """Whether SQLite says of any statement in a text that it writes."""
    wrote = []

    def note(action: int, table: str | None, *_: str | None) -> int:
        if action in {
            sqlite3.SQLITE_INSERT,
            sqlite3.SQLITE_DELETE,
            sqlite3.SQLITE_UPDATE,
        }:
            wrote.append(table)
        return sqlite3.SQLITE_OK

    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript("CREATE TABLE t (a, b); CREATE TABLE u (a, b);")
        connection.set_authorizer(note)
        try:
            connection.executescript(sql)
        except (sqlite3.Error, sqlite3.Warning, ValueError):
            pass
    return bool(wrote)


@unhurried
@given(st.lists(pieces, max_size=12))
def test_sqlite_agrees(parts: list[str]) -> None:
    """What SQLite itself takes for a write is none of the reads."""
    sql = " ".join(parts)
    if sqlite_writes(sql):
        assert KNOWN["sqlite"].kind(sql) is WRITE
