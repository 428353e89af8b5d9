"""Measure two things in turn, so that a busy machine disturbs both alike."""

from __future__ import annotations

import contextvars
import math
import statistics
from dataclasses import asdict, dataclass, replace
from itertools import chain
from timeit import Timer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_benchmark.fixture import BenchmarkFixture

__all__ = [
    "Bound",
    "Comparison",
    "Loop",
    "as_info",
    "compared",
    "from_info",
    "measure",
    "merged",
]


@dataclass(frozen=True)
class Bound:
    """The largest ratio that is good.

    Attributes:
        required: What must not be exceeded.
        aim: What would be better still, or None.
    """

    required: float
    aim: float | None = None


@dataclass(frozen=True)
class Comparison:
    """One case, measured beside its floor or peer.

    Attributes:
        suite: The part of the project that is measured.
        case: What is measured.
        peer: What it is compared with.
        seconds: The least time of one call.
        peer_seconds: The least time of one call of the peer.
        ratio: The median over all pairs of the case's time to its neighbour's; of
            several processes, the median of their medians.
        spread: Half the width of that median's 95 % interval.
        bound: What the ratio should not exceed; None for an alternative that is
            shown for its own sake.
    """

    suite: str
    case: str
    peer: str
    seconds: float
    peer_seconds: float
    ratio: float
    spread: float
    bound: Bound | None

    @property
    def exceeded(self) -> bool:
        """Whether the required bound is exceeded."""
        return self.bound is not None and self.ratio > self.bound.required


class Loop:
    """A statement that is run many times.

    Args:
        statement: Python source of one call.
        names: What the names in it stand for; they are local in the loop.
        context: The context to run in, where context variables matter.
        unroll: Copies of the statement in each turn, so that the loop itself
            does not show; at least 1.
        collect: Whether the garbage collector stays on.
    """

    def __init__(
        self,
        statement: str,
        names: dict[str, Any],
        *,
        context: contextvars.Context | None = None,
        unroll: int = 10,
        collect: bool = False,
    ) -> None:
        setup = [f"{name} = _names[{name!r}]" for name in names]
        if collect:
            setup += ["import gc", "gc.enable()"]
        body = "\n".join([statement] * unroll)
        self._timer = Timer(body, "\n".join(setup), globals={"_names": names})
        self._context = context or contextvars.copy_context()
        self._unroll = unroll
        self._turns = 1

    @property
    def calls(self) -> int:
        """How many calls one :meth:`run` makes."""
        return self._turns * self._unroll

    def run(self) -> float:
        """Run the loop once, and return the seconds that it took."""
        return self._context.run(self._timer.timeit, self._turns)

    def calibrate(self, seconds: float) -> None:
        """Let one :meth:`run` take about so many seconds."""
        self._turns = 1
        self.run()  # the first call fills caches
        while (took := min(self.run() for _ in range(3))) < seconds / 2:
            self._turns = max(
                self._turns + 1,
                min(self._turns * 10, round(self._turns * seconds / max(took, 1e-9))),
            )


def measure(
    benchmark: BenchmarkFixture,
    subject: Loop,
    peer: Loop,
    *,
    seconds: float,
    pairs: int,
    prepare: Callable[[], object] = lambda: None,
) -> tuple[list[float], list[float]]:
    """Run both loops in turn.

    Args:
        benchmark: Times the subject and keeps what it finds.
        subject: What is measured.
        peer: What it is compared with; it runs before each round.
        seconds: How long one round may take, about; 0 for a single call in each.
        pairs: How many rounds.
        prepare: Called before each round of either, and not timed.

    Returns:
        The seconds of one call in each round: the subject's, and the peer's.
    """
    for loop in (subject, peer):
        prepare()
        loop.calibrate(seconds)
    peers: list[float] = []

    def before() -> None:
        prepare()
        peers.append(peer.run() / peer.calls)
        prepare()

    timed: Any = benchmark  # its methods have no types
    timed.pedantic(subject.run, setup=before, rounds=pairs)
    if benchmark.stats is None:  # benchmarks are switched off
        return [math.nan], [math.nan]
    data = benchmark.stats.stats.data
    return [round_ / subject.calls for round_ in data], peers


def compared(
    labels: tuple[str, str, str],
    times: Sequence[float],
    peers: Sequence[float],
    bound: Bound | None,
) -> Comparison:
    """Draw the conclusion from two lists of times, taken in turn.

    Args:
        labels: The suite, the case and the peer.
        times: Seconds of the case, round by round.
        peers: Seconds of the peer, round by round.
        bound: What the ratio should not exceed, or None.
    """
    ratios = [mine / other for mine, other in zip(times, peers, strict=True)]
    return Comparison(
        *labels,
        seconds=min(times),
        peer_seconds=min(peers),
        ratio=statistics.median(ratios),
        spread=_spread(ratios),
        bound=bound,
    )


def merged(starts: Sequence[Sequence[Comparison]]) -> list[Comparison]:
    """Draw one conclusion for each case from those of several processes."""
    cases: dict[tuple[str, str], list[Comparison]] = {}
    for one in chain.from_iterable(starts):
        cases.setdefault((one.suite, one.case), []).append(one)
    return [
        replace(
            same[0],
            seconds=min(one.seconds for one in same),
            peer_seconds=min(one.peer_seconds for one in same),
            ratio=statistics.median(one.ratio for one in same),
            spread=_spread([one.ratio for one in same]),
        )
        if len(same) > 1
        else same[0]
        for same in cases.values()
    ]


def _spread(ratios: Sequence[float]) -> float:
    """Return half the width of the 95 % interval of their median.

    It is the notch of a box plot, 1.57 interquartile ranges over the root of the
    number: McGill, Tukey and Larsen, "Variations of Box Plots" (1978).
    """
    if len(ratios) < 2:
        return math.nan
    low, _, high = statistics.quantiles(ratios, n=4)
    return 1.57 * (high - low) / math.sqrt(len(ratios))


def as_info(found: Comparison) -> dict[str, Any]:
    """Return a comparison as plain values, for a JSON file."""
    return asdict(found)


def from_info(info: dict[str, Any]) -> Comparison:
    """Return the comparison that :func:`as_info` has made plain."""
    bound = info["bound"]
    return Comparison(**info | {"bound": None if bound is None else Bound(**bound)})
