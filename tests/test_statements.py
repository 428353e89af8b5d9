"""What a statement does: the verdict on constructs and on text."""

from __future__ import annotations

import time
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.orm import DeclarativeBase, Mapped, aliased, mapped_column

from flask_replicated.sql.constructs import Classifier, Kind
from tests.support import unhurried

READ, SETTING, LOCK, WRITE = Kind.READ, Kind.SETTING, Kind.LOCK, Kind.WRITE
kind = Classifier().kind


class Base(DeclarativeBase):
    """The base of the model below."""


class Item(Base):
    """Something to select."""

    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


TEXTS = [
    ("SELECT 1", READ),
    ("  select * from item", READ),
    ("(SELECT 1) UNION (SELECT 2)", READ),
    ("WITH a AS (SELECT 1) SELECT * FROM a", READ),
    ("VALUES (1), (2)", READ),
    ("TABLE item", READ),
    ("SHOW TABLES", READ),
    ("SHOW server_version", READ),
    ("DESCRIBE item", READ),
    ("PRAGMA table_info(item)", READ),
    ("EXPLAIN SELECT 1", READ),
    ("EXPLAIN DELETE FROM item", READ),
    ("EXPLAIN QUERY PLAN SELECT 1", READ),
    ("EXPLAIN ANALYZE SELECT 1", READ),
    ("SELECT REPLACE(text, 'a', 'b'), INSERT('abc', 1, 1, 'x') FROM item", READ),
    ("SELECT deleted_at, last_update, updates FROM item", READ),
    ("SELECT 'DELETE FROM item; DROP TABLE item'", READ),
    ("SELECT 'it''s; DELETE FROM item'", READ),
    ('SELECT "update" FROM "delete"', READ),
    ("SELECT `insert` FROM `into`", READ),
    ("SELECT $$ DELETE FROM item $$", READ),
    ("SELECT $x$ ; DELETE FROM item $x$", READ),
    ("SELECT E'\\'; DELETE FROM item'", READ),
    ("SELECT 1 -- ; DELETE FROM item", READ),
    ("-- DELETE\nSELECT 1", READ),
    ("/* DELETE */ SELECT /* ; UPDATE */ 1", READ),
    ("# DELETE\nSELECT 1", READ),
    ("SELECT 1;", READ),
    ("SELECT 1; SELECT 2", READ),
    ("", READ),
    ("SELECT 1 -- ; DELETE FROM item\r\n, 2", READ),
    ("SELECT 1 -- a\r; DELETE FROM item", WRITE),
    ("SELECT 1 -- a\r '\n; DELETE FROM item -- '", WRITE),
    ("SELECT 1 FROM item -- a\r FOR UPDATE", LOCK),
    ('select "pg_advisory_lock" -- a call\r(1)', LOCK),
    ("SELECT $é$ ' $é$; DELETE FROM item; SELECT ' '", WRITE),
    ("SET search_path = shop", SETTING),
    ("set session transaction read only", SETTING),
    ("SELECT set_config('a.b', '1', false)", SETTING),
    ("SELECT 1 FROM item FOR UPDATE", LOCK),
    ("SELECT 1 FROM item FOR NO KEY UPDATE NOWAIT", LOCK),
    ("SELECT 1 FROM item FOR KEY SHARE SKIP LOCKED", LOCK),
    ("SELECT 1 FROM item for\n\tshare", LOCK),
    ("SELECT 1 FROM item FOR /* no */ UPDATE", LOCK),
    ("SELECT 1 FROM item LOCK IN SHARE MODE", LOCK),
    ("LOCK TABLE item", LOCK),
    ("SELECT pg_advisory_lock(1)", LOCK),
    ("SELECT GET_LOCK ('a', 1)", LOCK),
    ("INSERT INTO item VALUES (1)", WRITE),
    ("insert into item select * from item", WRITE),
    ("UPDATE item SET id = 1", WRITE),
    ("DELETE FROM item", WRITE),
    ("REPLACE INTO item VALUES (1)", WRITE),
    ("MERGE INTO item USING item ON true WHEN MATCHED THEN DELETE", WRITE),
    ("TRUNCATE item", WRITE),
    ("CREATE TABLE more (id int)", WRITE),
    ("DROP TABLE item", WRITE),
    ("ALTER TABLE item ADD more int", WRITE),
    ("CALL work()", WRITE),
    ("DO $$ BEGIN DELETE FROM item; END $$", WRITE),
    ("COPY item FROM STDIN", WRITE),
    ("VACUUM", WRITE),
    ("NOTIFY channel", WRITE),
    ("PRAGMA user_version = 3", WRITE),
    ("PRAGMA journal_mode", READ),
    ("PRAGMA foreign_keys ", READ),
    ("PRAGMA journal_mode=wal", WRITE),
    ("PRAGMA journal_mode(wal)", WRITE),
    ("PRAGMA query_only = off", WRITE),
    ("select 5 # 3, pg_advisory_lock(1)", LOCK),
    ('select "pg_advisory_lock"(1)', LOCK),
    ("select `get_lock` ('a', 1)", LOCK),
    ("select 5--1, get_lock('a', 1)", LOCK),
    ("select 1 as $$, get_lock('a', 1) as $$", LOCK),
    ('select "pg_advisory_lock"/**/(1)', LOCK),
    ('select "pg_advisory_lock" -- a call\n(1)', LOCK),
    ("select `get_lock` # a call\n('a', 1)", LOCK),
    ('select U&"pg\\005fadvisory_lock"(1)', WRITE),
    ("select 5 # 3 from item for update", LOCK),
    ("set @x = get_lock('a', 1)", LOCK),
    ("set @x = (select id from item for update)", LOCK),
    ("set statement max_statement_time=1 for select 1", SETTING),
    ("set statement max_statement_time=1 for select get_lock('a', 1)", LOCK),
    ("set statement max_statement_time=1 for delete from item", WRITE),
    ("set session transaction read/**/write", WRITE),
    ("set session transaction read -- only\n write", WRITE),
    ("set session transaction read /*!50000 write */", WRITE),
    ("start transaction /*! read write */", WRITE),
    ("begin /*! not */ atomic delete from item; end", WRITE),
    ("select previous value for s", WRITE),
    ("select pg_terminate_backend(1)", WRITE),
    ("select next value for s", WRITE),
    ("BEGIN NOT ATOMIC INSERT INTO item VALUES (1); END", WRITE),
    ("START TRANSACTION READ WRITE", WRITE),
    ("START TRANSACTION READ ONLY", READ),
    ("SET SESSION TRANSACTION READ WRITE", WRITE),
    ("SET default_transaction_read_only = off", WRITE),
    ("select set_config('transaction_read_only', 'off', false)", WRITE),
    ("select id, replace from item order by merge desc", READ),
    ("select id from item where replace is null", READ),
    ("select update + 1 from item", READ),
    ("WITH a AS (SELECT 1) UPDATE OR IGNORE item SET id = 1", WRITE),
    ("WITH a AS (SELECT 1) INSERT OR IGNORE INTO item VALUES (1)", WRITE),
    ("SELECT * INTO more FROM item", WRITE),
    ("SELECT text FROM item INTO OUTFILE '/tmp/x'", WRITE),
    ("SELECT @a := 1", WRITE),
    ("SELECT nextval('item_id_seq')", WRITE),
    ("SELECT NEXTVAL /**/ ('item_id_seq')", WRITE),
    ("SELECT lastval()", WRITE),
    ("WITH a AS (DELETE FROM item RETURNING *) SELECT * FROM a", WRITE),
    ("WITH a AS (SELECT 1) INSERT INTO item SELECT * FROM a", WRITE),
    ("EXPLAIN ANALYZE DELETE FROM item", WRITE),
    ("EXPLAIN (ANALYZE, BUFFERS) DELETE FROM item", WRITE),
    ("EXPLAIN (FORMAT JSON, ANALYZE) INSERT INTO item VALUES (1)", WRITE),
    ("SELECT 1; DELETE FROM item", WRITE),
    ("SELECT '\\'; DELETE FROM item; -- '", WRITE),
    ("SELECT 1 /*! INTO OUTFILE '/tmp/x' */", WRITE),
    ("/*!50000 DELETE FROM item */", WRITE),
    ("SELECT 1 --\n; DELETE FROM item", WRITE),
    ("whatever this is", WRITE),
    ("/* unfinished SELECT 1", WRITE),
]


@pytest.mark.parametrize(("sql", "expected"), TEXTS)
def test_text(sql: str, expected: Kind) -> None:
    """A string of SQL, and text() of it, do what their keywords outside quotes do."""
    assert kind(sql) is expected
    assert kind(sa.text(sql.replace(":=", r"\:="))) is expected


@pytest.mark.parametrize(
    "sql",
    [
        pytest.param(
            "/* /* */ SELECT 1 -- */ DELETE FROM item", id="nested, PostgreSQL"
        ),
        pytest.param("SELECT 1 /*M! INTO OUTFILE 'x' */", id="executable, MariaDB"),
        pytest.param(
            'WITH a AS (SELECT "\\"") DELETE FROM item WHERE text = "x"',
            id="escaped double quote, MySQL",
        ),
        pytest.param("WITH a AS (SELECT 1 #'\n) DELETE FROM item #'", id="hash, MySQL"),
        pytest.param(
            "SELECT 1 AS a$b$; DELETE FROM item; SELECT 1 AS c$b$", id="dollar name"
        ),
        pytest.param("DESC ANALYZE DELETE item FROM item", id="described, MySQL"),
    ],
)
def test_hidden_by_dialect(sql: str) -> None:
    """A write that only one dialect's comments or quotes lay open is no read."""
    assert kind(sql) is WRITE


subquery = sa.select(Item.id).subquery()
inserting = sa.insert(Item).values(text="x").returning(Item.id).cte()

CONSTRUCTS: dict[str, tuple[Any, Kind]] = {
    "select": (sa.select(Item), READ),
    "columns": (sa.select(Item.id, Item.text), READ),
    "where": (sa.select(Item).where(Item.id == 1).order_by(Item.text).limit(1), READ),
    "core": (sa.select(Item.__table__), READ),
    "function": (sa.select(sa.func.count()).select_from(Item), READ),
    "bare function": (sa.func.now(), READ),
    "join": (sa.select(Item).join(aliased(Item), sa.true()), READ),
    "subquery": (sa.select(subquery), READ),
    "cte": (sa.select(sa.select(Item.id).cte()), READ),
    "alias": (sa.select(aliased(Item)), READ),
    "exists": (sa.select(sa.exists().where(Item.id == 1)), READ),
    "scalar subquery": (sa.select(sa.select(Item.id).scalar_subquery()), READ),
    "union": (sa.union_all(sa.select(Item.id), sa.select(Item.id)), READ),
    "lambda": (sa.lambda_stmt(lambda: sa.select(Item)), READ),
    "from_statement": (sa.select(Item).from_statement(sa.text("SELECT 1")), READ),
    "textual columns": (sa.text("SELECT 1 AS id").columns(Item.id), READ),
    "values": (sa.select(sa.values(sa.column("a"), name="v").data([(1,)])), READ),
    "literal column": (sa.select(sa.literal_column("now()")), READ),
    "set_config": (sa.select(sa.func.set_config("a", "b", False)), SETTING),
    "for update": (sa.select(Item).with_for_update(), LOCK),
    "for share": (sa.select(Item).with_for_update(read=True), LOCK),
    "lock in subquery": (
        sa.select(sa.select(Item.id).with_for_update().subquery()),
        LOCK,
    ),
    "lock in union": (
        sa.union(sa.select(Item.id).with_for_update(), sa.select(Item.id)),
        LOCK,
    ),
    "advisory lock": (sa.select(sa.func.pg_advisory_xact_lock(1)), LOCK),
    "bare advisory lock": (sa.func.pg_advisory_lock(1), LOCK),
    "lambda lock": (sa.lambda_stmt(lambda: sa.select(Item).with_for_update()), LOCK),
    "insert": (sa.insert(Item), WRITE),
    "returning": (sa.insert(Item).returning(Item), WRITE),
    "update": (sa.update(Item).values(text="x"), WRITE),
    "delete": (sa.delete(Item), WRITE),
    "upsert": (postgresql.insert(Item).on_conflict_do_nothing(), WRITE),
    "duplicate": (mysql.insert(Item).on_duplicate_key_update(text="x"), WRITE),
    "inserting cte": (sa.select(inserting), WRITE),
    "inserting cte's column": (sa.select(inserting.c.id), WRITE),
    "inserting cte joined": (sa.select(Item).join(inserting, sa.true()), WRITE),
    "inserting cte added": (sa.select(Item).add_cte(inserting), WRITE),
    "inserting from_statement": (
        sa.select(Item).from_statement(sa.insert(Item).returning(Item)),
        WRITE,
    ),
    "lambda update": (sa.lambda_stmt(lambda: sa.update(Item)), WRITE),
    "nextval": (sa.select(sa.func.nextval("s")), WRITE),
    "nested nextval": (sa.select(sa.func.coalesce(sa.func.nextval("s"), 1)), WRITE),
    "sequence": (sa.select(sa.Sequence("s").next_value()), WRITE),
    "bare sequence": (sa.Sequence("s"), WRITE),
    "literal nextval": (sa.select(sa.literal_column("nextval('s')")), WRITE),
    "text nextval": (sa.select(sa.text("nextval('s')")), WRITE),
    "ddl": (sa.schema.CreateTable(Item.__table__), WRITE),  # type: ignore[arg-type]  # a Table
    "drop": (sa.schema.DropTable(Item.__table__), WRITE),  # type: ignore[arg-type]  # a Table
    "nothing": (None, WRITE),
    "something": (object(), WRITE),
}


@pytest.mark.parametrize("name", CONSTRUCTS)
def test_construct(name: str) -> None:
    """A construct of SQLAlchemy does what its parts do."""
    statement, expected = CONSTRUCTS[name]
    assert kind(statement) is expected


def test_labelled_literal_column() -> None:
    """A label around a literal column does not hide what it calls."""
    column: sa.Label[Any] = sa.literal_column("pg_advisory_lock(1)").label("locked")
    assert kind(sa.select(column)) is LOCK


def test_own_functions() -> None:
    """A function that the application calls a writer makes any statement a write."""
    own = Classifier(["Book_Seat"]).kind
    assert own("SELECT book_seat(1)") is WRITE
    assert own(sa.select(sa.func.BOOK_SEAT(1))) is WRITE
    assert kind("SELECT book_seat(1)") is READ


# Text that no dialect reads as the end of a comment or a quotation.
harmless = st.text("abc XYZ;,.()=:!?\t0123456789", max_size=20)
words = st.sampled_from(["DELETE FROM item", "; UPDATE item", "FOR UPDATE", "INTO x"])
bodies = st.builds("{} {} {}".format, harmless, words, harmless)
hidden = st.one_of(
    bodies.map("-- {}\n".format),
    bodies.map("/* {} */".format),
    bodies.map("/** {}\n*/".format),
)
quoted = st.one_of(
    bodies.map("'{}'".format), bodies.map('"{}"'.format), bodies.map("$q${}$q$".format)
)
reads = st.sampled_from([sql for sql, expected in TEXTS if expected is READ and sql])
writes = st.sampled_from(
    [
        sql
        for sql, expected in TEXTS
        if expected is WRITE and "unfinished" not in sql and "whatever" not in sql
    ]
)


may_write = Classifier().text.may_write


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT add_guest('x')",
        "SELECT 5--1, add_guest('x')",
        "SELECT 5 # 3, add_guest('x')",
        "SELECT 1 AS $$, add_guest('x') AS $$",
        "SELECT `add_guest`/* */('x')",
        'SELECT "add guest"(1)',
        "SELECT app.count(1)",
        'SELECT "app"."lower"(text) FROM item',
        "SELECT add_guest(text) FROM item FOR UPDATE",
        "SET @x = add_guest('x')",
        "SELECT * FROM add_guest('x') AS (id int)",
        "WITH c(n) AS (SELECT add_guest(1)) SELECT n FROM c",
    ],
)
def test_may_write(sql: str) -> None:
    """A call of what is not known to compute only may write, wherever it stands."""
    assert may_write(sql)


@pytest.mark.parametrize(
    "sql",
    [
        "WITH RECURSIVE c(n) AS (SELECT 1 UNION SELECT n + 1 FROM c) TABLE c",
        'WITH "c" ("n") AS MATERIALIZED (SELECT 1), d (m) AS (SELECT 2) TABLE c',
        "SELECT v.a FROM (VALUES (1)) AS v (a)",
        "SELECT text FROM item USE INDEX (i) WHERE MATCH (text) AGAINST ('x')",
        "(SELECT 1) UNION ALL (SELECT 2) LIMIT (1) OFFSET (2)",
        "SELECT pg_catalog.lower(text) FROM item WHERE text ILIKE ('x')",
        "SELECT id FROM item TABLESAMPLE SYSTEM (10)",
        "SELECT id FROM item JOIN more USING (id) FOR UPDATE",
        "SELECT pg_advisory_xact_lock(1)",
        "SET TRANSACTION READ ONLY",
    ],
)
def test_surely_writes_nothing(sql: str) -> None:
    """A name with a list of columns is no call, nor is a word of the grammar."""
    assert not may_write(sql)


ALONE = (
    "SELECT id, text FROM item WHERE id = %(id)s",
    "/* a tag */ SELECT count(*) FROM item -- and another",
    "(SELECT 1) UNION (VALUES (2))",
    "WITH c AS (SELECT 1 AS n) SELECT n, known, today_s FROM c",
    "TABLE item",
)


@pytest.mark.parametrize("sql", ALONE)
def test_stands_alone(sql: str) -> None:
    """A query that nothing but its data decides is the same in any transaction."""
    assert Classifier().text.stands_alone(sql)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT NOW()",
        "SELECT current_date - 1",
        "SELECT id FROM item WHERE day > 'Yesterday'::date",
        "SELECT age(day) FROM item",
        "SELECT whatever(1)",
        "SELECT 1; SELECT 2",
        "SAVEPOINT x",
        "BEGIN",
        "SHOW work_mem",
        "SET LOCAL work_mem = 1000",
        "EXPLAIN SELECT 1",
        "INSERT INTO item VALUES (1)",
        "",
    ],
)
def test_needs_a_transaction(sql: str) -> None:
    """What a transaction may decide, and what is not known, does not stand alone."""
    assert not Classifier().text.stands_alone(sql)


@unhurried
@given(before=st.lists(hidden), sql=writes, after=st.lists(hidden))
def test_no_write_stands_alone(before: list[str], sql: str, after: list[str]) -> None:
    """No write does, whatever comments stand around it."""
    text = " ".join([*before, sql, "\n", *after])
    assert not Classifier().text.stands_alone(text)


def test_recursive_cte_writes_nothing() -> None:
    """Nor does SQLAlchemy's own form of one."""
    base = sa.select(sa.literal(1).label("n")).cte("c", recursive=True)
    cte = base.union_all(sa.select(base.c.n + 1).where(base.c.n < 9))
    assert not may_write(str(sa.select(cte.c.n)))


@pytest.mark.parametrize("comment", ["/* */", "-- \n", " #\n", "/*"])
def test_a_long_text_is_no_burden(comment: str) -> None:
    """Comments behind a quoted name are read once, however many they are."""
    begun = time.perf_counter()
    assert kind('SELECT "a"' + comment * 3000) in set(Kind)
    assert time.perf_counter() - begun < 5


@unhurried
@given(before=st.lists(hidden), sql=reads, after=st.lists(hidden))
def test_comments_never_change_a_read(
    before: list[str], sql: str, after: list[str]
) -> None:
    """Comments before and after a read, whatever they say, leave it a read."""
    assert kind(" ".join([*before, sql, "\n", *after])) is READ


@unhurried
@given(strings=st.lists(quoted, min_size=1), comments=hidden)
def test_quotations_never_change_a_read(strings: list[str], comments: str) -> None:
    """Quoted text in a read, whatever it says, leaves it a read."""
    columns = f" {comments} , ".join(strings)
    assert kind(f"SELECT {columns} FROM item") is READ


@unhurried
@given(before=st.lists(hidden), sql=writes, after=st.lists(hidden))
def test_comments_never_hide_a_write(
    before: list[str], sql: str, after: list[str]
) -> None:
    """A write behind comments, whatever they say, is no read."""
    assert kind(" ".join([*before, sql, "\n", *after])) is not READ


@unhurried
@given(first=reads, comment=hidden, second=writes)
def test_a_read_never_hides_a_write(first: str, comment: str, second: str) -> None:
    """A write after a read in one string is no read."""
    assert kind(f"{first}\n;{comment}{second}") is not READ


@unhurried
@given(st.text())
def test_any_text_has_a_verdict(sql: str) -> None:
    """No text at all is an error."""
    assert kind(sql) in set(Kind)
