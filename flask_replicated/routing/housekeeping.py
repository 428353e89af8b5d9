"""Endpoints that write in nearly every read-only request, and what to do about it.

Such a write may update a session, a ``last_seen`` or a count of views. It makes the
primary serve each request and pins each client, and without a log line it goes
unnoticed.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from flask_replicated.sql.dml import Identifier, TableWrite

__all__ = ["HousekeepingAdvice", "Remedy", "Sent", "Written", "remedy", "table_name"]

logger = logging.getLogger("flask_replicated")

# An endpoint that writes in 80 % of a sample gets advice. Not in all of it: a client's
# first visit may find no session to save. A sample begins with a write, so one of eight
# requests is soon complete; but an endpoint that writes in every second request passes
# one of sixteen such samples by chance. So a sample that was not passed is followed by
# one that is twice as long.
_FIRST_SAMPLE, _LONGEST_SAMPLE = 8, 1024
_SHARE = 0.8
_MAX_ENDPOINTS = 1000
_MAX_ITEMS = 20  # tables, columns of a table, statements
_MAX_SHOWN, _MAX_LENGTH = 3, 100  # statements of unknown effect, and their characters
_NAMEABLE = re.compile(r"""(?!\s)[^."`*]+(?<!\s)""")  # as REPLICATED_UNPINNED has it
_BEFORE_LITERALS = re.compile(r"""[^'"$]*""")

_Rules = dict[str, set[str] | None]


class Sent(NamedTuple):
    """A statement that has written, or may have.

    Attributes:
        sql: Its text.
        dialect: SQLAlchemy's name for the dialect of its server.
        sure: Whether it surely has; else it calls a function that may write.
    """

    sql: str
    dialect: str
    sure: bool = True


class Written:
    """What requests have written that are only to read.

    Attributes:
        tables: The columns that were updated, by table; None if rows were inserted or
            deleted.
        nameable: Whether ``REPLICATED_UNPINNED`` can name them all.
        unknown: Statements of which it is unknown what they write: their beginnings,
            without literals.
    """

    def __init__(self) -> None:
        self.tables: _Rules = {}
        self.nameable = True
        self.unknown: dict[str, None] = {}

    def add(self, writes: Iterable[TableWrite] | None, sent: Sent) -> None:
        """Add what a statement has written."""
        if writes is None:
            if len(self.unknown) < _MAX_ITEMS:
                self.unknown[_beginning(sent.sql)] = None
            return
        for write in writes:
            names = [*filter(None, write[:2]), *(write.columns or ())]
            self.nameable &= all(_NAMEABLE.fullmatch(name.text) for name in names)
            table = table_name(write, sent)
            if table in self.tables or len(self.tables) < _MAX_ITEMS:
                columns = {_named(name, sent) for name in write.columns or ()}
                _add(self.tables, table, None if write.columns is None else columns)


class _Sample(Written):
    """What some requests of one endpoint have written.

    Attributes:
        size: How many requests it takes.
        requests: How many there were.
        writes: How many of these have surely written.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.requests = self.writes = 0


class Remedy(NamedTuple):
    """What to do about writes in requests that are only to read.

    Attributes:
        what: What is written.
        text: What to do, if their clients need not see that at once.
    """

    what: str
    text: str


class HousekeepingAdvice:
    """Samples endpoints that have written in a read-only request, and logs advice.

    Args:
        find: Returns what a statement does to which tables; None if that is unknown.
        unpinned: What is housekeeping already, as in ``REPLICATED_UNPINNED``.

    Attributes:
        active: Whether a sample is being taken, so responses are to be noted.
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
        self._advised: set[str] = set()

    def note(self, endpoint: str, writes: Collection[Sent]) -> None:
        """Note a response to a read-only request.

        If threads do so at once, a response may be missed. The advice on an endpoint is
        logged once.

        Args:
            endpoint: The endpoint.
            writes: What the request has committed, housekeeping aside.
        """
        wrote = any(sent.sure for sent in writes)
        sample = self._samples.get(endpoint)
        room = len(self._samples) + len(self._advised) < _MAX_ENDPOINTS
        if sample is None and wrote and room and endpoint not in self._advised:
            sample = self._samples.setdefault(endpoint, _Sample(_FIRST_SAMPLE))
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
            self._samples[endpoint] = _Sample(min(2 * sample.size, _LONGEST_SAMPLE))
            return
        self._advised.add(endpoint)
        if self._samples.pop(endpoint, None) is sample:  # or another thread did this
            self._advise(endpoint, sample)

    def _advise(self, endpoint: str, sample: _Sample) -> None:
        found = remedy(sample, self._unpinned)
        logger.warning(
            "endpoint %r has committed a write in %d of %d requests that only read, so "
            "the primary serves them, and their clients' next ones. Written were: %s. "
            "If its clients need not see that at once, %s. If they must, decorate the "
            "view with @changes_database, and this is not said again.",
            endpoint,
            sample.writes,
            sample.requests,
            found.what,
            found.text,
        )


def remedy(written: Written, unpinned: Mapping[str, Collection[str] | None]) -> Remedy:
    """Return what to do about writes in requests that are only to read.

    Args:
        written: What they have written.
        unpinned: What is housekeeping already, as in ``REPLICATED_UNPINNED``.
    """
    rules: _Rules = {
        table: None if columns is None else set(columns)
        for table, columns in unpinned.items()
    }
    for table, columns in written.tables.items():
        _add(rules, table, columns)
    block = "wrap them in 'with using_master(pin=False):'"
    line = (
        f"set REPLICATED_UNPINNED = {_shown(rules)!r}, which holds for writes to "
        "these tables in every endpoint, POST included"
    )
    whole = [table for table, columns in written.tables.items() if columns is None]
    if whole:
        # A replica that lags would have it inserted twice.
        tables = ", ".join(map(repr, whole))
        line += (
            f"; where a row of {tables} is looked for before it is inserted, its model "
            "then needs __replicated__ = 'master', since a replica may not have it yet"
        )
    text = f"{block}, or {line}" if whole else f"{line}, or {block}"
    what = [
        table if columns is None else f"{table} ({', '.join(sorted(columns))})"
        for table, columns in written.tables.items()
    ]
    if not written.nameable:
        text = f"{block} (REPLICATED_UNPINNED cannot have such names)"
    if written.unknown:
        what += [repr(one) for one in list(written.unknown)[:_MAX_SHOWN]]
        text = block
    return Remedy("; ".join(what), text)


def table_name(write: TableWrite, sent: Sent) -> str:
    """Return the name of the table that is written, as REPLICATED_UNPINNED has it."""
    return ".".join(_named(name, sent) for name in write[:2] if name)


def _beginning(sql: str) -> str:
    """Return the beginning of a statement on one line, up to the first literal.

    A literal may be a password, and each database quotes literals in its own way.
    """
    plain = _BEFORE_LITERALS.match(sql)
    shown = " ".join(plain[0].split()) if plain else ""
    whole = plain is not None and plain.end() == len(sql) and len(shown) <= _MAX_LENGTH
    return shown if whole else f"{shown[:_MAX_LENGTH]}…"


def _named(name: Identifier, sent: Sent) -> str:
    """Return a name as REPLICATED_UNPINNED has it."""
    folds = sent.dialect == "postgresql" and not name.quoted
    return name.text.lower() if folds else name.text


def _add(rules: _Rules, table: str, columns: Iterable[str] | None) -> None:
    known = rules.setdefault(table, set())
    if columns is None:
        rules[table] = None
    elif known is not None and len(known) < _MAX_ITEMS:
        known.update(columns)


def _shown(rules: _Rules) -> dict[str, str | list[str]]:
    return {
        table: "*" if columns is None else sorted(columns)
        for table, columns in rules.items()
    }
