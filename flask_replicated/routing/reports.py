"""What ``REPLICATED_MODE = 'observe'`` has found: to read, to add up, and to advise."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields, replace
from functools import reduce
from typing import TYPE_CHECKING, Any, TypeAlias

from .housekeeping import Written, remedy

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

__all__ = ["OTHER", "Columns", "EndpointReport", "Report", "merged"]

OTHER = "(other)"
"""The name of what is counted together, where there are too many names."""

_MAX_ADVICE = 5
_MAX_UNKNOWN = 3
_SHARE = 0.01
"""The least part of all reads that advice is worth."""
_ENOUGH = 20
"""Requests that tell something of a view."""

Columns: TypeAlias = "tuple[str, ...] | None"
_PinRules: TypeAlias = "Mapping[str, Collection[str] | None]"


@dataclass(frozen=True)
class EndpointReport:
    """What was seen of one endpoint. A read is the first one of its transaction.

    Attributes:
        requests: How many responses have begun.
        only_reading: How many of these were to requests of a method that only reads.
        writing: How many requests have written, housekeeping aside.
        reads: How many reads there were.
        moved: How many of them replicas would have served.
        held: How many the primary would have served, by reason, as in ``primary_reads``
            of a snapshot.
        held_by: How many of those that are ``'latched'``, ``'pinned'`` or a
            ``'fallback'``, by the table whose write keeps them there.
        written: What was committed by requests that were only to read, by table: by how
            many, and the columns that were updated; None if rows were inserted or
            deleted.
        nameable: Whether ``REPLICATED_UNPINNED`` can name all of these.
        unknown: Statements of which it is unknown what they write: their beginnings,
            without literals.
        mixed: How many transactions have read, and then written.
        refused: How many requests have written where they ask for a replica, which
            would refuse that.
        demanding: How many reads must be shown what their client has written, so that a
            replica would have had to be up to date.
        compared: For how many of these it is known whether a replica was.
        behind: For how many of these none was.
    """

    requests: int = 0
    only_reading: int = 0
    writing: int = 0
    reads: int = 0
    moved: int = 0
    held: Mapping[str, int] = field(default_factory=dict)
    held_by: Mapping[str, int] = field(default_factory=dict)
    written: Mapping[str, tuple[int, Columns]] = field(default_factory=dict)
    nameable: bool = True
    unknown: tuple[str, ...] = ()
    mixed: int = 0
    refused: int = 0
    demanding: int = 0
    compared: int = 0
    behind: int = 0


@dataclass(frozen=True)
class Report:
    """What one worker has seen, or several.

    Attributes:
        since: When the first of them began, in Unix seconds.
        seen: When the last of them was heard of, in Unix seconds.
        binds: How many reads there were (``'reads'``), and how many replicas would have
            served (``'moved'``), by bind; ``''`` is the default one.
        endpoints: What was seen of each endpoint; many are summed up in ``'(other)'``.
        names: The tables by the digests that pins have of them.
        unpinned: What is housekeeping already, as in ``REPLICATED_UNPINNED``.
        waits: Whether reads wait for a replica already (``REPLICATED_WAIT``).
    """

    since: float
    seen: float
    binds: Mapping[str, Mapping[str, int]]
    endpoints: Mapping[str, EndpointReport]
    names: Mapping[str, str] = field(default_factory=dict)
    unpinned: _PinRules = field(default_factory=dict)
    waits: bool = False

    @property
    def reads(self) -> int:
        """How many reads there were."""
        return sum(one.reads for one in self.endpoints.values())

    @property
    def moved(self) -> int:
        """How many of them replicas would have served."""
        return sum(one.moved for one in self.endpoints.values())

    @property
    def share(self) -> float | None:
        """The share of the reads that replicas would have served; None without any."""
        return self.moved / self.reads if self.reads else None

    def named(self) -> Report:
        """Return this report with the tables' names in place of digests of them."""
        endpoints = {
            name: replace(one, held_by=_renamed(one.held_by, self.names))
            for name, one in self.endpoints.items()
        }
        return replace(self, endpoints=endpoints)

    def shortened(self, most: int) -> Report:
        """Return this report with so many endpoints at most, the others summed up."""
        ranked = sorted(self.endpoints.items(), key=lambda pair: -pair[1].reads)
        kept = {name: one for name, one in ranked[:most] if name != OTHER}
        rest = [one for name, one in ranked if name not in kept]
        if rest:
            kept[OTHER] = reduce(_added, rest)
        return replace(self, endpoints=kept)

    def advice(self) -> list[str]:
        """Return what to write, the most useful first; five items at most."""
        found = sorted(self._advice(), key=lambda one: -one[0])
        return [text for _, text in found[:_MAX_ADVICE]]

    def to_json(self) -> dict[str, Any]:
        """Return this report as plain data, with the sums and the advice."""
        endpoints = {name: _plain(one) for name, one in self.endpoints.items()}
        return {
            "since": self.since,
            "seen": self.seen,
            "reads": self.reads,
            "moved": self.moved,
            "share": self.share,
            "binds": {bind: dict(found) for bind, found in self.binds.items()},
            "endpoints": endpoints,
            "advice": self.advice(),
        }

    # --- advice ---

    def _advice(self) -> Iterator[tuple[int, str]]:
        """Return what to write, with the number of reads that it is about."""
        held = _summed(one.held_by for one in self.endpoints.values())
        least = max(1, _SHARE * self.reads)
        worth = self._worth(held, least)
        updates, rows = Written(), Written()
        for one in self.endpoints.values():
            for table, (_, columns) in one.written.items():
                known = updates if columns is not None else rows
                if table in worth:
                    known.tables[table] = _joined(known.tables.get(table, ()), columns)
                    known.nameable = known.nameable and one.nameable
        for table in rows.tables:
            updates.tables.pop(table, None)
        known_rules = self.unpinned
        for found in (updates, rows):
            if found.tables:
                reads = sum(held[table] for table in found.tables)
                yield reads, self._of_writes(found, known_rules)
            known_rules = _with(known_rules, updates.tables)
        for name, one in self.endpoints.items():
            if one.unknown and one.held.get("latched", 0) >= least:
                known = Written()
                known.unknown = dict.fromkeys(one.unknown[:_MAX_UNKNOWN])
                what = remedy(known, self.unpinned)
                text = (
                    f"endpoint {name!r} writes by {what.what}: if its clients need not "
                    f"see that at once, {what.text}."
                )
                yield one.held["latched"], text
            yield from self._of_view(name, one, least)
        yield from self._of_lag(least)

    def _of_lag(self, least: float) -> Iterator[tuple[int, str]]:
        every = self.endpoints.values()
        behind, compared = (
            sum(one.behind for one in every),
            sum(one.compared for one in every),
        )
        if behind >= least and not self.waits:
            text = (
                f"{behind} of {compared} reads that must show what their client has "
                "written came before a replica had it. If the primary is the "
                "bottleneck, and replicas are milliseconds behind, set REPLICATED_WAIT "
                "= 0.2: such a read then waits, so many seconds at most, and holds its "
                "worker meanwhile."
            )
            yield behind, text

    def _worth(self, held: Mapping[str, int], least: float) -> set[str]:
        """Return the tables whose writes hold reads back, or will once others do not.

        A read is held back by one table, though its request may have written several.
        """
        worth = {table for table, count in held.items() if count >= least}
        hidden = {
            table
            for one in self.endpoints.values()
            if not worth.isdisjoint(one.written)
            for table, (count, _) in one.written.items()
            if count >= least
        }
        return worth | hidden

    def _of_writes(self, found: Written, known: _PinRules) -> str:
        only_reading = sum(one.only_reading for one in self.endpoints.values())
        counts = _summed(
            {table: count for table, (count, _) in one.written.items()}
            for one in self.endpoints.values()
        )
        shares: list[str] = []
        for table, columns in found.tables.items():
            share = 100 * counts[table] / max(1, only_reading)
            names = [f"{table}.{one}" for one in sorted(columns or ())] or [table]
            verb = "is" if len(names) == 1 else "are"
            by = "" if shares else " of the requests that only read"
            shares.append(f"{', '.join(names)} {verb} written by {share:.0f} %{by}")
        text = remedy(found, known).text
        return f"{'; '.join(shares)}. If clients need not see that at once, {text}."

    @staticmethod
    def _of_view(
        name: str, one: EndpointReport, least: float
    ) -> Iterator[tuple[int, str]]:
        posts, reads = one.requests - one.only_reading, one.held.get("method", 0)
        if posts >= _ENOUGH and not one.writing and reads >= least:
            text = (
                f"endpoint {name!r} has written in none of {posts} requests of a "
                "method that may write: decorate its view with @use_slave_database."
            )
            yield reads, text
        if one.refused:
            text = (
                f"endpoint {name!r} has written in {one.refused} requests where a "
                "replica would refuse it: over db.engine.connect() in a request that "
                "only reads, or inside using_slave(). Use db.engine.begin(), or "
                "decorate its view with @changes_database."
            )
            yield one.refused, text


def merged(
    reports: Collection[Report], unpinned: _PinRules, *, waits: bool = False
) -> Report:
    """Return the sum of what several workers have seen.

    Args:
        reports: One or more.
        unpinned: What is housekeeping already, as in ``REPLICATED_UNPINNED``.
        waits: Whether reads wait for a replica already (``REPLICATED_WAIT``).
    """
    names = {digest: name for one in reports for digest, name in one.names.items()}
    endpoints: dict[str, EndpointReport] = {}
    binds: dict[str, Mapping[str, int]] = {}
    for report in reports:
        for name, one in report.endpoints.items():
            known = endpoints.get(name)
            endpoints[name] = one if known is None else _added(known, one)
        for bind, counts in report.binds.items():
            binds[bind] = _summed([binds.get(bind, {}), counts])
    return Report(
        min(one.since for one in reports),
        max(one.seen for one in reports),
        binds,
        endpoints,
        names,
        unpinned,
        waits,
    ).named()


def _added(one: EndpointReport, other: EndpointReport) -> EndpointReport:
    found: dict[str, Any] = {}
    for name in (one_field.name for one_field in fields(EndpointReport)):
        mine, theirs = getattr(one, name), getattr(other, name)
        if name == "written":
            found[name] = _written(mine, theirs)
        elif name == "nameable":
            found[name] = mine and theirs
        elif name == "unknown":
            found[name] = tuple(dict.fromkeys([*mine, *theirs]))[:_MAX_UNKNOWN]
        elif isinstance(mine, int):
            found[name] = mine + theirs
        else:
            found[name] = _summed([mine, theirs])
    return EndpointReport(**found)


def _written(
    one: Mapping[str, tuple[int, Columns]], other: Mapping[str, tuple[int, Columns]]
) -> dict[str, tuple[int, Columns]]:
    found = dict(one)
    for table, (count, columns) in other.items():
        before, known = found.get(table, (0, ()))
        joined = _joined(known, columns)
        found[table] = before + count, None if joined is None else tuple(sorted(joined))
    return found


def _with(rules: _PinRules, more: Mapping[str, set[str] | None]) -> _PinRules:
    """Return rules for ``REPLICATED_UNPINNED`` with those of an earlier advice."""
    joined = {table: _joined(rules.get(table, ()), more[table]) for table in more}
    return {**rules, **joined}


def _joined(
    one: Collection[str] | None, other: Collection[str] | None
) -> set[str] | None:
    """Return the columns of both; None, which is whole rows, if one of them is."""
    return None if one is None or other is None else {*one, *other}


def _summed(counts: Iterable[Mapping[str, int]]) -> Counter[str]:
    found: Counter[str] = Counter()
    for one in counts:
        found.update(one)
    return found


def _renamed(counts: Mapping[str, int], names: Mapping[str, str]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for name, count in counts.items():
        found[names.get(name, name)] += count
    return dict(found)


def _plain(one: EndpointReport) -> dict[str, Any]:
    written = {
        table: {"requests": count, "columns": None if names is None else list(names)}
        for table, (count, names) in one.written.items()
    }
    found = {name: getattr(one, name) for name in vars(one)}
    found.update(
        held=dict(one.held),
        held_by=dict(one.held_by),
        written=written,
        unknown=list(one.unknown),
    )
    return found
