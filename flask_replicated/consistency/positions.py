"""Log positions: how far a database's log has got, and who has reached that.

A primary tells its position after a commit. A replica that shows at least as much shows
that commit. Positions of two clusters, or of an old timeline, cannot be compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LogPosition", "merged"]


class LogPosition(NamedTuple):
    """A position in the log of one cluster.

    Attributes:
        cluster: A digest of what identifies the cluster (PostgreSQL's system
            identifier), 32 bits; 0 where a database has no such thing.
        timeline: PostgreSQL's timeline; 0 where there is none.
        streams: How far each stream has got. PostgreSQL has one, ``0``, in bytes;
            MariaDB one for each domain; MySQL one for each server that has written,
            by a digest of its uuid, 48 bits.
    """

    cluster: int
    timeline: int
    streams: Mapping[int, int]

    def covers(self, wanted: LogPosition) -> bool:
        """Whether a replica that shows this position shows another one, too.

        Not if it is on an older timeline: it may have what was never on the other one.
        """
        if self.cluster != wanted.cluster or self.timeline < wanted.timeline:
            return False
        shown = self.streams
        for stream, number in wanted.streams.items():  # each pinned read asks
            if shown.get(stream, -1) < number:
                return False
        return True


def merged(one: LogPosition, other: LogPosition) -> LogPosition:
    """Return the least position that covers two of one cluster.

    Of two timelines it is the later one's: what the former had beyond the fork was lost
    with it, and no server will ever show it. Of two clusters nothing covers both: then
    it is *other*, which is to be the later one.
    """
    if one.cluster != other.cluster:
        return other
    if one.timeline != other.timeline:
        return max(one, other, key=_timeline)
    if one.streams == other.streams:
        return one
    streams = dict(one.streams)
    for stream, number in other.streams.items():
        streams[stream] = max(number, streams.get(stream, number))
    return LogPosition(one.cluster, one.timeline, streams)


def _timeline(position: LogPosition) -> int:
    return position.timeline
