"""How old is what a replica shows, by what is known of its primary."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_replicated.replica.fitness import ReplicaHistory, unfit_error
from flask_replicated.replica.lag import _MOST
from flask_replicated.replica.primary_status import (
    PrimaryReport,
    PrimaryStatus,
    TimedReport,
)
from flask_replicated.replica.replica_status import (
    ReplicaReport,
    covers,
    read_gtids,
    report_queries,
)
from tests.balancers.support import FakeClock
from tests.support import unhurried

UNKNOWN = RuntimeError("no such variable")


def says(position: int | dict[str, int] | None, **more: Any) -> PrimaryReport:
    """Return what a primary says."""
    given = {"": position} if isinstance(position, int) else position
    return PrimaryReport(False, True, position=given, **more)


def heard(*samples: tuple[float, int]) -> PrimaryStatus:
    """Return a primary that was seen to have positions at times."""
    status = PrimaryStatus()
    for when, position in samples:
        assert status.record_probe(
            TimedReport(says(position, timeline=1), when, when, anew=False)
        )
    return status


def standby(
    replayed: int, received: int | None = None, age: float = 900
) -> ReplicaReport:
    """Return what a PostgreSQL standby says; without *received* it is cut off."""
    lag = 0.0 if received == replayed else age
    pending = received is not None and received > replayed
    found = ReplicaReport(False, lag, True, received, replayed, pending=pending)
    return found._replace(age=age, timeline=1)


def lag(status: PrimaryStatus, found: ReplicaReport, now: float) -> float | None:
    """Return the lag of a replica that is seen for the first time."""
    return ReplicaHistory(status).judge(found, now).lag


class TestLag:
    """It is the time since the primary passed what the replica has replayed."""

    def test_silent_link(self) -> None:
        """One that seems to be in step, and shows less, is as old as what it lacks."""
        status = heard((0, 100), (5, 200), (10, 300))
        assert lag(status, standby(200, 200), now=12) == 2
        assert lag(status, standby(150, 150), now=12) == 7
        assert lag(status, standby(300, 300), now=12) == 0
        assert lag(status, standby(310, 310), now=12) == 0

    def test_idle_primary(self) -> None:
        """Who shows all that was written is in step, cut off or not."""
        status = heard((0, 100), (5, 100), (300, 100))
        assert lag(status, standby(100), now=304) == 0
        assert lag(status, standby(100, 100), now=304) == 0

    def test_wakes(self) -> None:
        """What comes after a long silence is as old as it is, not as the silence."""
        status = heard((0, 100), (300, 100), (305, 180))
        assert lag(status, standby(100), now=306) == 1
        assert lag(status, standby(100, 180), now=306) == 6

    def test_own_words(self) -> None:
        """Between two probes of the primary counts what the replica says."""
        status = heard((0, 100), (5, 200))
        assert lag(status, standby(150, 190, age=3), now=6) == 3
        assert lag(status, standby(150, 190, age=900), now=6) == 6
        assert lag(status, standby(190, 195, age=0.2), now=6) == 1

    def test_primary_is_out(self) -> None:
        """What cannot be received is held against none; what is not replayed is."""
        status = heard((0, 100), (5, 200))
        status.mark_unreachable()
        assert status.out
        assert lag(status, standby(200), now=500) == 0
        assert lag(status, standby(150), now=500) == 0
        assert lag(status, standby(80), now=500) == 900
        has_more = standby(200)._replace(pending=True)
        for found in (standby(200, 250), has_more):
            history = ReplicaHistory(status)
            for now in range(6, 60, 5):
                judged = history.judge(found, now)
            assert judged.lag == 51

    def test_primary_is_back(self) -> None:
        """The time that it was away for is no lag."""
        status = heard((0, 100), (5, 200))
        status.mark_unreachable()
        assert status.record_probe(
            TimedReport(says(250, timeline=1), 500, 501, anew=True)
        )
        assert not status.out
        assert lag(status, standby(200), now=503) == 2

    def test_primary_is_busy(self) -> None:
        """If it only turns this process away, the replica's own words count again."""
        status = heard((0, 100))
        status.mark_unreachable(lives=True)
        assert not status.out
        assert lag(status, standby(100, age=70), now=60) == 70

    def test_nothing_known(self) -> None:
        """Before the primary was asked, there are the replica's own words."""
        assert lag(PrimaryStatus(), standby(100, age=70), now=60) == 70
        assert lag(PrimaryStatus(), standby(100, 100), now=60) == 0

    def test_silent_from_the_start(self) -> None:
        """Who was behind at first, and says it is not, is as old as what it shows."""
        status = heard((100, 500), (105, 600))
        assert lag(status, standby(300, 300, age=90), now=100.5) == 0.5
        assert lag(status, standby(300, 300, age=90), now=106) == 90
        assert lag(status, standby(300, 300, age=2), now=106) == 6

    def test_behind_from_the_start(self) -> None:
        """So is who is cut off."""
        status = heard((100, 500))
        assert lag(status, standby(300, age=90), now=102) == 90
        assert lag(status, standby(300, age=1), now=102) == 2

    def test_lost_writes(self) -> None:
        """What a new primary does not have is forgotten; what is older is not."""
        status = heard((0, 100), (5, 200), (10, 300), (15, 250))
        assert lag(status, standby(200), now=16) == 1
        assert lag(status, standby(260, 260), now=16) == 0

    def test_another_cluster(self) -> None:
        """What was seen of another cluster tells nothing."""
        status = heard((0, 100), (5, 200))
        facts = says(150, system_identifier=7, timeline=1)
        status.record_probe(TimedReport(facts, 10, 10, anew=True))
        assert lag(status, standby(120, 120), now=10.5) == 0.5

    def test_successor(self) -> None:
        """An old connection that leads to a former primary is not believed."""
        status = heard((0, 100))
        assert status.accept(says(130, timeline=2))
        seen: list[tuple[int, bool]] = []
        for position, timeline, anew in (
            (110, 1, False),
            (130, 2, True),
            # A new connection is, even if it leads back.
            (140, 1, True),
        ):
            now = 5.0 + len(seen)
            facts = says(position, timeline=timeline)
            assert status.record_probe(TimedReport(facts, now, now, anew))
            seen.append((status.timeline, status.wants_probe))
        assert seen == [(2, True), (2, False), (1, False)]
        assert lag(status, standby(120, 120), now=7.5) == 1.5

    def test_tells_no_more(self) -> None:
        """Positions that grow old without others are not kept."""
        status = heard((0, 100))
        status.record_probe(TimedReport(says(None, timeline=1), 5, 5, anew=False))
        assert lag(status, standby(100, age=70), now=6) == 70

    def test_is_bounded(self) -> None:
        """Old positions are thinned out, and the lag is never more than it is."""
        status = heard(*((now, 10 * now) for now in range(5000)))
        assert len(status._positions._spans) <= _MOST
        for replayed in range(0, 49990, 397):
            behind = lag(status, standby(replayed, replayed), now=5000)
            assert behind is not None
            assert behind <= 5000 - replayed / 10 + 1

    @unhurried
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["write", "ask", "receive", "pass"]), st.integers(1, 9)
            ),
            min_size=5,
            max_size=80,
        )
    )
    def test_is_between(self, steps: list[tuple[str, int]]) -> None:
        """The age of what a replica lacks is between the two bounds."""
        status, position, shown = PrimaryStatus(), 0, 0
        written: list[tuple[int, int]] = []
        for now, (what, much) in enumerate(steps):
            if what == "write":
                position += much
                written.append((position, now))
            elif what == "ask":
                status.record_probe(TimedReport(says(position), now, now, anew=False))
            elif what == "receive":
                shown = min(position, shown + much)
            lacks = [when for end, when in written if end > shown]
            age = now - min(lacks) if lacks else 0
            bounds = status._positions.bounds({"": shown}, now, now)
            if bounds is not None:
                assert bounds.least <= age
                assert bounds.most is None or bounds.most >= age


class Standby:
    """A connection, and its cursor, to a standby that replays while it is asked."""

    def __init__(self, *rows: tuple[int, int]) -> None:
        self._rows = list(rows)
        self.waited = 0
        self._answer: tuple[Any, ...] = ()

    def cursor(self) -> Standby:
        """Return itself."""
        return self

    def execute(self, sql: str) -> None:
        """Answer with what was received and replayed by now."""
        if "pg_sleep" in sql:
            self.waited += 1
            return
        received, replayed = self._rows.pop(0)
        self._answer = (True, received, replayed, True, 600, 1, 1, 7.0)

    def fetchone(self) -> tuple[Any, ...]:
        """Return it."""
        return self._answer

    def close(self) -> None:
        """Do nothing."""


class TestMoments:
    """What has only just come is no lag, in a probe either."""

    def test_primary_is_back(self) -> None:
        """A standby that is seen before it has replayed the first of it stays."""
        status, clock = heard((0, 100)), FakeClock()
        history = ReplicaHistory(status, max_lag=30)
        clock.now = 1.0
        observers = report_queries("postgresql")
        history.ask(Standby((100, 100)), observers, clock)
        status.mark_unreachable()
        clock.now = 600.0
        server = Standby((180, 100), (250, 180))
        found = history.ask(server, observers, clock)
        assert server.waited == 1
        assert found.lag == 0

    def test_replays_nothing(self) -> None:
        """One that goes on to show nothing of it is behind after a few of them."""
        status, clock = heard((0, 100)), FakeClock()
        clock.now = 600.0
        server = Standby(*[(180, 100)] * 4)
        found = ReplicaHistory(status, max_lag=30).ask(
            server, report_queries("postgresql"), clock
        )
        assert server.waited == 3
        assert found.lag == 600


class TestStandby:
    """An address that leads to a standby."""

    def test_is_not_heard(self) -> None:
        """What it says is not the primary's."""
        status = heard((0, 100))
        facts = PrimaryReport(True, True, position={"": 50}, timeline=9)
        assert not status.record_probe(TimedReport(facts, 5, 5, anew=True))
        assert status.report.timeline == 1
        assert lag(status, standby(100, 100), now=6) == 0


class TestSubscriptions:
    """A logical subscriber is as old as what its slot has confirmed."""

    def test_disabled(self) -> None:
        """It falls behind while the primary writes, and others do not."""
        status = PrimaryStatus()
        for now, position, confirmed in ((0, 100, 100), (5, 200, 100), (10, 300, 100)):
            facts = says(position, slots={"one": confirmed, "two": position})
            status.record_probe(TimedReport(facts, now, now, anew=False))
        seen = ReplicaReport(primary=True, slots=("one",))
        found = ReplicaHistory(status).judge(seen, now=12)
        assert (found.lag, found.measured) == (5, True)
        found = ReplicaHistory(status).judge(seen._replace(slots=("two",)), now=12)
        assert (found.lag, found.measured) == (0, True)
        both = ReplicaHistory(status).judge(seen._replace(slots=("one", "two")), now=12)
        assert both.lag == 5

    def test_of_another_publisher(self) -> None:
        """A slot that the primary does not have tells nothing."""
        status = heard((0, 100))
        for slots in ((), ("elsewhere",)):
            seen = ReplicaReport(primary=True, slots=slots)
            found = ReplicaHistory(status).judge(seen, now=1)
            assert (found.lag, found.measured) == (None, False)


def replica(lag: float | None, measured: bool = True, **gtids: int) -> ReplicaReport:
    """Return what a MariaDB replica says."""
    known = False if measured else None
    return ReplicaReport(known, lag, measured, gtids=gtids or None)


class TestNumbers:
    """MariaDB and MySQL count what was written, in one stream or several."""

    @pytest.fixture
    def status(self) -> PrimaryStatus:
        """Give a primary with two streams."""
        status = PrimaryStatus()
        for now, a, b in ((0, 7, 3), (5, 9, 3), (10, 9, 4)):
            status.record_probe(
                TimedReport(says({"a": a, "b": b}), now, now, anew=False)
            )
        return status

    @pytest.mark.parametrize(
        ("found", "seconds"),
        [
            (replica(0, a=9, b=4), 0),
            (replica(0, a=9, b=3), 2),
            (replica(0, a=8, b=4), 7),
            (replica(40, a=9, b=4), 40),
            (replica(None, a=9, b=4), 0),
            (replica(None, a=9, b=3), 2),
            (replica(None, a=9), 0),
            (replica(None, a=1, b=1), None),
            (replica(None, c=1), None),
            (replica(None), None),
            (replica(3), 3),
        ],
    )
    def test_lag(
        self, status: PrimaryStatus, found: ReplicaReport, seconds: float | None
    ) -> None:
        """One whose lag its server does not know is judged by its numbers."""
        assert lag(status, found, now=12) == seconds

    def test_account_may_not_ask(self, status: PrimaryStatus) -> None:
        """Numbers tell where the server does not, and nothing else is assumed."""
        found = ReplicaHistory(status).judge(
            replica(None, measured=False, a=8, b=4), now=12
        )
        assert (found.lag, found.measured) == (7, True)
        found = ReplicaHistory(status).judge(replica(None, measured=False, c=8), now=12)
        assert (found.lag, found.measured) == (None, False)
        found = ReplicaHistory(status).judge(
            replica(None, measured=False, a=1, b=1), now=12
        )
        assert (found.lag, found.measured) == (12, True)

    def test_primary_is_out(self, status: PrimaryStatus) -> None:
        """While there is no source its lag is unknown, and not held against it."""
        status.mark_unreachable()
        assert lag(status, replica(None, a=9, b=4), now=500) == 0
        assert lag(status, replica(None, a=9, b=3), now=500) == 0
        stopped = replica(None, a=9, b=4)._replace(pending=True)
        assert lag(status, stopped, now=500) == 490


class Cursor:
    """A cursor that has its answers ready."""

    description = (("gtids",),)

    def __init__(self, *answers: Any) -> None:
        self._answers = list(answers)
        self._row: Any = None

    def execute(self, _sql: str) -> None:
        """Take the next answer."""
        self._row = self._answers.pop(0)
        if isinstance(self._row, Exception):
            raise self._row

    def fetchone(self) -> Any:
        """Return it."""
        return self._row


UUID = "3e11fa47-71ca-11e1-9e33-c80aa9429562"


@pytest.mark.parametrize(
    ("answers", "position"),
    [
        ([("0-1-270",)], {"0": 270}),
        ([("0-1-270,12-3-14",)], {"0": 270, "12": 14}),
        ([("",)], None),
        ([(None,)], None),
        ([UNKNOWN, (f"{UUID}:1-5",)], {UUID: 5}),
        ([UNKNOWN, (f"{UUID}:1-5:7:11-18,\nother:23",)], {UUID: 18, "other": 23}),
        (
            [UNKNOWN, (f"{UUID}:1-5:red:1-3:9:blue:4",)],
            {UUID: 5, f"{UUID}:red": 9, f"{UUID}:blue": 4},
        ),
        ([UNKNOWN, UNKNOWN], None),
    ],
)
def test_gtids(answers: list[Any], position: dict[str, int] | None) -> None:
    """The last number of each stream is read, in either server's notation."""
    assert read_gtids(Cursor(*answers), "mariadbs", "mysqls") == position


@pytest.mark.parametrize(
    ("shown", "wanted", "answer"),
    [
        ({"": 5}, {"": 5}, True),
        ({"": 4}, {"": 5}, False),
        ({"a": 4, "b": 1}, {"a": 4}, True),
        ({"a": 4}, {"a": 4, "b": 1}, True),
        ({"a": 3, "b": 9}, {"a": 4, "b": 1}, False),
        ({"a": 3}, {"b": 1}, None),
        ({}, {"b": 1}, None),
    ],
)
def test_covers(
    shown: dict[str, int], wanted: dict[str, int], answer: bool | None
) -> None:
    """Streams that only one of them has do not matter."""
    assert covers(shown, wanted) is answer


def test_faults() -> None:
    """What matters is said, the most certain first."""
    found = ReplicaReport(False, 5.0, measured=True, apart="it forked")
    assert "forked" in str(unfit_error("one", found, role_check=True, max_lag=1))
    assert "behind" in str(unfit_error("one", found, role_check=False, max_lag=1))
    assert unfit_error("one", found, role_check=False, max_lag=None) is None
    assert unfit_error("one", found, role_check=False, max_lag=5) is None
    untold = ReplicaReport(measured=False)
    assert unfit_error("one", untold, role_check=True, max_lag=0) is None
    unknown = ReplicaReport(measured=True)
    assert "unknown" in str(
        unfit_error("one", unknown, role_check=True, max_lag=math.inf)
    )
