"""A clock that stands still, and short ways to say what the tests say often."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from balancers import Member, Pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from balancers import Event


class FakeClock:
    """Seconds that pass only when told to."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return the reading."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let seconds pass."""
        self.now += seconds


class Log(list["Event"]):
    """A listener that keeps what it is told."""

    def __call__(self, event: Event) -> None:
        """Keep the event."""
        self.append(event)


REFUSED = ConnectionRefusedError("connection refused")


def longest() -> float:
    """Return the jitter that makes every wait as long as it can be."""
    return 1.0


def members(weights: Iterable[int]) -> tuple[Member[str], ...]:
    """Return members m0, m1 and so on, with these weights."""
    return tuple(Member(f"m{i}", f"t{i}", weight) for i, weight in enumerate(weights))


def targets(count: int) -> dict[str, str]:
    """Return targets for names a, b, c and so on."""
    return {name: f"{name}-target" for name in "abcdefgh"[:count]}


def tally(pick: Callable[[], Member[str]], picks: int) -> Counter[str]:
    """Return how often each name came up in *picks* picks."""
    return Counter(pick().name for _ in range(picks))


def names(found: Iterable[Member[str]]) -> list[str]:
    """Return the names of members, in order."""
    return [member.name for member in found]


def fail(pool: Pool[str], name: str, times: int = 2) -> None:
    """Let *times* connects to a member fail, one after the other."""
    member = pool.member(name)
    for _ in range(times):
        pool.failed(member, REFUSED, pool.permit(member))


def recover(pool: Pool[str], clock: FakeClock, name: str) -> None:
    """Let a member fail, wait, and let its trial succeed."""
    fail(pool, name)
    clock.advance(
        pool.snapshot().members[names(pool.members).index(name)].retry_in or 0
    )
    trial = pool.pick()
    assert trial.name == name
    pool.succeeded(trial, pool.permit(trial))
