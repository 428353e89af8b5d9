"""What a driver's error says: how each driver spells a refusal."""

from __future__ import annotations

import pytest
from sqlalchemy.exc import OperationalError

from flask_replicated.replica.failures import Verdict, is_read_only_error, judge_connect


def error(*arguments: object) -> OperationalError:
    """Return a driver's error as SQLAlchemy raises it."""
    return OperationalError("insert", None, Exception(*arguments))


@pytest.mark.parametrize(
    "raised",
    [
        error({"S": "ERROR", "C": "25006", "M": "cannot execute INSERT"}),
        error(1290, "The server is running with the --read-only option"),
        error(1290, "The server is running with the --super-read-only option"),
        error(1290, "running with the read_only option"),
        error(1792, "Cannot execute statement in a READ ONLY transaction"),
        error("attempt to write a readonly database"),
    ],
)
def test_refused_as_write(raised: OperationalError) -> None:
    """A server that may only be read says so; pg8000 says it in a dictionary."""
    assert is_read_only_error(raised)


@pytest.mark.parametrize(
    "raised",
    [
        error(1290, "The server is running with the --secure-file-priv option"),
        error(1290, "The server is running with the --skip-grant-tables option"),
        error({"S": "ERROR", "C": "42P01", "M": "25006 is no relation"}),
        error({}),
        error(),
    ],
)
def test_refused_for_another_reason(raised: OperationalError) -> None:
    """Other options of a server forbid statements too."""
    assert not is_read_only_error(raised)


def test_pg8000_is_busy() -> None:
    """A server with no connection to spare is known by its code there too."""
    full = error({"S": "FATAL", "C": "53300", "M": "sorry"})
    assert judge_connect(full) is Verdict.BUSY
