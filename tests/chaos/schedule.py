"""What strikes whom, and for how long: all from one seed."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, NamedTuple

from .faults import PROXIED, Fault

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Strike", "schedule"]


class Strike(NamedTuple):
    """One fault of a run.

    Attributes:
        name: Of the fault.
        fault: What happens.
        victim: The number of the standby that it happens to, from 0.
        seconds: For how long.
    """

    name: str
    fault: Fault
    victim: int
    seconds: float


def schedule(
    seed: int,
    faults: Mapping[str, Fault],
    names: Iterable[str],
    seconds: float,
    standbys: int = 3,
) -> list[Strike]:
    """Return the strikes of a run; the same for the same arguments.

    Args:
        seed: Decides order, victims and durations.
        faults: What may happen, by name.
        names: Of the faults, once for each time.
        seconds: About how long one lasts that is not over at once.
        standbys: How many there are.
    """
    chance = random.Random(seed)
    shuffled = sorted(names)
    chance.shuffle(shuffled)
    shuffled.sort(key=lambda name: faults[name].last)
    return [_strike(name, faults[name], chance, seconds, standbys) for name in shuffled]


def _strike(
    name: str, fault: Fault, chance: random.Random, seconds: float, standbys: int
) -> Strike:
    # Drawn for every fault, needed or not, so that one changes nothing for the next.
    victim, share = chance.randrange(standbys), chance.uniform(0.9, 1.1)
    if fault.brief:
        seconds = min(seconds, 0.5)
    if fault.hangs:
        # Well above each time limit: who waits for one has not waited it out.
        seconds = max(seconds, 2) + 2
    seconds = max(seconds, fault.seconds)
    return Strike(
        name=name,
        fault=fault,
        victim=PROXIED if fault.proxied or fault.pooled else victim,
        seconds=seconds * share,
    )
