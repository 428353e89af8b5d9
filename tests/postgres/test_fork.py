"""Applications that are built before a server forks its workers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.postgres.support import STANDBYS, bind

if TYPE_CHECKING:
    from examples.cluster import Cluster
    from tests.postgres.support import Build

pytestmark = pytest.mark.postgres

# Newer Pythons warn of a fork while the background look has a thread.
_QUIET = ("-W", "ignore:This process:DeprecationWarning")


def test_fork(build: Build, healthy_cluster: Cluster, driver: str) -> None:
    """Parent and child both serve after a fork, and share no connection."""
    servers = (healthy_cluster.primary, *healthy_cluster.standbys)
    urls = [bind(server, driver) for server in servers]
    run = subprocess.run(
        [sys.executable, *_QUIET, "-m", "tests.postgres.forked", *urls],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    report = json.loads(run.stdout)
    assert report["status"] == 0
    used = {}
    for phase in ("before", "child", "together", "after"):
        assert report[phase]["servers"] == sorted([*STANDBYS, *STANDBYS])
        used[phase] = {tuple(backend) for backend in report[phase]["backends"]}
    assert used["before"] == used["together"] == used["after"]
    assert not used["child"] & used["before"]
    rows = healthy_cluster.primary.execute("select text from item")
    assert sorted(text for (text,) in rows) == ["after", "before", "child", "together"]
