"""What this process has told a client is known again by any of its tokens."""

from __future__ import annotations

import os
import random
import threading
import time

import pytest

from flask_replicated.consistency import conversations
from flask_replicated.consistency.conversations import Carried, Conversations
from flask_replicated.consistency.positions import LogPosition
from flask_replicated.consistency.tokens import (
    CLOCK_SKEW,
    NOTHING,
    UNKNOWN_SERVER,
    Mark,
    Token,
    encode,
)
from tests.balancers.support import FakeClock

KEYS = ["secret"]
NOW = 1_700_000_000.0
LIFE = 300.0


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """Give the clock that tokens go by."""
    clock = FakeClock(NOW)
    monkeypatch.setattr(time, "time", clock)
    return clock


def token(number: int, replica: int = 0, at: float = NOW) -> Token:
    """Return a token for a position."""
    return Token({0: Mark(LogPosition(0, 0, {0: number}), at, replica=replica)})


def text(number: int, replica: int = 0) -> str:
    """Return the same as text."""
    return encode(token(number, replica), KEYS)


def conversations_() -> Conversations:
    """Return some that know nobody."""
    return Conversations(lambda one: one.alive(time.time(), LIFE, LIFE), LIFE)


def find(known: Conversations, *texts: str) -> Carried:
    """Return what a client carries that sends these."""
    return known.find(texts, KEYS)


@pytest.fixture
def known() -> Conversations:
    """Give some that know of one answer."""
    known = conversations_()
    known.note(find(known), text(1), KEYS)
    return known


def test_nobody(known: Conversations) -> None:
    """A token that is not known says what it says, and nothing else."""
    assert find(known, text(9)).token == token(9)
    assert find(known).token is NOTHING
    forged = find(known, "forged", text(9))
    assert (forged.token, forged.lost, len(forged.heard)) == (token(9), True, 1)


@pytest.mark.parametrize("left", [2, 3])
def test_crossed(known: Conversations, left: int) -> None:
    """Of two answers to one token either one leads to what both demand."""
    one, other = find(known, text(1)), find(known, text(1))
    known.note(other, text(3), KEYS)
    known.note(one, text(2), KEYS)
    found = find(known, text(left))
    assert (found.token, found.forgot) == (token(3), left == 2)
    assert find(known, text(1)).token == token(3)


def test_crossed_much_later(known: Conversations) -> None:
    """An answer that was long under way leads to what was told meanwhile."""
    slow = find(known, text(1))
    known.note(find(known, text(1)), text(3), KEYS)
    known.note(find(known, text(3)), text(4), KEYS)
    known.note(slow, text(2), KEYS)
    assert find(known, text(2)).token == token(4)


@pytest.mark.parametrize("binds", [1, 30])
def test_two_that_began_together(binds: int) -> None:
    """Answers to a token of another process have crossed, too, however long it is."""
    known = conversations_()
    elsewhere = Token({bind: token(0)[0] for bind in range(binds)})
    one, other = (find(known, encode(elsewhere, KEYS)) for _ in range(2))
    told = [elsewhere.merged(token(number)) for number in (1, 2)]
    known.note(one, encode(told[1], KEYS), KEYS)
    known.note(other, encode(told[0], KEYS), KEYS)
    assert find(known, encode(told[0], KEYS)).token == told[1]


def test_servers(known: Conversations) -> None:
    """The server is the latest one, and unknown where two reads have crossed."""
    known.note(find(known, text(1)), text(2, 5), KEYS)
    known.note(find(known, text(2, 5)), text(2, 7), KEYS)
    assert find(known, text(2, 7)).token[0].replica == 7
    crossed = find(known, text(2, 7))
    known.note(find(known, text(2, 7)), text(3, 5), KEYS)
    known.note(crossed, text(3, 7), KEYS)
    assert find(known, text(3, 7)).token[0].replica == UNKNOWN_SERVER


def test_several_tokens(known: Conversations) -> None:
    """A client that sends two tokens is known by both, and from then on by a third."""
    known.note(find(known), text(2), KEYS)
    both = find(known, text(1), text(2))
    assert both.token == token(2)
    known.note(both, text(3), KEYS)
    assert find(known, text(1)).token == find(known, text(2)).token == token(3)


@pytest.mark.parametrize("first", ["both", "one"])
def test_two_cookies(known: Conversations, first: str) -> None:
    """What was told to a client's second token alone is not lost by that to both."""
    alone = Token({7: token(5)[0]})
    second = encode(alone, KEYS)
    known.note(find(known), second, KEYS)
    older = find(known, second)
    both = find(known, text(1), second)
    told = {"both": both.token.merged(token(2)), "one": Token({7: token(6)[0]})}
    heard = {"both": both, "one": older}
    for name in sorted(told, key=lambda one: one != first):
        known.note(heard[name], encode(told[name], KEYS), KEYS)
    everything = told["both"].merged(told["one"])
    for one in (*told.values(), alone, token(1)):
        assert find(known, encode(one, KEYS)).token == everything


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_lost(seed: int) -> None:
    """A request is shown all that was told to whichever client sent its tokens.

    Requests carry none, one or two tokens, and their answers cross at random.
    """
    chance, known = random.Random(seed), conversations_()
    cookies: dict[int, str] = {}
    under_way: list[tuple[Carried, set[str]]] = []
    groups: list[
        tuple[set[str], Token]
    ] = []  # texts that belong together; what they know
    for number in range(150):
        if not under_way or chance.random() < 0.5:
            sent = {text for text in cookies.values() if chance.random() < 0.7}
            heard = find(known, *sent)
            assert all(heard.token.covers(all_) for one, all_ in groups if one & sent)
            under_way.append((heard, sent))
            continue
        heard, sent = under_way.pop(chance.randrange(len(under_way)))
        told = heard.token.merged(Token({number % 2: token(number)[0]}))
        cookies[chance.randrange(2)] = answer = encode(told, KEYS)
        known.note(heard, answer, KEYS)
        joined, all_ = {*sent, answer}, told
        for one, other in [each for each in groups if each[0] & joined]:
            groups.remove((one, other))
            joined, all_ = joined | one, all_.merged(other)
        groups.append((joined, all_))


def test_bounded(known: Conversations, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest are forgotten; those that go on are not."""
    monkeypatch.setattr(conversations, "_MOST", 10)
    for number in range(100, 120):
        known.note(find(known, text(1)), text(number), KEYS)
        assert find(known, text(number + 100)).token == token(number + 100)
    assert find(known, text(1)).token == token(119)
    assert find(known, text(101)).token == token(101)
    assert len(known._known) == 10


def test_threads(known: Conversations) -> None:
    """Answers by several threads at a time lose nothing."""

    def answer(thread: int) -> None:
        for number in range(200):
            heard = find(known, text(1))
            told = heard.token.merged(token(thread * 1000 + number))
            known.note(heard, encode(told, KEYS), KEYS)

    threads = [threading.Thread(target=answer, args=(one,)) for one in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert find(known, text(1)).token == token(3199)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_fork(known: Conversations) -> None:
    """A child waits for no lock of its parent's, and begins without clients."""
    known.note(find(known, text(1)), text(2), KEYS)
    with known._lock:  # another thread's, when the process forks
        child = os.fork()
        if not child:
            found = find(known, text(1)).token
            known.note(find(known), text(3), KEYS)
            os._exit(found != token(1))
    assert os.waitpid(child, 0)[1] == 0
    assert find(known, text(1)).token == token(2)


class TestReady:
    """What is known of a token is used again while nothing has changed."""

    def test_the_same(self, known: Conversations) -> None:
        """A text is read once, be it of this process or another, and found again."""
        find(known, text(9))
        for number in (1, 9):
            ready = known.ready(text(number), KEYS)
            assert ready is not None
            assert ready.token == token(number)
            assert ready.token is known.read(text(number), KEYS)
            assert ready.token is find(known, text(number)).token

    def test_crossed(self, known: Conversations) -> None:
        """It is found anew once its client was told more, until it carries that."""
        ready = known.ready(text(1), KEYS)
        assert ready is not None
        known.note(ready, text(2), KEYS)
        assert known.ready(text(1), KEYS) is None
        known.note(ready, text(3), KEYS)  # another answer to the same request
        assert find(known, text(3)).token == token(3)
        assert find(known, text(2)).token == token(3)

    @pytest.mark.parametrize("keys", [["another"], [], ["secret", "newer"]])
    def test_another_key(self, known: Conversations, keys: list[str]) -> None:
        """What was read with one key is not read with another, or without any."""
        assert known.ready(text(1), keys) is None
        readable = "secret" in keys
        assert bool(known.find([text(1)], keys).token) == readable
        assert (known.ready(text(1), keys) is not None) == readable
        assert known.ready(text(1), KEYS) is None
        assert find(known, text(1)).token == token(1)

    def test_a_new_key(self, known: Conversations) -> None:
        """A client is known again though the key was changed meanwhile."""
        known.note(find(known, text(1)), text(2), KEYS)
        assert known.find([text(1)], [*KEYS, "newer"]).token == token(2)

    def test_age(self, known: Conversations, clock: FakeClock) -> None:
        """What has become too old counts no more, nor what is from the future."""
        clock.advance(LIFE - 0.5)
        assert known.ready(text(1), KEYS)
        clock.advance(1.0)
        assert known.ready(text(1), KEYS) is None
        assert find(known, text(1)).token is NOTHING
        clock.advance(-LIFE - CLOCK_SKEW - 1.0)
        assert known.ready(text(1), KEYS) is None
        assert find(known, text(1)).token is NOTHING
        clock.advance(1.0)
        assert known.ready(text(1), KEYS)

    def test_what_was_told_ages(self, known: Conversations, clock: FakeClock) -> None:
        """What a client was told is no longer shown than its own token would be."""
        known.note(find(known, text(1)), text(2), KEYS)
        clock.advance(LIFE + 1)
        found = find(known, text(1))
        assert (found.token, found.forgot) == (NOTHING, False)

    def test_a_time(self, known: Conversations) -> None:
        """A time in place of a position is looked at each time.

        How long it counts depends on what replicas there are.
        """
        untold = encode(Token({7: Mark(untold=NOW)}), KEYS)
        assert find(known, untold).token
        assert known.ready(untold, KEYS) is None

    def test_what_cannot_be_read(self, known: Conversations) -> None:
        """Texts that nobody has signed take no room, however many come."""
        for number in range(20):
            assert known.find([f"forged{number}"], KEYS).lost
        assert len(known._known) == 1
        assert known.ready("forged1", KEYS) is None

    def test_a_long_one(self, known: Conversations) -> None:
        """A long text is read each time, so that many of them take no room."""
        long = encode(Token({n: Mark(untold=NOW) for n in range(60)}), KEYS)
        assert known.read(long, KEYS)
        assert known.read(long, KEYS) is not known.read(long, KEYS)
        assert max(len(one) for one in known._known) <= 100
