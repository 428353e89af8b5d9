"""How far a replica is behind, by what was seen of it from time to time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flask_replicated.replica.fitness import ReplicaHistory
from flask_replicated.replica.lag import ReplayHistory
from flask_replicated.replica.replica_status import ReplicaReport
from tests.support import unhurried


def seen(received: int, replayed: int, age: float) -> ReplicaReport:
    """Return what a standby says that streams."""
    lag = 0.0 if received <= replayed else age
    return ReplicaReport(
        False, lag, measured=True, received=received, replayed=replayed
    )


def test_idle_primary_that_wakes() -> None:
    """A standby that is just replaying is no further behind than the last report."""
    progress = ReplayHistory()
    assert progress.lag(seen(100, 100, age=500), now=0) == 0
    assert progress.lag(seen(100, 100, age=505), now=5) == 0
    # Its last transaction is old; what it has not replayed yet has only just come.
    assert progress.lag(seen(180, 120, age=510), now=10) == 5
    assert progress.lag(seen(250, 200, age=0.2), now=15) == 0.2


def test_paused_replay() -> None:
    """One that receives and shows nothing of it falls behind by the second."""
    progress = ReplayHistory()
    progress.lag(seen(100, 100, age=1), now=0)
    for now in range(5, 60, 5):
        assert progress.lag(seen(100 + now, 100, age=now + 1), now=now) == now
    assert progress.lag(seen(160, 150, age=70), now=60) == 60 - 50


def test_first_report() -> None:
    """At first only the age of the last transaction is known."""
    assert ReplayHistory().lag(seen(200, 100, age=40), now=0) == 40


def stopped(replayed: int, age: float) -> ReplicaReport:
    """Return what a standby says that receives nothing."""
    return ReplicaReport(primary=False, lag=age, measured=True, replayed=replayed)


def test_receives_no_more() -> None:
    """What is missing can only have come since it was seen to be up to date."""
    progress = ReplayHistory()
    progress.lag(seen(100, 100, age=500), now=0)
    assert progress.lag(stopped(100, age=505), now=5) == 5
    assert progress.lag(stopped(100, age=535), now=35) == 35
    assert progress.lag(seen(300, 100, age=540), now=40) == 40
    assert progress.lag(seen(300, 300, age=1), now=45) == 0


def test_nothing_was_seen_of_it() -> None:
    """One that receives nothing, and was never seen to, is as old as it says."""
    progress = ReplayHistory()
    assert progress.lag(stopped(100, age=77), now=0) == 77
    assert progress.lag(stopped(100, age=80), now=3) == 80
    assert progress.lag(ReplicaReport(False, None, measured=True), now=5) is None


def test_copy() -> None:
    """A copy knows what was seen, and keeps what it sees to itself."""
    progress = ReplayHistory()
    progress.lag(seen(100, 100, age=500), now=0)
    copied = progress.copy()
    assert copied.lag(seen(200, 150, age=510), now=10) == 10
    assert len(progress._received) == 1


REPLICATES = ReplicaReport(primary=False, lag=0.0, measured=True)
ALONE = ReplicaReport(alone=True, doubtful=True)
UNTOLD = ReplicaReport(doubtful=True)
CLUSTERED = ReplicaReport()


def test_role_by_what_was_seen() -> None:
    """A server without a source is a primary if it has had one, and else perhaps."""
    history = ReplicaHistory()
    assert history.judge(ALONE, 0) == ALONE
    assert history.judge(REPLICATES, 0) == REPLICATES
    assert history.judge(ALONE, 0).primary
    # The account's privilege was taken away; or it is a cluster's by now.
    assert history.judge(UNTOLD, 0) == UNTOLD
    assert history.judge(CLUSTERED, 0) == CLUSTERED
    assert history.judge(REPLICATES, 0) == REPLICATES


def test_role_of_a_twin() -> None:
    """Who is the primary's own server is one, unless it says that it replicates."""
    history = ReplicaHistory()
    history.same_server = True
    assert history.judge(ALONE, 0).primary
    assert history.judge(UNTOLD, 0).primary
    assert history.judge(REPLICATES, 0) == REPLICATES
    assert history.judge(CLUSTERED, 0) == CLUSTERED


@unhurried
@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.integers(0, 9), st.booleans()), max_size=60
    )
)
def test_is_never_too_low(steps: list[tuple[int, int, bool]]) -> None:
    """What is said is at least the age of the oldest byte that is not shown yet."""
    progress, received, replayed = ReplayHistory(), 0, 0
    missing = 0  # what the primary has written while nothing was received
    written: list[tuple[int, int]] = []  # the end of each piece, and when it was
    for now, (more, done, receives) in enumerate(steps):
        missing += more
        written.append((received + missing, now))
        if receives:
            received, missing = received + missing, 0
        replayed = min(received, replayed + done)
        found = seen(received, replayed, 1e9) if receives else stopped(replayed, 1e9)
        lag = progress.lag(found, now=now)
        hidden = [when for end, when in written if end > replayed]
        oldest = now - min(hidden) if hidden else 0
        assert lag is not None
        assert lag >= oldest
        assert len(progress._received) <= len(steps) + 1
