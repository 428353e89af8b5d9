"""APScheduler's store stays on the primary, and its jobs read where they ask to."""

from __future__ import annotations

from typing import Any

from examples.cluster import wait_until
from tests.integrations.shop import Shop

job: Any = None


def call() -> None:
    """Call the job; a store keeps the names of functions."""
    job()


def main() -> None:
    """Let a stored job run once."""
    global job
    with Shop("APScheduler") as shop:
        shop.make_guest()
        shop.start()
        with shop.counted() as served:
            names = shop.run()
            scheduler, found, job = (
                names[n] for n in ("scheduler", "found", "nightly")
            )
            scheduler.start()
            scheduler.add_job(f"{__name__}:call", "date")
            wait_until(lambda: found == ["Ada", "Bob"], "the job to have run")
            scheduler.shutdown()
        assert served["replica"] == 1, served
        assert served["primary"] > 1, served


if __name__ == "__main__":
    main()
