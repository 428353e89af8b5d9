"""Visit applications of others, before and after the lines that the package advises.

``python -m tests.foreign.visits [NAME ...]`` clones each application, installs it into
an environment of its own in the user's cache folder, and runs it as two processes on a
PostgreSQL primary with two standbys. Visitors sign up, log in, read, post and read
again. First all of that is only observed, and what the package's own report suggests is
written, until it suggests nothing new. Then the visitors come to the application as it
was, and to the one with these lines; what its warnings suggest besides is written too.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.table import Table

from examples.cluster import Cluster, wait_until
from examples.servers import free_port
from flask_replicated.operations.report_texts import report_from
from flask_replicated.routing.reports import merged

from .applications import APPLICATIONS, Application
from .environments import ApplicationEnvironment
from .visitors import VISITS, Seen, Visitor

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from examples.servers import Server
    from flask_replicated.routing.reports import Report

STAGE: Final = Path(__file__).with_name("stage.py")
MOST_ROUNDS: Final = 3
_WARNING: Final = re.compile(r"endpoint '([^']+)' has committed a write in ")
_RULES: Final = re.compile(r"set REPLICATED_UNPINNED = (\{.*?\}), which")


@dataclass(frozen=True)
class Lines:
    """What an owner has written so far because the package suggested it.

    Attributes:
        unpinned: ``REPLICATED_UNPINNED``.
        blocks: What is decorated with ``@using_master(pin=False)``.
        marked: The models that say ``__replicated__ = "master"``.
    """

    unpinned: Mapping[str, str | list[str]] = field(default_factory=dict)
    blocks: tuple[str, ...] = ()
    marked: tuple[str, ...] = ()

    def text(self) -> list[str]:
        """Return the lines as they stand in the code."""
        found = []
        if self.unpinned:
            found.append(f'app.config["REPLICATED_UNPINNED"] = {dict(self.unpinned)!r}')
        if self.blocks:
            found.append("from flask_replicated import using_master")
        found += [f"@using_master(pin=False)  # {one}" for one in self.blocks]
        return found + [f'__replicated__ = "master"  # {one}' for one in self.marked]

    def warned(self, warnings: Iterable[str], application: Application) -> Lines:
        """Return the lines after warnings have been read.

        Args:
            warnings: What the package has logged.
            application: What they are about.
        """
        lines = self
        for warning in warnings:
            found = _WARNING.match(warning)
            if found is not None:
                lines = lines._advised(warning, [found[1]], application)
        return lines

    def reported(self, report: Report, application: Application) -> Lines:
        """Return the lines after a report has been read.

        Args:
            report: What the package has observed.
            application: What it is about.
        """
        lines = self
        for text in report.advice():
            tables = _whole_tables(text) - self.unpinned.keys()
            writers = [
                name
                for name, one in report.endpoints.items()
                if not tables.isdisjoint(one.written)
            ]
            lines = lines._advised(text, writers, application)
        return lines

    def _advised(
        self, text: str, endpoints: Iterable[str], application: Application
    ) -> Lines:
        """Return the lines after one item of advice, which is about some endpoints.

        Updates of columns become a line of configuration. Where rows are inserted or
        deleted, the package offers a block, or that line and a mark on the table's
        model: the application says which of the two its owner would take.
        """
        blocks = [*filter(None, map(application.blocks.get, endpoints))]
        if blocks and _whole_tables(text):
            return replace(self, blocks=tuple(dict.fromkeys([*self.blocks, *blocks])))
        unpinned: dict[str, str | list[str]] = dict(self.unpinned)
        marked = dict.fromkeys(self.marked)
        for table, columns in _rules_of(text).items():
            model = application.marks.get(table)
            if columns != "*":
                unpinned[table] = sorted({*unpinned.get(table, ()), *columns})
            elif model is not None:
                unpinned[table] = "*"
                marked[model] = None
        return replace(
            self, unpinned=dict(sorted(unpinned.items())), marked=tuple(marked)
        )


def _whole_tables(text: str) -> set[str]:
    """Return the tables of which an item of advice names no columns."""
    return {table for table, columns in _rules_of(text).items() if columns == "*"}


def _rules_of(text: str) -> dict[str, str | list[str]]:
    """Return the ``REPLICATED_UNPINNED`` that an item of advice names."""
    found = _RULES.search(text)
    rules: dict[str, str | list[str]] = ast.literal_eval(found[1] if found else "{}")
    return rules


@dataclass
class Outcome:
    """What one round of visits has shown.

    Attributes:
        statements: How many statements have read, by visitor and server.
        reads: How many transactions have read, by visitor, server and reason.
        by_replicas: How many reads replicas have served, as the package counts.
        by_primary: How many the primary has.
        warnings: What the package has logged.
        reports: What each process has observed, if that is all that it did.
        seen: What the visitors have met.
    """

    statements: Counter[tuple[str, str]] = field(default_factory=Counter)
    reads: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    by_replicas: int = 0
    by_primary: int = 0
    warnings: list[str] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)

    def add(self, found: Mapping[str, Any]) -> None:
        """Add what one process has counted."""
        for who, server, number in found["statements"]:
            self.statements[who, server] += number
        for who, server, reason, number in found["reads"]:
            self.reads[who, server, reason] += number
        self.by_replicas += found["by_replicas"]
        self.by_primary += found["by_primary"]
        self.warnings += found["warnings"]
        told = report_from(found["report"] or "")
        if told is not None:
            self.reports.append(told.report)

    def share(self, who: str) -> float:
        """Return the share of a visitor's statements that replicas have served."""
        found = self._by_server(who)
        return 1 - found["primary"] / max(1, sum(found.values()))

    @property
    def read_share(self) -> float:
        """The share of all reads that replicas have served, as the package counts."""
        return self.by_replicas / max(1, self.by_replicas + self.by_primary)

    def by_server(self, who: str) -> str:
        """Return how many statements each server has got, for people."""
        return ", ".join(
            f"{one} {n}" for one, n in sorted(self._by_server(who).items())
        )

    def _by_server(self, who: str) -> Counter[str]:
        found = {
            server: n for (one, server), n in self.statements.items() if one == who
        }
        return Counter(found)

    def reasons(self, who: str) -> str:
        """Return why transactions read from the primary, the usual reason first."""
        found: Counter[str] = Counter()
        for (visitor, server, reason), number in self.reads.items():
            if visitor == who and server == "primary":
                found[reason] += number
        return "; ".join(f"{reason} {n}" for reason, n in found.most_common())

    @property
    def own(self) -> tuple[int, int]:
        """How many times an own write was seen, and how many times it had to be."""
        wanted = sum(one.own for one in self.seen)
        return wanted - sum(len(one.missed) for one in self.seen), wanted


@dataclass(frozen=True)
class Plan:
    """How the visits go.

    Attributes:
        visitors: How many at the same time.
        rounds: How often each of them reads and posts.
        lag: How far the standbys are behind, in milliseconds.
        pause: How long a visitor looks at a page, in seconds.
        guarantee: ``REPLICATED_GUARANTEE``.
    """

    visitors: int
    rounds: int
    lag: int
    pause: float
    guarantee: str


class House:
    """An application on a cluster, which is set up anew for each round.

    Args:
        application: The application.
        environment: Where it is installed.
        cluster: The servers.
        plan: How the visits go.
    """

    def __init__(
        self,
        application: Application,
        environment: ApplicationEnvironment,
        cluster: Cluster,
        plan: Plan,
    ) -> None:
        self._application = application
        self._environment = environment
        self._cluster = cluster
        self._plan = plan
        self._rounds = 0

    def visit(self, lines: Lines, *, observe: bool = False) -> Outcome:
        """Set the application up, let the visitors in, and count.

        Args:
            lines: What has been written.
            observe: Whether reads are only observed, without replicas.
        """
        self._rounds += 1
        database = f"{self._application.name}_{self._rounds}"
        with TemporaryDirectory(prefix="visits-", ignore_cleanup_errors=True) as place:
            plan = self._install(Path(place), database)
            plan["config"] |= {
                "REPLICATED_GUARANTEE": self._plan.guarantee,
                "REPLICATED_UNPINNED": lines.unpinned,
            }
            if observe:
                alone = {"REPLICATED_MODE": "observe", "SQLALCHEMY_BINDS": {}}
                plan["config"] |= alone
            plan |= {"decorated": lines.blocks, "marked": lines.marked}
            return self._serve(Path(place), plan)

    def _install(self, place: Path, database: str) -> dict[str, Any]:
        cluster, name = self._cluster, self._application.name
        self._delay(0)
        cluster.primary.execute(f"create database {database}")
        config = {
            "SQLALCHEMY_DATABASE_URI": _url(cluster.primary, database),
            "SECRET_KEY": "not secret, for visits only",
        }
        plan = {"name": name, "checkout": str(self._environment.checkout)}
        install = {**plan, "config": config, "install": True}
        if self._start(place, "install", install).wait():
            raise self._failure(place / "install.log")
        cluster.wait_replicated()
        self._delay(self._plan.lag)
        standbys = enumerate(cluster.standbys, 1)
        binds = {f"slave_{n}": _url(standby, database) for n, standby in standbys}
        return {**plan, "config": {**config, "SQLALCHEMY_BINDS": binds}}

    def _delay(self, milliseconds: int) -> None:
        for standby in self._cluster.standbys:
            wanted = f"'{milliseconds}ms'"
            standby.execute(f"alter system set recovery_min_apply_delay = {wanted}")
            standby.execute("select pg_reload_conf()")

    def _start(
        self, place: Path, name: str, plan: Mapping[str, Any]
    ) -> subprocess.Popen[bytes]:
        path = place / f"{name}.json"
        path.write_text(json.dumps(plan))
        environ = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        command = [str(self._environment.python), str(STAGE), str(path)]
        with (place / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                command, cwd=place, env=environ, stdout=log, stderr=log
            )

    def _serve(self, place: Path, plan: Mapping[str, Any]) -> Outcome:
        outcome, counts, ports = Outcome(), [], [free_port(), free_port()]
        with ExitStack() as stack:
            for port in ports:
                counts.append(place / f"{port}.counts")
                own = {**plan, "port": port, "counts": str(counts[-1])}
                process = self._start(place, str(port), own)
                stack.callback(_end, process)
                # One after the other: FlaskBB's first one fills a table.
                try:
                    wait_until(partial(_answers, port), "a worker answers", 60.0)
                except TimeoutError as error:
                    raise self._failure(place / f"{port}.log") from error
            outcome.seen = self._let_in(ports)
        for path in counts:
            if not path.is_file():
                raise self._failure(path.with_suffix(".log"))
            outcome.add(json.loads(path.read_text()))
        return outcome

    def _failure(self, log: Path) -> RuntimeError:
        tail = log.read_text(errors="replace")[-3000:]
        return RuntimeError(f"{self._application.name}:\n{tail}")

    def _let_in(self, ports: list[int]) -> list[Seen]:
        visit, plan = VISITS[self._application.name], self._plan
        visitors = [
            Visitor(f"visitor{n}", ports, plan.pause) for n in range(plan.visitors)
        ]
        with ThreadPoolExecutor(plan.visitors) as pool:
            list(pool.map(lambda one: visit(one, plan.rounds), visitors))
        return [one.seen for one in visitors]


def _url(server: Server, database: str) -> str:
    return server.url("postgresql+psycopg2", database)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/static/none", timeout=9):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


@dataclass(frozen=True)
class Round:
    """One round of visits.

    Attributes:
        lines: What was written by then.
        outcome: What it has shown.
        report: What it has observed; None where replicas have served.
    """

    lines: Lines
    outcome: Outcome
    report: Report | None = None


def _try(
    application: Application, repository: str | None, plan: Plan, console: Console
) -> list[Round]:
    environment = ApplicationEnvironment(application, repository)
    console.print(f"{application.name}: preparing")
    environment.prepare()
    with Cluster(2) as cluster:
        house = House(application, environment, cluster, plan)
        found = [*_observe(application, house, console)]
        lines = found[-1].lines
        if lines != Lines():
            found.append(Round(Lines(), house.visit(Lines())))
        return [*found, *_route(application, house, lines, console)]


def _observe(
    application: Application, house: House, console: Console
) -> Iterator[Round]:
    """Observe until the report suggests nothing new."""
    lines = Lines()
    for _ in range(MOST_ROUNDS):
        console.print(f"{application.name}: observed, {len(lines.text())} lines")
        outcome = house.visit(lines, observe=True)
        report = merged(outcome.reports, _pin_rules(lines))
        yield Round(lines, outcome, report)
        advised = lines.reported(report, application)
        if advised == lines:
            return
        lines = advised


def _route(
    application: Application, house: House, lines: Lines, console: Console
) -> Iterator[Round]:
    """Let replicas serve until the warnings suggest nothing new."""
    for _ in range(MOST_ROUNDS):
        console.print(f"{application.name}: routed, {len(lines.text())} lines")
        outcome = house.visit(lines)
        yield Round(lines, outcome)
        advised = lines.warned(outcome.warnings, application)
        if advised == lines:
            return
        lines = advised


def _pin_rules(lines: Lines) -> dict[str, list[str] | None]:
    return {
        table: None if isinstance(columns, str) else columns
        for table, columns in lines.unpinned.items()
    }


def _show(application: Application, found: list[Round], console: Console) -> None:
    say = partial(console.print, markup=False, soft_wrap=True)
    for one in found:
        say(f"\n{application.name} with {len(one.lines.text())} lines written")
        for text in one.lines.text():
            say(f"    {text}")
        if one.report is not None:
            share = one.report.share or 0.0
            say(f"  it predicts: {share:.1%} of {one.report.reads} reads")
            for text in one.report.advice():
                say(f"  it reports: {text}")
        else:
            say(f"  replicas have served {one.outcome.read_share:.1%} of the reads")
        for warning in dict.fromkeys(one.outcome.warnings):
            say(f"  it warns: {warning}")
        for seen in one.outcome.seen:
            for text in (*seen.errors, *seen.missed):
                say(f"  a visitor: {text}")


def _table(found: dict[str, list[Round]]) -> Table:
    told = ("reads on the primary, since", "own writes")
    columns = ("lines", "on replicas", "statements", *told)
    table = Table("application", "version", "visitor", *columns)
    for name, rounds in found.items():
        routed = [one for one in rounds if one.report is None]
        for who, one in product(("guest", "member"), routed):
            row = _row(who, one.lines, one.outcome)
            table.add_row(name, APPLICATIONS[name].commit[:8], *row)
    return table


def _row(who: str, lines: Lines, outcome: Outcome) -> Iterator[str]:
    yield from (who, str(len(lines.text())))
    yield from (f"{outcome.share(who):.0%}", outcome.by_server(who))
    yield outcome.reasons(who)
    yield "{} of {}".format(*outcome.own) if who == "member" else ""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.foreign.visits",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help=", ".join(APPLICATIONS))
    add(
        "--from",
        dest="places",
        action="append",
        default=[],
        metavar="NAME=REPOSITORY",
        help="clone it from there, for instance from a folder",
    )
    add("--visitors", type=int, default=4, metavar="N", help="at the same time")
    add("--rounds", type=int, default=5, metavar="N", help="of reading and posting")
    add("--lag", type=int, default=20, metavar="MS", help="of the standbys")
    add("--pause", type=float, default=0.1, metavar="S", help="between two pages")
    add(
        "--guarantee",
        default="read_your_writes",
        help="with 'none', visitors miss their own writes",
    )
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in APPLICATIONS]
    if unknown:
        known = ", ".join(APPLICATIONS)
        parser.error(f"no such application: {', '.join(unknown)}; known: {known}")
    return arguments


def main() -> int:
    """Visit the named applications, or all; return 1 if a visitor met a failure."""
    arguments = _arguments()
    places = dict(one.split("=", 1) for one in arguments.places)
    plan = Plan(
        arguments.visitors,
        arguments.rounds,
        arguments.lag,
        arguments.pause,
        arguments.guarantee,
    )
    console = Console()
    found = {}
    for name in arguments.names or APPLICATIONS:
        application = APPLICATIONS[name]
        found[name] = _try(application, places.get(name), plan, console)
    for name, rounds in found.items():
        _show(APPLICATIONS[name], rounds, console)
    console.print(_table(found))
    outcomes = [one.outcome for rounds in found.values() for one in rounds]
    errors = sum(len(seen.errors) for one in outcomes for seen in one.seen)
    return int(errors > 0 or any(one.own[0] < one.own[1] for one in outcomes))


if __name__ == "__main__":
    sys.exit(main())
