"""What becomes of a statement that has failed on a replica: facts in, recovery out.

Nothing here runs a statement or changes a connection. :func:`find_failure` tells from a
session's connections to replicas what has failed, and :func:`decide` what may follow.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy.exc import DBAPIError, PendingRollbackError

from flask_replicated.errors import StaleReadError, WriteOnReplicaError
from flask_replicated.routing.decision import LOST, WROTE, Role

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from .replica_connection import ReplicaConnection

__all__ = ["Facts", "Failure", "Problem", "Recovery", "Step", "decide", "find_failure"]

_KNOWN = (DBAPIError, PendingRollbackError, WriteOnReplicaError, StaleReadError)


class Problem(Enum):
    """Why a replica has not answered."""

    STALE = auto()
    """The statement reads a table that must never be read stale."""
    WRITE = auto()
    """The statement writes."""
    MISSING = auto()
    """The replica does not have what the statement names."""
    LOST = auto()
    """The connection is lost."""


class Failure(NamedTuple):
    """A statement that a replica has not answered.

    Attributes:
        problem: Why.
        read: The connection that has failed; None where that makes no difference.
        answered: Whether it had answered another statement of its transaction before.
    """

    problem: Problem
    read: ReplicaConnection | None = None
    answered: bool = False


def find_failure(
    error: Exception, reads: Collection[ReplicaConnection]
) -> Failure | None:
    """Return what has failed on a replica, or None if that is not why.

    A primary that is lost may have done what it was asked, so nothing recovers that.

    Args:
        error: What the statement has raised, as listeners have left it.
        reads: The session's connections to replicas.
    """
    error = _original(error, reads)
    if isinstance(error, StaleReadError):
        return Failure(Problem.STALE)
    for read in reads:
        if isinstance(error, WriteOnReplicaError):
            if read.refused:
                return Failure(Problem.WRITE, read, read.sent > 1)
        elif read.missing is error:
            return Failure(Problem.MISSING, read, read.sent > 1)
    for read in reads:
        if not read.invalidated:
            continue
        if read.loss is error:
            return Failure(Problem.LOST, read, read.sent > 1)
        if isinstance(error, PendingRollbackError):
            # The end of a savepoint hid that a read was lost; this one was not sent.
            return Failure(Problem.LOST, read, read.sent > 0)
    return None


def _original(error: Exception, reads: Collection[ReplicaConnection]) -> Exception:
    """Return what a replica has failed with, whatever a listener has made of it."""
    if isinstance(error, _KNOWN):
        return error
    cause = error.__cause__
    if isinstance(cause, _KNOWN):
        return cause
    for read in reads:
        if read.error is not None and read.error[0] is cause:
            return read.error[1]
    return error


class Step(Enum):
    """What may follow."""

    RAISE = auto()
    """The error is raised."""
    READ_PRIMARY = auto()
    """The primary answers this statement; others stay where they are."""
    TRY_PRIMARY = auto()
    """The primary is asked. If it answers, it goes on in the replica's place."""
    CONTINUE_ON_PRIMARY = auto()
    """The primary goes on in the replica's place."""
    NEXT_REPLICA = auto()
    """Another replica answers."""


class Facts(NamedTuple):
    """All that decides what follows a failure.

    Attributes:
        problem: Why the replica has not answered.
        answered: Whether it had answered another statement of its transaction before.
        aborted: Whether its server has refused a write; the transaction takes no more
            statements then.
        may_be_continued: Whether the primary may answer the rest of a transaction that
            was begun on the replica.
        option: The role that the statement's own options ask for, or None.
        block: The role that the innermost ``using_*()`` block asks for, or None.
        primary_is_out: Whether the primary is known not to answer.
        replicas_left: Whether there are replicas that were not tried.
    """

    problem: Problem
    answered: bool = False
    aborted: bool = False
    may_be_continued: bool = True
    option: Role | None = None
    block: Role | None = None
    primary_is_out: bool = False
    replicas_left: bool = False


class Recovery(NamedTuple):
    """What follows a failure.

    Attributes:
        step: What to do.
        reason: Why the request is latched to the primary then; empty if it is not yet.
    """

    step: Step
    reason: str = ""


_RAISE = Recovery(Step.RAISE)


def decide(facts: Facts) -> Recovery:
    """Return what follows a failure.

    The primary may answer instead of a replica where no answer can contradict another:
    nothing was answered before, or the transaction has promised no fixed snapshot and
    no ``SET`` gets lost.
    """
    return _RULES[facts.problem](facts)


def _after_stale_table(facts: Facts) -> Recovery:
    again = facts.option is not Role.PRIMARY
    return Recovery(Step.READ_PRIMARY) if again else _RAISE


def _after_write(facts: Facts) -> Recovery:
    # After a refusal by the server only the first statement there may move.
    if _insists(facts) or (facts.aborted and facts.answered):
        return _RAISE
    reason = "a replica has refused its write" if facts.aborted else WROTE
    return Recovery(Step.CONTINUE_ON_PRIMARY, reason)


def _after_missing_object(facts: Facts) -> Recovery:
    if _insists(facts) or facts.primary_is_out or not _can_continue(facts):
        return _RAISE
    return Recovery(Step.TRY_PRIMARY)


def _after_loss(facts: Facts) -> Recovery:
    if not facts.answered and facts.replicas_left:
        return Recovery(Step.NEXT_REPLICA)
    # Only the primary is sure to know all that was seen.
    if _can_continue(facts):
        return Recovery(Step.CONTINUE_ON_PRIMARY, LOST)
    return _RAISE


def _insists(facts: Facts) -> bool:
    """Whether the program has asked for a replica."""
    return Role.REPLICA in (facts.option, facts.block)


def _can_continue(facts: Facts) -> bool:
    """Whether the primary's answers cannot contradict the replica's."""
    return facts.may_be_continued or not facts.answered


_RULES: dict[Problem, Callable[[Facts], Recovery]] = {
    Problem.STALE: _after_stale_table,
    Problem.WRITE: _after_write,
    Problem.MISSING: _after_missing_object,
    Problem.LOST: _after_loss,
}
