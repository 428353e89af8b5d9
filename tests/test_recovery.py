"""What follows a statement that has failed on a replica: facts in, recovery out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.exc import OperationalError, PendingRollbackError

from flask_replicated import StaleReadError, WriteOnReplicaError
from flask_replicated.engine.recovery import (
    Facts,
    Problem,
    Step,
    decide,
    find_failure,
)
from flask_replicated.routing.decision import LOST, WROTE, Role

if TYPE_CHECKING:
    from flask_replicated.engine.replica_connection import ReplicaConnection

REFUSED = "a replica has refused its write"
LOSS = OperationalError("SELECT 1", None, OSError("gone"))
STALE = StaleReadError("account", "SELECT 1", None)
WRITE = WriteOnReplicaError("INSERT", None, "connected to 'slave_1'")
PENDING = PendingRollbackError("rolled back")

# What is known, and what follows.
ROWS: list[tuple[Facts, Step, str]] = [
    # A table that must never be read stale
    (Facts(Problem.STALE), Step.READ_PRIMARY, ""),
    (Facts(Problem.STALE, option=Role.REPLICA), Step.READ_PRIMARY, ""),
    (Facts(Problem.STALE, option=Role.PRIMARY), Step.RAISE, ""),
    # A write that the gate has stopped
    (Facts(Problem.WRITE), Step.CONTINUE_ON_PRIMARY, WROTE),
    (Facts(Problem.WRITE, answered=True), Step.CONTINUE_ON_PRIMARY, WROTE),
    (Facts(Problem.WRITE, option=Role.REPLICA), Step.RAISE, ""),
    (Facts(Problem.WRITE, block=Role.REPLICA), Step.RAISE, ""),
    (Facts(Problem.WRITE, block=Role.PRIMARY), Step.CONTINUE_ON_PRIMARY, WROTE),
    (
        Facts(Problem.WRITE, answered=True, may_be_continued=False),
        Step.CONTINUE_ON_PRIMARY,
        WROTE,
    ),
    # A write that the server has refused
    (Facts(Problem.WRITE, aborted=True), Step.CONTINUE_ON_PRIMARY, REFUSED),
    (Facts(Problem.WRITE, aborted=True, answered=True), Step.RAISE, ""),
    (Facts(Problem.WRITE, aborted=True, block=Role.REPLICA), Step.RAISE, ""),
    # Something that the replica does not have
    (Facts(Problem.MISSING), Step.TRY_PRIMARY, ""),
    (Facts(Problem.MISSING, answered=True), Step.TRY_PRIMARY, ""),
    (Facts(Problem.MISSING, may_be_continued=False), Step.TRY_PRIMARY, ""),
    (
        Facts(Problem.MISSING, answered=True, may_be_continued=False),
        Step.RAISE,
        "",
    ),
    (Facts(Problem.MISSING, primary_is_out=True), Step.RAISE, ""),
    (Facts(Problem.MISSING, option=Role.REPLICA), Step.RAISE, ""),
    (Facts(Problem.MISSING, block=Role.REPLICA), Step.RAISE, ""),
    # A connection that is lost
    (Facts(Problem.LOST, replicas_left=True), Step.NEXT_REPLICA, ""),
    (
        Facts(Problem.LOST, replicas_left=True, block=Role.REPLICA),
        Step.NEXT_REPLICA,
        "",
    ),
    (Facts(Problem.LOST), Step.CONTINUE_ON_PRIMARY, LOST),
    (Facts(Problem.LOST, may_be_continued=False), Step.CONTINUE_ON_PRIMARY, LOST),
    (Facts(Problem.LOST, block=Role.REPLICA), Step.CONTINUE_ON_PRIMARY, LOST),
    (
        Facts(Problem.LOST, answered=True, replicas_left=True),
        Step.CONTINUE_ON_PRIMARY,
        LOST,
    ),
    (
        Facts(Problem.LOST, answered=True, may_be_continued=False, replicas_left=True),
        Step.RAISE,
        "",
    ),
]


@pytest.mark.parametrize(("facts", "step", "reason"), ROWS)
def test_decide(facts: Facts, step: Step, reason: str) -> None:
    """Each fact counts as the table says."""
    assert decide(facts) == (step, reason)


def read(**facts: Any) -> ReplicaConnection:
    """Return what is asked of a connection to a replica."""
    plain = {"sent": 0, "refused": False, "invalidated": False}
    made: Any = SimpleNamespace(
        **{**plain, "error": None, "loss": None, "missing": None, **facts}
    )
    found: ReplicaConnection = made
    return found


def caused_by(cause: BaseException) -> Exception:
    """Return what a listener has made of an error."""
    error = LookupError("the program's own")
    error.__cause__ = cause
    return error


class TestFindFailure:
    """Which of a session's connections has failed, and why."""

    @pytest.mark.parametrize("error", [STALE, caused_by(STALE)])
    def test_stale(self, error: Exception) -> None:
        """A table that must not be read stale is no matter of a connection."""
        assert find_failure(error, [read()]) == (Problem.STALE, None, False)

    @pytest.mark.parametrize(("sent", "answered"), [(0, False), (1, False), (2, True)])
    def test_write(self, sent: int, answered: bool) -> None:
        """A write is that of the connection in which it was stopped."""
        other, mine = read(sent=5), read(refused=True, sent=sent)
        expected = (Problem.WRITE, mine, answered)
        assert find_failure(WRITE, [other, mine]) == expected
        assert find_failure(caused_by(WRITE), [other, mine]) == expected

    def test_write_elsewhere(self) -> None:
        """A write that no connection has stopped is raised."""
        assert find_failure(WRITE, [read(), read(invalidated=True)]) is None

    @pytest.mark.parametrize(("sent", "answered"), [(1, False), (2, True)])
    def test_missing(self, sent: int, answered: bool) -> None:
        """What is missing is missing where its error came from."""
        mine = read(missing=LOSS, loss=LOSS, sent=sent)
        expected = (Problem.MISSING, mine, answered)
        assert find_failure(LOSS, [read(sent=5), mine]) == expected

    @pytest.mark.parametrize(("sent", "answered"), [(1, False), (2, True)])
    def test_lost(self, sent: int, answered: bool) -> None:
        """A loss is found by its error; the statement itself was sent, too."""
        mine = read(loss=LOSS, invalidated=True, sent=sent)
        other = read(loss=OperationalError("", None, OSError()), invalidated=True)
        expected = (Problem.LOST, mine, answered)
        assert find_failure(LOSS, [other, mine]) == expected

    def test_renamed_by_a_listener(self) -> None:
        """An error is known by what the driver has raised."""
        raised = OSError("gone")
        mine = read(loss=LOSS, error=(raised, LOSS), invalidated=True, sent=1)
        assert find_failure(caused_by(raised), [mine]) == (Problem.LOST, mine, False)

    @pytest.mark.parametrize(("sent", "answered"), [(0, False), (1, True)])
    def test_lost_in_a_savepoint(self, sent: int, answered: bool) -> None:
        """A loss that the end of a savepoint hid shows before a statement is sent."""
        mine = read(loss=LOSS, invalidated=True, sent=sent)
        assert find_failure(PENDING, [read(), mine]) == (Problem.LOST, mine, answered)

    @pytest.mark.parametrize("error", [LOSS, PENDING, KeyError("x")])
    def test_not_lost(self, error: Exception) -> None:
        """What left every replica's connection usable is raised."""
        assert find_failure(error, [read(loss=LOSS)]) is None
        assert find_failure(error, []) is None
