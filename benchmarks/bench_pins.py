"""What a client's pin costs, by position, over PostgreSQL with two standbys.

Pins are real: each is the cookie of a POST that has committed, as the client sends it
back. What every case claims of its reads is counted: who has served them, and how
often a server was asked for its position.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from benchmarks.apps import NotesApp, fill_cluster
from benchmarks.pairs import Bound, Loop
from flask_replicated.consistency.sources import position_source, register_positions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.apps import Client
    from benchmarks.conftest import Compare
    from examples.cluster import Cluster
    from flask_replicated.consistency.positions import LogPosition
    from flask_replicated.consistency.sources import PositionSource

ROW = "/notes/42"
PAGE = "/notes"
_RENEWED_AFTER = 60.0  # seconds: a fifth of what a position lives


class Build(Protocol):
    """Builds an application over the cluster."""

    def __call__(self, **settings: object) -> NotesApp:
        """Build one with these settings."""


class CountingSource:
    """Asks PostgreSQL for positions, and counts that.

    Attributes:
        asked: How often a server was asked.
    """

    def __init__(self, source: PositionSource) -> None:
        self._source = source
        self.asked = 0

    def position(self, connection: Any) -> LogPosition | None:
        """Ask the primary."""
        self.asked += 1
        return self._source.position(connection)

    def replayed(self, connection: Any) -> LogPosition | None:
        """Ask a replica."""
        self.asked += 1
        return self._source.replayed(connection)


@pytest.fixture
def source() -> Iterator[CountingSource]:
    """Count how often the applications ask that are built while this is there."""
    original = position_source("postgresql")
    if original is None:
        raise RuntimeError("There is nothing that asks PostgreSQL for positions.")
    counting = CountingSource(original)
    register_positions("postgresql", counting)
    yield counting
    register_positions("postgresql", original)


@pytest.fixture
def build(cluster: Cluster) -> Iterator[Build]:
    """Give the function that builds applications, over a table with some rows."""
    primary = cluster.primary.url()
    plain = fill_cluster(cluster)
    built = [plain]

    def make(**settings: object) -> NotesApp:
        replicas = [it.url() for it in cluster.standbys]
        built.append(NotesApp.build(primary, replicas, **settings))
        return built[-1]

    yield make
    for notes in built:
        notes.close()


class Pin:
    """A client's pin, which is renewed where it ages.

    Args:
        notes: The application.
        cluster: Its servers.
        reader: The client that carries it.
        longest: Seconds after which it is renewed.
    """

    def __init__(
        self,
        notes: NotesApp,
        cluster: Cluster,
        reader: Client,
        longest: float = _RENEWED_AFTER,
    ) -> None:
        self._writer = notes.client(ROW, "POST")
        self._cluster = cluster
        self._reader = reader
        self._longest = longest
        self._until = 0.0

    def renew(self) -> bool:
        """Write, if it is time, and wait until every replica shows that."""
        if time.monotonic() < self._until:
            return False
        self._writer.checked()
        if not self._writer.cookie:
            raise RuntimeError("A POST has set no pin.")
        self._reader.carry(self._writer.cookie)
        self._cluster.wait_replicated()
        self._until = time.monotonic() + self._longest
        return True

    def renew_known(self) -> None:
        """Do the same, and let the application find out that the replicas show it."""
        if self.renew():
            for _ in self._cluster.standbys:
                self._reader.send()


def _loop(client: Client) -> Loop:
    return Loop("send()", {"send": client.send}, unroll=1, collect=True)


class Claim:
    """What a case claims of its reads, until it is checked.

    Args:
        notes: The application.
        source: Counts its questions.
    """

    def __init__(self, notes: NotesApp, source: CountingSource) -> None:
        self._notes, self._source = notes, source
        self._asked, self._on_primary = source.asked, self._count()

    def _count(self) -> int:
        """Return how many reads the primary has got in place of a replica."""
        with self._notes.app.app_context():
            pool = self._notes.app.extensions["replicated"].pool()
        reads = pool.snapshot().primary_reads
        return sum(reads[why] for why in ("pinned", "fallback"))

    def check(self, least: float, most: float) -> None:
        """Raise if the primary has read, or the number of questions is another.

        Args:
            least: Questions at least.
            most: Questions at most.
        """
        asked = self._source.asked - self._asked
        if self._count() > self._on_primary or not least <= asked <= most:
            raise RuntimeError(
                f"{asked} questions, and {self._count() - self._on_primary} reads on "
                "the primary"
            )


def bench_without(compare: Compare, build: Build) -> None:
    """Measure a GET without a pin, beside one where there are no pins."""
    reader, other = (
        build(**settings).client(ROW).checked()
        for settings in ({}, {"REPLICATED_GUARANTEE": "none"})
    )
    compare(
        ("pins", "GET without a pin", "the app with 'none'"),
        _loop(reader),
        _loop(other),
        bound=Bound(1.02),
        seconds=0.004,
        pairs=300,
    )


@pytest.mark.parametrize("path", [ROW, PAGE])
def bench_known(
    compare: Compare, source: CountingSource, build: Build, cluster: Cluster, path: str
) -> None:
    """Measure a GET with a pin that its replica is known to have passed."""
    notes = build()
    reader, plain = notes.client(path).checked(), notes.client(path).checked()
    pin = Pin(notes, cluster, reader)
    pin.renew_known()
    claim = Claim(notes, source)
    what = "one row" if path == ROW else "page of 20 rows"
    compare(
        ("pins", f"GET, replica is known: {what}", "a GET without a pin"),
        _loop(reader),
        _loop(plain),
        bound=Bound(1.03),
        seconds=0.004,
        pairs=300,
        prepare=pin.renew_known,
    )
    claim.check(0, 10)


def bench_asked(
    compare: Compare, source: CountingSource, build: Build, cluster: Cluster
) -> None:
    """Measure a GET with a pin whose replica has to be asked.

    There is one after each commit: what the answer tells is known for the next.
    """
    notes, pairs = build(), 300
    reader, plain = notes.client(ROW).checked(), notes.client(ROW).checked()
    pin, claim = Pin(notes, cluster, reader, longest=0.0), Claim(notes, source)

    def prepare() -> None:
        pin.renew()
        plain.send()  # or the next one would find cold caches

    compare(
        ("pins", "GET, replica is asked: one row", "a GET without a pin"),
        _loop(reader),
        _loop(plain),
        bound=Bound(1.5),
        seconds=0,
        pairs=pairs,
        prepare=prepare,
    )
    # A question for each commit, and one for nearly each measured read.
    claim.check(2.9 * pairs, 3.1 * pairs)


def bench_write(compare: Compare, source: CountingSource, build: Build) -> None:
    """Measure a POST that changes a row, beside one that sets a pin by time."""
    notes, timed = build(), build(REPLICATED_PIN="time")
    writer, other = notes.client(ROW, "POST"), timed.client(ROW, "POST")
    for client in (writer, other):
        client.carry(client.checked().cookie)
    claim = Claim(notes, source)
    compare(
        ("pins", "POST that changes a row", "the app with 'time'"),
        _loop(writer),
        _loop(other),
        bound=Bound(1.25),
        seconds=0.004,
        pairs=300,
    )
    claim.check(300, float("inf"))


@pytest.mark.parametrize("returns", [True, False])
def bench_monotonic(
    compare: Compare, source: CountingSource, build: Build, *, returns: bool
) -> None:
    """Measure a GET whose client is never to see older data, without a bound."""
    notes, other = build(REPLICATED_GUARANTEE="monotonic"), build()
    reader, plain = notes.client(ROW).checked(), other.client(ROW).checked()
    what = "and sets a cookie"
    if returns:
        reader.carry(reader.cookie)
        what = "and has a cookie"
    claim = Claim(notes, source)
    compare(
        ("pins", f"GET, 'monotonic', {what}", "a GET without a pin"),
        _loop(reader),
        _loop(plain),
        seconds=0.004,
        pairs=300,
    )
    claim.check(0, 10)
