"""What the page remembers of the last minutes, in this process."""

from __future__ import annotations

import time
from collections import deque
from threading import Lock
from typing import TYPE_CHECKING, Literal, NamedTuple

from flask_replicated.system.forks import ForkAware

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from flask_replicated.routing.snapshots import (
        ReplicaPoolSnapshot,
        ReplicaSnapshot,
    )

    Snapshots = Mapping[str | None, ReplicaPoolSnapshot]

__all__ = ["MINUTES", "Change", "Frame", "Point", "Recorder"]

MINUTES = 5
"""How long the figures are kept from which the graphs are drawn."""
_FRAME_EVERY = 5.0
_LOOK_EVERY = 1.0
_FRAMES = int(MINUTES * 60 / _FRAME_EVERY)
_CHANGES = 200

What = Literal["out", "back", "drained", "restored", "added", "removed", "weight"]


class Point(NamedTuple):
    """What was known of one replica at one moment.

    Attributes:
        reads: How many reads it had got from this process.
        latency: Seconds that the last look took; None if unknown.
        lag: Seconds that it was behind the primary; None if unknown.
        used: Connections in use; None if unknown.
    """

    reads: int
    latency: float | None
    lag: float | None
    used: int | None


class Frame(NamedTuple):
    """What was known at one moment.

    Attributes:
        at: The moment, by the monotonic clock.
        primary: How many reads the primary had got, by bind.
        replicas: What was known of each replica, by bind and name.
    """

    at: float
    primary: Mapping[str | None, int]
    replicas: Mapping[tuple[str | None, str], Point]


class Change(NamedTuple):
    """A replica's change of state.

    Attributes:
        at: When, in Unix seconds.
        bind: The bind that it copies; None is the default one.
        replica: Its name.
        what: What has happened.
        detail: More of it: a cause, the last error, how long it was out.
    """

    at: float
    bind: str | None
    replica: str
    what: What
    detail: str = ""


class Recorder(ForkAware):
    """Keeps figures and changes of the last minutes.

    It has no thread: others call :meth:`look` as often as they like. That costs nothing
    unless the last one was a second ago. Nothing grows without bound.

    Args:
        snapshots: Returns what is known now, by bind; it asks no server.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self,
        snapshots: Callable[[], Snapshots],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._snapshots = snapshots
        self._clock = clock
        super().__init__()
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget, in a forked child, what its parent has seen."""
        self._lock = Lock()
        now = self._clock()
        # All counts begin with 0 here.
        self._frames = deque([Frame(now, {}, {})], maxlen=_FRAMES)
        self._changes: deque[Change] = deque(maxlen=_CHANGES)
        self._before: dict[tuple[str | None, str], ReplicaSnapshot] | None = None
        self._looked = now - _LOOK_EVERY

    def look(self) -> None:
        """Note what has changed since the last look, if that was a second ago."""
        self.notice_fork()
        if self._clock() - self._looked >= _LOOK_EVERY:
            self.note()

    def note(self) -> Snapshots:
        """Note what has changed by now, and return what is known."""
        self.notice_fork()
        # The lock is held meanwhile: of two looks at a time, the earlier one must not
        # be noted as the later one.
        with self._lock:
            found, now = self._snapshots(), self._clock()
            self._looked = now
            known = {
                (bind, one.name): one
                for bind, pool in found.items()
                for one in pool.members
            }
            if self._before is not None:
                self._changes.extend(compare(self._before, known))
            self._before = known
            if now - self._frames[-1].at >= _FRAME_EVERY:
                self._frames.append(_frame(now, found))
        return found

    def frames(self, found: Snapshots) -> list[Frame]:
        """Return the figures that are kept, oldest first, and those of now.

        Args:
            found: What is known now, by bind.
        """
        with self._lock:
            first, *later = self._frames
        now = self._clock()
        # A rate over a moment says little.
        kept = [one for one in later if now - one.at >= _FRAME_EVERY / 2]
        return [first, *kept, _frame(now, found)]

    def changes(self) -> list[Change]:
        """Return the changes that are kept, latest first."""
        with self._lock:
            return sorted(self._changes, key=lambda one: one.at, reverse=True)


def _frame(now: float, found: Snapshots) -> Frame:
    return Frame(
        now,
        {bind: sum(pool.primary_reads.values()) for bind, pool in found.items()},
        {
            (bind, one.name): Point(
                one.reads,
                None if _is_out(one) else one.latency,  # it is an old one
                one.lag_seconds,
                one.connections_used,
            )
            for bind, pool in found.items()
            for one in pool.members
        },
    )


def compare(
    before: Mapping[tuple[str | None, str], ReplicaSnapshot],
    now: Mapping[tuple[str | None, str], ReplicaSnapshot],
) -> Iterator[Change]:
    """Return what has happened between two looks, as far as the later one shows it.

    Args:
        before: The earlier one.
        now: The later one.
    """
    for key in before.keys() - now.keys():
        yield Change(time.time(), *key, "removed")
    for key, one in now.items():
        earlier = before.get(key)
        if earlier is None:
            yield Change(time.time(), *key, "added")
        else:
            yield from _compare_one(key, earlier, one)


def _compare_one(
    key: tuple[str | None, str], before: ReplicaSnapshot, now: ReplicaSnapshot
) -> Iterator[Change]:
    if now.weight != before.weight:
        text = f"from {before.weight} to {now.weight}"
        yield Change(time.time(), *key, "weight", text)
    if now.drained:  # whatever else is wrong with it
        if not before.drained:
            yield Change(now.since, *key, "drained")
        return
    if before.drained:
        since = time.time() if _is_out(now) else now.since
        yield Change(since, *key, "restored")
    moved = now.since != before.since
    if _is_out(now):
        if moved or not _is_out(before):
            yield Change(now.since, *key, "out", _why(now))
    elif moved and not before.drained:
        lasted = now.since - before.since if _is_out(before) else 0.0
        text = f"after {lasted:.0f} s" if lasted > 0 else "after a moment"
        yield Change(now.since, *key, "back", text)


def _is_out(one: ReplicaSnapshot) -> bool:
    return one.state in {"open", "half_open"}


def _why(one: ReplicaSnapshot) -> str:
    return ": ".join(filter(None, (one.reason, one.last_error)))
