"""The figures as ``benchmarks/README.md``, and as charts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from benchmarks.charts import Bar, bars, picture, write

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = ["FLOOR", "render"]

FLOOR: Final = "an empty method call"
_OURS: Final = "flask_replicated"
_FAULTS: Final[Mapping[str, str]] = {
    "well": "no fault",
    "lag": "a standby stops replaying, 5 s",
    "killed": "killed, back after 3 s",
    "restarted": "restarted",
    "slow": "each answer half a second late, 6 s",
    "frozen": "takes connections and is silent, 12 s",
    "promoted": "becomes a primary, 8 s",
}
_REASONS: Final[Mapping[str, str]] = {
    "itertools.cycle": (
        "`itertools.cycle` is what a healthy pool calls; the rest is the attribute "
        "lookup of a method. It knows of no server that is out."
    ),
    "POST": (
        "A POST asks the primary for its log position after the commit, one more "
        "round trip, and sets a signed cookie with it: by these the visitor's next "
        "read shows the write. The others do not do it; `'none'` does not either."
    ),
    "GET": "It sends fewer statements, or reads from the primary.",
    "slowest": (
        "where another one's slowest request is quicker, its requests fail instead; "
        "or, where answers are late, a request has opened a new connection there. It "
        "waits for seven answers before its own: two to log in, then BEGIN, which "
        "database this is, its role and lag, the read-only session, and COMMIT. What "
        "follows the log-in has `REPLICATED_CONNECT_TIMEOUT`, 2 s. So at half a second "
        "each it is given up 3.0 s after it began, and another standby serves at once. "
        "`least_outstanding` leaves a late or silent standby alone soonest."
    ),
}
_UNKNOWN: Final = "the reason is not known."
_NOISE: Final = 1.05
"""What is less than a twentieth better is not called better."""
_MOMENT: Final = 0.3
"""Seconds; what is less quicker is not called quicker."""


def render(found: Mapping[str, Any], folder: Path) -> None:
    """Write ``README.md`` and its charts into *folder*, from what was measured."""
    parts = [*_head(found)]
    if "pick" in found:
        parts += _picks(found["pick"], folder)
    if "request" in found:
        parts += _requests(found["request"], folder)
    if "fault" in found:
        parts += _faults(found["fault"], folder)
    (folder / "README.md").write_text("\n".join(parts) + "\n")


def _head(found: Mapping[str, Any]) -> Iterator[str]:
    versions = ", ".join(f"{name} {text}" for name, text in found["versions"].items())
    yield "# Beside its peers"
    yield ""
    yield (
        f"Written by `make bench PEERS=1` on {_dates(found)}: {found['python']} on "
        f"{found['processors']} processors, PostgreSQL {found.get('server', '-')}, "
        f"{versions}. What is in one column is measured in one run, taking turns, in a "
        "virtual environment of its own. What has no peer is in "
        "[docs/benchmarks.md](../docs/benchmarks.md), [throughput.md](throughput.md) "
        "and [simulation.md](simulation.md)."
    )
    yield ""


def _dates(found: Mapping[str, Any]) -> str:
    """Return when it was measured: each part, where some were measured later."""
    dates: Mapping[str, str] = found.get("dates", {})
    if len({*dates.values()}) < 2:
        return str(found["date"])
    return ", ".join(f"{date} ({part})" for part, date in dates.items())


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(heads) + " |"
    yield "|---" * len(heads) + "|"
    for row in rows:
        yield "| " + " | ".join(row) + " |"
    yield ""


def _is_ours(name: str) -> bool:
    return name.startswith(_OURS)


def _ahead(values: Mapping[str, float], ours: str = _OURS) -> list[str]:
    """Return the peers whose value is lower than that of this project."""
    return [
        name
        for name, value in values.items()
        if not _is_ours(name) and value * _NOISE < values[ours]
    ]


def _picks(found: Mapping[str, Mapping[str, float]], folder: Path) -> Iterator[str]:
    order = sorted(found, key=lambda name: found[name]["ratio"])
    chart = bars(
        "One pick out of three healthy members",
        "nanoseconds, on a logarithmic scale; less is better",
        [
            Bar(
                name, value := found[name]["median"], f"{value:,.0f} ns", _is_ours(name)
            )
            for name in order
        ],
        log=True,
    )
    write(folder / "charts", "pick", chart)
    yield "## One pick"
    yield ""
    yield picture("charts", "pick", "Nanoseconds for one pick")
    yield ""
    yield from _table(
        ("pick out of three", "ns, median (quartiles)", "x an empty call"),
        (
            (
                name,
                "{median:,.0f} ({low:,.0f} to {high:,.0f})".format(**found[name]),
                "{ratio:.1f}".format(**found[name]),
            )
            for name in order
        ),
    )
    yield (
        "What goes through a circuit breaker is how one would add what a pool here "
        "has: it learns of failures. django-replicated opens a cursor at each pick, "
        "here of a database in memory."
    )
    yield ""
    ratios = {name: one["ratio"] for name, one in found.items() if name != FLOOR}
    for name in _ahead(ratios, f"{_OURS}, round_robin"):
        yield f"Not ahead of `{name}`: {_REASONS.get(name, _UNKNOWN)}"
        yield ""
    yield (
        "`least_outstanding`, `peak_ewma` and `latency_window` look at what each "
        "member is doing. No peer has their like."
    )
    yield ""


def _requests(
    found: Mapping[str, Mapping[str, Mapping[str, float]]], folder: Path
) -> Iterator[str]:
    names = list(found["GET"])
    chart = bars(
        "A whole GET of one row over PostgreSQL",
        "microseconds, median; less is better",
        [
            Bar(name, value := one["median"], f"{value:,.0f} us", _is_ours(name))
            for name, one in found["GET"].items()
        ],
    )
    write(folder / "charts", "get", chart)
    yield "## A whole request"
    yield ""
    yield picture("charts", "get", "Microseconds for a whole GET")
    yield ""
    heads = ["application"]
    for method in found:
        heads += [f"{method} in us, median (quartiles)", "x the primary alone"]
    yield from _table(
        heads,
        (
            [name, *(cell for one in found.values() for cell in _timed(one[name]))]
            for name in names
        ),
    )
    for method, times in found.items():
        ahead = _ahead({name: one["ratio"] for name, one in times.items()})
        if ahead:
            reason = _REASONS.get(method, _UNKNOWN)
            yield f"{method}, not ahead of {', '.join(ahead)}: {reason}"
            yield ""


def _timed(one: Mapping[str, float]) -> tuple[str, str]:
    return (
        "{median:,.0f} ({low:,.0f} to {high:,.0f})".format(**one),
        f"{one['ratio']:.2f}",
    )


def _faults(
    found: Mapping[str, Mapping[str, Mapping[str, float]]], folder: Path
) -> Iterator[str]:
    names = list(next(iter(found.values())))
    write(folder / "charts", "failover", _failover_chart(found, names))
    yield "## What visitors notice of a fault"
    yield ""
    yield picture("charts", "failover", "Requests that failed or were stale, by peer")
    yield ""
    yield (
        "All applications are under the same load at the same time, three threads "
        "each; one of two standbys is struck. All are built anew before each fault, so "
        "that their connections lead to both. This project has its default settings; "
        "all others have its connect timeout of two seconds."
    )
    yield ""
    for what, shape, words in (
        ("failed", ".0f", "Requests that failed"),
        ("stale", ".0f", "Reads that did not show their own visitor's write"),
        ("slowest", ".2f", "The slowest request, in seconds"),
        ("requests", ".0f", "Requests served"),
        ("replicas", ".1f", "Percent of reads that standbys served"),
    ):
        yield f"**{words}**"
        yield ""
        yield from _table(
            ("application", *(_FAULTS[fault] for fault in found)),
            (
                [name, *(format(one[name][what], shape) for one in found.values())]
                for name in names
            ),
        )
    yield from _remarks_on_faults(found)


def _remarks_on_faults(
    found: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> Iterator[str]:
    slower = {
        name
        for one in found.values()
        for name, figures in one.items()
        if not _is_ours(name) and figures["slowest"] + _MOMENT < one[_OURS]["slowest"]
    }
    if slower:
        names = sorted(slower)
        yield f"Slowest, not ahead of {', '.join(names)}: {_REASONS['slowest']}"
        yield ""
    yield (
        "Some requests served are more because connections that had led to the struck "
        "standby lead to the other one for good, once they were opened anew: libpq and "
        "HAProxy choose when they connect, and not for each request."
    )
    yield ""
    yield (
        "Where the share of reads on standbys is below 100 %, the primary has served "
        "visitors whose own write no live standby showed yet."
    )
    yield ""


def _failover_chart(
    found: Mapping[str, Mapping[str, Mapping[str, float]]], names: Sequence[str]
) -> Any:
    struck = [one for fault, one in found.items() if fault != "well"]
    rows = []
    for name in names:
        total = sum(one[name]["requests"] for one in struck)
        failed = sum(one[name]["failed"] for one in struck)
        stale = sum(one[name]["stale"] for one in struck)
        slowest = max(one[name]["slowest"] for one in struck)
        text = f"{failed:.0f} failed, {stale:.0f} stale, {slowest:.1f} s"
        share = 100 * (failed + stale) / max(1.0, total)
        rows.append(Bar(name, share, text, _is_ours(name)))
    return bars(
        f"{len(struck)} faults of one of two standbys, under load",
        "percent of requests that failed, or missed their own write; the slowest one",
        rows,
    )
