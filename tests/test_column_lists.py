"""A name with a list of columns is no call, however much it looks like one."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_replicated.sql.constructs import Classifier
from tests.support import unhurried
from tests.test_statements import hidden

may_write = Classifier().text.may_write


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM (SELECT add_guest(1)) v(a)",
        "SELECT * FROM unnest(add_guest(1)) u(a)",
        "SELECT * FROM app.unnest(a) u(a)",
        "SELECT * FROM (VALUES (1)) v(a), add_guest(a) w(b)",
        "SELECT * FROM (VALUES (1)) v(a) WHERE add_guest(a)",
        # What is in parentheses there is no table.
        "SELECT DISTINCT ON (text) add_guest(text) FROM item",
        "SELECT DISTINCT ON ((SELECT 1)) add_guest(text) FROM item",
        "SELECT 1 OPERATOR(pg_catalog.+) add_guest(1)",
        "SELECT 1, OPERATOR(pg_catalog.-) add_guest(1)",
        "SELECT * FROM (VALUES (OPERATOR(-) add_guest(1))) v(a)",
        "SELECT substring(text FROM OPERATOR(-) add_guest(1)) FROM item",
    ],
)
def test_a_call_shows(sql: str) -> None:
    """What is called in a table, behind it, or behind what is no table, may write."""
    assert may_write(sql)


@pytest.mark.parametrize(
    "sql",
    [
        "WITH c(n) AS (TABLE item) SELECT n FROM c",
        "SELECT * FROM (VALUES (1),(2)) v(a)",
        'SELECT * FROM (VALUES (1))"v" -- (\n("a")',
        "SELECT * FROM ((SELECT 1) UNION (SELECT 2)) v(a)",
        "SELECT * FROM (item JOIN more USING (id)) j(a, b)",
        "SELECT * FROM ((VALUES (1)) v(a) JOIN (TABLE item) w(b) ON (a = b))",
        "SELECT * FROM item JOIN LATERAL (SELECT (1), 2) x(a,b) ON true",
        "SELECT * FROM item, LATERAL (SELECT 1) x (a) WHERE (a > 1)",
        "SELECT * FROM unnest(a) u(x)",
        "SELECT * FROM item i, pg_catalog.unnest(i.a) u(x), (SELECT 1) w(y)",
        "SELECT * FROM generate_series(1, 2) WITH ORDINALITY t(a, n)",
        "SELECT * FROM generate_series(1, 2) WITH ORDINALITY AS t(a, n)",
        "SELECT * FROM ROWS FROM (unnest(a), generate_series(1, 2)) t(a, b)",
        "SELECT * FROM json_each(a) AS t(a int, b text)",
    ],
)
def test_surely_writes_nothing(sql: str) -> None:
    """To name the columns of a table writes nothing."""
    assert not may_write(sql)


names = st.sampled_from(["v", "add", '"v w"', "of", "V$1"])
lists = st.sampled_from(["(a)", "(a, b)", ' ("a")', "\n(a , b)"])
aliases = st.builds("{}{}".format, names, lists)
values = st.sampled_from(["1", "(1)", "(SELECT max(a) FROM x)", "lower('b')"])
calls = st.sampled_from(["add_guest(1)", 'app."Add"(1)', "count(nobody_knows (2))"])


def tables(value: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Make tables that have a list of columns, and this in them."""
    plain = st.one_of(
        st.builds("(VALUES ({})) {}".format, value, aliases),
        st.builds("(SELECT {})AS {}".format, value, aliases),
        st.builds("unnest({}) {}".format, value, aliases),
        st.builds("abs({}) WITH ORDINALITY {}".format, value, aliases),
        st.builds("LATERAL (SELECT {}) {}".format, value, aliases),
    )
    return st.recursive(
        plain,
        lambda inner: st.one_of(
            st.builds("(SELECT * FROM {}, {}) {}".format, inner, plain, aliases),
            st.builds("({} JOIN {} ON (a = b))".format, inner, inner),
            st.builds("(SELECT ({}) FROM {}) {}".format, value, inner, aliases),
        ),
        max_leaves=4,
    )


@unhurried
@given(table=tables(values), value=values)
def test_lists_of_columns_are_no_calls(table: str, value: str) -> None:
    """However tables are nested, to name their columns writes nothing."""
    assert not may_write(f"SELECT {value} FROM {table} WHERE ({value}) = 1")


@unhurried
@given(table=tables(calls), around=tables(values), hint=hidden)
def test_lists_of_columns_hide_no_call(table: str, around: str, hint: str) -> None:
    """A call shows in any of them."""
    assert may_write(f"SELECT 1 FROM {around}, {hint} {table}")


@unhurried
@given(table=tables(values), call=calls)
def test_lists_of_columns_hide_no_call_behind(table: str, call: str) -> None:
    """And behind them."""
    assert may_write(f"SELECT 1 FROM {table} WHERE {call} > 0")
    assert may_write(f"SELECT 1 FROM {table} JOIN {call} w(c) ON (true)")
    assert may_write(f"SELECT {call}, 1 FROM {table}")


@pytest.mark.parametrize("part", ["(a) b (", ", (VALUES (1)) v(a)", "(" * 9, ") v("])
def test_many_parentheses_are_no_burden(part: str) -> None:
    """Nor are tables, nor what looks like one, however many they are."""
    begun = time.perf_counter()
    assert may_write("SELECT add_guest(1)" + part * 9000)
    assert time.perf_counter() - begun < 5
