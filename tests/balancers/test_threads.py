"""Many threads, and a fork in the middle."""

from __future__ import annotations

import os
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TYPE_CHECKING

import pytest

from balancers import CircuitBreaker, NoMemberAvailableError, Pool
from balancers.errors import DuplicateMemberError
from balancers.events import MemberClosed, MemberOpened
from tests.balancers.support import REFUSED, FakeClock, Log, fail, tally, targets

if TYPE_CHECKING:
    from collections.abc import Callable

THREADS = 8


@pytest.fixture(autouse=True)
def _switch_often() -> object:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def together(work: Callable[[int], object]) -> list[object]:
    """Run *work* in every thread at once and return what each returned."""
    gate = Barrier(THREADS)

    def run(number: int) -> object:
        gate.wait()
        return work(number)

    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(run, range(THREADS)))


def test_picks_lose_nothing() -> None:
    """Picks of many threads together are as even as those of one."""
    pool = Pool(targets(4))
    counts = together(lambda _: tally(pool.pick, 1000))
    for name in "abcd":
        assert sum(one[name] for one in counts) == THREADS * 250  # type: ignore[index]  # Counter


def test_exactly_one_thread_gets_the_trial() -> None:
    """However many ask when the wait is over, one is handed the member."""
    clock = FakeClock()
    pool = Pool(targets(3), clock=clock)
    for _ in range(30):
        fail(pool, "a")
        clock.advance(60.0)
        counts = together(lambda _: tally(pool.pick, 20)["a"])
        assert sum(counts) == 1  # type: ignore[arg-type]  # each is a number
        pool.failed(pool.member("a"), REFUSED)


def test_one_outage_of_many_threads_counts_once() -> None:
    """Connects that began together and failed together are one failure."""
    breaker = CircuitBreaker(threshold=2)
    permits = [breaker.permit() for _ in range(THREADS)]
    together(lambda number: breaker.failed(permits[number]))
    assert breaker.failures == 1


def test_transitions_stay_consistent() -> None:
    """After a storm of reports and drains, what is published is what is true."""
    clock, log = FakeClock(), Log()
    pool = Pool(targets(4), clock=clock, listeners=[log], slow_start=0.5)

    def storm(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(400):
            member = chance.choice(pool.members)
            act = chance.randrange(6)
            if act < 2:
                pool.failed(member, REFUSED, pool.permit(member))
            elif act == 2:
                pool.succeeded(member, pool.permit(member))
            elif act == 3:
                pool.drain(member.name)
            elif act == 4:
                pool.restore(member.name)
            else:
                connect(pool)
            clock.advance(0.01)

    together(storm)
    assert tuple(one.name for one in pool.live) == pool.snapshot().live
    for name in "abcd":
        pool.restore(name)
    for _ in range(20):
        clock.advance(100.0)
        for _ in range(4):
            trial = pool.pick()
            pool.succeeded(trial, pool.permit(trial))
    assert pool.live == pool.members
    assert tally(pool.pick, 40) == dict.fromkeys("abcd", 10)
    assert any(isinstance(event, MemberOpened) for event in log)
    assert any(isinstance(event, MemberClosed) for event in log)


def test_members_come_and_go_under_picks() -> None:
    """Eight threads pick, report and take snapshots while members come and go.

    No thread sees an error, a removed member is picked no more once its removal has
    returned, and in the end all is as if nothing had happened.
    """
    pool = Pool(targets(4), balancer="weighted", threshold=1)
    stay = frozenset("abcd")
    removed: set[int] = set()
    held: list[object] = []  # or a new member might have an old one's id

    def churn(number: int) -> int:
        name = f"x{number}"
        for turn in range(60):
            member = pool.add(name, name, weight=turn % 3)
            pool.failed(member, REFUSED, pool.permit(member))
            held.append(pool.remove(name))
            removed.add(id(member))
            pool.succeeded(member)
        return 0

    def use(number: int) -> int:
        chance, errors = random.Random(number), 0
        for _ in range(1500):
            known = set(removed)
            member = pool.pick()
            errors += id(member) in known
            permit = pool.permit(member)
            if chance.random() < 0.3 and member.name not in stay:
                pool.failed(member, REFUSED, permit)
            else:
                pool.succeeded(member, permit)
            found = pool.first(member)
            assert found is not None
            if chance.random() < 0.05:
                assert stay <= {one.name for one in pool.candidates()}
                assert stay <= set(pool.causes())
                assert stay <= {one.name for one in pool.snapshot().members}
        return errors

    errors = together(lambda number: (churn if number < 3 else use)(number))
    assert errors == [0] * THREADS
    assert {one.name for one in pool.members} == stay
    assert pool.live == pool.members
    assert tally(pool.pick, 40) == dict.fromkeys("abcd", 10)
    assert "__self__" in dir(pool.pick)


def test_one_of_many_adds_a_name() -> None:
    """Of threads that add one name together, one succeeds each time."""
    pool = Pool(targets(2))

    def add(_: int) -> bool:
        try:
            pool.add("x", "")
        except DuplicateMemberError:
            return False
        return True

    for _ in range(30):
        assert sum(map(bool, together(add))) == 1
        pool.remove("x")


def connect(pool: Pool[str]) -> None:
    """Ask for a member, then for all of them."""
    try:
        pool.pick()
    except NoMemberAvailableError:
        return
    tried = list(pool.candidates())
    assert len(set(tried)) == len(tried)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
class TestFork:
    """A child process made in the middle of things."""

    def in_child(self, work: Callable[[], bool]) -> bool:
        """Run *work* in a forked child and return whether it was true."""
        child = os.fork()
        if child == 0:
            try:
                os._exit(0 if work() else 1)
            finally:
                os._exit(2)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    def test_a_child_works_though_a_lock_was_held(self) -> None:
        """Reshuffled, a child can change members that its parent had locked."""
        clock = FakeClock()
        pool = Pool(targets(3), clock=clock)
        fail(pool, "a")

        def work() -> bool:
            pool.reshuffle()
            fail(pool, "b")
            clock.advance(10.0)
            return {pool.pick().name for _ in range(3)} == {"a", "b", "c"}

        with (
            pool._publisher._lock,
            pool._membership.records[pool.member("b")].breaker._lock,
        ):
            assert self.in_child(work)

    def test_a_child_changes_its_own_members(self) -> None:
        """Members that come and go in a child do so there alone."""
        pool = Pool(targets(2))
        pool.add("c", "")

        def work() -> bool:
            pool.reshuffle()
            pool.remove("a")
            pool.add("d", "")
            return {pool.pick().name for _ in range(3)} == {"b", "c", "d"}

        with pool._publisher._lock:
            assert self.in_child(work)
        assert tally(pool.pick, 30) == {"a": 10, "b": 10, "c": 10}

    def test_a_child_starts_elsewhere(self) -> None:
        """Reshuffled children do not all continue the parent's rotation in step."""
        pool = Pool(targets(8))

        def starts_with(name: str) -> bool:
            pool.reshuffle()
            return pool.pick().name == name

        hits = sum(self.in_child(lambda: starts_with("a")) for _ in range(24))
        assert hits < 24

    def test_a_parent_keeps_its_lock(self) -> None:
        """Reshuffling without a fork starts a new rotation and nothing else."""
        pool = Pool(targets(3))
        fail(pool, "a")
        lock = pool._publisher._lock
        pool.reshuffle()
        assert pool._publisher._lock is lock
        assert tally(pool.pick, 10) == {"b": 5, "c": 5}
