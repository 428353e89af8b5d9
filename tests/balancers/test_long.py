"""A million picks by eight threads while members flap, in ``make long``; else fewer."""

from __future__ import annotations

import gc
import os
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from balancers import Pool
from balancers.strategies import BALANCERS, MAX_STEPS, reads_weights
from tests.balancers.support import REFUSED, FakeClock

if TYPE_CHECKING:
    from collections.abc import Iterator

THREADS = 8
QUIET = 10 * MAX_STEPS
"""Picks in a quiet stretch. Members change before each, and others are picked by."""
STRETCHES = 25 if os.environ.get("STEPS") == "long" else 2
NAMES = "abcdef"


def churn(pool: Pool[str], clock: FakeClock, seed: int) -> None:
    """Let members come, go, fail, drain, recover, change weights and lag."""
    chance = random.Random(seed)
    weighs = reads_weights(pool._strategy)
    for turn in range(200):
        name, act = chance.choice(NAMES), chance.randrange(6)
        member = pool.member(name)
        if act == 0:
            pool.trip(member, 5.0, REFUSED)
        elif act == 1:
            pool.recover(member)
        elif act == 2:
            (pool.drain if turn % 2 else pool.restore)(name)
        elif act == 3 and weighs:
            pool.reweight({name: chance.randrange(4)})
        elif act == 4:
            pool.reduce(member, chance.choice([0.25, 0.5, 1.0]))
        else:
            pool.add(f"x{seed}", "")
            pool.remove(f"x{seed}")
        clock.advance(0.01)


def settle(pool: Pool[str], seed: int) -> dict[str, int]:
    """Let some members be live, and return their weights."""
    chance = random.Random(seed)
    for name in NAMES:
        pool.restore(name)
        pool.recover(pool.member(name))
        pool.reduce(pool.member(name), 1)
    if reads_weights(pool._strategy):
        pool.reweight({name: chance.randint(1, 4) for name in NAMES})
    pool.drain(chance.choice(NAMES))
    return {member.name: member.weight for member in pool.live}


def pick(pool: Pool[str], picks: int) -> Counter[str]:
    """Pick so many times, and use what is picked."""
    found: Counter[str] = Counter()
    for _ in range(picks):
        member = pool.pick()
        found[member.name] += 1
    return found


@pytest.fixture(name="threads")
def _threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(THREADS) as threads:
        yield threads


@pytest.mark.parametrize("balancer", [name for name in BALANCERS if name != "first"])
def test_shares(balancer: str, threads: ThreadPoolExecutor) -> None:
    """Shares are those of the weights within 1 %, and nothing fails or grows."""
    clock = FakeClock()
    pool = Pool(dict.fromkeys(NAMES, ""), balancer=balancer, clock=clock)
    kept = 0
    for stretch in range(STRETCHES):
        work = [threads.submit(churn, pool, clock, stretch * 2 + one) for one in (0, 1)]
        work += [threads.submit(_pick_if_any, pool, 500) for _ in range(THREADS - 2)]
        for one in work:
            one.result()
        weights = settle(pool, stretch)
        parts = [QUIET // THREADS] * THREADS
        counts: Counter[str] = Counter()
        for found in threads.map(pick, [pool] * THREADS, parts):
            counts += found
        assert counts.total() == QUIET
        assert counts.keys() == weights.keys()
        for name, weight in weights.items():
            exact = QUIET * weight / sum(weights.values())
            assert abs(counts[name] - exact) <= exact / 100
        if stretch == 0:
            gc.collect()
            kept = len(gc.get_objects())
    gc.collect()
    assert len(gc.get_objects()) - kept < 1000


def _pick_if_any(pool: Pool[str], picks: int) -> None:
    """Try members as one would to connect; there may be none."""
    for _ in range(picks):
        for member in pool.candidates():
            assert member.name[0] in f"{NAMES}x"
            break
