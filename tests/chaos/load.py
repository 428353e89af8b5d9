"""A steady load of visitors, and a record of each request."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from tests.background import Background

if TYPE_CHECKING:
    from .workers import Answer, Service, Visitor

__all__ = ["WRITE_EVERY", "Load", "Record", "Written"]

WRITE_EVERY: Final = 10
"""Each visitor of so many writes, unless a fault asks for more."""


class Record(NamedTuple):
    """One request.

    Attributes:
        began: When it was sent, by the monotonic clock.
        ended: When it was answered.
        fresh: Whether it is a read of a visitor whom nothing ties to the primary.
        error: Why it failed; empty if it did not.
        ahead: Whether it went on to the primary, where what it had seen on a standby
            was to be seen a moment later only.
        server: Who served it; empty if it does not tell.
        worker: The process that served it; 0 if unknown.
        live: The replicas that were in that process's rotation.
    """

    began: float
    ended: float
    fresh: bool
    error: str
    ahead: bool
    server: str
    worker: int
    live: frozenset[str]

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended - self.began


class Written(NamedTuple):
    """What became of the writes, as far as visitors know.

    Attributes:
        acknowledged: Keys whose write was answered with success.
        unknown: Keys whose write was answered otherwise, or not at all.
    """

    acknowledged: set[str]
    unknown: set[str]


class Load(Background):
    """Reads by fresh visitors; now and then a write that its visitor reads back.

    Args:
        service: Who is asked.
        threads: How many ask.
        pause: Seconds from an answer to the same thread's next request.

    Attributes:
        records: Every request, in the order of the answers.
        excused: How many requests needed the primary while a fault had struck it;
            those are not among the records.
        written: What became of the writes.
        primary_struck: Whether one has. Then a single visitor goes on to write, since
            who writes may have to wait for it.
        hold: Seconds for which a read keeps its first statement open, and a write its
            transaction.
        write_every: Each visitor of so many writes.
    """

    def __init__(self, service: Service, threads: int = 6, pause: float = 0.02) -> None:
        self.records: list[Record] = []
        self.excused = 0
        self.written = Written(set(), set())
        self.primary_struck = False
        self.hold = 0.0
        self.write_every = WRITE_EVERY
        self._service = service
        self._pause = pause
        super().__init__()
        self._threads = [
            threading.Thread(target=self._run, args=(number,), name=f"load-{number}")
            for number in range(threads)
        ]

    def since(self, moment: float) -> list[Record]:
        """Return the requests that were answered after a moment."""
        found = []
        for record in reversed(self.records.copy()):
            if record.ended < moment:
                break  # nearly sorted: a neighbour's order may be the other one
            found.append(record)
        return found[::-1]

    def _run(self, number: int) -> None:
        turn = 0
        while not self._over.wait(self._pause):
            turn += 1
            hold = {"hold": self.hold} if self.hold else {}
            visitor = self._service.visitor()
            if turn % self.write_every or (self.primary_struck and number):
                self._ask(visitor, "GET", "/", **hold)
            else:
                self._write(visitor, f"{id(self)}-{number}-{turn}", **hold)

    def _write(self, visitor: Visitor, key: str, **hold: float) -> None:
        """Write a key and read it back, as the same visitor."""
        self.written.unknown.add(key)
        if self._ask(visitor, "POST", "/", key=key, **hold):
            self.written.unknown.discard(key)
            self.written.acknowledged.add(key)
            self._ask(visitor, "GET", "/has", key=key)

    def _ask(self, visitor: Visitor, method: str, path: str, **query: object) -> bool:
        began, struck = time.monotonic(), self.primary_struck
        fresh = path == "/" and method == "GET"
        try:
            answer = visitor.ask(method, path, **query)
        except Exception as error:  # noqa: BLE001 - a failed request, whatever it was
            answer = (0, {"error": f"{type(error).__name__}: {error}"})
        wrong = _wrong(answer)
        if (struck or self.primary_struck) and not fresh:
            self.excused += 1
            return not wrong
        fields = answer[1]
        record = Record(
            began=began,
            ended=time.monotonic(),
            fresh=fresh,
            error=f"{method} {path}: {wrong}" if wrong else "",
            ahead=bool(fields.get("ahead")),
            server=fields.get("server", ""),
            worker=fields.get("pid", 0),
            live=frozenset(fields.get("live", ())),
        )
        self.records.append(record)
        return not wrong


def _wrong(answer: Answer) -> str:
    """Return what is wrong with an answer; empty if nothing is."""
    status, fields = answer
    if status != 200:
        return str(fields.get("error", status))
    if not fields.get("found", True):
        return f"something that must be there is not, on {fields['server']}"
    if fields.get("went_back"):
        return f"time ran backwards within a request on {fields['server']}"
    return ""
