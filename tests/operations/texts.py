"""SQL as text that every server understands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

from tests.operations.catalogue import Section

if TYPE_CHECKING:
    from tests.operations.world import World

SECTION = Section("`text()`")
operation = SECTION.operation
add = SECTION.text

add("SELECT id FROM author", "Its first word is one that reads.")
add("\n\t  select id from author", "Leading blanks and case make no difference.")
add("-- insert into author\nSELECT id FROM author", "Comments are skipped.")
add("/* UPDATE author */ SELECT id FROM author", "The same.")
add("SELECT id /* for update */ FROM author -- delete", "The same.")
add("SELECT 'delete from author; insert into x'", "Quoted text is skipped.")
add("SELECT 'it''s an update'", "The same, with a quote in it.")
add("SELECT replace(name, 'a', 'b') FROM author", "A function, not a statement.")
add("SELECT id AS updated FROM author", "A word that only contains another.")
add("SELECT id FROM author;", "A semicolon at the end adds no statement.")
add("WITH a AS (SELECT id FROM author) SELECT id FROM a", "A CTE that reads.")
add("SELECT id FROM author UNION SELECT id FROM book", "Two reads.")
add("INSERT INTO book (title) VALUES ('new')", "A write.")
add("-- SELECT\n  INSERT INTO book (title) VALUES ('new')", "Comments are skipped.")
add("/* SELECT */ UPDATE book SET title = 'new'", "The same.")
add("DELETE FROM book WHERE id = 1", "A write.")
add("INSERT INTO book (title) VALUES ('new') RETURNING id", "A write with rows.")
add("INSERT INTO book (title) SELECT name FROM author", "A write that reads.")


@operation("`text()` with bound parameters")
def parameters(w: World) -> object:
    """Parameters are not checked."""
    chosen = text("SELECT id FROM author WHERE name = :name")
    return w.session.execute(chosen, {"name": "delete from author"}).all()


@operation("`text('INSERT ...')` with a list of parameters")
def many(w: World) -> object:
    """A write."""
    made = text("INSERT INTO book (title) VALUES (:title)")
    return w.session.execute(made, [{"title": "a"}, {"title": "b"}])


@operation("`session.scalar(text('INSERT ... RETURNING'))`")
def scalar(w: World) -> object:
    """A write with rows."""
    made = text("INSERT INTO book (title) VALUES ('new') RETURNING id")
    return w.session.scalar(made)
