"""One run: clients at work, replicas that lag and die, and one promotion."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from tests.chaos.databases import DATABASES
from tests.chaos.faults import Scene
from tests.chaos.load import Load
from tests.chaos.proxy import Proxy
from tests.chaos.workers import started

from .app import ENVIRONMENT
from .clients import Clients
from .replication import REPLICATIONS
from .watch import Watch
from .weather import Weather

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .history import Operation
    from .plan import Plan

__all__ = ["Result", "run"]

_PROGRESS: Final = 5.0


@dataclass
class Result:
    """What is known after a run.

    Attributes:
        plan: Of the run.
        history: What clients did and saw.
        watch: What replicas showed.
        primaries: Who took writes, and since when.
        away: From when to when nobody did.
        events: What happened to replicas, how often.
        seconds: How long it took.
    """

    plan: Plan
    history: Sequence[Operation] = ()
    watch: Watch = field(default_factory=lambda: Watch({}, ""))
    primaries: list[tuple[float, str]] = field(default_factory=list)
    away: tuple[float, float] = (0.0, 0.0)
    events: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def is_primary(self, server: str, moment: float) -> bool:
        """Whether a server was the primary then."""
        return server == self.primary(moment)

    def primary(self, moment: float) -> str:
        """Return which server was the primary then; empty if none was yet."""
        names = [name for since, name in self.primaries if since <= moment]
        return names[-1] if names else ""


def run(
    cluster: Any,
    database: str,
    plan: Plan,
    note: Callable[[str], None] = lambda _: None,
) -> Result:
    """Let clients work on servers that change.

    Args:
        cluster: A primary and three standbys, all in order. If one is promoted, they
            are of no more use.
        database: Whose servers they are.
        plan: What to do.
        note: Told what happens.

    Raises:
        RuntimeError: A server did not do as it was told.
    """
    REPLICATIONS[database].prepare(cluster)
    with contextlib.ExitStack() as stack:
        proxy = stack.enter_context(Proxy(cluster.primary.port))
        runner = _Runner(cluster, database, plan, proxy, note)
        config = json.dumps(runner.config())
        service = stack.enter_context(
            started(
                "tests.consistency.app:served()",
                {ENVIRONMENT: config},
                "/",
                plan.workers,
                {"--worker-class": "gthread", "--threads": 8},
            )
        )
        note(f"{plan.workers} workers serve {plan.clients} clients")
        runner.scene = Scene(cluster, proxy, Load(service))
        result = runner.result
        stack.enter_context(result.watch)
        began = time.monotonic()
        with Clients(service, plan) as clients:
            runner.go(clients)
        result.history = clients.history
        result.seconds = time.monotonic() - began
        return result


class _Runner:
    scene: Scene

    def __init__(
        self,
        cluster: Any,
        database: str,
        plan: Plan,
        proxy: Proxy,
        note: Callable[[str], None],
    ) -> None:
        self._cluster = cluster
        self._database = DATABASES[database]
        self._replication = REPLICATIONS[database]
        self._plan = plan
        self._proxy = proxy
        self._note = note
        self._noted = time.monotonic()
        urls = {one.name: self._database.url(one.port) for one in cluster.standbys}
        self.result = Result(plan, watch=Watch(urls, self._database.schema))
        self.result.primaries.append((time.monotonic(), cluster.primary.name))

    def config(self) -> dict[str, Any]:
        """Return the application's configuration."""
        return {
            **self._plan.settings,
            "SQLALCHEMY_DATABASE_URI": self._database.url(self._proxy.port),
            "SQLALCHEMY_BINDS": {
                f"slave_{number}": {
                    "url": self._database.url(standby.port),
                    **self._database.options,
                }
                for number, standby in enumerate(self._cluster.standbys, start=1)
            },
        }

    def go(self, clients: Clients) -> None:
        """Let things happen until the clients are done."""
        standbys = list(self._cluster.standbys)
        half = self._plan.operations // 2 if self._plan.promotes else None
        if half is not None:
            self._disturb(clients, standbys, half)
            self._promote(standbys)
            del standbys[0]
        self._disturb(clients, standbys, self._plan.operations)

    def _disturb(self, clients: Clients, standbys: Sequence[Any], until: int) -> None:
        weather = Weather(
            standbys,
            self._replication,
            self.scene,
            self._database.faults["terminate"],
            seed=f"{self._plan.seed}-{until}",
            lag=self._plan.lag,
        )
        with weather:
            while len(clients.history) < until and not clients.is_done:
                time.sleep(0.1)
                self._tell(clients)
        self.result.events.update(weather.events)
        for error in weather.errors:
            raise RuntimeError("A server did not do as it was told.") from error

    def _tell(self, clients: Clients) -> None:
        if time.monotonic() > self._noted + _PROGRESS:
            self._noted = time.monotonic()
            failed = sum(1 for one in clients.history.copy() if one.error)
            done = f"{len(clients.history)} of {self._plan.operations} operations"
            self._note(f"{done}, {failed} failed")

    def _promote(self, standbys: Sequence[Any]) -> None:
        """Let the first standby be the primary, without the loss of a write."""
        chosen, *others = standbys
        self._note(f"promoting {chosen.name}")
        began = time.monotonic()
        self._proxy.refusing = True
        self._proxy.reset()
        self._replication.retire(self._cluster)
        chosen.promote()
        for standby in others:
            self._replication.follow(standby, chosen)
        self._proxy.target = chosen.port
        now = time.monotonic()
        self.result.primaries.append((began, chosen.name))
        self._proxy.refusing = False
        self.result.away = began, now
        self.result.events["promotion"] += 1
        self._note(f"{chosen.name} is the primary")
