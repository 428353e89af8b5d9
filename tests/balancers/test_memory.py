"""Nothing grows with faults."""

from __future__ import annotations

import gc
import tracemalloc

from balancers import Pool
from tests.balancers.support import FakeClock, targets

FAULTS = 10_000


def strike(pool: Pool[str], clock: FakeClock, faults: int) -> None:
    """Let members fail, be tripped, come back, go and return, in turn."""
    for number in range(faults):
        member = pool.members[number % len(pool.members)]
        error = ConnectionRefusedError(f"fault {number}")
        if number % 3:
            for _ in range(2):
                pool.failed(member, error, pool.permit(member))
        else:
            pool.trip(member, 7.5, error)
        clock.advance(100.0)
        for other in pool.candidates():
            pool.succeeded(other, pool.permit(other))
        pool.recover(member, pool.permit(member))
        if number % 100 == 0:
            pool.remove(member.name)
            pool.add(member.name, member.target)


def test_ten_thousand_faults() -> None:
    """What a pool keeps after ten thousand faults is what it kept after a few."""
    clock = FakeClock()
    pool = Pool(targets(3), clock=clock, slow_start=5.0)
    strike(pool, clock, 300)
    tracemalloc.start()
    gc.collect()
    before, _ = tracemalloc.get_traced_memory()
    strike(pool, clock, FAULTS)
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(pool.live) == 3
    assert after - before < 20_000
