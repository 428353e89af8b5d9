"""Whether a standby follows its primary's history, by what both say in turn."""

from __future__ import annotations

from flask_replicated.replica.fitness import ReplicaHistory
from flask_replicated.replica.primary_status import (
    PrimaryReport,
    PrimaryStatus,
    TimedReport,
)
from flask_replicated.replica.replica_status import ReplicaReport


class Scene:
    """A primary and a standby, which are probed in turn.

    Attributes:
        status: What is known of the primary.
        now: The time of the latest probe.
    """

    def __init__(self) -> None:
        self.status = PrimaryStatus()
        self.now = 0.0
        self._history = ReplicaHistory(self.status)

    def primary(self, position: int, timeline: int = 1, *, anew: bool = False) -> None:
        """Probe the primary, over a new connection where that is wanted."""
        self.now += 1
        facts = PrimaryReport(False, True, position={"": position}, timeline=timeline)
        anew = anew or self.status.doubted
        self.status.record_probe(TimedReport(facts, self.now, self.now, anew))

    def replica(
        self,
        replayed: int,
        timeline: int | None = 1,
        *,
        exact: bool = True,
        cut_off: bool = False,
        started: float | None = 5.0,
    ) -> str | None:
        """Probe the standby; return why it is set apart, if it is."""
        self.now += 1
        received = None if cut_off else replayed
        found = ReplicaReport(
            False,
            0.0,
            True,
            received,
            replayed,
            timeline=timeline,
            exact=exact and not cut_off,
            started=started,
        )
        return self._history.judge(found, self.now).apart

    def promoted(self) -> None:
        """Probe the standby's server while it is a primary."""
        self._history.judge(ReplicaReport(primary=True), self.now)


def test_follows() -> None:
    """One that receives the primary's timeline is a copy, also while it lags."""
    scene = Scene()
    scene.primary(100)
    assert scene.replica(100) is None
    assert scene.replica(40) is None
    assert scene.replica(40, cut_off=True) is None


class TestOlder:
    """A standby that has not followed a promotion."""

    def test_cut_off(self) -> None:
        """It is set apart while it receives nothing, and comes back once it follows."""
        scene = Scene()
        scene.primary(100)
        assert scene.replica(100) is None
        scene.primary(120, timeline=2)
        why = scene.replica(110, cut_off=True)
        assert why is not None
        assert "on timeline 1 and receives from no server" in why
        assert scene.replica(125, timeline=2) is None

    def test_receives_the_old_one(self) -> None:
        """So is one that goes on to receive the old timeline."""
        scene = Scene()
        scene.primary(120, timeline=2)
        why = scene.replica(110, timeline=1)
        assert why is not None
        assert "follows timeline 1, and the primary is on timeline 2" in why
        assert scene.replica(110, timeline=2) is None

    def test_account_may_not_ask(self) -> None:
        """Its server's last restart point is older than what it follows."""
        scene = Scene()
        scene.primary(100)
        assert scene.replica(100, exact=False) is None
        scene.primary(120, timeline=2)
        assert scene.replica(100, cut_off=True) is not None
        assert scene.replica(100, exact=False) is None
        assert scene.replica(120, exact=False) is None
        # It has shown what the new timeline alone has: now the primary restarts.
        assert scene.replica(120, cut_off=True) is None

    def test_primary_restarts(self) -> None:
        """One that has followed is not set apart while there is none to follow."""
        scene = Scene()
        scene.primary(120, timeline=2)
        assert scene.replica(120, timeline=2) is None
        scene.status.mark_unreachable()
        assert scene.replica(120, timeline=1, cut_off=True) is None

    def test_nothing_known(self) -> None:
        """Before any other timeline was seen, none is too old."""
        scene = Scene()
        assert scene.replica(120, cut_off=True) is None
        assert scene.replica(120, timeline=None, exact=False, cut_off=True) is None
        scene.primary(120, timeline=2)
        assert scene.replica(120, timeline=None, exact=False, cut_off=True) is None

    def test_seen_on_another_standby(self) -> None:
        """While the primary is out, a timeline that others follow counts."""
        scene = Scene()
        scene.primary(100)
        scene.status.mark_unreachable()
        other = ReplicaHistory(scene.status)
        found = ReplicaReport(False, 0.0, True, 120, 120, timeline=2, exact=True)
        assert other.judge(found, scene.now).apart is None
        assert scene.replica(110, cut_off=True) is not None
        assert scene.replica(125, timeline=2) is None


class TestWasPrimary:
    """A server that was the primary, and is a standby by now."""

    def test_receives_nothing(self) -> None:
        """It is set apart until it follows: it may have what no other server has."""
        scene = Scene()
        scene.primary(100)
        scene.promoted()
        why = scene.replica(130, cut_off=True)
        assert why is not None
        assert "was a primary before" in why
        assert scene.replica(100) is None
        assert scene.replica(100, cut_off=True) is None


class TestOwnWay:
    """A standby whose source was promoted beside the primary."""

    def test_newer_timeline(self) -> None:
        """It counts when the primary has said again that it is not on it."""
        scene = Scene()
        scene.primary(100)
        assert scene.replica(110, timeline=2) is None
        assert scene.status.wants_probe
        scene.primary(105)
        why = scene.replica(111, timeline=2)
        assert why is not None
        assert "follows timeline 2, and the primary is on timeline 1" in why

    def test_primary_follows(self) -> None:
        """It does not count where only an old connection led to the old primary."""
        scene = Scene()
        scene.primary(100)
        assert scene.replica(110, timeline=2) is None
        scene.primary(112, timeline=2)
        assert scene.replica(112, timeline=2) is None

    def test_primary_is_out(self) -> None:
        """Nor while the primary cannot be asked."""
        scene = Scene()
        scene.primary(100)
        assert scene.replica(110, timeline=2) is None
        scene.status.mark_unreachable()
        assert not scene.status.wants_probe
        assert scene.replica(115, timeline=2) is None
        assert scene.replica(120, timeline=2) is None

    def test_ahead(self) -> None:
        """What shows more than the primary has then is of another history."""
        scene = Scene()
        scene.primary(100)
        assert scene.replica(130, exact=False) is None
        scene.primary(110)
        assert scene.replica(131, exact=False) is None
        scene.primary(120)
        why = scene.replica(132, exact=False)
        assert why is not None
        assert "shows what the primary has not written" in why

    def test_stays_apart(self) -> None:
        """Until it was restarted: the primary may have written more meanwhile."""
        scene = Scene()
        scene.primary(100)
        for _ in range(3):
            why = scene.replica(130, exact=False)
            scene.primary(110)
        assert why is not None
        scene.primary(500)
        assert scene.replica(140, exact=False) == why
        assert scene.replica(140, cut_off=True) == why
        assert scene.replica(500, exact=False, started=9.0) is None

    def test_becomes_the_primary(self) -> None:
        """Where the primary's address leads to that history later, it is a copy."""
        scene = Scene()
        scene.primary(100)
        assert scene.replica(110, timeline=2) is None
        scene.primary(105)
        assert scene.replica(110, timeline=2) is not None
        scene.primary(130, timeline=2)
        assert scene.replica(130, timeline=2) is None

    def test_a_moment_ahead(self) -> None:
        """What the primary was asked for before proves nothing."""
        scene = Scene()
        for position in range(100, 200, 10):
            scene.primary(position)
            assert scene.replica(position + 9) is None
        assert not scene.status.doubted
