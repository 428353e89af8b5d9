"""Endpoints that write in nearly each request that only reads, and what to do about it.

Such a write, of a session, a ``last_seen`` or a count of views, has each request served
by the primary and pins each client, and nothing else tells.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from flask_replicated.sql.dml import Identifier, TableWrite

__all__ = ["HousekeepingAdvice", "Sent"]

logger = logging.getLogger("flask_replicated")

# A client's first visit may find no session to save: six writes of seven requests are
# a habit, so is seven of eight; one of two is none. Eight requests are soon there, and
# who writes in half of them passes such a test once in sixteen times; so each test that
# was not passed is followed by one that is twice as long.
_SAMPLE, _LONGEST = 8, 1024
_SHARE = 0.8
_MANY = 1000  # endpoints
_FEW = 20  # tables, columns of a table, statements
_SHOWN, _LENGTH = 3, 100  # statements that do not tell, and their characters
_BEFORE_LITERALS = re.compile(r"""[^'"$]*""")

_Rules = dict[str, set[str] | None]


class Sent(NamedTuple):
    """A statement that has written, or may have.

    Attributes:
        sql: Its text.
        dialect: SQLAlchemy's name for the dialect of its server.
        sure: Whether it surely has; else it calls what may write.
    """

    sql: str
    dialect: str
    sure: bool = True


class _Sample:
    """What some requests of one endpoint have written.

    Attributes:
        size: How many requests it takes.
        requests: How many there were.
        writes: How many of these have surely written.
        tables: The columns that were updated, by table; None where rows came or went.
        unknown: Statements that do not tell.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.requests = self.writes = 0
        self.tables: _Rules = {}
        self.unknown: dict[str, None] = {}

    def add(self, writes: Iterable[TableWrite] | None, sent: Sent) -> None:
        """Add what a statement has written."""
        if writes is None:
            if len(self.unknown) < _FEW:
                self.unknown[sent.sql] = None
            return
        for write in writes:
            table = ".".join(_named(name, sent) for name in write[:2] if name)
            if table in self.tables or len(self.tables) < _FEW:
                names = {_named(name, sent) for name in write.columns or ()}
                _add(self.tables, table, None if write.columns is None else names)


class HousekeepingAdvice:
    """Looks at endpoints that have written in a request that only reads.

    Args:
        find: Tells what a statement does to which tables; None where that is not sure.
        unpinned: What is housekeeping already, as ``REPLICATED_UNPINNED`` names it.

    Attributes:
        active: Whether there is something to look at: the next responses are to be
            noted.
    """

    def __init__(
        self,
        find: Callable[[str, str], Iterable[TableWrite] | None],
        unpinned: Mapping[str, frozenset[str] | None],
    ) -> None:
        self.active = False
        self._find = find
        self._unpinned = unpinned
        self._samples: dict[str, _Sample] = {}
        self._done: set[str] = set()

    def note(self, endpoint: str, writes: Collection[Sent]) -> None:
        """Note a response to a request that only reads.

        Threads may do so at once, and miss one of two; each endpoint is told of once.

        Args:
            endpoint: The endpoint.
            writes: What the request has committed, housekeeping aside.
        """
        wrote = any(sent.sure for sent in writes)
        sample = self._samples.get(endpoint)
        looks = len(self._samples) + len(self._done) < _MANY
        if sample is None and wrote and looks and endpoint not in self._done:
            sample = self._samples.setdefault(endpoint, _Sample(_SAMPLE))
        if sample is not None:
            sample.requests += 1
            sample.writes += wrote
            for sent in writes:
                found = self._find(sent.sql, sent.dialect) if sent.sure else None
                sample.add(found, sent)
            if sample.requests >= sample.size:
                self._judge(endpoint, sample)
        self.active = bool(self._samples)

    def _judge(self, endpoint: str, sample: _Sample) -> None:
        if sample.writes < _SHARE * sample.requests:
            self._samples[endpoint] = _Sample(min(2 * sample.size, _LONGEST))
            return
        self._done.add(endpoint)
        if self._samples.pop(endpoint, None) is sample:  # or another thread has told
            self._tell(endpoint, sample)

    def _tell(self, endpoint: str, sample: _Sample) -> None:
        rules: _Rules = {
            table: None if columns is None else set(columns)
            for table, columns in self._unpinned.items()
        }
        for table, columns in sample.tables.items():
            _add(rules, table, columns)
        block = "wrap them in 'with using_master(pin=False):'"
        line = (
            f"set REPLICATED_UNPINNED = {_shown(rules)!r}, which holds for writes to "
            "these tables in every endpoint, POST included"
        )
        whole = None in sample.tables.values()
        remedy = f"{block}, or {line}" if whole else f"{line}, or {block}"
        what = [
            table if columns is None else f"{table} ({', '.join(sorted(columns))})"
            for table, columns in sample.tables.items()
        ]
        if sample.unknown:
            what += [repr(_beginning(sql)) for sql in list(sample.unknown)[:_SHOWN]]
            remedy = block
        logger.warning(
            "endpoint %r has committed a write in %d of %d requests that only read, so "
            "the primary serves them, and their clients' next ones. Written were: %s. "
            "If its clients need not see that at once, %s. If they must, decorate the "
            "view with @changes_database, and this is not said again.",
            endpoint,
            sample.writes,
            sample.requests,
            "; ".join(what),
            remedy,
        )


def _beginning(sql: str) -> str:
    """Return the beginning of a statement on one line, up to the first literal.

    A literal may be a password, and no two servers quote it alike.
    """
    plain = _BEFORE_LITERALS.match(sql)
    shown = " ".join(plain[0].split()) if plain else ""
    whole = plain is not None and plain.end() == len(sql) and len(shown) <= _LENGTH
    return shown if whole else f"{shown[:_LENGTH]}…"


def _named(name: Identifier, sent: Sent) -> str:
    """Return a name as REPLICATED_UNPINNED has it."""
    folds = sent.dialect == "postgresql" and not name.quoted
    return name.text.lower() if folds else name.text


def _add(rules: _Rules, table: str, columns: Iterable[str] | None) -> None:
    known = rules.setdefault(table, set())
    if columns is None:
        rules[table] = None
    elif known is not None and len(known) < _FEW:
        known.update(columns)


def _shown(rules: _Rules) -> dict[str, str | list[str]]:
    return {
        table: "*" if columns is None else sorted(columns)
        for table, columns in rules.items()
    }
