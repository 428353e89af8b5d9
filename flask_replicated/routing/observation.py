"""``REPLICATED_MODE = 'observe'``: counts where reads would have gone, and why.

Nothing of the users' data is kept: endpoints, tables and the beginnings of statements
without their literals. Whatever fails here fails no request.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING

from flask_replicated.consistency.tokens import Mark, Token, bind_id
from flask_replicated.system.log_lines import Seldom

from .counts import ReadCounts
from .decision import WROTE
from .flask_context import endpoint_name, running_endpoint, this_request
from .housekeeping import Written, table_name
from .reports import OTHER, EndpointReport, Report

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from flask import Request

    from flask_replicated.sql.dml import TableWrite

    from .decision import Decision
    from .explanations import Noted
    from .housekeeping import Sent
    from .request_state import RequestState
    from .state import AppState


__all__ = ["Observation", "ObservedCounts", "quietly"]

logger = logging.getLogger("flask_replicated")

_MAX_ENDPOINTS = 100
_MAX_TABLES = 20  # of one endpoint
_MAX_NAMES = 500  # tables in all
_OUTSIDE = "(outside a request)"
_UNTOLD = "(unknown)"
"""In place of a table that a statement does not tell."""
_LOCK = "(a lock or a setting)"
_told_failure = Seldom(60.0)


class ObservedCounts(ReadCounts):
    """Counts the reads of one bind, which all go to the primary.

    Args:
        observation: Is told of each read.
    """

    def __init__(self, observation: Observation) -> None:
        self._observation = observation
        super().__init__()

    def on_primary(
        self, decision: Decision, kept: list[Noted] | None, *, begins: bool = True
    ) -> None:
        """Count a read, and what would have served it."""
        super().on_primary(decision, kept, begins=begins)
        if begins:
            self._observation.note_read(self.bind, decision)


class _Endpoint:
    """What is counted of one endpoint.

    Attributes:
        counts: By the names that :class:`.EndpointReport` has for them.
        tables: How many requests have committed a write, by table.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.held: Counter[str] = Counter()
        self.held_by: Counter[str] = Counter()
        self.tables: Counter[str] = Counter()
        self.written = Written()

    def report(self) -> EndpointReport:
        """Return it all."""
        written = {
            table: (self.tables[table], None if names is None else tuple(sorted(names)))
            for table, names in self.written.tables.items()
        }
        return EndpointReport(
            **self.counts,
            held=dict(self.held),
            held_by=dict(self.held_by),
            written=written,
            nameable=self.written.nameable,
            unknown=tuple(self.written.unknown),
        )


class Observation:
    """What one process has seen of an application's reads and writes.

    Args:
        state: The application's state.

    Attributes:
        active: Whether it wants to know of each response; it always does.
    """

    active = True

    def __init__(self, state: AppState) -> None:
        self._state = state
        self.renew()

    def renew(self) -> None:
        """Start at zero, as in a forked child: the counts so far are its parent's."""
        self._lock = Lock()
        self._names: dict[int, str] = {}
        self._start()

    def clear(self) -> None:
        """Start at zero; what is told from now on counts."""
        with self._lock:  # the names stay, as clients' pins tell of them
            self._start()

    def _start(self) -> None:
        self._since = time.time()
        self._endpoints: dict[str, _Endpoint] = {}
        self._binds: dict[str, Counter[str]] = {}

    # --- what is told, inside requests ---

    def note_read(self, bind: str | None, decision: Decision) -> None:
        """Note a read; a read is the first one of its transaction.

        Args:
            bind: The bind's key.
            decision: What has brought it to the primary.
        """
        with quietly():
            by = self._held_by(decision)
            with self._lock:
                one = self._running()
                found = self._binds.setdefault(bind or "", Counter())
                names = ["reads", *["moved"] * (decision.word == "observe")]
                one.counts.update(names)
                found.update(names)
                if decision.word == "observe":
                    return
                one.held[decision.word] += 1
                if by is not None:
                    _add(one.held_by, by)

    def _held_by(self, decision: Decision) -> str | None:
        """Return the table whose write keeps a read from replicas; None if none does.

        Of several, it is the first one that the request has written, or the last one
        that the client has.
        """
        state = self._state.request_state()
        if state is None or decision.word not in {"latched", "pinned", "fallback"}:
            return None
        if decision.word == "latched":
            tables: tuple[str, ...] = getattr(state, "observed", ())
            if tables:
                return tables[0]
            return _LOCK if decision.reason is WROTE else f"({decision.reason})"
        own = {routed.bind for routed in self._state.routes.values()}
        marks = [(mark.at, key) for key, mark in state.carried()[0].items()]
        _, digest = max((one for one in marks if one[1] not in own), default=(0, 0))
        return self._names.get(digest, f"#{digest:08x}") if digest else _UNTOLD

    def note_written(self, state: RequestState | None, sent: Sent) -> None:
        """Note what the running request has written, committed or not.

        Args:
            state: Its state, or None.
            sent: The statement; housekeeping does not count.
        """
        if state is None:
            return
        with quietly():
            known: tuple[str, ...] = getattr(state, "observed", ())
            more = [one for one in self._tables(sent) if one not in known]
            state.observed = (*known, *more)[:_MAX_TABLES]

    def note_pin(self, state: RequestState | None, written: Iterable[Sent]) -> None:
        """Let the client's pin tell which tables it is about, by digests.

        So each worker can tell which write keeps a read from replicas.

        Args:
            state: Of the running request, or None.
            written: What was committed.
        """
        if state is None or not self._state.pins():
            return
        with quietly():
            now = time.time()
            marks = {
                self._digest(table): Mark(at=now)
                for sent in written
                for table in self._tables(sent)
            }
            self._state.responses.note_write(state.recall, this_request(), Token(marks))

    def note_mixed(self) -> None:
        """Note a transaction that reads, and then writes."""
        with quietly(), self._lock:
            self._running().counts["mixed"] += 1

    def note_refused(self) -> None:
        """Note a write that would have been refused, as it asks for a replica."""
        state = self._state.request_state()
        if getattr(state, "refused", False):
            return
        if state is not None:
            state.refused = True
        with quietly(), self._lock:
            self._running().counts["refused"] += 1

    def note_demand(self, *, shown: bool | None) -> None:
        """Note a read that must be shown what its client has written, or seen.

        Args:
            shown: Whether a replica would have shown it; None if there is none, or that
                is unknown.
        """
        with quietly(), self._lock:
            counts = self._running().counts
            counts["demanding"] += 1
            counts["compared"] += shown is not None
            counts["behind"] += shown is False

    def response_starts(self, current: Request, state: RequestState | None) -> None:
        """Note a request, as its response starts.

        Args:
            current: The request.
            state: Its state, if it has any by now.
        """
        with quietly():
            writes = () if state is None else state.writes
            only_reads = current.method in self._state.settings.readonly_methods
            tables = {table for one in writes for table in self._tables(one)}
            found = [(self._find(one), one) for one in writes]
            with self._lock:
                one = self._of(endpoint_name(current))
                one.counts["requests"] += 1
                one.counts["only_reading"] += only_reads
                one.counts["writing"] += bool(getattr(state, "observed", ()))
                for table in tables:
                    _add(one.tables, table)
                for tables_written, sent in found:
                    one.written.add(tables_written, sent)

    # --- what is kept ---

    def _running(self) -> _Endpoint:
        return self._of(running_endpoint() or _OUTSIDE)

    def _of(self, endpoint: str) -> _Endpoint:
        known = self._endpoints
        if endpoint not in known and len(known) >= _MAX_ENDPOINTS:
            endpoint = OTHER
        return known.setdefault(endpoint, _Endpoint())

    def _find(self, sent: Sent) -> tuple[TableWrite, ...] | None:
        return self._state.find_writes(sent.sql, sent.dialect) if sent.sure else None

    def _tables(self, sent: Sent) -> list[str]:
        if not sent.sure:
            return []
        found = self._find(sent)
        return [_UNTOLD] if found is None else [table_name(one, sent) for one in found]

    def _digest(self, table: str) -> int:
        digest = bind_id(f"\0{table}")
        if len(self._names) < _MAX_NAMES:
            self._names[digest] = table
        return digest

    def report(self) -> Report:
        """Return what was seen so far."""
        with self._lock:
            endpoints = {name: one.report() for name, one in self._endpoints.items()}
            binds = {bind: dict(found) for bind, found in self._binds.items()}
            names = {f"#{digest:08x}": one for digest, one in self._names.items()}
        settings = self._state.settings
        known = settings.unpinned, bool(settings.wait)
        report = Report(self._since, time.time(), binds, endpoints, names, *known)
        return report.named()


def _add(counts: Counter[str], name: str) -> None:
    """Count under a name, or among the others where there are many."""
    known = name in counts or len(counts) < _MAX_TABLES
    counts[name if known else OTHER] += 1


@contextmanager
def quietly() -> Iterator[None]:
    """Return a block in which an error is logged, and no more."""
    try:
        yield
    except Exception:
        if _told_failure.is_due():
            logger.exception("it could not be observed where a request has read")
