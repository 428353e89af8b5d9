"""Errors carry data, pickle, and tell no password."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancers import BalancerError, NoMemberAvailableError, UnknownMemberError
from balancers.errors import (
    DuplicateMemberError,
    InvalidPickError,
    InvalidSettingError,
    InvalidWeightError,
    UnknownBalancerError,
    error_text,
    redact,
)

ERRORS = [
    BalancerError("plain"),
    NoMemberAvailableError({"a": "drained", "b": "weight 0"}),
    NoMemberAvailableError({}),
    UnknownMemberError("x", ["a", "b"]),
    UnknownMemberError("a", ["a", "b"]),
    DuplicateMemberError("a", ["a", "b"]),
    UnknownBalancerError("x", ["a"], "no such name"),
    UnknownBalancerError(lambda: None, ["a"], "it cannot be called"),
    InvalidPickError(print, 3),
    InvalidWeightError("a", -1),
    InvalidWeightError("a", [1]),
    InvalidSettingError("reset", -1.0, "above 0 seconds"),
]


class Unprintable(Exception):  # noqa: N818 - a test's own
    """An error without a text."""

    def __str__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_every_error_pickles(error: BalancerError) -> None:
    """An error comes back from pickling with its type, message and data."""
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(error, protocol))
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert vars(again) == vars(error)


def test_one_root_and_the_builtin_kin() -> None:
    """Every error is a BalancerError, and what a Python user would expect besides."""
    kin = {
        UnknownMemberError: KeyError,
        UnknownBalancerError: ValueError,
        InvalidWeightError: ValueError,
        InvalidSettingError: ValueError,
        InvalidPickError: TypeError,
        NoMemberAvailableError: Exception,
    }
    assert all(issubclass(ours, BalancerError) for ours in kin)
    assert all(issubclass(ours, theirs) for ours, theirs in kin.items())


def test_no_member_available_lists_every_member() -> None:
    """The message names each member with its cause."""
    error = NoMemberAvailableError(
        {"a": "drained", "b": "open for 1.2 s more: OSError"}
    )
    assert "'a': drained" in str(error)
    assert "'b': open for 1.2 s more: OSError" in str(error)
    assert error.causes == {"a": "drained", "b": "open for 1.2 s more: OSError"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://u:pw@h/d", "postgresql://u:***@h/d"),
        ("postgresql+psycopg://u:p@ss/w:rd@h/d", "postgresql+psycopg://u:***@h/d"),
        ("redis://:pw@h", "redis://:***@h"),
        ("http://h/path: no password", "http://h/path: no password"),
        ("host=h password=pw port=1", "host=h password=*** port=1"),
        ("password = pw", "password = ***"),
        ("password='p w' port=1", "password=*** port=1"),
        (r"password='p\' w' port=1", "password=*** port=1"),
        ("password='unfinished w", "password=***"),
        ('PGPASSWORD="p w" x', "PGPASSWORD=*** x"),
        ("{'user': 'u', 'password': 'p w'}", "{'user': 'u', 'password': ***}"),
        ('{"passwd": "pw"}', '{"passwd": ***}'),
        ("pwd=pw", "pwd=***"),
        ("pass=pw host=h", "pass=*** host=h"),
        ("api_key=pw, AccountKey=pw", "api_key=*** AccountKey=***"),
        ("bad token: pw", "bad token: ***"),
        ("ALTER USER u IDENTIFIED BY 'p w'", "ALTER USER u IDENTIFIED BY ***"),
        ("ALTER USER u PASSWORD 'p w'", "ALTER USER u PASSWORD ***"),
        ("compass=5 bypass: x", "compass=5 bypass: x"),
        ("(using password: NO)", "(using password: NO)"),
        ("no password supplied", "no password supplied"),
        ("(using password: YES)", "(using password: YES)"),
        ("password authentication failed", "password authentication failed"),
    ],
)
def test_passwords_are_hidden(text: str, shown: str) -> None:
    """A password in a URL, a DSN or a printed mapping does not survive."""
    assert redact(text) == shown


@pytest.mark.parametrize(
    "part",
    [
        "x",
        "a:",
        "x://",
        "//a:",
        "a.",
        "pwd",
        "password ",
        "password='",
        "token: ",
        "a:@ ",
        "\n",
        "@" + "a:" * 400_000 + " ",
    ],
)
def test_long_texts_are_redacted(part: str) -> None:
    """A text of megabytes, such as a statement's, holds nobody up for hours."""
    long = part * (1_000_000 // len(part))
    assert redact(f"{long} x://u:hunter2@h\npassword=hunter2").count("hunter2") == 0


PASSWORD = st.text(st.characters(exclude_categories=("Z", "C")), min_size=8)


@given(PASSWORD, st.sampled_from(["x://u:{}@h/d", "a x://u:{}@h b", "c x://:{}@h"]))
def test_no_password_survives_in_a_url(password: str, form: str) -> None:
    """Whatever the password, its text is gone from the line."""
    assert password not in error_text(OSError(form.format(password)))


def test_error_text_is_one_short_line() -> None:
    """A long text of many lines becomes the start of its first line."""
    assert error_text(OSError("first\nsecond")) == "OSError: first"
    assert error_text(OSError("\n  first \n")) == "OSError: first"
    assert error_text(OSError("é" * 5000)) == "OSError: " + "é" * 299 + "…"
    assert error_text(OSError("no \udcff")) == r"OSError: no \udcff"
    assert error_text(OSError()) == "OSError"
    assert error_text(KeyboardInterrupt("x")) == "KeyboardInterrupt: x"


def test_a_password_across_the_cut_is_hidden() -> None:
    """The text is cut only after it was made safe."""
    text = error_text(OSError("x" * 280 + " x://user:secretsecretsecret@host"))
    assert "secret" not in text


def test_error_text_survives_a_broken_str() -> None:
    """An error whose str fails is shown by its type."""
    assert error_text(Unprintable()) == "Unprintable"


def test_unknown_member_tells_a_foreign_one_apart() -> None:
    """A member of another pool under a known name is called that."""
    assert "another pool" in str(UnknownMemberError("a", ["a"]))
    assert "'a', 'b'" in str(UnknownMemberError("x", ["a", "b"]))
    assert "none" in str(UnknownMemberError("x", []))


@pytest.mark.parametrize("url", ["postgresql://u:se cret@h/d", "u:secret@h"])
def test_no_error_keeps_a_password(url: str) -> None:
    """What was given instead of a balancer or a number may be a URL."""
    for value in (url, [url], {"url": url}):
        for error in (
            UnknownBalancerError(value, ["a"], f"No module named {url!r}"),
            InvalidPickError(value, value),
            InvalidWeightError("a", value),
            InvalidSettingError("reset", value, "above 0 seconds"),
        ):
            assert "cret" not in f"{error} {error!r} {error.__dict__}"
