"""Records reads: which server each went to, why, and what it sent first."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from threading import get_ident
from typing import TYPE_CHECKING, Any

from sqlalchemy import event

from flask_replicated.routing.decision import Role
from flask_replicated.routing.flask_context import running_endpoint

from .kit import kit_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flask import Flask
    from sqlalchemy import Engine

    from balancers import Member
    from flask_replicated.engine.engines import RoutedEngine
    from flask_replicated.routing.decision import Decision

    from .kit import Kit

__all__ = ["RecordedDecision", "Recorder", "assert_served", "recorded_decisions"]

_SENDING = ("do_execute", "do_executemany", "do_execute_no_params")
_LONG = 200  # characters of a statement that are shown


@dataclass(frozen=True)
class RecordedDecision:
    """Where one read went, and why.

    Attributes:
        bind: The bind's key; None is the default one.
        role: ``'primary'`` or ``'replica'``.
        replica: The replica's name; None for the primary.
        reason: The rule that decided, in one word, as in ``primary_reads`` of a
            pool's snapshot.
        because: The same as a clause that fits after "because".
        endpoint: The endpoint of its request; None outside a request.
        statement: The statement that began it, without its parameters.
    """

    bind: str | None
    role: str
    replica: str | None
    reason: str
    because: str
    endpoint: str | None
    statement: str

    def __str__(self) -> str:
        where = "outside a request" if self.endpoint is None else f"in {self.endpoint}"
        bind = "" if self.bind is None else f", bind {self.bind!r}"
        statement = " ".join(self.statement.split())
        if len(statement) > _LONG:
            statement = f"{statement[:_LONG]} ..."
        server = self.replica or "the primary"
        return f"{where}{bind}: {server} ({self.reason}: {self.because}): {statement}"


class Recorder:
    """Tells open blocks of each read of an application.

    Only while there is such a block, the counts of reads are listened to.

    Args:
        kit: What tests have put in place.
    """

    def __init__(self, kit: Kit) -> None:
        self._kit = kit
        self._lists: list[list[RecordedDecision]] = []
        self._begun: dict[int, RecordedDecision] = {}  # by thread
        self._watched: dict[RoutedEngine, ExitStack] = {}

    @contextmanager
    def into(self, found: list[RecordedDecision]) -> Iterator[None]:
        """Return a block in which each read is appended to a list."""
        with self._kit.lock:
            self._lists = [*self._lists, found]
            self.watch()
        try:
            yield
        finally:
            with self._kit.lock:
                self._lists = [one for one in self._lists if one is not found]
                if not self._lists:
                    self._stop()

    def watch(self) -> None:
        """Listen to all routed engines that there are by now."""
        if self._lists:
            for key, routed in self._kit.routes.items():
                if routed not in self._watched:
                    self._watched[routed] = self._listen(key, routed)

    def _stop(self) -> None:
        watched, self._watched = self._watched, {}
        for stack in watched.values():
            stack.close()
        self._begun.clear()

    def _listen(self, key: str | None, routed: RoutedEngine) -> ExitStack:
        reads, stack = routed.reads, ExitStack()
        count_replica, count_primary = reads.on_replica, reads.on_primary

        def on_replica(member: Member[Engine], why: Decision, kept: Any) -> None:
            count_replica(member, why, kept)
            self._note(key, member.name, why)

        def on_primary(why: Decision, kept: Any, *, begins: bool = True) -> None:
            count_primary(why, kept, begins=begins)
            if begins:
                self._note(key, None, why)

        own = vars(reads)
        own.update(on_replica=on_replica, on_primary=on_primary)
        stack.callback(own.pop, "on_primary", None)
        stack.callback(own.pop, "on_replica", None)
        for engine in routed.engines():
            for name in _SENDING:
                # After the listener that counts the read: it is about to be sent.
                event.listen(engine, name, self._note_statement)
                stack.callback(_stop_listening, engine, name, self._note_statement)
        return stack

    def _note(self, bind: str | None, replica: str | None, why: Decision) -> None:
        role = Role.PRIMARY if replica is None else Role.REPLICA
        found = RecordedDecision(
            bind, role.value, replica, why.word, why.reason, running_endpoint(), ""
        )
        self._begun[get_ident()] = found
        for one in self._lists:
            one.append(found)

    def _note_statement(self, _cursor: Any, statement: str, *_rest: Any) -> None:
        begun = self._begun.pop(get_ident(), None)
        if begun is None:
            return
        known = replace(begun, statement=statement)
        for one in self._lists:
            one[:] = [known if each is begun else each for each in one]


def _stop_listening(engine: Engine, name: str, listener: Callable[..., Any]) -> None:
    if event.contains(engine, name, listener):
        event.remove(engine, name, listener)


@contextmanager
def recorded_decisions(app: Flask | None = None) -> Iterator[list[RecordedDecision]]:
    """Record where each read of a block goes, and why.

    A read is a transaction that a reading statement begins, as the metrics and
    ``pool().snapshot()`` count them.

    Args:
        app: The application; by default the current one, or the one that is mirrored.

    Returns:
        A block with the list, which grows in the order of the reads.

    Raises:
        RuntimeError: There is no application.
        ConfigurationError: It has no replicas.
    """
    kit = kit_of(app, "recorded_decisions")
    kit.require_routes("recorded_decisions")
    with _recorded(kit) as found:
        yield found


@contextmanager
def _recorded(kit: Kit) -> Iterator[list[RecordedDecision]]:
    with kit.lock:
        recorder = kit.recorder
        if not isinstance(recorder, Recorder):
            recorder = kit.recorder = Recorder(kit)
    found: list[RecordedDecision] = []
    with recorder.into(found):
        yield found


@contextmanager
def assert_served(
    primary: int = 0, replica: int = 0, app: Flask | None = None
) -> Iterator[list[RecordedDecision]]:
    """Assert how many reads of a block the primary serves, and how many the replicas.

    Exactly so many, of all binds together, counted as :func:`recorded_decisions` does.
    If the block itself raises, nothing is asserted.

    Args:
        primary: Reads that the primary serves.
        replica: Reads that replicas serve.
        app: The application; by default the current one, or the one that is mirrored.

    Raises:
        AssertionError: It was otherwise; each read is listed, with the reason.
        RuntimeError: There is no application.
        ConfigurationError: It has no replicas.
    """
    __tracebackhide__ = True
    kit = kit_of(app, "assert_served")
    kit.require_routes("assert_served")
    with _recorded(kit) as found:
        yield found
    by_replicas = sum(one.replica is not None for one in found)
    served = len(found) - by_replicas, by_replicas
    if served != (primary, replica):
        listed = [f"  {number}. {one}" for number, one in enumerate(found, 1)]
        raise AssertionError(
            f"expected {primary} reads by the primary and {replica} by replicas, and "
            f"there were {served[0]} and {served[1]}:\n"
            + "\n".join(listed or ["  nothing was read"])
        )
