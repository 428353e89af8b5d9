"""Which settings surely end with their transaction, as PostgreSQL reads them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_replicated.sql.session_settings import is_local
from tests.support import unhurried

LOCAL: list[tuple[str, Any]] = [
    ("set local app.shop = '7'", ()),
    ("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ;", ()),
    ("SET LOCAL a.b = 1; SET LOCAL a.c = 2;", ()),
    ("SET CONSTRAINTS ALL DEFERRED", ()),
    ('set constraints shop."Order_fk", item_fk immediate; SET LOCAL a.b = 1', ()),
    ("SET LOCAL local.shop = 1", ()),
    ("SET LOCAL a.b = 1; SELECT set_config('a.c', '2', true)", ()),
    ("SELECT set_config('app.user', %(user)s, true)", {"user": "x"}),
    ("SELECT Set_Config('app.user', 'x', 'T'), count(*) FROM item", ()),
    ("SELECT set_config('app.user', 'x', ' on ')", ()),
    ("SELECT set_config('app.user', 'x', 1::bool)", ()),
    ("SELECT set_config('app.user', 'x', CAST('yes' AS boolean))", ()),
    ("SELECT set_config('app.user', 'x', ((boolean 'true')))", ()),
    ("SELECT pg_catalog.set_config('app.user', lower(concat('A', 'b')), true)", ()),
    ("SELECT \"set_config\"($$a, b$$, E'it\\'s', true)", ()),
    ("SELECT set_config(is_local => true, new_value => 'x', setting_name => 'a')", ()),
    ("SELECT set_config('app.user', 'x', is_local := 'y')", ()),
    ("SELECT id FROM item, (SELECT set_config('a.b', 'x', true)) AS s", ()),
    ("WITH s AS (SELECT set_config('a.b', ', false)', true)) SELECT * FROM s", ()),
    ("SELECT set_config('a.b', 'x', /* false */ true) -- , false)", ()),
    ("EXPLAIN ANALYZE SELECT set_config('a.b', 'x', true)", ()),
    ("SELECT set_config('a', 'b', %(here)s)", {"here": True}),
    ("SELECT set_config('a', 'b', %(here)s::BOOLEAN)", {"here": "true"}),
    ("SELECT set_config('a', 'b', CAST(%(a)s::VARCHAR AS BOOL))", {"a": "on"}),
    ("SELECT set_config(%s, %s, %s)", ("a", "b", True)),
    ("SELECT set_config($2::VARCHAR, $3::VARCHAR, $1::BOOLEAN)", (True, "a", "b")),
]

LASTING: list[tuple[str, Any]] = [
    ("SET app.shop = '7'", ()),
    ("SET SESSION app.shop = '7'", ()),
    ("SET local.shop = '7'", ()),
    ("SET LOCAL = 7", ()),
    ("SET local TO 7", ()),
    ("SET constraints.shop = 7", ()),
    ("SET constraints TO 7", ()),
    ("SET CONSTRAINTS ALL IMMEDIATE; SET a.b = 1", ()),
    ("SET transaction.shop = 1", ()),
    ("SET LOCAL a.b = 1 -- x\r; SET a.c = 2", ()),
    ("SELECT set_config('a', '1', true) -- x\r, set_config('b', '2', false)", ()),
    ("SET LOCAL a.b = 1; SET a.c = 2", ()),
    ("SET LOCAL a.b = 1; SELECT set_config('a.c', '2', false)", ()),
    ("SELECT set_config('app.user', %(user)s, false)", {"user": "x"}),
    ("SELECT set_config('a', '1', true), set_config('b', '2', FALSE)", ()),
    ("SELECT set_config('a', '1', true) UNION SELECT set_config('b', '2', 'f')", ()),
    ("SELECT set_config('a', 'b', 'o')", ()),
    ("SELECT set_config('a', 'b', NULL)", ()),
    ("SELECT set_config('a', 'b', NOT false)", ()),
    ("SELECT set_config('a', 'b', true AND false)", ()),
    ("SELECT set_config('a', 'b', (SELECT flag FROM item))", ()),
    ("SELECT set_config('a', 'b', flag) FROM item", ()),
    ("SELECT set_config('a', 'b', 't'::text = 'f')", ()),
    ("SELECT set_config(is_local => false, new_value => 'x', setting_name => 'a')", ()),
    ("SELECT set_config('a', new_value => 'b', other => true)", ()),
    ("SELECT set_config(VARIADIC things)", ()),
    ("SELECT app.set_config('a', 'b', true)", ()),
    ("SELECT \"Set_Config\"('a', 'b', true)", ()),
    # Where a backslash may hide a quote, more may be set than is seen.
    ("SELECT set_config('a', '\\', true), (', false)", ()),
    ("SELECT set_config('a', 'b', true) /* /* */ , set_config('a', 'b', false) */", ()),
    ("SELECT set_config('a', 'b', %(here)s)", {"here": False}),
    ("SELECT set_config('a', 'b', %(here)s)", {"here": None}),
    ("SELECT set_config('a', 'b', %(here)s)", {"there": True}),
    ("SELECT set_config('a', 'b', %(here)s)", (True,)),
    ("SELECT set_config('a', 'b', NOT %(here)s)", {"here": True}),
    ("SELECT set_config('a', 'b', %(here)s::mine)", {"here": True}),
    ("SELECT set_config(%s, %s, %s)", (True, True, False)),
    ("SELECT set_config(%s, %s, %s)", ("a", "b")),
    ("SELECT set_config(%s, %s, %s)", {"2": True}),
    ("SELECT set_config($1, $2, $3)", (True, True, 0)),
    ("SELECT set_config('a', 'b', __[POSTCOMPILE_x])", {"x": True}),
]


@pytest.mark.parametrize(("sql", "parameters"), LOCAL)
def test_local(sql: str, parameters: Any) -> None:
    """What is visibly local is known to end with its transaction."""
    assert is_local(sql, [parameters])


@pytest.mark.parametrize(("sql", "parameters"), LASTING)
def test_lasting(sql: str, parameters: Any) -> None:
    """What lasts, or may last, counts as lasting."""
    assert not is_local(sql, [parameters])


def test_every_execution_counts() -> None:
    """Of several executions one that lasts is enough."""
    sql = "SELECT set_config('a', 'b', %(here)s)"
    assert is_local(sql, [{"here": True}, {"here": True}])
    assert not is_local(sql, [{"here": True}, {"here": False}])


def test_a_long_text_is_read_too() -> None:
    """A text that is too long to be remembered is judged alike."""
    padding = "x" * 30_000
    assert is_local(f"SELECT set_config('a', '{padding}', true)", [()])
    assert not is_local(f"SELECT set_config('a', '{padding}', false)", [()])


words = st.sampled_from(
    ["set_config", "(", ")", ",", "true", "false", "'t'", "::", "bool", "cast", "as"]
)


@unhurried
@given(st.lists(words, max_size=14), st.sampled_from([",", ""]))
def test_a_false_third_argument_is_never_local(more: list[str], comma: str) -> None:
    """Whatever stands around it, a call that lasts is seen."""
    sql = f"SELECT set_config('a', 'b', false) {comma} {' '.join(more)}"
    assert not is_local(sql, [()])


@unhurried
@given(st.text())
def test_any_text_has_an_answer(sql: str) -> None:
    """No text at all is an error."""
    assert is_local(sql, [()]) in {True, False}
