"""The control place: what workers tell there, and the orders that they obey."""

from __future__ import annotations

import json
import logging
import os
import time
from threading import Event, Thread
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from examples.cluster import wait_until
from examples.servers import free_port
from flask_replicated.operations import control as control_module
from flask_replicated.operations import directory_place, redis_place
from flask_replicated.operations.accounts import account_from
from flask_replicated.operations.control import CONTROL, Control
from flask_replicated.operations.directory_place import DirectoryPlace
from flask_replicated.operations.place import LOOKS, SWITCH, OrderKey, new_order
from flask_replicated.operations.redis_place import RedisPlace
from tests import pin_stores
from tests.fleets import Fleet, fleet_fixture
from tests.support import Build, build_fixture

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from flask_replicated.operations.place import ControlPlace, Orders

build = build_fixture
fleet = fleet_fixture
redis_url = pin_stores.redis_url
redis_client = pin_stores.redis_client

DRAIN = OrderKey("drain", None, "slave_1")
HOSTILE = OrderKey("drain", "a/../b\n\x00", "slave_'\";DROP")


HUGE = 10**400  # JSON may have such a number


def orders_text(**parts: object) -> str:
    """Return a file with one order, of which some parts are others."""
    order = {"id": "x", "value": 1, "until": None, **parts}
    return json.dumps({json.dumps(DRAIN): json.dumps(order)})


class PlaceContract:
    """What holds of every control place; a subclass makes them."""

    def test_orders(self, place: ControlPlace, other: ControlPlace) -> None:
        """There is none at first; each stays until another one about the same."""
        assert place.read_orders() is None
        first, second, third = new_order(True, 60), new_order(False), new_order(3)
        place.put_order(DRAIN, first)
        place.put_order(HOSTILE, third)
        place.put_order(DRAIN, second)
        assert place.read_orders() == {DRAIN: second, HOSTILE: third}
        assert other.read_orders() is None

    def test_accounts(self, place: ControlPlace, other: ControlPlace) -> None:
        """An account is there until its time is over, or it is withdrawn."""
        for name in ("one", "two", "three"):
            place.publish(name, json.dumps({"it": name}), 60)
        place.publish("two", json.dumps({"it": "new"}), 60)
        place.publish("three", json.dumps({"it": "old"}), 0.01)
        place.withdraw("one")
        place.withdraw("nobody")
        time.sleep(0.02)
        assert [json.loads(one)["it"] for one in place.accounts()] == ["new"]
        assert other.accounts() == []

    def test_reports(
        self, place: ControlPlace, other: ControlPlace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A report stays, as the latest of its worker; of many workers the latest."""
        for module in (directory_place, redis_place):
            monkeypatch.setattr(module, "MOST_REPORTS", 3)
        for name in ("one", "two", "one", "three", "a/../b\n", "five"):
            place.keep_report(name, json.dumps({"it": name}))
            place.withdraw(name)
            time.sleep(0.02)  # files tell their age by the clock's ticks
        found = sorted(json.loads(one)["it"] for one in place.reports())
        assert found == ["a/../b\n", "five", "three"]
        assert place.accounts() == other.reports() == []

    def test_reports_are_cleared(
        self, place: ControlPlace, other: ControlPlace
    ) -> None:
        """All reports are removed, and nothing else; later ones are kept."""
        place.clear_reports()
        place.put_order(DRAIN, order := new_order(True))
        for name in ("one", "two"):
            place.publish(name, json.dumps({"it": name}), 60)
            place.keep_report(name, json.dumps({"it": name}))
            other.keep_report(name, json.dumps({"it": "other"}))
        place.clear_reports()
        assert place.reports() == []
        assert (len(other.reports()), len(place.accounts())) == (2, 2)
        assert place.read_orders() == {DRAIN: order}
        place.keep_report("two", json.dumps({"it": "later"}))
        assert [json.loads(one)["it"] for one in place.reports()] == ["later"]

    def test_damage(self, place: ControlPlace, damage: Any) -> None:
        """What is damaged is an error, and the next order replaces it."""
        place.put_order(SWITCH, new_order(True))
        damage()
        with pytest.raises(ValueError, match=r".+"):
            place.read_orders()
        order = new_order(True)
        place.put_order(DRAIN, order)
        assert place.read_orders() == {DRAIN: order}


class TestDirectory(PlaceContract):
    """A directory."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        """Give the path of a directory that is not there yet."""
        return tmp_path / "run" / "control"

    @pytest.fixture
    def place(self, path: Path) -> DirectoryPlace:
        """Give the place of one application."""
        return DirectoryPlace(str(path), "shop")

    @pytest.fixture
    def other(self, path: Path) -> DirectoryPlace:
        """Give that of another one, whose name begins alike."""
        return DirectoryPlace(str(path), "shop@worker")

    @pytest.fixture(
        params=[
            *("{", "[]", '{"[]": "{}"}', '{"a": 1}', "\x00", "[" * 99999),
            orders_text(until=HUGE),
            orders_text(value=HUGE),
        ]
    )
    def damage(self, request: Any, path: Path) -> Any:
        """Give a function that damages the file of orders."""
        return lambda: (path / "shop@orders.json").write_text(request.param)

    def test_permissions(self, place: DirectoryPlace, path: Path) -> None:
        """Only its user may read or write; no file is left half written."""
        place.publish("one", "{}", 60)
        place.put_order(DRAIN, new_order(True))
        assert path.stat().st_mode & 0o777 == 0o700
        assert {one.stat().st_mode & 0o777 for one in path.iterdir()} == {0o600}
        assert len(list(path.iterdir())) == 2

    def test_what_others_may_write(self, place: DirectoryPlace, path: Path) -> None:
        """A directory that anybody may write to is not believed, nor a link."""
        place.put_order(DRAIN, new_order(True))
        path.chmod(0o777)
        with pytest.raises(PermissionError, match="nobody else may write"):
            place.read_orders()
        path.chmod(0o700)
        (path / "shop@orders.json").rename(path / "elsewhere")
        (path / "shop@orders.json").symlink_to(path / "elsewhere")
        with pytest.raises(ValueError, match="not a file of this user's"):
            place.read_orders()

    @pytest.mark.skipif(
        not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can"
    )
    def test_a_foreign_owner(self, place: DirectoryPlace, path: Path) -> None:
        """A file of another user's is not believed; root's are handed to the owner."""
        place.publish("one", "{}", 60)
        place.put_order(DRAIN, new_order(True))
        for file in path.iterdir():
            os.chown(file, 12345, 12345)
        assert place.accounts() == []
        with pytest.raises(ValueError, match="not a file of this user's"):
            place.read_orders()
        os.chown(path, 12345, 12345)
        assert place.read_orders() is not None
        place.put_order(SWITCH, new_order(True))
        assert (path / "shop@orders.json").stat().st_uid == 12345

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has none")
    def test_what_is_no_file(self, place: DirectoryPlace, path: Path) -> None:
        """A pipe or a directory in place of a file is not waited for, nor believed."""
        place.publish("one", json.dumps({"it": "one"}), 60)
        for make, name in ((os.mkfifo, "pipe"), (os.mkdir, "directory")):
            make(path / f"shop@worker@{name}.json")
            make(path / "shop@orders.json")
            with pytest.raises(ValueError, match="not a file of this user's"):
                place.read_orders()
            (path / "shop@orders.json").rename(path / name)
        assert [json.loads(one)["it"] for one in place.accounts()] == ["one"]

    def test_what_was_left_behind(self, place: DirectoryPlace, path: Path) -> None:
        """Accounts of workers that were killed are removed; other files stay."""
        place.publish("killed", "{}", 60)
        for name in ("shop@new@half.json", ".else.json"):
            (path / name).write_text("{")
        for file in path.iterdir():
            os.utime(file, (1, 1))
        assert place.accounts() == []
        DirectoryPlace(str(path), "shop").publish("alive", "{}", 60)
        assert {one.name for one in path.iterdir()} == {
            ".else.json",
            "shop@worker@alive.json",
        }


class TestRedis(PlaceContract):
    """Redis."""

    def test_a_cluster(self, place: RedisPlace, redis_client: Any, name: str) -> None:
        """All keys are in one slot of a cluster, as they are asked for together."""
        slots = pytest.importorskip("redis.crc").key_slot
        place.put_order(SWITCH, new_order(0))
        for worker in ("one", "two"):
            place.publish(worker, "{}", 9.0)
        keys = list(redis_client.scan_iter(f"flask_replicated:{{{name}*", count=10_000))
        assert len(keys) == 4
        assert len(set(map(slots, keys))) == 1

    @pytest.fixture
    def name(self, redis_client: Any) -> Iterator[str]:
        """Give the name of an application, and remove its keys."""
        name = f"test-{uuid4()}"
        yield name
        for key in redis_client.scan_iter(f"flask_replicated:{{{name}*", count=10_000):
            redis_client.delete(key)

    @pytest.fixture
    def place(self, redis_client: Any, name: str) -> RedisPlace:
        """Give the place of one application."""
        return RedisPlace(redis_client, name)

    @pytest.fixture
    def other(self, redis_client: Any, name: str) -> RedisPlace:
        """Give that of another one, whose name begins alike."""
        return RedisPlace(redis_client, f"{name}:worker")

    @pytest.fixture(params=["text", "field"])
    def damage(self, request: Any, redis_client: Any, name: str) -> Any:
        """Give a function that damages the orders."""
        key = f"flask_replicated:{{{name}}}:orders"

        def damage() -> None:
            if request.param == "text":
                redis_client.set(key, "text")
            else:
                redis_client.hset(key, "[]", "{}")

        return damage


def controlled(build: Build, path: Path, **config: Any) -> Fleet:
    """Return a site whose worker has a control place."""
    return Fleet(build, REPLICATED_CONTROL=str(path), **config)


def control(fleet: Fleet) -> Control:
    """Return the worker's part in its control place."""
    found: Control = fleet.site.app.extensions[CONTROL]
    return found


def states(fleet: Fleet) -> dict[str, str]:
    """Return the state of each replica that is not closed."""
    with fleet.site.app.app_context():
        members = fleet.extension.snapshot()[None].members
    return {one.name: one.state for one in members if one.state != "closed"}


class TestWorker:
    """Control."""

    def test_before_the_first_pick(self, build: Build, tmp_path: Path) -> None:
        """A worker that starts later obeys with its first read, or snapshot."""
        place = DirectoryPlace(str(tmp_path), "site")
        for name in ("slave_1", "slave_2"):
            place.put_order(OrderKey("drain", None, name), new_order(True))
        fleet = controlled(build, tmp_path)
        app = fleet.site.app.name
        for file in tmp_path.glob("*orders.json"):
            file.rename(tmp_path / f"{app}@orders.json")
        assert fleet.site.count(4) == {"slave_3": 4}
        other = controlled(build, tmp_path)
        assert states(other) == {"slave_1": "drained", "slave_2": "drained"}
        control(other).place.put_order(SWITCH, new_order(False))
        late = controlled(build, tmp_path)
        assert late.site.count(1) == {"master": 1}

    def test_orders(self, build: Build, tmp_path: Path) -> None:
        """Drain, restore, off and on hold from the next look; each is obeyed once."""
        fleet = controlled(build, tmp_path)
        site, worker = fleet.site, control(fleet)
        site.count(3)
        worker.place.put_order(DRAIN, new_order(True))
        worker.look_now()
        assert states(fleet) == {"slave_1": "drained"}
        with site.app.app_context():
            fleet.extension.pool().restore("slave_1")
            fleet.extension.pool().drain("slave_2")
        worker.look_now()
        assert states(fleet) == {"slave_2": "drained"}
        worker.place.put_order(DRAIN._replace(replica="slave_2"), new_order(False))
        worker.place.put_order(SWITCH, new_order(False))
        worker.look_now()
        assert states(fleet) == {}
        assert site.count(3) == {"master": 3}
        worker.place.put_order(SWITCH, new_order(True))
        worker.look_now()
        assert set(site.count(6)) == {"slave_1", "slave_2", "slave_3"}

    def test_the_first_order_of_all(self, build: Build, tmp_path: Path) -> None:
        """An order that takes back what a program has called is obeyed, too."""
        fleet = controlled(build, tmp_path)
        with fleet.site.app.app_context():
            fleet.extension.pool().drain("slave_1")
        control(fleet).look_now()
        assert states(fleet) == {"slave_1": "drained"}
        control(fleet).place.put_order(DRAIN, new_order(False))
        control(fleet).look_now()
        assert states(fleet) == {}

    def test_for_some_time(self, build: Build, tmp_path: Path) -> None:
        """A drain with an end is over by itself, also before a worker starts."""
        fleet = controlled(build, tmp_path)
        worker = control(fleet)
        fleet.site.count(1)
        order = new_order(True, 60)
        worker.place.put_order(DRAIN, order)
        worker.look_now()
        assert states(fleet) == {"slave_1": "drained"}
        worker.place.put_order(DRAIN, order._replace(until=time.time() - 1))
        worker.look_now()
        assert states(fleet) == {}
        late = controlled(build, tmp_path)
        with late.site.app.app_context():
            late.extension.pool().drain("slave_1")
        control(late).look_now()
        assert states(late) == {"slave_1": "drained"}

    def test_switched_off(self, build: Build, tmp_path: Path) -> None:
        """The reason of a read tells the order from the setting."""
        fleet = controlled(build, tmp_path, REPLICATED_EXPLAIN=True)
        control(fleet).place.put_order(SWITCH, new_order(False))
        client = fleet.site.app.test_client()
        shown = client.get("/").headers["Server-Timing"]
        assert shown == 'db;desc="primary: reads are switched off by order"'

    def test_configured_off(self, build: Build, tmp_path: Path) -> None:
        """No order switches on what the configuration has switched off."""
        fleet = controlled(build, tmp_path, AUTO_READ_ON_SLAVE=False)
        control(fleet).place.put_order(SWITCH, new_order(True))
        assert fleet.site.count(2) == {"master": 2}

    def test_a_replica_that_comes_later(self, build: Build, tmp_path: Path) -> None:
        """An order holds for a replica that is added under its name later."""
        fleet = controlled(build, tmp_path)
        worker = control(fleet)
        worker.place.put_order(DRAIN._replace(replica="slave_4"), new_order(True))
        fleet.site.count(1)
        fleet.add("slave_4")
        assert states(fleet) == {}
        worker.look_now()
        assert states(fleet) == {"slave_4": "drained"}

    def test_a_place_that_fails(
        self, build: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Orders that are damaged, or a full place, change nothing; said once."""
        caplog.set_level(logging.WARNING, "flask_replicated")
        fleet = controlled(build, tmp_path / "place")
        worker = control(fleet)
        worker.place.put_order(DRAIN, new_order(True))
        fleet.site.count(1)
        worker.stop(self)
        (tmp_path / "place" / f"{fleet.site.app.name}@orders.json").write_text("{")
        for _ in range(3):
            worker.look_now()
        assert states(fleet) == {"slave_1": "drained"}
        (line,) = caplog.messages
        assert "the last known ones stay" in line
        caplog.clear()
        worker.place.put_order(SWITCH, new_order(True))
        worker.look_now()
        assert states(fleet) == {"slave_1": "drained"}
        assert caplog.messages == ["REPLICATED_CONTROL: the place can be read again"]

    def test_orders_that_are_lost(
        self, build: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A worker keeps to orders that vanish, and says once what that means."""
        fleet = controlled(build, tmp_path)
        worker = control(fleet)
        fleet.site.count(1)
        worker.stop(self)
        worker.look_now()
        worker.place.put_order(DRAIN, new_order(True))
        worker.look_now()
        (tmp_path / f"{fleet.site.app.name}@orders.json").unlink()
        for _ in range(3):
            worker.look_now()
        assert states(fleet) == {"slave_1": "drained"}
        (line,) = [one for one in caplog.messages if "REPLICATED_CONTROL" in one]
        assert "give them again" in line

    @pytest.mark.parametrize("after", ["", "{", "another"])
    def test_its_end_without_the_place(
        self,
        build: Build,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        after: str,
    ) -> None:
        """A drain with an end is over in time, though the place has lost the order."""
        fleet = controlled(build, tmp_path)
        worker = control(fleet)
        fleet.site.count(1)
        worker.stop(self)
        worker.place.put_order(DRAIN, new_order(True, 60))
        worker.look_now()
        assert states(fleet) == {"slave_1": "drained"}
        orders = tmp_path / f"{fleet.site.app.name}@orders.json"
        orders.write_text(after) if after == "{" else orders.unlink()
        if after == "another":
            worker.place.put_order(SWITCH, new_order(True))
        worker.look_now()
        assert states(fleet) == {"slave_1": "drained"}
        later = time.time() + 61
        monkeypatch.setattr(time, "time", lambda: later)
        worker.look_now()
        assert states(fleet) == {}

    def test_the_end_of_a_place_that_fails(
        self,
        build: Build,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """At its end a worker does not turn again to a place that takes nothing."""
        fleet = controlled(build, tmp_path / "place")
        worker = control(fleet)

        def publish(*_: object) -> None:
            raise OSError("the file system is read-only")

        monkeypatch.setattr(worker.place, "publish", publish)
        fleet.site.count(1)
        worker.look_now()
        worker.end()
        told = [line for line in caplog.messages if "REPLICATED_CONTROL" in line]
        assert len(told) == 1
        assert "cannot be shown to others" in told[0]

    @pytest.mark.parametrize("redis", [False, True])
    def test_unreachable(
        self,
        build: Build,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        *,
        redis: bool,
    ) -> None:
        """Where there can be no place, reads go on, and two lines say so, once."""
        caplog.set_level(logging.WARNING, "flask_replicated")
        (tmp_path / "file").write_text("")
        place = str(tmp_path / "file" / "place")
        if redis:
            pytest.importorskip("redis")
            place = f"redis://ann:hunter2@127.0.0.1:{free_port()}/0"
        fleet = Fleet(build, REPLICATED_CONTROL=place)
        assert len(fleet.site.count(6)) == 3
        worker = control(fleet)
        worker.look_now()
        worker.look_now()
        assert len(caplog.messages) == 2
        assert "hunter2" not in caplog.text

    def test_its_account(self, build: Build, tmp_path: Path) -> None:
        """A worker tells its host and its replicas' states, and no password."""
        secret = "hunter2"
        fleet = controlled(build, tmp_path, SECRET_KEY=secret)
        fleet.site.count(3)
        worker = control(fleet)
        worker.look_now()
        (text,) = worker.place.accounts()
        account = account_from(text)
        assert account is not None
        assert (account.pid, account.off) == (os.getpid(), False)
        assert json.loads(text)["seconds"] == LOOKS * worker.look
        assert [one["name"] for one in account.binds[""]] == [
            "slave_1",
            "slave_2",
            "slave_3",
        ]
        assert secret not in text
        worker.end()
        assert worker.place.accounts() == []


@pytest.mark.parametrize("look", [0.1, 5.0])
def test_its_pace(monkeypatch: pytest.MonkeyPatch, look: float) -> None:
    """From the end of one look to the next no more than the interval goes by."""
    waited: list[float] = []

    class Alarm(control_module._Alarm):
        def wait(self, seconds: float) -> None:
            self.stopped = len(waited) > 5
            waited.append(seconds)

    def sleep(seconds: float) -> None:
        waited[-1] += seconds

    monkeypatch.setattr(control_module, "time", SimpleNamespace(sleep=sleep))
    worker: Any = SimpleNamespace(look_now=lambda: None)
    control_module._run(lambda: worker, Alarm(), look)
    assert len(waited) == 7
    assert all(look / 2 < one <= look for one in waited)


def test_an_order_that_was_read_earlier(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two threads that look at a time, the one with the older orders is not last."""
    fleet = controlled(build, tmp_path)
    fleet.site.count(1)
    worker = control(fleet)
    read, begun, go_on = worker.place.read_orders, Event(), Event()

    def read_late() -> Orders | None:
        found = read()
        if not begun.is_set():
            begun.set()
            go_on.wait(20)
        return found

    worker.place.put_order(DRAIN, new_order(True))
    monkeypatch.setattr(worker.place, "read_orders", read_late)
    first = Thread(target=worker.look_now)
    first.start()
    assert begun.wait(20)
    worker.place.put_order(DRAIN, new_order(False))
    second = Thread(target=worker.look_now)
    second.start()
    second.join(0.2)  # it waits for the first one, or has obeyed before it
    go_on.set()
    for one in (first, second):
        one.join(20)
    assert states(fleet) == {}


def test_it_ends_while_it_tells(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that ends in that moment leaves no account behind."""
    fleet = controlled(build, tmp_path)
    fleet.site.count(1)
    worker = control(fleet)
    worker.look_now()
    publish = worker.place.publish

    def publish_late(*account: Any) -> None:
        worker.end()
        publish(*account)

    monkeypatch.setattr(worker.place, "publish", publish_late)
    worker.look_now()
    assert worker.place.accounts() == []


SHOWN = {
    "name": "slave_1",
    "state": "closed",
    "reason": None,
    "since": 1.0,
    "lag_seconds": None,
    "weight": 1,
    "host": None,
    "port": None,
}


@pytest.mark.parametrize(
    "change",
    [
        {"host": 5},
        {"host": "x" * 501},
        {"host": "\ud800"},
        {"pid": True},
        {"seen": float("nan")},
        {"seen": HUGE},
        {"seen": 1e12},
        {"binds": {"": [{**SHOWN, "weight": HUGE}]}},
        {"binds": {"": [{**SHOWN, "since": -1}]}},
        {"off": None},
        {"binds": []},
        {"binds": {"": [{}]}},
        {"binds": {"": None}},
        {"binds": {"\ud800": []}},
    ],
)
def test_what_is_no_account(change: dict[str, Any]) -> None:
    """What others have written is believed only if every part is of its kind."""
    sound = {"host": "h", "pid": 1, "seen": 1.0, "off": False, "binds": {"": [SHOWN]}}
    assert account_from(json.dumps(sound)) is not None
    assert account_from(json.dumps({**sound, **change})) is None


def test_a_change_is_told_at_once(build: Build, tmp_path: Path) -> None:
    """Others know of an outage before the worker's next look is due."""
    fleet = controlled(build, tmp_path, REPLICATED_PROBE_INTERVAL=600)
    worker = control(fleet)
    worker.look = 600.0
    fleet.site.count(3)

    def shown() -> list[str]:
        accounts = map(account_from, worker.place.accounts())
        return [one.binds[""][0]["state"] for one in accounts if one is not None]

    wait_until(lambda: shown() == ["closed"], "the first account")
    with fleet.site.app.app_context():
        pool = fleet.extension.pool()
        pool.trip(pool.member("slave_1"), 60, ConnectionRefusedError("refused"))
    wait_until(lambda: shown() == ["open"], "the outage to be told")
    worker.end()


def test_a_forked_child(build: Build, tmp_path: Path) -> None:
    """A child begins anew: it is a worker of its own, and its parent goes on."""
    fleet = controlled(build, tmp_path)
    worker = control(fleet)
    fleet.site.count(3)
    wait_until(lambda: len(worker.place.accounts()) == 1, "the first account")
    child = os.fork()
    if child == 0:
        os._exit(0 if fleet.site.count(1) and _is_known(worker) else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    worker.look_now()
    pids = {json.loads(one)["pid"] for one in worker.place.accounts()}
    assert pids == {os.getpid(), child}


def _is_known(worker: Control) -> bool:
    wait_until(lambda: len(worker.place.accounts()) == 2, "another account")
    return True
