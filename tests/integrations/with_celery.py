"""Celery's tasks use the primary unless they ask for a replica."""

from __future__ import annotations

import os

import billiard
from celery.contrib.testing.worker import start_worker

from tests.integrations.shop import Shop


def main() -> None:
    """Run tasks in a worker, then look into a process that is forked as workers are."""
    with Shop("Celery", BROKER="memory://") as shop:
        shop.make_guest()
        names = shop.run()
        celery, report, add = (names[name] for name in ("celery", "report", "add"))
        celery.conf.result_backend = "cache+memory://"
        shop.start()
        with start_worker(celery, pool="solo", perform_ping_check=False):
            with shop.counted() as served:
                assert report.delay().get(timeout=20) == ["Ada", "Bob"]
            assert served == {"replica": 1}, served
            with shop.counted() as served:
                assert add.delay("Cy").get(timeout=20) == ["Ada", "Bob", "Cy"]
            assert set(served) == {"primary"}, served

        state = shop.replicated.state(shop.app)
        context = billiard.get_context("fork")
        answers = context.SimpleQueue()

        def tell() -> None:
            # It was told of the fork, and has begun anew.
            answers.put((os.getpid(), state and state.process))

        child = context.Process(target=tell)
        child.start()
        pid, process = answers.get()
        child.join()
        assert pid == process != os.getpid()


if __name__ == "__main__":
    main()
