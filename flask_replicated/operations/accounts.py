"""What a worker says of itself and its replicas in the control place."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .place import is_number, read_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from flask_replicated.routing.snapshots import ReplicaPoolSnapshot

    from .place import ControlPlace

__all__ = [
    "FIELDS",
    "WORST_FIRST",
    "Account",
    "Counts",
    "ReplicaRecord",
    "account_from",
    "account_to",
    "accounts_in",
    "counts_of",
    "is_text",
    "is_time",
    "reads_of",
    "replicas_of",
]

FIELDS = ("name", "state", "reason", "since", "lag_seconds", "weight", "host", "port")
"""What is said of each replica, as in its snapshot."""
WORST_FIRST = ("open", "half_open", "drained", "closed")
"""All states of a replica."""
_LONGEST = 500
"""Characters of any text that is believed."""

_LATEST = 250_000_000_000.0
"""Unix seconds up to which a time has a date, with four digits for its year."""

ReplicaRecord = dict[str, Any]
"""What is said of one replica, by :data:`FIELDS`."""

Counts = dict[str, dict[str, int]]
"""Numbers since a worker was started, by bind (``''`` is the default one) and name."""


@dataclass(frozen=True)
class Account:
    """One worker's account.

    Attributes:
        host: The name of its host.
        pid: The id of its process there, which containers share.
        seen: When it was given, in Unix seconds, by its host's clock.
        off: Whether it sends all reads to the primary.
        binds: Its replicas, by the bind that they copy; ``''`` is the default one.
        reads: How many reads each replica has got from it.
        counts: What else it has counted, as :func:`counts_of` names it.
    """

    host: str
    pid: int
    seen: float
    off: bool
    binds: Mapping[str, list[ReplicaRecord]]
    reads: Counts = field(default_factory=dict)
    counts: Counts = field(default_factory=dict)


def replicas_of(
    snapshot: Mapping[str | None, ReplicaPoolSnapshot],
) -> dict[str, list[ReplicaRecord]]:
    """Return what an account says of each replica."""
    return {
        bind or "": [
            {name: getattr(one, name) for name in FIELDS} for one in pool.members
        ]
        for bind, pool in snapshot.items()
    }


def reads_of(snapshot: Mapping[str | None, ReplicaPoolSnapshot]) -> Counts:
    """Return how many reads each replica has got."""
    return {
        bind or "": {one.name: one.reads for one in pool.members}
        for bind, pool in snapshot.items()
    }


def counts_of(snapshot: Mapping[str | None, ReplicaPoolSnapshot]) -> Counts:
    """Return what else is counted of each bind, in sum."""
    return {
        bind or "": {
            "primary_reads": sum(pool.primary_reads.values()),
            "fallbacks": pool.fallbacks,
            "reruns": pool.reruns,
            "pins": sum(pool.pins.values()),
            "refused_writes": sum(pool.refused_writes.values()),
        }
        for bind, pool in snapshot.items()
    }


def account_to(account: Account) -> str:
    """Return an account as text."""
    return json.dumps(vars(account))


def account_from(text: str) -> Account | None:
    """Return the account that a text is; None if it is none."""
    try:
        found = read_json(text)
        host, pid, seen = found["host"], found["pid"], found["seen"]
        binds = {
            bind: [_replica(one) for one in replicas]
            for bind, replicas in found["binds"].items()
        }
        off = found["off"]
        reads, counts = (_counts(found.get(one, {})) for one in ("reads", "counts"))
    except (ValueError, TypeError, LookupError, AttributeError):
        return None
    fits = type(pid) is int and is_time(seen) and _is_bool(off)
    fits = fits and all(map(is_text, [host, *binds]))
    return Account(host, pid, seen, off, binds, reads, counts) if fits else None


def accounts_in(place: ControlPlace) -> list[Account]:
    """Return the accounts in a control place, by host and process.

    Raises:
        Exception: The place cannot be read.
    """
    found = filter(None, map(account_from, place.accounts()))
    return sorted(found, key=lambda one: (one.host, one.pid, one.seen))


def _counts(found: Mapping[str, Mapping[str, int]]) -> Counts:
    """Return numbers by bind and name.

    Raises:
        ValueError: One is none.
    """
    counts = {bind: dict(numbers.items()) for bind, numbers in found.items()}
    every = [one for numbers in counts.values() for one in numbers.values()]
    if not all(type(one) is int and one >= 0 for one in every):
        raise ValueError("not what is counted")
    return counts


def _replica(found: Mapping[str, Any]) -> ReplicaRecord:
    """Return what is said of a replica.

    Raises:
        ValueError: It has a part of the wrong kind.
        LookupError: It lacks a part.
    """
    one = {name: found[name] for name in FIELDS}
    texts: Iterable[object] = (one["reason"] or "", one["host"] or "")
    numbers = (one["lag_seconds"] or 0, one["port"] or 0, one["weight"])
    fits = (
        is_text(one["name"]) and one["state"] in WORST_FIRST and is_time(one["since"])
    )
    if not (fits and all(map(is_text, texts)) and all(map(is_number, numbers))):
        raise ValueError("not what is said of a replica")
    return one


def is_text(value: object) -> bool:
    """Whether a value is text that is not too long, and that a page can show."""
    if not isinstance(value, str) or len(value) > _LONGEST:
        return False
    return not any("\ud800" <= one <= "\udfff" for one in value)


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def is_time(value: Any) -> bool:
    """Whether a value is a moment in Unix seconds, which a clock can show."""
    return is_number(value) and 0 <= value < _LATEST
