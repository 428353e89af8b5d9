"""Signals, and what log records say beside their text."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from flask import current_app, has_app_context

from balancers import Pool
from flask_replicated import WriteOnReplicaError, signals, using_slave
from flask_replicated.fleet.outage_log import OutageLog
from flask_replicated.routing.announcer import Announcer
from tests.balancers.support import FakeClock
from tests.fleets import Fleet, fleet_fixture
from tests.support import Build, break_file, build_fixture, make_file, pin_of

if TYPE_CHECKING:
    from collections.abc import Iterator

build = build_fixture
fleet = fleet_fixture

Heard = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def heard() -> Iterator[Heard]:
    """Give what all signals have told, with their names, in order."""
    found: Heard = []
    receivers = []
    for name in signals.__all__:

        def hear(app: Any, _name: str = name, **facts: Any) -> None:
            assert has_app_context()
            assert current_app == app
            found.append((_name, facts))

        getattr(signals, name).connect(hear)
        receivers.append(hear)
    yield found
    for name, receiver in zip(signals.__all__, receivers, strict=True):
        getattr(signals, name).disconnect(receiver)


def told(heard: Heard) -> list[tuple[str, str | None]]:
    """Return signals and replicas."""
    return [(name, facts["replica"]) for name, facts in heard]


@pytest.fixture
def weak(build: Build) -> Fleet:
    """Give a site with two replicas, which one failure takes out."""
    config: dict[str, Any] = {"REPLICATED_BREAKER_THRESHOLD": 1}
    config["REPLICATED_PROBE_INTERVAL"] = 0
    return Fleet(build, ("slave_1", "slave_2"), **config)


def test_out_and_back(
    weak: Fleet, heard: Heard, caplog: pytest.LogCaptureFixture
) -> None:
    """An outage is told once, and its end; all of them too. The log has the same."""
    caplog.set_level(logging.INFO, "flask_replicated")
    site = weak.site
    for name in ("slave_1", "slave_2"):
        break_file(site.folder, name)
    assert site.count(5) == {"master": 5}
    assert sorted(told(heard)[:2]) == [
        ("replica_out", "slave_1"),
        ("replica_out", "slave_2"),
    ]
    assert heard[2:] == [
        ("all_replicas_out", {"bind": None, "replica": None, "cause": "down"})
    ]
    for name in ("slave_1", "slave_2"):
        make_file(site.folder, name)
    heard.clear()
    with site.app.app_context():
        pool = weak.extension.pool()
        for name in ("slave_1", "slave_2"):
            pool.recover(pool.member(name))
    assert site.count(2) == {"slave_1": 1, "slave_2": 1}
    assert told(heard) == [
        ("replica_back", "slave_1"),
        ("replicas_serve_again", None),
        ("replica_back", "slave_2"),
    ]
    assert heard[0][1] == {"bind": None, "replica": "slave_1", "cause": "down"}
    events = {
        (record.__dict__["replicated_event"], record.__dict__["replicated_replica"])
        for record in caplog.records
        if "replicated_cause" in record.__dict__
        and "replicated_bind" in record.__dict__
    }
    assert events == {
        ("replica_out", "slave_1"),
        ("replica_out", "slave_2"),
        ("all_replicas_out", None),
        ("replica_back", "slave_1"),
        ("replica_back", "slave_2"),
        ("replicas_serve_again", None),
    }


def test_first_read(build: Build, caplog: pytest.LogCaptureFixture) -> None:
    """The first read that meets an outage logs its cause, with all breakers closed."""
    site = build(("slave_1", "slave_2"), REPLICATED_PROBE_INTERVAL=0)
    for name in ("slave_1", "slave_2"):
        break_file(site.folder, name)
    assert site.get() == "master"
    (record,) = [
        vars(one)
        for one in caplog.records
        if vars(one).get("replicated_event") == "all_replicas_out"
    ]
    assert record["replicated_cause"] == "down"


def test_by_hand(fleet: Fleet, heard: Heard) -> None:
    """Adding and removing are told; draining and restoring are not."""
    with fleet.site.app.app_context():
        for name in ("slave_1", "slave_2", "slave_3"):
            fleet.extension.pool().drain(name)
            fleet.extension.pool().restore(name)
    fleet.add("slave_4")
    fleet.remove("slave_4")
    assert told(heard) == [("replica_added", "slave_4"), ("replica_removed", "slave_4")]


def test_writes(fleet: Fleet, heard: Heard, caplog: pytest.LogCaptureFixture) -> None:
    """A refused write tells its endpoint and what refused it, a pin its kind."""
    caplog.set_level(logging.DEBUG, "flask_replicated")
    site = fleet.site
    site.app.add_url_rule("/refused", view_func=site.refused)
    site.get("/refused")
    site.client().post("/write")
    with site.app.app_context():
        site.write()
    assert heard == [
        (
            "write_refused",
            {"bind": None, "replica": None, "cause": "block", "endpoint": "refused"},
        ),
        ("pinned", {"bind": None, "replica": None, "cause": None, "kind": "time"}),
    ]
    records = [vars(one) for one in caplog.records if hasattr(one, "replicated_event")]
    assert [(one["replicated_event"], one["replicated_cause"]) for one in records] == [
        ("write_refused", "block"),
        ("pinned", None),
    ]


def test_a_receiver_that_raises(
    weak: Fleet, heard: Heard, caplog: pytest.LogCaptureFixture
) -> None:
    """It harms no read, no commit and no other receiver; what it raises is logged."""

    def fail(_app: Any, **_: Any) -> None:
        raise LookupError("no pager")

    def write(_app: Any, **_: Any) -> None:
        with weak.site.db.engine.begin() as connection:
            connection.execute(sa.insert(weak.site.entry).values(text="by it"))

    with (
        signals.replica_out.connected_to(fail),
        signals.pinned.connected_to(fail),
        signals.pinned.connected_to(write),
    ):
        assert weak.site.client().post("/write").status_code == 200
        break_file(weak.site.folder, "slave_1")
        assert weak.site.count(3) == {"slave_2": 3}
    assert weak.site.entries() == ["written", "by it"]
    assert told(heard) == [("pinned", None), ("replica_out", "slave_1")]
    assert caplog.text.count("a receiver of 'replica_out' has failed") == 1
    assert caplog.text.count("a receiver of 'pinned' has failed") == 1


@pytest.mark.parametrize("name", ["replica_out", "write_refused", "pinned"])
def test_a_receiver_has_sessions_of_its_own(weak: Fleet, name: str) -> None:
    """What it commits or rolls back is not what the request has begun."""
    site, found = weak.site, []

    def note(_app: Any, **_: Any) -> None:
        found.append(site.who())
        site.write("by it")
        site.db.session.add(site.entry(text="never"))
        site.db.session.rollback()

    def view() -> str:
        session = site.db.session
        session.add(site.entry(text="first"))
        with session.no_autoflush, using_slave():
            site.who()
            with pytest.raises(WriteOnReplicaError):
                session.execute(sa.insert(site.entry).values(text="refused"))
        session.commit()
        return "done"

    site.app.add_url_rule("/view", view_func=view, methods=["POST"])
    break_file(site.folder, "slave_1")
    with getattr(signals, name).connected_to(note):
        for _ in range(2):
            assert site.client().post("/view").text == "done"
    assert set(found) == {"master"}
    assert site.entries().count("by it") == len(found)
    assert site.entries().count("first") == 2
    assert len(site.entries()) == 2 + len(found)


def test_a_receiver_pins_nobody(weak: Fleet) -> None:
    """A request that has not written is not pinned by what a receiver writes."""
    site = weak.site
    break_file(site.folder, "slave_1")
    with signals.replica_out.connected_to(lambda _app, **_: site.write("by it")):
        answers = [site.client().get("/") for _ in range(3)]
    assert site.entries() == ["by it"]
    assert {one.text for one in answers} == {"slave_2"}
    assert {pin_of(one) for one in answers} == {None}


def test_an_app_without_receivers_of_its_own(build: Build, heard: Heard) -> None:
    """A receiver of one application hears nothing of another."""
    other = build(("slave_1",))
    own = build(("slave_1",))
    mine: list[Any] = []

    def hear(app: Any, **_: Any) -> None:
        mine.append(app)

    with signals.pinned.connected_to(hear, own.app):
        other.client().post("/write")
        own.client().post("/write")
    assert mine == [own.app]
    assert len(heard) == 2


class TestStorm:
    """A hundred replicas that die at once."""

    @pytest.fixture
    def pool(self, caplog: pytest.LogCaptureFixture) -> Pool[int]:
        """Give a pool of a hundred."""
        caplog.set_level(logging.WARNING, "flask_replicated")
        self.clock = FakeClock()
        self.log = OutageLog({}, clock=self.clock, announcer=Announcer())
        names = {f"slave_{number}": number for number in range(100)}
        pool = Pool(names, threshold=1, clock=self.clock, listeners=[self.log])
        self.log.live = lambda: pool.live
        return pool

    def test_summed_up(self, pool: Pool[int], caplog: pytest.LogCaptureFixture) -> None:
        """The first are logged one by one, the others in one line with their number."""
        self.log.lines.flushed = True
        for member in pool.members:
            pool.trip(member, 10, ConnectionRefusedError("refused"))
        self.log.lines.flush()
        assert len(caplog.records) == 3
        self.clock.now += 1
        self.log.lines.flush()
        self.log.lines.flush()
        assert len(caplog.text) < 2000
        (summary,) = caplog.messages[3:]
        assert summary.startswith("97 more replicas are out (down: 97): 'slave_3',")
        assert summary.endswith("and 87 more")
        assert caplog.records[3].__dict__["replicated_event"] == "replica_out"
        caplog.clear()
        self.clock.now += 5
        pool.recover(pool.members[0])
        self.log.lines.flush(all_of_them=True)
        assert caplog.messages == ["replica 'slave_0' is back"]

    def test_one_that_was_held_back(
        self, pool: Pool[int], caplog: pytest.LogCaptureFixture
    ) -> None:
        """A sum of one is that replica's own line, with its cause."""
        self.log.lines.flushed = True
        for member in pool.members[:4]:
            pool.trip(member, 10, ConnectionRefusedError("refused"))
        self.log.lines.flush(all_of_them=True)
        assert (
            caplog.messages[3]
            == "replica 'slave_3' is out: ConnectionRefusedError: refused"
        )
        assert caplog.records[3].__dict__["replicated_replica"] == "slave_3"

    def test_one_that_goes_out_again(
        self, pool: Pool[int], caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is one replica in the sum, however often it has come back meanwhile."""
        self.log.lines.flushed = True
        for _ in range(3):
            for member in pool.members[:5]:
                pool.trip(member, 10, ConnectionRefusedError("refused"))
                pool.recover(member)
        self.log.lines.flush(all_of_them=True)
        sums = [one for one in caplog.messages if "more replicas are out" in one]
        assert [one.partition(" ")[0] for one in sums] == ["5"]

    def test_nobody_sums_up(
        self, pool: Pool[int], caplog: pytest.LogCaptureFixture
    ) -> None:
        """Without a monitor nothing is held back."""
        for member in pool.members:
            pool.trip(member, 10, ConnectionRefusedError("refused"))
        assert len(caplog.records) == 100

    def test_of_many_threads(
        self, pool: Pool[int], caplog: pytest.LogCaptureFixture
    ) -> None:
        """No outage is lost between threads that log and the one that sums up."""
        self.log.lines.flushed = True

        def trip(part: int) -> None:
            for member in pool.members[part::4]:
                pool.trip(member, 10, ConnectionRefusedError("refused"))

        threads = [threading.Thread(target=trip, args=(part,)) for part in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            self.log.lines.flush(all_of_them=True)
        self.log.lines.flush(all_of_them=True)
        summed = sum(int(one.split()[0]) for one in caplog.messages if "more" in one)
        single = sum("is out" in one for one in caplog.messages)
        assert single + summed == 100
