"""What the page shows, in words and figures."""

from __future__ import annotations

import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from flask_replicated.operations.accounts import WORST_FIRST, counts_of

from .graphs import Graph, graph, rates
from .recorder import MINUTES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from flask_replicated.operations.accounts import ReplicaRecord
    from flask_replicated.routing.snapshots import (
        ReplicaPoolSnapshot,
        ReplicaSnapshot,
    )

    from .recorder import Change, Frame, Point
    from .workers import Workers

__all__ = ["PoolView", "ReplicaView", "ago", "change_text", "pool_view", "summary"]

_SECONDS = MINUTES * 60.0
_RATE_OVER = 10.0
"""Seconds over which the present rate of reads is measured."""
_NAMED = 3
_MINUTE, _HOUR, _DAY = 60, 3600, 86400

_STATES = {
    "closed": "serving",
    "open": "out",
    "half_open": "on trial",
    "drained": "drained",
}
_TONES = {"closed": "good", "open": "bad", "half_open": "trial", "drained": "off"}
_WHY_PRIMARY = {
    "bind": "asked for by name",
    "block": "inside using_master()",
    "decorator": "a view decorator",
    "fallback": "no replica served it",
    "is_read": "by REPLICATED_IS_READ",
    "latched": "the request had written or locked",
    "learnt": "an endpoint that is known to write",
    "method": "no method that only reads, such as POST",
    "model": "the model says __replicated__ = 'master'",
    "observe": "only observed: a replica would have served it",
    "off": "replicas are switched off",
    "option": "by execution_options()",
    "outside": "outside a request",
    "pinned": "the client had just written",
}
_CHANGES = {
    "out": "went out",
    "back": "came back",
    "drained": "was drained",
    "restored": "was restored",
    "added": "was added",
    "removed": "was removed",
    "weight": "changed its weight",
}


_Totals: TypeAlias = "list[tuple[float, int]]"


class Share(NamedTuple):
    """One server's part of the reads.

    Of all workers since they were started, or else of this one in the last minutes.

    Attributes:
        name: The server.
        percent: Its part; None if there were no reads.
        start: The parts of those before it, together.
    """

    name: str
    percent: float | None
    start: float


class ReplicaView(NamedTuple):
    """One row of a table.

    Attributes:
        key: Tells it from every other row.
        found: The replica.
        word: Its state, in a word or two.
        tone: ``'good'``, ``'bad'``, ``'off'`` or ``'trial'``.
        note: Why it does not serve, and for how long it has been so.
        workers: How many workers see it in which state; empty if all agree.
        place: Its host and port.
        share: Its part of the reads.
        rate: Its reads in each second, at present.
        reads: Its reads in each second.
        latency: Milliseconds that looks took.
        lag: Seconds that it was behind.
        used: Connections in use.
    """

    key: str
    found: ReplicaSnapshot
    word: str
    tone: str
    note: str
    workers: str
    place: str
    share: Share
    rate: float
    reads: Graph
    latency: Graph
    lag: Graph
    used: Graph


class PoolView(NamedTuple):
    """One bind.

    Attributes:
        bind: Its key; empty for the default one.
        title: Its name.
        found: The pool.
        counts: What is counted of it, in all workers together.
        replicas: Its rows.
        shares: All parts of the reads, the primary's last.
        primary: The primary's own.
        primary_rate: The primary's reads in each second, at present.
        primary_reads: The primary's reads in each second.
        why_primary: How many reads the primary got, by reason.
    """

    bind: str
    title: str
    found: ReplicaPoolSnapshot
    counts: Mapping[str, int]
    replicas: Sequence[ReplicaView]
    shares: Sequence[Share]
    primary: Share
    primary_rate: float
    primary_reads: Graph
    why_primary: Sequence[tuple[str, int]]


def pool_view(
    number: int,
    bind: str | None,
    found: ReplicaPoolSnapshot,
    frames: Sequence[Frame],
    workers: Workers,
) -> PoolView:
    """Return what is shown of one bind.

    Args:
        number: Of the bind on the page.
        bind: The bind's key; None is the default one.
        found: Its pool.
        frames: What was known in the last minutes, oldest first.
        workers: What all workers say.
    """
    key = bind or ""
    totals = {
        one.name: _totals(frames, partial(_reads, bind, one.name))
        for one in found.members
    }
    primary = _totals(frames, lambda frame: frame.primary.get(bind, 0))
    counts = counts_of({bind: found})[key]
    if workers.accounts:
        said, reads = workers.counts.get(key, {}), workers.reads.get(key, {})
        counts = {what: said.get(what, 0) for what in counts}
        parts = {name: reads.get(name, 0) for name in totals}
        parts["primary"] = counts["primary_reads"]
    else:
        every = {**totals, "primary": primary}
        parts = {name: one[-1][1] - one[0][1] for name, one in every.items()}
    shares = _shares(parts)
    replicas = []
    for index, one in enumerate(found.members):
        share, worst = shares[one.name], workers.worst.get((key, one.name))
        row = _replica_view(f"{number}-{index}", (bind, one), frames, share, worst)
        replicas.append(row)
    reasons = Counter(found.primary_reads).most_common()
    return PoolView(
        bind=key,
        title="Default bind" if bind is None else f"Bind {bind}",
        found=found,
        counts=counts,
        replicas=replicas,
        shares=list(shares.values()),
        primary=shares["primary"],
        primary_rate=_rate(primary),
        primary_reads=graph(rates(primary), _SECONDS),
        why_primary=[(_WHY_PRIMARY.get(why, why), count) for why, count in reasons],
    )


def _reads(bind: str | None, name: str, frame: Frame) -> int:
    point = frame.replicas.get((bind, name))
    return 0 if point is None else point.reads


def _totals(frames: Sequence[Frame], of: Callable[[Frame], int]) -> _Totals:
    return [(frame.at, of(frame)) for frame in frames]


def _shares(parts: Mapping[str, int]) -> dict[str, Share]:
    together, start, found = sum(parts.values()), 0.0, {}
    for name, part in parts.items():
        percent = 100 * part / together if together else None
        found[name] = Share(name, percent, start)
        start += percent or 0.0
    return found


def _rate(totals: _Totals) -> float:
    """Return how much was added in each of the last seconds."""
    now, latest = totals[-1]
    earlier = [one for one in totals[:-1] if now - one[0] >= _RATE_OVER]
    at, total = earlier[-1] if earlier else totals[0]
    return max(0.0, (latest - total) / (now - at)) if now > at else 0.0


def _replica_view(
    key: str,
    replica: tuple[str | None, ReplicaSnapshot],
    frames: Sequence[Frame],
    share: Share,
    worst: ReplicaRecord | None,
) -> ReplicaView:
    bind, found = replica
    points = [(frame.at, frame.replicas.get((bind, found.name))) for frame in frames]

    def draw(of: Callable[[Point], float | None]) -> Graph:
        figures = ((at, None if one is None else of(one)) for at, one in points)
        return graph(figures, _SECONDS)

    reads = [(at, 0 if one is None else one.reads) for at, one in points]
    word, tone, note, workers = _seen(found, worst)
    return ReplicaView(
        key=key,
        found=found,
        word=word,
        tone=tone,
        note=note,
        workers=workers,
        place=_place(found),
        share=share,
        rate=_rate(reads),
        reads=graph(rates(reads), _SECONDS),
        latency=draw(lambda one: None if one.latency is None else one.latency * 1000),
        lag=draw(lambda one: one.lag),
        used=draw(lambda one: one.used),
    )


def _seen(
    found: ReplicaSnapshot, worst: ReplicaRecord | None
) -> tuple[str, str, str, str]:
    """Return a replica's state, its tone, more of it, and how many workers agree."""
    word, tone = _state(found)
    reason, since = found.reason, found.since
    counts: Mapping[str, int] = {} if worst is None else worst["workers"]
    if worst is not None and _is_worse(worst["state"], found.state):
        word, tone = _STATES[worst["state"]], _TONES[worst["state"]]
        reason, since = worst["reason"], worst["since"]
    lasts = f"for {ago(time.time() - since)}" if since else ""
    why = reason if reason not in {None, word} else ""
    known = [one for one in WORST_FIRST if counts.get(one)]
    seen = ", ".join(f"{counts[one]} {_STATES[one]}" for one in known)
    note = ", ".join(filter(None, (why, lasts)))
    return word, tone, note, f"workers: {seen}" if len(known) > 1 else ""


def _is_worse(state: str, other: str) -> bool:
    return WORST_FIRST.index(state) < WORST_FIRST.index(other)


def _state(found: ReplicaSnapshot) -> tuple[str, str]:
    if found.state == "closed" and not found.live:
        return ("spare" if found.weight else "weight 0"), "off"
    return _STATES[found.state], _TONES[found.state]


def _place(found: ReplicaSnapshot) -> str:
    if found.host is None:
        return ""
    host = f"[{found.host}]" if ":" in found.host else found.host
    return host if found.port is None else f"{host}:{found.port}"


def ago(seconds: float) -> str:
    """Return a span of time in one word or two."""
    whole = max(0, int(seconds))
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min"
    if whole < _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"
    return f"{whole // _DAY} d"


def change_text(change: Change) -> str:
    """Return what has happened to a replica, in words."""
    what, detail = _CHANGES[change.what], change.detail
    between = ": " if change.what == "out" else " "
    return f"{what}{between}{detail}" if detail else what


def summary(pools: Sequence[PoolView], *, off: bool, observed: bool) -> str:
    """Return the state of all replicas in one sentence, which changes with it alone.

    Args:
        pools: All binds.
        off: Whether reads are switched off from replicas.
        observed: Whether the primary serves them all, by ``REPLICATED_MODE``.
    """
    rows = [row for pool in pools for row in pool.replicas]
    if not rows and not observed:
        return "No replica is configured: the primary serves every read."
    others = [row for row in rows if row.word != _STATES["closed"]]
    count = f"{len(rows) - len(others)} of {len(rows)} replicas"
    text = f"{count} serve reads"
    if observed:
        text = "REPLICATED_MODE is 'observe', and the primary serves every read"
        text += f"; {count} are well" if rows else "; no replica is configured"
    elif off:
        text = f"Replicas are switched off, and the primary serves; {count} are well"
    named = ", ".join(map(_named, others[:_NAMED]))
    more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
    return f"{text}; not {named}{more}." if others else f"{text}."


def _named(row: ReplicaView) -> str:
    why = row.note.partition(", ")[0]
    known = why and not why.startswith("for ")
    return f"{row.found.name} ({row.word}{f', {why}' if known else ''})"
