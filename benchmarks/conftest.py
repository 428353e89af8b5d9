"""Fixtures of the benchmarks: the comparison, and a PostgreSQL cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import pytest

from benchmarks.pairs import as_info, compared, measure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.pairs import Bound, Loop
    from examples.cluster import Cluster


class Compare(Protocol):
    """Measures one case beside its floor or peer."""

    def __call__(
        self,
        labels: tuple[str, str, str],
        subject: Loop,
        peer: Loop,
        *,
        bound: Bound | None = None,
        seconds: float = 0.0003,
        pairs: int = 1000,
        prepare: Callable[[], object] = lambda: None,
    ) -> None:
        """Measure, and hand the result to whoever runs the suite.

        Args:
            labels: The suite, the case and the peer.
            subject: What is measured.
            peer: What it is compared with.
            bound: What the ratio should not exceed.
            seconds: How long one round of each may take, about; 0 for a single call.
            pairs: How many rounds.
            prepare: Called before each round of either, and not timed.
        """


@pytest.fixture
def compare(
    benchmark: BenchmarkFixture, record_property: Callable[[str, object], None]
) -> Compare:
    """Give the function that measures a case."""

    def run(
        labels: tuple[str, str, str],
        subject: Loop,
        peer: Loop,
        *,
        bound: Bound | None = None,
        seconds: float = 0.0003,
        pairs: int = 1000,
        prepare: Callable[[], object] = lambda: None,
    ) -> None:
        benchmark.group = labels[0]
        times, peers = measure(
            benchmark, subject, peer, seconds=seconds, pairs=pairs, prepare=prepare
        )
        found = compared(labels, times, peers, bound)
        benchmark.extra_info.update(as_info(found), calls_per_round=subject.calls)
        record_property("comparison", found)

    return run


@pytest.fixture(scope="session")
def tell(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Give a function that shows what is being waited for."""
    progress = pytestconfig.pluginmanager.get_plugin("benchmarks-progress")
    if progress is None:
        return lambda _: None
    shown: Callable[[str], None] = progress.tell
    return shown


@pytest.fixture(scope="session")
def cluster(tell: Callable[[str], None]) -> Iterator[Cluster]:
    """Give a primary with two standbys."""
    from examples.cluster import Cluster  # noqa: PLC0415 - only where it is needed

    tell("PostgreSQL: starting a primary and two standbys ...")
    with Cluster(standbys=2, progress=lambda step: tell(f"PostgreSQL: {step}")) as it:
        yield it
