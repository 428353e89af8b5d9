"""One run: a quiet time, the faults, and what is left when they are over."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from examples.cluster import wait_until
from tests.pgbouncer import DRIVER_OPTIONS, pgbouncer

from .app import SETTINGS
from .databases import POSTGRESQL
from .faults import PROXIED, Scene
from .load import Load
from .outcome import Limits, Outcome, is_back
from .proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from .databases import Database
    from .load import Record
    from .schedule import Strike
    from .servers import Servers, Standby
    from .workers import Service

__all__ = ["Report", "run"]

_BACK_WITHIN: Final = 45.0
_READS: Final = 1000


@dataclass
class Report:
    """What a run found.

    Attributes:
        limits: What must not take longer.
        quiet: The requests of each quiet time: before the first fault, and after each.
        outcomes: What each fault did.
        requests: How many there were, from the first to the last.
        failed: How many of them failed.
        ahead: How many saw a standby that was ahead of its primary for a moment.
        excused: How many needed the primary while a fault had struck it.
        slowest: Seconds that the slowest of them took.
        shares: Reads by server while one replica was out.
        lost: Keys whose write was acknowledged and that are not there.
        doubled: Keys that are there more than once.
        unknown: Keys whose write was not acknowledged.
        held: Connections that are checked out after the run, of all processes.
        threads: Threads of each process before the faults, and after.
    """

    limits: Limits
    quiet: list[Sequence[Record]] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    requests: int = 0
    failed: int = 0
    ahead: int = 0
    excused: int = 0
    slowest: float = 0.0
    shares: Counter[str] = field(default_factory=Counter)
    lost: set[str] = field(default_factory=set)
    doubled: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)
    held: int = 0
    threads: dict[int, tuple[int, int]] = field(default_factory=dict)

    @property
    def imbalance(self) -> float:
        """The largest share of a survivor, divided by the smallest."""
        least = min(self.shares.values(), default=0)
        return max(self.shares.values()) / least if least else float("inf")


def run(
    cluster: Servers,
    serve: Callable[[Mapping[str, Any]], contextlib.AbstractContextManager[Service]],
    strikes: Sequence[Strike],
    *,
    database: Database = POSTGRESQL,
    settings: Mapping[str, Any] = SETTINGS,
    quiet: float = 3.0,
    spare: float = 0.0,
    note: Callable[[str], None] = lambda _: None,
) -> Report:
    """Put an application under load, and let faults strike.

    Args:
        cluster: With three standbys, all in order.
        serve: Serves an application that is configured so.
        strikes: The faults.
        database: Whose servers they are.
        settings: Of the application.
        quiet: Seconds without any, before the first and after each.
        spare: Seconds that a busy machine may add to each time limit.
        note: Told what happens.
    """
    database.prepare(cluster)
    with contextlib.ExitStack() as stack:
        proxy = stack.enter_context(Proxy(cluster.standbys[PROXIED].port))
        config = {**settings, **_binds(cluster, proxy.port, database)}
        if any(strike.fault.pooled for strike in strikes):
            pooler = stack.enter_context(pgbouncer(cluster.standbys[PROXIED].port))
            config["SQLALCHEMY_BINDS"][_bind(PROXIED)] = {
                "url": database.url(pooler),
                **DRIVER_OPTIONS,
            }
        service = stack.enter_context(serve(config))
        load = Load(service)
        report = Report(Limits.of(config, spare))
        scene = Scene(cluster, proxy, load)
        runner = _Runner(report, scene, service, database, note)
        with load:
            runner.begin()
            runner.rest(quiet)
            for strike in strikes:
                runner.strike(strike)
                runner.rest(quiet)
            runner.share()
        runner.conclude()
        return report


def _binds(cluster: Servers, proxied: int, database: Database) -> dict[str, Any]:
    ports = [standby.port for standby in cluster.standbys]
    ports[PROXIED] = proxied
    return {
        "SQLALCHEMY_DATABASE_URI": database.url(cluster.primary.port),
        "SQLALCHEMY_BINDS": {
            _bind(number): {"url": database.url(port), **database.options}
            for number, port in enumerate(ports)
        },
    }


def _bind(number: int) -> str:
    return f"slave_{number + 1}"


class _Runner:
    def __init__(
        self,
        report: Report,
        scene: Scene,
        service: Service,
        database: Database,
        note: Callable[[str], None],
    ) -> None:
        self.report = report
        self._scene = scene
        self._load = scene.load
        self._standbys = scene.cluster.standbys
        self._service = service
        self._database = database
        self._note = note
        self._before: dict[int, dict[str, int]] = {}

    def begin(self) -> None:
        """Wait until every process reads from every replica."""
        self._used_again(range(len(self._standbys)), time.monotonic())
        self._before = self._least(lambda _: False, 0.5)

    def rest(self, seconds: float) -> None:
        """Let nothing happen."""
        start = time.monotonic()
        time.sleep(seconds)
        records = self._load.since(start)
        self.report.quiet.append([one for one in records if one.began > start])

    def strike(self, strike: Strike) -> None:
        """Let a fault strike, and wait until its victims are read from again."""
        victims = [strike.victim]
        if strike.fault.everyone:
            victims = list(range(len(self._standbys)))
        names = ", ".join(self._standbys[number].name for number in victims)
        self._note(f"{strike.name}: {names}, for {strike.seconds:.1f} s")
        began = time.monotonic()
        with strike.fault.strike(self._scene, self._standbys[strike.victim]):
            struck = time.monotonic()
            time.sleep(strike.seconds)
            over = time.monotonic()
        repaired = time.monotonic()
        back = self._used_again(victims, repaired)
        # Visitors that were held up meanwhile belong to this fault.
        time.sleep(1.0)
        outcome = Outcome.of(
            strike,
            (began, struck, over, repaired),
            self._load.since(began),
            {_bind(number) for number in victims},
            self.report.limits,
            back=back,
        )
        self.report.outcomes.append(outcome)
        wrongs = "; ".join(outcome.wrongs)
        self._note(f"{strike.name}: {wrongs or 'nobody noticed'}")

    def share(self) -> None:
        """Count who serves how many reads while one replica is out."""
        victim, *survivors = self._standbys
        self._note(f"{_READS} reads without {victim.name}")
        with _stopped(victim):
            start = time.monotonic()
            wait_until(
                lambda: self._without(_bind(0), start),
                f"{victim.name} to be left out",
                timeout=_BACK_WITHIN,
            )
            start = time.monotonic()
            wait_until(lambda: len(self._reads(start)) >= _READS, "reads", timeout=120)
            reads = self._reads(start)[:_READS]
        self.report.shares = Counter({survivor.name: 0 for survivor in survivors})
        self.report.shares.update(reads)
        self._used_again([0], time.monotonic())

    def conclude(self) -> None:
        """Look at what is left, now that nobody asks any more."""
        records = self._load.records
        self.report.requests = len(records)
        self.report.failed = sum(1 for record in records if record.error)
        self.report.ahead = sum(record.ahead for record in records)
        self.report.excused = self._load.excused
        self.report.slowest = max(record.seconds for record in records)
        after = self._least(self._left_nothing, 5.0)
        self.report.held = sum(state["held"] for state in after.values())
        self.report.threads = {
            worker: (self._before.get(worker, state)["threads"], state["threads"])
            for worker, state in after.items()
        }
        rows = self._database.entries(self._scene.cluster)
        acknowledged, unknown = self._load.written
        self.report.lost = acknowledged - set(rows)
        self.report.doubled = {key for key, times in rows.items() if times > 1}
        self.report.unknown = unknown

    def _left_nothing(self, after: Mapping[int, Mapping[str, int]]) -> bool:
        return all(
            not state["held"]
            and state["threads"] <= self._before.get(worker, state)["threads"]
            for worker, state in after.items()
        )

    def _least(
        self, enough: Callable[[Mapping[int, Mapping[str, int]]], bool], seconds: float
    ) -> dict[int, dict[str, int]]:
        """Return the least that each process says within some seconds.

        Some of its threads come and go, so one moment tells little.
        """
        deadline = time.monotonic() + seconds
        least = self._states()
        while not enough(least) and time.monotonic() < deadline:
            time.sleep(0.05)
            for worker, state in self._states().items():
                known = least.setdefault(worker, state)
                for key in ("held", "threads"):
                    known[key] = min(known[key], state[key])
        return least

    def _states(self) -> dict[int, dict[str, int]]:
        """Return what each process says of itself."""
        states: dict[int, dict[str, int]] = {}

        def asked() -> bool:
            _, fields = self._service.visitor().ask("GET", "/state")
            states[fields["pid"]] = fields
            return len(states) == self._service.workers

        wait_until(asked, "every process to answer", timeout=30)
        return states

    def _used_again(self, victims: Sequence[int], since: float) -> float | None:
        """Return when every process reads from these again; None if one does not."""
        servers = {self._standbys[number].name for number in victims}
        binds = {_bind(number) for number in victims}

        def are_back() -> bool:
            # What was asked before the repair proves nothing.
            records = [one for one in self._load.since(since) if one.began > since]
            return len(is_back(records, servers, binds)) >= self._service.workers

        try:
            wait_until(are_back, f"{servers} to be used again", timeout=_BACK_WITHIN)
        except TimeoutError:
            return None
        return time.monotonic()

    def _without(self, bind: str, since: float) -> bool:
        live = {one.worker: one.live for one in self._load.since(since) if one.worker}
        left = [worker for worker, binds in live.items() if bind not in binds]
        return len(left) >= self._service.workers

    def _reads(self, since: float) -> list[str]:
        """Return who served the reads that began since a moment."""
        records = self._load.since(since)
        return [one.server for one in records if one.fresh and one.began > since]


@contextlib.contextmanager
def _stopped(standby: Standby) -> Iterator[None]:
    standby.stop()
    try:
        yield
    finally:
        standby.start()
