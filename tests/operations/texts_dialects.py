"""SQL as text that only some servers understand."""

from __future__ import annotations

from tests.operations.catalogue import MARIADB, POSTGRESQL, SQLITE, Section

SECTION = Section("`text()` in one server's dialect")

LITE, POSTGRES, MARIA = (SQLITE,), (POSTGRESQL,), (MARIADB,)
BOTH = (POSTGRESQL, MARIADB)


def add(sql: str, on: tuple[str, ...], why: str) -> None:
    """Add a string of SQL."""
    SECTION.text(sql, why, on=on)


add('SELECT "name" AS "delete" FROM author', (SQLITE, POSTGRESQL), "Quoted names.")
add("VALUES (1), (2)", (SQLITE, POSTGRESQL, MARIADB), "Rows of its own.")
add("EXPLAIN SELECT id FROM author", (SQLITE, POSTGRESQL, MARIADB), "A plan.")
add("EXPLAIN DELETE FROM book", (SQLITE, POSTGRESQL), "A plan is not run.")
add("EXPLAIN DELETE FROM book", MARIA, "That server refuses even the plan.")
add("EXPLAIN QUERY PLAN SELECT id FROM author", LITE, "A plan.")
add("PRAGMA table_info(author)", LITE, "A pragma that describes.")
add("PRAGMA user_version = 7", LITE, "A pragma that may change something.")
add("ANALYZE", LITE, "Writes statistics.")
add("REPLACE INTO country (name) VALUES ('Mali')", (SQLITE, MARIADB), "A write.")
add(
    "WITH a(n) AS (SELECT 'n') INSERT INTO book (title) SELECT n FROM a",
    (SQLITE, POSTGRESQL),
    "A write after its CTE.",
)
add("INSERT OR IGNORE INTO author (name) VALUES ('author 1')", LITE, "A write.")

add("(SELECT id FROM author) UNION (SELECT id FROM book)", BOTH, "Two reads.")
add("TABLE author", POSTGRES, "A short `SELECT`.")
add("SHOW search_path", POSTGRES, "A report.")
add("SHOW TABLES", MARIA, "A report.")
add("DESCRIBE author", MARIA, "A report.")
add("SELECT $$delete$$, $a$update b$a$", POSTGRES, "Dollar quotes are quotes.")
add(r"SELECT E'it\'s an update'", POSTGRES, "Escapes are understood.")
add(r"SELECT 'it\'s an update'", MARIA, "Where a string ends depends on the server.")
add("SELECT `name` AS `delete` FROM author", MARIA, "Quoted names.")
add("SELECT id FROM author # update\n", MARIA, "Comments are skipped.")
add("SELECT id FROM author FOR UPDATE", BOTH, "A lock.")
add("SELECT id FROM author FOR UPDATE SKIP LOCKED", BOTH, "A lock.")
add("SELECT id FROM author FOR NO KEY UPDATE", POSTGRES, "A lock.")
add("SELECT id FROM author FOR SHARE", POSTGRES, "A lock.")
add("SELECT id FROM author LOCK IN SHARE MODE", MARIA, "A lock.")
add("LOCK TABLE author IN SHARE MODE", POSTGRES, "A lock.")
add(
    "WITH a AS (INSERT INTO book (title) VALUES ('n') RETURNING id) SELECT id FROM a",
    POSTGRES,
    "A write in a CTE.",
)
add(
    "WITH a AS (DELETE FROM book RETURNING id) SELECT count(*) FROM a",
    POSTGRES,
    "A write in a CTE.",
)
add("SELECT id INTO TEMPORARY TABLE chosen FROM author", POSTGRES, "Makes a table.")
add("SELECT id INTO @chosen FROM author LIMIT 1", MARIA, "Changes the session.")
add("SELECT @chosen := 1", MARIA, "Changes the session.")
add("SELECT 1 /*! FOR UPDATE */", MARIA, "A comment that the server executes.")
add("EXPLAIN ANALYZE SELECT id FROM author", POSTGRES, "Runs a read.")
add("EXPLAIN ANALYZE DELETE FROM book", POSTGRES, "Runs a write.")
add("EXPLAIN (ANALYZE, COSTS OFF) DELETE FROM book", POSTGRES, "Runs a write.")
add("EXPLAIN (COSTS OFF) DELETE FROM book", POSTGRES, "A plan is not run.")
add("ANALYZE SELECT id FROM author", MARIA, "Might run a write.")
add("SELECT 1; SELECT 2", POSTGRES, "Two reads.")
add("SELECT 1; DELETE FROM book", POSTGRES, "Of several statements the worst counts.")
add("CALL store()", BOTH, "A procedure may do anything.")
add("DO $$ BEGIN PERFORM 1; END $$", POSTGRES, "A block may do anything.")
add("COPY author TO '/dev/null'", POSTGRES, "Every `COPY` counts as a write.")
add("TRUNCATE scratch", BOTH, "A write.")
add("MERGE INTO book USING author ON false WHEN NOT MATCHED THEN DO NOTHING",
    POSTGRES, "A write.")  # fmt: skip
add("REFRESH MATERIALIZED VIEW titles", POSTGRES, "A write.")
add("NOTIFY news", POSTGRES, "Only the primary can notify.")
add("LISTEN news", POSTGRES, "Only the primary can notify.")
add(
    "SET LOCAL statement_timeout = 1000",
    POSTGRES,
    "Set on the primary, where writes may follow.",
)
add("SET @a = 1", MARIA, "Set on the primary, where writes may follow.")
