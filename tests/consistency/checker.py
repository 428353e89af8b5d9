"""Finds in the histories of clients what a client must never see.

The four session guarantees are those of Terry et al., *Session Guarantees for Weakly
Consistent Replicated Data* (1994). Registers have versions that only grow, and a read
shows all of them at one moment, so each guarantee is a comparison of versions.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from .history import Look, Operation

__all__ = ["Anomaly", "Kind", "check"]


class Kind(Enum):
    """What a client was promised, or takes for granted."""

    READ_YOUR_WRITES = "read your writes"
    MONOTONIC_READS = "monotonic reads"
    MONOTONIC_WRITES = "monotonic writes"
    WRITES_FOLLOW_READS = "writes follow reads"
    LOST_WRITES = "lost writes"


class Anomaly(NamedTuple):
    """A promise that was broken.

    Attributes:
        kind: Which one.
        register: Where.
        wanted: The least version that would have been right.
        seen: The version that was there.
        earlier: What has made the client expect that version; for writes that others
            see in a wrong order, the later of the two writes.
        later: Who saw something else.
        crossed: Whether the client no longer had what the earlier operation gave it,
            as the answer of another worker had overwritten that.
    """

    kind: Kind
    register: int
    wanted: int
    seen: int
    earlier: Operation
    later: Operation
    crossed: bool = False


class _Floor:
    """The least version of each register that somebody must see, and why."""

    def __init__(self, other: _Floor | None = None) -> None:
        self.least: dict[int, tuple[int, Operation]] = dict(
            other.least if other else {}
        )

    def rise(self, register: int, version: int, cause: Operation) -> None:
        known = self.least.get(register)
        if known is None or version >= known[0]:
            self.least[register] = version, cause

    def below(self, look: Look) -> Iterator[tuple[int, int, int, Operation]]:
        """Return register, wanted and seen version, and cause, where it is too low."""
        for register, (wanted, cause) in self.least.items():
            seen = look.versions[register]
            if seen < wanted:
                yield register, wanted, seen, cause


class _Write(NamedTuple):
    """A write, and what its client had written and read before it began."""

    version: int
    operation: Operation
    written: _Floor
    read: _Floor


def check(history: Iterable[Operation]) -> list[Anomaly]:
    """Return each anomaly; one of a kind for each operation at the most.

    Of parallel requests of one client only what is ordered in real time counts: what
    was answered before the other was sent. The looks of one request are ordered.

    Args:
        history: The operations of all clients, in any order.
    """
    clients: dict[int, list[Operation]] = defaultdict(list)
    storing: dict[int, dict[str, Operation]] = defaultdict(dict)
    for operation in history:
        if operation.stored:  # an answer that says it failed may do so, too
            storing[operation.client][operation.stored] = operation
        if not operation.error:
            clients[operation.client].append(operation)
    found: list[Anomaly] = []
    writes: dict[int, list[_Write]] = defaultdict(list)
    for client, operations in clients.items():
        found += _check_client(operations, storing[client], writes)
    found += _lost(writes)
    found += _orders(writes, clients.values())
    return found


def _check_client(
    operations: Sequence[Operation],
    storing: Mapping[str, Operation],
    writes: dict[int, list[_Write]],
) -> Iterator[Anomaly]:
    """Compare each operation with those that had been answered when it was sent."""
    written, read = _Floor(), _Floor()
    answered = iter(sorted(operations, key=lambda one: one.ended))
    following = next(answered, None)
    for operation in sorted(operations, key=lambda one: one.began):
        while following is not None and following.ended < operation.began:
            _remember(following, written, read)
            following = next(answered, None)
        if operation.wrote is None:
            yield from _marked(_check_read(operation, written, read), storing)
        else:
            register, version = operation.wrote
            write = _Write(version, operation, _Floor(written), _Floor(read))
            writes[register].append(write)
            yield from _check_write(write, register)


def _remember(operation: Operation, written: _Floor, read: _Floor) -> None:
    if operation.wrote is not None:
        written.rise(*operation.wrote, operation)
    for look in operation.looks:
        for register, version in enumerate(look.versions):
            read.rise(register, version, operation)


def _check_read(operation: Operation, written: _Floor, read: _Floor) -> list[Anomaly]:
    found: dict[Kind, Anomaly] = {}
    own = _Floor(read)
    for look in operation.looks:
        for kind, floor in (
            (Kind.READ_YOUR_WRITES, written),
            (Kind.MONOTONIC_READS, own),
        ):
            for register, wanted, seen, cause in floor.below(look):
                one = Anomaly(kind, register, wanted, seen, cause, operation)
                found.setdefault(kind, one)
        for register, version in enumerate(look.versions):
            own.rise(register, version, operation)
    return list(found.values())


def _check_write(write: _Write, register: int) -> Iterator[Anomaly]:
    for kind, floor in (
        (Kind.MONOTONIC_WRITES, write.written),
        (Kind.WRITES_FOLLOW_READS, write.read),
    ):
        if register in floor.least:
            known, cause = floor.least[register]
            if write.version <= known:
                yield Anomaly(
                    kind, register, known + 1, write.version, cause, write.operation
                )


def _marked(
    anomalies: Iterable[Anomaly], storing: Mapping[str, Operation]
) -> Iterator[Anomaly]:
    """Tell of each whether answers crossed."""
    for one in anomalies:
        yield one._replace(crossed=_crossed(one.earlier, one.later, storing))


def _crossed(
    earlier: Operation, later: Operation, storing: Mapping[str, Operation]
) -> bool:
    """Whether what one answer stored was overwritten, and two workers had a part in it.

    One that has sent both answers knows so when it is asked next.

    A token that an answer stores goes on from what its request carried. So what the
    later request carried is followed back, up to an answer to a request that was sent
    before the earlier token came.

    Args:
        earlier: It has stored a token, or sent one.
        later: It has lost that.
        storing: The client's operations by what they have stored.
    """
    wanted = earlier.stored or earlier.carried
    source = storing.get(wanted)
    overwriting, answer = None, storing.get(later.carried)
    workers = {earlier.worker, later.worker}
    for _ in storing:  # it ends, even if one token was stored twice
        if not (source and answer and answer.ended >= source.began):
            break
        if answer.stored == wanted:
            return False
        if overwriting is None:
            workers.add(answer.worker)
            overwriting = answer if answer.began <= source.ended else None
        answer = storing.get(answer.carried)
    if source is None or overwriting is None:
        return False
    return len(workers | {source.worker}) > 1


def _lost(writes: dict[int, list[_Write]]) -> Iterator[Anomaly]:
    """Return each version of a register that two writes have got."""
    for register, some in writes.items():
        by_version: dict[int, Operation] = {}
        for write in sorted(some, key=lambda one: one.operation.ended):
            earlier = by_version.setdefault(write.version, write.operation)
            if earlier is not write.operation:
                version = write.version
                yield Anomaly(
                    Kind.LOST_WRITES,
                    register,
                    version + 1,
                    version,
                    earlier,
                    write.operation,
                )


class _Order:
    """What whoever sees a version of one register must see of all others."""

    def __init__(self, writes: Iterable[_Write]) -> None:
        self._versions: list[int] = []
        self._floors: list[dict[Kind, _Floor]] = []
        so_far = {kind: _Floor() for kind in _ORDERED}
        for write in sorted(writes, key=lambda one: one.version):
            before = {
                Kind.MONOTONIC_WRITES: write.written,
                Kind.WRITES_FOLLOW_READS: write.read,
            }
            so_far = {kind: _Floor(floor) for kind, floor in so_far.items()}
            for kind, floor in before.items():
                for register, (version, _cause) in floor.least.items():
                    so_far[kind].rise(register, version, write.operation)
            self._versions.append(write.version)
            self._floors.append(so_far)

    def floor(self, version: int, kind: Kind) -> _Floor:
        """Return the least versions beside this one."""
        index = bisect_right(self._versions, version) - 1
        return self._floors[index][kind] if index >= 0 else _NOTHING


_ORDERED = (Kind.MONOTONIC_WRITES, Kind.WRITES_FOLLOW_READS)
_NOTHING = _Floor()


def _orders(
    writes: dict[int, list[_Write]], clients: Iterable[Sequence[Operation]]
) -> Iterator[Anomaly]:
    """Return each read that shows a write without what came before it."""
    orders = {register: _Order(some) for register, some in writes.items()}
    for operations in clients:
        for operation in operations:
            for kind in _ORDERED:
                yield from _check_order(operation, kind, orders)


def _check_order(
    operation: Operation, kind: Kind, orders: dict[int, _Order]
) -> Iterator[Anomaly]:
    for look in operation.looks:
        for register, order in orders.items():
            floor = order.floor(look.versions[register], kind)
            for other, wanted, seen, cause in floor.below(look):
                yield Anomaly(kind, other, wanted, seen, cause, operation)
                return
