"""What PostgreSQL takes for a write is none of the reads, however it is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_replicated.sql.constructs import Classifier, Kind
from tests.support import unhurried

if TYPE_CHECKING:
    from collections.abc import Iterator

    from examples.cluster import Cluster

psycopg = pytest.importorskip("psycopg")
pytestmark = pytest.mark.postgres

SQLSTATE = 67  # of libpq's fields of an error
READ_ONLY = b"25006"
kind = Classifier(dialect="postgresql").kind

PIECES = """
    SELECT 1 , ; ( ) FROM letter u 'x' '' "b" `b` -- --x /* */ /**/ /*! # ' " [ ] - \\
    $$ $a$ a$b$ $b$ E' e'\\' U&" N' || 'é' é AS x %% WITH x AS (SELECT 1) VALUES (1)
    TABLE ;DELETE_FROM_letter; ;UPDATE_letter_SET_a=1; (DELETE_FROM_letter_RETURNING_a)
    INTO n "nextval"('letter_n') nextval('letter_n') FOR UPDATE
    EXPLAIN ANALYZE DO BEGIN COMMIT
    """
pieces = [*(piece.replace("_", " ") for piece in PIECES.split()), "\n", "\r", "\t"]
starts = st.sampled_from(
    [
        "SELECT 1",
        "SELECT 'x' , 1",
        "SELECT 1 ; DELETE FROM letter",
        "WITH x AS (DELETE FROM letter RETURNING a) SELECT * FROM x",
    ]
)
changes = st.lists(
    st.tuples(
        st.integers(0, 12),
        st.sampled_from([piece.replace("letter n", "letter_n") for piece in pieces]),
    ),
    max_size=7,
)


@pytest.fixture(params=["on", "off"])
def connection(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[object]:
    """Connect to the primary, to read only, with either meaning of a backslash."""
    primary = cluster.primary
    primary.execute("create table letter (a int)")
    primary.execute("create sequence letter_n")
    url = primary.url().replace("+psycopg", "")
    with psycopg.connect(url, autocommit=True) as opened:
        opened.execute("set default_transaction_read_only = on")
        opened.execute("set statement_timeout = '5s'")
        opened.execute(f"set standard_conforming_strings = {request.param}")
        yield opened
    primary.execute("drop table letter")
    primary.execute("drop sequence letter_n")


def test_postgresql_agrees(connection: object) -> None:
    """A text that the server refuses as a write is not classified as a read."""
    server = connection.pgconn  # type: ignore[attr-defined]  # psycopg is optional

    @unhurried
    @given(starts, changes)
    def agrees(start: str, inserted: list[tuple[int, str]]) -> None:
        words = start.split(" ")
        for place, piece in inserted:
            words.insert(min(place, len(words)), piece)
        sql = " ".join(words)
        server.exec_(b"rollback")
        result = server.exec_(sql.encode())
        if result.error_field(SQLSTATE) == READ_ONLY:
            assert kind(sql) is not Kind.READ

    agrees()
