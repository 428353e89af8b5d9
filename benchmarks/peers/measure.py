"""Measures in this process, whose environment has the peers; writes JSON."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
import time
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from examples.cluster import Cluster
from tests.chaos.faults import PROXIED
from tests.chaos.proxy import Proxy

from .applications import Base, Entry, Note, applications
from .faults import FAULTS, measure_faults
from .picks import measure_picks
from .requests import measure_requests

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PACKAGES = (
    "SQLAlchemy",
    "Flask",
    "Flask-SQLAlchemy",
    "psycopg",
    "advanced-alchemy",
    "aws-advanced-python-wrapper",
    "django-multidb-router",
    "django-replicated",
    "pybreaker",
    "circuitbreaker",
    "purgatory",
)


def _fill(cluster: Cluster) -> None:
    engine = create_engine(cluster.primary.url())
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(Note(id=n, text=f"note {n}") for n in range(1, 101))
        session.add(Entry(name="the first"))
        session.commit()
    engine.dispose()
    cluster.wait_replicated()


def _over_servers(
    only: Sequence[str], faults: Sequence[str], note: Callable[[str], None]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    settings = {"max_connections": "200"}
    with Cluster(2, progress=note, settings=settings) as cluster:
        _fill(cluster)
        ports = [standby.port for standby in cluster.standbys]
        if "request" in only:
            with applications(cluster.primary.port, ports) as peers:
                found["request"] = measure_requests(peers, note)
        if "fault" in only:
            with Proxy(ports[PROXIED]) as proxy:
                ports[PROXIED] = proxy.port
                built = partial(applications, cluster.primary.port, ports)
                found["fault"] = measure_faults(cluster, proxy, built, faults, note)
        found["server"] = cluster.primary.execute("show server_version")[0][0]
    return found


def main(words: Sequence[str] | None = None) -> None:
    """Measure what is asked for, and write it to a file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.measure")
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", nargs="+", default=["pick", "request", "fault"])
    parser.add_argument("--faults", nargs="+", default=list(FAULTS))
    options = parser.parse_args(words)
    start = time.monotonic()

    def note(text: str) -> None:
        seconds = time.monotonic() - start
        print(f"{seconds:6.1f} s  {text}", file=sys.stderr, flush=True)

    found: dict[str, Any] = {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "processors": os.cpu_count(),
        "versions": {name: version(name) for name in PACKAGES},
    }
    with contextlib.suppress(AttributeError):
        found["versions"]["libpq"] = str(psycopg.pq.version())
    if "pick" in options.only:
        found["pick"] = measure_picks(note)
    if {"request", "fault"} & set(options.only):
        found |= _over_servers(options.only, options.faults, note)
    options.file.write_text(json.dumps(found, indent=1) + "\n")
    sys.stderr.flush()
    # Libraries that were measured may have left threads that hold up the end.
    os._exit(0)


if __name__ == "__main__":
    main()
