"""Which tables and columns a text surely writes, as its own server reads it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_replicated.sql.constructs import Classifier
from tests.support import unhurried

if TYPE_CHECKING:
    from flask_replicated.sql.dml import Identifier, TableWrite

CLASSIFIERS = {
    dialect: Classifier(["touch_all"], dialect).text
    for dialect in ("postgresql", "mysql", "mariadb", "sqlite", "oracle")
}


def shown(name: Identifier | None) -> str:
    """Return a name, in quotes if it was."""
    if name is None:
        return ""
    return f'"{name.text}"' if name.quoted else name.text


def told(write: TableWrite) -> str:
    """Return what is told of a write: its table, and the columns of an update."""
    schema = f"{shown(write.schema)}." if write.schema else ""
    columns = (
        "" if write.columns is None else f": {' '.join(map(shown, write.columns))}"
    )
    return f"{schema}{shown(write.table)}{columns}"


def find(sql: str, dialect: str) -> list[str] | None:
    """Return what is told of all that a text writes."""
    found = CLASSIFIERS[dialect].writes(sql)
    return None if found is None else [told(write) for write in found]


EVERYWHERE: dict[str, list[str]] = {
    "INSERT INTO visit (id, page) VALUES (1, 'home'), (2, 'x; UPDATE y SET z = 1')": [
        "visit"
    ],
    "insert into visit select id, lower(page) from page where id in (1, 2);": ["visit"],
    "UPDATE visit SET page = 'b', seen = seen + 1 WHERE id = 7": ["visit: page seen"],
    "UPDATE shop.visit SET page = CASE WHEN id > 1 THEN 'a' ELSE 'b' END": [
        "shop.visit: page"
    ],
    "DELETE FROM visit WHERE seen < (SELECT max(seen) FROM page)": ["visit"],
    "/* why */ DELETE FROM shop.visit -- DELETE FROM page": ["shop.visit"],
}
POSTGRESQL: dict[str, list[str]] = {
    'UPDATE ONLY "Forum"."Topics" AS t SET "Views" = t."Views" + 1 FROM x': [
        '"Forum"."Topics": "Views"'
    ],
    "UPDATE t SET a = b IS DISTINCT FROM c, d = 2": ["t: a d"],
    "UPDATE t SET (a, b) = (SELECT 1, 2), c[1] = 3, d.part = 4 RETURNING t.id": [
        "t: a b c d"
    ],
    "UPDATE t * u SET a = $1::INTEGER": ["t: a"],
    "UPDATE t SET a = 1 -- why\r, b = 2 -- c\r\n, d = 'ü' WHERE ö = 1": ["t: a b d"],
    "DELETE FROM ONLY t USING u WHERE t.a = u.a RETURNING lower(t.b)": ["t"],
    "INSERT INTO t AS x (a) VALUES (%(a)s) ON CONFLICT (a) DO UPDATE SET b = x.b": [
        "t: a b"
    ],
    "INSERT INTO t (a) VALUES (nextval('t_a_seq')) ON CONFLICT DO NOTHING": ["t: a"],
    'INSERT INTO s.t ("A", b) SELECT 1, 2 ON CONFLICT ON CONSTRAINT t_key DO UPDATE '
    "SET (c, d) = (SELECT 1, 2), e = excluded.e WHERE t.f > 1 RETURNING g": [
        's.t: "A" b c d e'
    ],
    "INSERT INTO t (a, b[1]) VALUES (1, 2) ON CONFLICT (a) DO UPDATE SET c = 3": ["t"],
    "INSERT INTO t VALUES (1, 2) ON CONFLICT (a) DO UPDATE SET c = 3": ["t"],
    "INSERT INTO t (a) SELECT duplicate FROM u WHERE u.do IS NULL": ["t"],
    "UPDATE t SET a = v.n FROM unnest(%(ids)s::int[], %(n)s::int[]) v(id, n)": ["t: a"],
    "DELETE FROM t USING a JOIN LATERAL (SELECT 1) w (id) ON (w.id = a.id)": ["t"],
    "WITH gone AS (DELETE FROM a RETURNING *), u (n) AS MATERIALIZED (UPDATE b SET c = "
    "1 RETURNING c) INSERT INTO d SELECT * FROM gone": ["a", "b: c", "d"],
    "WITH u AS (UPDATE b SET c = 1 RETURNING c) SELECT * FROM u": ["b: c"],
    "WITH RECURSIVE n AS (SELECT 1) SELECT * FROM n": [],
    "UPDATE t SET a = $$; DELETE FROM b$$, c = E'\\'; DROP'": ["t: a c"],
    "UPDATE __[SCHEMA__none].t SET a = 1": ["t: a"],
    "UPDATE __[SCHEMA_forum].t SET a = 1 WHERE t.b IN (__[POSTCOMPILE_b_1])": [
        '"forum".t: a'
    ],
    "SELECT 1": [],
}
MYSQL: dict[str, list[str]] = {
    "UPDATE t, `u` SET t.a = %s, u.b = 2, t.c = 3 WHERE t.id = u.id": [
        "t: a c",
        '"u": b',
    ],
    "UPDATE t AS x LEFT JOIN u y ON x.id = y.id SET y.b = 1": ["u: b"],
    "UPDATE LOW_PRIORITY IGNORE shop.t SET t.a = 1 ORDER BY t.b LIMIT 3": ["shop.t: a"],
    "UPDATE t JOIN (SELECT id FROM u) AS v USING (id) SET t.a = 1": ["t: a"],
    "REPLACE INTO t (a) VALUES (1)": ["t"],
    "INSERT IGNORE t SET a = 1, b = REPLACE('x', 'y', 'z')": ["t"],
    "INSERT INTO t (a) VALUES (%s) ON DUPLICATE KEY UPDATE a = VALUES(a)": ["t: a"],
    "INSERT t SET a = 1, `b` = 2 ON DUPLICATE KEY UPDATE c = c + IF(a = 1, 2, 3)": [
        't: a "b" c'
    ],
    "INSERT INTO t (a) VALUES (1) AS n (x) ON DUPLICATE KEY UPDATE b = n.x, c = 2": [
        "t: a b c"
    ],
    "INSERT INTO t (a) VALUES (1) ON DUPLICATE KEY UPDATE t.b = 2": ["t"],
    "INSERT INTO t (SELECT a FROM u) ON DUPLICATE KEY UPDATE b = 2": ["t"],
    "REPLACE INTO t (a) SELECT 1": ["t"],
    "DELETE QUICK FROM t WHERE a = 'x'   # DELETE FROM u": ["t"],
    "DELETE x, u.* FROM t AS x JOIN u ON x.id = u.id": ["t", "u"],
    "DELETE FROM t USING t INNER JOIN u WHERE t.id = u.id": ["t"],
}
SQLITE: dict[str, list[str]] = {
    "INSERT OR REPLACE INTO [t] (a) VALUES (?)": ['"t"'],
    "REPLACE INTO `t` VALUES (:a, @b, $c)": ['"t"'],
    "UPDATE OR IGNORE t SET a = strftime('%s', 'now'), b = '\\' FROM u": ["t: a b"],
    "INSERT INTO t (a) VALUES (1) ON CONFLICT (a) DO UPDATE SET b = excluded.b": [
        "t: a b"
    ],
    "INSERT INTO t (a, b) VALUES (1, 2) ON CONFLICT (a) DO UPDATE SET c = 1 WHERE d > 2"
    " ON CONFLICT (b) DO NOTHING ON CONFLICT DO UPDATE SET e = 1 RETURNING f": [
        "t: a b c e"
    ],
    "INSERT OR REPLACE INTO t (a) VALUES (1) ON CONFLICT (b) DO UPDATE SET a = 1": [
        "t"
    ],
    "UPDATE t INDEXED BY t_a SET a = 1 WHERE a = 2": ["t: a"],
    "UPDATE OR IGNORE main.t AS x NOT INDEXED SET a = 1": ["main.t: a"],
    "WITH x AS (SELECT 1 AS a) UPDATE t SET a = (SELECT a FROM x)": ["t: a"],
}
TOLD = [
    *(
        (d, *one)
        for d in ("postgresql", "mysql", "sqlite")
        for one in EVERYWHERE.items()
    ),
    *(("postgresql", *one) for one in POSTGRESQL.items()),
    *((dialect, *one) for dialect in ("mysql", "mariadb") for one in MYSQL.items()),
    *(("sqlite", *one) for one in SQLITE.items()),
]

UNSURE = [
    ("postgresql", "UPDATE t SET a = 1; UPDATE u SET b = 2"),
    ("postgresql", "UPDATE t SET a = count_visit()"),
    ("postgresql", "UPDATE t SET a = shop.lower(b)"),
    ("postgresql", "UPDATE t SET a = touch_all(b)"),
    ("postgresql", "UPDATE t SET a = pg_advisory_xact_lock(1)"),
    ("postgresql", "UPDATE t SET a = 1 WHERE id = (SELECT id FROM u FOR UPDATE)"),
    ("postgresql", "UPDATE t SET a = (WITH x AS (DELETE FROM u RETURNING 1) TABLE x)"),
    ("postgresql", "UPDATE t u v SET a = 1"),
    ("postgresql", "UPDATE a.b.c SET d = 1"),
    ("postgresql", "UPDATE t SET a = 'it\\'"),
    ("postgresql", "UPDATE t /* /* */ SET a = 1 */ SET b = 1"),
    ("postgresql", "MERGE INTO t USING u ON true WHEN MATCHED THEN DELETE"),
    ("postgresql", "TRUNCATE t"),
    ("postgresql", "SELECT * INTO t FROM u"),
    ("postgresql", "COPY t FROM STDIN"),
    ("postgresql", "DO $$ BEGIN UPDATE t SET a = 1; END $$"),
    ("postgresql", "CALL count_visits()"),
    ("postgresql", "EXPLAIN ANALYZE UPDATE t SET a = 1"),
    ("postgresql", "INSERT t VALUES (1)"),
    ("postgresql", "UPDATE t SET a = $ü$ ' $ü$; DELETE FROM u; SELECT ' '"),
    ("postgresql", "UPDATE t SET a = \u20ac$x$, b = 2 -- $x$"),
    ("postgresql", "UPDATE t SET a = 1 -- x\r; DELETE FROM u"),
    ("postgresql", "DELETE FROM t WHERE a IN (SELECT DISTINCT ON (a) touch(b) FROM u)"),
    ("postgresql", "UPDATE t SET a = EXTRACT(year FROM OPERATOR(shop.-) touch(b))"),
    ("postgresql", "UPDATE t SET a = v.a FROM touch(b) v(a)"),
    (
        "postgresql",
        "INSERT INTO t (a) VALUES (1) ON CONFLICT DO UPDATE SET b = touch()",
    ),
    (
        "mysql",
        "INSERT INTO t (a) VALUES (1) ON DUPLICATE KEY UPDATE b = returning, c = 1",
    ),
    ("sqlite", "UPDATE t INDEXED t_a SET a = 1"),
    ("postgresql", "UPDATE t SET"),
    ("postgresql", "WITH x AS ("),
    ("postgresql", ""),
    ("mysql", "UPDATE t, u SET a = 1"),
    ("mysql", "UPDATE t JOIN (SELECT 1 AS b) AS v SET v.b = 1"),
    ("mysql", "UPDATE t SET w.a = 1"),
    ("mysql", 'UPDATE "t" SET a = 1'),
    ("mysql", "UPDATE t SET a = 'it\\'s'"),
    ("mysql", "UPDATE t SET a = (@n := @n + 1)"),
    ("mysql", "UPDATE t SET a = 1 /*!50000 , b = 2 */"),
    ("mysql", "DELETE t FROM u"),
    ("mysql", "LOAD DATA INFILE 'x' INTO TABLE t"),
    ("sqlite", "UPDATE 't' SET a = 1"),
    ("sqlite", "DELETE t FROM t"),
    ("oracle", "UPDATE t SET a = 1"),
]


@pytest.mark.parametrize(("dialect", "sql", "expected"), TOLD)
def test_told(dialect: str, sql: str, expected: list[str]) -> None:
    """What a plain write does is told, whatever is quoted in it."""
    assert find(sql, dialect) == expected


@pytest.mark.parametrize(("dialect", "sql"), UNSURE)
def test_unsure(dialect: str, sql: str) -> None:
    """What could do more, or be read otherwise, is not told at all."""
    assert find(sql, dialect) is None


def test_a_long_text() -> None:
    """A text that is too long to be remembered is read each time."""
    rows = ", ".join(["(1, 'x')"] * 4000)
    assert find(f"INSERT INTO visit VALUES {rows}", "sqlite") == ["visit"]


@unhurried
@given(st.text(), st.sampled_from(["postgresql", "mysql", "sqlite"]))
def test_any_text_has_an_answer(sql: str, dialect: str) -> None:
    """No text at all is an error."""
    assert CLASSIFIERS[dialect].writes(sql) in {None, ()}


ACTIONS = {sqlite3.SQLITE_INSERT, sqlite3.SQLITE_DELETE}


def by_sqlite(sql: str) -> tuple[set[str], set[tuple[str, str]]] | None:
    """Return what SQLite says that a statement writes: tables, and columns of updates.

    None if it is no statement.
    """
    rows: set[str] = set()
    columns: set[tuple[str, str]] = set()

    def note(action: int, table: str | None, column: str | None, *_: str | None) -> int:
        if action in ACTIONS:
            rows.add(str(table))
        elif action == sqlite3.SQLITE_UPDATE:
            columns.add((str(table), str(column)))
        return sqlite3.SQLITE_OK

    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(
            "CREATE TABLE t (a PRIMARY KEY, b); CREATE TABLE u (a PRIMARY KEY, b);"
        )
        connection.set_authorizer(note)
        try:
            connection.execute(f"EXPLAIN {sql}")
        except (sqlite3.Error, sqlite3.Warning):
            return None
    return rows, columns


PIECES = """
    WITH x AS ( SELECT 1 ) ; INSERT OR REPLACE INTO t u VALUES 2 UPDATE SET a = b , + *
    DELETE FROM WHERE 'UPDATE' "u" [t] --\n /**/ ON CONFLICT DO NOTHING RETURNING IS
    NOT DISTINCT CASE WHEN THEN END . (a,b) (b) lower( replace( main. (SELECT(a)FROM(u))
    """
pieces = st.sampled_from(PIECES.split())
starts = st.sampled_from(
    [
        "UPDATE t SET a = 1",
        "INSERT INTO t (a, b) VALUES (1, 2)",
        "INSERT INTO u SELECT a, b FROM t WHERE 1",
        "DELETE FROM u WHERE a = 1",
        "WITH x AS (SELECT a FROM t) UPDATE u SET b = (SELECT a FROM x)",
        "UPDATE t AS u SET (a, b) = (SELECT a, b FROM u)",
        "REPLACE INTO t VALUES (1, 2)",
        "INSERT INTO t (a) VALUES (1) ON CONFLICT (a) DO UPDATE SET b = 2 , a = 3",
        "INSERT INTO u (a, b) SELECT a, b FROM t WHERE 1 ON CONFLICT DO NOTHING",
    ]
)


@unhurried
@given(starts, st.lists(st.tuples(st.integers(0, 20), pieces), max_size=4))
def test_sqlite_agrees(start: str, changes: list[tuple[int, str]]) -> None:
    """What is told of a statement is what SQLite itself would do."""
    words = start.split(" ")
    for place, piece in changes:
        words.insert(min(place, len(words)), piece)
    sql = " ".join(words)
    truth, found = by_sqlite(sql), CLASSIFIERS["sqlite"].writes(sql)
    if truth is None or found is None:
        return
    rows, columns = truth
    whole = {write.table.text for write in found if write.columns is None}
    # A replaced row is deleted, and an upsert inserts.
    assert rows <= whole | {w.table.text for w in found if "CONFLICT" in sql}
    assert {table for table, _ in columns} <= {write.table.text for write in found}
    told_columns = {
        (write.table.text, column.text)
        for write in found
        for column in write.columns or ()
    }
    updated = {one for one in columns if one[0] not in whole}
    # SQLite does not say which columns are inserted.
    assert updated <= told_columns if "CONFLICT" in sql else updated == told_columns
