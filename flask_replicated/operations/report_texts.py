"""What a worker has observed, as text in the control place.

What is read from there is checked as anything from outside is.
"""

from __future__ import annotations

import json
from dataclasses import fields
from typing import TYPE_CHECKING, Any, NamedTuple

from flask_replicated.routing.reports import EndpointReport, Report

from .accounts import is_text, is_time
from .place import read_json

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from flask_replicated.routing.reports import Columns

__all__ = ["WorkerReport", "report_from", "report_to"]

_MOST_CHARACTERS = 200_000
_HIGHEST = 2**53
_MANY = 1000  # of anything in a report

_COUNTS = tuple(one.name for one in fields(EndpointReport) if one.type == "int")


class WorkerReport(NamedTuple):
    """What one worker has observed.

    Attributes:
        host: The name of its host.
        pid: The id of its process there, which containers share.
        report: What it has observed.
    """

    host: str
    pid: int
    report: Report


def report_to(report: Report, host: str, pid: int) -> str:
    """Return what a worker has observed as text, the least of it summed up if long."""
    most = len(report.endpoints)
    while True:
        found = {**report.shortened(most).to_json(), "names": dict(report.names)}
        del found["advice"]
        text = json.dumps({"host": host, "pid": pid, "report": found})
        if len(text) <= _MOST_CHARACTERS or not most:
            return text
        most //= 2


def report_from(text: str) -> WorkerReport | None:
    """Return what a text says; None if it is damaged."""
    try:
        found = read_json(text)
        host, pid, report = found["host"], found["pid"], found["report"]
        since, seen = report["since"], report["seen"]
        fits = is_text(host) and type(pid) is int and is_time(since) and is_time(seen)
        return WorkerReport(host, pid, _report(report)) if fits else None
    except (ValueError, TypeError, LookupError, AttributeError):
        return None


def _report(found: Mapping[str, Any]) -> Report:
    """Return a report.

    Raises:
        ValueError: It has a part of the wrong kind.
        LookupError: It lacks a part.
    """
    return Report(
        found["since"],
        found["seen"],
        {bind: _counts(one) for bind, one in _few(found["binds"]).items()},
        {name: _endpoint(one) for name, one in _few(found["endpoints"]).items()},
        {digest: _text(one) for digest, one in _few(found["names"]).items()},
    )


def _endpoint(found: Mapping[str, Any]) -> EndpointReport:
    return EndpointReport(
        **_counts({name: found[name] for name in _COUNTS}),
        held=_counts(found["held"]),
        held_by=_counts(found["held_by"]),
        written={name: _written(one) for name, one in _few(found["written"]).items()},
        nameable=found["nameable"] is True,
        unknown=_texts(found["unknown"]),
    )


def _written(found: Mapping[str, Any]) -> tuple[int, Columns]:
    columns = found["columns"]
    count = _counts({"requests": found["requests"]})["requests"]
    return count, None if columns is None else _texts(columns)


def _few(found: Mapping[str, Any]) -> Mapping[str, Any]:
    if len(found) > _MANY or not all(map(is_text, found.keys())):
        raise ValueError("not the names of a report")
    return found


def _counts(found: Mapping[str, Any]) -> dict[str, int]:
    counts = dict(_few(found))
    if not all(type(one) is int and 0 <= one < _HIGHEST for one in counts.values()):
        raise ValueError("not what is counted")
    return counts


def _texts(found: Collection[object]) -> tuple[str, ...]:
    if not isinstance(found, list) or len(found) > _MANY:
        raise ValueError("not a list of texts")
    return tuple(map(_text, found))


def _text(found: object) -> str:
    if not (isinstance(found, str) and is_text(found)):
        raise ValueError("not a text, or too long")
    return found
