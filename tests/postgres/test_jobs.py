"""Background jobs of the examples see what was written before them, on any server."""

from __future__ import annotations

import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from examples.cluster import wait_until
from examples.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from examples.cluster import Cluster, Standby

pytestmark = [
    pytest.mark.postgres,
    # Celery stores results by a method that redis-py has deprecated.
    pytest.mark.filterwarnings("ignore:Call to deprecated:DeprecationWarning"),
]

ROOT = Path(__file__).parents[2]
RABBITMQ = os.environ.get("RABBITMQ_URL", "amqp://guest:guest@localhost:5672//")
KINDS = ("celery redis", "celery rabbitmq", "rq redis")
WAYS = ("", "/explicit")


class Jobs:
    """An application that sends jobs, and a worker of its own that runs them.

    A subclass knows the library.

    Args:
        library: ``celery`` or ``rq``.
        settings: Of the application.
        folder: Where to keep notes and the worker's log.
    """

    def __init__(self, library: str, settings: dict[str, Any], folder: Path) -> None:
        self.module = importlib.import_module(f"examples.jobs_{library}")
        self.app = self.module.create_app(**settings)
        self._notes, self._log = folder / "notes", folder / "log"
        with self.app.app_context():
            self.module.db.create_all()
        with self._log.open("w") as log:
            self._worker = subprocess.Popen(
                [sys.executable, "-m", "tests.postgres.jobs_worker", library],
                env={
                    **os.environ,
                    "JOBS": json.dumps(settings),
                    "NOTES": str(self._notes),
                },
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def post(self, path: str) -> tuple[int, str]:
        """Send a request; return the ids of its order and of its job."""
        response = self.app.test_client().post(path)
        assert response.status_code == 200, response.text
        return response.json["order"], response.json["job"]

    def result(self, job: str) -> str:
        """Wait for a job; return what it returns."""
        try:
            return str(self._result(job))
        except BaseException:
            sys.stderr.write(self._log.read_text()[-3000:])
            raise

    def _result(self, job: str) -> object:
        raise NotImplementedError

    def receipt(self, order: int) -> str:
        """Send a job outside a request; return its id."""
        raise NotImplementedError

    def ship_and_receipt(self, order: int) -> str:
        """Send a job and one that follows it; return the second one's id."""
        raise NotImplementedError

    @contextmanager
    def in_process(self) -> Iterator[None]:
        """Run jobs where they are sent."""
        self._run_in_process(True)
        try:
            yield
        finally:
            self._run_in_process(False)

    def _run_in_process(self, here: bool) -> None:
        raise NotImplementedError

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let no job be picked up inside the block."""
        self._worker.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._worker.send_signal(signal.SIGCONT)

    def served(self) -> set[str]:
        """Return the binds that jobs have sent statements to since the last call."""
        found = set(self._notes.read_text().split())
        self._notes.unlink()
        return found

    def stop(self) -> None:
        """End the worker, and close connections."""
        self._worker.send_signal(signal.SIGTERM)
        try:
            self._worker.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(self._worker.pid, signal.SIGKILL)
            self._worker.wait()
        with self.app.app_context():
            for engine in self.module.db.engines.values():
                engine.dispose()


class CeleryJobs(Jobs):
    """Tasks of Celery, in a worker that has forked a process for them."""

    def __init__(self, settings: dict[str, Any], folder: Path) -> None:
        super().__init__("celery", settings, folder)
        self.celery = self.app.extensions["celery"]

    def _result(self, job: str) -> object:
        return self.celery.AsyncResult(job).get(timeout=60)

    def receipt(self, order: int) -> str:
        """Send a task outside a request."""
        return str(self.module.receipt.delay(order).id)

    def ship_and_receipt(self, order: int) -> str:
        """Send a chain."""
        chain = self.module.ship.si(order) | self.module.receipt.si(order)
        return str(chain.delay().id)

    def _run_in_process(self, here: bool) -> None:
        self.celery.conf.task_always_eager = here

    def stop(self) -> None:
        """Remove the queue, too."""
        super().stop()
        queue = self.celery.conf.task_default_queue
        with self.celery.connection_for_write() as connection:
            connection.default_channel.queue_delete(queue)
            if connection.transport_cls == "amqp":
                connection.default_channel.exchange_delete(queue)
        self.celery.backend.client.close()
        self.celery.close()
        importlib.import_module("kombu.pools").reset()
        # Let go of the application.
        type(self.celery)("none").set_default()


class RqJobs(Jobs):
    """Jobs of RQ, for each of which its worker forks."""

    def __init__(self, settings: dict[str, Any], folder: Path) -> None:
        super().__init__("rq", settings, folder)
        self.queue = self.app.extensions["queue"]

    def _result(self, job: str) -> object:
        found = self.queue.fetch_job(job)
        wait_until(
            lambda: found.is_finished or found.is_failed, "the job to end", timeout=60
        )
        result = found.latest_result()
        assert result.exc_string is None, result.exc_string
        return result.return_value

    def receipt(self, order: int) -> str:
        """Enqueue a job outside a request."""
        return str(self.queue.enqueue(self.module.receipt, order).id)

    def ship_and_receipt(self, order: int) -> str:
        """Enqueue a job that depends on another."""
        first = self.queue.enqueue(self.module.ship, order)
        second = self.queue.enqueue(self.module.receipt, order, depends_on=first)
        return str(second.id)

    def _run_in_process(self, here: bool) -> None:
        self.queue._is_async = not here

    def stop(self) -> None:
        """Close the connection to Redis, too."""
        super().stop()
        self.queue.connection.close()


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give the URL of a Redis server of these tests' own."""
    redis = pytest.importorskip("redis", reason="redis is not installed")
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    port, folder = free_port(), tmp_path_factory.mktemp("redis")
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1"]
    server = subprocess.Popen(
        [*command, "--save", "", "--dir", str(folder)], stdout=subprocess.DEVNULL
    )

    def answers() -> bool:
        with redis.Redis(port=port) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False

    wait_until(answers, "Redis to start", timeout=30)
    yield f"redis://127.0.0.1:{port}/0"
    server.kill()
    server.wait()


def broker_of(kind: str, redis_url: str) -> str:
    """Return the URL of a broker that can be reached."""
    if kind != "rabbitmq":
        return redis_url
    kombu = pytest.importorskip("kombu")
    with kombu.Connection(RABBITMQ, connect_timeout=3) as connection:
        try:
            connection.connect()
        except connection.connection_errors:
            pytest.skip("no RabbitMQ server can be reached")
    return RABBITMQ


@pytest.fixture(scope="module", params=KINDS)
def jobs(
    request: pytest.FixtureRequest,
    cluster: Cluster,
    redis_url: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Jobs]:
    """Give an application of each kind, and its worker."""
    library, broker = request.param.split()
    pytest.importorskip(library, reason=f"{library} is not installed")
    queue = f"flask_replicated_{uuid4().hex}"
    celery = {
        "broker_url": broker_of(broker, redis_url),
        "result_backend": redis_url,
        "task_default_queue": queue,
        "task_store_eager_result": True,
        "worker_enable_remote_control": False,
        "worker_hijack_root_logger": False,
        "broker_connection_retry_on_startup": True,
    }
    settings = {
        "SECRET_KEY": "not-a-secret",
        "SQLALCHEMY_DATABASE_URI": cluster.primary.url("postgresql+psycopg"),
        "SQLALCHEMY_BINDS": {
            f"slave_{number}": standby.url("postgresql+psycopg")
            for number, standby in enumerate(standbys(cluster), start=1)
        },
        "REPLICATED_MAX_LAG": None,  # a replay is paused for as long as a test takes
        "REDIS_URL": redis_url,
        "CELERY": celery,
    }
    kind = {"celery": CeleryJobs, "rq": RqJobs}[library]
    running = kind(settings, tmp_path_factory.mktemp(library))
    yield running
    running.stop()


def standbys(cluster: Cluster) -> tuple[Standby, ...]:
    """Return those that are replicas of the application: two."""
    return cluster.standbys[:2]


@pytest.fixture
def lagging(healthy_cluster: Cluster, jobs: Jobs) -> tuple[Standby, ...]:
    """Give the standbys, all of which have stopped to replay."""
    healthy_cluster.wait_replicated()
    for standby in standbys(healthy_cluster):
        standby.pause_replay()
    return standbys(healthy_cluster)


def order_of(jobs: Jobs, cluster: Cluster) -> int:
    """Return an order that all servers show."""
    order, job = jobs.post("/orders/pen")
    jobs.result(job)
    jobs.served()
    cluster.wait_replicated()
    return order


@pytest.mark.parametrize("way", WAYS)
def test_all_lag(jobs: Jobs, lagging: tuple[Standby, ...], way: str) -> None:
    """Where no replica shows the row that its request has written, the primary does."""
    for _ in range(3):
        _, job = jobs.post(f"/orders/pen{way}")
        assert jobs.result(job) == "pen, ordered"
    assert jobs.served() == {"primary"}


@pytest.mark.parametrize("way", WAYS)
def test_one_has_caught_up(jobs: Jobs, lagging: tuple[Standby, ...], way: str) -> None:
    """A replica that has caught up since then serves every such job."""
    with jobs.held():
        sent = [jobs.post(f"/orders/pen{way}")[1] for _ in range(4)]
        lagging[1].resume_replay()
        lagging[1].wait_replayed()
    assert [jobs.result(job) for job in sent] == ["pen, ordered"] * 4
    assert jobs.served() == {"slave_2"}


def test_all_have_caught_up(jobs: Jobs, healthy_cluster: Cluster) -> None:
    """Without a lag the replicas share the jobs."""
    with jobs.held():
        sent = [jobs.post("/orders/pen")[1] for _ in range(8)]
        healthy_cluster.wait_replicated()
    assert [jobs.result(job) for job in sent] == ["pen, ordered"] * 8
    assert jobs.served() <= {"slave_1", "slave_2"}


def test_without_a_token(jobs: Jobs, healthy_cluster: Cluster) -> None:
    """A job that nobody gives a token reads old rows, also after one that had one."""
    order = order_of(jobs, healthy_cluster)
    for standby in standbys(healthy_cluster):
        standby.pause_replay()
    _, job = jobs.post(f"/orders/{order}/ship")
    assert jobs.result(jobs.result(job)) == "pen, shipped"
    assert jobs.served() == {"primary"}
    assert jobs.result(jobs.receipt(order)) == "pen, ordered"
    assert jobs.served() < {"slave_1", "slave_2"}


def test_sent_by_a_job(jobs: Jobs, healthy_cluster: Cluster) -> None:
    """A job sees what the job that has sent it has written."""
    order = order_of(jobs, healthy_cluster)
    for standby in standbys(healthy_cluster):
        standby.pause_replay()
    _, job = jobs.post(f"/orders/{order}/ship")
    receipt = jobs.result(job)
    assert jobs.result(receipt) == "pen, shipped"
    assert jobs.served() == {"primary"}


def test_following_a_job(jobs: Jobs, healthy_cluster: Cluster) -> None:
    """A job that waits for another sees what that has written."""
    order = order_of(jobs, healthy_cluster)
    for standby in standbys(healthy_cluster):
        standby.pause_replay()
    assert jobs.result(jobs.ship_and_receipt(order)) == "pen, shipped"


@pytest.mark.parametrize("way", WAYS)
def test_in_the_same_process(
    jobs: Jobs, lagging: tuple[Standby, ...], way: str
) -> None:
    """Jobs that run where they are sent, as in tests, see the same."""
    with jobs.in_process():
        _, job = jobs.post(f"/orders/pen{way}")
        assert jobs.result(job) == "pen, ordered"


def test_never_an_old_row(jobs: Jobs, healthy_cluster: Cluster) -> None:
    """While replicas stop and go on, no job sees less than was written before it."""
    chance, seen = random.Random(7), []
    for _ in range(12):
        for standby in standbys(healthy_cluster):
            chance.choice([standby.pause_replay, standby.resume_replay])()
        order, job = jobs.post("/orders/pen")
        _, ship = jobs.post(f"/orders/{order}/ship")
        seen += [jobs.result(job)[:3], jobs.result(jobs.result(ship))]
    assert seen == ["pen", "pen, shipped"] * 12
