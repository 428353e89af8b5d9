"""The checker finds each kind of anomaly, and nothing where there is none."""

from __future__ import annotations

import random
from itertools import product
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.consistency.checker import Kind, check
from tests.consistency.history import Look, Operation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

REGISTERS = 3


def read(
    began: float, *versions: int, client: int = 1, seconds: float = 0.5, worker: int = 1
) -> Operation:
    """Return a read of three registers."""
    ended = began + seconds
    return Operation(client, began, ended, (Look("one", versions),), worker=worker)


def write(
    began: float,
    register: int,
    version: int,
    *,
    client: int = 1,
    seconds: float = 0.5,
    worker: int = 1,
) -> Operation:
    """Return a write of a register."""
    ended = began + seconds
    return Operation(client, began, ended, wrote=(register, version), worker=worker)


def kinds(*history: Operation) -> list[Kind]:
    """Return what is wrong with a history, whatever its order."""
    found = [one.kind for one in check(history)]
    shuffled = list(history)
    random.Random(1).shuffle(shuffled)
    assert sorted(one.value for one in found) == sorted(
        one.kind.value for one in check(shuffled)
    )
    return found


def test_own_write_is_missing() -> None:
    """A client that does not see its write is found, with the versions."""
    wrote, missed = write(1, 0, 5), read(2, 4, 0, 0)

    (anomaly,) = check([wrote, missed])

    assert anomaly.kind is Kind.READ_YOUR_WRITES
    assert (anomaly.register, anomaly.wanted, anomaly.seen) == (0, 5, 4)
    assert (anomaly.earlier, anomaly.later) == (wrote, missed)


def test_own_write_is_there() -> None:
    """A client that sees its write, or a later one, is content."""
    assert kinds(write(1, 0, 5), read(2, 5, 0, 0), read(3, 9, 0, 0)) == []


def test_the_write_of_another_client() -> None:
    """A client need not see what others have written."""
    assert kinds(write(1, 0, 5, client=1), read(2, 4, 0, 0, client=2)) == []


def test_a_read_goes_back() -> None:
    """A client that sees less than before is found."""
    assert kinds(read(1, 0, 3, 0), read(2, 0, 2, 0)) == [Kind.MONOTONIC_READS]


def test_a_read_goes_back_much_later() -> None:
    """What was read first counts after a read of something else."""
    history = read(1, 0, 3, 0), read(2, 1, 3, 0), read(3, 1, 2, 0)
    assert kinds(*history) == [Kind.MONOTONIC_READS]


def test_two_clients_read_apart() -> None:
    """What one client has seen another need not see."""
    assert kinds(read(1, 0, 3, 0), read(2, 0, 2, 0, client=2)) == []


def test_a_request_goes_back() -> None:
    """A request whose second look shows less than its first is found."""
    looks = Look("one", (0, 3, 0)), Look("two", (0, 2, 0))
    assert kinds(Operation(1, 1, 2, looks)) == [Kind.MONOTONIC_READS]
    assert kinds(Operation(1, 1, 2, looks[::-1])) == []


def test_parallel_reads() -> None:
    """Requests that overlap may see anything in any order."""
    assert kinds(read(1, 0, 3, 0, seconds=2), read(2, 0, 2, 0, seconds=2)) == []
    assert kinds(write(1, 1, 3, seconds=2), read(2, 0, 2, 0, seconds=2)) == []


def test_answered_as_the_next_is_sent() -> None:
    """What was answered at the moment when another was sent is not before it."""
    assert kinds(write(1, 1, 3, seconds=1), read(2, 0, 2, 0)) == []


def test_a_long_request_does_not_hide_a_short_one() -> None:
    """A write that was answered counts, though an older request is still under way."""
    history = read(1, 0, 0, 0, seconds=9), write(2, 0, 1), read(3, 0, 0, 0)
    assert kinds(*history) == [Kind.READ_YOUR_WRITES]


def test_own_writes_out_of_order() -> None:
    """A later write that gets a lower version than an earlier one is found."""
    assert kinds(write(1, 0, 5), write(2, 0, 4)) == [Kind.MONOTONIC_WRITES]


def test_a_write_before_what_was_read() -> None:
    """A write that gets a lower version than its client has read is found."""
    history = read(1, 7, 0, 0), write(2, 0, 4)
    assert kinds(*history) == [Kind.WRITES_FOLLOW_READS]


def test_writes_seen_out_of_order() -> None:
    """Who sees a client's second write without its first is found."""
    history = write(1, 0, 1), write(2, 1, 1), read(3, 0, 1, 0, client=2)
    assert kinds(*history) == [Kind.MONOTONIC_WRITES]


def test_writes_seen_out_of_order_through_a_later_one() -> None:
    """A later version of the register shows the second write, too."""
    others = write(2.6, 1, 2, client=3), read(4, 0, 2, 0, client=2)
    assert kinds(write(1, 0, 1), write(2, 1, 1), *others) == [Kind.MONOTONIC_WRITES]


def test_a_write_seen_without_what_it_follows() -> None:
    """Who sees a write without what its client had read before is found."""
    history = read(1, 4, 0, 0), write(2, 1, 1), read(3, 3, 1, 0, client=2)
    assert kinds(*history) == [Kind.WRITES_FOLLOW_READS]


def test_a_version_twice() -> None:
    """Two writes of the same version are one write lost."""
    history = write(1, 0, 1), write(1.2, 0, 1, client=2)
    assert kinds(*history) == [Kind.LOST_WRITES]


def test_a_failed_request() -> None:
    """Nothing is expected of a request that failed."""
    failed = write(1, 0, 5)._replace(error="500", wrote=None)
    assert kinds(failed, read(2, 4, 0, 0)) == []


def stored(one: Operation, carried: str, token: str) -> Operation:
    """Return an operation that has sent a token, and got another to keep."""
    return one._replace(carried=carried, stored=token)


@pytest.mark.parametrize(
    ("worker", "got", "sends", "crossed"),
    [
        (2, "c", "c", True),  # overwritten
        (1, "c", "c", False),  # a process loses nothing of its own
        (2, "c", "b", False),  # its own token came last
        (2, "", "b", False),  # the other answer told it to keep nothing
        (2, "c", "", False),  # it lost all that it had
    ],
)
def test_answers_cross(worker: int, got: str, sends: str, crossed: bool) -> None:
    """What another worker has overwritten is told; nothing else is."""
    wrote = stored(write(1, 0, 5), "a", "b")
    other = stored(read(1.2, 0, 0, 0, worker=worker), "a", got)  # at the same time
    missed = stored(read(2, 4, 0, 0), sends, "")

    (anomaly,) = check([wrote, other, missed])

    assert anomaly.crossed is crossed


@pytest.mark.parametrize("carried", ["a", "b"])
def test_answers_crossed_before(carried: str) -> None:
    """What was overwritten stays so, and is no excuse where it was carried again."""
    wrote = stored(write(1, 0, 5), "a", "b")
    other = stored(read(1.2, 0, 0, 0, worker=2), "a", "c")
    later = stored(write(2, 1, 1), "c" if carried == "a" else carried, "d")
    missed = stored(read(3, 4, 1, 0), "d", "")

    anomalies = check([wrote, other, later, missed])

    (anomaly,) = [one for one in anomalies if one.kind is Kind.READ_YOUR_WRITES]
    assert anomaly.crossed is (carried == "a")


def test_asked_by_another_worker() -> None:
    """Only the worker that has sent both answers knows that one is overwritten."""
    wrote = stored(write(1, 0, 5), "a", "b")
    other = stored(read(1.2, 0, 0, 0), "a", "c")
    missed = stored(read(2, 4, 0, 0, worker=2), "c", "")

    (anomaly,) = check([wrote, other, missed])

    assert anomaly.crossed


def test_a_read_that_stored_nothing() -> None:
    """What a read saw is lost with the token that it has carried."""
    wrote = stored(write(1, 0, 5), "a", "b")
    other = stored(read(1.2, 0, 0, 0, seconds=2, worker=2), "a", "c")
    seen = stored(read(2, 5, 0, 0), "b", "")

    anomalies = check([wrote, other, seen, stored(read(4, 4, 0, 0), "c", "")])

    assert [one.crossed for one in anomalies] == [True, True]


def test_a_failed_answer_overwrites() -> None:
    """An answer that says that it failed may overwrite a token all the same."""
    wrote = stored(write(1, 0, 5), "a", "b")
    failed = stored(read(1.2, 0, 0, 0, seconds=2, worker=2), "a", "c")
    failed = failed._replace(looks=(), error="GET: 500")

    (anomaly,) = check([wrote, failed, stored(read(4, 4, 0, 0), "c", "")])

    assert anomaly.crossed


def test_one_request_does_not_cross_itself() -> None:
    """A request that goes back in time midway has no excuse."""
    looks = tuple(Look(str(number), (number, 0, 0)) for number in (5, 4))
    back = stored(read(1, 0, 0, 0), "a", "b")._replace(looks=looks)
    other = stored(read(1.2, 0, 0, 0, worker=2), "a", "c")

    (anomaly,) = [one for one in check([back, other]) if one.later is back]

    assert not anomaly.crossed


def test_nothing() -> None:
    """Without operations there is nothing wrong."""
    assert check([]) == []


@st.composite
def histories(draw: st.DrawFn, stale: bool) -> list[Operation]:
    """Return what clients of one primary see, and of replicas if reads are stale."""
    log = [(0,) * REGISTERS]
    history = []
    # Each client is free again when its last request was answered, at the earliest.
    free = dict.fromkeys(range(3), 0.0)
    for moment in range(draw(st.integers(1, 25))):
        client = draw(st.integers(0, 2))
        began = draw(st.floats(min(free[client], moment), moment))
        ended = moment + draw(st.floats(0.1, 2))
        free[client] = ended if draw(st.booleans()) else free[client]
        operation = Operation(client, began, ended)
        if draw(st.booleans()):
            register = draw(st.integers(0, REGISTERS - 1))
            state = list(log[-1])
            state[register] += 1
            log.append(tuple(state))
            history.append(operation._replace(wrote=(register, state[register])))
        else:
            behind = draw(st.integers(0, len(log) - 1)) if stale else 0
            look = Look("one", log[len(log) - 1 - behind])
            history.append(operation._replace(looks=(look,)))
    return history


@given(histories(stale=False))
def test_one_server_shows_no_anomaly(history: list[Operation]) -> None:
    """Clients of one server, which runs one request after the other, are content."""
    assert check(history) == []


@given(histories(stale=True))
def test_stale_servers_keep_the_order_of_writes(history: list[Operation]) -> None:
    """Replicas that lag show an old state, never writes in a wrong order."""
    found = {one.kind for one in check(history)}
    assert found <= {Kind.READ_YOUR_WRITES, Kind.MONOTONIC_READS}


@given(histories(stale=True))
def test_as_by_comparing_all_pairs(history: list[Operation]) -> None:
    """The same reads are found as by comparing each with all before it."""
    found = {(one.kind, one.later) for one in check(history)}
    assert found == set(by_pairs(history))


def by_pairs(history: Sequence[Operation]) -> Iterator[tuple[Kind, Operation]]:
    """Return the reads that show less than something before them."""
    for later, earlier in product(history, repeat=2):
        if earlier.client != later.client or earlier.ended >= later.began:
            continue
        for look in later.looks:
            register, version = earlier.wrote or (0, -1)
            if look.versions[register] < version:
                yield Kind.READ_YOUR_WRITES, later
        for look, before in product(later.looks, earlier.looks):
            if any(map(int.__lt__, look.versions, before.versions)):
                yield Kind.MONOTONIC_READS, later
