"""Read throughput on real servers: ``python -m benchmarks.throughput --help``.

Three PostgreSQL standbys, one of them behind a proxy that delays its answers; twelve
threads ask one application as fast as they can. The probe is off: a balancer has to
notice by itself what is slow. Every read is a statement that sleeps for some
milliseconds, so that the servers, and not the processors that they share with the
application, are what is limited. So the figures say how reads are shared out, and not
how many a server can do.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from rich.console import Console
from rich.table import Table
from sqlalchemy import text

from balancers.strategies import BALANCERS
from benchmarks.charts import Bar, bars, picture, write
from benchmarks.table import versions
from examples.cluster import Cluster
from flask_replicated import FlaskReplicated
from tests.background import Background
from tests.chaos.comparison import percentile
from tests.chaos.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

HERE: Final = Path(__file__).resolve().parent
THREADS: Final = 12
_HEADS: Final[Mapping[str, str]] = {
    "reads by": "",
    "reads/s": ",.0f",
    "least": ",.0f",
    "most": ",.0f",
    "p50 ms": ",.0f",
    "p95 ms": ",.0f",
    "p99 ms": ",.0f",
    "slow %": ".2f",
}
"""What stands above each column, and the shape of what is below."""
_SLEEP: Final = 0.01
_CONNECTIONS: Final = 4
"""To each server, so that it serves so many reads at a time."""
_LEFT_OUT: Final = {"first", "weighted"}
WITHOUT: Final = "round_robin without it"

CASES: Final[Mapping[str, tuple[str, float, bool]]] = {
    "tenfold": ("one of three takes ten times as long", 9 * _SLEEP, False),
    "late": ("one of three answers half a second late", 0.5, False),
    "standbys": ("more standbys beside a primary that is busy with writes", 0.0, True),
}
"""By name: what is the matter, the delay in seconds, whether servers are limited."""


@dataclass(frozen=True)
class Figures:
    """What was measured of one way to read.

    Attributes:
        rate: Reads in a second: the median of all rounds.
        low: The least of all rounds.
        high: The most.
        p50: Milliseconds that half of the reads do not exceed; so the next two.
        p95: Of 95 %.
        p99: Of 99 %.
        slow: Percent of reads that the slow standby got; 0 where none is slow.
    """

    rate: float
    low: float
    high: float
    p50: float
    p95: float
    p99: float
    slow: float


class Reader:
    """An application, and threads that read from it.

    Args:
        primary: The port of the primary.
        standbys: The ports of the standbys; without any, the primary is read.
        balancer: As for ``REPLICATED_BALANCER``.
        slow: Whether the last standby is slow, so that its reads are counted.
        options: Of every engine.
    """

    def __init__(
        self,
        primary: int,
        standbys: Sequence[int],
        balancer: str = "round_robin",
        *,
        slow: bool = False,
        **options: Any,
    ) -> None:
        self._rates: list[float] = []
        self._times: list[float] = []
        self._at_slow = 0
        self._app = app = Flask("reader")
        app.config["SQLALCHEMY_DATABASE_URI"] = _url(primary)
        app.config["SQLALCHEMY_ENGINE_OPTIONS"] = options
        app.config["SQLALCHEMY_BINDS"] = {
            f"slave_{n}": {"url": _url(port), **options}
            for n, port in enumerate(standbys, 1)
        }
        app.config["REPLICATED_BALANCER"] = balancer
        # The balancer alone shall notice what is slow.
        app.config["REPLICATED_PROBE_INTERVAL"] = 0
        app.config["REPLICATED_CONNECT_TIMEOUT"] = 10
        self._db = db = SQLAlchemy(app)
        replicated = FlaskReplicated(app) if standbys else None
        self._slow = replicated if slow else None
        sleeps = text(f"select pg_sleep({_SLEEP})")

        @app.get("/")
        def read() -> dict[str, Any]:
            db.session.execute(sleeps)
            return {}

    def read(self, seconds: float, *, count: bool = True) -> None:
        """Let the threads read for some time."""
        over, before = time.monotonic() + seconds, self._reads_at_slow()

        def run(_: int) -> list[float]:
            client, times = self._app.test_client(), []
            while (begin := time.monotonic()) < over:
                response = client.get("/")
                times.append(time.monotonic() - begin)
                if response.status_code != 200:
                    raise RuntimeError(response.text)
            return times

        with ThreadPoolExecutor(THREADS) as pool:
            times = [one for some in pool.map(run, range(THREADS)) for one in some]
        if count:
            self._times += times
            self._rates.append(len(times) / seconds)
            self._at_slow += self._reads_at_slow() - before

    def _reads_at_slow(self) -> int:
        """Return how many reads the slow standby has got."""
        if self._slow is None:
            return 0
        with self._app.app_context():
            return self._slow.pool().snapshot().members[-1].reads

    def figures(self) -> Figures:
        """Return what all rounds have shown."""
        p50, p95, p99 = (
            1000 * percentile(self._times, share) for share in (0.5, 0.95, 0.99)
        )
        rates, slow = self._rates, 100 * self._at_slow / len(self._times)
        median = statistics.median(rates)
        return Figures(median, min(rates), max(rates), p50, p95, p99, slow)

    def close(self) -> None:
        """Close every pooled connection."""
        with self._app.app_context():
            for engine in self._db.engines.values():
                engine.dispose()


class Writers(Background):
    """Two threads that keep the primary busy with writes."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__()
        self._cluster = cluster
        cluster.primary.execute("create table if not exists busy (n int)")
        self._threads = [
            threading.Thread(target=self._run, name=f"writer-{n}") for n in range(2)
        ]

    def _run(self) -> None:
        while not self._over.wait(0.02):
            self._cluster.primary.execute(
                "insert into busy select generate_series(1, 100)"
            )


def _url(port: int) -> str:
    return f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"


def _readers(name: str, cluster: Cluster, proxied: int) -> Iterator[tuple[str, Reader]]:
    primary = cluster.primary.port
    ports = [standby.port for standby in cluster.standbys]
    if CASES[name][2]:
        limited: dict[str, Any] = {
            "pool_size": _CONNECTIONS,
            "max_overflow": 0,
            "pool_timeout": 30,
        }
        yield "the primary alone", Reader(primary, (), **limited)
        for count in range(1, len(ports) + 1):
            some = ports[:count]
            yield (
                f"{count} standby{'s' * (count > 1)}",
                Reader(primary, some, **limited),
            )
        return
    options: dict[str, Any] = {"pool_size": THREADS}
    yield WITHOUT, Reader(primary, ports[:-1], **options)
    for balancer in BALANCERS:
        if balancer not in _LEFT_OUT:
            some = [*ports[:-1], proxied]
            yield balancer, Reader(primary, some, balancer, slow=True, **options)


def measure(
    name: str,
    cluster: Cluster,
    rounds: int,
    seconds: float,
    note: Callable[[str], None],
) -> dict[str, Figures]:
    """Measure one case: a round by each reader, again and again.

    In another order each time, as a round may be disturbed by what the last one left.
    """
    chance = random.Random(0)
    with ExitStack() as stack:
        proxy = stack.enter_context(Proxy(cluster.standbys[-1].port))
        readers = dict(_readers(name, cluster, proxy.port))
        for reader in readers.values():
            stack.callback(reader.close)
            reader.read(0.5, count=False)  # connections are opened
        if CASES[name][2]:
            stack.enter_context(Writers(cluster))
        proxy.delay = CASES[name][1]
        for number in range(1, rounds + 1):
            note(f"{name}: round {number} of {rounds}, {len(readers)} readers")
            for reader in chance.sample([*readers.values()], len(readers)):
                reader.read(seconds)
        proxy.delay = 0.0
        return {key: reader.figures() for key, reader in readers.items()}


def _page(
    found: Mapping[str, Mapping[str, Figures]], rounds: int, seconds: float
) -> Iterator[str]:
    yield "# Unequal standbys"
    yield ""
    yield (
        f"Written by `python -m benchmarks.throughput --write`, with {versions()}. "
        f"{THREADS} threads ask one application as fast as they can, in {rounds} "
        f"rounds of {seconds:g} s, in an order that changes. The probe is off, so that "
        "a balancer has to notice by itself what is slow. Each read is a statement "
        f"that sleeps for {1000 * _SLEEP:g} ms, since there are too few processors for "
        "servers that work: this shows how reads are shared out, and not how many a "
        f"server can do. In the last table each takes {_CONNECTIONS} connections. "
        "*slow %*: of a row's reads, those that the slow standby got. That is a count, "
        "which a busy machine does not change as it changes a p99."
    )
    for name, rows in found.items():
        what = CASES[name][0]
        yield f"\n## {what[:1].upper()}{what[1:]}\n"
        yield picture("charts", f"throughput-{name}", f"Reads in a second: {what}")
        yield f"\n| {' | '.join(_HEADS)} |"
        yield "|---" + "|---:" * (len(_HEADS) - 1) + "|"
        for key, one in rows.items():
            yield f"| {' | '.join([key, *_cells(one)])} |"


def _cells(one: Figures) -> list[str]:
    shapes = [*_HEADS.values()][1:]
    return [*map(format, asdict(one).values(), shapes)]


def _table(name: str, found: Mapping[str, Figures]) -> Table:
    title = f"\n{name}: {CASES[name][0]}"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    first, *others = _HEADS
    table.add_column(first, min_width=24)
    for head in others:
        table.add_column(head, justify="right")
    for key, one in found.items():
        table.add_row(key, *_cells(one))
    return table


def _draw(folder: Path, found: Mapping[str, Mapping[str, Figures]]) -> None:
    for name, rows in found.items():
        chart = bars(
            f"Reads in a second: {CASES[name][0]}",
            "median of the rounds, and the 99th percentile of one read; more is better",
            [
                Bar(key, one.rate, f"{one.rate:,.0f}/s, p99 {one.p99:,.0f} ms", ours)
                for key, one in rows.items()
                for ours in (key not in (WITHOUT, "the primary alone"),)
            ],
        )
        write(folder, f"throughput-{name}", chart)


def main(words: Sequence[str] | None = None) -> int:
    """Measure, and print a table for each case."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput", description=__doc__
    )
    parser.add_argument("--only", action="append", choices=CASES, help="this case")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="of each reader's round; default: 3"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument(
        "--write",
        action="store_true",
        help="write benchmarks/throughput.md, its charts and its figures",
    )
    options = parser.parse_args(words)
    start = time.monotonic()

    def note(step: str) -> None:
        seconds = time.monotonic() - start
        print(f"{seconds:6.1f} s  {step}", file=sys.stderr, flush=True)

    found: dict[str, dict[str, Figures]] = {}
    with Cluster(3, progress=note, settings={"max_connections": "200"}) as cluster:
        for name in options.only or CASES:
            found[name] = measure(name, cluster, options.rounds, options.seconds, note)
            Console().print(_table(name, found[name]))
    plain = {name: {k: asdict(v) for k, v in it.items()} for name, it in found.items()}
    figures = json.dumps(plain, indent=1) + "\n"
    if options.json is not None:
        options.json.write_text(figures)
    if options.write:
        (HERE / "results" / "throughput.json").write_text(figures)
        _draw(HERE / "charts", found)
        page = "\n".join(_page(found, options.rounds, options.seconds))
        (HERE / "throughput.md").write_text(f"{page}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
