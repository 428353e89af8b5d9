"""Tokens: what a client carries, from anywhere and back."""

from __future__ import annotations

import os
from base64 import urlsafe_b64decode, urlsafe_b64encode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flask_replicated.consistency.positions import LogPosition
from flask_replicated.consistency.tokens import (
    Mark,
    Token,
    bind_id,
    decode,
    encode,
    merge_texts,
)

HOSTILE = 100_000 if os.environ.get("STEPS") == "long" else 300
FRESH = bool(os.environ.get("FRESH"))
NOW = 1_800_000_000.0
KEY = "a secret"

numbers = st.integers(0, 2**64 - 1)
digests = st.integers(0, 2**32 - 1)
# Whole seconds, which binary floating point holds exactly.
times = st.integers(0, 2_000_000_000).map(float)
one_cluster = st.builds(
    LogPosition,
    st.just(7),
    st.integers(0, 3),
    st.dictionaries(st.integers(0, 3), numbers, max_size=3),
)
marks = st.builds(Mark, st.none() | one_cluster, times, times, digests)
tokens = st.dictionaries(digests, marks, max_size=4).map(Token)
# Few binds and times, so that two tokens have them in common.
few = st.builds(
    Mark,
    st.none() | one_cluster,
    st.sampled_from([0.0, 1.0, 2.0, 3.0]),
    st.sampled_from([0.0, 1.0, 2.0]),
    st.integers(0, 3),
)
close = st.dictionaries(st.integers(0, 1), few, max_size=2).map(Token)


POSTGRESQL = LogPosition(2**32 - 1, 12, {0: 2**48})
LARGE = {
    "PostgreSQL": LogPosition(2**32 - 1, 2**32 - 1, {0: 2**64 - 1}),
    "MariaDB": LogPosition(0, 0, {2**32 - 1: 2**64 - 1}),
    "MariaDB, 3 domains": LogPosition(
        0, 0, {2**32 - number: 2**56 - 1 for number in range(1, 4)}
    ),
    "MySQL": LogPosition(0, 0, {2**48 - 1: 2**63 - 1}),
}
"""Positions that take as much room as those of a database may."""


def a_token(binds: int, position: LogPosition = POSTGRESQL) -> Token:
    """Return a token with everything that a mark may have."""
    mark = Mark(position, NOW, NOW, 2**32 - 1)
    return Token({bind_id(f"bind{n}"): mark for n in range(binds)})


def as_text(data: bytes) -> str:
    """Return the text of a token's bytes, without a signature."""
    return urlsafe_b64encode(data).rstrip(b"=").decode()


TOKENS = [
    Token({0: Mark(at=1.0)}),
    Token({7: Mark(untold=NOW), 8: Mark(at=NOW, replica=5)}),
    *(a_token(1, position) for position in LARGE.values()),
    a_token(10),
]
TEXTS = [encode(token, keys) for token in TOKENS for keys in ([], [KEY], ["another"])]
SIGNED = {encode(token, []): token for token in TOKENS}
"""What the key has signed, by what stands before the signature."""
CHARACTERS = st.sampled_from([*'AQZaz019-_.,=+/ \n\t%;"\0', "\x80", "é", "\ud800"])


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """Draw a token's text of which some characters are others, more or fewer."""
    text = draw(st.sampled_from(TEXTS))
    for _ in range(draw(st.integers(1, 4))):
        start, length = draw(st.integers(0, len(text))), draw(st.integers(0, 3))
        tail = draw(st.sampled_from([text[start + length :], "", text, text[start:]]))
        text = text[:start] + draw(st.text(CHARACTERS, max_size=3)) + tail
    return text


hostile = (
    damaged()
    | st.binary(max_size=60).map(lambda data: as_text(b"\x01" + data))
    | st.lists(st.integers(0, 7), max_size=40).map(lambda given: as_text(bytes(given)))
    | st.text(CHARACTERS, max_size=80)
    | st.text(max_size=200)
    | st.text(CHARACTERS, min_size=1, max_size=9).map(lambda part: part * 5000)
)


@given(tokens, st.sampled_from([[], [KEY], ["old", KEY]]))
def test_round_trip(token: Token, keys: list[str]) -> None:
    """A token that was encoded is decoded to the same one."""
    assert decode(encode(token, keys), keys) == token


@given(close, close)
def test_merge_is_commutative(one: Token, other: Token) -> None:
    """The order in which two tokens are merged does not matter."""
    assert one.merged(other) == other.merged(one)


@given(close, close, close)
def test_merge_is_associative(one: Token, two: Token, three: Token) -> None:
    """Of three tokens it does not matter which two are merged first."""
    assert one.merged(two).merged(three) == one.merged(two.merged(three))


@settings(max_examples=500)
@given(few, few, few)
def test_merge_marks(one: Mark, two: Mark, three: Mark) -> None:
    """The same holds of marks of one bind, whatever they have."""
    assert one.merged(two) == two.merged(one)
    assert one.merged(two).merged(three) == one.merged(two.merged(three))


@given(few, few, one_cluster, one_cluster)
def test_merge_of_two_clusters(
    one: Mark, other: Mark, here: LogPosition, there: LogPosition
) -> None:
    """Of positions that cannot be compared the later one stays, in any order."""
    one = one._replace(position=here)
    other = other._replace(position=there._replace(cluster=8))
    both = one.merged(other)
    assert both == other.merged(one)
    later = max(one, other, key=lambda mark: mark.at)
    assert one.at == other.at or both.position == later.position


@given(close)
def test_merge_is_idempotent(token: Token) -> None:
    """A token that is merged with itself stays what it is."""
    assert token.merged(token) == token


@given(close, close)
def test_merge_loses_nothing(one: Token, other: Token) -> None:
    """A merged token covers each time of both, and each position but lost ones.

    What was on an earlier timeline is replaced by what is on a later one.
    """
    both = one.merged(other)
    for bind, mark in [*one.items(), *other.items()]:
        found = both[bind]
        assert found.at >= mark.at
        assert found.untold >= mark.untold
        if mark.position is not None:
            assert found.position is not None
            lost = found.position.timeline > mark.position.timeline
            assert lost or found.position.covers(mark.position)


@settings(max_examples=HOSTILE, derandomize=not FRESH)
@given(hostile)
def test_hostile_texts(text: str) -> None:
    """No text makes decoding raise, or is read as another than what was encoded."""
    found = decode(text, [])
    assert found is None or encode(found, []) == text
    signed = decode(text, [KEY])
    # A signature may have characters that base64 overlooks.
    assert not signed or signed == SIGNED[text.rpartition(".")[0]]


@pytest.mark.parametrize("database", LARGE)
@pytest.mark.parametrize(("binds", "most"), [(1, 200), (10, 1024)])
def test_size(binds: int, most: int, database: str) -> None:
    """A signed token fits where headers and cookies are short."""
    token = a_token(binds, LARGE[database])
    text = encode(token, [KEY])
    assert len(text) <= most
    assert decode(text, [KEY]) == token


@pytest.mark.parametrize("keys", [[], [KEY]])
@pytest.mark.parametrize(
    ("binds", "streams"), [(64, 1), (64, 4), (64, 64), (30, 64), (1, 64), (1, 65)]
)
def test_positions_that_do_not_fit(binds: int, streams: int, keys: list[str]) -> None:
    """A token can always be read; where positions are too many it has their times."""
    position = LogPosition(1, 0, dict.fromkeys(range(streams), 2**63))
    token = Token({bind: Mark(position, NOW, NOW - 9, 5) for bind in range(binds)})
    found = decode(encode(token, keys), keys)
    by_time = Token({bind: Mark(None, NOW, NOW, 5) for bind in range(binds)})
    assert found == (token if binds * streams <= 64 else by_time)


def test_time_of_a_part() -> None:
    """Only a position that has too many streams itself gives way to its time."""
    many = LogPosition(1, 0, dict.fromkeys(range(65), 1))
    marks = {1: Mark(many, NOW), 2: Mark(POSTGRESQL, NOW), 3: Mark(many, 5.0, NOW)}
    found = decode(encode(Token(marks), []), [])
    assert found == Token(
        {1: Mark(None, NOW, NOW), 2: marks[2], 3: Mark(None, 5.0, NOW)}
    )


def test_a_moment_that_rounds_to_none() -> None:
    """A time of less than half a millisecond is none."""
    text = encode(Token({1: Mark(None, 5.0, 1e-4)}), [])
    assert decode(text, []) == Token({1: Mark(at=5.0)})


AT = bytes([0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 8])  # 2**45 milliseconds
FOREIGN = {
    "no mark": b"\x01",
    "version 0": b"\x00\x01\x00\x05",
    "version 2": b"\x02\x01\x00\x05",
    "an unknown part": b"\x01\x01\x08\x05",
    "no time": b"\x01\x01\x00",
    "ends in a number": b"\x01\x01\x00\x85",
    "ends in a next number": b"\x01\x01\x00\x05\x85",
    "a longer zero": b"\x01\x01\x00\x80\x00",
    "a longer five": b"\x01\x01\x00\x85\x00",
    "more than 64 bits": b"\x01\x01\x01\x05" + b"\xff" * 9 + b"\x03\x00\x00",
    "a year beyond all years": b"\x01\x01\x00" + AT,
    "untold at no time": b"\x01\x01\x02\x05\x00",
    "replica none": b"\x01\x01\x04\x05\x00",
    "replica of 33 bits": b"\x01\x01\x04\x05\x80\x80\x80\x80\x10",
    "bind of 33 bits": b"\x01\x80\x80\x80\x80\x10\x00\x05",
    "one bind twice": b"\x01\x01\x00\x05\x01\x00\x05",
    "one stream twice": b"\x01\x01\x01\x05\x00\x00\x02\x07\x01\x07\x01",
    "65 streams": b"\x01\x01\x01\x05\x00\x00\x41" + bytes(range(65)) * 2,
    "65 binds": b"\x01" + b"".join(bytes([bind, 0, 5]) for bind in range(65)),
    "a rest": b"\x01\x01\x00\x05\x07",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign(name: str) -> None:
    """What encoding never writes is not read."""
    assert decode(as_text(b"\x01\x01\x00\x05"), []) == Token({1: Mark(at=0.005)})
    assert decode(as_text(FOREIGN[name]), []) is None


@pytest.mark.parametrize(
    "text", ["AQEABQ==", " AQEABQ", "AQEABQ\n", "AQ.EABQ", "AQEABR"]
)
def test_one_text(text: str) -> None:
    """A token has one text only: base64 would overlook the rest."""
    assert decode("AQEABQ", []) is not None
    assert urlsafe_b64decode(text + "==")[:3] == b"\x01\x01\x00"
    assert decode(text, []) is None


def test_keys() -> None:
    """Only a text that one of the keys has signed can be read, if there are keys."""
    token = a_token(1)
    old, new, bare = (
        encode(token, ["old"]),
        encode(token, ["old", KEY]),
        encode(token, []),
    )
    assert decode(old, ["old", KEY]) == decode(new, ["old", KEY]) == token
    assert decode(new, [KEY]) == token
    assert decode(old, [KEY]) is None
    assert decode(bare, [KEY]) is None
    assert decode(new, []) is None


def test_nothing() -> None:
    """An empty token is an empty text, and the other way round."""
    assert encode(Token(), [KEY]) == ""
    assert decode("", [KEY]) == Token()
    assert not Token()


def test_long_text() -> None:
    """A text of more than 4 KB cannot be read, even if it would be a token."""
    many = encode(a_token(64), [])
    for binds, whole in ((20, True), (24, False)):
        streams = b"".join(bytes([stream, 7]) for stream in range(64))
        of_one = bytes([1, 5, 0, 0, 64]) + streams
        data = b"\x01" + b"".join(bytes([bind]) + of_one for bind in range(binds))
        assert (decode(as_text(data), []) is not None) is whole
    assert len(many) <= 4096
    assert decode(many, []) == a_token(64)


def test_too_many_binds() -> None:
    """Of more than 64 binds those are kept that were noted last, be it by time."""
    earlier, later = NOW - 2.0, NOW - 1.0
    marks = {bind: Mark(POSTGRESQL, later) for bind in range(66)}
    marks |= {7: Mark(POSTGRESQL, earlier), 9: Mark(untold=earlier)}
    marks[65] = Mark(untold=NOW)
    kept = decode(encode(Token(marks), []), [])
    assert kept is not None
    assert set(marks) - set(kept) == {7, 9}


def test_age() -> None:
    """What is too old, or more than a second in the future, is dropped by part."""
    token = Token(
        {
            1: Mark(at=NOW - 300, replica=1),
            2: Mark(at=NOW - 299, replica=2),
            3: Mark(at=NOW + 1, replica=3),
            4: Mark(at=NOW + 1.5, replica=4),
            5: Mark(at=NOW - 300, untold=NOW - 1, replica=5),
            6: Mark(at=NOW - 1, untold=NOW - 300),
            7: Mark(untold=NOW + 1.5),
        }
    )
    alive = token.alive(NOW, 300, 300)
    assert set(alive) == {2, 3, 5, 6}
    assert alive[5] == Mark(untold=NOW - 1)
    assert alive[6] == Mark(at=NOW - 1)


def test_merge_many_texts() -> None:
    """Of too many texts only some are read, and that is told as well."""
    texts = [encode(Token({n: Mark(at=NOW)}), []) for n in range(12)]
    assert merge_texts(texts[:11], [])[1]
    found, whole = merge_texts(iter(texts), [])
    assert (len(found), whole) == (11, False)


def test_merge_texts() -> None:
    """Several texts are merged, and one that cannot be read is told of."""
    texts = [encode(Token({n: Mark(at=NOW, replica=n)}), [KEY]) for n in (1, 2)]
    found, whole = merge_texts([*texts, ""], [KEY])
    assert (set(found), whole) == ({1, 2}, True)
    found, whole = merge_texts([*texts, "forged"], [KEY])
    assert (set(found), whole) == ({1, 2}, False)
