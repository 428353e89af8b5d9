"""Several workers, and one command that reaches all of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from examples.cluster import wait_until
from flask_replicated.operations.directory_place import DirectoryPlace
from flask_replicated.operations.place import LOOKS
from flask_replicated.operations.redis_place import RedisPlace
from tests import pin_stores
from tests.chaos.workers import ROOT, started, uwsgi
from tests.support import make_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tests.chaos.workers import Gunicorn

redis_url = pin_stores.redis_url
redis_client = pin_stores.redis_client

MODULE = "tests.controlled:app"
CALLS = 60
_FEW = 4  # calls at a time, until every worker was heard
_NEXT = 2  # the look that is going on may have begun before the order
_GHOST = LOOKS + 2  # looks that surely take as long as LOOKS whole intervals


class Shop:
    """Workers of one application, and its commands."""

    def __init__(self, folder: Path, control: str) -> None:
        for name in ("master", "slave_1", "slave_2"):
            make_file(folder, name)
        config = {"name": f"shop-{uuid4()}", "folder": str(folder), "control": control}
        self.name, self.control = config["name"], control
        self.environment = {"CONTROLLED": json.dumps(config)}
        self.services: list[Gunicorn] = []

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command, in a process of its own."""
        return subprocess.run(
            [sys.executable, "-m", "flask", "--app", MODULE, "replicated", *words],
            cwd=ROOT,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            check=False,
        )

    def order(self, *words: str) -> None:
        """Run a command that must succeed."""
        result = self.run(*words)
        assert result.returncode == 0, result.stderr

    def status(self) -> dict[str, Any]:
        """Return what ``status`` prints."""
        found: dict[str, Any] = json.loads(self.run("status", "--json").stdout)
        return found

    def ask(self, page: str, calls: int = CALLS) -> list[dict[str, Any]]:
        """Return what so many calls are answered, by all services in turn."""
        found = []
        for number in range(calls):
            service = self.services[number % len(self.services)]
            status, fields = service.visitor().ask("GET", page)
            assert status == 200, fields
            found.append(fields)
        return found

    def looked(self, number: int, workers: set[int]) -> Callable[[], bool]:
        """Return a question whether one of these workers has ended so many looks."""
        first: dict[int, int] = {}

        def ask() -> bool:
            for one in self.ask("/own", _FEW):
                before = first.setdefault(one["pid"], one["looks"])
                if one["pid"] in workers and one["looks"] >= before + number:
                    return True
            return False

        return ask

    def within_one_look(self, page: str, obeys: Callable[[Any], bool]) -> None:
        """Check that each worker obeys by its next look, and so all calls after that.

        Args:
            page: What is asked.
            obeys: Whether an answer is as it was ordered.
        """
        workers = sum(one.workers for one in self.services)
        heard: dict[int, int] = {}
        late: set[int] = set()

        def all_had_a_look() -> bool:
            for one in self.ask(page, _FEW):
                before = heard.setdefault(one["pid"], one["looks"])
                if one["looks"] >= before + _NEXT:
                    assert obeys(one)
                    late.add(one["pid"])
            return len(late) == workers

        wait_until(all_had_a_look, "every worker to look", timeout=60)
        assert all(map(obeys, self.ask(page)))


def drained(answer: Mapping[str, Any]) -> bool:
    """Whether a worker says that slave_1 is drained."""
    return bool(answer["states"]["slave_1"] == "drained")


def restored(answer: Mapping[str, Any]) -> bool:
    """Whether a worker says that slave_1 serves."""
    return bool(answer["states"]["slave_1"] == "closed")


def served_by(*names: str) -> Callable[[Mapping[str, Any]], bool]:
    """Return a question whether one of these has served a read."""
    return lambda answer: answer["name"] in names


def serve(kind: str, shop: Shop) -> Any:
    """Return the workers of one kind, not started yet."""
    if kind == "gunicorn":
        options = {"--threads": 2, "--preload": ""}
        return started(MODULE, shop.environment, "/own", 3, options)
    return uwsgi(MODULE, shop.environment, "/own", 2)


@pytest.fixture(params=["gunicorn", "uwsgi"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    """Give workers with a directory as their control place."""
    program = Path(sys.executable).with_name(request.param)
    if find_spec("gunicorn") is None or not program.exists():
        pytest.skip(f"{request.param} is not installed")
    found = Shop(tmp_path, str(tmp_path / "control"))
    with serve(request.param, found) as service:
        found.services = [service]
        yield found


def test_one_command_for_all(shop: Shop) -> None:
    """Drain, off and on reach every worker, a later one too; none that died stays."""
    shop.order("drain", "slave_1")
    shop.within_one_look("/own", drained)
    assert all(map(served_by("slave_2"), shop.ask("/read")))
    shop.order("off")
    shop.within_one_look("/read", served_by("master"))
    shop.order("on")
    shop.within_one_look("/read", served_by("slave_2"))
    status = shop.status()
    number = shop.services[0].workers
    assert status["binds"][""]["replicas"][0]["workers"] == {"drained": number}
    before = {one["pid"] for one in status["workers"]}
    assert len(before) == number

    victim = shop.ask("/own", 1)[0]["pid"]
    os.kill(victim, signal.SIGKILL)
    late: list[dict[str, Any]] = []

    def replaced() -> bool:
        _, fields = shop.services[0].visitor().ask("GET", "/own")
        late.extend([fields] if fields.get("pid") not in {*before, None} else [])
        return bool(late)

    wait_until(replaced, "another worker", timeout=60)
    assert late[0]["states"]["slave_1"] == "drained"  # the first that it says
    place = DirectoryPlace(shop.control, shop.name)
    wait_until(shop.looked(_GHOST, before - {victim}), "others to look", timeout=60)
    alive = {*before, late[0]["pid"]} - {victim}
    assert {json.loads(one)["pid"] for one in place.accounts()} == alive
    shop.order("restore", "slave_1")
    shop.within_one_look("/own", restored)


def test_two_hosts(tmp_path: Path, redis_url: str, redis_client: Any) -> None:
    """With Redis two groups of workers that share no directory obey one command."""
    pytest.importorskip("gunicorn")
    shop = Shop(tmp_path, redis_url)
    with ExitStack() as stack:
        options = {"--threads": 2}
        for _ in range(2):
            group = started(MODULE, shop.environment, "/own", 2, options)
            shop.services.append(stack.enter_context(group))
        shop.order("drain", "slave_1")
        shop.within_one_look("/own", drained)
        assert all(map(served_by("slave_2"), shop.ask("/read")))
        assert len(shop.status()["workers"]) == 4
        shop.order("off")
        shop.within_one_look("/read", served_by("master"))
        shop.order("on")
        shop.within_one_look("/read", served_by("slave_2"))
        shop.order("restore", "slave_1")
        shop.within_one_look("/read", served_by("slave_1", "slave_2"))
        shop.within_one_look("/own", restored)
    place = RedisPlace(redis_client, shop.name)
    assert place.accounts() == []  # they took their leave
    for key in redis_client.scan_iter(
        f"flask_replicated:{{{shop.name}}}:*", count=10_000
    ):
        redis_client.delete(key)
